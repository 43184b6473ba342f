/*-------------------------------------------------------------------------
 *
 * shared.c
 *	  The shared memory: its size, its making, and the few steps that backends
 *	  and the worker have in common.  The protocol stands in shared.h.
 *
 * The arena for payloads is a DSA laid in place inside the main segment with
 * its size as limit, so that no dynamic segment is ever made: it does not
 * depend on the size of /dev/shm, and the memory that requests can take is
 * what qwen.queue_memory says and is there from the start.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "shared.h"
#include "stat.h"

#define TRANCHE_NAME "qwen"

/*
 * The engine may go over neither limit, so a reply buffer is a fixed part of the chunk, and the request behind it begins
 * at an aligned place.
 */
#define REPLY_SIZE MAXALIGN(QWEN_REPLY_BYTES)

QwenShared *qwen_shared = NULL;
QwenSlot *qwen_slots = NULL;
QwenWaiter *qwen_waiters = NULL;

/* [0] is the control lock, [1 + i] the lock of slot i, the last one that of the statistics */
static LWLockPadded *locks = NULL;
static void *arena_place = NULL;
static dsa_area *arena = NULL; /* this process's attachment */

static shmem_request_hook_type previous_request_hook = NULL;
static shmem_startup_hook_type previous_startup_hook = NULL;

static void request_shared_memory(void);
static void start_shared_memory(void);
static Size arena_size(void);
static Size shared_size(void);
static void set_places(char *base);
static void make_slots(void);
static void make_arena(void);
static Size measure_arena(dsa_area *area);

/* Only the postmaster's start makes the memory, and every process inherits the view of it. */
bool
qwen_is_preloaded(void)
{
	return qwen_shared != NULL;
}

void
qwen_check_preloaded(void)
{
	if (!qwen_is_preloaded())
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("qwen must be loaded via shared_preload_libraries"),
						errhint("Add qwen to shared_preload_libraries and restart the server.")));
}

/* The hooks of others are kept and called first, each kind from its own kind. */
void
qwen_request_shared_memory(void)
{
	previous_request_hook = shmem_request_hook;
	shmem_request_hook = request_shared_memory;
	previous_startup_hook = shmem_startup_hook;
	shmem_startup_hook = start_shared_memory;
}

/*
 * The one place where memory and locks may be asked for.  One lock for the lists, one for each reply buffer: a
 * backend that takes its reply must not wait for another's.
 */
static void
request_shared_memory(void)
{
	if (previous_request_hook)
		previous_request_hook();

	RequestAddinShmemSpace(shared_size());
	RequestNamedLWLockTranche(TRANCHE_NAME, qwen_max_requests + 2);
}

/* Runs once in the postmaster, and again there after a crash: nothing of the earlier memory may survive in a static. */
static void
start_shared_memory(void)
{
	char *base;
	bool found;

	if (previous_startup_hook)
		previous_startup_hook();

	qwen_shared = NULL;
	qwen_slots = NULL;
	qwen_waiters = NULL;
	locks = NULL;
	arena_place = NULL;
	arena = NULL;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	base = ShmemInitStruct("qwen", shared_size(), &found);
	locks = GetNamedLWLockTranche(TRANCHE_NAME);
	set_places(base);
	if (!found)
	{
		make_slots();
		make_arena();
		qwen_stat_start();
	}
	LWLockRelease(AddinShmemInitLock);
}

/* Never less than the arena needs for its own bookkeeping. */
static Size
arena_size(void)
{
	return MAXALIGN(Max(mul_size(qwen_queue_memory, 1024), dsa_minimum_size()));
}

/* Overflow is an error here rather than a small segment: the factors are settings. */
static Size
shared_size(void)
{
	Size size = MAXALIGN(sizeof(QwenShared));

	size = add_size(size, MAXALIGN(mul_size(qwen_max_requests, sizeof(QwenSlot))));
	size = add_size(size, MAXALIGN(mul_size(MaxBackends, sizeof(QwenWaiter))));
	size = add_size(size, qwen_stat_size());
	return add_size(size, arena_size());
}

/* Lays the parts out in the order that shared_size counts them in. */
static void
set_places(char *base)
{
	qwen_shared = (QwenShared *) base;
	base += MAXALIGN(sizeof(QwenShared));
	qwen_slots = (QwenSlot *) base;
	base += MAXALIGN(mul_size(qwen_max_requests, sizeof(QwenSlot)));
	qwen_waiters = (QwenWaiter *) base;
	base += MAXALIGN(mul_size(MaxBackends, sizeof(QwenWaiter)));
	qwen_stat_attach(base, &locks[qwen_max_requests + 1].lock);
	base += qwen_stat_size();
	arena_place = base;
}

/*
 * Everything free and nothing running: also what a crash of the server leaves, because that makes the memory anew.
 */
static void
make_slots(void)
{
	memset(qwen_shared, 0, sizeof(QwenShared));
	dlist_init(&qwen_shared->free);
	dlist_init(&qwen_shared->queue);
	dlist_init(&qwen_shared->running);
	dlist_init(&qwen_shared->service);
	dlist_init(&qwen_shared->waiters);
	ConditionVariableInit(&qwen_shared->changed);
	qwen_shared->worker_procno = QWEN_NO_PROC;
	qwen_shared->worker_gone = GetCurrentTimestamp();
	qwen_shared->engine.phase = QWEN_ENGINE_STARTING;

	memset(qwen_slots, 0, mul_size(qwen_max_requests, sizeof(QwenSlot)));
	for (int i = 0; i < qwen_max_requests; i++)
	{
		qwen_slots[i].generation = 1;
		qwen_slots[i].owner_procno = QWEN_NO_PROC;
		dlist_push_tail(&qwen_shared->free, &qwen_slots[i].link);
	}
	memset(qwen_waiters, 0, mul_size(MaxBackends, sizeof(QwenWaiter)));
}

/* The postmaster makes the arena and lets go of it: it has no business in it, and every process attaches for itself. */
static void
make_arena(void)
{
	Size size = arena_size();
	dsa_area *area = dsa_create_in_place(arena_place, size, locks[0].lock.tranche, NULL);

	dsa_pin(area);
	dsa_set_size_limit(area, size);
	qwen_shared->largest_chunk = measure_arena(area);
	dsa_detach(area);
}

/*
 * The largest chunk that the empty arena gives, found by trying: how much of its size the arena needs for itself is not
 * ours to know.  A longer request would wait for room in vain and is refused at once instead.
 */
static Size
measure_arena(dsa_area *area)
{
	Size fits = 0;
	Size too_big = arena_size() + 1;

	while (too_big - fits > 1)
	{
		Size size = fits + (too_big - fits) / 2;
		dsa_pointer chunk = dsa_allocate_extended(area, size, DSA_ALLOC_HUGE | DSA_ALLOC_NO_OOM);

		if (DsaPointerIsValid(chunk))
		{
			dsa_free(area, chunk);
			fits = size;
		}
		else
			too_big = size;
	}
	return fits;
}

dsa_area *
qwen_arena(void)
{
	if (arena == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		arena = dsa_attach_in_place(arena_place, NULL);
		dsa_pin_mapping(arena);
		on_shmem_exit(dsa_on_shmem_exit_release_in_place, PointerGetDatum(arena_place));
		MemoryContextSwitchTo(old);
	}
	return arena;
}

/* The lock of the lists and of what is said about engine and worker. */
LWLock *
qwen_control_lock(void)
{
	return &locks[0].lock;
}

/* The lock of one slot's reply. The tranche pads its locks, so neighbours do not share a cache line. */
LWLock *
qwen_slot_lock(const QwenSlot *slot)
{
	return &locks[1 + (slot - qwen_slots)].lock;
}

/* {generation, slot}, as the wire wants it. Constant while the request is QUEUED, RUNNING or DONE. */
uint64
qwen_slot_id(const QwenSlot *slot)
{
	return (uint64) slot->generation << 32 | (uint64) (slot - qwen_slots);
}

/* The id may come from a broken engine, so the number is checked; the generation is compared by the caller. */
QwenSlot *
qwen_slot_by_id(uint64 id)
{
	uint32 index = (uint32) id;

	return index < (uint32) qwen_max_requests ? &qwen_slots[index] : NULL;
}

/* Reply buffer first: the place of the request then does not depend on its length. */
Size
qwen_chunk_size(Size request_len)
{
	return add_size(REPLY_SIZE, request_len);
}

/* The address is this process's own and is not kept. */
char *
qwen_slot_reply(const QwenSlot *slot)
{
	return dsa_get_address(qwen_arena(), slot->chunk);
}

/* Aligned, so the worker may write into the header in place. */
char *
qwen_slot_request(const QwenSlot *slot)
{
	return qwen_slot_reply(slot) + REPLY_SIZE;
}

/* State and generation are what both locks guard together: whoever holds one of them may rely on what it reads. */
void
qwen_slot_set_state(QwenSlot *slot, QwenSlotState state)
{
	Assert(LWLockHeldByMeInMode(qwen_control_lock(), LW_EXCLUSIVE));
	LWLockAcquire(qwen_slot_lock(slot), LW_EXCLUSIVE);
	slot->state = state;
	/* never 0, so that no request is called 0 on the wire: that names the engine itself */
	if (state == QWEN_SLOT_FREE && ++slot->generation == 0)
		slot->generation = 1;
	LWLockRelease(qwen_slot_lock(slot));
}

/*
 * A slot is in the list once, however often it asks: the worker looks at its state and finds all there is to do.  It
 * takes all that are there before it sleeps, so it is to be woken only by the first.
 */
bool
qwen_slot_ask_service(QwenSlot *slot)
{
	bool first = dlist_is_empty(&qwen_shared->service);

	Assert(LWLockHeldByMeInMode(qwen_control_lock(), LW_EXCLUSIVE));
	if (slot->in_service)
		return false;
	slot->in_service = true;
	dlist_push_tail(&qwen_shared->service, &slot->service_link);
	return first;
}

/* Only for slots that are the caller's alone: RESERVED or DONE for a backend, CANCELLED for the worker. */
void
qwen_slot_give_back(QwenSlot *slot)
{
	/* The memory first: the one who is woken below wants it together with the slot. */
	if (DsaPointerIsValid(slot->chunk))
		dsa_free(qwen_arena(), slot->chunk);

	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	slot->chunk = InvalidDsaPointer;
	slot->owner_procno = QWEN_NO_PROC;
	slot->owner_pid = 0;
	qwen_slot_set_state(slot, QWEN_SLOT_FREE);
	dlist_push_head(&qwen_shared->free, &slot->link);
	LWLockRelease(qwen_control_lock());

	qwen_wake_first_waiter();
}

/*
 * What has reached the engine cannot simply be freed: it may still be on its way through the socket, and the engine
 * must be told before the slot gets another request.  A reply that is complete (DONE) is dropped unread.
 */
void
qwen_slot_withdraw(QwenSlot *slot)
{
	bool running = false, wake = false;

	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	if (slot->state == QWEN_SLOT_QUEUED)
	{
		dlist_delete(&slot->link);
		qwen_slot_set_state(slot, QWEN_SLOT_RESERVED);
	}
	else if (slot->state == QWEN_SLOT_RUNNING)
	{
		running = true;
		dlist_delete(&slot->link);
		qwen_slot_set_state(slot, QWEN_SLOT_CANCELLED);
		slot->owner_procno = QWEN_NO_PROC;
		wake = qwen_slot_ask_service(slot);
	}
	LWLockRelease(qwen_control_lock());

	if (wake)
		qwen_wake_worker();
	if (!running)
		qwen_slot_give_back(slot);
}

/*
 * Through the process's number: its latch may be set by anybody at any time, and a process that has taken the place
 * of one that ended only looks around once more.
 */
void
qwen_wake(int procno)
{
	if (procno != QWEN_NO_PROC)
		SetLatch(&GetPGProcByNumber(procno)->procLatch);
}

/* There may be none for the moment; the next one looks at all lists when it starts. */
void
qwen_wake_worker(void)
{
	int procno;

	LWLockAcquire(qwen_control_lock(), LW_SHARED);
	procno = qwen_shared->worker_procno;
	LWLockRelease(qwen_control_lock());
	qwen_wake(procno);
}

/* Only the first: the others have to wait for it in any case. */
void
qwen_wake_first_waiter(void)
{
	int procno = QWEN_NO_PROC;

	LWLockAcquire(qwen_control_lock(), LW_SHARED);
	if (!dlist_is_empty(&qwen_shared->waiters))
		procno = (int) (dlist_head_element(QwenWaiter, link, &qwen_shared->waiters) - qwen_waiters);
	LWLockRelease(qwen_control_lock());

	/* A head of the line that gives a slot back because it found no room must sleep now, not try again at once. */
	if (procno != qwen_my_procno())
		qwen_wake(procno);
}
