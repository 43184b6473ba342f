/*
 * serve_io.c
 *	  The reader: one thread that owns the socket.
 *
 * It reads frames, hands them on, writes what the others have put into the
 * outbox, and beats the heart once a second even while the model loads.  It
 * never computes, so a silent heart means a dead or stopped process.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sequence.h"
#include "serve.h"

#define HEARTBEAT_US 1000000
/* Longest payload of any frame from the worker but REQUEST. */
#define SMALL_PAYLOAD 8

/* A frame on its way in, and what goes out. */
typedef struct reader
{
	char buffer[65536]; /* of the socket; [taken, held) has not been looked at */
	size_t held;
	size_t taken;
	qwen_frame head;
	char *payload;      /* NULL until the head is complete */
	size_t got;         /* bytes of head, then of payload */
	qwen_bytes sending; /* taken from the outbox */
	size_t sent;
	uint64_t next_beat_us;
} reader;

static bool receive(qwen_server *s, reader *r);
static bool handle_frame(qwen_server *s, reader *r);
static void forget(qwen_server *s, uint64_t id);
static bool transmit(qwen_server *s, reader *r);
static void beat(qwen_server *s, reader *r);

void
qwen_server_stop(qwen_server *s, bool failed)
{
	s->stop = true;
	s->failed |= failed;
	pthread_cond_broadcast(&s->front_wake);
	pthread_cond_broadcast(&s->compute_wake);
	qwen_server_wake_reader(s);
}

void
qwen_server_wake_reader(qwen_server *s)
{
	uint64_t one = 1;

	/* A full counter means that the reader is being woken already. */
	if (write(s->wake, &one, sizeof(one)) < 0 && errno != EAGAIN)
		fprintf(stderr, "qwen-engine: could not wake the reader: %s\n", strerror(errno));
}

void
qwen_server_send(qwen_server *s, uint32_t type, uint64_t id, const void *payload, size_t len)
{
	qwen_frame frame = {type, (uint32_t) len, id};

	pthread_mutex_lock(&s->lock);
	if (!qwen_bytes_reserve(&s->outbox, sizeof(frame) + len))
	{
		fprintf(stderr, "qwen-engine: out of memory for an answer\n");
		qwen_server_stop(s, true);
	}
	else
	{
		qwen_bytes_append(&s->outbox, &frame, sizeof(frame));
		qwen_bytes_append(&s->outbox, payload, len);
	}
	pthread_mutex_unlock(&s->lock);
}

/* Whether the threads have been told to end. What they had to say stands in the outbox before that. */
static bool
stopping(qwen_server *s)
{
	bool stop;

	pthread_mutex_lock(&s->lock);
	stop = s->stop;
	pthread_mutex_unlock(&s->lock);
	return stop;
}

void
qwen_server_read_and_write(qwen_server *s)
{
	reader r = {.next_beat_us = qwen_now_us() + HEARTBEAT_US};
	bool connected = true;

	while (connected)
	{
		uint64_t now = qwen_now_us();
		int timeout = r.next_beat_us > now ? (int) ((r.next_beat_us - now) / 1000) + 1 : 0;
		struct pollfd fds[2] = {
			{.fd = s->socket, .events = (short) (POLLIN | (r.sending.len > r.sent ? POLLOUT : 0))},
			{.fd = s->wake, .events = POLLIN},
		};
		uint64_t count;
		bool last;

		if (poll(fds, 2, timeout) < 0 && errno != EINTR)
			break;
		if ((fds[1].revents & POLLIN) && read(s->wake, &count, sizeof(count)) < 0 && errno != EAGAIN)
			break;
		connected = !(fds[0].revents & (POLLIN | POLLHUP | POLLERR)) || receive(s, &r);
		beat(s, &r);
		last = stopping(s); /* read before the transmission that then carries the last words */
		connected = connected && transmit(s, &r);
		if (last && r.sent == r.sending.len)
			break;
	}
	pthread_mutex_lock(&s->lock);
	qwen_server_stop(s, false);
	pthread_mutex_unlock(&s->lock);
	free(r.payload);
	qwen_bytes_free(&r.sending);
}

/* Whether a frame's head makes sense, so that its payload may be waited for. */
static bool
acceptable(const qwen_frame *head)
{
	switch (head->type)
	{
		case QWEN_FRAME_REQUEST:
			return head->length <= QWEN_FRAME_MAX && head->id != 0;
		case QWEN_FRAME_CREDIT:
			return head->length == sizeof(uint64_t);
		case QWEN_FRAME_CANCEL:
		case QWEN_FRAME_SHUTDOWN:
			return head->length == 0;
		default:
			return false;
	}
}

/*
 * Up to n of the next bytes; 0 nothing there now, -1 the connection is over.  Requests are small and come in crowds: the
 * socket is asked for as much as there is, only the long ones go straight to their place.
 */
static ssize_t
receive_some(const qwen_server *s, reader *r, void *to, size_t n)
{
	ssize_t got;

	if (r->taken == r->held)
	{
		bool straight = n >= sizeof(r->buffer);

		got = straight ? recv(s->socket, to, n, 0) : recv(s->socket, r->buffer, sizeof(r->buffer), 0);
		if (got < 0 && (errno == EAGAIN || errno == EINTR))
			return 0;
		if (got <= 0)
			return -1;
		if (straight)
			return got;
		r->held = (size_t) got;
		r->taken = 0;
	}
	if (n > r->held - r->taken)
		n = r->held - r->taken;
	memcpy(to, r->buffer + r->taken, n);
	r->taken += n;
	return (ssize_t) n;
}

/* Takes in what the socket has; false when the connection is over or the worker talks nonsense. */
static bool
receive(qwen_server *s, reader *r)
{
	for (;;)
	{
		ssize_t n;

		if (!r->payload)
		{
			n = receive_some(s, r, (char *) &r->head + r->got, sizeof(r->head) - r->got);
			if (n <= 0)
				return n == 0;
			r->got += (size_t) n;
			if (r->got < sizeof(r->head))
				continue;
			if (!acceptable(&r->head) || !(r->payload = malloc(r->head.length + SMALL_PAYLOAD)))
			{
				fprintf(stderr, "qwen-engine: frame %u of %u bytes refused\n", r->head.type, r->head.length);
				return false;
			}
			r->got = 0;
		}
		if (r->got < r->head.length)
		{
			n = receive_some(s, r, r->payload + r->got, r->head.length - r->got);
			if (n <= 0)
				return n == 0;
			r->got += (size_t) n;
		}
		if (r->got == r->head.length && !handle_frame(s, r))
			return false;
	}
}

/* Adds a command for the compute thread, with the lock held. */
static bool
command(qwen_server *s, const qwen_command *c)
{
	pthread_cond_signal(&s->compute_wake);
	return qwen_bytes_append(&s->inbox, c, sizeof(*c));
}

/* Queues a request for the front, with the lock held; the job takes the payload. */
static bool
queue_job(qwen_server *s, reader *r)
{
	qwen_job *job = calloc(1, sizeof(*job));

	if (!job)
		return false;
	*job = (qwen_job){.id = r->head.id, .payload = r->payload, .length = r->head.length};
	r->payload = NULL;
	qwen_job_queue_add(&s->jobs, job);
	pthread_cond_signal(&s->front_wake);
	return true;
}

/* Acts on a complete frame. */
static bool
handle_frame(qwen_server *s, reader *r)
{
	qwen_command c = {.kind = QWEN_COMMAND_CREDIT, .id = r->head.id};
	bool ok = true;

	pthread_mutex_lock(&s->lock);
	switch (r->head.type)
	{
		case QWEN_FRAME_REQUEST:
			ok = queue_job(s, r);
			break;
		case QWEN_FRAME_CANCEL:
			forget(s, r->head.id);
			break;
		case QWEN_FRAME_CREDIT:
			memcpy(&c.consumed, r->payload, sizeof(c.consumed));
			ok = command(s, &c);
			break;
		case QWEN_FRAME_SHUTDOWN:
			s->draining = true;
			pthread_cond_signal(&s->compute_wake);
			break;
	}
	pthread_mutex_unlock(&s->lock);
	free(r->payload);
	r->payload = NULL;
	r->got = 0;
	return ok;
}

/* Step 1 of the protocol in serve.h, with the lock held. */
static void
forget(qwen_server *s, uint64_t id)
{
	qwen_command c = {.kind = QWEN_COMMAND_CANCEL, .id = id};
	qwen_job *job = qwen_job_queue_remove(&s->jobs, id);

	if (job)
	{
		free(job->payload);
		free(job);
	}
	else if (s->current_id == id)
		s->current_canceled = true;
	else if (!command(s, &c))
		qwen_server_stop(s, true);
}

/* Writes what the socket takes; false when the connection is over. */
static bool
transmit(qwen_server *s, reader *r)
{
	for (;;)
	{
		ssize_t n;

		if (r->sent == r->sending.len)
		{
			qwen_bytes empty = r->sending;

			/* The two buffers change places, so that nothing is copied and nothing allocated. */
			empty.len = r->sent = 0;
			pthread_mutex_lock(&s->lock);
			r->sending = s->outbox;
			s->outbox = empty;
			pthread_mutex_unlock(&s->lock);
			if (r->sending.len == 0)
				return true;
		}
		n = send(s->socket, r->sending.data + r->sent, r->sending.len - r->sent, MSG_NOSIGNAL);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR;
		r->sent += (size_t) n;
	}
}

static void
beat(qwen_server *s, reader *r)
{
	qwen_heartbeat heartbeat;

	if (qwen_now_us() < r->next_beat_us)
		return;
	r->next_beat_us = qwen_now_us() + HEARTBEAT_US;
	pthread_mutex_lock(&s->lock);
	heartbeat = s->heartbeat;
	s->progress_due = s->heartbeat.running > 0;
	pthread_mutex_unlock(&s->lock);
	qwen_server_send(s, QWEN_FRAME_HEARTBEAT, 0, &heartbeat, sizeof(heartbeat));
	qwen_server_send_devices(s);
}
