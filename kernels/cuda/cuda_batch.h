/*
 * cuda_batch.h
 *	  A step's batch as the kernels see it.
 *
 * step() copies the engine's batch into pinned memory in the order of the
 * fields below and sends it in one piece; the arrays stand at the same place
 * in every step, so that recorded stretches find them.
 *
 * A batch in which every sequence has one token is a decode step.  Its rows
 * are filled up to the next bucket with rows of no sequence (row_seq -1,
 * token 0, position 0), so that a few recordings serve all sizes; kernels
 * leave such rows' cells and attention alone, and what products make of them
 * is never read.  In all operations of a step that take its number of tokens,
 * `rows` takes its place (cuda_rows).
 */
#ifndef QWEN_CUDA_BATCH_H
#define QWEN_CUDA_BATCH_H

#include <stdint.h>

#include "cuda_scratch.h"

/* A function for the host and for kernels. */
#ifdef __CUDACC__
#define CUDA_ANYWHERE __host__ __device__
#else
#define CUDA_ANYWHERE
#endif

/* Query rows of one item of prefill work. */
#define CUDA_TILE_ROWS 64

/* A sequence's part of the batch. */
typedef struct cuda_seq
{
	int32_t first_row;
	int32_t n_rows;
	int32_t context; /* with these rows; 0: no sequence */
	int32_t blocks;  /* where its block numbers start in the list */
} cuda_seq;

/* Rows [first, first + n) of a sequence, counted from its first row, n <= CUDA_TILE_ROWS. */
typedef struct cuda_tile
{
	int32_t seq;
	int32_t first;
	int32_t n;
	int32_t unused;
} cuda_tile;

typedef struct cuda_batch
{
	/* device memory, in this order in the batch part of scratch memory */
	cuda_tile *tiles;    /* [n_tiles] prefill work, longest context first */
	cuda_seq *seqs;      /* [n_seqs] */
	int32_t *decode;     /* [n_decode] sequences of one row; -1: none */
	int32_t *tokens;     /* [rows] */
	int32_t *positions;  /* [rows] */
	int32_t *row_seq;    /* [rows] the row's sequence; -1: none */
	int32_t *logit_rows; /* [n_logits] */
	int32_t *blocks;     /* block numbers of all sequences */

	/* on the host */
	const qwen_batch *engine; /* what the rest was made of: whose arrays the device has; NULL before the first step */
	int32_t n_tokens;         /* of the engine's batch */
	int32_t rows;             /* n_tokens, or its bucket */
	int32_t n_seqs;
	int32_t n_decode; /* in a decode step: rows */
	int32_t n_tiles;
	int32_t n_splits; /* the most that a sequence of the decode list has; in a decode step rounded up to a bucket */
	bool decode_step;
} cuda_batch;

/* ---- batch.cu ---- */

bool cuda_step(qwen_device *dev, const qwen_batch *batch);

/* Rows to compute where the engine says n: the step's when they are its tokens, n otherwise. */
int32_t cuda_rows(const qwen_device *dev, int32_t n);

/* Splits of a sequence of so many tokens: equal parts of whole blocks, the last one may have fewer. Also for kernels. */
CUDA_ANYWHERE static inline int32_t
cuda_splits(int32_t context)
{
	int32_t n = (context + CUDA_SPLIT_TOKENS - 1) / CUDA_SPLIT_TOKENS;

	return n < 1 ? 1 : n > CUDA_MAX_SPLITS ? CUDA_MAX_SPLITS : n;
}

/* The smallest bucket of decode rows that holds n, at most `most`. Pure. */
int32_t cuda_bucket(int32_t n, int32_t most);

#endif
