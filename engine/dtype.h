/*
 * dtype.h
 *	  Names of types in settings.
 */
#ifndef QWEN_DTYPE_H
#define QWEN_DTYPE_H

#include "../kernels/kernels.h"
#include "error.h"

/* What a setting about a type accepts. */
typedef struct qwen_dtype_setting
{
	const char *name;    /* as in SQL: "qwen.dtype" */
	const char *neutral; /* the word for no choice: "auto", "none" */
	unsigned accepted;   /* 1 << qwen_dtype of each */
} qwen_dtype_setting;

extern const qwen_dtype_setting qwen_setting_dtype;
extern const qwen_dtype_setting qwen_setting_quantization;
extern const qwen_dtype_setting qwen_setting_kv_dtype;

/* *chosen: text names a type, which is *out; NULL and the neutral word choose none. Other words are an error. */
qwen_status qwen_dtype_parse(const qwen_dtype_setting *setting, const char *text, bool *chosen, qwen_dtype *out,
							 qwen_error *err);

#endif
