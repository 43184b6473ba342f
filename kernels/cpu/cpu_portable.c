/*
 * cpu_portable.c
 *	  The threaded kernels for any x86-64 processor: vectors of 4 floats (SSE2).
 */
#define CPU_OPS qwen_ops_portable
#define CPU_NAME "portable"
#include "cpu_kernels.h"
