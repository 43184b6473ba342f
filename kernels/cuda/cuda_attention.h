/*
 * cuda_attention.h
 *	  A launch of attention, and which kernel it takes.
 *
 * decode.cu and prefill.cu work on the matrix units, by the pieces of
 * cuda_tiles.h; attention.cu has a plain kernel for every other type and shape.
 */
#ifndef QWEN_CUDA_ATTENTION_H
#define QWEN_CUDA_ATTENTION_H

#include "cuda_device.h"
#include "cuda_kv.h"

/* Query heads of one kv head, of one or several tokens, that a block of a kernel works on together. */
#define QUERY_ROWS 16

typedef struct attention_job
{
	void *out;       /* [rows, n_q dim] */
	const void *qkv; /* [rows, (n_q + 2 n_kv) dim] */
	cuda_cache k, v;
	const cuda_tile *tiles;
	const cuda_seq *seqs;
	const int32_t *decode;
	const int32_t *blocks;
	float *partials; /* [decode, n_q, CUDA_MAX_SPLITS, 2 + dim] of a split: its largest score, sum, weighted values */
	int32_t n_q, n_kv, dim;
	int32_t group; /* query heads of a kv head */
	float scale;   /* log2(e) / sqrt(dim): scores are in units of log 2, for exp2 is a product less than exp */
} attention_job;

/* A query head of a row of qkv, as element number. */
static __device__ __forceinline__ int64_t
query_at(const attention_job &job, int64_t row, int32_t head)
{
	return (row * (job.n_q + 2 * job.n_kv) + head) * job.dim;
}

/* What a split of a decoding sequence found out for a query head: float [2 + dim]. */
static __device__ __forceinline__ float *
partial_at(const attention_job &job, int32_t item, int32_t head, int32_t split)
{
	return job.partials + (((int64_t) item * job.n_q + head) * CUDA_MAX_SPLITS + split) * (2 + job.dim);
}

/* On matrix units. cache: of its elements. */
void attention_decode_tiled(qwen_device *dev, const attention_job *job, qwen_dtype cache);
void attention_prefill_tiled(qwen_device *dev, const attention_job *job, qwen_dtype cache);
/* Splits of the decode list become its rows of out. */
void attention_merge(qwen_device *dev, const attention_job *job);

#endif
