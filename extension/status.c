/*-------------------------------------------------------------------------
 *
 * status.c
 *	  qwen_status() and the function under the view qwen_requests.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_authid.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "answer.h"

/* Columns of qwen_status. */
enum
{
	STATUS_STATE,
	STATUS_MODEL,
	STATUS_ARCHITECTURE,
	STATUS_PARAMETERS,
	STATUS_DTYPE,
	STATUS_QUANTIZATION,
	STATUS_KV_DTYPE,
	STATUS_CONTEXT,
	STATUS_MAX_SEQUENCES,
	STATUS_DEVICE,
	STATUS_KERNELS,
	STATUS_ENGINE_PID,
	STATUS_UPTIME,
	STATUS_RESTARTS,
	STATUS_LOAD_PROGRESS,
	STATUS_RUNNING,
	STATUS_WAITING,
	STATUS_LAST_ERROR,
	STATUS_COLUMNS
};

/* Columns of the function qwen_requests. */
enum
{
	REQUESTS_PID,
	REQUESTS_USERID,
	REQUESTS_DATABASEID,
	REQUESTS_KIND,
	REQUESTS_STATE,
	REQUESTS_QUEUE_POSITION,
	REQUESTS_PRIORITY,
	REQUESTS_PROMPT_TOKENS,
	REQUESTS_OUTPUT_TOKENS,
	REQUESTS_ENGINE_DEATHS,
	REQUESTS_SUBMITTED,
	REQUESTS_COLUMNS
};

static const char *state_name(const QwenStatus *status);
static void describe_engine(const QwenStatus *status, Datum *columns, bool *nulls);
static void describe_model(const qwen_engine_state *engine, Datum *columns, bool *nulls);
static void set_text(Datum *columns, bool *nulls, int column, const char *value);
static void set_datum(Datum *columns, bool *nulls, int column, Datum value);
static const char *last_error(const QwenStatus *status);
static void put_request(ReturnSetInfo *rsi, const QwenRequestInfo *request);
static const char *priority_name(int priority);

PG_FUNCTION_INFO_V1(qwen_status);
PG_FUNCTION_INFO_V1(qwen_requests);

/* ---- the engine ---- */

/* Never an error: this is what one looks at when something is wrong. */
Datum
qwen_status(PG_FUNCTION_ARGS)
{
	TupleDesc descriptor;
	Datum columns[STATUS_COLUMNS] = {0};
	bool nulls[STATUS_COLUMNS];

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE || descriptor->natts != STATUS_COLUMNS)
		elog(ERROR, "qwen_status must return its row");

	memset(nulls, true, sizeof(nulls));
	if (qwen_is_preloaded())
	{
		QwenStatus status;

		qwen_get_status(&status);
		set_text(columns, nulls, STATUS_STATE, state_name(&status));
		describe_engine(&status, columns, nulls);
	}
	else
	{
		set_text(columns, nulls, STATUS_STATE, "not preloaded");
		set_text(columns, nulls, STATUS_LAST_ERROR, "qwen is not in shared_preload_libraries");
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), columns, nulls)));
}

static const char *
state_name(const QwenStatus *status)
{
	if (!status->worker_running)
		return "no worker";
	switch (status->engine.phase)
	{
		case QWEN_ENGINE_READY:
			return "ready";
		case QWEN_ENGINE_LOADING:
			return "loading";
		case QWEN_ENGINE_FAILED:
			return "failed";
		default:
			return "starting";
	}
}

static void
describe_engine(const QwenStatus *status, Datum *columns, bool *nulls)
{
	const qwen_engine_state *engine = &status->engine;

	set_text(columns, nulls, STATUS_MODEL, status->model);
	set_text(columns, nulls, STATUS_LAST_ERROR, last_error(status));
	set_datum(columns, nulls, STATUS_RESTARTS, Int64GetDatum(status->restarts));
	if (engine->total_bytes > 0)
		set_datum(columns, nulls, STATUS_LOAD_PROGRESS,
				  Float8GetDatum((double) engine->loaded_bytes / engine->total_bytes));
	if (status->engine_pid != 0)
	{
		TimestampTz now = GetCurrentTimestamp();

		set_datum(columns, nulls, STATUS_ENGINE_PID, Int32GetDatum(status->engine_pid));
		set_datum(
			columns, nulls, STATUS_UPTIME,
			DirectFunctionCall2(timestamp_mi, TimestampTzGetDatum(now), TimestampTzGetDatum(status->engine_start)));
	}
	if (engine->phase == QWEN_ENGINE_READY)
	{
		describe_model(engine, columns, nulls);
		set_datum(columns, nulls, STATUS_RUNNING, Int32GetDatum(status->heartbeat.running));
		set_datum(columns, nulls, STATUS_WAITING, Int32GetDatum(status->heartbeat.waiting));
	}
}

static void
describe_model(const qwen_engine_state *engine, Datum *columns, bool *nulls)
{
	set_text(columns, nulls, STATUS_ARCHITECTURE, engine->architecture);
	set_datum(columns, nulls, STATUS_PARAMETERS, Int64GetDatum((int64) engine->parameters));
	set_text(columns, nulls, STATUS_DTYPE, engine->dtype);
	set_text(columns, nulls, STATUS_QUANTIZATION, engine->quantization);
	set_text(columns, nulls, STATUS_KV_DTYPE, engine->kv_dtype);
	set_datum(columns, nulls, STATUS_CONTEXT, Int32GetDatum(engine->context));
	set_datum(columns, nulls, STATUS_MAX_SEQUENCES, Int32GetDatum(engine->max_sequences));
	set_text(columns, nulls, STATUS_DEVICE, engine->device);
	set_text(columns, nulls, STATUS_KERNELS, engine->kernels);
}

/* An empty text says as much as none. */
static void
set_text(Datum *columns, bool *nulls, int column, const char *value)
{
	if (value[0] != '\0')
		set_datum(columns, nulls, column, CStringGetTextDatum(value));
}

static void
set_datum(Datum *columns, bool *nulls, int column, Datum value)
{
	columns[column] = value;
	nulls[column] = false;
}

/* Why the model was refused, else how the last engine died. */
static const char *
last_error(const QwenStatus *status)
{
	const qwen_wire_error *error = &status->engine.error;

	if (status->engine.phase == QWEN_ENGINE_FAILED && error->message[0] != '\0')
		return psprintf("%s%s%s", error->message, error->detail[0] != '\0' ? ": " : "", error->detail);
	return status->last_error[0] != '\0' ? psprintf("engine %s", status->last_error) : "";
}

/* ---- the requests ---- */

/* Rows of others only for those who may see all statistics, as in pg_stat_activity. */
Datum
qwen_requests(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsi = (ReturnSetInfo *) fcinfo->resultinfo;
	bool sees_all = has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS);
	QwenRequestInfo *requests;
	int n;

	InitMaterializedSRF(fcinfo, 0);
	n = qwen_list_requests(&requests);
	for (int i = 0; i < n; i++)
		if (sees_all || has_privs_of_role(GetUserId(), requests[i].userid))
			put_request(rsi, &requests[i]);
	return (Datum) 0;
}

static void
put_request(ReturnSetInfo *rsi, const QwenRequestInfo *request)
{
	Datum columns[REQUESTS_COLUMNS];
	bool nulls[REQUESTS_COLUMNS] = {false};

	columns[REQUESTS_PID] = Int32GetDatum(request->pid);
	columns[REQUESTS_USERID] = ObjectIdGetDatum(request->userid);
	columns[REQUESTS_DATABASEID] = ObjectIdGetDatum(request->databaseid);
	columns[REQUESTS_KIND] = CStringGetTextDatum(request->kind);
	columns[REQUESTS_STATE] = CStringGetTextDatum(request->state);
	columns[REQUESTS_QUEUE_POSITION] = Int32GetDatum(request->queue_position);
	nulls[REQUESTS_QUEUE_POSITION] = request->queue_position == 0;
	columns[REQUESTS_PRIORITY] = CStringGetTextDatum(priority_name(request->priority));
	columns[REQUESTS_PROMPT_TOKENS] = Int32GetDatum(request->prompt_tokens);
	columns[REQUESTS_OUTPUT_TOKENS] = Int32GetDatum(request->output_tokens);
	columns[REQUESTS_ENGINE_DEATHS] = Int32GetDatum(request->deaths);
	columns[REQUESTS_SUBMITTED] = TimestampTzGetDatum(request->submitted);
	tuplestore_putvalues(rsi->setResult, rsi->setDesc, columns, nulls);
}

static const char *
priority_name(int priority)
{
	return priority > 0 ? "interactive" : priority < 0 ? "batch" : "normal";
}
