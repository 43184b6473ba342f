/*
 * kv_pool.h
 *	  Which blocks of the paged KV cache are free.  Bookkeeping only: the
 *	  memory itself belongs to the model.  One thread.
 */
#ifndef QWEN_KV_POOL_H
#define QWEN_KV_POOL_H

#include <stdbool.h>
#include <stdint.h>

typedef struct qwen_kv_pool
{
	int32_t *free; /* [n_blocks] a stack: free[0 .. n_free) */
	int32_t n_free;
	int32_t n_blocks;
} qwen_kv_pool;

bool qwen_kv_pool_init(qwen_kv_pool *pool, int32_t n_blocks);
void qwen_kv_pool_destroy(qwen_kv_pool *pool);

/* Takes n blocks into out[n], or none and false. */
bool qwen_kv_pool_take(qwen_kv_pool *pool, int32_t n, int32_t *out);
void qwen_kv_pool_give(qwen_kv_pool *pool, int32_t n, const int32_t *blocks);

#endif
