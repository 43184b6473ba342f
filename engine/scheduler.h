/*
 * scheduler.h
 *	  Which sequences run, and what the next forward pass computes.
 *
 * Continuous batching: a sequence joins when there is room and leaves when
 * it is done; every step takes one token of each decoding sequence first and
 * fills the rest of the token budget with chunks of prompts.
 *
 * Memory.  A sequence starts when the cache has blocks for all its tokens so
 * far; it takes further blocks as it grows.  When there are none left, the
 * sequence of the lowest priority that started last gives all of its blocks
 * back and waits; what it had is computed again later, from whatever the
 * prefix cache still holds, to the same bits.  The one that started first
 * always goes on, so everything ends.
 *
 * Fairness.  Sequences belong to sessions.  A session with few running
 * sequences starts before one with many, and gets a seat from it if all are
 * taken.  In a step that several sessions share, none may have more tokens
 * than all others together, or than fit without doubling the step's time,
 * whichever is more: so a single row waits about as long beside a million
 * others as it would beside one.
 */
#ifndef QWEN_SCHEDULER_H
#define QWEN_SCHEDULER_H

#include "../kernels/kernels.h"
#include "kv_pool.h"
#include "sequence.h"

#define QWEN_PRIORITIES 3 /* interactive, normal, batch */

/* A first-in first-out list of sequences linked by next. */
typedef struct qwen_sequence_list
{
	qwen_sequence *head;
	qwen_sequence *tail;
	int32_t n;
} qwen_sequence_list;

/* The requests of one session in one priority; an entry without any is free for another one. */
typedef struct qwen_session
{
	int32_t id;
	int32_t rank; /* 0 interactive, 1 normal, 2 batch */
	qwen_sequence_list waiting;
	int32_t n_running;

	/* of the step that is being built */
	bool held;         /* its next sequence waits for a prefix that another one computes */
	int32_t demand;    /* tokens that it could use */
	int32_t allowance; /* tokens that it may still have */
} qwen_session;

/* A running fit of step time = fixed + per_token * tokens; old steps fade. */
typedef struct qwen_step_cost
{
	double weight, tokens, us, tokens_us, tokens_tokens;
} qwen_step_cost;

typedef struct qwen_scheduler
{
	int32_t max_sequences;
	int32_t step_tokens;
	qwen_session *sessions; /* [n_sessions] */
	int32_t n_sessions;
	qwen_sequence_list flushing;
	qwen_sequence **running; /* [max_sequences], in the order of starting */
	int32_t n_running;
	qwen_kv_pool pool;
	qwen_step_cost cost;

	/* counters since start */
	uint64_t batched_tokens;
	uint64_t cached_tokens;
	uint64_t preemptions;

	/* the batch of the present step; arrays hold step_tokens or max_sequences entries */
	qwen_batch batch;
	int32_t *tokens;
	int32_t *positions;
	int32_t *logit_rows;
	qwen_batch_seq *seqs;
	qwen_sequence **members; /* [batch.n_seqs] whose part seqs[i] is */
} qwen_scheduler;

/* key: of the names of cached blocks, see qwen_kv_name. */
bool qwen_scheduler_init(qwen_scheduler *s, int32_t max_sequences, int32_t step_tokens, int32_t kv_blocks,
						 const uint64_t key[2]);
/* Frees the scheduler and every sequence in it. */
void qwen_scheduler_destroy(qwen_scheduler *s);

/* Puts a prepared sequence into the list of its state; false when memory is short. */
bool qwen_scheduler_add(qwen_scheduler *s, qwen_sequence *seq);

/* The sequence with that id, in whatever state, or NULL. */
qwen_sequence *qwen_scheduler_find(const qwen_scheduler *s, uint64_t id);

/* Takes a sequence out of its list and gives its blocks back; the caller owns it again. */
void qwen_scheduler_remove(qwen_scheduler *s, qwen_sequence *seq);

/* A running sequence has its last token: its blocks are free at once, its answer is still to be sent. */
void qwen_scheduler_finish(qwen_scheduler *s, qwen_sequence *seq);

/* Admits what can be admitted and builds s->batch; false when there is nothing to compute. */
bool qwen_scheduler_build(qwen_scheduler *s);

/* The batch has been computed, in that time: its tokens are in the cache. */
void qwen_scheduler_computed(qwen_scheduler *s, uint64_t us);

bool qwen_scheduler_idle(const qwen_scheduler *s);
int32_t qwen_scheduler_waiting(const qwen_scheduler *s);

#endif
