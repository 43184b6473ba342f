/*-------------------------------------------------------------------------
 *
 * inspect.c
 *	  What the SQL functions see of the shared state, orders to the worker,
 *	  and the engine's errors as SQL errors.
 *
 * Everything is copied under the locks and looked at afterwards.  Texts that
 * come from the engine are UTF-8 and may have been cut in the middle of a
 * character, while the database may use another encoding: they are made
 * harmless before they leave this file.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/timestamp.h"

#include "shared.h"

static int count_draining(void);
static void make_valid(char *text);
static bool copy_slot(const QwenSlot *slot, QwenRequestInfo *info);
static const char *state_name(QwenSlotState state, bool started);
static int compare_requests(const void *a, const void *b);
static const char *kind_name(uint32 kind);
static void notice_draining(void);

/* One consistent picture: engine, phase and counters belong to the same moment. */
void
qwen_get_status(QwenStatus *status)
{
	const QwenShared *shared = qwen_shared;

	qwen_check_preloaded();
	memset(status, 0, sizeof(*status));
	LWLockAcquire(qwen_control_lock(), LW_SHARED);
	status->worker_running = shared->worker_pid != 0;
	status->worker_pid = shared->worker_pid;
	status->engine_pid = shared->engine_pid;
	status->draining = count_draining();
	status->engine = shared->engine;
	status->heartbeat = shared->heartbeat;
	status->engine_start = shared->engine_start;
	status->ready_since = shared->ready_since;
	status->restarts = shared->restarts;
	strlcpy(status->model, shared->model, sizeof(status->model));
	strlcpy(status->last_error, shared->last_error, sizeof(status->last_error));
	LWLockRelease(qwen_control_lock());

	make_valid(status->model);
	make_valid(status->last_error);
	make_valid(status->engine.architecture);
	make_valid(status->engine.dtype);
	make_valid(status->engine.quantization);
	make_valid(status->engine.kv_dtype);
	make_valid(status->engine.kernels);
	make_valid(status->engine.device);
	make_valid(status->engine.error.message);
	make_valid(status->engine.error.detail);
	make_valid(status->engine.error.hint);
}

/*
 * An order to reload makes the engine STARTING at once, for all who ask, while the old one finishes what it has.  A new
 * one in that phase has been sent nothing.  The caller holds the control lock.
 */
static int
count_draining(void)
{
	int n = 0;
	dlist_iter iter;

	if (qwen_shared->engine_pid == 0 || qwen_shared->engine.phase != QWEN_ENGINE_STARTING)
		return 0;
	dlist_foreach(iter, &qwen_shared->running) n++;
	return n;
}

void
qwen_get_devices(qwen_devices *devices)
{
	qwen_check_preloaded();
	LWLockAcquire(qwen_control_lock(), LW_SHARED);
	*devices = qwen_shared->devices;
	LWLockRelease(qwen_control_lock());
	for (int i = 0; i < devices->n_devices; i++)
	{
		make_valid(devices->devices[i].name);
		make_valid(devices->devices[i].kind);
	}
}

/* Replaces what is not ASCII, unless the whole is good text in the database's encoding. */
static void
make_valid(char *text)
{
	if (GetDatabaseEncoding() == PG_UTF8 && pg_verify_mbstr(PG_UTF8, text, strlen(text), true))
		return;
	for (char *p = text; *p != '\0'; p++)
		if (IS_HIGHBIT_SET(*p))
			*p = '?';
}

/*
 * The control lock is held for the whole list, so no request is seen twice or missed; the slots' locks one by one.
 */
int
qwen_list_requests(QwenRequestInfo **out)
{
	int n = 0;

	qwen_check_preloaded();
	*out = palloc(qwen_max_requests * sizeof(QwenRequestInfo));
	LWLockAcquire(qwen_control_lock(), LW_SHARED);
	for (int i = 0; i < qwen_max_requests; i++)
		if (copy_slot(&qwen_slots[i], &(*out)[n]))
			n++;
	LWLockRelease(qwen_control_lock());

	qsort(*out, n, sizeof(QwenRequestInfo), compare_requests);
	for (int i = 0, position = 0; i < n; i++)
		if ((*out)[i].queue_position > 0)
			(*out)[i].queue_position = ++position;
	return n;
}

/*
 * Priority, then age: the order in which requests start, but for the turns that the engine has the sessions take.
 */
static int
compare_requests(const void *a, const void *b)
{
	const QwenRequestInfo *x = a;
	const QwenRequestInfo *y = b;

	if (x->priority != y->priority)
		return x->priority > y->priority ? -1 : 1;
	return x->submitted < y->submitted ? -1 : x->submitted > y->submitted;
}

/* False for slots that hold no request: free ones, and those that are being filled or given back. */
static bool
copy_slot(const QwenSlot *slot, QwenRequestInfo *info)
{
	if (slot->state == QWEN_SLOT_FREE || slot->state == QWEN_SLOT_RESERVED)
		return false;

	info->pid = slot->owner_pid;
	info->userid = slot->userid;
	info->databaseid = slot->databaseid;
	info->kind = kind_name(slot->kind);
	info->priority = slot->priority;
	info->submitted = slot->submitted;

	LWLockAcquire(qwen_slot_lock(slot), LW_SHARED);
	info->prompt_tokens = slot->progress.prompt_tokens;
	info->output_tokens = slot->progress.output_tokens;
	info->deaths = slot->deaths;
	info->state = state_name(slot->state, slot->progress.running != 0);
	LWLockRelease(qwen_slot_lock(slot));
	info->queue_position = strcmp(info->state, "queued") == 0;
	return true;
}

/*
 * Whether a request waits here or in the engine is one to those who wait.  CANCELLED is shown as long as the engine has
 * not been told; FREE and RESERVED are never shown.
 */
static const char *
state_name(QwenSlotState state, bool started)
{
	switch (state)
	{
		case QWEN_SLOT_QUEUED:
			return "queued";
		case QWEN_SLOT_DONE:
			return "done";
		case QWEN_SLOT_CANCELLED:
			return "cancelled";
		default:
			return started ? "running" : "queued";
	}
}

/* The kind came from a request header and was checked by nobody yet. */
static const char *
kind_name(uint32 kind)
{
	switch (kind)
	{
		case QWEN_KIND_GENERATE:
			return "generate";
		case QWEN_KIND_COMPLETE:
			return "complete";
		case QWEN_KIND_CHAT:
			return "chat";
		case QWEN_KIND_TOKENIZE:
			return "tokenize";
		case QWEN_KIND_COUNT:
			return "count";
		case QWEN_KIND_DETOKENIZE:
			return "detokenize";
		default:
			return "unknown";
	}
}

/*
 * Waits until the worker has taken the order, so that the next call of this session already waits for the new engine.
 */
void
qwen_request_reload(void)
{
	static uint32 event = 0;
	uint64 order;
	bool taken = false;
	bool worker_running = true;

	qwen_check_preloaded();

	/* All processes should agree on the settings, not the worker alone: what pg_reload_conf() does. */
	if (kill(PostmasterPid, SIGHUP) != 0)
		ereport(WARNING, (errmsg("could not send signal to postmaster: %m")));

	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	order = ++qwen_shared->reload_wanted;
	LWLockRelease(qwen_control_lock());
	qwen_wake_worker();

	ConditionVariablePrepareToSleep(&qwen_shared->changed);
	for (;;)
	{
		LWLockAcquire(qwen_control_lock(), LW_SHARED);
		taken = qwen_shared->reload_taken >= order;
		worker_running = qwen_shared->worker_pid != 0;
		LWLockRelease(qwen_control_lock());
		if (taken || !worker_running)
			break;
		ConditionVariableSleep(&qwen_shared->changed, qwen_wait_event("QwenReloadWait", &event));
	}
	ConditionVariableCancelSleep();

	if (!taken)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), errmsg("the qwen worker is not running"),
						errhint("It reads the settings when it starts; the server log says why it does not.")));
	notice_draining();
}

/* A cursor that nobody reads can keep the old engine for as long as it is open, so whoever gave the order is told. */
static void
notice_draining(void)
{
	int n;

	LWLockAcquire(qwen_control_lock(), LW_SHARED);
	n = count_draining();
	LWLockRelease(qwen_control_lock());
	if (n > 0)
		ereport(NOTICE,
				(errmsg_plural("the engine will be replaced when %d running request has finished",
							   "the engine will be replaced when %d running requests have finished", n, n),
				 errdetail("Calls that come meanwhile wait for the next engine, up to qwen.wait_ready."),
				 errhint("qwen_requests shows who waits for what; pg_cancel_backend() and pg_terminate_backend() "
						 "end requests.")));
}

/*
 * The SQLSTATE is the engine's, which knows whether row or system is to blame; one that is none becomes an internal
 * error: five characters of the kinds that a SQLSTATE has, and not the class of success.
 */
int
qwen_error_code(const qwen_wire_error *error)
{
	const char *s = error->sqlstate;

	if (strspn(s, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != 5 || s[5] != '\0' || strncmp(s, "00", 2) == 0)
		return ERRCODE_INTERNAL_ERROR;
	return MAKE_SQLSTATE(s[0], s[1], s[2], s[3], s[4]);
}

void
qwen_raise(const qwen_wire_error *error)
{
	qwen_wire_error copy = *error;

	make_valid(copy.message);
	make_valid(copy.detail);
	make_valid(copy.hint);

	ereport(ERROR, (errcode(qwen_error_code(error)), errmsg_internal("%s", copy.message),
					copy.detail[0] != '\0' ? errdetail_internal("%s", copy.detail) : 0,
					copy.hint[0] != '\0' ? errhint("%s", copy.hint) : 0));
}
