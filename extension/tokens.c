/*-------------------------------------------------------------------------
 *
 * tokens.c
 *	  qwen_token_count, qwen_tokenize, qwen_detokenize.
 *
 * The tokenizer lives in the engine, with the model that it belongs to.
 * These are requests like others, without a place in the batch.  They take no
 * options; whatever fails is raised.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "answer.h"

static void ask_about_text(text *subject, qwen_request_kind kind, QwenAnswer *answer);
static void ask_or_raise(StringInfo request, QwenAnswer *answer);
static int32 *ids_of_array(ArrayType *array, int *n);
static ArrayType *array_of_ids(const QwenAnswer *answer);

PG_FUNCTION_INFO_V1(qwen_token_count);
PG_FUNCTION_INFO_V1(qwen_tokenize);
PG_FUNCTION_INFO_V1(qwen_detokenize);

Datum
qwen_token_count(PG_FUNCTION_ARGS)
{
	QwenAnswer answer;

	ask_about_text(PG_GETARG_TEXT_PP(0), QWEN_KIND_COUNT, &answer);
	qwen_answer_free(&answer);
	PG_RETURN_INT32(answer.done.prompt_tokens);
}

Datum
qwen_tokenize(PG_FUNCTION_ARGS)
{
	QwenAnswer answer;
	ArrayType *ids;

	ask_about_text(PG_GETARG_TEXT_PP(0), QWEN_KIND_TOKENIZE, &answer);
	ids = array_of_ids(&answer);
	qwen_answer_free(&answer);
	PG_RETURN_ARRAYTYPE_P(ids);
}

Datum
qwen_detokenize(PG_FUNCTION_ARGS)
{
	StringInfoData request;
	QwenAnswer answer;
	text *result;
	int n;
	int32 *ids = ids_of_array(PG_GETARG_ARRAYTYPE_P(0), &n);

	qwen_request_begin_plain(&request, QWEN_KIND_DETOKENIZE);
	qwen_request_add_bytes(&request, QWEN_FIELD_IDS, ids, n * sizeof(int32));
	pfree(ids);
	ask_or_raise(&request, &answer);
	result = qwen_answer_text(&answer);
	if (result == NULL)
		qwen_raise(&answer.error);
	qwen_answer_free(&answer);
	PG_RETURN_TEXT_P(result);
}

static void
ask_about_text(text *subject, qwen_request_kind kind, QwenAnswer *answer)
{
	StringInfoData request;

	qwen_request_begin_plain(&request, kind);
	if (!qwen_request_add_text(&request, QWEN_FIELD_PROMPT, VARDATA_ANY(subject), VARSIZE_ANY_EXHDR(subject),
							   &answer->error))
		qwen_raise(&answer->error);
	ask_or_raise(&request, answer);
}

/* Frees the request. */
static void
ask_or_raise(StringInfo request, QwenAnswer *answer)
{
	qwen_ask(request, answer);
	if (answer->failed)
		qwen_raise(&answer->error);
	pfree(request->data);
}

static int32 *
ids_of_array(ArrayType *array, int *n)
{
	Datum *elements;
	bool *nulls;
	int32 *ids;

	deconstruct_array(array, INT4OID, sizeof(int32), true, TYPALIGN_INT, &elements, &nulls, n);
	ids = palloc(Max(*n, 1) * sizeof(int32));
	for (int i = 0; i < *n; i++)
	{
		if (nulls[i])
			ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("token ids must not be null")));
		ids[i] = DatumGetInt32(elements[i]);
	}
	return ids;
}

static ArrayType *
array_of_ids(const QwenAnswer *answer)
{
	int n = answer->data.len / sizeof(int32);
	Datum *elements = palloc(Max(n, 1) * sizeof(Datum));
	ArrayType *array;

	for (int i = 0; i < n; i++)
	{
		int32 id;

		memcpy(&id, answer->data.data + i * sizeof(int32), sizeof(int32));
		elements[i] = Int32GetDatum(id);
	}
	array = construct_array(elements, n, INT4OID, sizeof(int32), true, TYPALIGN_INT);
	pfree(elements);
	return array;
}
