/*
 * pool.h
 *	  The threads that one device's operations share.
 */
#ifndef QWEN_POOL_H
#define QWEN_POOL_H

#include <stdint.h>

#include "../kernels.h"

typedef struct qwen_pool qwen_pool;

/* A pool of n_threads threads, the caller's among them; NULL when they cannot be had. */
qwen_pool *qwen_pool_new(int n_threads);
void qwen_pool_free(qwen_pool *pool);

/*
 * Runs fn over [0, n), handed out in pieces of `grain` items, and returns when all are done.  Which thread gets which
 * piece is a matter of chance, so an item's result must not depend on it.  Calls of fn may happen at the same time in
 * several threads.  One caller of run at a time.
 */
void qwen_pool_run(qwen_pool *pool, int64_t n, int64_t grain, qwen_loop_fn fn, void *arg);

#endif
