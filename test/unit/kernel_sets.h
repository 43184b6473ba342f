/*
 * kernel_sets.h
 *	  What the tests of kernels share: every set that this processor can run
 *	  against the oracle; sets that it lacks are named as skipped.
 *
 * Outputs are poisoned with NaN before each call and guarded behind their
 * end, so that an element left out or one too many is seen.
 */
#ifndef QWEN_KERNEL_SETS_H
#define QWEN_KERNEL_SETS_H

#include "unit.h"

#include <math.h>

#include "kernels/kernels.h"

#define GUARD 16

static qwen_device *ref;
static qwen_device *dev; /* the set under test */

/* ---- data ---- */

static uint32_t random_state;

static inline float
random_float(float range)
{
	random_state = random_state * 1664525u + 1013904223u;
	return ((float) (random_state >> 8) / 8388608.0f - 1.0f) * range;
}

static inline float *
random_array(size_t n, float range)
{
	float *x = malloc((n ? n : 1) * sizeof(float));

	assert_non_null(x);
	for (size_t i = 0; i < n; i++)
		x[i] = random_float(range);
	return x;
}

/* n floats of NaN and a guard of known values behind them. */
static inline float *
poisoned(size_t n)
{
	float *x = malloc((n + GUARD) * sizeof(float));

	assert_non_null(x);
	for (size_t i = 0; i < n; i++)
		x[i] = NAN;
	for (size_t i = 0; i < GUARD; i++)
		x[n + i] = 1234;
	return x;
}

static inline float *
copy_array(const float *x, size_t n)
{
	float *c = poisoned(n);

	memcpy(c, x, n * sizeof(float));
	return c;
}

static inline void
compare(const char *what, const float *want, const float *got, size_t n, float tolerance)
{
	for (size_t i = 0; i < n; i++)
		if (!(fabsf(want[i] - got[i]) <= tolerance * (1 + fabsf(want[i]))))
			fail_msg("%s, %s: element %zu of %zu is %g, not %g", dev->ops->name, what, i, n, (double) got[i],
					 (double) want[i]);
	for (size_t i = 0; i < GUARD; i++)
		if (got[n + i] != 1234)
			fail_msg("%s, %s: wrote beyond the end", dev->ops->name, what);
}

/* ---- one program, every set ---- */

static inline int
open_set(void **state)
{
	char why[128];

	random_state = 1;
	ref = qwen_device_open("cpu", "ref", 1, why, sizeof(why));
	dev = qwen_device_open("cpu", *state, 3, why, sizeof(why));
	return ref && dev ? 0 : -1;
}

static inline int
close_set(void **state)
{
	qwen_device_close(ref);
	qwen_device_close(dev);
	return 0;
}

/*
 * Stands in the report for all tests of a set that this processor lacks.  Not cmocka's skip(), which writes "not ok"
 * into TAP.
 */
static inline void
set_is_not_here(void **state)
{
	char why[128];

	assert_false(qwen_kernel_set_usable(*state, why, sizeof(why)));
	fprintf(stderr, "# SKIPPED: %s\n", why);
}

/* A test that runs on every set. */
typedef struct set_test
{
	const char *name;
	CMUnitTestFunction run;
} set_test;

#define MAX_TESTS 64

typedef struct test_list
{
	struct CMUnitTest tests[MAX_TESTS];
	char names[MAX_TESTS][96];
	size_t n;
} test_list;

static inline void
add_test(test_list *list, const char *set, const char *name, CMUnitTestFunction run, bool opens)
{
	snprintf(list->names[list->n], sizeof(list->names[0]), "%s: %s", set, name);
	list->tests[list->n] = (struct CMUnitTest){
		list->names[list->n], run, opens ? open_set : NULL, opens ? close_set : NULL, (void *) set,
	};
	list->n++;
}

/* Runs what stands in the list, then the tests on every set but the oracle. */
static inline int
run_sets(const char *group, test_list *list, const set_test *tests, size_t n_tests)
{
	char why[128];

	for (const char *const *set = qwen_kernel_sets(); *set; set++)
		if (!strcmp(*set, "ref"))
			continue;
		else if (!qwen_kernel_set_usable(*set, why, sizeof(why)))
			add_test(list, *set, "SKIPPED, not on this processor", set_is_not_here, false);
		else
			for (size_t i = 0; i < n_tests; i++)
				add_test(list, *set, tests[i].name, tests[i].run, true);
	return _cmocka_run_group_tests(group, list->tests, list->n, NULL, NULL);
}

#endif
