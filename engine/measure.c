/*
 * measure.c
 *	  What the machine gives: the scale that bench and probe measure against.
 *
 * The best of a few runs counts: other load can only slow a run down.
 */
#include "measure.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "memory.h"

#define RUNS 5
/* Far beyond any cache that a process has for itself. */
#define READ_BYTES ((size_t) 512 << 20)
#define MAX_THREADS 256

double
qwen_seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double) ts.tv_sec + 1e-9 * (double) ts.tv_nsec;
}

/* One thread's part of the memory: whole 128-byte lines. */
typedef struct read_part
{
	const uint64_t *data;
	size_t words;
	uint64_t sum; /* so that the reads are not left out */
} read_part;

typedef uint64_t word4 __attribute__((vector_size(32)));

/* Two streams at a time: one alone does not keep the memory busy. */
static void *
read_main(void *arg)
{
	read_part *part = arg;
	size_t half = part->words / 2;
	word4 a = {0}, b = {0}, v;

	for (size_t i = 0; i + 8 <= half; i += 8)
	{
		__builtin_prefetch(part->data + i + 128);
		__builtin_prefetch(part->data + half + i + 128);
		for (size_t j = i; j < i + 8; j += 4)
		{
			memcpy(&v, part->data + j, sizeof(v));
			a += v;
			memcpy(&v, part->data + half + j, sizeof(v));
			b += v;
		}
	}
	a += b;
	part->sum = a[0] + a[1] + a[2] + a[3];
	return NULL;
}

/* Seconds for one pass over all the memory by all threads. */
static double
read_once(read_part *parts, int n)
{
	pthread_t threads[MAX_THREADS];
	int started = 0;
	double begin = qwen_seconds();

	for (int i = 1; i < n; i++, started++)
		if (pthread_create(&threads[started], NULL, read_main, &parts[i]) != 0)
			break;
	read_main(&parts[0]);
	for (int i = 0; i < started; i++)
		pthread_join(threads[i], NULL);
	for (int i = started + 1; i < n; i++)
		read_main(&parts[i]);
	return qwen_seconds() - begin;
}

double
qwen_measure_bandwidth(int n_threads)
{
	int n = n_threads < MAX_THREADS ? n_threads : MAX_THREADS;
	size_t words = READ_BYTES / sizeof(uint64_t) / (size_t) n / 16 * 16;
	read_part parts[MAX_THREADS];
	uint64_t *data;
	double best = 0;

	if (qwen_memory_available() < 2 * READ_BYTES || !(data = malloc(READ_BYTES)))
		return 0;
	memset(data, 1, READ_BYTES); /* pages that were never written are all the same one */
	for (int i = 0; i < n; i++)
		parts[i] = (read_part){data + (size_t) i * words, words, 0};
	for (int run = 0; run < RUNS; run++)
	{
		double rate = (double) (words * sizeof(uint64_t)) * n / read_once(parts, n);

		best = rate > best ? rate : best;
	}
	free(data);
	return best;
}

/* Shape of the measured product: weights and activations that stay in the second-level cache. */
#define MATRIX_N 512
#define MATRIX_K 512
#define MATRIX_ROWS 96

/* Times out = W x; the operands are set. */
static double
time_linear(qwen_device *dev, void *out, const qwen_matrix *w, const void *x)
{
	const double operations = 2.0 * MATRIX_N * MATRIX_K * MATRIX_ROWS;
	double best = 0;

	for (int run = 0; run < 20 * RUNS; run++)
	{
		double begin = qwen_seconds();
		double rate;

		dev->ops->linear(dev, out, w, NULL, x, MATRIX_ROWS);
		dev->ops->synchronize(dev);
		rate = operations / (qwen_seconds() - begin);
		best = rate > best ? rate : best;
	}
	return best;
}

double
qwen_measure_matrix(qwen_device *dev, qwen_dtype dtype)
{
	const qwen_ops *ops = dev->ops;
	size_t x_bytes = MATRIX_ROWS * MATRIX_K * dev->act_bytes, out_bytes = MATRIX_ROWS * MATRIX_N * dev->act_bytes;
	qwen_matrix w = {.dtype = ops->matrix_dtype(dev, dtype), .n = MATRIX_N, .k = MATRIX_K};
	float *row = malloc(MATRIX_K * sizeof(float));
	void *x = ops->alloc(dev, x_bytes), *out = ops->alloc(dev, out_bytes);
	double rate = 0;

	w.bytes = ops->matrix_bytes(dev, w.dtype, w.n, w.k);
	w.data = ops->alloc(dev, w.bytes);
	for (int i = 0; row && i < MATRIX_K; i++)
		row[i] = (float) (i % 7) - 3;
	if (row && x && out && w.data)
	{
		for (int j = 0; j < MATRIX_N; j++)
			ops->matrix_upload(dev, &w, j, 1, row, QWEN_F32);
		rate = time_linear(dev, out, &w, x);
	}
	free(row);
	ops->free(dev, w.data, w.bytes);
	ops->free(dev, out, out_bytes);
	ops->free(dev, x, x_bytes);
	return rate;
}
