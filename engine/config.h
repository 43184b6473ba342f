/*
 * config.h
 *	  What config.json and generation_config.json of a checkpoint say.
 *
 * Every value comes from the files; the defaults of the reference's
 * configuration classes apply when a key is absent.  Keys that would change
 * the mathematics in a way that is not supported are refused by name.
 */
#ifndef QWEN_CONFIG_H
#define QWEN_CONFIG_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

typedef enum qwen_arch
{
	QWEN_ARCH_QWEN2,
	QWEN_ARCH_QWEN3
} qwen_arch;

#define QWEN_MAX_EOS 16

typedef struct qwen_config
{
	qwen_arch arch;
	char dtype[16];     /* torch_dtype as written, or empty */
	int32_t vocab_size; /* rows of embedding and head, padding included */
	int32_t hidden_size;
	int32_t intermediate_size;
	int32_t n_layers;
	int32_t n_heads;
	int32_t n_kv_heads;
	int32_t head_dim;
	int32_t max_position_embeddings;
	float rms_norm_eps;
	bool attention_bias; /* q, k, v (qwen2: always; qwen3: when asked) */
	bool output_bias;    /* o as well (qwen3 with attention_bias) */
	bool qk_norm;
	bool tied; /* head = embedding */

	/* RoPE */
	double rope_theta;
	bool yarn;
	double yarn_factor;
	double yarn_original; /* original_max_position_embeddings */
	double yarn_beta_fast;
	double yarn_beta_slow;
	double yarn_attention_factor; /* already resolved by the formulas of the spec */
	bool yarn_truncate;

	/* generation */
	int32_t eos[QWEN_MAX_EOS]; /* union of config.json and generation_config.json */
	int32_t n_eos;
	bool has_sampling; /* generation_config has do_sample true */
	float temperature; /* generation_config's own, 1 when absent */
	float top_p;
	int32_t top_k;
	float min_p;
	float repetition_penalty;
} qwen_config;

/* Reads config.json (and generation_config.json when there) of a model folder. */
qwen_status qwen_config_read(const char *model_dir, qwen_config *out, qwen_error *err);

/* The same from text in memory; generation may be NULL. What the fuzz target drives. */
qwen_status qwen_config_parse(const char *config, size_t config_len, const char *generation, size_t generation_len,
							  qwen_config *out, qwen_error *err);

/* Parameters by the formulas of the architecture. */
uint64_t qwen_config_parameters(const qwen_config *config);

const char *qwen_arch_name(qwen_arch arch);

#endif
