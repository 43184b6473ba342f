/*
 * test_kernels.c
 *	  Every set of kernels that this processor can run against the oracle,
 *	  operation by operation; attention has a file of its own.
 *
 * Odd sizes and tails are the rule.
 */
#include "kernel_sets.h"

#include "kernels/cpu/cpu_layout.h"
#include "kernels/quant.h"

/* A matrix of type `dtype` on a device, from src[n, k] of type `source`, in parts of `step` rows. */
static qwen_matrix
store_matrix(qwen_device *d, qwen_dtype dtype, int64_t n, int64_t k, const void *src, qwen_dtype source, int64_t step)
{
	qwen_matrix m = {.dtype = d->ops->matrix_dtype(d, dtype), .n = n, .k = k};

	m.bytes = d->ops->matrix_bytes(d, m.dtype, n, k);
	m.data = d->ops->alloc(d, m.bytes);
	assert_non_null(m.data);
	for (int64_t row = 0; row < n; row += step)
		assert_true(d->ops->matrix_upload(d, &m, row, row + step < n ? step : n - row,
										  (const char *) src + (size_t) (row * k) * qwen_dtype_bytes(source), source));
	return m;
}

/* The type of a source from which a matrix of that type is made. */
static qwen_dtype
source_of(qwen_dtype dtype)
{
	return dtype == QWEN_INT8 || dtype == QWEN_INT4 ? QWEN_BF16 : dtype;
}

/* From a source that loses nothing, or bfloat16; in two parts, as fused matrices come. */
static qwen_matrix
make_matrix(qwen_device *d, qwen_dtype dtype, int64_t n, int64_t k, const void *src)
{
	return store_matrix(d, dtype, n, k, src, source_of(dtype), (n + 1) / 2);
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

static const qwen_dtype all_dtypes[] = {QWEN_F32, QWEN_F16, QWEN_BF16, QWEN_INT8, QWEN_INT4};
#define N_DTYPES (sizeof(all_dtypes) / sizeof(all_dtypes[0]))
#define N_FLOATS 3 /* of them */

/* A product on a device, with as much scratch memory as it asks for. */
static void
product(qwen_device *d, float *out, const qwen_matrix *w, const float *bias, const float *x, int32_t rows)
{
	size_t bytes = d->ops->scratch_bytes(d, &(qwen_needs){.rows = rows, .k = w->k});

	d->scratch = bytes ? d->ops->alloc(d, bytes) : NULL;
	if (bias)
		d->ops->linear(d, out, w, bias, x, rows);
	else
		assert_true(d->ops->logits(d, out, w, x, rows));
	d->ops->free(d, d->scratch, bytes);
	d->scratch = NULL;
}

/* ---- conversions ---- */

/* Every value of a 16-bit type survives the way to float, into a matrix and back, NaN apart. */
static void
round_trip(qwen_dtype dtype)
{
	uint16_t *half = malloc(65536 * sizeof(uint16_t));
	float *wide = poisoned(65536), *back = poisoned(65536);
	int32_t ids[256];
	qwen_matrix a, b;

	assert_non_null(half);
	for (int i = 0; i < 65536; i++)
		half[i] = (uint16_t) i;
	for (int i = 0; i < 256; i++)
		ids[i] = i;
	a = make_matrix(ref, dtype, 256, 256, half);
	assert_int_equal(a.dtype, QWEN_F32);
	ref->ops->embed(ref, wide, &a, ids, 256);
	b = store_matrix(dev, dtype, 256, 256, wide, QWEN_F32, 256);
	assert_int_equal(b.dtype, dtype);
	dev->ops->embed(dev, back, &b, ids, 256);
	for (int i = 0; i < 65536; i++)
		if (!isnan(wide[i]) && memcmp(&wide[i], &back[i], sizeof(float)) != 0)
			fail_msg("%s: %04x came back as %g", dev->ops->name, i, (double) back[i]);
	free_matrix(ref, &a);
	free_matrix(dev, &b);
	free(half);
	free(wide);
	free(back);
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
	qwen_matrix m = {.dtype = QWEN_F16, .n = 1, .k = 1};
	uint16_t *first; /* element of a matrix: where every set keeps it */
	const float huge = 1e6f;

	m.bytes = dev->ops->matrix_bytes(dev, QWEN_BF16, 1, 1);
	first = m.data = dev->ops->alloc(dev, m.bytes);

	round_trip(QWEN_F16);
	round_trip(QWEN_BF16);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		m.dtype = QWEN_F16;
		assert_true(dev->ops->matrix_upload(dev, &m, 0, 1, &cases[i].value, QWEN_F32));
		assert_int_equal(*first, cases[i].f16);
		m.dtype = QWEN_BF16;
		assert_true(dev->ops->matrix_upload(dev, &m, 0, 1, &cases[i].value, QWEN_F32));
		assert_int_equal(*first, cases[i].bf16);
	}
	m.dtype = QWEN_F16; /* what does not fit is not stored silently */
	assert_false(dev->ops->matrix_upload(dev, &m, 0, 1, &huge, QWEN_F32));
	free_matrix(dev, &m);
}

/* ---- packing ---- */

/* Packs one element, not quantised or as q, at its place in a strip: kernels/cpu/cpu_layout.h, line by line. */
static void
pack_element(char *strip, qwen_dtype dtype, int64_t r, int64_t i, uint32_t bits)
{
	switch (dtype)
	{
		case QWEN_F32:
			((uint32_t *) strip)[i * 16 + r] = bits;
			break;
		case QWEN_F16:
			((uint16_t *) strip)[i * 16 + r] = (uint16_t) bits;
			break;
		case QWEN_BF16:
			((uint16_t *) strip)[i / 2 * 32 + r * 2 + i % 2] = (uint16_t) bits;
			break;
		case QWEN_INT8:
			((uint8_t *) strip)[i / 4 * 64 + r * 4 + i % 4] = (uint8_t) bits;
			break;
		case QWEN_INT4:
			((uint8_t *) strip)[i / 8 * 64 + r * 4 + i % 4] |= (uint8_t) (bits << (i % 8 < 4 ? 0 : 4));
			break;
	}
}

/* A group of a row, quantised by the scalar definition. */
static void
pack_group(char *strip, qwen_dtype dtype, int64_t k, int64_t r, int64_t first, const float *w)
{
	int n = k - first < QWEN_GROUP ? (int) (k - first) : QWEN_GROUP;
	int64_t groups = (k + QWEN_GROUP - 1) / QWEN_GROUP, g = first / QWEN_GROUP;
	uint16_t *scales = (uint16_t *) (strip + groups * QWEN_GROUP * 16 / (dtype == QWEN_INT8 ? 1 : 2));
	uint8_t q[QWEN_GROUP];

	if (dtype == QWEN_INT8)
		scales[g * 16 + r] = qwen_quantize_int8(w, n, (int8_t *) q);
	else
		scales[g * 32 + r] = qwen_quantize_int4(w, n, q, &scales[g * 32 + 16 + r]);
	for (int i = 0; i < n; i++)
		pack_element(strip, dtype, r, first + i, q[i]);
}

static void
pack_row(char *strip, qwen_dtype dtype, int64_t k, int64_t r, const float *w)
{
	for (int64_t i = 0; i < k; i++)
		if (dtype == QWEN_F32)
			pack_element(strip, dtype, r, i, qwen_float_bits(w[i]));
		else if (dtype == QWEN_F16)
			pack_element(strip, dtype, r, i, qwen_float_f16(w[i]));
		else if (dtype == QWEN_BF16)
			pack_element(strip, dtype, r, i, qwen_float_bf16(w[i]));
		else if (i % QWEN_GROUP == 0)
			pack_group(strip, dtype, k, r, i, w + i);
}

/* Groups that are all zero, that have one value, zeros of both signs, and one far from the others. */
static void
make_groups_peculiar(float *w, int64_t n, int64_t k)
{
	for (int64_t i = 0; i < n; i++)
		for (int64_t g = 0; g < k; g++)
			if (g / QWEN_GROUP % 7 == 1)
				w[i * k + g] = 0;
			else if (g / QWEN_GROUP % 7 == 2)
				w[i * k + g] = 0.375f;
			else if (g / QWEN_GROUP % 7 == 3)
				w[i * k + g] = (i + g) % 3 ? 0.0f : -0.0f;
			else if (g / QWEN_GROUP % 7 == 4 && g % QWEN_GROUP == i % QWEN_GROUP)
				w[i * k + g] *= 1e6f;
}

static void
check_packing(qwen_dtype dtype, qwen_dtype source, int64_t n, int64_t k, int64_t step)
{
	float *w = random_array((size_t) (n * k), 1);
	uint16_t *halfs = malloc((size_t) (n * k) * sizeof(uint16_t));
	size_t strip = strip_bytes(dtype, k);
	qwen_matrix m;
	char *want;

	assert_non_null(halfs);
	if (dtype != QWEN_F16)
		make_groups_peculiar(w, n, k);
	for (int64_t i = 0; source == QWEN_BF16 && i < n * k; i++)
		w[i] = qwen_bf16_float(halfs[i] = qwen_float_bf16(w[i]));
	for (int64_t i = 0; source == QWEN_F16 && i < n * k; i++)
		w[i] = qwen_f16_float(halfs[i] = qwen_float_f16(fminf(w[i], 60000)));
	m = store_matrix(dev, dtype, n, k, source == QWEN_F32 ? (void *) w : (void *) halfs, source, step);
	want = calloc(1, m.bytes);
	assert_non_null(want);
	for (int64_t i = 0; i < n; i++)
		pack_row(want + (size_t) (i / 16) * strip, dtype, k, i % 16, w + i * k);
	for (size_t i = 0; i < m.bytes; i++)
		if (((char *) m.data)[i] != want[i])
			fail_msg("%s: %s from %s [%d, %d] by %d: byte %zu differs", dev->ops->name, qwen_dtype_name(dtype),
					 qwen_dtype_name(source), (int) n, (int) k, (int) step, i);
	free_matrix(dev, &m);
	free(w);
	free(halfs);
	free(want);
}

static void
packing_follows_the_definition(void **state)
{
	static const int64_t shapes[][3] = {
		{1, 1, 1},     {3, 5, 2},      {16, 64, 16},  {17, 63, 17}, {33, 65, 20}, {32, 127, 5},
		{48, 512, 48}, {31, 1024, 31}, {70, 130, 70}, {64, 34, 32}, {16, 66, 16}, {20, 450, 20},
	};

	for (size_t d = 0; d < N_DTYPES; d++)
		for (size_t source = 0; source < N_FLOATS; source++)
			for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
				check_packing(all_dtypes[d], all_dtypes[source], shapes[s][0], shapes[s][1], shapes[s][2]);
}

/* ---- linear ---- */

/*
 * Against the oracle.  Activations are bfloat16 where the weights are, since some sets round them so, and then nothing
 * is lost.
 */
static void
check_linear(qwen_dtype dtype, int64_t n, int64_t k, int32_t rows, bool with_bias)
{
	void *src = random_source(dtype, (size_t) (n * k));
	float *x = random_array((size_t) (rows * k), 1), *bias = random_array((size_t) n, 1);
	float *want = poisoned((size_t) (rows * n)), *got = poisoned((size_t) (rows * n));
	qwen_matrix a = make_matrix(ref, dtype, n, k, src), b = make_matrix(dev, dtype, n, k, src);
	char what[64];

	for (int64_t i = 0; dtype == QWEN_BF16 && i < rows * k; i++)
		x[i] = qwen_bf16_float(qwen_float_bf16(x[i]));
	snprintf(what, sizeof(what), "linear %s [%d, %d] x %d", qwen_dtype_name(dtype), (int) n, (int) k, rows);
	product(ref, want, &a, with_bias ? bias : NULL, x, rows);
	product(dev, got, &b, with_bias ? bias : NULL, x, rows);
	compare(what, want, got, (size_t) (rows * n), 1e-6f * sqrtf((float) k));
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

	for (size_t d = 0; d < N_FLOATS; d++)
		for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
			for (int32_t rows = 1; rows <= 67; rows = rows < 9 ? rows + 1 : 2 * rows + 1)
				check_linear(all_dtypes[d], shapes[s][0], shapes[s][1], rows, rows % 2);
	for (size_t d = 0; d < N_FLOATS; d++) /* more columns than one block holds */
		for (int32_t rows = 1; rows <= 67; rows += 22)
			check_linear(all_dtypes[d], 13, 6019, rows, rows % 2);
}

/* What quant.h says of a group: its sum is exact, then scaled and added to what was before it. */
static float
add_group(float sum, const float *w, const float *x, int n, qwen_dtype dtype)
{
	int8_t q[QWEN_GROUP], qx[QWEN_GROUP];
	uint8_t q4[QWEN_GROUP];
	uint16_t m = 0;
	float d = qwen_bf16_float(dtype == QWEN_INT8 ? qwen_quantize_int8(w, n, q) : qwen_quantize_int4(w, n, q4, &m));
	float s = qwen_quantize_row(x, n, qx);
	int32_t products = 0, inputs = 0;

	for (int i = 0; i < n; i++)
	{
		products += (dtype == QWEN_INT8 ? q[i] : q4[i]) * qx[i];
		inputs += qx[i];
	}
	if (dtype == QWEN_INT4)
		sum = fmaf(qwen_bf16_float(m), s * (float) inputs, sum);
	return fmaf((float) products, d * s, sum);
}

/* The same bits in every set that has a fused multiply-add. */
static void
check_quantized_linear(qwen_dtype dtype, int64_t n, int64_t k, int32_t rows, bool with_bias)
{
	float *w = random_array((size_t) (n * k), 1), *x = random_array((size_t) (rows * k), 1);
	float *bias = random_array((size_t) n, 1);
	float *want = poisoned((size_t) (rows * n)), *got = poisoned((size_t) (rows * n));
	qwen_matrix m = store_matrix(dev, dtype, n, k, w, QWEN_F32, n);

	for (int64_t t = 0; t < rows; t++)
		for (int64_t j = 0; j < n; j++)
		{
			float sum = 0;

			for (int64_t i = 0; i < k; i += QWEN_GROUP)
				sum = add_group(sum, w + j * k + i, x + t * k + i, k - i < QWEN_GROUP ? (int) (k - i) : QWEN_GROUP,
								dtype);
			want[t * n + j] = with_bias ? sum + bias[j] : sum;
		}
	product(dev, got, &m, with_bias ? bias : NULL, x, rows);
	compare(qwen_dtype_name(dtype), want, got, (size_t) (rows * n), !strcmp(dev->ops->name, "portable") ? 1e-5f : 0);
	free_matrix(dev, &m);
	free(w);
	free(x);
	free(bias);
	free(want);
	free(got);
}

static void
quantized_linear_follows_the_definition(void **state)
{
	static const int64_t shapes[][2] = {{1, 1}, {3, 5}, {5, 63}, {16, 64}, {33, 65}, {67, 129}, {130, 100}, {70, 512}};

	for (size_t d = N_FLOATS; d < N_DTYPES; d++)
	{
		for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
			for (int32_t rows = 1; rows <= 40; rows = rows < 9 ? rows + 1 : 2 * rows + 1)
				check_quantized_linear(all_dtypes[d], shapes[s][0], shapes[s][1], rows, rows % 2);
		for (int32_t rows = 1; rows <= 15; rows += 7)
			check_quantized_linear(all_dtypes[d], 5, 17000, rows, false); /* more columns than one block holds */
	}
}

/* Rows [first, first + rows) of the batch of 67 on a device give the bits that they gave among all. */
static void
check_part(qwen_device *d, const qwen_matrix *w, const float *x, const float *all, int32_t first, int32_t rows)
{
	float *some = poisoned((size_t) (rows * w->n));

	product(d, some, w, NULL, x + first * w->k, rows);
	assert_memory_equal(some, all + first * w->n, (size_t) (rows * w->n) * sizeof(float));
	free(some);
}

/* A row's result has the same bits in batches of any size, on any number of threads. */
static void
linear_does_not_depend_on_batch_and_threads(void **state)
{
	static const int32_t batches[] = {1, 2, 3, 17, 64, 67};
	const int64_t n = 301, k = 5155;
	char why[128];

	for (size_t t = 0; t < N_DTYPES; t++)
	{
		void *src = random_source(source_of(all_dtypes[t]), (size_t) (n * k));
		float *x = random_array((size_t) (67 * k), 1);
		float *all = poisoned((size_t) (67 * n));
		qwen_matrix w = make_matrix(dev, all_dtypes[t], n, k, src);

		product(dev, all, &w, NULL, x, 67);
		for (int threads = 1; threads <= 3; threads++)
		{
			qwen_device *d = qwen_device_open("cpu", dev->ops->name, threads, why, sizeof(why));

			assert_non_null(d);
			for (size_t b = 0; b < sizeof(batches) / sizeof(batches[0]); b++)
				for (int32_t first = 0; first + batches[b] <= 67; first += threads == 3 ? 13 : 40)
					check_part(d, &w, x, all, first, batches[b]);
			qwen_device_close(d);
		}
		free_matrix(dev, &w);
		free(src);
		free(x);
		free(all);
	}
}

/* ---- rows ---- */

/* Rows of other shards: zeros where the id is -1, and only there. first[h]: row 4. */
static void
check_absent_rows(const qwen_matrix *e, const float *first, int64_t h)
{
	const int32_t ids[] = {-1, 4, -1};
	float *want = calloc((size_t) (3 * h), sizeof(float)), *got = poisoned((size_t) (3 * h));

	assert_non_null(want);
	memcpy(want + h, first, (size_t) h * sizeof(float));
	dev->ops->embed(dev, got, e, ids, 3);
	compare("rows that are not there", want, got, (size_t) (3 * h), 0);
	free(want);
	free(got);
}

static void
lookups_agree(void **state)
{
	const int32_t ids[] = {4, 0, 6, 6, 2};

	for (size_t d = 0; d < N_DTYPES; d++)
		for (int64_t h = 1; h <= 300; h = 2 * h + 1)
		{
			void *src = random_source(source_of(all_dtypes[d]), (size_t) (7 * h));
			float *want = poisoned((size_t) (5 * h)), *got = poisoned((size_t) (5 * h));
			qwen_matrix a = make_matrix(ref, all_dtypes[d], 7, h, src);
			qwen_matrix b = make_matrix(dev, all_dtypes[d], 7, h, src);

			ref->ops->embed(ref, want, &a, ids, 5);
			dev->ops->embed(dev, got, &b, ids, 5);
			compare("embed", want, got, (size_t) (5 * h), 0);
			check_absent_rows(&b, want, h);
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
	if (with_delta) /* the addition alone */
	{
		memcpy(resid_got, resid, size * sizeof(float));
		dev->ops->add(dev, resid_got, delta, n, h);
		compare("sum", resid_want, resid_got, size, 0);
	}
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

/* In the order of the shards: to the bit. */
static void
shards_are_summed_on_each_of_them(void **state)
{
	char why[128];
	qwen_device *devs[3] = {dev, qwen_device_open_beside(dev, "cpu:1", why, sizeof(why)),
							qwen_device_open_beside(dev, "cpu:2", why, sizeof(why))};

	assert_true(devs[1] && devs[2] && dev->ops->join(devs, 3));
	for (size_t n = 1; n <= 20000; n = 5 * n + 1)
	{
		float *parts[3], *x[3], *want = poisoned(n);

		for (int s = 0; s < 3; s++)
		{
			parts[s] = random_array(n, 3);
			x[s] = copy_array(parts[s], n);
		}
		for (size_t i = 0; i < n; i++)
			want[i] = parts[0][i] + parts[1][i] + parts[2][i];
		assert_true(n % 2 ? dev->ops->sum(devs, (void *const *) x, 3, (int64_t) n)
						  : dev->ops->sum_resid(devs, x, 3, (int64_t) n));
		for (int s = 0; s < 3; s++)
			compare("sum of shards", want, x[s], n, 0);
		assert_true(devs[1]->ops->copy(devs[1], x[1], devs[2], parts[2], n * sizeof(float)));
		compare("copy", parts[2], x[1], n, 0);
		for (int s = 0; s < 3; s++)
		{
			free(parts[s]);
			free(x[s]);
		}
		free(want);
	}
	qwen_device_close(devs[2]);
	qwen_device_close(devs[1]);
}

static void
unknown_and_missing_sets_are_refused(void **state)
{
	char why[128];

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
	while (!qwen_kernel_set_usable(*set, why, sizeof(why)) ||
		   (!strcmp(*set, "avx512bf16") && !__builtin_cpu_is("amd"))) /* slower than avx512 elsewhere */
		set++;
	assert_string_equal(d->ops->name, *set);
	assert_int_equal(d->n_threads, 2);
	qwen_device_close(d);
}

static const set_test set_tests[] = {
	{"conversions are exact and round to even", conversions_are_exact_and_round_to_even},
	{"packing follows the definition", packing_follows_the_definition},
	{"linear agrees on odd shapes", linear_agrees_on_odd_shapes},
	{"quantized linear follows the definition", quantized_linear_follows_the_definition},
	{"linear does not depend on batch and threads", linear_does_not_depend_on_batch_and_threads},
	{"lookups agree", lookups_agree},
	{"rmsnorm agrees", rmsnorm_agrees},
	{"swiglu agrees", swiglu_agrees},
	{"shards are summed on each of them", shards_are_summed_on_each_of_them},
};

int
main(void)
{
	static test_list list;

	add_test(&list, "sets", "unknown and missing ones are refused", unknown_and_missing_sets_are_refused, false);
	add_test(&list, "sets", "auto takes the best usable one", auto_takes_the_best_usable_set, false);
	return run_sets("kernels", &list, set_tests, sizeof(set_tests) / sizeof(set_tests[0]));
}
