/*
 * forward.c
 *	  One step of the model over a flat batch: qwen-models.md 3.
 *
 * Prefill and decode are the same: every token of the batch passes all
 * layers, and attention reads the cache of the token's own sequence.  The
 * residual stream is kept apart from what the last part produced (delta);
 * the next norm adds the two, so no separate addition passes over memory, but
 * for the one before the stream goes on to another stage.
 * Logits are computed for the rows that want them, nothing else.
 *
 * The stream passes from stage to stage as the map says.  Within a stage
 * every shard keeps a whole residual stream and computes its part of what is
 * added to it; devices of one processor share its threads and take turns.
 * Layers that follow each other on one device are the same operations in each
 * step, with the same buffers: a stretch that a device may record.
 */
#include "model_internal.h"

/* delta = a shard's part of Wo attention(norm(r)); added: whether there is a delta that r lacks */
static void
attention_part(const qwen_model *m, const qwen_part *p, int layer, bool added, const qwen_batch *batch)
{
	const qwen_layer_weights *w = &p->weights->layers[layer];
	const qwen_workspace *ws = &p->ws;
	const qwen_ops *ops = p->dev->ops;
	int32_t n = batch->n_tokens;

	ops->add_rmsnorm(p->dev, ws->norm, ws->resid, added ? ws->delta : NULL, w->attn_norm.data, n, m->config.hidden_size,
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
static bool
run_layer(const qwen_model *m, int stage, int layer, bool added, const qwen_batch *batch)
{
	const qwen_part *parts = qwen_stage_parts(m, stage);

	for (int s = 0; s < m->tp; s++)
		attention_part(m, &parts[s], layer, added, batch);
	if (!qwen_sum_shards(m, stage, batch->n_tokens))
		return false;
	for (int s = 0; s < m->tp; s++)
		ffn_part(m, &parts[s], layer, batch->n_tokens);
	return qwen_sum_shards(m, stage, batch->n_tokens);
}

/*
 * Layers [first, end) on one stage, the step's stretch of that number.  Devices that sum in between cannot repeat one
 * for themselves alone.
 */
static bool
run_stretch(const qwen_model *m, int number, int first, int end, const qwen_batch *batch)
{
	int stage = m->plan.layer_stage[first];
	qwen_device *dev = qwen_stage_parts(m, stage)->dev;
	bool recorded = m->tp == 1 && number < QWEN_MAX_SEGMENTS, ok = true;

	if (recorded && !dev->ops->segment_begin(dev, number))
		return true;
	for (int layer = first; layer < end && ok; layer++)
		ok = run_layer(m, stage, layer, layer > first, batch);
	if (recorded)
		dev->ops->segment_end(dev);
	return ok;
}

/* All layers, from the stage *at to the one that has the last of them. */
static bool
run_layers(const qwen_model *m, int *at, const qwen_batch *batch)
{
	const uint8_t *stages = m->plan.layer_stage;
	int n = m->config.n_layers, number = 0;

	for (int first = 0, end; first < n; first = end, number++)
	{
		for (end = first + 1; end < n && stages[end] == stages[first]; end++)
			;
		if (stages[first] != *at && !qwen_hand_over(m, *at, stages[first], batch->n_tokens, first > 0))
			return false;
		if (!run_stretch(m, number, first, end, batch))
			return false;
		*at = stages[first];
	}
	return true;
}

/* The batch's tokens as rows of a shard of the embedding, -1 where another has the row; constant during the step. */
static const int32_t *
shard_ids(const qwen_model *m, int shard, const qwen_batch *batch)
{
	int32_t rows = m->config.vocab_size / m->tp, *ids;

	if (m->tp == 1)
		return batch->tokens;
	ids = m->local_ids + (ptrdiff_t) shard * m->step_tokens;
	for (int32_t t = 0; t < batch->n_tokens; t++)
		ids[t] = batch->tokens[t] / rows == shard ? batch->tokens[t] % rows : -1;
	return ids;
}

/* Every shard looks up its own rows and has zeros for those of others: their sum is each token's row, to the bit. */
static bool
embed_tokens(const qwen_model *m, const qwen_batch *batch)
{
	const qwen_part *parts = qwen_stage_parts(m, m->plan.embed_stage);

	for (const qwen_part *p = parts; p < parts + m->tp; p++)
		p->dev->ops->embed(p->dev, p->ws.resid, &p->weights->embed, shard_ids(m, (int) (p - parts), batch),
						   batch->n_tokens);
	return qwen_sum_rows(m, m->plan.embed_stage, batch->n_tokens);
}

/* rows[n_logits, h] = norm(r) of the rows whose logits are wanted */
static void
gather_rows(const qwen_model *m, const qwen_part *p, bool added, const qwen_batch *batch)
{
	const qwen_workspace *ws = &p->ws;
	const qwen_ops *ops = p->dev->ops;
	int64_t h = m->config.hidden_size;

	ops->add_rmsnorm(p->dev, ws->norm, ws->resid, added ? ws->delta : NULL, p->weights->norm.data, batch->n_tokens, h,
					 m->config.rms_norm_eps);
	ops->gather(p->dev, ws->rows, ws->norm, batch->logit_rows, batch->n_logits, h);
}

/* logits[n_logits, V]; each shard gives [n_logits, V / tp] of its rows of the head. */
static bool
run_head(qwen_model *m, bool added, const qwen_batch *batch, float *logits)
{
	const qwen_part *parts = qwen_stage_parts(m, m->plan.head_stage);
	size_t shard = (size_t) batch->n_logits * (size_t) (m->config.vocab_size / m->tp);
	bool ok = true;

	for (int s = 0; s < m->tp; s++)
		gather_rows(m, &parts[s], added, batch);
	for (int s = 0; s < m->tp; s++)
		ok = ok && parts[s].dev->ops->logits(parts[s].dev, logits + (size_t) s * shard, &parts[s].weights->head,
											 parts[s].ws.rows, batch->n_logits);
	if (ok && m->tp > 1)
		qwen_interleave_logits(m, logits, batch->n_logits);
	return ok;
}

static bool
announce(const qwen_model *m, const qwen_batch *batch)
{
	bool ok = true;

	for (int i = 0; i < m->n_parts; i++)
		ok = ok && (m->parts[i].idle || m->parts[i].dev->ops->step(m->parts[i].dev, batch));
	return ok;
}

static bool
run_step(qwen_model *m, const qwen_batch *batch, float *logits)
{
	int at = m->plan.embed_stage, head = m->plan.head_stage;
	bool ok = announce(m, batch) && embed_tokens(m, batch) && run_layers(m, &at, batch);

	if (batch->n_logits > 0 && ok && head != at)
		ok = qwen_hand_over(m, at, head, batch->n_tokens, true);
	if (batch->n_logits > 0 && ok)
		ok = run_head(m, head == at, batch, logits);
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
