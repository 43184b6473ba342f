/*
 * fuzz_config.c
 *	  config.json and generation_config.json from hostile hands.
 *
 * Input: the text of config.json, and after a NUL byte, if there is one, that
 * of generation_config.json.  What is accepted must keep the promises that
 * the loader builds on: bounded sizes and finite rotations.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "engine/config_rope.h"
#include "engine/plan_internal.h"
#include "kernels/kernels.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
require(bool condition)
{
	if (!condition)
		abort();
}

static void
check_accepted(const qwen_config *c)
{
	float rope[2 * QWEN_MAX_HEAD_DIM];

	require(c->head_dim >= 2 && c->head_dim % 2 == 0 && c->head_dim <= QWEN_MAX_HEAD_DIM);
	require(c->n_kv_heads >= 1 && c->n_heads % c->n_kv_heads == 0 && c->n_heads / c->n_kv_heads <= QWEN_MAX_GROUP);
	require(c->n_layers >= 1 && c->vocab_size >= 1 && c->hidden_size >= 1 && c->intermediate_size >= 1);
	require(c->max_position_embeddings >= 1 && c->n_eos >= 0 && c->n_eos <= QWEN_MAX_EOS);
	require(qwen_config_parameters(c) < (uint64_t) 1 << 55);
	for (int i = 0; i < c->n_eos; i++)
		require(c->eos[i] >= 0 && c->eos[i] < c->vocab_size);
	qwen_rope_rows(c, c->max_position_embeddings - 1, 2, rope);
	for (int i = 0; i < 2 * c->head_dim; i++)
		require(isfinite(rope[i]));
}

/* A model that can be described can be planned, on devices of both kinds and by shards. */
static void
check_planned(const qwen_geometry *g)
{
	static const qwen_plan_device devices[] = {{"cuda:0", QWEN_DEVICE_CUDA, 1ull << 35, 1ull << 35, 1e12},
											   {"cuda:1", QWEN_DEVICE_CUDA, 1ull << 34, 1ull << 34, 3e12},
											   {"cpu", QWEN_DEVICE_CPU, 1ull << 40, 1ull << 40, 0}};
	static const qwen_plan_settings settings[] = {
		{0}, {.device_map = "cpu", .quantization = "int4", .kv_dtype = "int8"}, {.tensor_parallel = 2}};
	static qwen_plan plan;
	qwen_error err;

	require(qwen_geometry_parameters(g) < (uint64_t) 1 << 60);
	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
	{
		qwen_status rc = qwen_plan_solve(g, &settings[i], devices, 3, &plan, &err);

		require(rc == QWEN_OK || (settings[i].tensor_parallel > 1 && err.message[0] != '\0'));
		for (int d = 0; rc == QWEN_OK && plan.fits && d < plan.n_devices; d++)
			require(qwen_plan_total(&plan.devices[d].usage) <= plan.devices[d].budget);
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *config = (const char *) data;
	const char *nul = size ? memchr(data, '\0', size) : NULL;
	size_t config_len = nul ? (size_t) (nul - config) : size;
	qwen_geometry geometry;
	qwen_config out;
	qwen_error err;

	if (qwen_config_parse(config, config_len, nul ? nul + 1 : NULL, nul ? size - config_len - 1 : 0, &out, &err) ==
		QWEN_OK)
		check_accepted(&out);
	else
		require(err.status != QWEN_OK && err.message[0] != '\0');
	if (qwen_geometry_parse(config, config_len, &geometry, &err) == QWEN_OK)
		check_planned(&geometry);
	else
		require(err.status != QWEN_OK && err.message[0] != '\0');
	return 0;
}
