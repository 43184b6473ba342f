/*
 * plan_models.h
 *	  The geometry of released models, and a config.json made from it.
 */
#ifndef QWEN_PLAN_MODELS_H
#define QWEN_PLAN_MODELS_H

#include "engine/geometry.h"

typedef struct released
{
	const char *name;
	const char *type; /* model_type */
	int h, layers, heads, kv_heads, dim, f, vocab;
	bool tied;
	int length;
	int experts, used, expert_size, shared; /* 0: dense */
	int value_heads;                        /* of DeltaNet layers, 0: none */
	double parameters;                      /* as published */
	double tolerance;                       /* half a unit of its last digit; 0: exact */
	int kv_token;                           /* bytes at 16 bits */
} released;

/* Bits of the families that the formulas need. */
static inline bool
is_hybrid(const released *m)
{
	return m->value_heads > 0;
}

static inline bool
has_qkv_bias(const released *m)
{
	return !strncmp(m->type, "qwen2", 5);
}

static inline bool
is_full(const released *m, int layer)
{
	return !is_hybrid(m) || layer % 4 == 3;
}

static const released models[] = {
	{"Qwen1.5-0.5B", "qwen2", 1024, 24, 16, 16, 64, 2816, 151936, true, 32768, 0, 0, 0, 0, 0, 463987712, 0, 98304},
	{"Qwen1.5-1.8B", "qwen2", 2048, 24, 16, 16, 128, 5504, 151936, false, 32768, 0, 0, 0, 0, 0, 1836828672, 0, 196608},
	{"Qwen1.5-4B", "qwen2", 2560, 40, 20, 20, 128, 6912, 151936, false, 32768, 0, 0, 0, 0, 0, 3950369280, 0, 409600},
	{"Qwen1.5-7B", "qwen2", 4096, 32, 32, 32, 128, 11008, 151936, false, 32768, 0, 0, 0, 0, 0, 7721324544, 0, 524288},
	{"Qwen1.5-14B", "qwen2", 5120, 40, 40, 40, 128, 13696, 152064, false, 32768, 0, 0, 0, 0, 0, 14167290880, 0, 819200},
	{"Qwen1.5-32B", "qwen2", 5120, 64, 40, 8, 128, 27392, 152064, false, 32768, 0, 0, 0, 0, 0, 32512218112, 0, 262144},
	{"Qwen1.5-72B", "qwen2", 8192, 80, 64, 64, 128, 24576, 152064, false, 32768, 0, 0, 0, 0, 0, 72287920128, 0,
	 2621440},
	{"Qwen1.5-110B", "qwen2", 8192, 80, 64, 8, 128, 49152, 152064, false, 32768, 0, 0, 0, 0, 0, 111209914368, 0,
	 327680},
	{"Qwen1.5-MoE-A2.7B", "qwen2_moe", 2048, 24, 16, 16, 128, 5632, 151936, false, 8192, 60, 4, 1408, 5632, 0,
	 14315784192, 0, 196608},
	{"Qwen2.5-0.5B", "qwen2", 896, 24, 14, 2, 64, 4864, 151936, true, 32768, 0, 0, 0, 0, 0, 494032768, 0, 12288},
	{"Qwen2.5-1.5B", "qwen2", 1536, 28, 12, 2, 128, 8960, 151936, true, 32768, 0, 0, 0, 0, 0, 1543714304, 0, 28672},
	{"Qwen2.5-3B", "qwen2", 2048, 36, 16, 2, 128, 11008, 151936, true, 32768, 0, 0, 0, 0, 0, 3085938688, 0, 36864},
	{"Qwen2.5-7B", "qwen2", 3584, 28, 28, 4, 128, 18944, 152064, false, 32768, 0, 0, 0, 0, 0, 7615616512, 0, 57344},
	{"Qwen2.5-14B", "qwen2", 5120, 48, 40, 8, 128, 13824, 152064, false, 32768, 0, 0, 0, 0, 0, 14770033664, 0, 196608},
	{"Qwen2.5-32B", "qwen2", 5120, 64, 40, 8, 128, 27648, 152064, false, 32768, 0, 0, 0, 0, 0, 32763876352, 0, 262144},
	{"Qwen2.5-72B", "qwen2", 8192, 80, 64, 8, 128, 29568, 152064, false, 32768, 0, 0, 0, 0, 0, 72706203648, 0, 327680},
	{"Qwen2-57B-A14B", "qwen2_moe", 3584, 28, 28, 4, 128, 18944, 151936, false, 32768, 64, 8, 2560, 20480, 0,
	 57408658944, 0, 57344},
	{"Qwen3-0.6B", "qwen3", 1024, 28, 16, 8, 128, 3072, 151936, true, 40960, 0, 0, 0, 0, 0, 596049920, 0, 114688},
	{"Qwen3-1.7B", "qwen3", 2048, 28, 16, 8, 128, 6144, 151936, true, 40960, 0, 0, 0, 0, 0, 1720574976, 0, 114688},
	{"Qwen3-4B", "qwen3", 2560, 36, 32, 8, 128, 9728, 151936, true, 40960, 0, 0, 0, 0, 0, 4022468096, 0, 147456},
	{"Qwen3-8B", "qwen3", 4096, 36, 32, 8, 128, 12288, 151936, false, 40960, 0, 0, 0, 0, 0, 8190735360, 0, 147456},
	{"Qwen3-14B", "qwen3", 5120, 40, 40, 8, 128, 17408, 151936, false, 40960, 0, 0, 0, 0, 0, 14768307200, 0, 163840},
	{"Qwen3-32B", "qwen3", 5120, 64, 64, 8, 128, 25600, 151936, false, 40960, 0, 0, 0, 0, 0, 32762123264, 0, 262144},
	{"Qwen3-30B-A3B", "qwen3_moe", 2048, 48, 32, 4, 128, 6144, 151936, false, 40960, 128, 8, 768, 0, 0, 30532122624, 0,
	 98304},
	{"Qwen3-235B-A22B", "qwen3_moe", 4096, 94, 64, 4, 128, 12288, 151936, false, 40960, 128, 8, 1536, 0, 0,
	 235093634560, 0, 192512},
	{"Qwen3-Coder-480B-A35B", "qwen3_moe", 6144, 62, 96, 8, 128, 8192, 151936, false, 262144, 160, 8, 2560, 0, 0,
	 480154875392, 0, 253952},
	{"Qwen3-Embedding-0.6B", "qwen3", 1024, 28, 16, 8, 128, 3072, 151669, true, 32768, 0, 0, 0, 0, 0, 595776512, 0,
	 114688},
	{"Qwen3-Embedding-4B", "qwen3", 2560, 36, 32, 8, 128, 9728, 151665, true, 40960, 0, 0, 0, 0, 0, 4021774336, 0,
	 147456},
	{"Qwen3-Next-80B-A3B", "qwen3_next", 2048, 48, 16, 2, 256, 5120, 151936, false, 262144, 512, 10, 512, 512, 32,
	 79.67e9, 0.005e9, 24576},
	{"Qwen3.5-0.8B", "qwen3_5", 1024, 24, 8, 2, 256, 3584, 248320, true, 262144, 0, 0, 0, 0, 16, 0.752e9, 0.0005e9,
	 12288},
	{"Qwen3.5-2B", "qwen3_5", 2048, 24, 8, 2, 256, 6144, 248320, true, 262144, 0, 0, 0, 0, 16, 1.882e9, 0.0005e9,
	 12288},
	{"Qwen3.5-4B", "qwen3_5", 2560, 32, 16, 4, 256, 9216, 248320, true, 262144, 0, 0, 0, 0, 32, 4.206e9, 0.0005e9,
	 32768},
	{"Qwen3.5-9B", "qwen3_5", 4096, 32, 16, 4, 256, 12288, 248320, false, 262144, 0, 0, 0, 0, 32, 8.954e9, 0.0005e9,
	 32768},
	{"Qwen3.5-27B", "qwen3_5", 5120, 64, 24, 4, 256, 17408, 248320, false, 262144, 0, 0, 0, 0, 48, 26.90e9, 0.005e9,
	 65536},
	{"Qwen3.5-35B-A3B", "qwen3_5_moe", 2048, 40, 16, 2, 256, 6144, 248320, false, 262144, 256, 8, 512, 512, 32, 34.66e9,
	 0.005e9, 20480},
	{"Qwen3.5-122B-A10B", "qwen3_5_moe", 3072, 48, 32, 2, 256, 6144, 248320, false, 262144, 256, 8, 1024, 1024, 64,
	 122.1e9, 0.05e9, 24576},
	{"Qwen3.5-397B-A17B", "qwen3_5_moe", 4096, 60, 32, 2, 256, 6144, 248320, false, 262144, 512, 10, 1024, 1024, 64,
	 396.3e9, 0.05e9, 30720},
};
#define N_MODELS ((int) (sizeof(models) / sizeof(models[0])))

static inline const released *
find_model(const char *name)
{
	for (int i = 0; i < N_MODELS; i++)
		if (!strcmp(models[i].name, name))
			return &models[i];
	fail_msg("no model %s", name);
	return NULL;
}

/* The keys that decide, as the release has them: those of 3.5 stand in text_config, but for the tie. */
static inline void
write_config(const released *m, char *out, size_t size)
{
	bool nested = !strncmp(m->type, "qwen3_5", 7);
	size_t n = (size_t) snprintf(
		out, size,
		"{\"model_type\": \"%s\", \"tie_word_embeddings\": %s, %s\"hidden_size\": %d, \"num_hidden_layers\": %d, "
		"\"num_attention_heads\": %d, \"num_key_value_heads\": %d, \"intermediate_size\": %d, \"vocab_size\": %d, "
		"\"max_position_embeddings\": %d, \"torch_dtype\": \"bfloat16\"",
		m->type, m->tied ? "true" : "false", nested ? "\"text_config\": {" : "", m->h, m->layers, m->heads, m->kv_heads,
		m->f, m->vocab, m->length);

	if (m->dim * m->heads != m->h)
		n += (size_t) snprintf(out + n, size - n, ", \"head_dim\": %d", m->dim);
	if (m->experts)
		n += (size_t) snprintf(out + n, size - n,
							   ", \"num_experts\": %d, \"num_experts_per_tok\": %d, \"moe_intermediate_size\": %d, "
							   "\"shared_expert_intermediate_size\": %d",
							   m->experts, m->used, m->expert_size, m->shared);
	if (m->value_heads)
		n += (size_t) snprintf(out + n, size - n, ", \"linear_num_value_heads\": %d", m->value_heads);
	snprintf(out + n, size - n, "}%s", nested ? "}" : "");
}

static inline void
read_model(const released *m, qwen_geometry *g)
{
	char text[1024];
	qwen_error err;

	write_config(m, text, sizeof(text));
	assert_ok(qwen_geometry_parse(text, strlen(text), g, &err), err);
}

#endif
