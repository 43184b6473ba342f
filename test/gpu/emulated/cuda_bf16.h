/*
 * cuda_bf16.h
 *	  bfloat16 of the emulated CUDA.  Rounded to the nearest, ties to even, as
 *	  the engine's own.
 */
#ifndef EMULATED_CUDA_BF16_H
#define EMULATED_CUDA_BF16_H

#include "kernels/convert.h"

struct __nv_bfloat16
{
	uint16_t bits;
};

static inline __nv_bfloat16
__float2bfloat16(float x)
{
	return {qwen_float_bf16(x)};
}

static inline float
__bfloat162float(__nv_bfloat16 x)
{
	return qwen_bf16_float(x.bits);
}

#endif
