/*
 * cuda_math.h
 *	  What the kernels are written in: conversions, loads, reductions, products
 *	  of tiles.
 *
 * Everything that is neither plain C++ nor one of the words of CUDA below goes
 * through these functions, because the kernels are compiled twice: by nvcc for
 * GPUs, and by a C++ compiler against test/gpu/emulated/, where a block's
 * threads are fibers, so that every kernel can be checked on any machine.
 *
 *	  __global__ __device__ __shared__ (static arrays) __launch_bounds__ __restrict__ __forceinline__
 *	  threadIdx blockIdx blockDim gridDim, __syncthreads, __syncwarp
 *	  __shfl_xor_sync __shfl_sync __shfl_down_sync (int, unsigned, float; full mask), __ballot_sync
 *	  __float2bfloat16 __bfloat162float __float2half __half2float
 *	  float2 float4 int2 int4 uint2 uint4 and their make_ functions, __dp4a
 *	  expf exp2f logf rsqrtf fmaf fmaxf fminf fabsf rintf, __expf, __ldg
 *
 * Dynamic shared memory is declared with CUDA_SHARED, kernels are started with
 * CUDA_LAUNCH.
 */
#ifndef QWEN_CUDA_MATH_H
#define QWEN_CUDA_MATH_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#define WARP 32
#define ALL_LANES 0xffffffffu

#ifdef QWEN_CUDA_EMULATED
#include "emulated_math.h"
#else

/* `name` points to the block's dynamic shared memory, aligned to 16 bytes. */
#define CUDA_SHARED(type, name)                                                                                        \
	extern __shared__ __align__(16) unsigned char cuda_dynamic_shared[];                                               \
	type *name = reinterpret_cast<type *>(cuda_dynamic_shared)

/* kernel: parenthesised if it has commas. */
#define CUDA_LAUNCH(kernel, grid, block, shared, stream, ...) kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)

/* 16 bytes from device to shared memory, behind the thread's back; bytes beyond `valid` become zero. */
static __device__ __forceinline__ void
copy_async_16(void *shared, const void *global, int valid = 16)
{
	unsigned dst = static_cast<unsigned>(__cvta_generic_to_shared(shared));

	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(dst), "l"(global), "r"(valid));
}

static __device__ __forceinline__ void
copy_async_commit(void)
{
	asm volatile("cp.async.commit_group;\n" ::);
}

/* Waits until at most `pending` of this thread's groups are under way. */
template <int pending>
static __device__ __forceinline__ void
copy_async_wait(void)
{
	asm volatile("cp.async.wait_group %0;\n" ::"n"(pending));
}

/*
 * d[16, 8] += a[16, 16] b[16, 8] of a warp, float sums.  Lane l has, with r = l / 4 and c = l % 4:
 * a0: (r, 2c..2c+1)  a1: (r+8, 2c..)  a2: (r, 2c+8..)  a3: (r+8, 2c+8..), two 16-bit elements each, the lower first;
 * b0: (k = 2c..2c+1, column r)  b1: (k = 2c+8.., column r);  d: (r, 2c) (r, 2c+1) (r+8, 2c) (r+8, 2c+1).
 */
static __device__ __forceinline__ void
mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
				 "{%0,%1,%2,%3};\n"
				 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
				 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ __forceinline__ void
mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
				 "{%0,%1,%2,%3};\n"
				 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
				 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8x8 matrices of 16-bit elements from shared memory: lane l gives the address of row l % 8 of matrix l / 8. */
static __device__ __forceinline__ void
load_matrices(uint32_t r[4], const void *row)
{
	unsigned src = static_cast<unsigned>(__cvta_generic_to_shared(row));

	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
				 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
				 : "r"(src));
}

/* The same, each matrix transposed. */
static __device__ __forceinline__ void
load_matrices_transposed(uint32_t r[4], const void *row)
{
	unsigned src = static_cast<unsigned>(__cvta_generic_to_shared(row));

	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
				 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
				 : "r"(src));
}

/* 16 bytes that are read once: they pass the caches by. */
static __device__ __forceinline__ uint4
load_streaming(const void *p)
{
	return __ldcs(static_cast<const uint4 *>(p));
}

#endif

/* ---- element types ---- */

static __device__ __forceinline__ float
to_float(float x)
{
	return x;
}

static __device__ __forceinline__ float
to_float(__half x)
{
	return __half2float(x);
}

static __device__ __forceinline__ float
to_float(__nv_bfloat16 x)
{
	return __bfloat162float(x);
}

/* Rounded to the nearest, ties to even. */
template <typename T> static __device__ __forceinline__ T from_float(float x);

template <>
__device__ __forceinline__ float
from_float<float>(float x)
{
	return x;
}

template <>
__device__ __forceinline__ __half
from_float<__half>(float x)
{
	return __float2half(x);
}

template <>
__device__ __forceinline__ __nv_bfloat16
from_float<__nv_bfloat16>(float x)
{
	return __float2bfloat16(x);
}

/* The two bfloat16 of a word, the lower one first. */
static __device__ __forceinline__ float2
bf16_pair(uint32_t w)
{
	union
	{
		uint32_t bits;
		float value;
	} lo = {w << 16}, hi = {w & 0xffff0000u};

	return make_float2(lo.value, hi.value);
}

/* ---- reductions, in an order that is always the same; every lane or thread has the result ---- */

static __device__ __forceinline__ float
warp_sum(float x)
{
	for (int step = WARP / 2; step > 0; step /= 2)
		x += __shfl_xor_sync(ALL_LANES, x, step);
	return x;
}

static __device__ __forceinline__ float
warp_max(float x)
{
	for (int step = WARP / 2; step > 0; step /= 2)
		x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
	return x;
}

/* Of a block of whole warps; buffer: shared, [33]. */
static __device__ __forceinline__ float
block_sum(float x, float *buffer)
{
	int lane = (int) threadIdx.x % WARP, warp = (int) threadIdx.x / WARP, n = ((int) blockDim.x + WARP - 1) / WARP;

	x = warp_sum(x);
	if (lane == 0)
		buffer[warp] = x;
	__syncthreads();
	if (warp == 0)
	{
		x = warp_sum(lane < n ? buffer[lane] : 0);
		if (lane == 0)
			buffer[WARP] = x;
	}
	__syncthreads();
	return buffer[WARP];
}

#endif
