/*
 * error.h
 *	  How every fallible function of the engine reports failure.
 *
 * A function returns a qwen_status and fills the caller's qwen_error, which
 * carries the message exactly as it will reach SQL: a lower-case primary
 * message without a period, detail and hint as sentences, and the hint names
 * the setting.  Nothing in the engine prints, exits or aborts because of
 * input; main.c is the only place that turns an error into output.
 */
#ifndef QWEN_ERROR_H
#define QWEN_ERROR_H

#include <stdarg.h>
#include <stdbool.h>

typedef enum qwen_status
{
	QWEN_OK = 0,
	QWEN_INVALID,     /* 22023: bad option, malformed input */
	QWEN_INCOMPLETE,  /* 22000: output could not be completed within max_tokens */
	QWEN_TOO_LONG,    /* 54000: exceeds the context or another fixed limit */
	QWEN_UNSUPPORTED, /* 0A000: architecture, format or dtype that is not here */
	QWEN_NOT_READY,   /* 55000: no model, still loading, wrong state */
	QWEN_RESOURCES,   /* 53000: queue full */
	QWEN_NO_MEMORY,   /* 53200: allocation failed */
	QWEN_CANCELED,    /* 57014 */
	QWEN_NOT_FOUND,   /* 58P01: file does not exist */
	QWEN_IO,          /* 58030: read or write failed */
	QWEN_CORRUPT,     /* XX001: a file contradicts itself */
	QWEN_INTERNAL     /* XX000: a bug of ours */
} qwen_status;

typedef struct qwen_error
{
	qwen_status status;
	char message[256]; /* primary message */
	char detail[768];  /* empty when there is none */
	char hint[256];    /* empty when there is none */
} qwen_error;

/* Fills *err (detail and hint emptied) and returns status, so that callers can write `return qwen_fail(...)`. */
qwen_status qwen_fail(qwen_error *err, qwen_status status, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Add a detail or hint to an error set before; return err->status. */
qwen_status qwen_fail_detail(qwen_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
qwen_status qwen_fail_hint(qwen_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* QWEN_NO_MEMORY with the number of bytes that could not be had. */
qwen_status qwen_fail_memory(qwen_error *err, unsigned long long bytes);

/* The five-character SQLSTATE that SQL raises for a status. */
const char *qwen_sqlstate(qwen_status status);

#endif
