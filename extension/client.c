/*-------------------------------------------------------------------------
 *
 * client.c
 *	  A backend's calls: submit, receive, release.
 *
 * A call takes a slot and a chunk of the arena, fills both, publishes the
 * request and sleeps on its latch until the worker has appended something to
 * its reply (shared.h has the protocol).  Nothing of a request is visible to
 * others until it is complete, so wherever a call is interrupted there is
 * only its own slot to give back.
 *
 * A slot is given back in one of three ways, whichever comes first: by the
 * call itself when the last record has been taken or when its user lets go of
 * it; by the resource owner that the call belongs to (error, ROLLBACK,
 * sub-transaction, closed cursor); by the process's exit.  The worker looks
 * once a second for owners that ended without any of these.
 *
 * Every call is counted once in the statistics, at its end: with the last
 * record, with the error that kept it from being queued, or as cancelled when
 * its user lets go of it before.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "shared.h"
#include "stat.h"

/* While waiting, look this often whether the worker is alive; and call it lost after this long without one. */
#define LIVENESS_MS 5000
#define WORKER_LOST_MS 30000

struct QwenCall
{
	dlist_node link; /* in `calls` */
	ResourceOwner owner;
	QwenSlot *slot; /* NULL: not taken yet, or given back */
	Oid userid;     /* whose request it is */
	uint32 kind;    /* qwen_request_kind */
	bool published; /* the slot holds a request */
	bool counted;   /* in the statistics, or not to be */
	char *records;  /* that have been taken out of the slot */
	Size size;      /* allocated */
	Size length;    /* of the records */
	Size next;      /* the first one that has not been handed out */
};

typedef enum Room
{
	ROOM_TAKEN,
	ROOM_NO_TURN, /* others were first */
	ROOM_NO_SLOT,
	ROOM_NO_MEMORY
} Room;

/* all calls of this process */
static dlist_head calls = DLIST_STATIC_INIT(calls);
static bool in_line = false; /* this process is among the waiters */

static void check_size(const StringInfo request);
static void wait_until_ready(void);
static bool is_serving(bool *failed, bool *worker_running);
pg_noreturn static void raise_failed(void);
pg_noreturn static void raise_not_ready(bool worker_running);
static int detail_of_progress(const QwenStatus *status);
static QwenCall *create_call(const StringInfo request);
static bool get_room(QwenCall *call, const StringInfo request, bool nowait);
static Room take_room(QwenCall *call, Size size);
static void wait_for_room(QwenCall *call, Size size, Room lack);
static void settle_others(TimestampTz deadline);
static void sleep_in_line(TimestampTz deadline, Room lack);
static int detail_of_lack(Room lack);
static void enter_line(void);
static void leave_line(void);
static void publish(QwenCall *call, const StringInfo request);
static void wait_for_reply(long timeout);
static bool hand_out(QwenCall *call, QwenReply *reply);
static bool take_replies(QwenCall *call);
static void make_space(QwenCall *call);
static void count_end(QwenCall *call);
static void count_error(QwenCall *call, int sqlstate);
static uint64 data_bytes(const char *records, uint32 length);
static void ask_for_credit(QwenSlot *slot);
static void check_worker(void);
static void register_cleanup(void);
static void release_with_owner(ResourceReleasePhase phase, bool is_commit, bool is_top_level, void *arg);
static void release_at_exit(int code, Datum arg);

/* ---- submitting ---- */

/*
 * The order matters: nothing is taken before the model can answer, and the call is known to the clean-up before it
 * owns anything.
 */
QwenCall *
qwen_call_submit(const StringInfo request, bool nowait)
{
	QwenCall *volatile call;
	volatile bool taken = false;

	qwen_check_preloaded();
	if (request->len < sizeof(qwen_request_header))
		elog(ERROR, "request of %d bytes is shorter than its header", request->len);

	call = create_call(request);
	PG_TRY();
	{
		taken = get_room(call, request, nowait);
	}
	PG_CATCH();
	{
		count_error(call, geterrcode());
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (!taken)
	{
		call->counted = true; /* the caller will come again */
		qwen_call_release(call);
		return NULL;
	}
	publish(call, request);
	return call;
}

/* Everything that a request has to wait for; false when it may not wait. */
static bool
get_room(QwenCall *call, const StringInfo request, bool nowait)
{
	Size size = qwen_chunk_size(request->len);
	Room room;

	check_size(request);
	wait_until_ready();
	room = take_room(call, size);
	if (room != ROOM_TAKEN && nowait)
		return false;
	if (room != ROOM_TAKEN)
		wait_for_room(call, size, room);
	return true;
}

/* A request that could never get its memory is refused now instead of after qwen.queue_timeout. */
static void
check_size(const StringInfo request)
{
	Size size = qwen_chunk_size(request->len);

	if (size > qwen_shared->largest_chunk || request->len > QWEN_FRAME_MAX)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("request is too large for the queue"),
						errdetail("The request needs %zu bytes, the queue holds at most %zu bytes.", size,
								  qwen_shared->largest_chunk),
						errhint("Raise qwen.queue_memory and restart the server.")));
}

/* Returns when requests are taken; raises 55000 when the model was refused or qwen.wait_ready is over. */
static void
wait_until_ready(void)
{
	static uint32 event = 0;
	TimestampTz start = GetCurrentTimestamp();
	bool failed;
	bool worker_running;

	if (is_serving(&failed, &worker_running))
		return;

	ConditionVariablePrepareToSleep(&qwen_shared->changed);
	while (!is_serving(&failed, &worker_running))
	{
		long left = qwen_wait_ready - TimestampDifferenceMilliseconds(start, GetCurrentTimestamp());

		if (failed)
			raise_failed();
		if (left <= 0)
			raise_not_ready(worker_running);
		ConditionVariableTimedSleep(&qwen_shared->changed, left, qwen_wait_event("QwenModelLoad", &event));
	}
	ConditionVariableCancelSleep();
}

/* One look at the three facts that decide, consistent with each other. */
static bool
is_serving(bool *failed, bool *worker_running)
{
	bool serving;

	LWLockAcquire(qwen_control_lock(), LW_SHARED);
	serving = qwen_shared->serving;
	*failed = qwen_shared->failed;
	*worker_running = qwen_shared->worker_pid != 0;
	LWLockRelease(qwen_control_lock());
	return serving;
}

/* The engine's own words, because they name the file or the number; our hint follows its hint. */
static void
raise_failed(void)
{
	QwenStatus status;
	const qwen_wire_error *cause = &status.engine.error;

	qwen_get_status(&status);
	ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), errmsg("the model could not be loaded"),
					errdetail("The engine reported: %s.%s%s", cause->message, cause->detail[0] != '\0' ? " " : "",
							  cause->detail),
					errhint("%s%sCorrect qwen.model or the setting at fault and call qwen_reload().", cause->hint,
							cause->hint[0] != '\0' ? " " : "")));
}

/* No worker and no model yet look the same to the caller, but need different help. */
static void
raise_not_ready(bool worker_running)
{
	QwenStatus status;

	if (!worker_running)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), errmsg("the qwen worker is not running"),
						errhint("The server log says why; max_worker_processes may be too low.")));

	qwen_get_status(&status);
	ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), errmsg("the model is not ready"),
					detail_of_progress(&status),
					errhint("Raise qwen.wait_ready to wait longer; qwen_status() shows the progress.")));
}

/* For ereport. */
static int
detail_of_progress(const QwenStatus *status)
{
	if (status->draining > 0)
		return errdetail_plural(
			"The engine that is to be replaced has %d request to finish; qwen_requests shows it.",
			"The engine that is to be replaced has %d requests to finish; qwen_requests shows them.", status->draining,
			status->draining);
	if (status->engine.total_bytes > 0)
		return errdetail("The model is still loading, %d percent are done.",
						 (int) (100.0 * status->engine.loaded_bytes / status->engine.total_bytes));
	if (status->engine_pid == 0 && status->last_error[0] != '\0')
		return errdetail("The engine is to be started again; the last one %s.", status->last_error);
	return errdetail("The engine is being started.");
}

/* A call without a slot, known to all who clean up. */
static QwenCall *
create_call(const StringInfo request)
{
	QwenCall *call;
	qwen_request_header head;

	register_cleanup();
	call = MemoryContextAlloc(TopMemoryContext, sizeof(QwenCall));
	call->owner = CurrentResourceOwner;
	call->slot = NULL;
	call->records = MemoryContextAlloc(TopMemoryContext, QWEN_REPLY_BYTES);
	call->size = QWEN_REPLY_BYTES;
	call->length = 0;
	call->next = 0;
	call->userid = GetUserId();
	memcpy(&head, request->data, sizeof(head));
	call->kind = head.kind;
	call->published = false;
	call->counted = false;
	dlist_push_tail(&calls, &call->link);
	return call;
}

/* Takes a slot and memory, both or none. */
static Room
take_room(QwenCall *call, Size size)
{
	QwenSlot *slot;
	dlist_head *waiters = &qwen_shared->waiters;

	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	if (!dlist_is_empty(waiters) && dlist_head_element(QwenWaiter, link, waiters) != &qwen_waiters[qwen_my_procno()])
	{
		LWLockRelease(qwen_control_lock());
		return ROOM_NO_TURN;
	}
	if (dlist_is_empty(&qwen_shared->free))
	{
		LWLockRelease(qwen_control_lock());
		return ROOM_NO_SLOT;
	}
	slot = dlist_container(QwenSlot, link, dlist_pop_head_node(&qwen_shared->free));
	qwen_slot_set_state(slot, QWEN_SLOT_RESERVED);
	slot->owner_procno = qwen_my_procno();
	slot->owner_pid = MyProcPid;
	call->slot = slot;
	LWLockRelease(qwen_control_lock());

	slot->chunk = dsa_allocate_extended(qwen_arena(), size, DSA_ALLOC_HUGE | DSA_ALLOC_NO_OOM);
	if (DsaPointerIsValid(slot->chunk))
		return ROOM_TAKEN;

	call->slot = NULL;
	qwen_slot_give_back(slot);
	return ROOM_NO_MEMORY;
}

/* Waits in line until slot and memory have been taken; raises 53000 when qwen.queue_timeout is over. */
static void
wait_for_room(QwenCall *call, Size size, Room lack)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), qwen_queue_timeout);

	settle_others(deadline);
	enter_line();
	PG_TRY();
	{
		while ((lack = take_room(call, size)) != ROOM_TAKEN)
			sleep_in_line(deadline, lack);
	}
	PG_FINALLY();
	{
		leave_line();
	}
	PG_END_TRY();
}

/*
 * Who waits for a place must not hold one, or two processes could wait for each other.  So all other answers of this
 * process are taken out of their slots first; their readers will find them here.
 */
static void
settle_others(TimestampTz deadline)
{
	dlist_iter iter;

	dlist_foreach(iter, &calls)
	{
		QwenCall *other = dlist_container(QwenCall, link, iter.cur);

		while (other->slot != NULL && other->published)
		{
			long left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);

			if (left <= 0)
				return;
			if (!take_replies(other))
				wait_for_reply(Min(left, LIVENESS_MS));
		}
	}
}

/* One turn of waiting. The check of the time comes first, so a timeout of 0 fails without sleeping. */
static void
sleep_in_line(TimestampTz deadline, Room lack)
{
	static uint32 event = 0;
	long left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);

	if (left <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES), errmsg("the request queue is full"), detail_of_lack(lack),
				 errhint("Raise qwen.max_requests or qwen.queue_memory, or wait longer with "
						 "qwen.queue_timeout.")));

	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, Min(left, LIVENESS_MS),
					 qwen_wait_event("QwenQueueWait", &event));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	check_worker();
}

/* For ereport. */
static int
detail_of_lack(Room lack)
{
	if (lack == ROOM_NO_SLOT)
		return errdetail("All %d requests are in use.", qwen_max_requests);
	if (lack == ROOM_NO_MEMORY)
		return errdetail("The memory for requests, %d kB, is used up.", qwen_queue_memory);
	return errdetail("Other calls have been waiting for a place for longer.");
}

/* The entry of this process in the list; its latch is what the others know it by. */
static void
enter_line(void)
{
	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	dlist_push_tail(&qwen_shared->waiters, &qwen_waiters[qwen_my_procno()].link);
	in_line = true;
	LWLockRelease(qwen_control_lock());
}

/* The next in line may find what this one did not need. */
static void
leave_line(void)
{
	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	dlist_delete(&qwen_waiters[qwen_my_procno()].link);
	in_line = false;
	LWLockRelease(qwen_control_lock());
	qwen_wake_first_waiter();
}

/* Fills the chunk while the slot is still private, then hands it over in one step. */
static void
publish(QwenCall *call, const StringInfo request)
{
	QwenSlot *slot = call->slot;
	qwen_request_header head;

	memcpy(qwen_slot_request(slot), request->data, request->len);
	memcpy(&head, request->data, sizeof(head));

	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	slot->userid = call->userid;
	slot->databaseid = MyDatabaseId;
	slot->kind = head.kind;
	slot->priority = head.priority;
	slot->submitted = GetCurrentTimestamp();
	slot->request_len = request->len;
	LWLockAcquire(qwen_slot_lock(slot), LW_EXCLUSIVE);
	slot->reply_len = 0;
	slot->consumed = 0;
	slot->taken = 0;
	slot->credited = 0;
	slot->deaths = 0;
	memset(&slot->progress, 0, sizeof(slot->progress));
	LWLockRelease(qwen_slot_lock(slot));
	qwen_slot_set_state(slot, QWEN_SLOT_QUEUED);
	dlist_push_tail(&qwen_shared->queue, &slot->link);
	LWLockRelease(qwen_control_lock());
	call->published = true;

	qwen_wake_worker();
}

/* ---- receiving ---- */

/* The latch is reset before the slot is looked at again, so a record that comes in between is not slept over. */
void
qwen_call_next(QwenCall *call, QwenReply *reply)
{
	CHECK_FOR_INTERRUPTS();
	while (!hand_out(call, reply))
	{
		if (call->slot == NULL)
			elog(ERROR, "the reply of this qwen call has ended");
		if (!take_replies(call))
			wait_for_reply(LIVENESS_MS);
	}
}

static void
wait_for_reply(long timeout)
{
	static uint32 event = 0;

	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout,
					 qwen_wait_event("QwenResultWait", &event));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	check_worker();
}

/* Never sleeps: for callers that hold several calls and take what comes first. */
bool
qwen_call_ready(QwenCall *call)
{
	return call->next < call->length || (call->slot != NULL && take_replies(call));
}

/* Gives the next record that this process has already. */
static bool
hand_out(QwenCall *call, QwenReply *reply)
{
	qwen_record record;

	if (call->next >= call->length)
		return false;

	memcpy(&record, call->records + call->next, sizeof(record));
	call->next += sizeof(record);

	memset(reply, 0, sizeof(*reply));
	reply->type = record.type;
	reply->length = record.length;
	switch (reply->type)
	{
		case QWEN_FRAME_DATA:
			reply->data = call->records + call->next;
			break;
		case QWEN_FRAME_DONE:
			memcpy(&reply->done, call->records + call->next, sizeof(reply->done));
			break;
		case QWEN_FRAME_ERROR:
			memcpy(&reply->error, call->records + call->next, sizeof(reply->error));
			break;
		default:
			elog(ERROR, "unexpected reply record %u", record.type);
	}
	call->next += record.length;
	return true;
}

/*
 * Takes over all records in the slot; false if there were none.  After the last record the slot is of no more use and
 * goes back at once.
 */
static bool
take_replies(QwenCall *call)
{
	QwenSlot *slot = call->slot;
	uint32 length;
	bool done;
	bool credit = false;

	make_space(call);
	LWLockAcquire(qwen_slot_lock(slot), LW_EXCLUSIVE);
	length = slot->reply_len;
	memcpy(call->records + call->length, qwen_slot_reply(slot), length);
	slot->reply_len = 0;
	slot->taken += length;
	slot->consumed += data_bytes(call->records + call->length, length);
	call->length += length;
	done = slot->state == QWEN_SLOT_DONE;
	if (!done && slot->taken - slot->credited > QWEN_WINDOW / 2)
	{
		slot->credited = slot->taken;
		credit = true;
	}
	LWLockRelease(qwen_slot_lock(slot));

	if (done)
	{
		call->slot = NULL;
		qwen_slot_give_back(slot);
		count_end(call);
	}
	else if (credit)
		ask_for_credit(slot);
	return length > 0;
}

/* For all that the slot can hold, behind what has not been handed out. */
static void
make_space(QwenCall *call)
{
	if (call->next == call->length)
		call->next = call->length = 0;
	if (call->size - call->length >= QWEN_REPLY_BYTES)
		return;

	call->size *= 2;
	call->records = repalloc_huge(call->records, call->size);
}

/* The last record has come: DONE or ERROR, behind what came with it. */
static void
count_end(QwenCall *call)
{
	qwen_record record = {0};
	qwen_done done;
	qwen_wire_error error;
	const char *payload = NULL;

	for (Size at = 0; at < call->length; at += sizeof(record) + record.length)
	{
		memcpy(&record, call->records + at, sizeof(record));
		payload = call->records + at + sizeof(record);
	}
	if (record.type == QWEN_FRAME_DONE)
	{
		memcpy(&done, payload, sizeof(done));
		qwen_stat_count_answer(call->userid, call->kind, &done);
		call->counted = true;
	}
	else
	{
		memcpy(&error, payload, sizeof(error));
		count_error(call, qwen_error_code(&error));
	}
}

static void
count_error(QwenCall *call, int sqlstate)
{
	qwen_stat_count_error(call->userid, sqlstate);
	call->counted = true;
}

/* Payload of the DATA records alone: the unit in which a later engine is told what to leave out. */
static uint64
data_bytes(const char *records, uint32 length)
{
	uint64 sum = 0;

	for (uint32 at = 0; at < length;)
	{
		qwen_record record;

		memcpy(&record, records + at, sizeof(record));
		if (record.type == QWEN_FRAME_DATA)
			sum += record.length;
		at += sizeof(record) + record.length;
	}
	return sum;
}

/* Half of the window is read: have the worker tell the engine. */
static void
ask_for_credit(QwenSlot *slot)
{
	bool wake;

	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	wake = qwen_slot_ask_service(slot);
	LWLockRelease(qwen_control_lock());
	if (wake)
		qwen_wake_worker();
}

/*
 * A worker that ended is started again within seconds and takes over what it finds in the slots, so only its longer
 * absence is an error.
 */
static void
check_worker(void)
{
	bool lost;

	LWLockAcquire(qwen_control_lock(), LW_SHARED);
	lost = qwen_shared->worker_pid == 0 &&
		   TimestampDifferenceExceeds(qwen_shared->worker_gone, GetCurrentTimestamp(), WORKER_LOST_MS);
	LWLockRelease(qwen_control_lock());
	if (lost)
		raise_not_ready(false);
}

/* ---- releasing ---- */

/*
 * Safe in every state, before the first record and after the last.  An answer that is complete but was not read, because
 * nobody wanted it any more, has been given all the same and is counted as such.
 */
void
qwen_call_release(QwenCall *call)
{
	call->next = call->length;
	if (call->published && call->slot != NULL)
		(void) take_replies(call);
	if (!call->counted)
		count_error(call, ERRCODE_QUERY_CANCELED);
	if (call->slot != NULL)
		qwen_slot_withdraw(call->slot);
	dlist_delete(&call->link);
	pfree(call->records);
	pfree(call);
}

/* Once a process, at its first call: a server has many backends that never make one. */
static void
register_cleanup(void)
{
	static bool registered = false;

	if (registered)
		return;
	RegisterResourceReleaseCallback(release_with_owner, NULL);
	before_shmem_exit(release_at_exit, (Datum) 0);
	registered = true;
}

/*
 * Releases the calls of an owner that ends.  At commit too, without a warning: a cursor that is closed before its end is
 * the ordinary case of it.  The latest come first: if the earliest did, which are running, the engine would start others
 * of them in their place.
 */
static void
release_with_owner(ResourceReleasePhase phase, bool is_commit, bool is_top_level, void *arg)
{
	dlist_node *at = phase == RESOURCE_RELEASE_BEFORE_LOCKS ? calls.head.prev : &calls.head;

	while (at != &calls.head)
	{
		QwenCall *call = dlist_container(QwenCall, link, at);

		at = at->prev;
		if (call->owner == CurrentResourceOwner)
			qwen_call_release(call);
	}
}

/* A process that ends in the middle (FATAL) passes no PG_FINALLY, so the line is left here too. */
static void
release_at_exit(int code, Datum arg)
{
	if (in_line)
		leave_line();
	while (!dlist_is_empty(&calls))
		qwen_call_release(dlist_head_element(QwenCall, link, &calls));
}
