/*
 * scheduler.c
 *	  Which sequences run, and what the next forward pass computes.
 *	  scheduler.h has the rules; admission.c decides who starts.
 */
#include "scheduler.h"

#include <stdlib.h>
#include <string.h>

#include "admission.h"

/* The smallest step's time fits so often into the longest one. */
#define LONGEST_STEP 10
/* Fewer tokens than this are never worth a step of their own: kernels compute rows in tiles of that size. */
#define LEAST_BUDGET 16
/* Sessions with at most so many requests are small ones and come first. */
#define SMALL_SESSION 4
/* Steps of a size after which the best of them is trusted. */
#define TRUSTED_STEPS 16

static void grow(qwen_scheduler *s);
static void share_out(qwen_scheduler *s);
static void add_part(qwen_scheduler *s, qwen_sequence *seq);

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
		for (int32_t i = 0; i < s->n_running; i++)
		{
			qwen_sequence *seq = s->running[i];

			if ((qwen_sequence_pending(seq) == 1) == decoding && !qwen_sequence_is_stalled(seq))
				add_part(s, seq);
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

/* ---- what a step may cost ---- */

/* The smallest steps so far; NULL: none yet. */
static const qwen_step_cost *
smallest_steps(const qwen_scheduler *s)
{
	for (int i = 0; i < QWEN_STEP_SIZES; i++)
		if (s->costs[i].n > 0)
			return &s->costs[i];
	return NULL;
}

/*
 * The tokens that can be added to the smallest step in so many times its time.  What they take is seen from the largest
 * steps: the larger, the less it matters how exactly both are known.
 */
static int32_t
tokens_in(const qwen_scheduler *s, double times)
{
	const qwen_step_cost *small = smallest_steps(s), *large = &s->costs[QWEN_STEP_SIZES - 1];
	double n;

	while (small && large > small && large->n < TRUSTED_STEPS)
		large--;
	/* Nothing to compare with, or tokens that cost nothing. */
	if (!small || large == small || large->us <= small->us)
		return s->step_tokens;
	n = times * small->us * (large->tokens - small->tokens) / (large->us - small->us);
	return n < s->step_tokens ? (int32_t) n : s->step_tokens;
}

int32_t
qwen_scheduler_budget(const qwen_scheduler *s)
{
	const qwen_step_cost *small = smallest_steps(s);
	int64_t n = (int64_t) tokens_in(s, LONGEST_STEP - 1) + (small ? small->tokens : 0);

	if (n < LEAST_BUDGET)
		n = LEAST_BUDGET;
	return n < s->step_tokens ? (int32_t) n : s->step_tokens;
}

void
qwen_scheduler_note_time(qwen_scheduler *s, uint64_t us)
{
	int32_t tokens = s->batch.n_tokens;
	int size = 31 - __builtin_clz((unsigned) tokens | 1);
	qwen_step_cost *c = &s->costs[size < QWEN_STEP_SIZES ? size : QWEN_STEP_SIZES - 1];

	if (c->n == 0 || (double) us * c->tokens < c->us * tokens)
	{
		c->tokens = tokens;
		c->us = (double) us;
	}
	if (c->n < TRUSTED_STEPS)
		c->n++;
}

/* ---- fair shares ---- */

static void
measure_demand(qwen_scheduler *s)
{
	for (int32_t i = 0; i < s->n_sessions; i++)
		s->sessions[i].demand = s->sessions[i].allowance = s->sessions[i].round = 0;
	for (int32_t i = 0; i < s->n_running; i++)
		if (!qwen_sequence_is_stalled(s->running[i]))
			s->sessions[s->running[i]->session_at].demand += qwen_sequence_pending(s->running[i]);
}

static bool
is_small(const qwen_session *session)
{
	return session->n_running + session->waiting.n <= SMALL_SESSION;
}

/* Of the small or large sessions that could use more tokens and have not had their turn in the round, the one served
 * longest ago; NULL: none. */
static qwen_session *
next_turn(qwen_scheduler *s, bool small, int round)
{
	qwen_session *best = NULL;

	for (int32_t i = 0; i < s->n_sessions; i++)
	{
		qwen_session *c = &s->sessions[i];

		if (c->demand > c->allowance && c->round < round && is_small(c) == small && (!best || c->turn < best->turn))
			best = c;
	}
	return best;
}

/*
 * Shares so many tokens out among the small or the large sessions: in a first round a few for each, so that no long
 * prompt makes the others' decoding wait, then the rest.  Returns what is left over.
 */
static int32_t
share_among(qwen_scheduler *s, bool small, int32_t tokens)
{
	int32_t few = (tokens + 3) / 4;
	qwen_session *session;

	for (int round = 1; round <= 2; round++)
		while (tokens > 0 && (session = next_turn(s, small, round)) != NULL)
		{
			int32_t n = session->demand - session->allowance;

			n = round == 1 && n > few ? few : n;
			n = n > tokens ? tokens : n;
			session->allowance += n;
			session->round = round;
			session->turn = ++s->turn;
			tokens -= n;
		}
	return tokens;
}

/*
 * Sets every session's allowance of the step.  Large sessions have a few tokens even when the small ones leave nothing
 * over: beside them they are slow, but do not stand still.
 */
static void
share_out(qwen_scheduler *s)
{
	int32_t budget = qwen_scheduler_budget(s);
	int32_t least = tokens_in(s, 1);
	int32_t left, used;

	measure_demand(s);
	left = share_among(s, true, budget);
	used = budget - left;
	if (used > 0)
	{
		left = used < left ? used : left;
		left = least > left ? least : left;
		left = left > s->step_tokens - used ? s->step_tokens - used : left;
	}
	share_among(s, false, left);
}

/* Adds as many of the sequence's pending tokens to the batch as its session may still have. */
static void
add_part(qwen_scheduler *s, qwen_sequence *seq)
{
	qwen_batch *b = &s->batch;
	qwen_session *session = &s->sessions[seq->session_at];
	int32_t pending = qwen_sequence_pending(seq);
	int32_t n = pending < session->allowance ? pending : session->allowance;

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

void
qwen_scheduler_computed(qwen_scheduler *s)
{
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
