/*
 * sets.h
 *	  The tables of operations that kernels.c chooses from.
 */
#ifndef QWEN_SETS_H
#define QWEN_SETS_H

#include "kernels.h"

extern const qwen_ops qwen_ops_ref;
extern const qwen_ops qwen_ops_portable;
extern const qwen_ops qwen_ops_avx2;
extern const qwen_ops qwen_ops_avx512;
extern const qwen_ops qwen_ops_avx512bf16;
extern const qwen_ops qwen_ops_amx;

#endif
