/*
 * host.h
 *	  Devices whose memory is the process's own: memory, and what they do for
 *	  each other.  Shared by ref/ and cpu/.
 */
#ifndef QWEN_HOST_H
#define QWEN_HOST_H

#include "kernels.h"

/* Frees the device alone. */
void qwen_host_close(qwen_device *dev);

void *qwen_host_alloc(qwen_device *dev, size_t bytes);
void qwen_host_free(qwen_device *dev, void *p, size_t bytes);
bool qwen_host_upload(qwen_device *dev, void *dst, const void *src, size_t bytes);
bool qwen_host_download(qwen_device *dev, void *dst, const void *src, size_t bytes);
bool qwen_host_synchronize(qwen_device *dev);

bool qwen_host_join(qwen_device *const *devs, int n);
bool qwen_host_sum(qwen_device *const *devs, void *const *d_x, int n, int64_t count);
bool qwen_host_sum_resid(qwen_device *const *devs, float *const *d_x, int n, int64_t count);
bool qwen_host_copy(qwen_device *dev, void *d_dst, qwen_device *from, const void *d_src, size_t bytes);

/* All on the calling thread. */
void qwen_host_loop(qwen_device *dev, int64_t n, int64_t grain, qwen_loop_fn fn, void *arg);

size_t qwen_host_no_scratch(const qwen_device *dev, const qwen_needs *needs);

/* Operations are done when they return: there is nothing to announce and nothing to record. */
bool qwen_host_step(qwen_device *dev, const qwen_batch *batch);
bool qwen_host_segment_begin(qwen_device *dev, int id);
void qwen_host_segment_end(qwen_device *dev);

void qwen_host_add(qwen_device *dev, float *d_resid, const void *d_delta, int32_t n, int64_t h);

bool qwen_host_vector_upload(qwen_device *dev, float *dst, const void *src, qwen_dtype source, int64_t n);

/* dst[n] = src[n], widened. */
void qwen_widen(float *dst, const void *src, qwen_dtype source, int64_t n);

#endif
