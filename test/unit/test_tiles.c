/*
 * test_tiles.c
 *	  The model of AMX's tiles against what the manual says of the
 *	  instructions, and the products of the set that uses tiles where its
 *	  blocks end.
 *
 * The first half needs no AMX.  The second needs the set: on a processor that
 * has tiles, or in a build with QWEN_EMULATE_TILES.
 */
#include "kernel_sets.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef QWEN_EMULATE_TILES
#define QWEN_EMULATE_TILES
#endif
#include "kernels/cpu/cpu_tile.h"

#include "kernels/convert.h"
#include "kernels/quant.h"

/* ---- the model ---- */

/* Tile 0 is [rows, columns] of 32 bits, tile 1 [rows, depth], tile 2 [depth, columns]; any bits. */
typedef struct product_case
{
	int rows;
	int columns;
	int depth;
	uint32_t c[16][16];
	uint32_t a[16][16];
	uint32_t b[16][16];
	uint32_t got[16][16];
} product_case;

static tile_config
config_of(int rows, int columns, int depth)
{
	tile_config config = {.palette = 1, .rows = {(uint8_t) rows, (uint8_t) rows, (uint8_t) depth}};

	config.row_bytes[0] = config.row_bytes[2] = (uint16_t) (4 * columns);
	config.row_bytes[1] = (uint16_t) (4 * depth);
	return config;
}

static uint32_t
random_bits(void)
{
	random_float(1);
	return random_state >> 16 | random_state << 16;
}

/* Two bfloat16 between 2^-4 and 2^4, or one time in 16 denormal. */
static uint32_t
random_pair(void)
{
	uint32_t bits = random_bits();
	uint32_t pair = (bits & 0x807f807fu) | (0x3d80u + (bits >> 7 & 7) * 0x80u) << 16 | (0x3d80u + (bits >> 23 & 7) * 0x80u);

	if ((bits >> 8 & 15) == 0)
		pair &= 0x807fffffu;
	return pair;
}

static void
fill_case(product_case *p, bool floats)
{
	memset(p, 0, sizeof(*p));
	p->rows = 1 + (int) (random_bits() % 16);
	p->columns = 1 + (int) (random_bits() % 16);
	p->depth = 1 + (int) (random_bits() % 16);
	for (int i = 0; i < 16; i++)
		for (int j = 0; j < 16; j++)
		{
			p->a[i][j] = floats ? random_pair() : random_bits();
			p->b[i][j] = floats ? random_pair() : random_bits();
			p->c[i][j] = floats ? qwen_float_bits(random_float(4)) : random_bits();
			p->got[i][j] = 0xdeadbeef;
		}
}

static void
run_case(product_case *p, bool floats)
{
	tile_config config = config_of(p->rows, p->columns, p->depth);

	tile_configure(&config);
	TILE_LOAD(0, p->c, 64);
	TILE_LOAD(1, p->a, 64);
	TILE_LOAD(2, p->b, 64);
	if (floats)
		TILE_MULTIPLY_BF16(0, 1, 2);
	else
		TILE_MULTIPLY_INT8(0, 1, 2);
	TILE_STORE(0, p->got, 64);
	tile_release();
}

static void
check_case(const product_case *p, uint32_t (*want)(const product_case *, int, int))
{
	for (int i = 0; i < 16; i++)
		for (int j = 0; j < 16; j++)
			if (p->got[i][j] != (i < p->rows && j < p->columns ? want(p, i, j) : 0xdeadbeef))
				fail_msg("[%d, %d] of a product of %d x %d x %d is %08x", i, j, p->rows, p->columns, p->depth,
						 p->got[i][j]);
}

static uint32_t
want_int8(const product_case *p, int i, int j)
{
	int64_t sum = (int32_t) p->c[i][j];

	for (int k = 0; k < 4 * p->depth; k++)
		sum += ((const int8_t *) p->a[i])[k] * ((const int8_t *) &p->b[k / 4][j])[k % 4];
	return (uint32_t) sum;
}

static float
daz(float f)
{
	return fabsf(f) < 0x1p-126f ? copysignf(0, f) : f;
}

/* The even (odd) elements of a row by those of a column, one fused multiply-add after the other. */
static float
chain(const product_case *p, int i, int j, int parity)
{
	float sum = 0;

	for (int k = 0; k < p->depth; k++)
	{
		float a = daz(qwen_bf16_float(((const uint16_t *) p->a[i])[2 * k + parity]));
		float b = daz(qwen_bf16_float(((const uint16_t *) &p->b[k][j])[parity]));

		sum = daz(fmaf(a, b, sum));
	}
	return sum;
}

static uint32_t
want_bf16(const product_case *p, int i, int j)
{
	return qwen_float_bits(daz(qwen_bits_float(p->c[i][j]) + daz(chain(p, i, j, 0) + chain(p, i, j, 1))));
}

static void
products_are_those_of_the_manual(void **state)
{
	static product_case p;

	for (int i = 0; i < 300; i++)
	{
		fill_case(&p, false);
		run_case(&p, false);
		check_case(&p, want_int8);
		fill_case(&p, true);
		run_case(&p, true);
		check_case(&p, want_bf16);
	}
}

/* c = a b for one pair of bfloat16 each. */
static float
one_product(float c, float a_even, float a_odd, float b_even, float b_odd)
{
	tile_config config = config_of(1, 1, 1);
	uint32_t a = qwen_float_bits(a_even) >> 16 | (qwen_float_bits(a_odd) & 0xffff0000u);
	uint32_t b = qwen_float_bits(b_even) >> 16 | (qwen_float_bits(b_odd) & 0xffff0000u);

	tile_configure(&config);
	TILE_LOAD(0, &c, 4);
	TILE_LOAD(1, &a, 4);
	TILE_LOAD(2, &b, 4);
	TILE_MULTIPLY_BF16(0, 1, 2);
	TILE_STORE(0, &c, 4);
	tile_release();
	return c;
}

static void
floats_round_and_flush_as_the_processor_does(void **state)
{
	assert_true(one_product(1, 2, 3, 4, 5) == 1 + 8 + 15);
	assert_true(one_product(0, 0x1p-130f, 0, 0x1p100f, 0) == 0);           /* denormal factor */
	assert_true(one_product(0, 0x1p-70f, 0, 0x1p-60f, 0) == 0);            /* denormal result */
	assert_true(one_product(0x1p-130f, 0, 0, 0, 0) == 0);                  /* denormal c */
	assert_true(one_product(0, 0x1p-126f, 0, 1, 0) == 0x1p-126f);          /* the least normal one */
	assert_true(one_product(1, 0x1p-12f, 0, 0x1p-12f, 0) == 1);            /* ties to even: down ... */
	assert_true(one_product(1 + 0x1p-23f, 0x1p-12f, 0, 0x1p-12f, 0) == 1 + 0x1p-22f); /* ... and up */
	/* the pair is added first: alone each half would be lost */
	assert_true(one_product(1, 0x1p-12f, 0x1p-12f, 0x1p-12f, 0x1p-12f) == 1 + 0x1p-23f);
	assert_true(isinf(one_product(0, 0x1p127f, 0, 2, 0)));
	assert_true(isnan(one_product(0, INFINITY, 0, 0, 0)));
}

/* What lies beyond a tile's rows and columns is neither loaded nor stored, and a stride of 0 repeats a row. */
static void
loads_and_stores_keep_to_the_sizes(void **state)
{
	uint32_t from[16][16], to[16][16];
	tile_config config = config_of(5, 7, 16);

	for (int i = 0; i < 16; i++)
		for (int j = 0; j < 16; j++)
			from[i][j] = (uint32_t) (100 * i + j);
	memset(to, 0xff, sizeof(to));
	tile_configure(&config);
	TILE_LOAD(0, from, 64);
	TILE_STORE(0, to, 64);
	for (int i = 0; i < 16; i++)
		for (int j = 0; j < 16; j++)
			assert_int_equal(to[i][j], i < 5 && j < 7 ? from[i][j] : 0xffffffffu);
	TILE_LOAD(0, from[3], 0);
	TILE_STORE(0, to, 64);
	for (int i = 0; i < 5; i++)
		assert_memory_equal(to[i], from[3], 28);
	TILE_ZERO(0);
	TILE_STORE(0, to, 64);
	for (int i = 0; i < 5; i++)
		for (int j = 0; j < 7; j++)
			assert_int_equal(to[i][j], 0);
	tile_release();
}

/* ---- faults ---- */

static void
use_without_a_configuration(void)
{
	TILE_ZERO(0);
}

static void
use_after_release(void)
{
	tile_config config = config_of(16, 16, 16);

	tile_configure(&config);
	tile_release();
	TILE_ZERO(0);
}

static void
use_of_a_tile_without_size(void)
{
	tile_config config = config_of(16, 16, 16);

	tile_configure(&config);
	TILE_ZERO(3);
}

static void
product_of_sizes_that_do_not_fit(void)
{
	tile_config config = config_of(16, 16, 16);

	config.row_bytes[1] = 60;
	tile_configure(&config);
	TILE_MULTIPLY_INT8(0, 1, 2);
}

static void
product_of_a_tile_with_itself(void)
{
	tile_config config = config_of(16, 16, 16);

	tile_configure(&config);
	TILE_MULTIPLY_BF16(0, 0, 1);
}

static void
configuration_with_too_many_rows(void)
{
	tile_config config = config_of(17, 16, 16);

	tile_configure(&config);
}

static void
configuration_of_another_palette(void)
{
	tile_config config = config_of(16, 16, 16);

	config.palette = 2;
	tile_configure(&config);
}

static void
misuse_faults(void **state)
{
	void (*const misuses[])(void) = {
		use_without_a_configuration,      use_after_release,
		use_of_a_tile_without_size,       product_of_sizes_that_do_not_fit,
		product_of_a_tile_with_itself,    configuration_with_too_many_rows,
		configuration_of_another_palette,
	};

	for (size_t i = 0; i < sizeof(misuses) / sizeof(misuses[0]); i++)
	{
		pid_t child = fork();
		int status;

		assert_true(child >= 0);
		if (child == 0)
		{
			signal(SIGILL, SIG_DFL);
			misuses[i]();
			_exit(0);
		}
		assert_int_equal(waitpid(child, &status, 0), child);
		if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGILL)
			fail_msg("misuse %zu passed", i);
	}
}

/* ---- products ---- */

static const qwen_dtype tile_dtypes[] = {QWEN_BF16, QWEN_INT8, QWEN_INT4};
#define N_DTYPES 3

static qwen_matrix
store_matrix(qwen_device *d, qwen_dtype dtype, int64_t n, int64_t k, const float *src)
{
	qwen_matrix m = {.dtype = d->ops->matrix_dtype(d, dtype), .n = n, .k = k};

	m.bytes = d->ops->matrix_bytes(d, m.dtype, n, k);
	m.data = d->ops->alloc(d, m.bytes);
	assert_non_null(m.data);
	assert_true(d->ops->matrix_upload(d, &m, 0, n, src, QWEN_F32));
	return m;
}

static void
product(qwen_device *d, float *out, const qwen_matrix *w, const float *bias, const float *x, int64_t rows)
{
	size_t bytes = d->ops->scratch_bytes(d, &(qwen_needs){.rows = (int32_t) rows, .k = w->k});

	d->scratch = bytes ? d->ops->alloc(d, bytes) : NULL;
	d->ops->linear(d, out, w, bias, x, (int32_t) rows);
	d->ops->free(d, d->scratch, bytes);
	d->scratch = NULL;
}

/* x[n] as the type holds it: only the products' own rounding is then between a set and the oracle. */
static void
round_inputs(float *x, int64_t rows, int64_t k, qwen_dtype dtype)
{
	int8_t q[QWEN_GROUP];

	for (int64_t i = 0; dtype == QWEN_BF16 && i < rows * k; i++)
		x[i] = qwen_bf16_float(qwen_float_bf16(x[i]));
	for (int64_t t = 0; dtype != QWEN_BF16 && t < rows; t++)
		for (int64_t g = 0; g < k; g += QWEN_GROUP)
		{
			int n = k - g < QWEN_GROUP ? (int) (k - g) : QWEN_GROUP;
			float s = qwen_quantize_row(x + t * k + g, n, q);

			for (int i = 0; i < n; i++)
				x[t * k + g + i] = (float) q[i] * s;
		}
}

/* Against the oracle; int8 and int4 against the bits of AVX-512 too, which every processor with tiles has. */
static void
check_product(qwen_device *avx512, qwen_dtype dtype, int64_t n, int64_t k, int64_t rows)
{
	float *src = random_array((size_t) (n * k), 1), *x = random_array((size_t) (rows * k), 1);
	float *bias = random_array((size_t) n, 1);
	float *want = poisoned((size_t) (rows * n)), *got = poisoned((size_t) (rows * n));
	qwen_matrix a, b;
	char what[64];

	snprintf(what, sizeof(what), "%s [%d, %d] x %d", qwen_dtype_name(dtype), (int) n, (int) k, (int) rows);
	if (dtype == QWEN_BF16)
		round_inputs(src, n, k, dtype);
	round_inputs(x, rows, k, dtype);
	a = store_matrix(ref, dtype, n, k, src);
	b = store_matrix(dev, dtype, n, k, src);
	product(ref, want, &a, rows % 2 ? bias : NULL, x, rows);
	product(dev, got, &b, rows % 2 ? bias : NULL, x, rows);
	compare(what, want, got, (size_t) (rows * n), 2e-6f * sqrtf((float) k));
	if (dtype != QWEN_BF16)
	{
		product(avx512, want, &b, rows % 2 ? bias : NULL, x, rows);
		compare(what, want, got, (size_t) (rows * n), 0);
	}
	dev->ops->free(dev, a.data, a.bytes);
	dev->ops->free(dev, b.data, b.bytes);
	free(src);
	free(x);
	free(bias);
	free(want);
	free(got);
}

/* Every number of rows, and sizes around those of tiles, strips, blocks and pairs of them. */
static void
products_agree(void **state)
{
	static const int64_t large[][3] = {
		{37, 1100, 33}, {70, 1543, 130}, {16, 600, 161}, {35, 530, 1057}, {1100, 530, 40},
	};
	char why[128];
	qwen_device *avx512 = qwen_device_open("cpu", "avx512", 2, why, sizeof(why));

	assert_non_null(avx512);
	for (size_t d = 0; d < N_DTYPES; d++)
	{
		for (int64_t rows = 1; rows <= 67; rows++)
			check_product(avx512, tile_dtypes[d], 1 + rows * 29 % 71, 1 + rows * 53 % 199, rows);
		for (size_t i = 0; i < sizeof(large) / sizeof(large[0]); i++)
			check_product(avx512, tile_dtypes[d], large[i][0], large[i][1], large[i][2]);
	}
	qwen_device_close(avx512);
}

/* A row's bits are the same in batches of 1, 2, 17 and 64. */
static void
products_do_not_depend_on_the_batch(void **state)
{
	static const int64_t batches[] = {1, 2, 17, 64};
	const int64_t n = 53, k = 1157;

	for (size_t d = 0; d < N_DTYPES; d++)
	{
		float *src = random_array((size_t) (n * k), 1), *x = random_array((size_t) (64 * k), 1);
		float *all = poisoned((size_t) (64 * n)), *some = poisoned((size_t) (64 * n));
		qwen_matrix w = store_matrix(dev, tile_dtypes[d], n, k, src);

		product(dev, all, &w, NULL, x, 64);
		for (size_t b = 0; b < sizeof(batches) / sizeof(batches[0]); b++)
			for (int64_t first = 0; first + batches[b] <= 64; first += batches[b])
			{
				product(dev, some, &w, NULL, x + first * k, batches[b]);
				assert_memory_equal(some, all + first * n, (size_t) (batches[b] * n) * sizeof(float));
			}
		dev->ops->free(dev, w.data, w.bytes);
		free(src);
		free(x);
		free(all);
		free(some);
	}
}

int
main(void)
{
	static test_list list;
	static const char *const model[] = {
		"products are those of the manual",
		"floats round and flush as the processor does",
		"loads and stores keep to the sizes",
		"misuse faults",
	};
	static const CMUnitTestFunction model_tests[] = {
		products_are_those_of_the_manual,
		floats_round_and_flush_as_the_processor_does,
		loads_and_stores_keep_to_the_sizes,
		misuse_faults,
	};
	char why[128];

	for (size_t i = 0; i < sizeof(model) / sizeof(model[0]); i++)
		add_test(&list, "the model", model[i], model_tests[i], false);
	if (qwen_kernel_set_usable("amx", why, sizeof(why)))
	{
		add_test(&list, "amx", "products agree", products_agree, true);
		add_test(&list, "amx", "products do not depend on the batch", products_do_not_depend_on_the_batch, true);
	}
	else
		add_test(&list, "amx", "SKIPPED, not on this processor", set_is_not_here, false);
	return _cmocka_run_group_tests("tiles", list.tests, list.n, NULL, NULL);
}
