/*
 * scheduler.h
 *	  Which sequences run, and what the next forward pass computes.
 *
 * Continuous batching: a sequence joins when there is room and leaves when
 * it is done; every step takes one token of each decoding sequence first and
 * fills the rest of the token budget with chunks of prompts.
 *
 * Admission takes all cache blocks that the sequence can ever need, so a
 * running sequence never waits for memory and is never thrown out.
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

typedef struct qwen_scheduler
{
	int32_t max_sequences;
	int32_t step_tokens;
	qwen_sequence_list waiting[QWEN_PRIORITIES];
	qwen_sequence_list flushing;
	qwen_sequence **running; /* [max_sequences] */
	int32_t n_running;
	qwen_kv_pool pool;

	/* the batch of the present step; arrays hold step_tokens or max_sequences entries */
	qwen_batch batch;
	int32_t *tokens;
	int32_t *positions;
	int32_t *logit_rows;
	qwen_batch_seq *seqs;
	qwen_sequence **members; /* [batch.n_seqs] whose part seqs[i] is */
} qwen_scheduler;

bool qwen_scheduler_init(qwen_scheduler *s, int32_t max_sequences, int32_t step_tokens, int32_t kv_blocks);
/* Frees the scheduler and every sequence in it. */
void qwen_scheduler_destroy(qwen_scheduler *s);

/* Puts a prepared sequence into the list of its state. */
void qwen_scheduler_add(qwen_scheduler *s, qwen_sequence *seq);

/* The sequence with that id, in whatever state, or NULL. */
qwen_sequence *qwen_scheduler_find(const qwen_scheduler *s, uint64_t id);

/* Takes a sequence out of its list and gives its blocks back; the caller owns it again. */
void qwen_scheduler_remove(qwen_scheduler *s, qwen_sequence *seq);

/* A running sequence has its last token: its blocks are free at once, its answer is still to be sent. */
void qwen_scheduler_finish(qwen_scheduler *s, qwen_sequence *seq);

/* Admits what can be admitted and builds s->batch; false when there is nothing to compute. */
bool qwen_scheduler_build(qwen_scheduler *s);

bool qwen_scheduler_idle(const qwen_scheduler *s);
int32_t qwen_scheduler_waiting(const qwen_scheduler *s);

#endif
