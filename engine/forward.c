/*
 * forward.c
 *	  One step of the model over a flat batch: qwen-models.md 3.
 *
 * Prefill and decode are the same: every token of the batch passes all
 * layers, and attention reads the cache of the token's own sequence.  The
 * residual stream is kept apart from what the last part produced (delta);
 * the next norm adds the two, so no separate addition passes over memory.
 * Logits are computed for the rows that want them, nothing else.
 *
 * The stream passes from stage to stage as the map says.  Within a stage
 * every shard keeps a whole residual stream and computes its part of what is
 * added to it; devices of one processor share its threads and take turns.
 */
#include "model_internal.h"

/* delta = a shard's part of Wo attention(norm(r)) */
static void
attention_part(const qwen_model *m, const qwen_part *p, int layer, const qwen_batch *batch)
{
	const qwen_layer_weights *w = &p->weights->layers[layer];
	const qwen_workspace *ws = &p->ws;
	const qwen_ops *ops = p->dev->ops;
	int32_t n = batch->n_tokens;

	ops->add_rmsnorm(p->dev, ws->norm, ws->resid, layer ? ws->delta : NULL, w->attn_norm.data, n, m->config.hidden_size,
					 m->config.rms_norm_eps);
	ops->linear(p->dev, ws->qkv, &w->qkv, w->qkv_bias.data, ws->norm, n);
	ops->qk_rope_store(p->dev, ws->qkv, w->q_norm.data, w->k_norm.data, p->rope, &m->heads, &p->kv[layer], batch);
	ops->attention(p->dev, ws->attn, ws->qkv, &m->heads, &p->kv[layer], batch);
	ops->linear(p->dev, ws->delta, &w->out, p->weights->shard == 0 ? w->out_bias.data : NULL, ws->attn, n);
}

/* delta = a shard's part of Wdown (silu(Wgate x) * Wup x) with x = norm(r) */
static void
ffn_part(const qwen_model *m, const qwen_part *p, int layer, int32_t n)
{
	const qwen_layer_weights *w = &p->weights->layers[layer];
	const qwen_workspace *ws = &p->ws;
	const qwen_ops *ops = p->dev->ops;

	ops->add_rmsnorm(p->dev, ws->norm, ws->resid, ws->delta, w->ffn_norm.data, n, m->config.hidden_size,
					 m->config.rms_norm_eps);
	ops->linear(p->dev, ws->gate_up, &w->gate_up, NULL, ws->norm, n);
	ops->swiglu(p->dev, ws->act, ws->gate_up, n, m->config.intermediate_size / m->tp);
	ops->linear(p->dev, ws->delta, &w->down, NULL, ws->act, n);
}

/* r += attention, r += feed-forward; the second sum is left to the next norm */
static void
run_layer(const qwen_model *m, int layer, const qwen_batch *batch)
{
	int stage = m->plan.layer_stage[layer];
	const qwen_part *parts = qwen_stage_parts(m, stage);

	for (int s = 0; s < m->tp; s++)
		attention_part(m, &parts[s], layer, batch);
	qwen_sum_shards(m, stage, batch->n_tokens);
	for (int s = 0; s < m->tp; s++)
		ffn_part(m, &parts[s], layer, batch->n_tokens);
	qwen_sum_shards(m, stage, batch->n_tokens);
}

/* Every shard looks up all tokens, those of others in a row of its own, which is then replaced. */
static void
embed_tokens(const qwen_model *m, const qwen_batch *batch)
{
	const qwen_part *parts = qwen_stage_parts(m, m->plan.embed_stage);
	int32_t rows = m->config.vocab_size / m->tp;

	for (int s = 0; s < m->tp; s++)
	{
		const qwen_part *p = &parts[s];
		const int32_t *ids = batch->tokens;

		if (m->tp > 1)
		{
			for (int32_t t = 0; t < batch->n_tokens; t++)
				m->local_ids[t] = ids[t] / rows == s ? ids[t] % rows : 0;
			ids = m->local_ids;
		}
		p->dev->ops->embed(p->dev, p->ws.resid, &p->weights->embed, ids, batch->n_tokens);
	}
	if (m->tp > 1)
		qwen_share_rows(m, m->plan.embed_stage, batch->tokens, batch->n_tokens);
}

/* logits[n_logits, V / tp] of a shard's rows of the head, of norm(r) of the rows that are wanted */
static bool
head_part(const qwen_model *m, const qwen_part *p, const qwen_batch *batch, float *logits)
{
	const qwen_workspace *ws = &p->ws;
	const qwen_ops *ops = p->dev->ops;
	int64_t h = m->config.hidden_size;

	ops->add_rmsnorm(p->dev, ws->norm, ws->resid, ws->delta, p->weights->norm.data, batch->n_tokens, h,
					 m->config.rms_norm_eps);
	ops->gather(p->dev, ws->rows, ws->norm, batch->logit_rows, batch->n_logits, h);
	return ops->logits(p->dev, logits, &p->weights->head, ws->rows, batch->n_logits);
}

static bool
run_head(qwen_model *m, const qwen_batch *batch, float *logits)
{
	const qwen_part *parts = qwen_stage_parts(m, m->plan.head_stage);
	size_t shard = (size_t) batch->n_logits * (size_t) (m->config.vocab_size / m->tp);
	bool ok = true;

	for (int s = 0; s < m->tp; s++)
		ok = ok && head_part(m, &parts[s], batch, logits + (size_t) s * shard);
	if (ok && m->tp > 1)
		qwen_interleave_logits(m, logits, batch->n_logits);
	return ok;
}

static bool
run_step(qwen_model *m, const qwen_batch *batch, float *logits)
{
	const qwen_plan *plan = &m->plan;
	int32_t n = batch->n_tokens;
	int at = plan->embed_stage;
	bool ok = true;

	embed_tokens(m, batch);
	for (int layer = 0; layer < m->config.n_layers && ok; layer++)
	{
		if (plan->layer_stage[layer] != at)
			ok = qwen_hand_over(m, at, plan->layer_stage[layer], n, layer > 0);
		at = plan->layer_stage[layer];
		run_layer(m, layer, batch);
	}
	if (batch->n_logits > 0 && ok && plan->head_stage != at)
		ok = qwen_hand_over(m, at, plan->head_stage, n, true);
	if (batch->n_logits > 0 && ok)
		ok = run_head(m, batch, logits);
	for (int i = 0; i < m->n_parts; i++)
		ok = m->parts[i].dev->ops->synchronize(m->parts[i].dev) && ok;
	return ok;
}

qwen_status
qwen_model_forward(qwen_model *m, const qwen_batch *batch, float *logits, qwen_error *err)
{
	if (batch->n_tokens < 1 || batch->n_tokens > m->step_tokens || batch->n_logits > m->max_sequences)
		return qwen_fail(err, QWEN_INTERNAL, "a step of %d tokens and %d rows of logits is beyond its limits",
						 batch->n_tokens, batch->n_logits);
	if (!run_step(m, batch, logits))
		return qwen_fail(err, QWEN_INTERNAL, "a device has failed");
	return QWEN_OK;
}
