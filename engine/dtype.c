/*
 * dtype.c
 *	  Names of types in settings: which there are, and what to say to others.
 */
#include "dtype.h"

#include <stdio.h>
#include <string.h>

#define BIT(dtype) (1u << (dtype))
#define FLOATS (BIT(QWEN_BF16) | BIT(QWEN_F16) | BIT(QWEN_F32))

const qwen_dtype_setting qwen_setting_dtype = {"qwen.dtype", "auto", FLOATS};
const qwen_dtype_setting qwen_setting_quantization = {"qwen.quantization", "none", BIT(QWEN_INT8) | BIT(QWEN_INT4)};
const qwen_dtype_setting qwen_setting_kv_dtype = {"qwen.kv_dtype", "auto", FLOATS | BIT(QWEN_INT8)};

/* The order in which people are told of them. */
static const qwen_dtype in_order[] = {QWEN_BF16, QWEN_F16, QWEN_F32, QWEN_INT8, QWEN_INT4};
#define N_TYPES (sizeof(in_order) / sizeof(in_order[0]))

/* "auto, bfloat16 and int8" */
static void
list_words(const qwen_dtype_setting *setting, char *text, size_t size)
{
	size_t len = (size_t) snprintf(text, size, "%s", setting->neutral);
	unsigned left = setting->accepted;

	for (size_t i = 0; i < N_TYPES && len < size; i++)
		if (left & BIT(in_order[i]))
		{
			left &= ~BIT(in_order[i]);
			len +=
				(size_t) snprintf(text + len, size - len, "%s%s", left ? ", " : " and ", qwen_dtype_name(in_order[i]));
		}
}

qwen_status
qwen_dtype_parse(const qwen_dtype_setting *setting, const char *text, bool *chosen, qwen_dtype *out, qwen_error *err)
{
	char words[96];

	*chosen = false;
	if (!text || !strcmp(text, setting->neutral))
		return QWEN_OK;
	for (size_t i = 0; i < N_TYPES; i++)
		if ((setting->accepted & BIT(in_order[i])) && !strcmp(text, qwen_dtype_name(in_order[i])))
		{
			*chosen = true;
			*out = in_order[i];
			return QWEN_OK;
		}
	list_words(setting, words, sizeof(words));
	qwen_fail(err, QWEN_INVALID, "invalid value for %s: \"%.40s\"", setting->name, text);
	return qwen_fail_hint(err, "Known are %s.", words);
}
