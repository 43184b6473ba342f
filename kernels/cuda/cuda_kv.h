/*
 * cuda_kv.h
 *	  The paged cache as the kernels read it, and the parts of a long sequence.
 *
 * A block holds QWEN_KV_BLOCK tokens of one layer's keys, or of its values:
 *
 *	  cells [n_kv][QWEN_KV_BLOCK][dim]	and, of int8, scales float [n_kv][QWEN_KV_BLOCK] behind them
 *
 * What one kv head keeps of a block is one piece of memory, 4 KiB for 128
 * elements of 16 bits: a thread block of attention works for one kv head, and
 * such a piece is what it asks the memory for.  The scales stand apart so that
 * cells stay on borders of 16 bytes.
 */
#ifndef QWEN_CUDA_KV_H
#define QWEN_CUDA_KV_H

#include "cuda_batch.h"
#include "cuda_math.h"

/* Where one layer's keys, or its values, are. */
typedef struct cuda_cache
{
	unsigned char *data;
	int64_t block_bytes;
	int32_t n_kv, dim;
} cuda_cache;

/* Bytes of one block. */
static inline int64_t
cache_block_bytes(const qwen_heads *heads, qwen_dtype dtype)
{
	int64_t head = dtype == QWEN_INT8 ? heads->dim + (int64_t) sizeof(float)
									  : heads->dim * (int64_t) (dtype == QWEN_F32 ? sizeof(float) : sizeof(uint16_t));

	return heads->n_kv * QWEN_KV_BLOCK * head;
}

/* data: the keys or the values of a layer. */
static inline cuda_cache
cache_of(void *data, qwen_dtype dtype, const qwen_heads *heads)
{
	return {static_cast<unsigned char *>(data), cache_block_bytes(heads, dtype), heads->n_kv, heads->dim};
}

/* The elements of kv head g in a cell of a block: [dim], those of the next cell behind them. */
template <typename C>
static __device__ __forceinline__ C *
cache_cell(const cuda_cache &cache, int64_t block, int32_t g, int32_t cell)
{
	return reinterpret_cast<C *>(cache.data + block * cache.block_bytes) +
		   ((int64_t) g * QWEN_KV_BLOCK + cell) * cache.dim;
}

/* The scale of an int8 cell, those of the next cells behind it. */
static __device__ __forceinline__ float *
cache_scale(const cuda_cache &cache, int64_t block, int32_t g, int32_t cell)
{
	unsigned char *scales = cache.data + block * cache.block_bytes + (int64_t) cache.n_kv * QWEN_KV_BLOCK * cache.dim;

	return reinterpret_cast<float *>(scales) + g * QWEN_KV_BLOCK + cell;
}

/* ---- splits: equal parts of whole blocks; a function of the context alone ---- */

static __device__ __forceinline__ int32_t
context_blocks(int32_t context)
{
	return (context + QWEN_KV_BLOCK - 1) / QWEN_KV_BLOCK;
}

/* Blocks of each part but the last. */
static __device__ __forceinline__ int32_t
split_blocks(int32_t context)
{
	int32_t n = cuda_splits(context);

	return (context_blocks(context) + n - 1) / n;
}

/* Parts that have any block: rounding up can leave the last ones of cuda_splits without. */
static __device__ __forceinline__ int32_t
split_count(int32_t context)
{
	int32_t each = split_blocks(context);

	return (context_blocks(context) + each - 1) / each;
}

#endif
