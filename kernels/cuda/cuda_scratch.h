/*
 * cuda_scratch.h
 *	  How a GPU's scratch memory is divided.
 *
 * The planner counts these bytes before there is a device, the device finds
 * its parts by the same arithmetic: one definition for both.
 */
#ifndef QWEN_CUDA_SCRATCH_H
#define QWEN_CUDA_SCRATCH_H

#include "../kernels.h"

#define CUDA_ALIGN 256

/* What cuBLASLt may use, as NVIDIA recommends for Hopper. */
#define CUDA_BLAS_BYTES ((size_t) 32 << 20)
/* Quantised weights are widened in tiles of rows of about so many bytes. */
#define CUDA_TILE_BYTES ((size_t) 32 << 20)
/*
 * Attention of one token is split along the sequence in pieces of CUDA_SPLIT_TOKENS tokens, longer ones when there would
 * be more than CUDA_MAX_SPLITS: a function of the context alone.
 */
#define CUDA_SPLIT_TOKENS 256
#define CUDA_MAX_SPLITS 32

/* Offsets in bytes from dev->scratch, and the end. */
typedef struct cuda_scratch
{
	size_t blas;     /* [CUDA_BLAS_BYTES] */
	size_t tile;     /* [CUDA_TILE_BYTES], or one row of a matrix when that is longer */
	size_t partials; /* float [sequences, n_q, CUDA_MAX_SPLITS, dim + 2] */
	size_t batch;    /* of the step: cuda_batch.h */
	size_t bytes;
} cuda_scratch;

static inline size_t
cuda_align(size_t n)
{
	return (n + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;
}

/* Of each token: id, position, sequence. Of each sequence: first row, context, start of its blocks. Then the lists. */
static inline size_t
cuda_batch_bytes(const qwen_needs *n)
{
	size_t rows = (size_t) (n->rows > n->logit_rows ? n->rows : n->logit_rows), seqs = (size_t) n->sequences;

	/* two lists of work: a sequence that decodes is one item, a prompt one for each tile of rows */
	return cuda_align(sizeof(int32_t) *
					  (3 * rows + 4 * seqs + (size_t) n->blocks + (size_t) n->logit_rows + seqs + 4 * (rows + seqs)));
}

static inline cuda_scratch
cuda_scratch_of(const qwen_needs *n)
{
	size_t row = 2 * (size_t) (n->k > n->head_k ? n->k : n->head_k);
	cuda_scratch s;

	s.blas = 0;
	s.tile = s.blas + CUDA_BLAS_BYTES;
	s.partials = s.tile + cuda_align(row > CUDA_TILE_BYTES ? row : CUDA_TILE_BYTES);
	s.batch = s.partials + cuda_align(sizeof(float) * (size_t) n->sequences * (size_t) n->n_q * CUDA_MAX_SPLITS *
									  (size_t) (n->dim + 2));
	s.bytes = s.batch + cuda_batch_bytes(n);
	return s;
}

#endif
