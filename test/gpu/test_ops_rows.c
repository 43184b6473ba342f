/*
 * test_ops_rows.c
 *	  Memory, storing of weights, and the operations on rows of a CUDA plug-in
 *	  against the oracle: lookups, norms, sums, SwiGLU.
 *
 * Row lengths are odd as a rule, and multiples of the width of loads as an
 * exception; steps are prompts, which are computed as they are, and decode
 * steps, which are filled up.
 */
#include <pthread.h>

#include "gpu_sets.h"

static const qwen_dtype all_dtypes[] = {QWEN_F32, QWEN_F16, QWEN_BF16, QWEN_INT8, QWEN_INT4};
#define N_DTYPES (sizeof(all_dtypes) / sizeof(all_dtypes[0]))
#define N_FLOATS 3 /* of them */

#define EPS 0.03f /* large enough to be missed */

static const int32_t row_counts[] = {1, 2, 5, 16, 17, 67};
#define N_COUNTS (sizeof(row_counts) / sizeof(row_counts[0]))

/* ---- memory ---- */

static void
memory_is_zeroed_and_keeps_what_it_is_given(void **state)
{
	/* around the sizes in which uploads are cut */
	static const size_t sizes[] = {1, 3, 255, 4096, 1 << 20, (8 << 20) - 1, (8 << 20) + 1, (17 << 20) + 5};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
	{
		size_t n = sizes[i];
		unsigned char *bytes = keep(malloc(n)), *back = keep(malloc(n));
		char *d = dev->ops->alloc(dev, n);

		assert_non_null(d);
		memset(back, 1, n);
		assert_true(dev->ops->download(dev, back, d, n));
		for (size_t j = 0; j < n; j++)
			assert_true(back[j] == 0);
		for (size_t j = 0; j < n; j++)
			bytes[j] = (unsigned char) (j * 2654435761u >> 13);
		assert_true(dev->ops->upload(dev, d, bytes, n));
		assert_true(dev->ops->download(dev, back, d, n));
		assert_memory_equal(bytes, back, n);
		dev->ops->free(dev, d, n);
		end_check("memory");
	}
}

static void
too_much_memory_is_refused_and_nothing_else(void **state)
{
	float *d;

	assert_null(dev->ops->alloc(dev, (size_t) 1 << 48));
	assert_true(dev->ops->synchronize(dev));
	d = device_floats(dev, (const float[]){1, 2, 3}, 3);
	assert_true(read_elements(dev, d, 3, QWEN_F32)[2] == 3);
	end_check("alloc");
}

static void
vectors_are_widened(void **state)
{
	for (size_t t = 0; t < N_FLOATS; t++)
		for (size_t n = 1; n <= 5000; n = 7 * n + 2)
		{
			float *x = keep_random(n, 3);
			void *src = keep(malloc(n * sizeof(float)));
			float *d = device_bytes(dev, n * sizeof(float));

			round_to(x, n, all_dtypes[t]);
			narrow(src, x, n, all_dtypes[t]);
			assert_true(dev->ops->vector_upload(dev, d, src, all_dtypes[t], (int64_t) n));
			compare("vector", x, read_elements(dev, d, n, QWEN_F32), n, 0);
			end_check("vector");
		}
}

/* ---- lookups ---- */

/* What a lookup may be off, relative to 1 + |x|: a product and a sum in another order. */
static float
lookup_tolerance(qwen_dtype dtype)
{
	return dtype == QWEN_INT8 || dtype == QWEN_INT4 ? 1e-6f : 0;
}

/* Ids of the step's own list, or of another one, with missing ones among them. */
static void
check_embed(qwen_dtype dtype, qwen_dtype source, int64_t h, int32_t n, bool decode, bool own)
{
	const int64_t vocab = 83;
	float *w = keep_random((size_t) (vocab * h), 1);
	size_t size = (size_t) (n * h);
	float *want = keep_poisoned(size), *out = device_bytes(dev, room_for(n, decode) * (size_t) h * sizeof(float));
	int32_t *ids = keep(malloc((size_t) n * sizeof(int32_t)));
	qwen_matrix a, b;
	const qwen_batch *batch;

	if (dtype == QWEN_F16 || source == QWEN_F16)
		round_to(w, (size_t) (vocab * h), QWEN_F16);
	a = device_matrix(ref, dtype, vocab, h, w, dtype == QWEN_F16 || dtype == QWEN_BF16 ? dtype : source);
	b = device_matrix(dev, dtype, vocab, h, w, dtype == QWEN_F16 || dtype == QWEN_BF16 ? dtype : source);
	batch = announce(dev, n, decode);
	for (int32_t i = 0; i < n; i++)
		ids[i] = i % 3 == 1 ? -1 : (i * 29 + 5) % (int32_t) vocab;
	ref->ops->embed(ref, want, &a, own ? batch->tokens : ids, n);
	dev->ops->embed(dev, out, &b, own ? batch->tokens : ids, n);
	compare("embed", want, read_elements(dev, out, size, QWEN_F32), size, lookup_tolerance(dtype));
	end_check("embed");
}

static void
embeddings_agree(void **state)
{
	static const int64_t lengths[] = {1, 5, 63, 64, 65, 300, 1024};

	for (size_t t = 0; t < N_DTYPES; t++)
		for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
		{
			check_embed(all_dtypes[t], QWEN_F32, lengths[i], 5, false, true);
			check_embed(all_dtypes[t], QWEN_BF16, lengths[i], 67, false, false);
			check_embed(all_dtypes[t], QWEN_F16, lengths[i], 7, true, i % 2);
		}
}

static void
check_gather(int64_t h, int32_t n_rows, int32_t n, bool own)
{
	float *x = keep_activations((size_t) (n_rows * h), 2), *want = keep_poisoned((size_t) (n * h));
	void *d_x = device_activations(dev, x, (size_t) (n_rows * h), (size_t) (n_rows * h));
	void *d_out = device_bytes(dev, (size_t) (n * h) * dev->act_bytes);
	int32_t *rows = keep(malloc((size_t) n * sizeof(int32_t)));
	qwen_batch batch = *announce(dev, n_rows, false);

	for (int32_t i = 0; i < n; i++)
		rows[i] = i * n_rows / n;
	batch.n_logits = n;
	batch.logit_rows = rows;
	if (own)
		assert_true(dev->ops->step(dev, &batch));
	ref->ops->gather(ref, want, x, rows, n, h);
	dev->ops->gather(dev, d_out, d_x, rows, n, h);
	compare("gather", want, read_activations(dev, d_out, (size_t) (n * h)), (size_t) (n * h), 0);
	end_check("gather");
}

static void
gathers_agree(void **state)
{
	for (int64_t h = 1; h <= 1100; h = 4 * h + 3)
	{
		check_gather(h, 67, 13, true);
		check_gather(h, 17, 17, true);
		check_gather(h, 3, 1, true);
	}
	check_gather(64, 33, 5, true);
}

/* ---- norms and sums ---- */

static void
check_rmsnorm(int32_t n, int64_t h, bool decode, bool with_delta)
{
	size_t size = (size_t) (n * h), room = room_for(n, decode) * (size_t) h;
	float *resid = keep_random(size, 3), *delta = keep_activations(size, 2), *w = keep_random((size_t) h, 2);
	float *want = keep_poisoned(size);
	float *d_resid = device_elements(dev, resid, size, room, QWEN_F32);
	void *d_delta = device_activations(dev, delta, size, room), *d_out = device_bytes(dev, room * dev->act_bytes);

	announce(dev, n, decode);
	dev->ops->add_rmsnorm(dev, d_out, d_resid, with_delta ? d_delta : NULL, device_floats(dev, w, (size_t) h), n, h,
						  EPS);
	ref->ops->add_rmsnorm(ref, want, resid, with_delta ? delta : NULL, w, n, h, EPS);
	compare("residual", resid, read_elements(dev, d_resid, size, QWEN_F32), size, 0);
	compare("rmsnorm", want, read_activations(dev, d_out, size), size, 4e-6f + unit_of(act));
	end_check("rmsnorm");
}

static void
rmsnorm_agrees(void **state)
{
	for (int64_t h = 1; h <= 5120; h = 3 * h + 2)
		for (size_t i = 0; i < N_COUNTS; i++)
		{
			check_rmsnorm(row_counts[i], h, i % 2, true);
			check_rmsnorm(row_counts[i], h, i % 3, false);
		}
	check_rmsnorm(5, 1024, true, true);
	check_rmsnorm(67, 128, false, true);
}

static void
check_add(int32_t n, int64_t h, bool decode)
{
	size_t size = (size_t) (n * h), room = room_for(n, decode) * (size_t) h;
	float *resid = keep_random(size, 3), *delta = keep_activations(size, 2);
	float *d_resid = device_elements(dev, resid, size, room, QWEN_F32);

	announce(dev, n, decode);
	dev->ops->add(dev, d_resid, device_activations(dev, delta, size, room), n, h);
	ref->ops->add(ref, resid, delta, n, h);
	compare("add", resid, read_elements(dev, d_resid, size, QWEN_F32), size, 0);
	end_check("add");
}

static void
add_agrees(void **state)
{
	for (int64_t h = 1; h <= 2100; h = 4 * h + 3)
		for (size_t i = 0; i < N_COUNTS; i++)
			check_add(row_counts[i], h, i % 2);
	check_add(7, 1024, true);
}

static void
check_swiglu(int32_t n, int64_t f, bool decode)
{
	size_t size = (size_t) (n * f), room = room_for(n, decode) * (size_t) f;
	float *x = keep_activations(2 * size, 12), *want = keep_poisoned(size);
	void *d_out = device_bytes(dev, room * dev->act_bytes);

	x[0] = -200; /* exp would overflow */
	announce(dev, n, decode);
	dev->ops->swiglu(dev, d_out, device_activations(dev, x, 2 * size, 2 * room), n, f);
	ref->ops->swiglu(ref, want, x, n, f);
	compare("swiglu", want, read_activations(dev, d_out, size), size, 4e-6f + unit_of(act));
	end_check("swiglu");
}

static void
swiglu_agrees(void **state)
{
	for (int64_t f = 1; f <= 3000; f = 3 * f + 2)
		for (size_t i = 0; i < N_COUNTS; i++)
			check_swiglu(row_counts[i], f, i % 2);
	check_swiglu(5, 1024, true);
}

/* ---- storing ---- */

typedef struct upload_part
{
	qwen_matrix *m;
	const float *w;
	int64_t row;
	int64_t n;
	bool ok;
} upload_part;

static void *
upload_rows(void *arg)
{
	upload_part *p = arg;

	p->ok = dev->ops->matrix_upload(dev, p->m, p->row, p->n, p->w + p->row * p->m->k, QWEN_F32);
	return NULL;
}

#define UPLOADERS 4

/* Looks every row up again, a few at a time. */
static void
check_rows(const qwen_matrix *a, const qwen_matrix *b, float tolerance)
{
	for (int64_t row = 0; row < a->n; row += MAX_ROWS)
	{
		int32_t ids[MAX_ROWS], n = a->n - row < MAX_ROWS ? (int32_t) (a->n - row) : MAX_ROWS;
		size_t size = (size_t) (n * a->k);
		float *want = keep_poisoned(size), *out = device_bytes(dev, size * sizeof(float));

		for (int32_t i = 0; i < n; i++)
			ids[i] = (int32_t) row + i;
		announce(dev, n, false);
		ref->ops->embed(ref, want, a, ids, n);
		dev->ops->embed(dev, out, b, ids, n);
		compare("rows uploaded by threads", want, read_elements(dev, out, size, QWEN_F32), size, tolerance);
	}
}

static void
threads_upload_parts_of_one_matrix(void **state)
{
	const int64_t n = 403, k = 1100;

	for (size_t t = 0; t < N_DTYPES; t++)
	{
		float *w = keep_random((size_t) (n * k), 1);
		upload_part parts[UPLOADERS];
		pthread_t threads[UPLOADERS];
		qwen_matrix a, b = {.dtype = dev->ops->matrix_dtype(dev, all_dtypes[t]), .n = n, .k = k};

		round_to(w, (size_t) (n * k), t < N_FLOATS ? all_dtypes[t] : QWEN_BF16);
		a = device_matrix(ref, all_dtypes[t], n, k, w, QWEN_F32);
		b.bytes = dev->ops->matrix_bytes(dev, b.dtype, n, k);
		b.data = device_bytes(dev, b.bytes);
		fill_device(dev, b.data, 0, b.bytes);
		for (int i = 0; i < UPLOADERS; i++)
		{
			parts[i] = (upload_part){&b, w, i * n / UPLOADERS, (i + 1) * n / UPLOADERS - i * n / UPLOADERS, false};
			assert_int_equal(pthread_create(&threads[i], NULL, upload_rows, &parts[i]), 0);
		}
		for (int i = 0; i < UPLOADERS; i++)
		{
			pthread_join(threads[i], NULL);
			assert_true(parts[i].ok);
		}
		check_rows(&a, &b, lookup_tolerance(all_dtypes[t]));
		end_check("upload");
	}
}

/* Weights of a wider type are rounded to the nearest, ties to even. */
static void
narrowed_weights_are_rounded(void **state)
{
	const int64_t n = 60, k = 130;

	for (size_t t = 0; t < N_FLOATS; t++)
		for (size_t source = 0; source < N_FLOATS; source++)
		{
			size_t size = (size_t) (n * k);
			float *w = keep_random(size, 2), *out = device_bytes(dev, size * sizeof(float));
			qwen_matrix m;
			int32_t ids[60];

			for (int64_t i = 0; i < k; i++) /* halfway between two of float16, and of bfloat16 */
				w[i] = i % 2 ? 1 + (float) i * 0x1p-10f + 0x1p-11f : 1 + (float) i * 0x1p-7f + 0x1p-8f;
			round_to(w, size, all_dtypes[source]);
			m = device_matrix(dev, all_dtypes[t], n, k, w, all_dtypes[source]);
			for (int32_t i = 0; i < n; i++)
				ids[i] = i;
			announce(dev, (int32_t) n, false);
			dev->ops->embed(dev, out, &m, ids, (int32_t) n);
			round_to(w, size, all_dtypes[t]);
			compare("narrowed", w, read_elements(dev, out, size, QWEN_F32), size, 0);
			end_check("narrowed");
		}
}

static void
what_does_not_fit_is_not_stored(void **state)
{
	const float values[] = {1, 1e6f, 2, 3};
	qwen_matrix m = {.dtype = QWEN_F16, .n = 2, .k = 2};

	m.bytes = dev->ops->matrix_bytes(dev, QWEN_F16, 2, 2);
	m.data = device_bytes(dev, m.bytes);
	assert_false(dev->ops->matrix_upload(dev, &m, 0, 2, values, QWEN_F32));
	m.dtype = QWEN_BF16;
	assert_true(dev->ops->matrix_upload(dev, &m, 0, 2, values, QWEN_F32));
	assert_true(dev->ops->synchronize(dev));
	end_check("float16");
}

static const set_test tests[] = {
	{"memory is zeroed and keeps what it is given", memory_is_zeroed_and_keeps_what_it_is_given},
	{"too much memory is refused and nothing else", too_much_memory_is_refused_and_nothing_else},
	{"vectors are widened", vectors_are_widened},
	{"embeddings agree", embeddings_agree},
	{"gathers agree", gathers_agree},
	{"rmsnorm agrees", rmsnorm_agrees},
	{"add agrees", add_agrees},
	{"swiglu agrees", swiglu_agrees},
	{"threads upload parts of one matrix", threads_upload_parts_of_one_matrix},
	{"narrowed weights are rounded", narrowed_weights_are_rounded},
	{"what does not fit is not stored", what_does_not_fit_is_not_stored},
};

int
main(int argc, char **argv)
{
	return run_on_gpu(argc, argv, "rows", tests, sizeof(tests) / sizeof(tests[0]));
}
