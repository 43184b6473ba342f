/*
 * host.c
 *	  Device memory of the processors whose memory is the process's own.
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

void
qwen_host_loop(qwen_device *dev, int64_t n, int64_t grain, qwen_loop_fn fn, void *arg)
{
	fn(arg, 0, n);
}

size_t
qwen_host_kv_block_bytes(const qwen_device *dev, qwen_dtype dtype, const qwen_heads *heads)
{
	return (size_t) heads->n_kv * QWEN_KV_BLOCK * (size_t) heads->dim * qwen_dtype_bytes(dtype);
}

size_t
qwen_host_no_scratch(const qwen_device *dev, int32_t rows, int64_t k)
{
	return 0;
}

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
