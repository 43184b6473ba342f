/*
 * host.h
 *	  Device memory of the processors whose memory is the process's own.
 *	  Shared by ref/ and cpu/.
 */
#ifndef QWEN_HOST_H
#define QWEN_HOST_H

#include "kernels.h"

void *qwen_host_alloc(qwen_device *dev, size_t bytes);
void qwen_host_free(qwen_device *dev, void *p, size_t bytes);
bool qwen_host_upload(qwen_device *dev, void *dst, const void *src, size_t bytes);
bool qwen_host_download(qwen_device *dev, void *dst, const void *src, size_t bytes);
bool qwen_host_synchronize(qwen_device *dev);

/* All on the calling thread. */
void qwen_host_loop(qwen_device *dev, int64_t n, int64_t grain, qwen_loop_fn fn, void *arg);

/* [n_kv][QWEN_KV_BLOCK][dim] */
size_t qwen_host_kv_block_bytes(const qwen_device *dev, qwen_dtype dtype, const qwen_heads *heads);
size_t qwen_host_no_scratch(const qwen_device *dev, int32_t rows, int64_t k);

bool qwen_host_vector_upload(qwen_device *dev, float *dst, const void *src, qwen_dtype source, int64_t n);

/* dst[n] = src[n], widened. */
void qwen_widen(float *dst, const void *src, qwen_dtype source, int64_t n);

#endif
