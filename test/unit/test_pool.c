/*
 * test_pool.c
 *	  The thread pool: every item once, no lost wake-up, silent when idle.
 */
#include "unit.h"

#include <dirent.h>
#include <stdatomic.h>
#include <time.h>

#include "kernels/cpu/pool.h"

#define ITEMS 1000

typedef struct counts
{
	atomic_int done[ITEMS];
	atomic_int largest; /* piece */
} counts;

static void
count_items(void *arg, int64_t begin, int64_t end)
{
	counts *c = arg;
	int size = (int) (end - begin);
	int seen = atomic_load(&c->largest);

	for (int64_t i = begin; i < end; i++)
		atomic_fetch_add(&c->done[i], 1);
	while (size > seen && !atomic_compare_exchange_weak(&c->largest, &seen, size))
		;
}

static void
every_item_is_done_once(void **state)
{
	static counts c;

	for (int threads = 1; threads <= 5; threads++)
	{
		qwen_pool *pool = qwen_pool_new(threads);

		assert_non_null(pool);
		for (int64_t n = 0; n <= ITEMS; n = 3 * n + 1)
			for (int64_t grain = 1; grain <= 64; grain *= 4)
			{
				memset(&c, 0, sizeof(c));
				qwen_pool_run(pool, n, grain, count_items, &c);
				for (int64_t i = 0; i < ITEMS; i++)
					assert_int_equal(c.done[i], i < n);
				assert_true(c.largest <= grain || threads == 1);
			}
		qwen_pool_free(pool);
	}
}

static void
add_items(void *arg, int64_t begin, int64_t end)
{
	atomic_fetch_add((atomic_llong *) arg, end - begin);
}

/* Runs that follow each other at once and runs that find the workers asleep. */
static void
no_wake_up_is_lost(void **state)
{
	qwen_pool *pool = qwen_pool_new(3);
	atomic_llong sum = 0;

	assert_non_null(pool);
	for (int i = 0; i < 20000; i++)
		qwen_pool_run(pool, 3, 1, add_items, &sum);
	for (int i = 0; i < 50; i++)
	{
		nanosleep(&(struct timespec){0, 1000000}, NULL); /* longer than workers spin */
		qwen_pool_run(pool, 3, 1, add_items, &sum);
	}
	assert_int_equal(sum, 3 * 20050);
	qwen_pool_free(pool);
}

static double
cpu_seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (double) ts.tv_sec + 1e-9 * (double) ts.tv_nsec;
}

/* Threads that spin would take 3 x 0.3 s of processor time. */
static void
idle_threads_sleep(void **state)
{
	qwen_pool *pool = qwen_pool_new(4);
	atomic_llong sum = 0;
	double before;

	assert_non_null(pool);
	qwen_pool_run(pool, 100, 1, add_items, &sum);
	before = cpu_seconds();
	nanosleep(&(struct timespec){0, 300000000}, NULL);
	assert_true(cpu_seconds() - before < 0.1);
	qwen_pool_free(pool);
}

/* Whether the thread's blocked signals, as the kernel shows them, have SIGTERM among them. */
static bool
blocks_sigterm(const char *task)
{
	char path[300], line[256];
	unsigned long long mask = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/task/%s/status", task);
	f = fopen(path, "r");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "SigBlk: %llx", &mask) == 1)
			break;
	fclose(f);
	return mask >> 14 & 1;
}

/* Threads of this process that block it: a sanitizer may run one of its own. */
static int
blocking_threads(void)
{
	DIR *tasks = opendir("/proc/self/task");
	struct dirent *e;
	int n = 0;

	assert_non_null(tasks);
	while ((e = readdir(tasks)) != NULL)
		n += e->d_name[0] != '.' && blocks_sigterm(e->d_name);
	closedir(tasks);
	return n;
}

static void
workers_take_no_signals(void **state)
{
	int before = blocking_threads();
	qwen_pool *pool = qwen_pool_new(4);

	assert_non_null(pool);
	assert_int_equal(blocking_threads(), before + 3);
	qwen_pool_free(pool);
}

static void
impossible_sizes_are_refused(void **state)
{
	assert_null(qwen_pool_new(0));
	assert_null(qwen_pool_new(-1));
	assert_null(qwen_pool_new(1 << 20));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_item_is_done_once),      cmocka_unit_test(no_wake_up_is_lost),
		cmocka_unit_test(idle_threads_sleep),           cmocka_unit_test(workers_take_no_signals),
		cmocka_unit_test(impossible_sizes_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
