/*
 * rope.cu
 *	  Between the product that gives q, k and v and attention: norms of heads,
 *	  RoPE, the cache's cells.
 *
 * One warp for each row and head, so that the sum of a head's squares needs no
 * barrier; heads of queries first, then those of keys, then those of values.
 * Elements of RoPE meet in pairs that lie half of the turned part apart: the
 * warp keeps the head as floats in shared memory, in which any lane reaches
 * any element.  Keys and values go to the cache straight from these floats;
 * only queries are written back, rounded to the activations' type.
 *
 * The floor is reading qkv and writing its queries and the cells; weights of
 * norms and the table of RoPE stay in the cache.  Rows that fill up a decode
 * step have no sequence and are left as they are.
 */
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_kv.h"

#define WARPS 4

/* Of one launch; qkv[rows, (n_q + 2 n_kv) dim] in place. */
typedef struct rope_job
{
	void *qkv;
	const float *q_norm, *k_norm; /* [dim], or NULL both */
	const float *rope;            /* [positions, rotary] */
	cuda_cache k, v;
	const cuda_seq *seqs;
	const int32_t *row_seq, *positions, *blocks;
	int32_t n_q, n_kv, dim, rotary;
	float eps;
} rope_job;

/* x[dim] = x / sqrt(mean(x^2) + eps) * w. Lanes touch their own elements only. */
static __device__ __forceinline__ void
norm_head(float *x, const float *w, int dim, float eps)
{
	int lane = (int) threadIdx.x % WARP;
	float sum = 0;

	for (int i = lane; i < dim; i += WARP)
		sum = fmaf(x[i], x[i], sum);
	sum = rsqrtf(warp_sum(sum) / (float) dim + eps);
	for (int i = lane; i < dim; i += WARP)
		x[i] = x[i] * sum * w[i];
}

/* Turns the pairs (i, i + rotary / 2); table = cos | sin of the position. */
static __device__ __forceinline__ void
turn_head(float *x, const float *table, int rotary)
{
	int half = rotary / 2;

	__syncwarp();
	for (int i = (int) threadIdx.x % WARP; i < half; i += WARP)
	{
		float a = x[i], b = x[i + half], c = table[i], s = table[i + half];

		x[i] = a * c - b * s;
		x[i + half] = b * c + a * s;
	}
	__syncwarp();
}

/* quant.h's qwen_quantize_row, by a warp: the same bytes, NaN included. */
static __device__ __forceinline__ void
quantize_head(signed char *cell, float *scale, const float *x, int dim)
{
	int lane = (int) threadIdx.x % WARP;
	float max = 0, inverse;

	for (int i = lane; i < dim; i += WARP)
		max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
	max = warp_max(max);
	inverse = max > 0 ? 127.0f / max : 0;
	for (int i = lane; i < dim; i += WARP)
	{
		float y = x[i] * inverse;

		y = y > -127.0f ? y : -127.0f;
		cell[i] = (signed char) rintf(y < 127.0f ? y : 127.0f);
	}
	if (lane == 0)
		*scale = max / 127.0f;
}

/* A head as C to its cell: int8 quantised as a whole, other types rounded. */
template <typename C>
static __device__ __forceinline__ void
store_head(const cuda_cache &cache, int64_t block, int32_t g, int32_t cell, const float *x)
{
	C *dst = cache_cell<C>(cache, block, g, cell);

	if constexpr (sizeof(C) == 1)
		quantize_head(dst, cache_scale(cache, block, g, cell), x, cache.dim);
	else
		for (int i = (int) threadIdx.x % WARP; i < cache.dim; i += WARP)
			dst[i] = from_float<C>(x[i]);
}

/* x: of queries j < n_q back to where they came from, of keys and values to their cell. */
template <typename T, typename C>
static __device__ __forceinline__ void
keep_head(const rope_job &job, T *qkv, int32_t row, int32_t j, const float *x)
{
	int32_t position = job.positions[row], g = (j - job.n_q) % job.n_kv;

	if (j < job.n_q)
	{
		for (int i = (int) threadIdx.x % WARP; i < job.dim; i += WARP)
			qkv[i] = from_float<T>(x[i]);
		return;
	}
	store_head<C>(j < job.n_q + job.n_kv ? job.k : job.v,
				  job.blocks[job.seqs[job.row_seq[row]].blocks + position / QWEN_KV_BLOCK], g, position % QWEN_KV_BLOCK,
				  x);
}

/* Blocks: row, WARPS of its heads. */
template <typename T, typename C>
static __global__ void
__launch_bounds__(WARPS *WARP) rope_heads(rope_job job)
{
	__shared__ float heads[WARPS][QWEN_MAX_HEAD_DIM];
	int warp = (int) threadIdx.x / WARP, lane = (int) threadIdx.x % WARP;
	int32_t row = (int32_t) blockIdx.x, j = (int32_t) blockIdx.y * WARPS + warp, n_heads = job.n_q + 2 * job.n_kv;
	T *qkv = static_cast<T *>(job.qkv) + ((int64_t) row * n_heads + j) * job.dim;
	float *x = heads[warp];

	if (j >= n_heads || job.row_seq[row] < 0)
		return;
	for (int i = lane; i < job.dim; i += WARP)
		x[i] = to_float(qkv[i]);
	if (j < job.n_q + job.n_kv)
	{
		const float *w = j < job.n_q ? job.q_norm : job.k_norm;

		if (w)
			norm_head(x, w, job.dim, job.eps);
		turn_head(x, job.rope + (int64_t) job.positions[row] * job.rotary, job.rotary);
	}
	keep_head<T, C>(job, qkv, row, j, x);
}

/* Types of activations T and of the cache: twelve kernels, of which a model uses one. */
template <typename T>
static void
launch(qwen_device *dev, const rope_job &job, qwen_dtype dtype, int32_t rows)
{
	int32_t n_heads = job.n_q + 2 * job.n_kv;
	auto kernel = dtype == QWEN_F32    ? rope_heads<T, float>
				  : dtype == QWEN_F16  ? rope_heads<T, __half>
				  : dtype == QWEN_BF16 ? rope_heads<T, __nv_bfloat16>
									   : rope_heads<T, signed char>;

	CUDA_LAUNCH(kernel, dim3((unsigned) rows, (unsigned) (n_heads + WARPS - 1) / WARPS), WARPS * WARP, 0,
				cuda_of(dev)->stream, job);
	cuda_launched(dev, "rope_heads");
}

/* All four types of caches are there. */
qwen_dtype
cuda_kv_dtype(const qwen_device *dev, qwen_dtype wanted)
{
	(void) dev;
	return wanted;
}

/* Of keys, or of values: half of what the planner counts for both. */
size_t
cuda_kv_block_bytes(const qwen_device *dev, qwen_dtype dtype, const qwen_heads *heads)
{
	(void) dev;
	return (size_t) cache_block_bytes(heads, dtype);
}

void
cuda_qk_rope_store(qwen_device *dev, void *d_qkv, const float *d_q_norm, const float *d_k_norm, const float *d_rope,
				   const qwen_heads *heads, const qwen_kv_layer *kv, const qwen_batch *batch)
{
	const cuda_batch *b = &cuda_of(dev)->batch;
	int32_t rows = cuda_rows(dev, batch->n_tokens);
	rope_job job;

	if (!cuda_ready(dev))
		return;
	job.qkv = d_qkv;
	job.q_norm = d_q_norm;
	job.k_norm = d_k_norm;
	job.rope = d_rope;
	job.k = cache_of(kv->k, kv->dtype, heads);
	job.v = cache_of(kv->v, kv->dtype, heads);
	job.seqs = b->seqs;
	job.row_seq = b->row_seq;
	job.positions = b->positions;
	job.blocks = b->blocks;
	job.n_q = heads->n_q;
	job.n_kv = heads->n_kv;
	job.dim = heads->dim;
	job.rotary = heads->rotary;
	job.eps = heads->eps;
	if (dev->act == QWEN_F32)
		launch<float>(dev, job, kv->dtype, rows);
	else if (dev->act == QWEN_F16)
		launch<__half>(dev, job, kv->dtype, rows);
	else
		launch<__nv_bfloat16>(dev, job, kv->dtype, rows);
}
