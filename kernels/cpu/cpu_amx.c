/*
 * cpu_amx.c
 *	  The threaded kernels for AMX: products of bfloat16 and int8 on tiles,
 *	  everything else on vectors of 16 floats.
 */
#define CPU_OPS qwen_ops_amx
#define CPU_NAME "amx"
#define CPU_TILES
#include "cpu_kernels.h"
