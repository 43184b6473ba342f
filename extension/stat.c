/*-------------------------------------------------------------------------
 *
 * stat.c
 *	  The cumulative counters, and the functions under the views qwen_stat
 *	  and qwen_stat_engine.  stat.h has the protocol.
 *
 * Two sources.  What belongs to a role is counted here, by the backends, at
 * the moment when a request ends.  What belongs to the engine as a whole
 * (steps, preemptions, ...) is counted by the engine and comes with its
 * heartbeat: up to a second old, and from zero with every engine.
 *
 * The sets lie in the array as in a hash table with open addressing: a role's
 * set is looked for from the place that its oid says onwards.  Sets are only
 * ever given back all together, so there are no gaps to be jumped over.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_authid.h"
#include "common/hashfn.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/timestamp.h"

#include "shared.h"
#include "stat.h"

/* Columns of the function qwen_stat. */
enum
{
	STAT_USERID,
	STAT_REQUESTS,
	STAT_PROMPT_TOKENS,
	STAT_CACHED_TOKENS,
	STAT_OUTPUT_TOKENS,
	STAT_ERRORS, /* one column a cause, in the order of QwenStatCause */
	STAT_QUEUE_MS = STAT_ERRORS + QWEN_STAT_CAUSES,
	STAT_RUN_MS,
	STAT_FIRST_TOKEN_MS,
	STAT_ANSWERS,
	STAT_STEPS,
	STAT_BATCHED_TOKENS,
	STAT_STATS_RESET,
	STAT_COLUMNS
};

/* Columns of the function qwen_stat_engine. */
enum
{
	ENGINE_STEPS,
	ENGINE_BATCHED_TOKENS,
	ENGINE_CACHED_TOKENS,
	ENGINE_PREEMPTIONS,
	ENGINE_RUNNING,
	ENGINE_WAITING,
	ENGINE_KV_BLOCKS_USED,
	ENGINE_KV_BLOCKS,
	ENGINE_SINCE,
	ENGINE_COLUMNS
};

static QwenStats *stats = NULL;
static LWLock *stats_lock = NULL;

static void reset(void);
static QwenCounters *find_set(Oid userid);
static QwenStatCause cause_of(int sqlstate);
static bool runs_model(uint32 kind);
static bool is_shown(const QwenCounters *set, bool sees_all);
static void put_set(ReturnSetInfo *rsi, const QwenCounters *set, TimestampTz reset_at);

PG_FUNCTION_INFO_V1(qwen_stat);
PG_FUNCTION_INFO_V1(qwen_stat_reset);
PG_FUNCTION_INFO_V1(qwen_stat_engine);

/* ---- the memory ---- */

Size
qwen_stat_size(void)
{
	return MAXALIGN(sizeof(QwenStats));
}

void
qwen_stat_attach(void *place, LWLock *lock)
{
	stats = place;
	stats_lock = lock;
}

void
qwen_stat_start(void)
{
	reset();
}

/* The caller holds the lock, or is alone. */
static void
reset(void)
{
	memset(stats, 0, sizeof(*stats));
	stats->reset_at = GetCurrentTimestamp();
}

/* ---- counting ---- */

/* Texts that only went through the tokenizer took neither prompt nor answer, and no time of the model. */
void
qwen_stat_count_answer(Oid userid, uint32 kind, const qwen_done *done)
{
	QwenCounters *set;

	LWLockAcquire(stats_lock, LW_EXCLUSIVE);
	set = find_set(userid);
	set->requests++;
	if (runs_model(kind))
	{
		set->answers++;
		set->prompt_tokens += done->prompt_tokens;
		set->cached_tokens += done->cached_tokens;
		set->output_tokens += done->output_tokens;
		set->steps += done->steps;
		set->batched_tokens += (int64) done->batched_tokens;
		set->queue_us += (int64) done->queue_us;
		set->run_us += (int64) done->run_us;
		set->first_us += (int64) (done->queue_us + done->first_us);
	}
	LWLockRelease(stats_lock);
}

void
qwen_stat_count_error(Oid userid, int sqlstate)
{
	QwenCounters *set;

	LWLockAcquire(stats_lock, LW_EXCLUSIVE);
	set = find_set(userid);
	set->requests++;
	set->errors[cause_of(sqlstate)]++;
	LWLockRelease(stats_lock);
}

/* The set of a role, which may be a free one that becomes its. The caller holds the lock exclusively. */
static QwenCounters *
find_set(Oid userid)
{
	uint32 start = murmurhash32(userid);

	for (uint32 i = 0; i < QWEN_STAT_ROLES; i++)
	{
		QwenCounters *set = &stats->roles[(start + i) % QWEN_STAT_ROLES];

		if (set->userid == userid)
			return set;
		if (!OidIsValid(set->userid))
		{
			set->userid = userid;
			return set;
		}
	}
	return &stats->roles[QWEN_STAT_ROLES];
}

static QwenStatCause
cause_of(int sqlstate)
{
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case ERRCODE_DATA_EXCEPTION:
			return QWEN_STAT_INVALID;
		case ERRCODE_PROGRAM_LIMIT_EXCEEDED:
			return QWEN_STAT_TOO_LONG;
		case ERRCODE_INSUFFICIENT_RESOURCES:
			return QWEN_STAT_RESOURCES;
		case ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE:
			return QWEN_STAT_NOT_READY;
		case ERRCODE_OPERATOR_INTERVENTION:
			return QWEN_STAT_CANCELLED;
		case ERRCODE_SYSTEM_ERROR:
			return QWEN_STAT_ENGINE;
		default:
			return QWEN_STAT_OTHER;
	}
}

static bool
runs_model(uint32 kind)
{
	return kind != QWEN_KIND_TOKENIZE && kind != QWEN_KIND_COUNT && kind != QWEN_KIND_DETOKENIZE;
}

/* ---- reading ---- */

/* Rows of others only for those who may see all statistics, as in pg_stat_activity. */
Datum
qwen_stat(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsi = (ReturnSetInfo *) fcinfo->resultinfo;
	bool sees_all = has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS);
	QwenStats *copy = palloc(sizeof(QwenStats));

	qwen_check_preloaded();
	InitMaterializedSRF(fcinfo, 0);
	LWLockAcquire(stats_lock, LW_SHARED);
	memcpy(copy, stats, sizeof(*copy));
	LWLockRelease(stats_lock);

	for (int i = 0; i <= QWEN_STAT_ROLES; i++)
		if (is_shown(&copy->roles[i], sees_all))
			put_set(rsi, &copy->roles[i], copy->reset_at);
	pfree(copy);
	return (Datum) 0;
}

/* A set of nobody in particular belongs to all others, hence to none of them. */
static bool
is_shown(const QwenCounters *set, bool sees_all)
{
	if (set->requests == 0)
		return false;
	return sees_all || (OidIsValid(set->userid) && has_privs_of_role(GetUserId(), set->userid));
}

static void
put_set(ReturnSetInfo *rsi, const QwenCounters *set, TimestampTz reset_at)
{
	Datum columns[STAT_COLUMNS];
	bool nulls[STAT_COLUMNS] = {false};

	columns[STAT_USERID] = ObjectIdGetDatum(set->userid);
	nulls[STAT_USERID] = !OidIsValid(set->userid);
	columns[STAT_REQUESTS] = Int64GetDatum(set->requests);
	columns[STAT_PROMPT_TOKENS] = Int64GetDatum(set->prompt_tokens);
	columns[STAT_CACHED_TOKENS] = Int64GetDatum(set->cached_tokens);
	columns[STAT_OUTPUT_TOKENS] = Int64GetDatum(set->output_tokens);
	for (int cause = 0; cause < QWEN_STAT_CAUSES; cause++)
		columns[STAT_ERRORS + cause] = Int64GetDatum(set->errors[cause]);
	columns[STAT_QUEUE_MS] = Float8GetDatum(set->queue_us / 1000.0);
	columns[STAT_RUN_MS] = Float8GetDatum(set->run_us / 1000.0);
	columns[STAT_FIRST_TOKEN_MS] = Float8GetDatum(set->first_us / 1000.0);
	columns[STAT_ANSWERS] = Int64GetDatum(set->answers);
	columns[STAT_STEPS] = Int64GetDatum(set->steps);
	columns[STAT_BATCHED_TOKENS] = Int64GetDatum(set->batched_tokens);
	columns[STAT_STATS_RESET] = TimestampTzGetDatum(reset_at);
	tuplestore_putvalues(rsi->setResult, rsi->setDesc, columns, nulls);
}

/* The engine's own counters are not touched: they tell of its life, not of ours. */
Datum
qwen_stat_reset(PG_FUNCTION_ARGS)
{
	qwen_check_preloaded();
	LWLockAcquire(stats_lock, LW_EXCLUSIVE);
	reset();
	LWLockRelease(stats_lock);
	PG_RETURN_VOID();
}

/* One row; all columns NULL while there is no engine that could count. */
Datum
qwen_stat_engine(PG_FUNCTION_ARGS)
{
	TupleDesc descriptor;
	Datum columns[ENGINE_COLUMNS] = {0};
	bool nulls[ENGINE_COLUMNS];
	QwenStatus status;

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE || descriptor->natts != ENGINE_COLUMNS)
		elog(ERROR, "qwen_stat_engine must return its row");

	qwen_get_status(&status);
	memset(nulls, status.engine.phase != QWEN_ENGINE_READY, sizeof(nulls));
	columns[ENGINE_STEPS] = Int64GetDatum((int64) status.heartbeat.steps);
	columns[ENGINE_BATCHED_TOKENS] = Int64GetDatum((int64) status.heartbeat.batched_tokens);
	columns[ENGINE_CACHED_TOKENS] = Int64GetDatum((int64) status.heartbeat.cached_tokens);
	columns[ENGINE_PREEMPTIONS] = Int64GetDatum((int64) status.heartbeat.preemptions);
	columns[ENGINE_RUNNING] = Int32GetDatum(status.heartbeat.running);
	columns[ENGINE_WAITING] = Int32GetDatum(status.heartbeat.waiting);
	columns[ENGINE_KV_BLOCKS_USED] = Int32GetDatum(status.heartbeat.kv_blocks_used);
	columns[ENGINE_KV_BLOCKS] = Int32GetDatum(status.heartbeat.kv_blocks);
	columns[ENGINE_SINCE] = TimestampTzGetDatum(status.engine_start);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), columns, nulls)));
}
