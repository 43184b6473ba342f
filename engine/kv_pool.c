/*
 * kv_pool.c
 *	  Which blocks of the paged KV cache are free: a stack of block numbers.
 */
#include "kv_pool.h"

#include <stdlib.h>
#include <string.h>

bool
qwen_kv_pool_init(qwen_kv_pool *pool, int32_t n_blocks)
{
	pool->free = malloc((size_t) n_blocks * sizeof(int32_t));
	if (!pool->free)
		return false;
	pool->n_blocks = pool->n_free = n_blocks;
	for (int32_t i = 0; i < n_blocks; i++)
		pool->free[i] = n_blocks - 1 - i;
	return true;
}

void
qwen_kv_pool_destroy(qwen_kv_pool *pool)
{
	free(pool->free);
	memset(pool, 0, sizeof(*pool));
}

bool
qwen_kv_pool_take(qwen_kv_pool *pool, int32_t n, int32_t *out)
{
	if (n > pool->n_free)
		return false;
	for (int32_t i = 0; i < n; i++)
		out[i] = pool->free[--pool->n_free];
	return true;
}

void
qwen_kv_pool_give(qwen_kv_pool *pool, int32_t n, const int32_t *blocks)
{
	for (int32_t i = n - 1; i >= 0; i--)
		pool->free[pool->n_free++] = blocks[i];
}
