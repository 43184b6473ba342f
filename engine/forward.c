/*
 * forward.c
 *	  One step of the model over a flat batch: qwen-models.md 3.
 *
 * Prefill and decode are the same: every token of the batch passes all
 * layers, and attention reads the cache of the token's own sequence.  The
 * residual stream is kept apart from what the last part produced (delta);
 * the next norm adds the two, so no separate addition passes over memory.
 * Logits are computed for the rows that want them, nothing else.
 */
#include "model_internal.h"

/* r += Wo attention(norm(r)), the sum left to the next norm */
static void
attention_part(qwen_model *m, int layer, const qwen_batch *batch)
{
	const qwen_layer_weights *w = &m->weights.layers[layer];
	const qwen_ops *ops = m->dev->ops;
	qwen_workspace *ws = &m->ws;
	int32_t n = batch->n_tokens;

	ops->add_rmsnorm(m->dev, ws->norm, ws->resid, layer ? ws->delta : NULL, w->attn_norm, n, m->config.hidden_size,
					 m->config.rms_norm_eps);
	ops->linear(m->dev, ws->qkv, &w->qkv, w->qkv_bias, ws->norm, n);
	ops->qk_rope_store(m->dev, ws->qkv, w->q_norm, w->k_norm, m->rope, &m->heads, &m->kv[layer], batch);
	ops->attention(m->dev, ws->attn, ws->qkv, &m->heads, &m->kv[layer], batch);
	ops->linear(m->dev, ws->delta, &w->out, w->out_bias, ws->attn, n);
}

/* r += Wdown (silu(Wgate x) * Wup x) with x = norm(r), the sum left to the next norm */
static void
ffn_part(qwen_model *m, int layer, int32_t n)
{
	const qwen_layer_weights *w = &m->weights.layers[layer];
	const qwen_ops *ops = m->dev->ops;
	qwen_workspace *ws = &m->ws;

	ops->add_rmsnorm(m->dev, ws->norm, ws->resid, ws->delta, w->ffn_norm, n, m->config.hidden_size,
					 m->config.rms_norm_eps);
	ops->linear(m->dev, ws->gate_up, &w->gate_up, NULL, ws->norm, n);
	ops->swiglu(m->dev, ws->act, ws->gate_up, n, m->config.intermediate_size);
	ops->linear(m->dev, ws->delta, &w->down, NULL, ws->act, n);
}

/* logits[n_logits, V] = head norm(r) of the rows that are wanted */
static bool
head_part(qwen_model *m, const qwen_batch *batch, float *logits)
{
	const qwen_ops *ops = m->dev->ops;
	qwen_workspace *ws = &m->ws;
	int64_t h = m->config.hidden_size;

	if (batch->n_logits == 0)
		return ops->synchronize(m->dev);
	ops->add_rmsnorm(m->dev, ws->norm, ws->resid, ws->delta, m->weights.norm, batch->n_tokens, h,
					 m->config.rms_norm_eps);
	ops->gather(m->dev, ws->rows, ws->norm, batch->logit_rows, batch->n_logits, h);
	return ops->logits(m->dev, logits, &m->weights.head, ws->rows, batch->n_logits);
}

qwen_status
qwen_model_forward(qwen_model *m, const qwen_batch *batch, float *logits, qwen_error *err)
{
	if (batch->n_tokens < 1 || batch->n_tokens > m->step_tokens || batch->n_logits > m->max_sequences)
		return qwen_fail(err, QWEN_INTERNAL, "a step of %d tokens and %d rows of logits is beyond its limits",
						 batch->n_tokens, batch->n_logits);
	m->dev->ops->embed(m->dev, m->ws.resid, &m->weights.embed, batch->tokens, batch->n_tokens);
	for (int layer = 0; layer < m->config.n_layers; layer++)
	{
		attention_part(m, layer, batch);
		ffn_part(m, layer, batch->n_tokens);
	}
	if (!head_part(m, batch, logits))
		return qwen_fail(err, QWEN_INTERNAL, "device %s has failed", m->dev->name);
	return QWEN_OK;
}
