/*
 * cpu_avx512bf16.c
 *	  The threaded kernels for AVX-512 with VNNI and BF16: vectors of 16
 *	  floats, 64 products of int8 or 32 of bfloat16 to an instruction.
 */
#define CPU_OPS qwen_ops_avx512bf16
#define CPU_NAME "avx512bf16"
#include "cpu_kernels.h"
