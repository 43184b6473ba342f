/*
 * linear.h
 *	  What the files of products have in common.
 *
 *	  linear.cu				 which kernel
 *	  linear_mma.h			 few rows of 16-bit activations, instantiated by linear_f16.cu and linear_bf16.cu
 *	  linear_f32.cu			 few rows of float activations
 *	  linear_weights.h		 how weights are stored
 *	  blas.cu				 many rows
 */
#ifndef QWEN_CUDA_LINEAR_H
#define QWEN_CUDA_LINEAR_H

#include "linear_weights.h"

/* Products of so many rows are done by own kernels: as many as one tile of the matrix unit has. */
#define LINEAR_FEW 16

/* out[rows, n] = x[rows, k] w[n, k]^T + bias[n], rows <= LINEAR_FEW. */
typedef struct cuda_product
{
	void *out;
	bool as_float; /* out is float, not of the activations' type */
	qwen_dtype dtype;
	cuda_weights w;
	const float *bias; /* or NULL */
	const void *x;     /* of the activations' type, which names the function */
	int32_t rows;
} cuda_product;

void cuda_linear_f32(qwen_device *dev, const cuda_product *p);
void cuda_linear_f16(qwen_device *dev, const cuda_product *p);
void cuda_linear_bf16(qwen_device *dev, const cuda_product *p);

/* Whether 16 bytes can be loaded at p and at every multiple of `bytes` behind it. */
static inline bool
cuda_loads_16(const void *p, int64_t bytes)
{
	return (uintptr_t) p % 16 == 0 && bytes % 16 == 0;
}

#endif
