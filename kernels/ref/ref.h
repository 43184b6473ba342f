/*
 * ref.h
 *	  The scalar oracle: plain loops in float, one thread, one file a concern.
 *
 * Every other set is tested against this one, so it is written to be read:
 * weights and cache are float, each formula stands as in the specification.
 */
#ifndef QWEN_REF_H
#define QWEN_REF_H

#include "../kernels.h"

qwen_dtype qwen_ref_matrix_dtype(const qwen_device *dev, qwen_dtype wanted);
size_t qwen_ref_matrix_bytes(const qwen_device *dev, qwen_dtype dtype, int64_t n, int64_t k);
bool qwen_ref_matrix_upload(qwen_device *dev, qwen_matrix *m, int64_t row, int64_t n_rows, const void *src,
							qwen_dtype source);
void qwen_ref_embed(qwen_device *dev, float *d_out, const qwen_matrix *e, const int32_t *ids, int32_t n);
void qwen_ref_add_rmsnorm(qwen_device *dev, void *d_out, float *d_resid, const void *d_delta, const float *d_w,
						  int32_t n, int64_t h, float eps);
void qwen_ref_linear(qwen_device *dev, void *d_out, const qwen_matrix *w, const float *d_bias, const void *d_x,
					 int32_t rows);
qwen_dtype qwen_ref_kv_dtype(const qwen_device *dev, qwen_dtype wanted);
size_t qwen_ref_kv_block_bytes(const qwen_device *dev, qwen_dtype dtype, const qwen_heads *heads);
void qwen_ref_qk_rope_store(qwen_device *dev, void *d_qkv, const float *d_q_norm, const float *d_k_norm,
							const float *d_rope, const qwen_heads *heads, const qwen_kv_layer *kv,
							const qwen_batch *batch);
void qwen_ref_attention(qwen_device *dev, void *d_out, const void *d_qkv, const qwen_heads *heads,
						const qwen_kv_layer *kv, const qwen_batch *batch);
void qwen_ref_swiglu(qwen_device *dev, void *d_out, const void *d_x, int32_t n, int64_t f);
void qwen_ref_gather(qwen_device *dev, void *d_out, const void *d_x, const int32_t *rows, int32_t n, int64_t h);
bool qwen_ref_logits(qwen_device *dev, float *out, const qwen_matrix *head, const void *d_x, int32_t rows);

#endif
