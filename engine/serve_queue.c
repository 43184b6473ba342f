/*
 * serve_queue.c
 *	  The requests that wait for the front thread, in the order in which it
 *	  takes them.
 *
 * By priority, and within one the sessions take turns: a session's jobs have
 * the turns one after the other, beginning with the present one, so a session
 * that asks once stands before the second job of everybody else, however many
 * hundreds another one has sent before it.
 */
#include "serve_queue.h"

#include <string.h>

#include "sequence.h"

/* A request that is too short to have a header is turned down by whoever takes it; where it stands does not matter. */
static void
read_header(qwen_job *job)
{
	qwen_request_header head = {0};

	if (job->length >= sizeof(head))
		memcpy(&head, job->payload, sizeof(head));
	job->session = head.session;
	job->rank = qwen_rank_of(head.priority);
}

/* The turn behind the session's last job, or the present one. */
static uint64_t
next_turn(const qwen_job_queue *queue, const qwen_job *job)
{
	const qwen_job *at = queue->last;

	while (at && (at->session != job->session || at->rank != job->rank))
		at = at->previous;
	return at ? at->turn + 1 : queue->turns[job->rank];
}

/* From the end, where most jobs belong. */
void
qwen_job_queue_add(qwen_job_queue *queue, qwen_job *job)
{
	qwen_job *before = queue->last;

	read_header(job);
	job->turn = next_turn(queue, job);
	while (before && (before->rank > job->rank || (before->rank == job->rank && before->turn > job->turn)))
		before = before->previous;
	job->previous = before;
	job->next = before ? before->next : queue->first;
	*(job->next ? &job->next->previous : &queue->last) = job;
	*(before ? &before->next : &queue->first) = job;
}

static void
unlink_job(qwen_job_queue *queue, qwen_job *job)
{
	*(job->previous ? &job->previous->next : &queue->first) = job->next;
	*(job->next ? &job->next->previous : &queue->last) = job->previous;
}

qwen_job *
qwen_job_queue_take(qwen_job_queue *queue)
{
	qwen_job *job = queue->first;

	if (job)
	{
		queue->turns[job->rank] = job->turn;
		unlink_job(queue, job);
	}
	return job;
}

qwen_job *
qwen_job_queue_remove(qwen_job_queue *queue, uint64_t id)
{
	qwen_job *job = queue->first;

	while (job && job->id != id)
		job = job->next;
	if (job)
		unlink_job(queue, job);
	return job;
}
