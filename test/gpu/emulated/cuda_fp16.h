/*
 * cuda_fp16.h
 *	  float16 of the emulated CUDA.  Rounded to the nearest, ties to even, as
 *	  the engine's own.
 */
#ifndef EMULATED_CUDA_FP16_H
#define EMULATED_CUDA_FP16_H

#include "kernels/convert.h"

struct __half
{
	uint16_t bits;
};

static inline __half
__float2half(float x)
{
	return {qwen_float_f16(x)};
}

static inline float
__half2float(__half x)
{
	return qwen_f16_float(x.bits);
}

#endif
