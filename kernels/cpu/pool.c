/*
 * pool.c
 *	  The threads that one device's operations share.
 *
 * One run at a time.  The caller publishes the job and raises `generation`;
 * every worker joins, takes pieces from `next` until there are none, and
 * leaves by lowering `active`; the caller takes pieces too and then waits for
 * `active` to reach 0.  Nobody may touch the job after that, so the next run
 * can overwrite it.
 *
 *	  caller	job, next = 0, active = workers, generation++ ... active == 0
 *	  worker	generation != seen -> pieces -> active--
 *
 * Both sides wait by spinning for about the time between two operations of a
 * forward pass and then sleep on a futex: within a pass there is no system
 * call, and an idle engine burns nothing.  `sleepers` and `waiting` say
 * whether a wake-up is needed.  They are changed before the futex compares
 * its word and read after that word was changed (all sequentially
 * consistent), so no wake-up is lost.
 *
 * Workers block all signals: those belong to the program's own threads.
 */
#include "pool.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Looks at the word before going to sleep: some 20 to 50 microseconds. */
#define SPINS 1000
/* Room for the attention kernel's tiles, with plenty to spare. */
#define STACK_BYTES ((size_t) 1 << 20)
#define MAX_THREADS 1024

struct qwen_pool
{
	int n_workers;
	pthread_t *threads; /* [n_workers] */

	/* the job: written by the caller while active == 0, read by workers after they saw the generation */
	qwen_pool_fn fn;
	void *arg;
	int64_t n;
	int64_t grain;
	bool stop;

	_Alignas(64) atomic_uint generation; /* number of the job; workers sleep on it */
	atomic_uint sleepers;                /* workers that sleep or are about to */
	_Alignas(64) atomic_uint active;     /* workers still in the job; the caller sleeps on it */
	atomic_uint waiting;                 /* the caller sleeps or is about to */
	_Alignas(64) _Atomic int64_t next;   /* first item not handed out */
};

static inline void
cpu_pause(void)
{
	__builtin_ia32_pause();
}

static void
futex_wait(atomic_uint *word, unsigned expected)
{
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void
futex_wake(atomic_uint *word, int n)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static void
take_pieces(qwen_pool *pool)
{
	int64_t begin;

	while ((begin = atomic_fetch_add(&pool->next, pool->grain)) < pool->n)
		pool->fn(pool->arg, begin, begin + pool->grain < pool->n ? begin + pool->grain : pool->n);
}

/* Returns the new generation once it differs from seen. */
static unsigned
wait_for_job(qwen_pool *pool, unsigned seen)
{
	unsigned now;

	for (int i = 0; i < SPINS; i++)
	{
		if ((now = atomic_load(&pool->generation)) != seen)
			return now;
		cpu_pause();
	}
	atomic_fetch_add(&pool->sleepers, 1);
	while ((now = atomic_load(&pool->generation)) == seen)
		futex_wait(&pool->generation, seen);
	atomic_fetch_sub(&pool->sleepers, 1);
	return now;
}

static void *
worker_main(void *arg)
{
	qwen_pool *pool = arg;
	unsigned seen = 0;

	for (;;)
	{
		seen = wait_for_job(pool, seen);
		if (pool->stop)
			return NULL;
		take_pieces(pool);
		if (atomic_fetch_sub(&pool->active, 1) == 1 && atomic_load(&pool->waiting))
			futex_wake(&pool->active, 1);
	}
}

static void
publish_job(qwen_pool *pool)
{
	atomic_fetch_add(&pool->generation, 1);
	if (atomic_load(&pool->sleepers))
		futex_wake(&pool->generation, INT_MAX);
}

static void
wait_for_workers(qwen_pool *pool)
{
	unsigned left;

	for (int i = 0; i < SPINS; i++)
	{
		if (atomic_load(&pool->active) == 0)
			return;
		cpu_pause();
	}
	atomic_store(&pool->waiting, 1);
	while ((left = atomic_load(&pool->active)) != 0)
		futex_wait(&pool->active, left);
	atomic_store(&pool->waiting, 0);
}

void
qwen_pool_run(qwen_pool *pool, int64_t n, int64_t grain, qwen_pool_fn fn, void *arg)
{
	if (n <= 0)
		return;
	if (pool->n_workers == 0 || n <= grain)
	{
		fn(arg, 0, n);
		return;
	}
	pool->fn = fn;
	pool->arg = arg;
	pool->n = n;
	pool->grain = grain;
	atomic_store(&pool->next, 0);
	atomic_store(&pool->active, (unsigned) pool->n_workers);
	publish_job(pool);
	take_pieces(pool);
	wait_for_workers(pool);
}

/* Starts one worker with all signals blocked. */
static bool
start_worker(qwen_pool *pool, pthread_t *thread)
{
	sigset_t all, old;
	pthread_attr_t attr;
	int rc;

	if (pthread_attr_init(&attr) != 0)
		return false;
	sigfillset(&all);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	pthread_sigmask(SIG_SETMASK, &all, &old); /* a thread inherits its creator's mask */
	rc = pthread_create(thread, &attr, worker_main, pool);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	return rc == 0;
}

qwen_pool *
qwen_pool_new(int n_threads)
{
	qwen_pool *pool;

	if (n_threads < 1 || n_threads > MAX_THREADS || posix_memalign((void **) &pool, 64, sizeof(*pool)) != 0)
		return NULL;
	*pool = (qwen_pool){0};
	pool->threads = calloc((size_t) n_threads, sizeof(pthread_t));
	if (!pool->threads)
	{
		free(pool);
		return NULL;
	}
	for (int i = 1; i < n_threads; i++, pool->n_workers++)
		if (!start_worker(pool, &pool->threads[pool->n_workers]))
		{
			qwen_pool_free(pool);
			return NULL;
		}
	return pool;
}

void
qwen_pool_free(qwen_pool *pool)
{
	if (!pool)
		return;
	pool->stop = true;
	publish_job(pool);
	for (int i = 0; i < pool->n_workers; i++)
		pthread_join(pool->threads[i], NULL);
	free(pool->threads);
	free(pool);
}
