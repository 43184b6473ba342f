/*-------------------------------------------------------------------------
 *
 * answer.c
 *	  A call's whole answer, and which failures are a row's own.
 *
 * Classes 22 (the row's data) and 54 (its size) are the row's; everything
 * else says that the next row would not fare better, and is raised here
 * whatever the caller prefers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "answer.h"
#include "shared.h"
#include "stat.h"

QwenCall *
qwen_submit(const StringInfo request, bool nowait, qwen_wire_error *error)
{
	error->message[0] = '\0';
	if (qwen_is_preloaded() && qwen_chunk_size(request->len) > qwen_shared->largest_chunk)
	{
		qwen_set_error(error, ERRCODE_PROGRAM_LIMIT_EXCEEDED, "request is too large for the queue");
		snprintf(error->detail, sizeof(error->detail),
				 "The request needs %zu bytes, the queue holds at most %zu bytes.", qwen_chunk_size(request->len),
				 qwen_shared->largest_chunk);
		strlcpy(error->hint, "Raise qwen.queue_memory and restart the server.", sizeof(error->hint));
		qwen_stat_count_error(GetUserId(), ERRCODE_PROGRAM_LIMIT_EXCEEDED);
		return NULL;
	}
	return qwen_call_submit(request, nowait);
}

void
qwen_ask(const StringInfo request, QwenAnswer *answer)
{
	QwenCall *call = qwen_submit(request, false, &answer->error);

	if (call != NULL)
		qwen_collect(call, answer);
	else
	{
		answer->failed = true;
		answer->data.data = NULL;
	}
}

void
qwen_collect(QwenCall *call, QwenAnswer *answer)
{
	QwenReply reply;

	answer->failed = false;
	initStringInfo(&answer->data);
	for (;;)
	{
		qwen_call_next(call, &reply);
		if (reply.type != QWEN_FRAME_DATA)
			break;
		appendBinaryStringInfoNT(&answer->data, reply.data, reply.length);
	}
	if (reply.type == QWEN_FRAME_DONE)
		answer->done = reply.done;
	else
	{
		qwen_raise_unless_row_level(&reply.error);
		answer->failed = true;
		answer->error = reply.error;
	}
	qwen_call_release(call);
}

void
qwen_raise_unless_row_level(const qwen_wire_error *error)
{
	if (strncmp(error->sqlstate, "22", 2) != 0 && strncmp(error->sqlstate, "54", 2) != 0)
		qwen_raise(error);
}

char *
qwen_to_server(char *utf8, Size length, Size *result_length, qwen_wire_error *error)
{
	return qwen_convert(utf8, length, PG_UTF8, GetDatabaseEncoding(), result_length, error);
}

text *
qwen_answer_text(QwenAnswer *answer)
{
	Size length;
	char *string = qwen_to_server(answer->data.data, answer->data.len, &length, &answer->error);
	text *result;

	if (string == NULL)
	{
		answer->failed = true;
		return NULL;
	}
	result = cstring_to_text_with_len(string, (int) length);
	if (string != answer->data.data)
		pfree(string);
	return result;
}

void
qwen_answer_free(QwenAnswer *answer)
{
	if (answer->data.data != NULL)
		pfree(answer->data.data);
	answer->data.data = NULL;
}

/* In doubt what is not ASCII becomes a question mark: a message must never raise an error of its own. */
char *
qwen_message_text(const char *message)
{
	qwen_wire_error error;
	Size length;
	char *copy = pstrdup(message);
	char *result = qwen_to_server(copy, strlen(copy), &length, &error);

	if (result != NULL && GetDatabaseEncoding() != PG_SQL_ASCII)
		return result;
	for (char *p = copy; *p != '\0'; p++)
		if (IS_HIGHBIT_SET(*p))
			*p = '?';
	return copy;
}

void
qwen_set_error(qwen_wire_error *error, int sqlstate, const char *format, ...)
{
	va_list args;

	memset(error, 0, sizeof(*error));
	strlcpy(error->sqlstate, unpack_sql_state(sqlstate), sizeof(error->sqlstate));
	va_start(args, format);
	vsnprintf(error->message, sizeof(error->message), format, args);
	va_end(args);
}
