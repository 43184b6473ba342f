/*-------------------------------------------------------------------------
 *
 * generate.c
 *	  qwen_generate, qwen_complete, qwen_try_generate.
 *
 * One row is one request.  An array is as many requests as it has elements,
 * of which several are in flight at a time: elements are submitted ahead of
 * the one whose answer is being read, the first in flight may wait for a
 * place in the queue, the others take one only if it is free.  Two statements
 * that each hold what the other waits for therefore cannot come about.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "answer.h"
#include "options.h"

/* Requests of one array that are under way at a time; enough to fill a batch, few enough to leave places for others. */
#define ARRAY_IN_FLIGHT 64

/* An element on its way. */
typedef struct Flight
{
	int element;
	QwenCall *call; /* NULL: failed before it was submitted, `error` says why */
	qwen_wire_error error;
} Flight;

/* An array on its way. */
typedef struct ArrayRun
{
	StringInfoData prefix; /* header and options, the same for all elements */
	Datum *values;         /* prompts, replaced by answers one by one */
	bool *nulls;
	int n;
	int next;        /* the first element that has not been submitted */
	Flight *flights; /* a ring of ARRAY_IN_FLIGHT, in the order of the elements */
	int first;
	int n_flights;
} ArrayRun;

/* Columns of qwen_result. */
enum
{
	RESULT_VALUE,
	RESULT_ERROR,
	RESULT_SQLSTATE,
	RESULT_FINISH_REASON,
	RESULT_PROMPT_TOKENS,
	RESULT_CACHED_TOKENS,
	RESULT_OUTPUT_TOKENS,
	RESULT_QUEUE_MS,
	RESULT_RUN_MS,
	RESULT_COLUMNS
};

static bool prepare_prompt(FunctionCallInfo fcinfo, qwen_request_kind kind, uint32 refused, QwenAsk *ask);
static bool prepare_generate(FunctionCallInfo fcinfo, QwenAsk *ask);
static bool prepare_complete(FunctionCallInfo fcinfo, QwenAsk *ask);
static bool prepare_try(FunctionCallInfo fcinfo, QwenAsk *ask);
static Datum finish_text(FunctionCallInfo fcinfo, QwenOnError on_error, QwenAnswer *answer);
static Datum finish_try(FunctionCallInfo fcinfo, QwenOnError on_error, QwenAnswer *answer);
static TupleDesc result_descriptor(FunctionCallInfo fcinfo);
static void submit_ahead(ArrayRun *run);
static bool submit_element(ArrayRun *run, Flight *flight);
static void collect_first(FunctionCallInfo fcinfo, QwenOnError on_error, ArrayRun *run);

PG_FUNCTION_INFO_V1(qwen_generate);
PG_FUNCTION_INFO_V1(qwen_generate_array);
PG_FUNCTION_INFO_V1(qwen_complete);
PG_FUNCTION_INFO_V1(qwen_try_generate);

const QwenFunction qwen_generate_function = {qwen_generate, "qwen_generate", prepare_generate, finish_text};
const QwenFunction qwen_complete_function = {qwen_complete, "qwen_complete", prepare_complete, finish_text};
const QwenFunction qwen_try_generate_function = {qwen_try_generate, "qwen_try_generate", prepare_try, finish_try};

/* ---- one prompt ---- */

Datum
qwen_generate(PG_FUNCTION_ARGS)
{
	return qwen_run_function(fcinfo, &qwen_generate_function);
}

Datum
qwen_complete(PG_FUNCTION_ARGS)
{
	return qwen_run_function(fcinfo, &qwen_complete_function);
}

Datum
qwen_try_generate(PG_FUNCTION_ARGS)
{
	return qwen_run_function(fcinfo, &qwen_try_generate_function);
}

static bool
prepare_generate(FunctionCallInfo fcinfo, QwenAsk *ask)
{
	return prepare_prompt(fcinfo, QWEN_KIND_GENERATE, 0, ask);
}

/* A raw continuation has no messages and no template. */
static bool
prepare_complete(FunctionCallInfo fcinfo, QwenAsk *ask)
{
	return prepare_prompt(fcinfo, QWEN_KIND_COMPLETE,
						  QWEN_OPTION_BIT(QWEN_OPTION_SYSTEM) | QWEN_OPTION_BIT(QWEN_OPTION_THINKING), ask);
}

/* What becomes of a failure is not for an option to say here. */
static bool
prepare_try(FunctionCallInfo fcinfo, QwenAsk *ask)
{
	return prepare_prompt(fcinfo, QWEN_KIND_GENERATE, QWEN_OPTION_BIT(QWEN_OPTION_ON_ERROR), ask);
}

static bool
prepare_prompt(FunctionCallInfo fcinfo, qwen_request_kind kind, uint32 refused, QwenAsk *ask)
{
	QwenOptions options;
	text *prompt;

	if (PG_ARGISNULL(QWEN_ARG_SUBJECT))
		return false;
	qwen_read_options(fcinfo, kind, refused, &options);
	ask->on_error = options.on_error;

	prompt = PG_GETARG_TEXT_PP(QWEN_ARG_SUBJECT);
	qwen_request_begin(&ask->request, &options);
	if (!qwen_request_add_text(&ask->request, QWEN_FIELD_PROMPT, VARDATA_ANY(prompt), VARSIZE_ANY_EXHDR(prompt),
							   &ask->error))
	{
		pfree(ask->request.data);
		ask->request.data = NULL;
	}
	PG_FREE_IF_COPY(prompt, QWEN_ARG_SUBJECT);
	return true;
}

static Datum
finish_text(FunctionCallInfo fcinfo, QwenOnError on_error, QwenAnswer *answer)
{
	text *result = answer->failed ? NULL : qwen_answer_text(answer);

	if (result == NULL)
	{
		qwen_fail_row(fcinfo, on_error, &answer->error);
		PG_RETURN_NULL();
	}
	PG_RETURN_TEXT_P(result);
}

/*
 * Everything that is known about an answer.  Failures of the row go into the result.  Others are raised as everywhere:
 * with the engine away, a million rows that say so help nobody, and a cancelled statement has to end.
 */
static Datum
finish_try(FunctionCallInfo fcinfo, QwenOnError on_error, QwenAnswer *answer)
{
	text *value = answer->failed ? NULL : qwen_answer_text(answer);
	Datum columns[RESULT_COLUMNS] = {0};
	bool nulls[RESULT_COLUMNS];

	memset(nulls, true, sizeof(nulls));
	if (value == NULL)
	{
		columns[RESULT_ERROR] = CStringGetTextDatum(qwen_message_text(answer->error.message));
		columns[RESULT_SQLSTATE] = CStringGetTextDatum(answer->error.sqlstate);
		nulls[RESULT_ERROR] = nulls[RESULT_SQLSTATE] = false;
	}
	else
	{
		columns[RESULT_VALUE] = PointerGetDatum(value);
		columns[RESULT_FINISH_REASON] = CStringGetTextDatum(qwen_finish_name(answer->done.finish_reason));
		columns[RESULT_PROMPT_TOKENS] = Int32GetDatum(answer->done.prompt_tokens);
		columns[RESULT_CACHED_TOKENS] = Int32GetDatum(answer->done.cached_tokens);
		columns[RESULT_OUTPUT_TOKENS] = Int32GetDatum(answer->done.output_tokens);
		columns[RESULT_QUEUE_MS] = Float8GetDatum(answer->done.queue_us / 1000.0);
		columns[RESULT_RUN_MS] = Float8GetDatum(answer->done.run_us / 1000.0);
		memset(nulls, false, sizeof(nulls));
		nulls[RESULT_ERROR] = nulls[RESULT_SQLSTATE] = true;
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(result_descriptor(fcinfo), columns, nulls)));
}

/* Looked up once a query. */
static TupleDesc
result_descriptor(FunctionCallInfo fcinfo)
{
	FmgrInfo *flinfo = fcinfo->flinfo;
	MemoryContext old;
	TupleDesc descriptor;

	if (flinfo->fn_extra != NULL)
		return flinfo->fn_extra;

	old = MemoryContextSwitchTo(flinfo->fn_mcxt);
	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE || descriptor->natts != RESULT_COLUMNS)
		elog(ERROR, "qwen_try_generate must return qwen_result");
	flinfo->fn_extra = BlessTupleDesc(descriptor);
	MemoryContextSwitchTo(old);
	return flinfo->fn_extra;
}

/* ---- an array of prompts ---- */

Datum
qwen_generate_array(PG_FUNCTION_ARGS)
{
	ArrayType *prompts;
	QwenOptions options;
	ArrayRun run = {0};

	if (PG_ARGISNULL(QWEN_ARG_SUBJECT))
		PG_RETURN_NULL();
	prompts = PG_GETARG_ARRAYTYPE_P(QWEN_ARG_SUBJECT);
	qwen_read_options(fcinfo, QWEN_KIND_GENERATE, 0, &options);

	qwen_request_begin(&run.prefix, &options);
	deconstruct_array(prompts, TEXTOID, -1, false, TYPALIGN_INT, &run.values, &run.nulls, &run.n);
	run.flights = palloc(ARRAY_IN_FLIGHT * sizeof(Flight));
	for (;;)
	{
		submit_ahead(&run);
		if (run.n_flights == 0)
			break;
		collect_first(fcinfo, options.on_error, &run);
	}
	pfree(run.flights);

	if (run.n == 0)
		PG_RETURN_ARRAYTYPE_P(construct_empty_array(TEXTOID));
	PG_RETURN_ARRAYTYPE_P(construct_md_array(run.values, run.nulls, ARR_NDIM(prompts), ARR_DIMS(prompts),
											 ARR_LBOUND(prompts), TEXTOID, -1, false, TYPALIGN_INT));
}

static void
submit_ahead(ArrayRun *run)
{
	while (run->n_flights < ARRAY_IN_FLIGHT)
	{
		Flight *flight = &run->flights[(run->first + run->n_flights) % ARRAY_IN_FLIGHT];

		while (run->next < run->n && run->nulls[run->next])
			run->next++;
		if (run->next == run->n)
			return;
		flight->element = run->next;
		if (!submit_element(run, flight))
			return;
		run->next++;
		run->n_flights++;
	}
}

/* False when there is no place in the queue now. */
static bool
submit_element(ArrayRun *run, Flight *flight)
{
	text *prompt = DatumGetTextPP(run->values[flight->element]);
	StringInfoData request;
	bool full = false;

	initStringInfo(&request);
	appendBinaryStringInfo(&request, run->prefix.data, run->prefix.len);
	flight->call = NULL;
	if (qwen_request_add_text(&request, QWEN_FIELD_PROMPT, VARDATA_ANY(prompt), VARSIZE_ANY_EXHDR(prompt),
							  &flight->error))
	{
		flight->call = qwen_submit(&request, run->n_flights > 0, &flight->error);
		full = flight->call == NULL && flight->error.message[0] == '\0';
	}
	pfree(request.data);
	return !full;
}

static void
collect_first(FunctionCallInfo fcinfo, QwenOnError on_error, ArrayRun *run)
{
	Flight *flight = &run->flights[run->first];
	text *value = NULL;
	QwenAnswer answer;

	run->first = (run->first + 1) % ARRAY_IN_FLIGHT;
	run->n_flights--;
	if (flight->call == NULL)
		answer.error = flight->error;
	else
	{
		qwen_collect(flight->call, &answer);
		if (!answer.failed)
			value = qwen_answer_text(&answer);
		qwen_answer_free(&answer);
	}

	if (value == NULL)
	{
		qwen_fail_row(fcinfo, on_error, &answer.error);
		run->nulls[flight->element] = true;
	}
	run->values[flight->element] = PointerGetDatum(value);
}
