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
#include <sys/mman.h>
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

/*
 * Memory that is touched once; in huge pages where the system grants them, as the weights are, so that the walk through
 * page tables is not what is measured.  NULL when there is none.
 */
static void *
touched_memory(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	madvise(p, bytes, MADV_HUGEPAGE);
	memset(p, 1, bytes); /* pages that were never written are all the same one */
	return p;
}

double
qwen_measure_bandwidth(int n_threads)
{
	int n = n_threads < MAX_THREADS ? n_threads : MAX_THREADS;
	size_t words = READ_BYTES / sizeof(uint64_t) / (size_t) n / 16 * 16;
	read_part parts[MAX_THREADS];
	uint64_t *data;
	double best = 0;

	if (qwen_memory_available() < 2 * READ_BYTES || !(data = touched_memory(READ_BYTES)))
		return 0;
	for (int i = 0; i < n; i++)
		parts[i] = (read_part){data + (size_t) i * words, words, 0};
	for (int run = 0; run < RUNS; run++)
	{
		double rate = (double) (words * sizeof(uint64_t)) * n / read_once(parts, n);

		best = rate > best ? rate : best;
	}
	munmap(data, READ_BYTES);
	return best;
}

/* ---- matrix rate ---- */

/* Shape of the measured product: the weights stay in the second-level cache, and the rows are as many as in prefill. */
#define MATRIX_N 1024
#define MATRIX_K 512
#define MATRIX_ROWS 512
#define MATRIX_RUNS 40

/* What a product needs. */
typedef struct product
{
	qwen_matrix w;  /* [MATRIX_N, MATRIX_K] */
	void *x;        /* [MATRIX_ROWS, MATRIX_K] */
	void *out;      /* [MATRIX_ROWS, MATRIX_N] */
	void *scratch;  /* the device's, while we measure */
	size_t x_bytes; /* of x and of out */
	size_t scratch_bytes;
} product;

/* False when there is no memory; release then frees what there is. */
static bool
allocate_product(qwen_device *dev, product *p, qwen_dtype dtype)
{
	const qwen_ops *ops = dev->ops;

	p->w = (qwen_matrix){.dtype = ops->matrix_dtype(dev, dtype), .n = MATRIX_N, .k = MATRIX_K};
	p->w.bytes = ops->matrix_bytes(dev, p->w.dtype, MATRIX_N, MATRIX_K);
	p->x_bytes = (size_t) MATRIX_ROWS * (MATRIX_K > MATRIX_N ? MATRIX_K : MATRIX_N) * dev->act_bytes;
	p->scratch_bytes = ops->scratch_bytes(dev, &(qwen_needs){.rows = MATRIX_ROWS, .k = MATRIX_K});
	p->w.data = ops->alloc(dev, p->w.bytes);
	p->x = ops->alloc(dev, p->x_bytes);
	p->out = ops->alloc(dev, p->x_bytes);
	p->scratch = p->scratch_bytes ? ops->alloc(dev, p->scratch_bytes) : NULL;
	return p->w.data && p->x && p->out && (p->scratch || !p->scratch_bytes);
}

static void
release_product(qwen_device *dev, product *p)
{
	dev->ops->free(dev, p->w.data, p->w.bytes);
	dev->ops->free(dev, p->x, p->x_bytes);
	dev->ops->free(dev, p->out, p->x_bytes);
	dev->ops->free(dev, p->scratch, p->scratch_bytes);
}

/* Weights at random, no zeros; activations are rows of them: floats, as those of all processors. */
static void
fill_product(qwen_device *dev, product *p)
{
	float row[MATRIX_K];
	int32_t ids[MATRIX_ROWS];
	uint32_t random = 1;

	for (int j = 0; j < MATRIX_N; j++)
	{
		for (int i = 0; i < MATRIX_K; i++)
		{
			random = random * 1664525u + 1013904223u;
			row[i] = ((float) (random >> 8) + 0.5f) / (float) (1 << 23) - 1;
		}
		dev->ops->matrix_upload(dev, &p->w, j, 1, row, QWEN_F32);
	}
	for (int t = 0; t < MATRIX_ROWS; t++)
		ids[t] = t % MATRIX_N;
	dev->ops->embed(dev, p->x, &p->w, ids, MATRIX_ROWS);
}

/* Times out = W x. */
static double
time_product(qwen_device *dev, const product *p)
{
	const double operations = 2.0 * MATRIX_N * MATRIX_K * MATRIX_ROWS;
	double best = 0;

	for (int run = 0; run < MATRIX_RUNS; run++)
	{
		double begin = qwen_seconds();
		double rate;

		dev->ops->linear(dev, p->out, &p->w, NULL, p->x, MATRIX_ROWS);
		dev->ops->synchronize(dev);
		rate = operations / (qwen_seconds() - begin);
		best = rate > best ? rate : best;
	}
	return best;
}

double
qwen_measure_matrix(qwen_device *dev, qwen_dtype dtype)
{
	product p = {0};
	void *scratch = dev->scratch;
	double rate = 0;

	if (allocate_product(dev, &p, dtype))
	{
		dev->scratch = p.scratch;
		fill_product(dev, &p);
		rate = time_product(dev, &p);
		dev->scratch = scratch;
	}
	release_product(dev, &p);
	return rate;
}
