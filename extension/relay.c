/*-------------------------------------------------------------------------
 *
 * relay.c
 *	  Frames between the slots and the engine's socket.
 *
 * Outwards a request goes straight from the arena to the socket, which never
 * blocks: what does not fit waits as {slot, bytes sent} until the socket is
 * writable again.  Between two requests the short frames are sent (CANCEL,
 * CREDIT, SHUTDOWN), collected in a small buffer from the list of slots that
 * asked for service.  Frames of one engine go out in order, so a CANCEL
 * always reaches the engine before another request in the same slot does, and
 * the slot is free as soon as the CANCEL has been put into the buffer.
 *
 * Inwards, frames are assembled in a fixed buffer and appended to the slots'
 * reply buffers.  Flow control keeps the engine from sending more than a
 * reply buffer holds, so this side never waits for a backend.  A frame that
 * cannot be (type, length, slot, too much) means that the engine is broken:
 * it is killed, and everything on board starts over with the next one.
 *
 * Nothing here allocates anything that grows with requests or their number.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "storage/proc.h"
#include "utils/timestamp.h"

#include "shared.h"
#include "supervisor.h"

#define CONTROL_ROOM 4096     /* short frames that wait to be sent */
#define INBOX_ROOM 65536      /* longer than any frame of the engine */
#define PROBATION_REQUESTS 16 /* on board of an engine whose predecessor has died just now */
#define READS_AT_ONCE 64      /* then the other work gets its turn */

typedef struct ShortFrame
{
	qwen_frame head;
	uint64 value; /* CREDIT only */
} ShortFrame;

static struct
{
	/* short frames, whole ones; [sent, length) is still to be sent */
	char control[CONTROL_ROOM];
	uint32 control_length;
	uint32 control_sent;

	/* the request on its way, its frame's head, and how much of head and request is sent */
	QwenSlot *slot;
	qwen_frame head;
	uint64 sent;

	bool shutdown; /* to be said */
} outbox;

static struct
{
	char data[INBOX_ROOM];
	uint32 length;
} inbox;

static bool send_request(void);
static bool send_control(void);
static bool send_failed(void);
static void serve_slots(void);
static void serve_slot(QwenSlot *slot);
static void push_short(uint32 type, uint64 id, uint32 length, uint64 value);
static bool take_request(void);
static bool parse_inbox(void);
static bool handle_frame(const qwen_frame *frame, const char *payload);
static bool handle_progress(QwenSlot *slot, const qwen_frame *frame, const char *payload);
static bool handle_data(QwenSlot *slot, const qwen_frame *frame, const char *payload);
static bool handle_last(QwenSlot *slot, const qwen_frame *frame, const char *payload);
static bool is_current(const QwenSlot *slot, uint64 id);
static void append_record(QwenSlot *slot, uint32 type, const void *payload, uint32 length);
static void finish(QwenSlot *slot, uint32 type, const void *payload, uint32 length);
static void fail_request(QwenSlot *slot, const char *sqlstate, const char *message, const char *hint);
static void take_back(QwenSlot *slot, bool died, bool replaced);
static bool is_orphan(const QwenSlot *slot);

/* ---- to the engine ---- */

/*
 * Priorities: first finish what has begun (frames cannot be interleaved), then short frames, then the next request.
 */
bool
qwen_relay_send(void)
{
	/* The rest of a request that an engine did not live to read is dropped when that engine is buried. */
	if (qwen_engine_socket() < 0 && outbox.slot != NULL)
		return false;

	for (;;)
	{
		if (outbox.slot != NULL && !send_request())
			return true;
		serve_slots();
		if (outbox.shutdown)
		{
			outbox.shutdown = false;
			push_short(QWEN_FRAME_SHUTDOWN, 0, 0, 0);
		}
		if (outbox.control_length > 0)
		{
			if (!send_control())
				return true;
		}
		else if (!take_request())
			return false;
	}
}

/* Sends of the current request what the socket takes; true when all of it is sent. */
static bool
send_request(void)
{
	const char *request = qwen_slot_request(outbox.slot);
	uint64 total = sizeof(qwen_frame) + outbox.head.length;

	while (outbox.sent < total)
	{
		struct iovec parts[2] = {0};
		struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
		ssize_t n;

		if (outbox.sent < sizeof(qwen_frame))
		{
			parts[0].iov_base = (char *) &outbox.head + outbox.sent;
			parts[0].iov_len = sizeof(qwen_frame) - outbox.sent;
			parts[1].iov_base = unconstify(char *, request);
			parts[1].iov_len = outbox.head.length;
		}
		else
		{
			parts[0].iov_base = unconstify(char *, request) + (outbox.sent - sizeof(qwen_frame));
			parts[0].iov_len = total - outbox.sent;
		}
		n = sendmsg(qwen_engine_socket(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0 && send_failed())
			return false;
		if (n > 0)
			outbox.sent += n;
	}
	outbox.slot = NULL;
	return true;
}

/* Only whole buffers are refilled, so a frame is never split by another. */
static bool
send_control(void)
{
	while (outbox.control_sent < outbox.control_length)
	{
		ssize_t n = send(qwen_engine_socket(), outbox.control + outbox.control_sent,
						 outbox.control_length - outbox.control_sent, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && send_failed())
			return false;
		if (n > 0)
			outbox.control_sent += n;
	}
	outbox.control_length = 0;
	outbox.control_sent = 0;
	return true;
}

/* After a send that failed: whether to stop sending, because the socket is full or gone. */
static bool
send_failed(void)
{
	if (errno == EINTR)
		return false;
	if (errno != EAGAIN && errno != EWOULDBLOCK)
		qwen_engine_lost();
	return true;
}

/* Turns what slots have asked for into frames, as far as there is room for frames. */
static void
serve_slots(void)
{
	while (outbox.control_length + 2 * sizeof(ShortFrame) <= CONTROL_ROOM)
	{
		QwenSlot *slot = NULL;

		LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
		if (!dlist_is_empty(&qwen_shared->service))
		{
			slot = dlist_container(QwenSlot, service_link, dlist_pop_head_node(&qwen_shared->service));
			slot->in_service = false;
		}
		LWLockRelease(qwen_control_lock());
		if (slot == NULL)
			break;
		serve_slot(slot);
	}
}

/* A slot may have been freed, and even taken again, since it asked: then it needs nothing. */
static void
serve_slot(QwenSlot *slot)
{
	QwenSlotState state;
	uint64 id;
	uint64 taken;

	LWLockAcquire(qwen_slot_lock(slot), LW_SHARED);
	state = slot->state;
	id = qwen_slot_id(slot);
	taken = slot->credited;
	LWLockRelease(qwen_slot_lock(slot));

	if (state == QWEN_SLOT_RUNNING && taken > 0)
		push_short(QWEN_FRAME_CREDIT, id, sizeof(taken), taken);
	else if (state == QWEN_SLOT_CANCELLED)
	{
		push_short(QWEN_FRAME_CANCEL, id, 0, 0);
		qwen_slot_give_back(slot);
	}
}

/* Without an engine there is nobody to tell. */
static void
push_short(uint32 type, uint64 id, uint32 length, uint64 value)
{
	ShortFrame frame = {{type, length, id}, value};
	uint32 size = sizeof(qwen_frame) + length;

	if (qwen_engine_socket() < 0)
		return;
	memcpy(outbox.control + outbox.control_length, &frame, size);
	outbox.control_length += size;
}

/* A stream may wait for its reader for ever, and nobody shall wait with it. */
static bool
is_suspect(const QwenSlot *slot)
{
	const qwen_request_header *request = (const qwen_request_header *) qwen_slot_request(slot);

	return slot->deaths >= QWEN_MAX_DEATHS - 1 && !(request->flags & QWEN_FLAG_STREAM);
}

/* Whether there are at least n. */
static bool
has_elements(dlist_head *list, int n)
{
	dlist_iter iter;

	dlist_foreach(iter, list)
	{
		if (--n == 0)
			return true;
	}
	return false;
}

/*
 * Whether the first request of the queue has to wait for what runs.  After a death few requests are on board at a time,
 * so that another death is counted with few; those that were there before come first and are soon done.  One more death
 * and a suspect would fail, so it runs alone: if it is the cause, no other request is counted with it; if it is not, it
 * has the engine for itself.  The caller holds the control lock.  `deaths` changes in this process only.
 */
static bool
must_wait(void)
{
	dlist_head *running = &qwen_shared->running;

	if (dlist_is_empty(running))
		return false;
	if (qwen_engine_is_on_probation() && has_elements(running, PROBATION_REQUESTS))
		return true;
	return is_suspect(dlist_head_element(QwenSlot, link, &qwen_shared->queue)) ||
		   is_suspect(dlist_head_element(QwenSlot, link, running));
}

/* Makes the first request of the queue the one to send; false if there is none or the engine takes none. */
static bool
take_request(void)
{
	QwenSlot *slot;
	qwen_request_header *request;

	if (!qwen_engine_takes_requests())
		return false;

	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	if (dlist_is_empty(&qwen_shared->queue) || must_wait())
	{
		LWLockRelease(qwen_control_lock());
		return false;
	}
	slot = dlist_container(QwenSlot, link, dlist_pop_head_node(&qwen_shared->queue));
	dlist_push_tail(&qwen_shared->running, &slot->link);
	qwen_slot_set_state(slot, QWEN_SLOT_RUNNING);
	LWLockRelease(qwen_control_lock());

	/* What the owner has taken from an earlier engine is not sent again; the owner takes nothing before we append. */
	request = (qwen_request_header *) qwen_slot_request(slot);
	request->skip = slot->consumed;

	outbox.slot = slot;
	outbox.head.type = QWEN_FRAME_REQUEST;
	outbox.head.length = slot->request_len;
	outbox.head.id = qwen_slot_id(slot);
	outbox.sent = 0;
	return true;
}

/* Not sent from here: a request may be half-way through the socket. */
void
qwen_relay_shutdown(void)
{
	outbox.shutdown = true;
}

/* ---- from the engine ---- */

/* Until the socket is empty, within reason; the wait set reports the rest at once. */
void
qwen_relay_receive(void)
{
	for (int i = 0; i < READS_AT_ONCE && qwen_engine_socket() >= 0; i++)
	{
		ssize_t n = recv(qwen_engine_socket(), inbox.data + inbox.length, INBOX_ROOM - inbox.length, MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return;
		if (n <= 0)
		{
			qwen_engine_lost();
			return;
		}
		inbox.length += n;
		if (!parse_inbox())
		{
			qwen_engine_kill("sent an impossible frame");
			return;
		}
	}
}

/* Handles the whole frames in the inbox and moves the rest to its beginning; false: broken. */
static bool
parse_inbox(void)
{
	uint32 at = 0;

	while (inbox.length - at >= sizeof(qwen_frame))
	{
		qwen_frame frame;

		memcpy(&frame, inbox.data + at, sizeof(frame));
		if (frame.length > INBOX_ROOM - sizeof(frame))
			return false;
		if (inbox.length - at - sizeof(frame) < frame.length)
			break;
		if (!handle_frame(&frame, inbox.data + at + sizeof(frame)))
			return false;
		at += sizeof(frame) + frame.length;
	}
	memmove(inbox.data, inbox.data + at, inbox.length - at);
	inbox.length -= at;
	return true;
}

/* Frames about the engine go to the supervisor, all others name a slot. */
static bool
handle_frame(const qwen_frame *frame, const char *payload)
{
	QwenSlot *slot;

	if (frame->type == QWEN_FRAME_STATE || frame->type == QWEN_FRAME_HEARTBEAT || frame->type == QWEN_FRAME_DEVICES)
		return qwen_engine_heard(frame, payload);

	slot = qwen_slot_by_id(frame->id);
	if (slot == NULL)
		return false;
	switch (frame->type)
	{
		case QWEN_FRAME_PROGRESS:
			return handle_progress(slot, frame, payload);
		case QWEN_FRAME_DATA:
			return handle_data(slot, frame, payload);
		case QWEN_FRAME_DONE:
		case QWEN_FRAME_ERROR:
			return handle_last(slot, frame, payload);
		default:
			return false;
	}
}

/* For qwen_requests only; nobody is woken. */
static bool
handle_progress(QwenSlot *slot, const qwen_frame *frame, const char *payload)
{
	if (frame->length != sizeof(qwen_progress))
		return false;

	LWLockAcquire(qwen_slot_lock(slot), LW_EXCLUSIVE);
	if (is_current(slot, frame->id))
		memcpy(&slot->progress, payload, sizeof(qwen_progress));
	LWLockRelease(qwen_slot_lock(slot));
	return true;
}

/* More than the window, or an answer before the question has been sent completely, is impossible. */
static bool
handle_data(QwenSlot *slot, const qwen_frame *frame, const char *payload)
{
	int owner = QWEN_NO_PROC;
	bool fits = true;

	if (frame->length == 0 || frame->length > QWEN_DATA_MAX)
		return false;

	LWLockAcquire(qwen_slot_lock(slot), LW_EXCLUSIVE);
	if (is_current(slot, frame->id))
	{
		owner = slot->owner_procno;
		fits = slot != outbox.slot && slot->reply_len + sizeof(qwen_record) + frame->length <= QWEN_WINDOW;
		if (fits)
			append_record(slot, frame->type, payload, frame->length);
	}
	LWLockRelease(qwen_slot_lock(slot));

	qwen_wake(owner);
	return fits;
}

/* DONE and ERROR: the request has left the engine and the running list. */
static bool
handle_last(QwenSlot *slot, const qwen_frame *frame, const char *payload)
{
	qwen_wire_error error;
	bool sane = true;

	if (frame->length != (frame->type == QWEN_FRAME_DONE ? sizeof(qwen_done) : sizeof(qwen_wire_error)))
		return false;

	/* Texts end where their fields end, whatever the engine wrote. */
	if (frame->type == QWEN_FRAME_ERROR)
	{
		memcpy(&error, payload, sizeof(error));
		error.sqlstate[sizeof(error.sqlstate) - 1] = '\0';
		error.message[sizeof(error.message) - 1] = '\0';
		error.detail[sizeof(error.detail) - 1] = '\0';
		error.hint[sizeof(error.hint) - 1] = '\0';
		payload = (const char *) &error;
	}

	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	if (is_current(slot, frame->id))
	{
		sane = slot != outbox.slot;
		if (sane)
		{
			dlist_delete(&slot->link);
			finish(slot, frame->type, payload, frame->length);
		}
	}
	LWLockRelease(qwen_control_lock());
	return sane;
}

/* Whether a frame is about the request that runs in the slot now. The caller holds either lock. */
static bool
is_current(const QwenSlot *slot, uint64 id)
{
	return slot->state == QWEN_SLOT_RUNNING && qwen_slot_id(slot) == id;
}

/* The caller holds the slot's lock and has checked the room. */
static void
append_record(QwenSlot *slot, uint32 type, const void *payload, uint32 length)
{
	char *end = qwen_slot_reply(slot) + slot->reply_len;
	qwen_record record = {type, length};

	Assert(slot->reply_len + sizeof(record) + length <= QWEN_REPLY_BYTES);
	memcpy(end, &record, sizeof(record));
	memcpy(end + sizeof(record), payload, length);
	slot->reply_len += sizeof(record) + length;
}

/*
 * Appends the last record, for which there is always room behind the window.  Record and state in one step: a backend
 * that sees the record sees the slot as DONE.  The caller holds the control lock, and the slot is in no list.
 */
static void
finish(QwenSlot *slot, uint32 type, const void *payload, uint32 length)
{
	LWLockAcquire(qwen_slot_lock(slot), LW_EXCLUSIVE);
	append_record(slot, type, payload, length);
	slot->state = QWEN_SLOT_DONE;
	LWLockRelease(qwen_slot_lock(slot));
	qwen_wake(slot->owner_procno);
}

/* Finishes with an error of the worker's own. */
static void
fail_request(QwenSlot *slot, const char *sqlstate, const char *message, const char *hint)
{
	qwen_wire_error error = {0};

	strlcpy(error.sqlstate, sqlstate, sizeof(error.sqlstate));
	strlcpy(error.message, message, sizeof(error.message));
	strlcpy(error.hint, hint, sizeof(error.hint));
	finish(slot, QWEN_FRAME_ERROR, &error, sizeof(error));
}

/* ---- when the engine is gone ---- */

/* Whatever of the old engine is still in the buffers must not reach the next one. */
void
qwen_relay_engine_gone(bool died, bool replaced)
{
	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	while (!dlist_is_empty(&qwen_shared->running))
	{
		/* from the last to the first, each before what is queued: the order of submission is kept */
		QwenSlot *slot = dlist_tail_element(QwenSlot, link, &qwen_shared->running);

		dlist_delete(&slot->link);
		take_back(slot, died, replaced);
	}
	LWLockRelease(qwen_control_lock());

	outbox.slot = NULL;
	outbox.control_length = 0;
	outbox.control_sent = 0;
	outbox.shutdown = false;
	inbox.length = 0;

	/* Cancelled ones need no engine to be freed. They are in the service list, each of them. */
	serve_slots();
}

/* Queues a request again that was on board, or fails it when it cannot or should not run again. */
static void
take_back(QwenSlot *slot, bool died, bool replaced)
{
	LWLockAcquire(qwen_slot_lock(slot), LW_EXCLUSIVE);
	/* Records that the owner has not seen come again: `consumed` is what the next engine leaves out. */
	slot->reply_len = 0;
	slot->taken = 0;
	slot->credited = 0;
	memset(&slot->progress, 0, sizeof(slot->progress));
	/* A request that was not sent completely cannot have done any harm. */
	if (died && slot != outbox.slot)
		slot->deaths++;
	LWLockRelease(qwen_slot_lock(slot));

	if (slot->deaths >= QWEN_MAX_DEATHS)
		fail_request(slot, "58000", "the engine was lost three times while it ran this request",
					 "The server log says how the engine ended.");
	else if (replaced && slot->consumed > 0)
		fail_request(slot, "55000", "the engine was replaced while it ran this request", "Run the statement again.");
	else
	{
		qwen_slot_set_state(slot, QWEN_SLOT_QUEUED);
		dlist_push_head(&qwen_shared->queue, &slot->link);
	}
}

/* Those who wait should learn it now; who comes later is told before being queued. */
void
qwen_relay_fail_queue(const qwen_wire_error *error)
{
	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	while (!dlist_is_empty(&qwen_shared->queue))
	{
		QwenSlot *slot = dlist_container(QwenSlot, link, dlist_pop_head_node(&qwen_shared->queue));

		finish(slot, QWEN_FRAME_ERROR, error, sizeof(*error));
	}
	LWLockRelease(qwen_control_lock());
}

/* ---- when an owner is gone ---- */

/* The third net below resource owner and exit callback. Nothing is known that gets this far. */
void
qwen_relay_drop_orphans(void)
{
	for (int i = 0; i < qwen_max_requests; i++)
	{
		QwenSlot *slot = &qwen_slots[i];
		int pid;
		bool orphan;

		/* A look without the lock: who has just taken the slot is alive. */
		if (slot->owner_procno == QWEN_NO_PROC)
			continue;

		LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
		pid = slot->owner_pid;
		orphan = is_orphan(slot);
		LWLockRelease(qwen_control_lock());
		if (orphan)
		{
			ereport(LOG, (errmsg("dropping the request of process %d, which has ended", pid)));
			qwen_slot_withdraw(slot);
		}
	}
}

/* Its owner's place in ProcGlobal belongs to another process, or to one that does not exist any more. */
static bool
is_orphan(const QwenSlot *slot)
{
	if (slot->owner_procno == QWEN_NO_PROC)
		return false;
	return GetPGProcByNumber(slot->owner_procno)->pid != slot->owner_pid ||
		   (kill(slot->owner_pid, 0) != 0 && errno == ESRCH);
}
