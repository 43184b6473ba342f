/*
 * pool.c
 *	  The threads that one device's operations share.
 *
 * One run at a time.  A single word, `state`, holds the number of the job and
 * how many workers are inside it; odd numbers are open jobs:
 *
 *	  caller	job, next = 0, number + 1 (open) .. pieces .. number + 1 (closed) .. wait for 0 inside
 *	  worker	inside + 1, and if it was open and not seen: pieces; inside - 1
 *
 * What a worker found when it added itself decides whether it does pieces: of
 * a job that was open at that moment, whose fields stay as they are until the
 * last one has left.  An addition always succeeds, where many workers that
 * compare and swap make each other fail.  Nobody waits for a worker that has
 * not come: when the machine is busy with something else, the caller does the
 * pieces alone.
 *
 * Both sides wait by spinning for about the time between two operations of a
 * forward pass and then sleep on a futex: within a pass there is no system
 * call, and an idle engine burns nothing.  `sleepers` and `waiting` say
 * whether a wake-up is needed.  They are changed before the futex compares
 * the state and read after the state was changed (all sequentially
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

/*
 * state = number << INSIDE_BITS | workers inside.  The number may wrap: a job that a worker takes for seen is done by
 * others.
 */
#define INSIDE_BITS 12
#define INSIDE_MASK ((1u << INSIDE_BITS) - 1)
#define NEXT_NUMBER (1u << INSIDE_BITS)

struct qwen_pool
{
	int n_workers;
	pthread_t *threads; /* [n_workers] */

	/* the job: written by the caller while it is closed and nobody is inside */
	qwen_loop_fn fn;
	void *arg;
	int64_t n;
	int64_t grain;

	_Alignas(64) atomic_uint state;    /* both sides sleep on it */
	atomic_uint sleepers;              /* workers that sleep or are about to */
	atomic_uint waiting;               /* the caller sleeps or is about to */
	atomic_bool stop;                  /* workers are to end */
	_Alignas(64) _Atomic int64_t next; /* first item not handed out */
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

static bool
is_open(unsigned state)
{
	return state >> INSIDE_BITS & 1;
}

/* Whether a worker that was last in job `seen` has something to do. */
static bool
wanted(qwen_pool *pool, unsigned state, unsigned seen)
{
	return atomic_load(&pool->stop) || (is_open(state) && state >> INSIDE_BITS != seen);
}

/* Returns when there may be something to do. */
static void
wait_for_job(qwen_pool *pool, unsigned seen)
{
	unsigned now;

	for (int i = 0; i < SPINS; i++)
	{
		if (wanted(pool, atomic_load(&pool->state), seen))
			return;
		cpu_pause();
	}
	atomic_fetch_add(&pool->sleepers, 1);
	while (!wanted(pool, now = atomic_load(&pool->state), seen))
		futex_wait(&pool->state, now);
	atomic_fetch_sub(&pool->sleepers, 1);
}

static void *
worker_main(void *arg)
{
	qwen_pool *pool = arg;
	unsigned seen = 0;

	for (;;)
	{
		unsigned found;

		wait_for_job(pool, seen);
		if (atomic_load(&pool->stop))
			return NULL;
		found = atomic_fetch_add(&pool->state, 1);
		if (is_open(found) && found >> INSIDE_BITS != seen)
		{
			seen = found >> INSIDE_BITS;
			take_pieces(pool);
		}
		if ((atomic_fetch_sub(&pool->state, 1) & INSIDE_MASK) == 1 && atomic_load(&pool->waiting))
			futex_wake(&pool->state, INT_MAX);
	}
}

static void
wake_sleepers(qwen_pool *pool)
{
	if (atomic_load(&pool->sleepers))
		futex_wake(&pool->state, INT_MAX);
}

/* Waits until no worker is inside; the job is closed. */
static void
wait_for_workers(qwen_pool *pool)
{
	unsigned now;

	for (int i = 0; i < SPINS; i++)
	{
		if ((atomic_load(&pool->state) & INSIDE_MASK) == 0)
			return;
		cpu_pause();
	}
	atomic_store(&pool->waiting, 1);
	while (((now = atomic_load(&pool->state)) & INSIDE_MASK) != 0)
		futex_wait(&pool->state, now);
	atomic_store(&pool->waiting, 0);
}

void
qwen_pool_run(qwen_pool *pool, int64_t n, int64_t grain, qwen_loop_fn fn, void *arg)
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
	atomic_fetch_add(&pool->state, NEXT_NUMBER); /* opens the job */
	wake_sleepers(pool);
	take_pieces(pool);
	atomic_fetch_add(&pool->state, NEXT_NUMBER); /* closes it */
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
	atomic_store(&pool->stop, true);
	atomic_fetch_add(&pool->state,
					 2 * NEXT_NUMBER); /* another state, still closed: nobody falls asleep on the old one */
	futex_wake(&pool->state, INT_MAX);
	for (int i = 0; i < pool->n_workers; i++)
		pthread_join(pool->threads[i], NULL);
	free(pool->threads);
	free(pool);
}
