/*
 * serve_queue.h
 *	  The requests that wait for the front thread of `qwen-engine serve`.
 *	  No locks of its own.
 */
#ifndef QWEN_SERVE_QUEUE_H
#define QWEN_SERVE_QUEUE_H

#include <stdint.h>

/* A request as it came from the socket. */
typedef struct qwen_job
{
	uint64_t id;
	char *payload; /* owned */
	uint32_t length;

	/* set when it is queued */
	int32_t session;
	int32_t rank; /* 0 interactive, 1 normal, 2 batch */
	uint64_t turn;
	struct qwen_job *previous;
	struct qwen_job *next;
} qwen_job;

/* All zero: empty. */
typedef struct qwen_job_queue
{
	qwen_job *first;
	qwen_job *last;
	uint64_t turns[3]; /* of the job taken last, by rank */
} qwen_job_queue;

void qwen_job_queue_add(qwen_job_queue *queue, qwen_job *job);
/* The next job, which is the caller's then; NULL: none. */
qwen_job *qwen_job_queue_take(qwen_job_queue *queue);
/* The same of the one with that id. */
qwen_job *qwen_job_queue_remove(qwen_job_queue *queue, uint64_t id);

#endif
