/*
 * cpu_avx512.c
 *	  The threaded kernels for AVX-512 F, BW, DQ and VL: vectors of 16 floats.
 */
#define CPU_OPS qwen_ops_avx512
#define CPU_NAME "avx512"
#include "cpu_kernels.h"
