/*
 * cpu_avx2.c
 *	  The threaded kernels for AVX2, FMA and F16C: vectors of 8 floats.
 */
#define CPU_OPS qwen_ops_avx2
#define CPU_NAME "avx2"
#include "cpu_kernels.h"
