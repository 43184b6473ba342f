/*
 * error.c
 *	  Filling of qwen_error and the map from status to SQLSTATE.
 */
#include "error.h"

#include <stdio.h>

qwen_status
qwen_fail(qwen_error *err, qwen_status status, const char *fmt, ...)
{
	va_list ap;

	err->status = status;
	err->detail[0] = err->hint[0] = '\0';
	va_start(ap, fmt);
	vsnprintf(err->message, sizeof(err->message), fmt, ap);
	va_end(ap);
	return status;
}

qwen_status
qwen_fail_detail(qwen_error *err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(err->detail, sizeof(err->detail), fmt, ap);
	va_end(ap);
	return err->status;
}

qwen_status
qwen_fail_hint(qwen_error *err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(err->hint, sizeof(err->hint), fmt, ap);
	va_end(ap);
	return err->status;
}

qwen_status
qwen_fail_memory(qwen_error *err, unsigned long long bytes)
{
	qwen_fail(err, QWEN_NO_MEMORY, "out of memory");
	return qwen_fail_detail(err, "An allocation of %llu bytes failed.", bytes);
}

const char *
qwen_sqlstate(qwen_status status)
{
	static const char *const codes[] = {
		[QWEN_OK] = "00000",        [QWEN_INVALID] = "22023",     [QWEN_INCOMPLETE] = "22000",
		[QWEN_TOO_LONG] = "54000",  [QWEN_UNSUPPORTED] = "0A000", [QWEN_NOT_READY] = "55000",
		[QWEN_RESOURCES] = "53000", [QWEN_NO_MEMORY] = "53200",   [QWEN_CANCELED] = "57014",
		[QWEN_NOT_FOUND] = "58P01", [QWEN_IO] = "58030",          [QWEN_CORRUPT] = "XX001",
		[QWEN_INTERNAL] = "XX000",
	};

	return codes[status];
}
