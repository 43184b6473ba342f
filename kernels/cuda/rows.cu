/*
 * rows.cu
 *	  What is done row by row: embedding, sums and norms, SwiGLU, gather.
 *
 * All of it is bound by memory: every element is read and written once, four
 * at a time where rows are whole multiples of four, by kernels that hold
 * nothing but what they sum.  Rows of other lengths take the same kernels
 * element by element.
 *
 * The residual stream is float; what goes into a product is of the
 * activations' type and rounded once, at the end.  Arithmetic is float.
 *
 * Floors, in bytes of a row of h elements of a bytes each: norm 2 * 4 h + 2 a h
 * (and the weights, which stay in the cache), add 2 * 4 h + a h, SwiGLU 3 a f.
 * In a decode step all of it is short of a launch's own time, so what counts
 * there is that each is one launch with one trip to memory.
 */
#include "kernels/cuda/cuda_device.h"

/* Threads of a block where rows are not work of their own. */
#define FLAT_THREADS 256
/* Blocks of four elements that a thread of add_rmsnorm keeps between its two passes: rows up to 16384 elements. */
#define KEPT 4

/* Four elements that are read or written at once. */
template <typename T> struct alignas(4 * sizeof(T)) quad
{
	T v[4];
};

/* ---- embedding ---- */

/* Element i of a row of k elements of float types. */
template <typename T>
static __device__ __forceinline__ float
plain_element(const unsigned char *data, int64_t row, int64_t k, int64_t i)
{
	return to_float(reinterpret_cast<const T *>(data)[row * k + i]);
}

/* A scale or minimum. */
static __device__ __forceinline__ float
bf16_at(const unsigned char *p, int64_t i)
{
	return to_float(reinterpret_cast<const __nv_bfloat16 *>(p)[i]);
}

/* q d; the rows' groups are whole, their scales d [n, groups] begin at `scales`. */
static __device__ __forceinline__ float
int8_element(const unsigned char *data, const unsigned char *scales, int64_t row, int64_t groups, int64_t i)
{
	int q = reinterpret_cast<const signed char *>(data)[row * groups * QWEN_GROUP + i];

	return (float) q * bf16_at(scales, row * groups + i / QWEN_GROUP);
}

/* q d + m; byte b of a group's 32 has elements b and b + 32, d and m alternate from `scales` on. */
static __device__ __forceinline__ float
int4_element(const unsigned char *data, const unsigned char *scales, int64_t row, int64_t groups, int64_t i)
{
	int64_t group = row * groups + i / QWEN_GROUP;
	int at = (int) (i % QWEN_GROUP);
	int pair = data[group * (QWEN_GROUP / 2) + at % (QWEN_GROUP / 2)];
	int q = at < QWEN_GROUP / 2 ? pair & 15 : pair >> 4;

	return fmaf((float) q, bf16_at(scales, 2 * group), bf16_at(scales, 2 * group + 1));
}

/*
 * Element i of row `row` of a matrix [n, k] as float: the layouts of matrix.cu.  The type is known to the compiler, so
 * one of the returns is all that remains.
 */
template <int dtype>
static __device__ __forceinline__ float
element(const unsigned char *data, const unsigned char *scales, int64_t row, int64_t k, int64_t i)
{
	int64_t groups = (k + QWEN_GROUP - 1) / QWEN_GROUP;

	if (dtype == QWEN_F32)
		return plain_element<float>(data, row, k, i);
	if (dtype == QWEN_F16)
		return plain_element<__half>(data, row, k, i);
	if (dtype == QWEN_BF16)
		return plain_element<__nv_bfloat16>(data, row, k, i);
	if (dtype == QWEN_INT8)
		return int8_element(data, scales, row, groups, i);
	return int4_element(data, scales, row, groups, i);
}

/* One block a row. out[rows, k]; an id of -1 is a token that another shard has. */
template <int dtype>
static __global__ void
embed_rows(float *__restrict__ out, const unsigned char *__restrict__ data, const unsigned char *__restrict__ scales,
		   const int32_t *__restrict__ ids, int64_t k)
{
	int64_t id = ids[blockIdx.x];

	out += blockIdx.x * k;
	for (int64_t i = threadIdx.x; i < k; i += blockDim.x)
		out[i] = id < 0 ? 0 : element<dtype>(data, scales, id, k, i);
}

/*
 * The ids of n of the step's tokens on the device: its own copy, where they are the step's; those that a shard makes of
 * them take its place.  They come from pageable memory, of which the call has its copy before it returns: the engine
 * writes the next shard's ids to the same place.  NULL: failed.
 */
static const int32_t *
ids_on_device(qwen_device *dev, const int32_t *ids, int32_t n)
{
	cuda_device *d = cuda_of(dev);
	const cuda_batch *b = &d->batch;
	size_t bytes = (size_t) n * sizeof(int32_t);

	if (b->engine == NULL || n > b->rows)
	{
		cuda_fail(dev, "an embedding", "more ids than the step has rows");
		return NULL;
	}
	if (ids != b->engine->tokens &&
		!cuda_check(dev, cudaMemcpyAsync(b->tokens, ids, bytes, cudaMemcpyHostToDevice, d->stream), "sending ids"))
		return NULL;
	return b->tokens;
}

/* Bytes of quantised elements, up to the border where the scales begin. */
static size_t
scales_offset(const qwen_matrix *e)
{
	size_t groups = (size_t) (e->k + QWEN_GROUP - 1) / QWEN_GROUP;

	return cuda_align((size_t) e->n * groups * (e->dtype == QWEN_INT8 ? QWEN_GROUP : QWEN_GROUP / 2));
}

/* The padding of a decode step is looked up too, as token 0: what it holds must be finite, no more. */
void
cuda_embed(qwen_device *dev, float *d_out, const qwen_matrix *e, const int32_t *ids, int32_t n)
{
	static void (*const kernels[])(float *, const unsigned char *, const unsigned char *, const int32_t *, int64_t) = {
		embed_rows<QWEN_F32>, embed_rows<QWEN_F16>, embed_rows<QWEN_BF16>, embed_rows<QWEN_INT8>, embed_rows<QWEN_INT4>,
	};
	const unsigned char *data = (const unsigned char *) e->data;
	const int32_t *d_ids;

	if (!cuda_ready(dev) || n < 1 || (d_ids = ids_on_device(dev, ids, n)) == NULL)
		return;
	CUDA_LAUNCH(kernels[e->dtype], (unsigned) cuda_rows(dev, n), FLAT_THREADS, 0, cuda_of(dev)->stream, d_out, data,
				data + scales_offset(e), d_ids, e->k);
	cuda_launched(dev, "embed_rows");
}

/* ---- sums and norms ---- */

/* x + delta, four elements of a row that are read with one load each. */
template <typename T>
static __device__ __forceinline__ quad<float>
add_quad(quad<float> x, const quad<T> &delta)
{
	for (int i = 0; i < 4; i++)
		x.v[i] += to_float(delta.v[i]);
	return x;
}

/* out = x scale w, likewise. */
template <typename T>
static __device__ __forceinline__ void
store_quad(quad<T> *out, const quad<float> &x, float scale, const quad<float> &w)
{
	quad<T> y;

	for (int i = 0; i < 4; i++)
		y.v[i] = from_float<T>(x.v[i] * scale * w.v[i]);
	*out = y;
}

/*
 * out = (resid += delta) / sqrt(mean(resid^2) + eps) * w, one block a row of at most KEPT * blockDim.x quads.
 *
 * A thread's part of the row stays in its registers between the sum and the scaling, so memory is read once; all loads
 * of a thread are independent of each other.  How many threads there are and where each begins depends on h alone, so
 * the order of the sum does.
 */
template <typename T>
static __global__ void __launch_bounds__(1024)
	norm_quads(T *__restrict__ out, float *__restrict__ resid, const T *__restrict__ delta, const float *__restrict__ w,
			   int64_t h, float eps)
{
	__shared__ float buffer[WARP + 1];
	int n = (int) (h / 4);
	quad<float> *x = reinterpret_cast<quad<float> *>(resid + blockIdx.x * h);
	const quad<T> *d = delta ? reinterpret_cast<const quad<T> *>(delta + blockIdx.x * h) : NULL;
	quad<T> *y = reinterpret_cast<quad<T> *>(out + blockIdx.x * h);
	quad<float> kept[KEPT];
	float sum = 0;

#pragma unroll
	for (int j = 0; j < KEPT; j++)
	{
		int i = (int) threadIdx.x + j * (int) blockDim.x;

		if (i >= n)
			continue;
		kept[j] = x[i];
		if (d)
			x[i] = kept[j] = add_quad(kept[j], d[i]);
		for (int e = 0; e < 4; e++)
			sum = fmaf(kept[j].v[e], kept[j].v[e], sum);
	}
	sum = block_sum(sum, buffer);
	sum = rsqrtf(sum / (float) h + eps);
#pragma unroll
	for (int j = 0; j < KEPT; j++)
	{
		int i = (int) threadIdx.x + j * (int) blockDim.x;

		if (i < n)
			store_quad(&y[i], kept[j], sum, reinterpret_cast<const quad<float> *>(w)[i]);
	}
}

/* The same of rows of any length: what a thread has written it reads again, most likely from the cache. */
template <typename T>
static __global__ void
norm_elements(T *__restrict__ out, float *__restrict__ resid, const T *__restrict__ delta, const float *__restrict__ w,
			  int64_t h, float eps)
{
	__shared__ float buffer[WARP + 1];
	int64_t row = blockIdx.x * h;
	float sum = 0;

	for (int64_t i = threadIdx.x; i < h; i += blockDim.x)
	{
		float x = resid[row + i];

		if (delta)
			x += to_float(delta[row + i]);
		resid[row + i] = x;
		sum = fmaf(x, x, sum);
	}
	sum = block_sum(sum, buffer);
	sum = rsqrtf(sum / (float) h + eps);
	for (int64_t i = threadIdx.x; i < h; i += blockDim.x)
		out[row + i] = from_float<T>(resid[row + i] * sum * w[i]);
}

/* Whole warps that share n items, one each where a block can have so many. */
static unsigned
threads_for(int64_t n)
{
	int64_t threads = (n + WARP - 1) / WARP * WARP;

	return (unsigned) (threads > 1024 ? 1024 : threads);
}

template <typename T>
static void
norm(qwen_device *dev, void *d_out, float *d_resid, const void *d_delta, const float *d_w, int32_t rows, int64_t h,
	 float eps)
{
	bool quads = h % 4 == 0 && h / 4 <= KEPT * 1024;
	auto kernel = quads ? norm_quads<T> : norm_elements<T>;

	CUDA_LAUNCH(kernel, (unsigned) rows, threads_for(quads ? h / 4 : h), 0, cuda_of(dev)->stream, (T *) d_out, d_resid,
				(const T *) d_delta, d_w, h, eps);
	cuda_launched(dev, "add_rmsnorm");
}

void
cuda_add_rmsnorm(qwen_device *dev, void *d_out, float *d_resid, const void *d_delta, const float *d_w, int32_t n,
				 int64_t h, float eps)
{
	int32_t rows = cuda_rows(dev, n);

	if (!cuda_ready(dev) || n < 1)
		return;
	if (dev->act == QWEN_F32)
		norm<float>(dev, d_out, d_resid, d_delta, d_w, rows, h, eps);
	else if (dev->act == QWEN_F16)
		norm<__half>(dev, d_out, d_resid, d_delta, d_w, rows, h, eps);
	else
		norm<__nv_bfloat16>(dev, d_out, d_resid, d_delta, d_w, rows, h, eps);
}

/* resid[n] += delta[n], n: of quads where they are whole, of elements otherwise. Rows play no part in it. */
template <typename T, bool quads>
static __global__ void
add_rows(float *__restrict__ resid, const T *__restrict__ delta, int64_t n)
{
	for (int64_t i = (int64_t) blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t) gridDim.x * blockDim.x)
		if (quads)
		{
			quad<float> *x = reinterpret_cast<quad<float> *>(resid) + i;

			*x = add_quad(*x, reinterpret_cast<const quad<T> *>(delta)[i]);
		}
		else
			resid[i] += to_float(delta[i]);
}

/* Blocks for n items of work that stand in a row: as many as the device runs at once, no more. */
static unsigned
flat_blocks(const qwen_device *dev, int64_t n)
{
	int64_t blocks = (n + FLAT_THREADS - 1) / FLAT_THREADS, most = (int64_t) cuda_of(dev)->n_sms * 8;

	return (unsigned) (blocks > most ? most : blocks);
}

template <typename T>
static void
add(qwen_device *dev, float *d_resid, const void *d_delta, int64_t n)
{
	bool quads = n % 4 == 0;
	auto kernel = quads ? add_rows<T, true> : add_rows<T, false>;

	n = quads ? n / 4 : n;
	CUDA_LAUNCH(kernel, flat_blocks(dev, n), FLAT_THREADS, 0, cuda_of(dev)->stream, d_resid, (const T *) d_delta, n);
	cuda_launched(dev, "add_rows");
}

void
cuda_add(qwen_device *dev, float *d_resid, const void *d_delta, int32_t n, int64_t h)
{
	int64_t all = cuda_rows(dev, n) * h;

	if (!cuda_ready(dev) || all < 1)
		return;
	if (dev->act == QWEN_F32)
		add<float>(dev, d_resid, d_delta, all);
	else if (dev->act == QWEN_F16)
		add<__half>(dev, d_resid, d_delta, all);
	else
		add<__nv_bfloat16>(dev, d_resid, d_delta, all);
}

/* ---- SwiGLU ---- */

/* silu(gate) up, with silu(z) = z / (1 + exp(-z)); exp beyond the range of float gives 0, as it should. */
static __device__ __forceinline__ float
swiglu_element(float gate, float up)
{
	return gate / (1.0f + expf(-gate)) * up;
}

/* out[t, f] = silu(x[t, 0..f)) x[t, f..2f); f as add_rows counts. Blocks: row, part of the row. */
template <typename T, bool quads>
static __global__ void
swiglu_rows(T *__restrict__ out, const T *__restrict__ x, int64_t f)
{
	int64_t i = (int64_t) blockIdx.y * FLAT_THREADS + threadIdx.x, row = blockIdx.x * f;

	if (i >= f)
		return;
	if (quads)
	{
		const quad<T> *gate = reinterpret_cast<const quad<T> *>(x) + 2 * row + i;
		quad<T> y = gate[0], up = gate[f];

		for (int e = 0; e < 4; e++)
			y.v[e] = from_float<T>(swiglu_element(to_float(y.v[e]), to_float(up.v[e])));
		reinterpret_cast<quad<T> *>(out)[row + i] = y;
	}
	else
		out[row + i] = from_float<T>(swiglu_element(to_float(x[2 * row + i]), to_float(x[2 * row + f + i])));
}

template <typename T>
static void
swiglu(qwen_device *dev, void *d_out, const void *d_x, int32_t rows, int64_t f)
{
	bool quads = f % 4 == 0;
	auto kernel = quads ? swiglu_rows<T, true> : swiglu_rows<T, false>;

	f = quads ? f / 4 : f;
	CUDA_LAUNCH(kernel, dim3((unsigned) rows, (unsigned) ((f + FLAT_THREADS - 1) / FLAT_THREADS)), FLAT_THREADS, 0,
				cuda_of(dev)->stream, (T *) d_out, (const T *) d_x, f);
	cuda_launched(dev, "swiglu_rows");
}

void
cuda_swiglu(qwen_device *dev, void *d_out, const void *d_x, int32_t n, int64_t f)
{
	int32_t rows = cuda_rows(dev, n);

	if (!cuda_ready(dev) || n < 1)
		return;
	if (dev->act == QWEN_F32)
		swiglu<float>(dev, d_out, d_x, rows, f);
	else if (dev->act == QWEN_F16)
		swiglu<__half>(dev, d_out, d_x, rows, f);
	else
		swiglu<__nv_bfloat16>(dev, d_out, d_x, rows, f);
}

/* ---- gather ---- */

/* out[i] = x[rows[i]], one block a row of h elements, or of h blocks of 16 bytes: bits are moved, not numbers. */
template <typename T>
static __global__ void
gather_rows(T *__restrict__ out, const T *__restrict__ x, const int32_t *__restrict__ rows, int64_t h)
{
	x += rows[blockIdx.x] * h;
	out += blockIdx.x * h;
	for (int64_t i = threadIdx.x; i < h; i += blockDim.x)
		out[i] = x[i];
}

/* The rows are those that the step wants logits of: the device has them. */
void
cuda_gather(qwen_device *dev, void *d_out, const void *d_x, const int32_t *rows, int32_t n, int64_t h)
{
	const int32_t *d_rows = cuda_of(dev)->batch.logit_rows;
	cudaStream_t stream = cuda_of(dev)->stream;
	int64_t bytes = h * (int64_t) dev->act_bytes;

	(void) rows;
	if (!cuda_ready(dev) || n < 1)
		return;
	if (bytes % 16 == 0)
		CUDA_LAUNCH(gather_rows<uint4>, (unsigned) n, FLAT_THREADS, 0, stream, (uint4 *) d_out, (const uint4 *) d_x,
					d_rows, bytes / 16);
	else if (dev->act_bytes == 2)
		CUDA_LAUNCH(gather_rows<uint16_t>, (unsigned) n, FLAT_THREADS, 0, stream, (uint16_t *) d_out,
					(const uint16_t *) d_x, d_rows, h);
	else
		CUDA_LAUNCH(gather_rows<float>, (unsigned) n, FLAT_THREADS, 0, stream, (float *) d_out, (const float *) d_x,
					d_rows, h);
	cuda_launched(dev, "gather_rows");
}
