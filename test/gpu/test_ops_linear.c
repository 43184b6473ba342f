/*
 * test_ops_linear.c
 *	  Products of a CUDA plug-in against the oracle, and against themselves.
 *
 * Quantised weights are float products of what the weights stand for; many
 * rows of them go through weights widened to the type of the activations,
 * whose rounding the tolerance knows.  Up to FEW_ROWS rows, a row has the same
 * bits however many stand beside it.
 */
#include "gpu_sets.h"

#define FEW_ROWS 16

/* Weights are of the activations' type, or quantised. */
static size_t
weight_types(qwen_dtype types[3])
{
	types[0] = act;
	types[1] = QWEN_INT8;
	types[2] = QWEN_INT4;
	return 3;
}

static bool
quantised(qwen_dtype dtype)
{
	return dtype == QWEN_INT8 || dtype == QWEN_INT4;
}

/* Weights of [n, k] that the source can hold; some groups are all zero. */
static float *
random_weights(qwen_dtype dtype, int64_t n, int64_t k)
{
	float *w = keep_random((size_t) (n * k), 1);

	for (int64_t i = 0; i < n * k; i++)
		if (k > QWEN_GROUP && i % k / QWEN_GROUP % 5 == 3)
			w[i] = 0;
	round_to(w, (size_t) (n * k), quantised(dtype) ? QWEN_BF16 : dtype);
	return w;
}

static qwen_matrix
weights_on(qwen_device *on, qwen_dtype dtype, int64_t n, int64_t k, const float *w)
{
	return device_matrix(on, dtype, n, k, w, quantised(dtype) ? QWEN_BF16 : dtype);
}

/*
 * Beside the rounding of the result: sums in another order, and for many rows the rounding of widened weights, each at
 * most half a last place of a weight up to 1 times an activation up to 1, of random sign.
 */
static float
tolerance_of(qwen_dtype dtype, int64_t k, int32_t rows)
{
	float sums = 2e-6f * sqrtf((float) k);

	return quantised(dtype) && rows > FEW_ROWS ? sums + unit_of(act) * sqrtf((float) k) : sums;
}

static void
check_linear(qwen_dtype dtype, int64_t n, int64_t k, int32_t rows, bool decode, bool with_bias)
{
	float *w = random_weights(dtype, n, k), *x = keep_activations((size_t) (rows * k), 1);
	float *bias = keep_random((size_t) n, 1), *want = keep_poisoned((size_t) (rows * n));
	qwen_matrix a = weights_on(ref, dtype, n, k, w), b = weights_on(dev, dtype, n, k, w);
	void *d_x = device_activations(dev, x, (size_t) (rows * k), room_for(rows, decode) * (size_t) k);
	void *d_out = device_bytes(dev, room_for(rows, decode) * (size_t) n * dev->act_bytes);
	const float *d_bias = with_bias ? device_floats(dev, bias, (size_t) n) : NULL;
	char what[96];

	snprintf(what, sizeof(what), "linear %s [%d, %d] x %d%s%s", qwen_dtype_name(dtype), (int) n, (int) k, rows,
			 decode ? ", decode" : "", with_bias ? ", bias" : "");
	announce(dev, rows, decode);
	dev->ops->linear(dev, d_out, &b, d_bias, d_x, rows);
	ref->ops->linear(ref, want, &a, with_bias ? bias : NULL, x, rows);
	compare(what, want, read_activations(dev, d_out, (size_t) (rows * n)), (size_t) (rows * n),
			unit_of(act) + tolerance_of(dtype, k, rows));
	end_check(what);
}

static void
products_agree_on_odd_shapes(void **state)
{
	static const int64_t shapes[][2] = {{1, 1},    {3, 5},   {4, 63},    {5, 64},    {9, 65},    {33, 34},
										{67, 129}, {40, 96}, {130, 200}, {13, 1000}, {257, 320}, {31, 513}};
	static const int32_t counts[] = {1, 2, 3, 5, 8, 9, 16, 17, 67};
	qwen_dtype types[3];
	size_t n_types = weight_types(types);

	for (size_t t = 0; t < n_types; t++)
		for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
			for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
				check_linear(types[t], shapes[s][0], shapes[s][1], counts[i], (i + s) % 2, (i + s) % 3);
}

/* Rows that fit in no block's shared memory, or in few. */
static void
products_agree_on_long_rows(void **state)
{
	static const int32_t counts[] = {1, 2, 4, 7, 12, 16, 33};
	qwen_dtype types[3];
	size_t n_types = weight_types(types);

	for (size_t t = 0; t < n_types; t++)
		for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
		{
			check_linear(types[t], 9, 8192, counts[i], i % 2, true);
			check_linear(types[t], 5, 6019, counts[i], true, false);
		}
}

/* More weights than are widened at a time. */
static void
products_agree_on_many_quantised_weights(void **state)
{
	if (act == QWEN_BF16)
		check_linear(QWEN_INT8, 2100, 8192, FEW_ROWS + 1, false, true);
}

/* ---- logits ---- */

/* Of `rows` rows, in a step of as many or of more. */
static void
check_logits(qwen_dtype dtype, int64_t n, int64_t k, int32_t rows, int32_t step_rows, bool decode)
{
	float *w = random_weights(dtype, n, k), *x = keep_activations((size_t) (rows * k), 1);
	float *want = keep_poisoned((size_t) (rows * n)), *got = keep_poisoned((size_t) (rows * n));
	qwen_matrix a = weights_on(ref, dtype, n, k, w), b = weights_on(dev, dtype, n, k, w);
	void *d_x = device_activations(dev, x, (size_t) (rows * k), (size_t) (rows * k));
	char what[96];

	snprintf(what, sizeof(what), "logits %s [%d, %d] x %d", qwen_dtype_name(dtype), (int) n, (int) k, rows);
	announce(dev, step_rows, decode);
	assert_true(dev->ops->logits(dev, got, &b, d_x, rows));
	assert_true(ref->ops->logits(ref, want, &a, x, rows));
	compare(what, want, got, (size_t) (rows * n), tolerance_of(dtype, k, rows));
	end_check(what);
}

static void
logits_agree(void **state)
{
	qwen_dtype types[3];
	size_t n_types = weight_types(types);

	for (size_t t = 0; t < n_types; t++)
	{
		check_logits(types[t], 512, 96, 1, 1, true);
		check_logits(types[t], 511, 130, 1, 67, false);
		check_logits(types[t], 301, 65, 5, 5, true);
		check_logits(types[t], 500, 128, 16, 40, false);
		check_logits(types[t], 83, 200, 17, 17, true);
		check_logits(types[t], 257, 33, 67, 67, false);
	}
}

/* ---- a row alone and among others ---- */

/* Rows [first, first + rows) of x give the bits that they gave among all. */
static void
check_part(const qwen_matrix *w, const float *x, const float *all, int32_t first, int32_t rows, bool decode)
{
	size_t size = (size_t) (rows * w->n);
	void *d_x =
		device_activations(dev, x + first * w->k, (size_t) (rows * w->k), room_for(rows, decode) * (size_t) w->k);
	void *d_out = device_bytes(dev, room_for(rows, decode) * (size_t) w->n * dev->act_bytes);

	announce(dev, rows, decode);
	dev->ops->linear(dev, d_out, w, NULL, d_x, rows);
	if (memcmp(read_activations(dev, d_out, size), all + first * w->n, size * sizeof(float)) != 0)
		fail_msg("linear %s [%d, %d]: rows %d to %d have other bits than among %d", qwen_dtype_name(w->dtype),
				 (int) w->n, (int) w->k, first, first + rows, FEW_ROWS);
}

static void
check_alone(qwen_dtype dtype, int64_t n, int64_t k)
{
	float *x = keep_activations((size_t) (FEW_ROWS * k), 1), *all;
	qwen_matrix w = weights_on(dev, dtype, n, k, random_weights(dtype, n, k));
	void *d_out = device_bytes(dev, (size_t) (FEW_ROWS * n) * dev->act_bytes);

	announce(dev, FEW_ROWS, false);
	dev->ops->linear(dev, d_out, &w, NULL, device_activations(dev, x, (size_t) (FEW_ROWS * k), (size_t) (FEW_ROWS * k)),
					 FEW_ROWS);
	all = read_activations(dev, d_out, (size_t) (FEW_ROWS * n));
	for (int32_t rows = 1; rows <= FEW_ROWS; rows++)
		for (int32_t first = 0; first + rows <= FEW_ROWS; first += 7)
			check_part(&w, x, all, first, rows, rows % 2);
	end_check("alone");
}

static void
a_row_has_the_same_bits_alone(void **state)
{
	qwen_dtype types[3];
	size_t n_types = weight_types(types);

	for (size_t t = 0; t < n_types; t++)
	{
		check_alone(types[t], 67, 1024);
		check_alone(types[t], 41, 1155);
	}
}

static const set_test tests[] = {
	{"products agree on odd shapes", products_agree_on_odd_shapes},
	{"products agree on long rows", products_agree_on_long_rows},
	{"products agree on many quantised weights", products_agree_on_many_quantised_weights},
	{"logits agree", logits_agree},
	{"a row has the same bits alone", a_row_has_the_same_bits_alone},
};

int
main(int argc, char **argv)
{
	return run_on_gpu(argc, argv, "linear", tests, sizeof(tests) / sizeof(tests[0]));
}
