/*
 * linear_weights.h
 *	  Weights as they lie in a GPU's memory, and their elements as kernels read
 *	  them.
 *
 *	  float types	W[n][k], row-major, no padding
 *	  int8			q[n][groups][64], then at the next border of CUDA_ALIGN d[n][groups]
 *	  int4			q[n][groups][32], then at the next border of CUDA_ALIGN {d, m}[n][groups]
 *
 * with groups = ceil(k / 64) and d, m as bfloat16 (quant.h says what they
 * mean).  A byte i of an int4 group holds element i in its low half and
 * element i + 32 in its high half, so that one shift and one mask turn a word
 * into two elements of 16 bits.  Elements beyond k are zero, scales are those
 * of the group: whoever multiplies them by activations of zero gets zero.
 *
 * Row-major is what cuBLASLt wants, and what products of few rows want too: a
 * row of weights is read from one end to the other, once.
 */
#ifndef QWEN_CUDA_LINEAR_WEIGHTS_H
#define QWEN_CUDA_LINEAR_WEIGHTS_H

#include "cuda_device.h"

/* The element type of int4, two to a byte. */
struct cuda_int4
{
	uint8_t pair;
};

/* A matrix as kernels get it. */
typedef struct cuda_weights
{
	const unsigned char *q; /* elements */
	const uint16_t *scales; /* of the quantised types */
	int64_t n, k;
	int64_t groups; /* of a row */
} cuda_weights;

static inline int64_t
cuda_groups(int64_t k)
{
	return (k + QWEN_GROUP - 1) / QWEN_GROUP;
}

/* Bytes of the elements of n rows, without what follows them. */
static inline size_t
cuda_element_bytes(qwen_dtype dtype, int64_t n, int64_t k)
{
	size_t padded = (size_t) n * (size_t) cuda_groups(k) * QWEN_GROUP;

	switch (dtype)
	{
		case QWEN_INT8:
			return padded;
		case QWEN_INT4:
			return padded / 2;
		case QWEN_F32:
			return (size_t) n * (size_t) k * 4;
		default:
			return (size_t) n * (size_t) k * 2;
	}
}

/* bfloat16 values behind a group's elements. */
static inline int
cuda_scales_per_group(qwen_dtype dtype)
{
	return dtype == QWEN_INT8 ? 1 : dtype == QWEN_INT4 ? 2 : 0;
}

static inline cuda_weights
cuda_weights_of(const qwen_matrix *m)
{
	cuda_weights w;

	w.q = (const unsigned char *) m->data;
	w.scales = (const uint16_t *) (w.q + cuda_align(cuda_element_bytes(m->dtype, m->n, m->k)));
	w.n = m->n;
	w.k = m->k;
	w.groups = cuda_groups(m->k);
	return w;
}

/* ---- of one element; the slow way, for every shape ---- */

static __device__ __forceinline__ float
bf16_bits(uint32_t bits)
{
	return bf16_pair(bits).x;
}

template <typename W>
static __device__ __forceinline__ float
weight_at(const cuda_weights &w, int64_t row, int64_t i)
{
	return to_float(reinterpret_cast<const W *>(w.q)[row * w.k + i]);
}

template <>
__device__ __forceinline__ float
weight_at<int8_t>(const cuda_weights &w, int64_t row, int64_t i)
{
	int64_t group = row * w.groups + i / QWEN_GROUP;
	int q = static_cast<int8_t>(w.q[group * QWEN_GROUP + i % QWEN_GROUP]);

	return static_cast<float>(q) * bf16_bits(w.scales[group]);
}

template <>
__device__ __forceinline__ float
weight_at<cuda_int4>(const cuda_weights &w, int64_t row, int64_t i)
{
	int64_t group = row * w.groups + i / QWEN_GROUP;
	int at = static_cast<int>(i % QWEN_GROUP), half = QWEN_GROUP / 2;
	int pair = w.q[group * half + at % half];
	int q = at < half ? pair & 15 : pair >> 4;

	return fmaf(static_cast<float>(q), bf16_bits(w.scales[2 * group]), bf16_bits(w.scales[2 * group + 1]));
}

#endif
