/*
 * kv_pool.h
 *	  The blocks of the paged KV cache: which are in use, and what the others
 *	  still hold.  Bookkeeping only: the memory belongs to the model.  One
 *	  thread.
 *
 * Prefix cache.  A full block is named by a chained hash: of its own tokens
 * and of the name of the block before it, so a name stands for the whole
 * text up to there, and blocks with one name hold the same keys and values.
 * A block that nobody uses keeps its content and its name until the memory
 * is needed; the one that was given back first is reused first.
 *
 *	  free, no name <--- take, give ---> used, no name
 *							| name (its content is being computed)
 *							v
 *						used, named, pending --- mark_ready ---> used, named, ready
 *							| give								   | give   ^ share
 *							v									   v		|
 *						free, no name <---- take (oldest) ---- free, named, ready
 *
 * Sharing a block that is pending is not possible: whoever wants it waits for
 * the sequence that computes it.
 */
#ifndef QWEN_KV_POOL_H
#define QWEN_KV_POOL_H

#include <stdbool.h>
#include <stdint.h>

#define QWEN_NO_BLOCK (-1)

typedef struct qwen_kv_block
{
	uint64_t name;    /* 0: none */
	int32_t users;    /* sequences that have it in their tables; 0: it is in the free list */
	bool ready;       /* all its cells are computed (named blocks) */
	int32_t previous; /* in the free list */
	int32_t next;
	int32_t same_bucket; /* next block whose name falls into the same bucket */
} qwen_kv_block;

typedef struct qwen_kv_pool
{
	qwen_kv_block *blocks; /* [n_blocks] */
	int32_t n_blocks;
	int32_t n_free;
	int32_t oldest;    /* free list: taken from here, */
	int32_t newest;    /* given back here (nameless ones at the old end) */
	int32_t *buckets;  /* [n_buckets] first block of each, or QWEN_NO_BLOCK */
	int32_t n_buckets; /* a power of two */
	uint64_t key[2];   /* of the hash: names cannot be forged without it */
} qwen_kv_pool;

bool qwen_kv_pool_init(qwen_kv_pool *pool, int32_t n_blocks, const uint64_t key[2]);
void qwen_kv_pool_destroy(qwen_kv_pool *pool);

/*
 * The name of a block that holds tokens[QWEN_KV_BLOCK] behind the block called `before` (0: it is the first), never 0.
 * SipHash-2-4 of (before, tokens).
 */
uint64_t qwen_kv_name(const uint64_t key[2], uint64_t before, const int32_t *tokens);

/* A block for one user, nameless; QWEN_NO_BLOCK when all are in use. */
int32_t qwen_kv_pool_take(qwen_kv_pool *pool);

/* One user less. */
void qwen_kv_pool_give(qwen_kv_pool *pool, int32_t block);

/* The block with that name, pending or ready, or QWEN_NO_BLOCK. */
int32_t qwen_kv_pool_find(const qwen_kv_pool *pool, uint64_t name);

/* One user more of a ready block. */
void qwen_kv_pool_share(qwen_kv_pool *pool, int32_t block);

/* Names a used, nameless block, unless another one has that name already. */
void qwen_kv_pool_name(qwen_kv_pool *pool, int32_t block, uint64_t name);

/* The cells of a used block are all computed. */
void qwen_kv_pool_mark_ready(qwen_kv_pool *pool, int32_t block);

#endif
