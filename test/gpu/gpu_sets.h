/*
 * gpu_sets.h
 *	  What the tests of a CUDA plug-in's operations share: the plug-in, devices
 *	  of it for each type of activations, and device memory that is watched.
 *
 * QWEN_CUDA_PLUGIN names the plug-in: that for GPUs, or the one that is built
 * for processors from the same files.  QWEN_TEST_SEED repeats a run; without
 * it every run has other numbers, and says which.
 *
 * All device memory that a check gets lies between guards, is poisoned before
 * use with bytes that are NaN in every type, and so are the guards: what reads
 * beyond an end shows in the result, what writes there is found at the end of
 * the check.  The oracle is given what remains of the inputs in the type of
 * the activations, so that tolerances need to cover results alone.
 */
#ifndef QWEN_GPU_SETS_H
#define QWEN_GPU_SETS_H

#include <dlfcn.h>
#include <time.h>

#include "kernels/convert.h"
#include "kernels/cuda/plugin.h"
#include "test/unit/kernel_sets.h"

#define GUARD_BYTES 256
#define MAX_KEPT 512

/* Rows of a step, at most; in a decode step operations may fill up to so many. */
#define MAX_ROWS 80

static int (*count_gpus)(qwen_cuda_device *, int, char *, size_t);
static qwen_device *(*open_gpu)(int, const char *, qwen_dtype, char *, size_t);
static uint32_t seed;
static qwen_dtype act; /* of the activations of `dev` */

/* ---- element types ---- */

/* Half of the last place of a number near 1. */
static inline float
unit_of(qwen_dtype dtype)
{
	return dtype == QWEN_F32 ? 0x1p-24f : dtype == QWEN_F16 ? 0x1p-11f : 0x1p-8f;
}

static inline void
narrow(void *dst, const float *src, size_t n, qwen_dtype dtype)
{
	for (size_t i = 0; i < n; i++)
		if (dtype == QWEN_F32)
			((float *) dst)[i] = src[i];
		else
			((uint16_t *) dst)[i] = dtype == QWEN_F16 ? qwen_float_f16(src[i]) : qwen_float_bf16(src[i]);
}

static inline void
widen(float *dst, const void *src, size_t n, qwen_dtype dtype)
{
	for (size_t i = 0; i < n; i++)
		if (dtype == QWEN_F32)
			dst[i] = ((const float *) src)[i];
		else
			dst[i] = dtype == QWEN_F16 ? qwen_f16_float(((const uint16_t *) src)[i])
									   : qwen_bf16_float(((const uint16_t *) src)[i]);
}

/* What remains of x in a type. */
static inline void
round_to(float *x, size_t n, qwen_dtype dtype)
{
	for (size_t i = 0; i < n; i++)
		if (dtype == QWEN_F16)
			x[i] = qwen_f16_float(qwen_float_f16(x[i]));
		else if (dtype == QWEN_BF16)
			x[i] = qwen_bf16_float(qwen_float_bf16(x[i]));
}

/* ---- what a check holds: released, and the guards looked at, at its end ---- */

typedef struct kept_buffer
{
	qwen_device *on;
	char *base; /* device memory: guard, bytes, guard */
	size_t bytes;
} kept_buffer;

static kept_buffer kept_buffers[MAX_KEPT];
static int n_kept_buffers;
static void *kept_host[MAX_KEPT];
static int n_kept_host;

/* Host memory, until the check ends. */
static inline void *
keep(void *p)
{
	assert_non_null(p);
	assert_true(n_kept_host < MAX_KEPT);
	kept_host[n_kept_host++] = p;
	return p;
}

static inline void
fill_device(qwen_device *on, void *d, int byte, size_t bytes)
{
	void *pattern = malloc(bytes);

	assert_non_null(pattern);
	memset(pattern, byte, bytes);
	assert_true(on->ops->upload(on, d, pattern, bytes));
	free(pattern);
}

/* Poisoned device memory between guards. */
static inline void *
device_bytes(qwen_device *on, size_t bytes)
{
	kept_buffer *b = &kept_buffers[n_kept_buffers];

	assert_true(n_kept_buffers < MAX_KEPT);
	*b = (kept_buffer){on, on->ops->alloc(on, bytes + 2 * GUARD_BYTES), bytes};
	assert_non_null(b->base);
	n_kept_buffers++;
	fill_device(on, b->base, 0xff, bytes + 2 * GUARD_BYTES);
	return b->base + GUARD_BYTES;
}

static inline void
check_guard(const char *what, const kept_buffer *b, size_t at, const char *side)
{
	unsigned char guard[GUARD_BYTES];

	assert_true(b->on->ops->download(b->on, guard, b->base + at, GUARD_BYTES));
	for (size_t i = 0; i < GUARD_BYTES; i++)
		if (guard[i] != 0xff)
			fail_msg("%s: wrote %s a buffer of %zu bytes, byte %zu of the guard", what, side, b->bytes, i);
}

static inline void
release_all(void)
{
	while (n_kept_buffers > 0)
	{
		kept_buffer *b = &kept_buffers[--n_kept_buffers];

		b->on->ops->free(b->on, b->base, b->bytes + 2 * GUARD_BYTES);
	}
	while (n_kept_host > 0)
		free(kept_host[--n_kept_host]);
}

/* The end of a check. */
static inline void
end_check(const char *what)
{
	for (int i = 0; i < n_kept_buffers; i++)
	{
		const kept_buffer *b = &kept_buffers[i];

		assert_true(b->on->ops->synchronize(b->on));
		check_guard(what, b, 0, "before");
		check_guard(what, b, GUARD_BYTES + b->bytes, "behind");
	}
	release_all();
}

/* ---- activations and floats on a device ---- */

static inline float *
keep_random(size_t n, float range)
{
	return keep(random_array(n, range));
}

/* Room for results: NaN, and a guard as compare wants it. */
static inline float *
keep_poisoned(size_t n)
{
	return keep(poisoned(n));
}

/* Random numbers that the device's activations can hold. */
static inline float *
keep_activations(size_t n, float range)
{
	float *x = keep_random(n, range);

	round_to(x, n, act);
	return x;
}

/* x[n] in a type on a device, in room for `room` elements: what is not x stays poisoned. */
static inline void *
device_elements(qwen_device *on, const float *x, size_t n, size_t room, qwen_dtype dtype)
{
	size_t width = qwen_dtype_bytes(dtype);
	void *narrowed = malloc(n * width + 1), *d = device_bytes(on, room * width);

	assert_non_null(narrowed);
	narrow(narrowed, x, n, dtype);
	assert_true(on->ops->upload(on, d, narrowed, n * width));
	free(narrowed);
	return d;
}

static inline void *
device_activations(qwen_device *on, const float *x, size_t n, size_t room)
{
	return device_elements(on, x, n, room, on->act);
}

static inline float *
device_floats(qwen_device *on, const float *x, size_t n)
{
	return device_elements(on, x, n, n, QWEN_F32);
}

/* The first n elements, and a guard as compare wants it. */
static inline float *
read_elements(qwen_device *on, const void *d, size_t n, qwen_dtype dtype)
{
	float *x = keep_poisoned(n);
	void *raw = malloc(n * qwen_dtype_bytes(dtype) + 1);

	assert_non_null(raw);
	assert_true(on->ops->download(on, raw, d, n * qwen_dtype_bytes(dtype)));
	widen(x, raw, n, dtype);
	free(raw);
	return x;
}

static inline float *
read_activations(qwen_device *on, const void *d, size_t n)
{
	return read_elements(on, d, n, on->act);
}

/* ---- weights ---- */

/* A matrix of type `dtype` from w[n, k] as `source` holds it, in two parts, as fused matrices come. */
static inline qwen_matrix
device_matrix(qwen_device *on, qwen_dtype dtype, int64_t n, int64_t k, const float *w, qwen_dtype source)
{
	qwen_matrix m = {.dtype = on->ops->matrix_dtype(on, dtype), .n = n, .k = k};
	size_t row = (size_t) k * qwen_dtype_bytes(source);
	char *src = malloc((size_t) n * row);
	int64_t half = n / 2;

	assert_non_null(src);
	narrow(src, w, (size_t) (n * k), source);
	m.bytes = on->ops->matrix_bytes(on, m.dtype, n, k);
	m.data = device_bytes(on, m.bytes);
	fill_device(on, m.data, 0, m.bytes);
	assert_true(half == 0 || on->ops->matrix_upload(on, &m, 0, half, src, source));
	assert_true(on->ops->matrix_upload(on, &m, half, n - half, src + (size_t) half * row, source));
	free(src);
	return m;
}

/* ---- steps ---- */

/*
 * Announces a batch of n rows, each a sequence of its own, or all of one prompt.  What operations on all its rows write
 * is up to the rows that operate_on says.
 */
static inline const qwen_batch *
announce(qwen_device *on, int32_t n, bool decode)
{
	static int32_t tokens[MAX_ROWS], positions[MAX_ROWS], blocks[MAX_ROWS], last;
	static qwen_batch_seq seqs[MAX_ROWS];
	static qwen_batch batch;

	assert_true(n <= MAX_ROWS);
	batch = (qwen_batch){n, tokens, positions, decode ? n : 1, seqs, 1, &last};
	last = n - 1;
	for (int32_t i = 0; i < n; i++)
	{
		tokens[i] = i;
		positions[i] = decode ? 0 : i;
		blocks[i] = i;
		seqs[i] = (qwen_batch_seq){i, 1, 1, blocks + i};
	}
	if (!decode)
		seqs[0] = (qwen_batch_seq){0, n, n, blocks};
	assert_true(on->ops->step(on, &batch));
	return &batch;
}

/* Rows that a buffer of the step's rows must have room for; a device may fill a decode step up to a round number. */
static inline size_t
room_for(int32_t n, bool decode)
{
	return decode ? MAX_ROWS : (size_t) n;
}

/* ---- devices ---- */

static inline qwen_needs
small_needs(void)
{
	return (qwen_needs){.rows = MAX_ROWS,
						.k = 8192,
						.logit_rows = MAX_ROWS,
						.head_k = 8192,
						.vocab = 512,
						.sequences = MAX_ROWS,
						.blocks = 1024,
						.n_q = 8,
						.dim = 64};
}

/* A device on a GPU with all that the engine gives it. */
static inline qwen_device *
new_device(int index, const char *name, qwen_dtype dtype, qwen_needs needs)
{
	char why[256] = "";
	qwen_device *d = open_gpu(index, name, dtype, why, sizeof(why));

	if (!d)
		fail_msg("%s: %s", name, why);
	d->needs = needs;
	d->scratch = d->ops->alloc(d, d->ops->scratch_bytes(d, &needs));
	d->d_logits = d->ops->alloc(d, (size_t) needs.logit_rows * (size_t) needs.vocab * sizeof(float));
	assert_non_null(d->scratch);
	assert_non_null(d->d_logits);
	return d;
}

static inline void
end_device(qwen_device *d)
{
	d->ops->free(d, d->scratch, d->ops->scratch_bytes(d, &d->needs));
	d->ops->free(d, d->d_logits, (size_t) d->needs.logit_rows * (size_t) d->needs.vocab * sizeof(float));
	d->ops->close(d);
}

/* Group fixture of a test with activations of one type: *state points to it. */
static inline int
open_devices(void **state)
{
	char why[128];

	random_state = seed;
	act = *(const qwen_dtype *) *state;
	ref = qwen_device_open("cpu", "ref", 1, why, sizeof(why));
	if (!ref)
		return -1;
	dev = new_device(0, "cuda:0", act, small_needs());
	return 0;
}

static inline int
close_devices(void **state)
{
	release_all();
	end_device(dev);
	qwen_device_close(ref);
	return 0;
}

/* ---- the program ---- */

static inline bool
open_plugin(void)
{
	const char *path = getenv("QWEN_CUDA_PLUGIN");
	void *plugin = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
	int (*abi)(void) = plugin ? (int (*)(void)) dlsym(plugin, "qwen_cuda_abi") : NULL;

	if (!abi || abi() != QWEN_CUDA_ABI)
	{
		fprintf(stderr, "QWEN_CUDA_PLUGIN, %s: %s\n", path ? path : "not set",
				abi ? "another ABI" : "cannot be opened");
		if (path && !plugin)
			fprintf(stderr, "%s\n", dlerror());
		return false;
	}
	count_gpus = (int (*)(qwen_cuda_device *, int, char *, size_t)) dlsym(plugin, "qwen_cuda_devices");
	open_gpu = (qwen_device * (*) (int, const char *, qwen_dtype, char *, size_t)) dlsym(plugin, "qwen_cuda_open");
	return count_gpus && open_gpu;
}

/* Runs every test for each type of activations; an argument chooses those whose name it matches, as "*linear*" does. */
static inline int
run_on_gpu(int argc, char **argv, const char *group, const set_test *tests, size_t n)
{
	static qwen_dtype types[] = {QWEN_F32, QWEN_F16, QWEN_BF16};
	static test_list list;
	const char *wanted = getenv("QWEN_TEST_SEED");

	seed = wanted ? (uint32_t) strtoul(wanted, NULL, 10) : (uint32_t) time(NULL) * 2654435761u;
	fprintf(stderr, "# QWEN_TEST_SEED=%u\n", seed);
	if (!open_plugin())
		return 1;
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	for (size_t t = 0; t < sizeof(types) / sizeof(types[0]); t++)
		for (size_t i = 0; i < n; i++)
		{
			snprintf(list.names[list.n], sizeof(list.names[0]), "%s: %s", qwen_dtype_name(types[t]), tests[i].name);
			list.tests[list.n] =
				(struct CMUnitTest){list.names[list.n], tests[i].run, open_devices, close_devices, &types[t]};
			list.n++;
		}
	return _cmocka_run_group_tests(group, list.tests, list.n, NULL, NULL);
}

#endif
