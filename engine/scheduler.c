/*
 * scheduler.c
 *	  Which sequences run, and what the next forward pass computes.
 */
#include "scheduler.h"

#include <stdlib.h>
#include <string.h>

static void
push(qwen_sequence_list *list, qwen_sequence *seq)
{
	seq->next = NULL;
	if (list->tail)
		list->tail->next = seq;
	else
		list->head = seq;
	list->tail = seq;
	list->n++;
}

static qwen_sequence *
pop(qwen_sequence_list *list)
{
	qwen_sequence *seq = list->head;

	list->head = seq->next;
	if (!list->head)
		list->tail = NULL;
	list->n--;
	return seq;
}

static bool
unlink_from(qwen_sequence_list *list, const qwen_sequence *seq)
{
	qwen_sequence *before = NULL;

	for (qwen_sequence *at = list->head; at; before = at, at = at->next)
	{
		if (at != seq)
			continue;
		if (before)
			before->next = at->next;
		else
			list->head = at->next;
		if (list->tail == at)
			list->tail = before;
		list->n--;
		return true;
	}
	return false;
}

static qwen_sequence *
find_in(const qwen_sequence_list *list, uint64_t id)
{
	qwen_sequence *at = list->head;

	while (at && at->id != id)
		at = at->next;
	return at;
}

bool
qwen_scheduler_init(qwen_scheduler *s, int32_t max_sequences, int32_t step_tokens, int32_t kv_blocks)
{
	size_t n_seqs = (size_t) max_sequences, n_tokens = (size_t) step_tokens;

	*s = (qwen_scheduler){.max_sequences = max_sequences, .step_tokens = step_tokens};
	s->running = calloc(n_seqs, sizeof(*s->running));
	s->members = calloc(n_seqs, sizeof(*s->members));
	s->seqs = calloc(n_seqs, sizeof(*s->seqs));
	s->logit_rows = calloc(n_seqs, sizeof(*s->logit_rows));
	s->tokens = calloc(n_tokens, sizeof(*s->tokens));
	s->positions = calloc(n_tokens, sizeof(*s->positions));
	if (s->running && s->members && s->seqs && s->logit_rows && s->tokens && s->positions &&
		qwen_kv_pool_init(&s->pool, kv_blocks))
	{
		s->batch =
			(qwen_batch){.tokens = s->tokens, .positions = s->positions, .seqs = s->seqs, .logit_rows = s->logit_rows};
		return true;
	}
	qwen_scheduler_destroy(s);
	return false;
}

static void
free_list(qwen_sequence_list *list)
{
	while (list->head)
		qwen_sequence_free(pop(list));
}

void
qwen_scheduler_destroy(qwen_scheduler *s)
{
	for (int i = 0; i < QWEN_PRIORITIES; i++)
		free_list(&s->waiting[i]);
	free_list(&s->flushing);
	for (int32_t i = 0; i < s->n_running; i++)
		qwen_sequence_free(s->running[i]);
	free(s->running);
	free(s->members);
	free(s->seqs);
	free(s->logit_rows);
	free(s->tokens);
	free(s->positions);
	qwen_kv_pool_destroy(&s->pool);
	memset(s, 0, sizeof(*s));
}

/* The waiting list of a priority: 1 interactive, 0 normal, -1 batch. */
static qwen_sequence_list *
waiting_list(qwen_scheduler *s, int32_t priority)
{
	return &s->waiting[priority > 0 ? 0 : priority == 0 ? 1 : 2];
}

void
qwen_scheduler_add(qwen_scheduler *s, qwen_sequence *seq)
{
	if (seq->state == QWEN_SEQ_FLUSHING)
		push(&s->flushing, seq);
	else
		push(waiting_list(s, seq->priority), seq);
}

qwen_sequence *
qwen_scheduler_find(const qwen_scheduler *s, uint64_t id)
{
	qwen_sequence *seq;

	for (int32_t i = 0; i < s->n_running; i++)
		if (s->running[i]->id == id)
			return s->running[i];
	for (int i = 0; i < QWEN_PRIORITIES; i++)
		if ((seq = find_in(&s->waiting[i], id)) != NULL)
			return seq;
	return find_in(&s->flushing, id);
}

/* Takes a sequence off the running array, keeping the order of arrival. */
static void
stop_running(qwen_scheduler *s, qwen_sequence *seq)
{
	int32_t i = 0;

	while (s->running[i] != seq)
		i++;
	s->n_running--;
	memmove(&s->running[i], &s->running[i + 1], (size_t) (s->n_running - i) * sizeof(*s->running));
	qwen_kv_pool_give(&s->pool, seq->n_blocks, seq->blocks);
}

void
qwen_scheduler_remove(qwen_scheduler *s, qwen_sequence *seq)
{
	if (seq->state == QWEN_SEQ_RUNNING)
		stop_running(s, seq);
	else if (seq->state == QWEN_SEQ_FLUSHING)
		unlink_from(&s->flushing, seq);
	else
		unlink_from(waiting_list(s, seq->priority), seq);
}

void
qwen_scheduler_finish(qwen_scheduler *s, qwen_sequence *seq)
{
	stop_running(s, seq);
	seq->state = QWEN_SEQ_FLUSHING;
	push(&s->flushing, seq);
}

/* Starts waiting sequences, best priority first and in order of arrival, until one does not fit. */
static void
admit(qwen_scheduler *s)
{
	for (int i = 0; i < QWEN_PRIORITIES; i++)
		while (s->waiting[i].head)
		{
			qwen_sequence *seq = s->waiting[i].head;

			if (s->n_running == s->max_sequences || !qwen_kv_pool_take(&s->pool, seq->n_blocks, seq->blocks))
				return;
			pop(&s->waiting[i]);
			seq->state = QWEN_SEQ_RUNNING;
			seq->started_us = qwen_now_us();
			s->running[s->n_running++] = seq;
		}
}

/* A streaming sequence whose reader is behind waits with its cache kept. */
static bool
is_stalled(const qwen_sequence *seq)
{
	return (seq->flags & QWEN_FLAG_STREAM) && seq->out.sent < seq->out.ready.len;
}

/* Adds up to n of the sequence's pending tokens to the batch. */
static void
add_part(qwen_scheduler *s, qwen_sequence *seq, int32_t n)
{
	qwen_batch *b = &s->batch;
	int32_t pending = qwen_sequence_pending(seq);

	if (n > pending)
		n = pending;
	for (int32_t i = 0; i < n; i++)
	{
		s->tokens[b->n_tokens + i] = seq->tokens.data[seq->n_computed + i];
		s->positions[b->n_tokens + i] = seq->n_computed + i;
	}
	s->seqs[b->n_seqs] = (qwen_batch_seq){
		.first_token = b->n_tokens, .n_tokens = n, .context = seq->n_computed + n, .blocks = seq->blocks};
	s->members[b->n_seqs++] = seq;
	b->n_tokens += n;
	if (n == pending)
		s->logit_rows[b->n_logits++] = b->n_tokens - 1;
}

bool
qwen_scheduler_build(qwen_scheduler *s)
{
	qwen_batch *b = &s->batch;

	b->n_tokens = b->n_seqs = b->n_logits = 0;
	admit(s);
	for (int decoding = 1; decoding >= 0; decoding--)
		for (int32_t i = 0; i < s->n_running && b->n_tokens < s->step_tokens; i++)
		{
			qwen_sequence *seq = s->running[i];

			if ((qwen_sequence_pending(seq) == 1) == decoding && !is_stalled(seq))
				add_part(s, seq, s->step_tokens - b->n_tokens);
		}
	return b->n_tokens > 0;
}

int32_t
qwen_scheduler_waiting(const qwen_scheduler *s)
{
	int32_t n = 0;

	for (int i = 0; i < QWEN_PRIORITIES; i++)
		n += s->waiting[i].n;
	return n;
}

bool
qwen_scheduler_idle(const qwen_scheduler *s)
{
	return s->n_running == 0 && s->flushing.n == 0 && qwen_scheduler_waiting(s) == 0;
}
