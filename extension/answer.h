/*-------------------------------------------------------------------------
 *
 * answer.h
 *	  What the SQL functions share between their arguments and their result.
 *
 *	  request.c		texts and options -> the bytes of a request
 *	  answer.c		a call -> its whole answer, or the failure of a row
 *	  functions.c	the generating functions in two halves, and which they are
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

/* ---- functions.c, and the functions' own files ---- */

/* What a generating function asks for one row. */
typedef struct QwenAsk
{
	StringInfoData request; /* allocated in the caller's context; data is NULL when it could not be built */
	QwenOnError on_error;
	qwen_wire_error error; /* why there is no request */
} QwenAsk;

/*
 * A generating function in two halves: arguments -> request, and answer -> value.  The SQL function is one after the
 * other; the plan node QwenBatch puts many rows between them, so both give the same for the same row.
 *
 * prepare: false when the subject is NULL; then so is the result and nothing is asked.  Raises what is wrong with options.
 * finish: the value, fcinfo->isnull set as by a function; needs fcinfo->flinfo alone.  Raises or counts a failure of the
 * row, as on_error says.  The answer stays the caller's.
 */
typedef struct QwenFunction
{
	PGFunction entry;
	const char *name; /* of the entry in the library */
	bool (*prepare)(FunctionCallInfo fcinfo, QwenAsk *ask);
	Datum (*finish)(FunctionCallInfo fcinfo, QwenOnError on_error, QwenAnswer *answer);
} QwenFunction;

extern const QwenFunction qwen_generate_function;
extern const QwenFunction qwen_complete_function;
extern const QwenFunction qwen_try_generate_function;
extern const QwenFunction qwen_chat_function;

/* Both halves: what the SQL function returns. */
extern Datum qwen_run_function(FunctionCallInfo fcinfo, const QwenFunction *function);

/* The generating function behind a function of this database; NULL when it is another. */
extern const QwenFunction *qwen_function_by_oid(Oid oid);

/* ---- failures.c ---- */

/* A row failed: raises, or counts it for the statement's warning, as on_error says. */
extern void qwen_fail_row(FunctionCallInfo fcinfo, QwenOnError on_error, const qwen_wire_error *error);

#endif /* QWEN_ANSWER_H */
