/*
 * fuzz_plan.c
 *	  What an administrator may write about devices: descriptions, limits and
 *	  explicit maps.
 *
 * Input: a description of devices, a value of qwen.max_memory and one of
 * qwen.device_map, with NUL bytes between them.  What is understood must give
 * a plan that keeps to the devices, or a refusal; what is not, an error that
 * says something.
 */
#include <stdlib.h>
#include <string.h>

#include "engine/plan_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
require(bool condition)
{
	if (!condition)
		abort();
}

/* A small dense model of 6 layers. */
static const qwen_geometry model = {
	.family = QWEN_FAMILY_QWEN3,
	.dtype = "bfloat16",
	.vocab_size = 1024,
	.hidden_size = 256,
	.n_layers = 6,
	.intermediate_size = 512,
	.n_heads = 4,
	.n_kv_heads = 2,
	.head_dim = 64,
	.rotary = 64,
	.qk_norm = true,
	.max_positions = 2048,
	.length_limit = 2048,
};

static void
check_plan(const qwen_plan *plan)
{
	int layers = 0;

	for (int i = 0; i < plan->n_devices; i++)
	{
		layers += plan->devices[i].n_layers;
		if (plan->fits)
			require(qwen_plan_total(&plan->devices[i].usage) <= plan->devices[i].budget);
	}
	require(layers == model.n_layers * plan->tensor_parallel);
	require(plan->fits || plan->missing_bytes > 0);
}

static void
plan_on(qwen_plan_settings *settings, const qwen_plan_device *described, int n)
{
	qwen_plan_device devices[QWEN_PLAN_MAX_DEVICES];
	static qwen_plan plan;
	qwen_error err;

	memcpy(devices, described, sizeof(devices));
	if (qwen_plan_divide(settings, devices, &n, &err) == QWEN_OK &&
		qwen_plan_solve(&model, settings, devices, n, &plan, &err) == QWEN_OK)
		check_plan(&plan);
	else
		require(err.status != QWEN_OK && err.message[0] != '\0');
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 3), *limits, *map;
	qwen_plan_device devices[QWEN_PLAN_MAX_DEVICES] = {0};
	qwen_plan_settings settings = {0};
	qwen_error err;
	int n;

	require(text != NULL);
	if (size)
		memcpy(text, data, size);
	memset(text + size, 0, 3);
	limits = text + strlen(text) + 1;
	map = limits <= text + size ? limits + strlen(limits) + 1 : limits;
	if (qwen_plan_describe(text, devices, &n, &err) == QWEN_OK)
	{
		settings.max_memory = limits;
		settings.device_map = map;
		for (settings.tensor_parallel = 1; settings.tensor_parallel <= 2; settings.tensor_parallel++)
			plan_on(&settings, devices, n);
	}
	else
		require(err.status == QWEN_INVALID && err.detail[0] != '\0');
	free(text);
	return 0;
}
