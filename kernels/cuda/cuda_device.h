/*
 * cuda_device.h
 *	  A device of the plug-in, and what its files do for each other.
 *
 *	  plugin.cu     what qwen_cuda.so exports, the table of operations
 *	  device.cu     memory, copies, errors
 *	  batch.cu      a step's batch on the device
 *	  graph.cu      stretches of a step that are recorded and repeated
 *	  comm.cu       sums over devices: NCCL, or own copies and a kernel (QWEN_NO_NCCL: these alone)
 *	  blas.cu       products of many rows (cuBLASLt)
 *	  matrix.cu     weights as they are stored
 *	  linear.cu     products: which kernel, and those of few rows
 *	  rows.cu       embedding, norms, SwiGLU, gather
 *	  rope.cu       head norms, RoPE, the cache's cells
 *	  attention.cu  attention: which kernel; decode.cu, prefill.cu: the kernels
 *
 * Errors.  Operations return nothing: the first error of a device is kept in
 * `failed`, told to the log once, and makes every later operation a no-op;
 * synchronize says so, and the engine ends.
 */
#ifndef QWEN_CUDA_DEVICE_H
#define QWEN_CUDA_DEVICE_H

#include <atomic>

#include "cuda_batch.h"
#include "cuda_math.h"
#include "cuda_scratch.h"
#include "plugin.h"

/* Bytes of each of the two pinned buffers that copies from and to the host pass through. */
#define CUDA_STAGING ((size_t) 8 << 20)

typedef struct cuda_staging cuda_staging;
typedef struct cuda_steps cuda_steps;
typedef struct cuda_blas cuda_blas;
typedef struct cuda_graphs cuda_graphs;
typedef struct cuda_comm cuda_comm;

/* qwen_device.priv */
typedef struct cuda_device
{
	int index;        /* of the GPU among the visible ones */
	int n_sms;        /* its multiprocessors */
	int capability;   /* 90 for sm_90 */
	int shared_bytes; /* shared memory that a block may have */
	cudaStream_t stream;
	cudaEvent_t event;               /* for other devices to wait for */
	std::atomic<cudaError_t> failed; /* the first error; threads that upload may meet it at once */
	uint64_t peers;                  /* bit i: how memory of GPU i is reached has been settled */
	cuda_staging *staging;
	cuda_steps *steps; /* buffers of batches on their way */
	cuda_blas *blas;
	cuda_graphs *graphs;
	cuda_comm *comm; /* of a stage of several devices; NULL: no partners */
	cuda_batch batch;
} cuda_device;

static inline cuda_device *
cuda_of(const qwen_device *dev)
{
	return (cuda_device *) dev->priv;
}

/* ---- device.cu ---- */

/* Makes the device's GPU the thread's current one; false when the device has failed: do nothing then. */
bool cuda_ready(qwen_device *dev);
/* Notes an error; true when there is none. */
bool cuda_check(qwen_device *dev, cudaError_t error, const char *what);
/* Notes a failure that is not an error of the runtime: of a library, or a step beyond the device's needs. */
void cuda_fail(qwen_device *dev, const char *what, const char *why);
/* After a launch. */
void cuda_launched(qwen_device *dev, const char *kernel);

cuda_staging *cuda_staging_new(void);
void cuda_staging_free(cuda_staging *staging);
/* `dev` goes on when all that is queued on `other` by now is done; both of this plug-in. */
bool cuda_wait_for(qwen_device *dev, qwen_device *other);

void *cuda_alloc(qwen_device *dev, size_t bytes);
void cuda_free(qwen_device *dev, void *p, size_t bytes);
bool cuda_upload(qwen_device *dev, void *d_dst, const void *src, size_t bytes);
bool cuda_download(qwen_device *dev, void *dst, const void *d_src, size_t bytes);
bool cuda_synchronize(qwen_device *dev);
bool cuda_copy(qwen_device *dev, void *d_dst, qwen_device *from, const void *d_src, size_t bytes);
void cuda_loop(qwen_device *dev, int64_t n, int64_t grain, qwen_loop_fn fn, void *arg);

/* A part of dev->scratch. */
static inline void *
cuda_scratch_at(const qwen_device *dev, size_t offset)
{
	return (char *) dev->scratch + offset;
}

/* ---- batch.cu, beside cuda_batch.h ---- */

cuda_steps *cuda_steps_new(void);
void cuda_steps_free(cuda_steps *steps);

/* ---- graph.cu ---- */

cuda_graphs *cuda_graphs_new(void);
void cuda_graphs_free(cuda_graphs *graphs);
bool cuda_segment_begin(qwen_device *dev, int id);
void cuda_segment_end(qwen_device *dev);

/* ---- comm.cu ---- */

bool cuda_join(qwen_device *const *devs, int n);
bool cuda_sum(qwen_device *const *devs, void *const *d_x, int n, int64_t count);
bool cuda_sum_resid(qwen_device *const *devs, float *const *d_x, int n, int64_t count);
void cuda_comm_leave(qwen_device *dev);

/* ---- blas.cu ---- */

cuda_blas *cuda_blas_new(void);
void cuda_blas_free(cuda_blas *blas);
/*
 * out[rows, n] = x[rows, k] w[n, k]^T + bias[n] of one type for x and w; out of type `out_type`, rows of out `out_stride`
 * elements apart; float sums; bias float or NULL.  Workspace: the blas part of dev->scratch.
 */
void cuda_blas_product(qwen_device *dev, void *out, qwen_dtype out_type, int64_t out_stride, const void *w,
					   const void *x, qwen_dtype type, const float *bias, int64_t rows, int64_t n, int64_t k);

/* ---- matrix.cu: row-major elements, then scales (and minima) at the next border of CUDA_ALIGN ---- */

qwen_dtype cuda_matrix_dtype(const qwen_device *dev, qwen_dtype wanted);
size_t cuda_matrix_bytes(const qwen_device *dev, qwen_dtype dtype, int64_t n, int64_t k);
bool cuda_matrix_upload(qwen_device *dev, qwen_matrix *m, int64_t row, int64_t n_rows, const void *src,
						qwen_dtype source);
bool cuda_vector_upload(qwen_device *dev, float *d_dst, const void *src, qwen_dtype source, int64_t n);
/* out[n_rows, k] of the device's activations' type = rows [row, row + n_rows) of a quantised matrix. */
void cuda_widen_rows(qwen_device *dev, void *d_out, const qwen_matrix *m, int64_t row, int64_t n_rows);

/* ---- linear.cu ---- */

void cuda_linear(qwen_device *dev, void *d_out, const qwen_matrix *w, const float *d_bias, const void *d_x,
				 int32_t rows);
bool cuda_logits(qwen_device *dev, float *out, const qwen_matrix *head, const void *d_x, int32_t rows);

/* ---- rows.cu ---- */

void cuda_embed(qwen_device *dev, float *d_out, const qwen_matrix *e, const int32_t *ids, int32_t n);
void cuda_add_rmsnorm(qwen_device *dev, void *d_out, float *d_resid, const void *d_delta, const float *d_w, int32_t n,
					  int64_t h, float eps);
void cuda_add(qwen_device *dev, float *d_resid, const void *d_delta, int32_t n, int64_t h);
void cuda_swiglu(qwen_device *dev, void *d_out, const void *d_x, int32_t n, int64_t f);
void cuda_gather(qwen_device *dev, void *d_out, const void *d_x, const int32_t *rows, int32_t n, int64_t h);

/* ---- rope.cu ---- */

qwen_dtype cuda_kv_dtype(const qwen_device *dev, qwen_dtype wanted);
size_t cuda_kv_block_bytes(const qwen_device *dev, qwen_dtype dtype, const qwen_heads *heads);
void cuda_qk_rope_store(qwen_device *dev, void *d_qkv, const float *d_q_norm, const float *d_k_norm,
						const float *d_rope, const qwen_heads *heads, const qwen_kv_layer *kv, const qwen_batch *batch);

/* ---- attention.cu, decode.cu, prefill.cu ---- */

void cuda_attention(qwen_device *dev, void *d_out, const void *d_qkv, const qwen_heads *heads, const qwen_kv_layer *kv,
					const qwen_batch *batch);
void cuda_attention_decode(qwen_device *dev, void *d_out, const void *d_qkv, const qwen_heads *heads,
						   const qwen_kv_layer *kv);
void cuda_attention_prefill(qwen_device *dev, void *d_out, const void *d_qkv, const qwen_heads *heads,
							const qwen_kv_layer *kv);

#endif
