/*
 * host.c
 *	  Devices whose memory is the process's own: memory, and what they do for
 *	  each other.
 *
 * They see each other's memory, so a sum over shards is a loop and a copy is a
 * copy.  Sums are added in the order of the shards: a step's result depends on
 * nothing but the map.
 *
 * Large allocations are mapped, so that zeroed memory costs nothing until it
 * is touched, the kernel may back it with huge pages, and its pages come from
 * all of a machine's memory; small ones come from the heap, where sanitizers
 * watch them.
 */
#include "host.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "convert.h"
#include "numa.h"

#define MAP_THRESHOLD ((size_t) 1 << 20)
#define ALIGNMENT 64

/* Elements that a thread adds at a time. */
#define SUM_GRAIN 4096

void
qwen_host_close(qwen_device *dev)
{
	free(dev);
}

/* ---- memory ---- */

void *
qwen_host_alloc(qwen_device *dev, size_t bytes)
{
	void *p;

	if (bytes >= MAP_THRESHOLD)
	{
		p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (p == MAP_FAILED)
			return NULL;
		madvise(p, bytes, MADV_HUGEPAGE); /* advice: refusal costs speed alone */
		qwen_numa_interleave(p, bytes);
		return p;
	}
	if (posix_memalign(&p, ALIGNMENT, bytes ? bytes : 1) != 0)
		return NULL;
	return memset(p, 0, bytes);
}

void
qwen_host_free(qwen_device *dev, void *p, size_t bytes)
{
	if (p && bytes >= MAP_THRESHOLD)
		munmap(p, bytes);
	else
		free(p);
}

bool
qwen_host_upload(qwen_device *dev, void *dst, const void *src, size_t bytes)
{
	memcpy(dst, src, bytes);
	return true;
}

bool
qwen_host_download(qwen_device *dev, void *dst, const void *src, size_t bytes)
{
	memcpy(dst, src, bytes);
	return true;
}

bool
qwen_host_synchronize(qwen_device *dev)
{
	return true;
}

/* ---- between devices ---- */

bool
qwen_host_join(qwen_device *const *devs, int n)
{
	return true;
}

typedef struct sum_job
{
	float *const *x; /* [n] of each shard */
	int n;
} sum_job;

/* A qwen_loop_fn over elements. */
static void
sum_piece(void *arg, int64_t begin, int64_t end)
{
	const sum_job *job = arg;
	float *sum = job->x[0];

	for (int s = 1; s < job->n; s++)
		for (int64_t i = begin; i < end; i++)
			sum[i] += job->x[s][i];
	for (int s = 1; s < job->n; s++)
		memcpy(job->x[s] + begin, sum + begin, (size_t) (end - begin) * sizeof(float));
}

bool
qwen_host_sum_resid(qwen_device *const *devs, float *const *d_x, int n, int64_t count)
{
	sum_job job = {d_x, n};

	devs[0]->ops->loop(devs[0], count, SUM_GRAIN, sum_piece, &job);
	return true;
}

/* Activations are float here. */
bool
qwen_host_sum(qwen_device *const *devs, void *const *d_x, int n, int64_t count)
{
	return qwen_host_sum_resid(devs, (float *const *) d_x, n, count);
}

bool
qwen_host_copy(qwen_device *dev, void *d_dst, qwen_device *from, const void *d_src, size_t bytes)
{
	return from->ops->download(from, d_dst, d_src, bytes);
}

/* ---- a step ---- */

bool
qwen_host_step(qwen_device *dev, const qwen_batch *batch)
{
	return true;
}

bool
qwen_host_segment_begin(qwen_device *dev, int id)
{
	return true;
}

void
qwen_host_segment_end(qwen_device *dev)
{
}

typedef struct add_job
{
	float *resid;
	const float *delta;
} add_job;

/* A qwen_loop_fn over elements. */
static void
add_piece(void *arg, int64_t begin, int64_t end)
{
	const add_job *job = arg;

	for (int64_t i = begin; i < end; i++)
		job->resid[i] += job->delta[i];
}

void
qwen_host_add(qwen_device *dev, float *d_resid, const void *d_delta, int32_t n, int64_t h)
{
	add_job job = {d_resid, d_delta};

	dev->ops->loop(dev, n * h, SUM_GRAIN, add_piece, &job);
}

void
qwen_host_loop(qwen_device *dev, int64_t n, int64_t grain, qwen_loop_fn fn, void *arg)
{
	fn(arg, 0, n);
}

size_t
qwen_host_no_scratch(const qwen_device *dev, const qwen_needs *needs)
{
	return 0;
}

/* ---- weights ---- */

void
qwen_widen(float *dst, const void *src, qwen_dtype source, int64_t n)
{
	const uint16_t *half = src;

	if (source == QWEN_F32)
		memcpy(dst, src, (size_t) n * sizeof(float));
	else if (source == QWEN_BF16)
		for (int64_t i = 0; i < n; i++)
			dst[i] = qwen_bf16_float(half[i]);
	else
		for (int64_t i = 0; i < n; i++)
			dst[i] = qwen_f16_float(half[i]);
}

bool
qwen_host_vector_upload(qwen_device *dev, float *dst, const void *src, qwen_dtype source, int64_t n)
{
	qwen_widen(dst, src, source, n);
	return true;
}
