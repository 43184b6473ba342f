/*-------------------------------------------------------------------------
 *
 * shared.h
 *	  The shared memory between the backends and the worker.
 *
 * One block of the main segment: QwenShared, the slots, the waiters, the
 * statistics (stat.h), the arena.  Nothing in it is a pointer of one process: processes are named by
 * their number in ProcGlobal, payloads by dsa_pointer; the list nodes point
 * within the main segment, which lies at one address in every process.
 *
 * The life of a request, and who may touch the slot in which state:
 *
 *	FREE		in the free list.  Nobody's.
 *	RESERVED	a backend has taken it and fills it, or is about to give it
 *				back.  The backend's alone.
 *	QUEUED		published, in the queue.  The payload is the worker's.
 *	RUNNING		sent to the engine, or being sent.  The worker appends reply
 *				records, the backend takes them.
 *	DONE		the last record (DONE or ERROR) has been appended.  The
 *				worker never looks at it again; the backend takes the
 *				records and gives the slot back.
 *	CANCELLED	the backend went away while it was RUNNING.  The worker tells
 *				the engine and gives the slot back.
 *
 *	FREE --> RESERVED --> QUEUED --> RUNNING --> DONE --> FREE
 *
 *	RESERVED --> FREE				no room in the arena
 *	QUEUED --> RESERVED --> FREE	withdrawn
 *	QUEUED --> DONE					the model was refused
 *	RUNNING --> CANCELLED --> FREE	withdrawn
 *	RUNNING --> QUEUED				the engine is gone; or DONE, with an error
 *
 * A request on the wire is called (generation << 32 | slot).  The generation
 * is raised whenever a slot becomes FREE, so frames about an earlier request
 * in the same slot are recognised and dropped.
 *
 * Reply records lie one after the other in the slot's reply buffer.  The
 * worker appends at reply_len; the backend copies all of them out and sets
 * reply_len to 0; both under the slot's lock.  There is no ring and nothing
 * wraps.  The engine never has more than QWEN_WINDOW bytes of records
 * unacknowledged, so the buffer cannot overflow; a longer record is a broken
 * engine and never written.  When the backend has taken more than half a
 * window since it last said so, it asks the worker to send a CREDIT.
 *
 * Memory for request and reply is one chunk of the arena, allocated by the
 * backend before it publishes and freed by whoever gives the slot back; the
 * worker never allocates.  A backend that finds no free slot or no room
 * enters the line of waiters, first come, first served: only the head of the
 * line may take what becomes free, and whoever frees something wakes the
 * head.  A waiter that leaves (cancelled, timed out, dead) just leaves the
 * line: nothing has been promised to it, so there is no hole to fill.
 *
 * Locks: the control lock, then a slot's lock; never the other way round, and
 * never two slots' locks.  Arena calls take the arena's own locks and are
 * made while holding neither.
 *
 *-------------------------------------------------------------------------
 */
#ifndef QWEN_SHARED_H
#define QWEN_SHARED_H

#include "qwen.h"

#include "lib/ilist.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "utils/dsa.h"

#define QWEN_NO_PROC (-1)

/* Engine deaths that a request may survive; at this many it fails alone. */
#define QWEN_MAX_DEATHS 3

typedef enum QwenSlotState
{
	QWEN_SLOT_FREE,
	QWEN_SLOT_RESERVED,
	QWEN_SLOT_QUEUED,
	QWEN_SLOT_RUNNING,
	QWEN_SLOT_DONE,
	QWEN_SLOT_CANCELLED
} QwenSlotState;

typedef struct QwenSlot
{
	/* written under the control lock and the slot's lock together, so either is enough for reading */
	QwenSlotState state;
	uint32 generation;

	/* under the control lock */
	dlist_node link;         /* in `free` (FREE), `queue` (QUEUED) or `running` (RUNNING) */
	dlist_node service_link; /* in `service`, while in_service */
	bool in_service;

	/* under the control lock; constant from QUEUED until FREE, hence readable without by the owner and the worker */
	int owner_procno;
	int owner_pid;
	Oid userid;
	Oid databaseid;
	uint32 kind; /* qwen_request_kind */
	int priority;
	TimestampTz submitted;
	dsa_pointer chunk; /* reply buffer, then the request */
	uint32 request_len;

	/* under the slot's lock */
	uint32 reply_len; /* bytes of records in the reply buffer */
	uint64 consumed;  /* DATA bytes that the owner has taken, in all: `skip` for another engine */
	uint64 taken;     /* record bytes that the owner has taken from this engine */
	uint64 credited;  /* the part of `taken` that the worker has been asked to acknowledge */
	int deaths;       /* engines that died with this request on board */
	qwen_progress progress;
} QwenSlot;

/* A backend in line for a slot or for room; one entry for each process number. */
typedef struct QwenWaiter
{
	dlist_node link; /* control lock */
} QwenWaiter;

typedef struct QwenShared
{
	/* constant after start */
	Size largest_chunk; /* the most that the empty arena can give */

	/* under the control lock */
	dlist_head free;    /* FREE slots; the one freed last comes first, its memory is warm */
	dlist_head queue;   /* QUEUED slots in order of submission */
	dlist_head running; /* RUNNING slots in the order in which they were sent */
	dlist_head service; /* slots that were CANCELLED or whose owner has taken half a window */
	dlist_head waiters;

	int worker_procno; /* QWEN_NO_PROC: no worker */
	int worker_pid;
	TimestampTz worker_gone; /* since when there is none */

	/*
	 * Whether requests are taken.  serving: an engine has been READY and nothing since then has put that in doubt, so
	 * requests may be queued even while a dead engine is being replaced.  failed: the model was refused; engine.error
	 * says why, and only an administrator can mend it.  Neither: starting or loading.
	 */
	bool serving;
	bool failed;
	int engine_pid; /* 0: none */
	qwen_engine_state engine;
	qwen_heartbeat heartbeat;
	qwen_devices devices;
	TimestampTz engine_start;
	TimestampTz ready_since; /* 0: not ready */
	int64 restarts;
	uint32 settings; /* digest of what the engine is started with */
	char model[MAXPGPATH];
	char last_error[1024];

	/* qwen_reload: the worker copies `wanted` to `taken` when it has taken the order */
	uint64 reload_wanted;
	uint64 reload_taken;

	/* broadcast when serving, failed, worker_pid or reload_taken changes */
	ConditionVariable changed;
} QwenShared;

/* Places of this process's view; NULL when the library was not preloaded. */
extern QwenShared *qwen_shared;
extern QwenSlot *qwen_slots;     /* [qwen_max_requests] */
extern QwenWaiter *qwen_waiters; /* [MaxBackends] */

/* Raises 55000 when the library was not preloaded. */
extern void qwen_check_preloaded(void);

extern LWLock *qwen_control_lock(void);
extern LWLock *qwen_slot_lock(const QwenSlot *slot);

/* A request's name on the wire, and back; NULL when it names no slot. Whether the generation fits is for the caller. */
extern uint64 qwen_slot_id(const QwenSlot *slot);
extern QwenSlot *qwen_slot_by_id(uint64 id);

/* The arena, attached at the first call in a process. */
extern dsa_area *qwen_arena(void);

/* Bytes of a chunk for a request of that length, and its two parts. */
extern Size qwen_chunk_size(Size request_len);
extern char *qwen_slot_reply(const QwenSlot *slot);
extern char *qwen_slot_request(const QwenSlot *slot);

/* Changes a slot's state; the caller holds the control lock exclusively and not the slot's. */
extern void qwen_slot_set_state(QwenSlot *slot, QwenSlotState state);

/* Puts a slot into the service list; the caller holds the control lock exclusively. */
extern bool qwen_slot_ask_service(QwenSlot *slot);

/* Takes a request back whose owner has lost interest or its life: gives the slot back, or has the worker do it. */
extern void qwen_slot_withdraw(QwenSlot *slot);

/* Frees the chunk and the slot of a request that is the caller's alone, and wakes the head of the waiters. */
extern void qwen_slot_give_back(QwenSlot *slot);

/* Sets the latch of a process by number; harmless if that has ended meanwhile. */
extern void qwen_wake(int procno);
extern void qwen_wake_worker(void);
extern void qwen_wake_first_waiter(void);

#endif /* QWEN_SHARED_H */
