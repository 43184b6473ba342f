/*
 * linear_f32.cu
 *	  Products of up to 16 rows of float activations.
 *
 * The matrix units would narrow floats, so these are sums of the float units:
 * a warp has two output features, its lanes stride over k, four elements at a
 * time, and the lanes' sums are added at the end.  The order of a sum follows
 * from k alone.
 *
 * Floor: the bytes of the weights.  Float weights of four steps of two
 * features are in flight, 4 KiB a warp, and each activation that is loaded is
 * used twice; up to four rows that reaches the memory's rate, of 16 rows the
 * first-level cache, which gives the activations, is the bound.  Narrower
 * weights beside float activations come with quantisation of a float32
 * checkpoint alone: they are read element by element.
 */
#include "kernels/cuda/linear.h"

#define FEATURES 2 /* of a warp */
#define WARPS 8    /* of a block */
#define STEP 128   /* elements of k that a warp reads at a time */

/* Four elements of a row from i on; beyond k any of the row or zero. VECTOR: float weights, k a multiple of four, aligned. */
template <typename W, bool VECTOR>
static __device__ __forceinline__ float4
load_weights(const cuda_weights &w, int64_t row, int64_t i)
{
	if constexpr (VECTOR)
	{
		union
		{
			uint4 bits;
			float4 value;
		} four = {load_streaming(w.q + 4 * (row * w.k + (i < w.k ? i : w.k - 4)))};

		return four.value;
	}
	else
	{
		float v[4];

		for (int j = 0; j < 4; j++)
			v[j] = i + j < w.k ? weight_at<W>(w, row, i + j) : 0;
		return make_float4(v[0], v[1], v[2], v[3]);
	}
}

/* The same of activations, zero beyond k. */
template <bool VECTOR>
static __device__ __forceinline__ float4
load_x(const float *row, int64_t i, int64_t k)
{
	if constexpr (VECTOR)
	{
		float4 v = *reinterpret_cast<const float4 *>(row + (i < k ? i : k - 4));

		return i < k ? v : make_float4(0, 0, 0, 0);
	}
	else
	{
		float v[4];

		for (int j = 0; j < 4; j++)
			v[j] = i + j < k ? row[i + j] : 0;
		return make_float4(v[0], v[1], v[2], v[3]);
	}
}

static __device__ __forceinline__ float
add_four(float sum, float4 w, float4 x)
{
	return fmaf(w.w, x.w, fmaf(w.z, x.z, fmaf(w.y, x.y, fmaf(w.x, x.x, sum))));
}

/* Rows beyond `rows` are the last one once more, and not stored. */
template <typename W, int ROWS, bool VECTOR>
static __global__
__launch_bounds__(WARPS *WARP, 2) void linear_floats(float *__restrict__ out, cuda_weights w,
													 const float *__restrict__ bias, const float *__restrict__ x,
													 int rows)
{
	int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
	int64_t first = (static_cast<int64_t>(blockIdx.x) * WARPS + warp) * FEATURES;
	constexpr int AT_ONCE = ROWS > 4 ? 2 : 4; /* steps in flight: what the registers hold */
	float sums[FEATURES][ROWS] = {};

	for (int64_t start = 4 * lane; start < w.k; start += STEP * AT_ONCE)
	{
		float4 q[AT_ONCE][FEATURES];

#pragma unroll
		for (int i = 0; i < AT_ONCE * FEATURES; i++)
		{
			int64_t row = first + i % FEATURES;

			q[i / FEATURES][i % FEATURES] =
				load_weights<W, VECTOR>(w, row < w.n ? row : w.n - 1, start + i / FEATURES * STEP);
		}
#pragma unroll
		for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
			for (int t = 0; t < ROWS; t++)
			{
				float4 v = load_x<VECTOR>(x + (t < rows ? t : rows - 1) * w.k, start + i * STEP, w.k);

#pragma unroll
				for (int f = 0; f < FEATURES; f++)
					sums[f][t] = add_four(sums[f][t], q[i][f], v);
			}
	}
#pragma unroll
	for (int i = 0; i < FEATURES * ROWS; i++)
	{
		int64_t feature = first + i % FEATURES;
		float sum = warp_sum(sums[i % FEATURES][i / FEATURES]);

		if (lane == 0 && feature < w.n && i / FEATURES < rows)
			out[i / FEATURES * w.n + feature] = sum + (bias ? bias[feature] : 0);
	}
}

template <typename W, bool VECTOR>
static void
start(qwen_device *dev, const cuda_product *p)
{
	unsigned blocks = (unsigned) ((p->w.n + WARPS * FEATURES - 1) / (WARPS * FEATURES));
	const float *x = static_cast<const float *>(p->x);
	float *out = static_cast<float *>(p->out);
	cudaStream_t stream = cuda_of(dev)->stream;

	if (p->rows == 1)
		CUDA_LAUNCH((linear_floats<W, 1, VECTOR>), blocks, WARPS * WARP, 0, stream, out, p->w, p->bias, x, p->rows);
	else if (p->rows <= 4)
		CUDA_LAUNCH((linear_floats<W, 4, VECTOR>), blocks, WARPS * WARP, 0, stream, out, p->w, p->bias, x, p->rows);
	else
		CUDA_LAUNCH((linear_floats<W, 16, VECTOR>), blocks, WARPS * WARP, 0, stream, out, p->w, p->bias, x, p->rows);
}

void
cuda_linear_f32(qwen_device *dev, const cuda_product *p)
{
	int64_t row = p->w.k * (int64_t) sizeof(float);

	switch (p->dtype)
	{
		case QWEN_F32:
			if (cuda_loads_16(p->w.q, row) && cuda_loads_16(p->x, row))
				start<float, true>(dev, p);
			else
				start<float, false>(dev, p);
			break;
		case QWEN_F16:
			start<__half, false>(dev, p);
			break;
		case QWEN_BF16:
			start<__nv_bfloat16, false>(dev, p);
			break;
		case QWEN_INT8:
			start<int8_t, false>(dev, p);
			break;
		case QWEN_INT4:
			start<cuda_int4, false>(dev, p);
			break;
	}
	cuda_launched(dev, "linear_floats");
}
