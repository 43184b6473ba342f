/*
 * model_plan.c
 *	  What a model will need, compared with what the machine has, before
 *	  anything is allocated.
 *
 * Weights, activations, rope table and logits are given by the settings, the
 * size of a cache block and the operations' scratch memory by the device; the
 * KV cache takes what qwen.kv_memory says, or by itself enough for
 * max_sequences full sequences, but no more than a quarter of what the rest
 * leaves, and never less than one full sequence.  Nothing is made smaller
 * silently: what does not fit is refused with both numbers.
 */
#include <stdbool.h>

#include "dtype.h"
#include "memory.h"
#include "model_internal.h"

/* Tables, staging, the tokenizer and the allocator's own needs. */
#define MARGIN_BYTES ((uint64_t) 96 << 20)
/* Parts of the remaining memory that an automatic cache may take: 1 of 4. */
#define KV_SHARE 4

static size_t
round_up(size_t n, size_t unit)
{
	return (n + unit - 1) / unit * unit;
}

size_t
qwen_workspace_layout(const qwen_model *m, qwen_workspace *ws, char *base)
{
	size_t a = m->dev->act_bytes;
	size_t t = (size_t) m->step_tokens;
	size_t h = (size_t) m->config.hidden_size, f = (size_t) m->config.intermediate_size;
	size_t q = (size_t) m->heads.n_q * (size_t) m->heads.dim;
	size_t qkv = q + 2 * (size_t) m->heads.n_kv * (size_t) m->heads.dim;
	size_t wide = round_up(t * h * a, 64), row = round_up((size_t) m->max_sequences * h * a, 64);
	size_t attention = round_up(t * qkv * a, 64), ffn = round_up(t * 2 * f * a, 64);
	size_t shared = 3 * wide + row;
	size_t attention_end = shared + attention + t * q * a, ffn_end = shared + ffn + t * f * a;

	if (base)
		*ws = (qwen_workspace){
			.resid = base,
			.norm = base + wide,
			.delta = base + 2 * wide,
			.rows = base + 3 * wide,
			.qkv = base + shared,
			.attn = base + shared + attention,
			.gate_up = base + shared,
			.act = base + shared + ffn,
		};
	return attention_end > ffn_end ? attention_end : ffn_end;
}

/* Tokens of one sequence: as asked, within what the model can tell apart. */
static qwen_status
plan_length(qwen_model *m, int asked, qwen_error *err)
{
	const qwen_config *c = &m->config;
	double limit = c->max_position_embeddings;

	if (c->yarn && c->yarn_original * c->yarn_factor > limit)
		limit = c->yarn_original * c->yarn_factor;
	m->max_len = asked > 0 ? asked : c->max_position_embeddings;
	if (m->max_len <= limit)
		return QWEN_OK;
	qwen_fail(err, QWEN_INVALID, "qwen.max_model_len is above what the model supports");
	qwen_fail_detail(err, "It is %d tokens; the model's config.json allows %.0f.", asked, limit);
	return qwen_fail_hint(err, "Lower qwen.max_model_len, or add YaRN rope scaling to config.json.");
}

/* By itself the cache keeps what the model was published in: quantising the weights says nothing about it. */
static qwen_status
plan_kv_dtype(qwen_model *m, const char *asked, qwen_error *err)
{
	const qwen_ops *ops = m->dev->ops;
	qwen_dtype wanted = m->weights.dtype;
	bool chosen;
	qwen_status rc = qwen_dtype_parse(&qwen_setting_kv_dtype, asked, &chosen, &wanted, err);

	if (rc != QWEN_OK)
		return rc;
	m->kv_dtype = ops->kv_dtype(m->dev, wanted);
	m->kv_block_bytes = ops->kv_block_bytes(m->dev, m->kv_dtype, &m->heads);
	return QWEN_OK;
}

/* Bytes of all layers' keys and values in one block. */
static uint64_t
block_bytes(const qwen_model *m)
{
	return 2ull * (uint64_t) m->config.n_layers * m->kv_block_bytes;
}

size_t
qwen_model_kv_layer_bytes(const qwen_model *m)
{
	return (size_t) m->kv_blocks * m->kv_block_bytes;
}

/* What the largest product of a step needs: of all tokens in the layers, of all rows of logits in the head. */
static size_t
scratch_bytes(const qwen_model *m)
{
	size_t (*bytes)(const qwen_device *, int32_t, int64_t) = m->dev->ops->scratch_bytes;
	int64_t h = m->config.hidden_size, f = m->config.intermediate_size;
	int64_t q = (int64_t) m->heads.n_q * m->heads.dim;
	const size_t needs[] = {bytes(m->dev, m->step_tokens, h), bytes(m->dev, m->step_tokens, q),
							bytes(m->dev, m->step_tokens, f), bytes(m->dev, m->max_sequences, h)};
	size_t most = 0;

	for (size_t i = 0; i < sizeof(needs) / sizeof(needs[0]); i++)
		most = needs[i] > most ? needs[i] : most;
	return most;
}

/* Blocks of one sequence of full length. */
static uint64_t
sequence_blocks(const qwen_model *m)
{
	return ((uint64_t) m->max_len + QWEN_KV_BLOCK - 1) / QWEN_KV_BLOCK;
}

/* Everything but the cache. */
static uint64_t
fixed_bytes(const qwen_model *m)
{
	uint64_t logits = (uint64_t) m->max_sequences * (uint64_t) m->config.vocab_size * sizeof(float);

	return m->weights.bytes + qwen_workspace_layout(m, NULL, NULL) + m->scratch_bytes + m->rope_bytes + logits +
		   MARGIN_BYTES;
}

/* Not even one sequence fits beside the weights. */
static qwen_status
refuse_model(const qwen_model *m, uint64_t fixed, uint64_t one, uint64_t available, qwen_error *err)
{
	char need[32], weights[32], kv[32], have[32];

	qwen_fail(err, QWEN_NO_MEMORY, "the model does not fit into the memory of this machine");
	qwen_fail_detail(err, "It needs %s (weights %s, KV cache for one sequence of %d tokens %s); %s are available.",
					 qwen_memory_text(need, sizeof(need), fixed + one),
					 qwen_memory_text(weights, sizeof(weights), m->weights.bytes), m->max_len,
					 qwen_memory_text(kv, sizeof(kv), one), qwen_memory_text(have, sizeof(have), available));
	return qwen_fail_hint(err, "Lower qwen.max_model_len or qwen.max_sequences, set qwen.quantization or "
							   "qwen.kv_dtype to int8, or use a smaller model.");
}

/* qwen.kv_memory contradicts the rest: too small for one sequence, or larger than what is left. */
static qwen_status
refuse_cache(const qwen_model *m, uint64_t asked, uint64_t limit, bool small, qwen_error *err)
{
	char a[32], b[32];

	qwen_memory_text(a, sizeof(a), asked);
	qwen_memory_text(b, sizeof(b), limit);
	if (small)
	{
		qwen_fail(err, QWEN_INVALID, "qwen.kv_memory is too small for one sequence");
		qwen_fail_detail(err, "It is %s; a sequence of %d tokens needs %s.", a, m->max_len, b);
		return qwen_fail_hint(err, "Raise qwen.kv_memory or lower qwen.max_model_len.");
	}
	qwen_fail(err, QWEN_NO_MEMORY, "qwen.kv_memory is larger than the memory that is left");
	qwen_fail_detail(err, "It is %s; after the weights and buffers %s are left.", a, b);
	return qwen_fail_hint(err, "Lower qwen.kv_memory.");
}

/* Bytes for the cache when the setting leaves it to us: see the top of the file. */
static uint64_t
automatic_cache(const qwen_model *m, uint64_t one, uint64_t left)
{
	uint64_t wanted = one * (uint64_t) m->max_sequences;
	uint64_t cap = left / KV_SHARE > one ? left / KV_SHARE : one;

	return wanted < cap ? wanted : cap;
}

/* Compares with the memory that the machine has now. */
static qwen_status
plan_cache(qwen_model *m, uint64_t asked, qwen_error *err)
{
	uint64_t available = qwen_memory_available();
	uint64_t fixed = fixed_bytes(m), per_block = block_bytes(m);
	uint64_t one = sequence_blocks(m) * per_block;
	uint64_t left = available > fixed ? available - fixed : 0;
	uint64_t blocks;

	if (one > left)
		return refuse_model(m, fixed, one, available, err);
	if (asked > 0 && asked < one)
		return refuse_cache(m, asked, one, true, err);
	if (asked > left)
		return refuse_cache(m, asked, left, false, err);
	blocks = (asked > 0 ? asked : automatic_cache(m, one, left)) / per_block;
	m->kv_blocks = blocks < INT32_MAX ? (int) blocks : INT32_MAX;
	return QWEN_OK;
}

qwen_status
qwen_model_plan(qwen_model *m, const qwen_model_options *options, qwen_error *err)
{
	qwen_status rc;

	m->max_sequences = options->max_sequences;
	m->step_tokens = options->step_tokens;
	if (m->max_sequences < 1 || m->step_tokens < 1)
		return qwen_fail(err, QWEN_INVALID, "a step must have room for a token and a sequence");
	if ((rc = plan_length(m, options->max_model_len, err)) != QWEN_OK ||
		(rc = plan_kv_dtype(m, options->kv_dtype, err)) != QWEN_OK)
		return rc;
	m->scratch_bytes = scratch_bytes(m);
	m->rope_bytes = (size_t) m->max_len * (size_t) m->config.head_dim * sizeof(float);
	return plan_cache(m, options->kv_memory, err);
}
