/*
 * test_kernels.c
 *	  Every set of kernels that this processor can run against the oracle,
 *	  operation by operation; attention has a file of its own.
 *
 * Odd sizes and tails are the rule.
 */
#include "kernel_sets.h"

/* A matrix of that type on a device, from the same 16-bit or float source on every device. */
static qwen_matrix
make_matrix(qwen_device *d, qwen_dtype dtype, int64_t n, int64_t k, const void *src)
{
	qwen_matrix m = {.dtype = d->ops->matrix_dtype(d, dtype), .n = n, .k = k};
	int64_t half = n / 2;

	m.bytes = d->ops->matrix_bytes(d, m.dtype, n, k);
	m.data = d->ops->alloc(d, m.bytes);
	assert_non_null(m.data);
	/* in two parts, as fused matrices come */
	if (half)
		assert_true(d->ops->matrix_upload(d, &m, 0, half, src, dtype));
	assert_true(d->ops->matrix_upload(d, &m, half, n - half,
									  (const char *) src + (size_t) (half * k) * qwen_dtype_bytes(dtype), dtype));
	return m;
}

static void
free_matrix(qwen_device *d, qwen_matrix *m)
{
	d->ops->free(d, m->data, m->bytes);
}

/* Random elements of a type: random bits would be mostly huge or tiny, so the exponent is kept near 1. */
static void *
random_source(qwen_dtype dtype, size_t n)
{
	uint16_t *half;

	if (dtype == QWEN_F32)
		return random_array(n, 1);
	half = malloc(n * sizeof(uint16_t));
	assert_non_null(half);
	for (size_t i = 0; i < n; i++)
	{
		uint16_t bits = (uint16_t) (int32_t) (random_float(1) * 32767);

		half[i] = dtype == QWEN_BF16 ? (uint16_t) (0x3f00 | (bits & 0x80ff)) : (uint16_t) (0x3800 | (bits & 0x87ff));
	}
	return half;
}

static const qwen_dtype all_dtypes[] = {QWEN_F32, QWEN_F16, QWEN_BF16};

/* ---- conversions ---- */

/* Every value of a 16-bit type survives the way to float and back, NaN apart. */
static void
round_trip(qwen_dtype dtype)
{
	uint16_t *half = malloc(65536 * sizeof(uint16_t));
	uint16_t *back;
	qwen_matrix wide, narrow = {.dtype = dtype, .n = 256, .k = 256};

	assert_non_null(half);
	for (int i = 0; i < 65536; i++)
		half[i] = (uint16_t) i;
	wide = make_matrix(ref, dtype, 256, 256, half);
	assert_int_equal(wide.dtype, QWEN_F32);
	narrow.bytes = dev->ops->matrix_bytes(dev, dtype, 256, 256);
	narrow.data = back = dev->ops->alloc(dev, narrow.bytes);
	assert_true(dev->ops->matrix_upload(dev, &narrow, 0, 256, wide.data, QWEN_F32));
	for (int i = 0; i < 65536; i++)
		if (!isnan(((float *) wide.data)[i]))
			assert_int_equal(back[i], i);
	free_matrix(dev, &narrow);
	free_matrix(ref, &wide);
	free(half);
}

static void
conversions_are_exact_and_round_to_even(void **state)
{
	static const struct
	{
		float value;
		uint16_t f16;
		uint16_t bf16;
	} cases[] = {
		{1, 0x3c00, 0x3f80},
		{-2, 0xc000, 0xc000},
		{65504, 0x7bff, 0x4780},
		{0x1p-24f, 0x0001, 0x3380},
		{0x1p-25f, 0x0000, 0x3300},
		{0x1.8p-24f, 0x0002, 0x33c0},
		{1 + 0x1p-11f, 0x3c00, 0x3f80},
		{1 + 0x3p-11f, 0x3c02, 0x3f80},
		{1 + 0x1p-8f, 0x3c04, 0x3f80},
		{1 + 0x3p-8f, 0x3c0c, 0x3f82},
		{0x1.ffcp-15f, 0x0400, 0x3880},
	};
	uint16_t out;
	qwen_matrix m = {.n = 1, .k = 1, .data = &out, .bytes = 2};
	const float huge = 1e6f;

	round_trip(QWEN_F16);
	round_trip(QWEN_BF16);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		m.dtype = QWEN_F16;
		assert_true(dev->ops->matrix_upload(dev, &m, 0, 1, &cases[i].value, QWEN_F32));
		assert_int_equal(out, cases[i].f16);
		m.dtype = QWEN_BF16;
		assert_true(dev->ops->matrix_upload(dev, &m, 0, 1, &cases[i].value, QWEN_F32));
		assert_int_equal(out, cases[i].bf16);
	}
	m.dtype = QWEN_F16; /* what does not fit is not stored silently */
	assert_false(dev->ops->matrix_upload(dev, &m, 0, 1, &huge, QWEN_F32));
}

/* ---- linear ---- */

static void
check_linear(qwen_dtype dtype, int64_t n, int64_t k, int32_t rows, bool with_bias)
{
	void *src = random_source(dtype, (size_t) (n * k));
	float *x = random_array((size_t) (rows * k), 1), *bias = random_array((size_t) n, 1);
	float *want = poisoned((size_t) (rows * n)), *got = poisoned((size_t) (rows * n));
	qwen_matrix a = make_matrix(ref, dtype, n, k, src), b = make_matrix(dev, dtype, n, k, src);
	char what[64];

	snprintf(what, sizeof(what), "linear %s [%d, %d] x %d", qwen_dtype_name(dtype), (int) n, (int) k, rows);
	ref->ops->linear(ref, want, &a, with_bias ? bias : NULL, x, rows);
	dev->ops->linear(dev, got, &b, with_bias ? bias : NULL, x, rows);
	compare(what, want, got, (size_t) (rows * n), 1e-6f * sqrtf((float) k));
	if (!with_bias)
	{
		free(got);
		got = poisoned((size_t) (rows * n));
		assert_true(dev->ops->logits(dev, got, &b, x, rows));
		compare(what, want, got, (size_t) (rows * n), 1e-6f * sqrtf((float) k));
	}
	free_matrix(ref, &a);
	free_matrix(dev, &b);
	free(src);
	free(x);
	free(bias);
	free(want);
	free(got);
}

static void
linear_agrees_on_odd_shapes(void **state)
{
	static const int64_t shapes[][2] = {{1, 1}, {3, 5}, {4, 16}, {5, 17}, {9, 31}, {33, 64}, {67, 129}, {130, 100}};

	for (size_t d = 0; d < 3; d++)
		for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
			for (int32_t rows = 1; rows <= 67; rows = rows < 9 ? rows + 1 : 2 * rows + 1)
				check_linear(all_dtypes[d], shapes[s][0], shapes[s][1], rows, rows % 2);
	for (int32_t rows = 60; rows <= 67; rows++) /* more rows than one block of activations holds */
		check_linear(QWEN_BF16, 13, 4099, rows, false);
}

/* A row's result has the same bits in batches of any size. */
static void
linear_does_not_depend_on_the_batch(void **state)
{
	static const int32_t batches[] = {1, 2, 3, 17, 64, 67};
	const int64_t n = 101, k = 2085;

	for (size_t d = 0; d < 3; d++)
	{
		void *src = random_source(all_dtypes[d], (size_t) (n * k));
		float *x = random_array((size_t) (67 * k), 1);
		float *all = poisoned((size_t) (67 * n));
		qwen_matrix w = make_matrix(dev, all_dtypes[d], n, k, src);

		dev->ops->linear(dev, all, &w, NULL, x, 67);
		for (size_t b = 0; b < sizeof(batches) / sizeof(batches[0]); b++)
			for (int32_t first = 0; first + batches[b] <= 67; first += 13)
			{
				float *some = poisoned((size_t) (batches[b] * n));

				dev->ops->linear(dev, some, &w, NULL, x + first * k, batches[b]);
				assert_memory_equal(some, all + first * n, (size_t) (batches[b] * n) * sizeof(float));
				free(some);
			}
		free_matrix(dev, &w);
		free(src);
		free(x);
		free(all);
	}
}

/* ---- rows ---- */

static void
lookups_agree(void **state)
{
	const int32_t ids[] = {4, 0, 6, 6, 2};

	for (size_t d = 0; d < 3; d++)
		for (int64_t h = 1; h <= 70; h = 2 * h + 1)
		{
			void *src = random_source(all_dtypes[d], (size_t) (7 * h));
			float *want = poisoned((size_t) (5 * h)), *got = poisoned((size_t) (5 * h));
			qwen_matrix a = make_matrix(ref, all_dtypes[d], 7, h, src);
			qwen_matrix b = make_matrix(dev, all_dtypes[d], 7, h, src);

			ref->ops->embed(ref, want, &a, ids, 5);
			dev->ops->embed(dev, got, &b, ids, 5);
			compare("embed", want, got, (size_t) (5 * h), 0);
			memset(got, 0xff, (size_t) (5 * h) * sizeof(float));
			dev->ops->gather(dev, got, a.data, ids, 5, h);
			compare("gather", want, got, (size_t) (5 * h), 0);
			free_matrix(ref, &a);
			free_matrix(dev, &b);
			free(src);
			free(want);
			free(got);
		}
}

static void
check_rmsnorm(int32_t n, int64_t h, bool with_delta)
{
	size_t size = (size_t) (n * h);
	float *resid = random_array(size, 3), *delta = random_array(size, 2), *w = random_array((size_t) h, 2);
	float *resid_want = copy_array(resid, size), *resid_got = copy_array(resid, size);
	float *want = poisoned(size), *got = poisoned(size);

	ref->ops->add_rmsnorm(ref, want, resid_want, with_delta ? delta : NULL, w, n, h, 1e-6f);
	dev->ops->add_rmsnorm(dev, got, resid_got, with_delta ? delta : NULL, w, n, h, 1e-6f);
	compare("rmsnorm", want, got, size, 2e-6f);
	compare("residual", resid_want, resid_got, size, 0);
	free(resid);
	free(delta);
	free(w);
	free(resid_want);
	free(resid_got);
	free(want);
	free(got);
}

static void
rmsnorm_agrees(void **state)
{
	for (int64_t h = 1; h <= 5120; h = 3 * h + 2)
		for (int32_t n = 1; n <= 67; n = 4 * n + 3)
		{
			check_rmsnorm(n, h, true);
			check_rmsnorm(n, h, false);
		}
}

static void
swiglu_agrees(void **state)
{
	for (int64_t f = 1; f <= 3000; f = 3 * f + 2)
		for (int32_t n = 1; n <= 67; n = 8 * n + 3)
		{
			float *x = random_array((size_t) (n * 2 * f), 12);
			float *want = poisoned((size_t) (n * f)), *got = poisoned((size_t) (n * f));

			x[0] = -200; /* exp would overflow */
			ref->ops->swiglu(ref, want, x, n, f);
			dev->ops->swiglu(dev, got, x, n, f);
			compare("swiglu", want, got, (size_t) (n * f), 2e-6f);
			free(x);
			free(want);
			free(got);
		}
}

/* ---- devices ---- */

static void
unknown_and_missing_sets_are_refused(void **state)
{
	char why[128];

	assert_null(qwen_device_open("cpu", "amx", 1, why, sizeof(why)));
	assert_string_equal(why, "kernels \"amx\" are not in this build");
	assert_null(qwen_device_open("cpu", "mmx", 1, why, sizeof(why)));
	assert_non_null(strstr(why, "no kernels \"mmx\""));
	assert_null(qwen_device_open("cuda:0", "auto", 1, why, sizeof(why)));
	assert_non_null(strstr(why, "cuda:0"));
	for (const char *const *set = qwen_kernel_sets(); *set; set++)
		if (!qwen_kernel_set_usable(*set, why, sizeof(why)))
		{
			assert_null(qwen_device_open("cpu", *set, 1, why, sizeof(why)));
			assert_non_null(strstr(why, *set));
		}
}

static void
auto_takes_the_best_usable_set(void **state)
{
	char why[128];
	const char *const *set = qwen_kernel_sets();
	qwen_device *d = qwen_device_open("cpu", "auto", 2, why, sizeof(why));

	assert_non_null(d);
	while (!qwen_kernel_set_usable(*set, why, sizeof(why)))
		set++;
	assert_string_equal(d->ops->name, *set);
	assert_int_equal(d->n_threads, 2);
	qwen_device_close(d);
}

static const set_test set_tests[] = {
	{"conversions are exact and round to even", conversions_are_exact_and_round_to_even},
	{"linear agrees on odd shapes", linear_agrees_on_odd_shapes},
	{"linear does not depend on the batch", linear_does_not_depend_on_the_batch},
	{"lookups agree", lookups_agree},
	{"rmsnorm agrees", rmsnorm_agrees},
	{"swiglu agrees", swiglu_agrees},
};

int
main(void)
{
	static test_list list;

	add_test(&list, "sets", "unknown and missing ones are refused", unknown_and_missing_sets_are_refused, false);
	add_test(&list, "sets", "auto takes the best usable one", auto_takes_the_best_usable_set, false);
	return run_sets("kernels", &list, set_tests, sizeof(set_tests) / sizeof(set_tests[0]));
}
