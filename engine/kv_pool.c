/*
 * kv_pool.c
 *	  The blocks of the paged KV cache. kv_pool.h has the states of a block.
 */
#include "kv_pool.h"

#include <stdlib.h>
#include <string.h>

#include "../kernels/kernels.h"

static void unlink_free(qwen_kv_pool *pool, int32_t block);
static void link_free(qwen_kv_pool *pool, int32_t block, bool reuse_first);
static void forget_name(qwen_kv_pool *pool, int32_t block);
static int32_t *bucket_of(const qwen_kv_pool *pool, uint64_t name);

bool
qwen_kv_pool_init(qwen_kv_pool *pool, int32_t n_blocks, const uint64_t key[2])
{
	*pool = (qwen_kv_pool){.n_blocks = n_blocks, .oldest = QWEN_NO_BLOCK, .newest = QWEN_NO_BLOCK, .n_buckets = 1};
	memcpy(pool->key, key, sizeof(pool->key));
	while (pool->n_buckets < n_blocks && pool->n_buckets < 1 << 30)
		pool->n_buckets *= 2;
	pool->blocks = calloc((size_t) n_blocks, sizeof(*pool->blocks));
	pool->buckets = malloc((size_t) pool->n_buckets * sizeof(*pool->buckets));
	if (!pool->blocks || !pool->buckets)
	{
		qwen_kv_pool_destroy(pool);
		return false;
	}
	for (int32_t i = 0; i < pool->n_buckets; i++)
		pool->buckets[i] = QWEN_NO_BLOCK;
	for (int32_t i = 0; i < n_blocks; i++)
		link_free(pool, i, false);
	return true;
}

void
qwen_kv_pool_destroy(qwen_kv_pool *pool)
{
	free(pool->blocks);
	free(pool->buckets);
	memset(pool, 0, sizeof(*pool));
}

/* ---- names ---- */

static inline uint64_t
rotate(uint64_t x, int n)
{
	return x << n | x >> (64 - n);
}

/* One SipRound (Aumasson and Bernstein, 2012). */
static inline void
sip_round(uint64_t v[4])
{
	v[0] += v[1];
	v[1] = rotate(v[1], 13) ^ v[0];
	v[0] = rotate(v[0], 32);
	v[2] += v[3];
	v[3] = rotate(v[3], 16) ^ v[2];
	v[0] += v[3];
	v[3] = rotate(v[3], 21) ^ v[0];
	v[2] += v[1];
	v[1] = rotate(v[1], 17) ^ v[2];
	v[2] = rotate(v[2], 32);
}

static inline void
sip_word(uint64_t v[4], uint64_t word)
{
	v[3] ^= word;
	sip_round(v);
	sip_round(v);
	v[0] ^= word;
}

uint64_t
qwen_kv_name(const uint64_t key[2], uint64_t before, const int32_t *tokens)
{
	uint64_t v[4] = {key[0] ^ 0x736f6d6570736575u, key[1] ^ 0x646f72616e646f6du, key[0] ^ 0x6c7967656e657261u,
					 key[1] ^ 0x7465646279746573u};
	uint64_t name;

	sip_word(v, before);
	for (int i = 0; i < QWEN_KV_BLOCK; i += 2)
		sip_word(v, (uint64_t) (uint32_t) tokens[i] | (uint64_t) (uint32_t) tokens[i + 1] << 32);
	sip_word(v, (uint64_t) (8 + 4 * QWEN_KV_BLOCK) << 56);
	v[2] ^= 0xff;
	for (int i = 0; i < 4; i++)
		sip_round(v);
	name = v[0] ^ v[1] ^ v[2] ^ v[3];
	return name ? name : 1;
}

static int32_t *
bucket_of(const qwen_kv_pool *pool, uint64_t name)
{
	return &pool->buckets[name & (uint64_t) (pool->n_buckets - 1)];
}

int32_t
qwen_kv_pool_find(const qwen_kv_pool *pool, uint64_t name)
{
	int32_t at = *bucket_of(pool, name);

	while (at != QWEN_NO_BLOCK && pool->blocks[at].name != name)
		at = pool->blocks[at].same_bucket;
	return at;
}

void
qwen_kv_pool_name(qwen_kv_pool *pool, int32_t block, uint64_t name)
{
	int32_t *bucket = bucket_of(pool, name);
	qwen_kv_block *b = &pool->blocks[block];

	if (qwen_kv_pool_find(pool, name) != QWEN_NO_BLOCK)
		return;
	b->name = name;
	b->ready = false;
	b->same_bucket = *bucket;
	*bucket = block;
}

void
qwen_kv_pool_mark_ready(qwen_kv_pool *pool, int32_t block)
{
	pool->blocks[block].ready = true;
}

static void
forget_name(qwen_kv_pool *pool, int32_t block)
{
	qwen_kv_block *b = &pool->blocks[block];
	int32_t *at;

	if (b->name == 0)
		return;
	at = bucket_of(pool, b->name);
	while (*at != block)
		at = &pool->blocks[*at].same_bucket;
	*at = b->same_bucket;
	b->name = 0;
	b->ready = false;
}

/* ---- users ---- */

int32_t
qwen_kv_pool_take(qwen_kv_pool *pool)
{
	int32_t block = pool->oldest;

	if (block == QWEN_NO_BLOCK)
		return QWEN_NO_BLOCK;
	unlink_free(pool, block);
	forget_name(pool, block);
	pool->blocks[block].users = 1;
	return block;
}

void
qwen_kv_pool_share(qwen_kv_pool *pool, int32_t block)
{
	if (pool->blocks[block].users++ == 0)
		unlink_free(pool, block);
}

void
qwen_kv_pool_give(qwen_kv_pool *pool, int32_t block)
{
	qwen_kv_block *b = &pool->blocks[block];

	if (--b->users > 0)
		return;
	/* What was never finished is of no use to anybody. */
	if (!b->ready)
		forget_name(pool, block);
	link_free(pool, block, b->name == 0);
}

/* ---- the free list ---- */

static void
unlink_free(qwen_kv_pool *pool, int32_t block)
{
	qwen_kv_block *b = &pool->blocks[block];

	if (b->previous == QWEN_NO_BLOCK)
		pool->oldest = b->next;
	else
		pool->blocks[b->previous].next = b->next;
	if (b->next == QWEN_NO_BLOCK)
		pool->newest = b->previous;
	else
		pool->blocks[b->next].previous = b->previous;
	pool->n_free--;
}

static void
link_free(qwen_kv_pool *pool, int32_t block, bool reuse_first)
{
	qwen_kv_block *b = &pool->blocks[block];

	b->previous = reuse_first ? QWEN_NO_BLOCK : pool->newest;
	b->next = reuse_first ? pool->oldest : QWEN_NO_BLOCK;
	if (b->previous == QWEN_NO_BLOCK)
		pool->oldest = block;
	else
		pool->blocks[b->previous].next = block;
	if (b->next == QWEN_NO_BLOCK)
		pool->newest = block;
	else
		pool->blocks[b->next].previous = block;
	pool->n_free++;
}
