/*
 * serve.h
 *	  What the three threads of `qwen-engine serve` share.  Private to
 *	  serve.c, serve_io.c, serve_work.c, serve_queue.c and serve_devices.c.
 *
 *	  reader (main)		reads frames, writes frames, beats the heart
 *	  front				decodes and tokenises requests, in order of arrival
 *	  compute			loads the model, then steps; owns the engine's sequences
 *
 *	  REQUEST -> jobs -> [front] -> inbox -> [compute] -> outbox -> DATA, DONE
 *
 * Protocol of the shared state.  Everything below `lock` is read and written
 * with the lock held, and no thread holds it while it reads a file, a socket,
 * tokenises or computes.
 *
 *	1. The reader appends a job, or handles CANCEL: a job still queued is
 *	   dropped; the job in the front's hands is marked; anything else is
 *	   passed on through the inbox, behind the submission that it concerns.
 *	2. The front takes the first job, works without the lock, and under the
 *	   lock either drops the sequence (job marked) or puts it into the inbox.
 *	   So a cancel never overtakes its request and never gets lost.
 *	3. The compute thread takes the whole inbox, applies it, runs a step.
 *	4. Whoever has something to say appends frames to the outbox and wakes the
 *	   reader through the eventfd.
 */
#ifndef QWEN_SERVE_H
#define QWEN_SERVE_H

#include <pthread.h>

#include "engine.h"
#include "serve_queue.h"

/* What the compute thread is asked to do. */
typedef struct qwen_command
{
	enum
	{
		QWEN_COMMAND_SUBMIT,
		QWEN_COMMAND_CANCEL,
		QWEN_COMMAND_CREDIT
	} kind;
	uint64_t id;
	uint64_t consumed;  /* CREDIT */
	qwen_sequence *seq; /* SUBMIT, owned */
} qwen_command;

typedef struct qwen_server
{
	qwen_model_options options;
	int socket;          /* inherited, non-blocking; the reader's */
	int wake;            /* eventfd: the outbox has something, or the compute thread has ended */
	qwen_engine *engine; /* set by the compute thread before `ready`, constant after */

	pthread_mutex_t lock;
	pthread_cond_t front_wake;   /* jobs, ready, or stop */
	pthread_cond_t compute_wake; /* inbox, draining, or stop */
	qwen_job_queue jobs;
	uint64_t current_id; /* the job that the front works on, 0: none */
	bool current_canceled;
	qwen_bytes inbox;         /* of qwen_command */
	qwen_bytes outbox;        /* of frames */
	qwen_heartbeat heartbeat; /* as of the last step */
	qwen_devices devices;     /* none before something is loaded */
	bool ready;               /* the model is loaded */
	bool progress_due;        /* send PROGRESS frames after the next step */
	bool draining;            /* SHUTDOWN was received: end when idle */
	bool stop;                /* end now */
	bool failed;              /* with exit status 1 */
} qwen_server;

/* serve_io.c */
void qwen_server_read_and_write(qwen_server *s);
/* Appends a frame to the outbox; the lock must not be held. */
void qwen_server_send(qwen_server *s, uint32_t type, uint64_t id, const void *payload, size_t len);
void qwen_server_wake_reader(qwen_server *s);
/* Ends all threads, with the lock held. */
void qwen_server_stop(qwen_server *s, bool failed);

/* serve_devices.c */
/* Notes what the model has on its devices now. */
void qwen_server_note_devices(qwen_server *s, const qwen_model *model);
/* Sends what was noted, with the memory that is free now; nothing before there is something. */
void qwen_server_send_devices(qwen_server *s);

/* serve_work.c; arg is the qwen_server */
void *qwen_server_front(void *arg);
void *qwen_server_compute(void *arg);

#endif
