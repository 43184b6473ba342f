/*
 * scheduler.h
 *	  Which sequences run, and what the next forward pass computes.
 *
 * Continuous batching: a sequence joins when there is room and leaves when
 * it is done; every step takes one token of each decoding sequence first and
 * fills the rest of the token budget with chunks of prompts.
 *
 * Budget.  A step costs something by itself (the weights are read) and
 * something for each token, so more tokens a step mean more tokens a second,
 * but ever less so, while everybody who arrives waits for the step that is
 * under way.  The budget is what takes ten times as long as the smallest
 * step: beyond that nothing is to be gained but a tenth.  Both costs are
 * measured as the steps go by.  A session gets further sequences started only
 * while those that run leave some of the budget over.
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
 * taken.  In a step, sessions with few requests come before those with many,
 * which together get no more tokens beside them than they have, or than fit
 * without doubling the time of the smallest step, whichever is more: so a
 * single row waits about as long beside a million others as it would beside
 * one.  Among their like, sessions take turns.
 *
 * Prefix cache.  Of its waiting sequences a session starts those first whose
 * beginning is in the cache, or is being computed: see admission.c.
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
	int32_t passed_over; /* how many sequences have started before the first waiting one, which came before them */
	uint64_t turn;       /* when it was last served; smaller is longer ago */

	/* of the step that is being built */
	bool held;         /* nothing more of it is started */
	int round;         /* in which it had its turn */
	int32_t demand;    /* tokens that it could use */
	int32_t allowance; /* tokens that it may still have */
} qwen_session;

#define QWEN_STEP_SIZES 24

/*
 * What steps take, by size: in [k] those of 2^k to 2^(k+1) - 1 tokens, and of these the one that took the least for a
 * token.  What else the machine does only ever adds to a time, so the least is what the device itself needs.
 */
typedef struct qwen_step_cost
{
	int32_t n; /* steps so far */
	int32_t tokens;
	double us;
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
	qwen_step_cost costs[QWEN_STEP_SIZES];
	uint64_t turn; /* counts the sessions that were served */

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

/* The batch has been computed: its tokens are in the cache. */
void qwen_scheduler_computed(qwen_scheduler *s);

/* The step with that batch took so long, all in all. */
void qwen_scheduler_note_time(qwen_scheduler *s, uint64_t us);

/* Tokens that a step should have at most. */
int32_t qwen_scheduler_budget(const qwen_scheduler *s);

bool qwen_scheduler_idle(const qwen_scheduler *s);
int32_t qwen_scheduler_waiting(const qwen_scheduler *s);

#endif
