/*
 * scheduler.c
 *	  Which sequences run, and what the next forward pass computes.
 *	  scheduler.h has the rules; admission.c decides who starts.
 */
#include "scheduler.h"

#include <stdlib.h>
#include <string.h>

#include "admission.h"

static void grow(qwen_scheduler *s);
static void share_out(qwen_scheduler *s);
static void add_part(qwen_scheduler *s, qwen_sequence *seq, int32_t n);

bool
qwen_scheduler_init(qwen_scheduler *s, int32_t max_sequences, int32_t step_tokens, int32_t kv_blocks,
					const uint64_t key[2])
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
		qwen_kv_pool_init(&s->pool, kv_blocks, key))
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
		qwen_sequence_free(qwen_list_pop(list));
}

void
qwen_scheduler_destroy(qwen_scheduler *s)
{
	for (int32_t i = 0; i < s->n_sessions; i++)
		free_list(&s->sessions[i].waiting);
	free_list(&s->flushing);
	for (int32_t i = 0; i < s->n_running; i++)
		qwen_sequence_free(s->running[i]);
	free(s->sessions);
	free(s->running);
	free(s->members);
	free(s->seqs);
	free(s->logit_rows);
	free(s->tokens);
	free(s->positions);
	qwen_kv_pool_destroy(&s->pool);
	memset(s, 0, sizeof(*s));
}

bool
qwen_scheduler_add(qwen_scheduler *s, qwen_sequence *seq)
{
	if (seq->state == QWEN_SEQ_FLUSHING)
	{
		qwen_list_push(&s->flushing, seq);
		return true;
	}
	return qwen_admission_enqueue(s, seq);
}

static qwen_sequence *
find_in(const qwen_sequence_list *list, uint64_t id)
{
	qwen_sequence *at = list->head;

	while (at && at->id != id)
		at = at->next;
	return at;
}

qwen_sequence *
qwen_scheduler_find(const qwen_scheduler *s, uint64_t id)
{
	qwen_sequence *seq;

	for (int32_t i = 0; i < s->n_running; i++)
		if (s->running[i]->id == id)
			return s->running[i];
	for (int32_t i = 0; i < s->n_sessions; i++)
		if ((seq = find_in(&s->sessions[i].waiting, id)) != NULL)
			return seq;
	return find_in(&s->flushing, id);
}

void
qwen_scheduler_remove(qwen_scheduler *s, qwen_sequence *seq)
{
	if (seq->state == QWEN_SEQ_RUNNING)
		qwen_admission_stop(s, seq);
	else if (seq->state == QWEN_SEQ_FLUSHING)
		qwen_list_unlink(&s->flushing, seq);
	else
		qwen_list_unlink(&s->sessions[seq->session_at].waiting, seq);
}

void
qwen_scheduler_finish(qwen_scheduler *s, qwen_sequence *seq)
{
	qwen_admission_stop(s, seq);
	seq->state = QWEN_SEQ_FLUSHING;
	qwen_list_push(&s->flushing, seq);
}

/* ---- the batch ---- */

bool
qwen_scheduler_build(qwen_scheduler *s)
{
	qwen_batch *b = &s->batch;

	b->n_tokens = b->n_seqs = b->n_logits = 0;
	qwen_admission_start(s);
	grow(s);
	share_out(s);
	for (int decoding = 1; decoding >= 0; decoding--)
		for (int32_t i = 0; i < s->n_running && b->n_tokens < s->step_tokens; i++)
		{
			qwen_sequence *seq = s->running[i];

			if ((qwen_sequence_pending(seq) == 1) == decoding && !qwen_sequence_is_stalled(seq))
				add_part(s, seq, s->step_tokens - b->n_tokens);
		}
	return b->n_tokens > 0;
}

/* Gives every sequence that decodes over the edge of its last block another one, at the cost of whom it must be. */
static void
grow(qwen_scheduler *s)
{
	int32_t i = 0;

	while (i < s->n_running)
	{
		qwen_sequence *seq = s->running[i];
		int32_t block;

		if (qwen_sequence_is_stalled(seq) || (int32_t) seq->tokens.len <= seq->n_blocks * QWEN_KV_BLOCK)
		{
			i++;
			continue;
		}
		block = qwen_kv_pool_take(&s->pool);
		if (block == QWEN_NO_BLOCK)
		{
			/* The victim may stand before this one, or be this one: look at the same place again. */
			int32_t victim = qwen_admission_victim(s);

			qwen_admission_preempt(s, s->running[victim]);
			i -= victim < i;
			continue;
		}
		seq->blocks[seq->n_blocks++] = block;
	}
}

/* The tokens that cost as much time as the fixed part of a step: what may be added to a step of one without doubling it. */
static int32_t
free_tokens(const qwen_scheduler *s)
{
	const qwen_step_cost *c = &s->cost;
	double spread = c->weight * c->tokens_tokens - c->tokens * c->tokens;
	double per_token, fixed;

	if (spread <= 1e-6 * c->weight * c->tokens_tokens)
		return 1;
	per_token = (c->weight * c->tokens_us - c->tokens * c->us) / spread;
	fixed = (c->us - per_token * c->tokens) / c->weight;
	if (per_token <= 0 || fixed / per_token >= s->step_tokens)
		return s->step_tokens;
	return fixed < per_token ? 1 : (int32_t) (fixed / per_token);
}

/* Sets every session's allowance of the step. */
static void
share_out(qwen_scheduler *s)
{
	int64_t total = 0;
	int32_t least = free_tokens(s);

	for (int32_t i = 0; i < s->n_sessions; i++)
		s->sessions[i].demand = 0;
	for (int32_t i = 0; i < s->n_running; i++)
	{
		const qwen_sequence *seq = s->running[i];
		int32_t pending = qwen_sequence_pending(seq);

		if (qwen_sequence_is_stalled(seq))
			continue;
		if (pending > s->step_tokens)
			pending = s->step_tokens;
		s->sessions[seq->session_at].demand += pending;
		total += pending;
	}
	for (int32_t i = 0; i < s->n_sessions; i++)
	{
		qwen_session *session = &s->sessions[i];
		int64_t others = total - session->demand;

		session->allowance = others == 0 || others >= s->step_tokens ? s->step_tokens
							 : others < least                        ? least
																	 : (int32_t) others;
	}
}

/* Adds up to n of the sequence's pending tokens to the batch. */
static void
add_part(qwen_scheduler *s, qwen_sequence *seq, int32_t n)
{
	qwen_batch *b = &s->batch;
	qwen_session *session = &s->sessions[seq->session_at];
	int32_t pending = qwen_sequence_pending(seq);

	if (n > pending)
		n = pending;
	if (n > session->allowance)
		n = session->allowance;
	if (n == 0)
		return;
	session->allowance -= n;
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

/* Steps that count in the fit: older ones have faded to a third. */
#define COST_MEMORY 256.0

static void
note_cost(qwen_step_cost *c, double tokens, double us)
{
	const double keep = 1 - 1 / COST_MEMORY;

	*c = (qwen_step_cost){.weight = c->weight * keep + 1,
						  .tokens = c->tokens * keep + tokens,
						  .us = c->us * keep + us,
						  .tokens_us = c->tokens_us * keep + tokens * us,
						  .tokens_tokens = c->tokens_tokens * keep + tokens * tokens};
}

void
qwen_scheduler_computed(qwen_scheduler *s, uint64_t us)
{
	note_cost(&s->cost, s->batch.n_tokens, (double) us);
	s->batched_tokens += (uint64_t) s->batch.n_tokens;
	for (int32_t i = 0; i < s->batch.n_seqs; i++)
	{
		qwen_sequence *seq = s->members[i];

		seq->n_computed += s->seqs[i].n_tokens;
		qwen_admission_publish(s, seq);
	}
}

int32_t
qwen_scheduler_waiting(const qwen_scheduler *s)
{
	int32_t n = 0;

	for (int32_t i = 0; i < s->n_sessions; i++)
		n += s->sessions[i].waiting.n;
	return n;
}

bool
qwen_scheduler_idle(const qwen_scheduler *s)
{
	return s->n_running == 0 && s->flushing.n == 0 && qwen_scheduler_waiting(s) == 0;
}
