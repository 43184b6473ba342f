/*-------------------------------------------------------------------------
 *
 * answer.h
 *	  What the SQL functions share between their arguments and their result.
 *
 *	  request.c		texts and options -> the bytes of a request
 *	  answer.c		a call -> its whole answer, or the failure of a row
 *	  failures.c	counting of failures that became NULL
 *
 * A failure is of the row (its text is too long, has a character that the
 * other side lacks, ...) or of the infrastructure.  Only the former is ever
 * reported in a value; the functions below hand it over as a qwen_wire_error
 * whether it arose here or in the engine, and raise the latter.
 *
 *-------------------------------------------------------------------------
 */
#ifndef QWEN_ANSWER_H
#define QWEN_ANSWER_H

#include "qwen.h"

#include "fmgr.h"

/* ---- request.c ---- */

/* Starts a request: its header and the fields that come from options. Raises what is wrong with those. */
extern void qwen_request_begin(StringInfo request, const QwenOptions *options);

/* Starts a request that takes no options. */
extern void qwen_request_begin_plain(StringInfo request, qwen_request_kind kind);

extern void qwen_request_add_bytes(StringInfo request, qwen_field_tag tag, const void *data, Size length);

/* Adds a text of the database's encoding as UTF-8; false and *error when it cannot be said in UTF-8. */
extern bool qwen_request_add_text(StringInfo request, qwen_field_tag tag, const char *text, Size length,
								  qwen_wire_error *error);

/*
 * Text from one encoding to another, NUL-terminated; NULL and *error when it cannot be had.  The result is `text` itself
 * when nothing is to be done; then it need not be terminated.
 */
extern char *qwen_convert(char *text, Size length, int from, int to, Size *result_length, qwen_wire_error *error);

/* ---- answer.c ---- */

typedef struct QwenAnswer
{
	StringInfoData data; /* as the engine sent it; allocated in the context of qwen_collect */
	qwen_done done;
	bool failed; /* `error` tells why; data and done mean nothing */
	qwen_wire_error error;
} QwenAnswer;

/* qwen_call_submit, but a request that no queue of this size can take is a failure of the row: NULL and *error. */
extern QwenCall *qwen_submit(const StringInfo request, bool nowait, qwen_wire_error *error);

/* Reads a call's answer to its end and frees the call. */
extern void qwen_collect(QwenCall *call, QwenAnswer *answer);

/* Submits and collects. */
extern void qwen_ask(const StringInfo request, QwenAnswer *answer);

/* Text of the engine in the database's encoding; NULL and *error when that lacks a character. */
extern char *qwen_to_server(char *utf8, Size length, Size *result_length, qwen_wire_error *error);

/* The answer as text; NULL and answer->failed when the database's encoding lacks a character of it. */
extern text *qwen_answer_text(QwenAnswer *answer);

/* Frees what an answer holds. */
extern void qwen_answer_free(QwenAnswer *answer);

/* Raises unless the error is of the row. */
extern void qwen_raise_unless_row_level(const qwen_wire_error *error);

/* A message of the engine as this database can show it. */
extern char *qwen_message_text(const char *message);

/* Fills an error; the message is a format. */
extern void qwen_set_error(qwen_wire_error *error, int sqlstate, const char *format, ...) pg_attribute_printf(3, 4);

/* ---- failures.c ---- */

/* A row failed: raises, or counts it for the statement's warning, as on_error says. */
extern void qwen_fail_row(FunctionCallInfo fcinfo, QwenOnError on_error, const qwen_wire_error *error);

#endif /* QWEN_ANSWER_H */
