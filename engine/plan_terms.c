/*
 * plan_terms.c
 *	  Bytes of a set of items on a device: qwen-models.md 14.
 *
 * All layers of a kind are alike, so a set of items is four counts and two
 * flags, and its bytes are sums of products.  Sizes are those of one shard;
 * with one device to a stage the shard is all.
 */
#include <string.h>

#include "plan_internal.h"

static uint64_t
round_to(uint64_t n, uint64_t unit)
{
	return (n + unit - 1) / unit * unit;
}

static uint64_t
larger(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* ---- sizes of single items ---- */

/* Vectors are float on every device. */
static uint64_t
weight_bytes(const qwen_plan_problem *p, const qwen_plan_kind *kind, int layer_kind)
{
	qwen_shape shapes[QWEN_MAX_SHAPES];
	int n = qwen_layer_shapes(p->geometry, layer_kind, p->tensor_parallel, shapes);
	uint64_t sum = 0;

	for (int i = 0; i < n; i++)
	{
		qwen_dtype dtype = shapes[i].exact ? p->dtype : p->layer_dtype;

		sum += (uint64_t) shapes[i].count *
			   (shapes[i].k ? kind->matrix_bytes(dtype, shapes[i].n, shapes[i].k) : (uint64_t) shapes[i].n * 4);
	}
	return sum;
}

/* A block of one layer: keys and values of 16 tokens; an int8 cache has a float scale for each token and head. */
static uint64_t
kv_block_bytes(const qwen_plan_problem *p)
{
	uint64_t heads = (uint64_t) qwen_geometry_kv_heads(p->geometry, p->tensor_parallel);
	uint64_t dim = (uint64_t) p->geometry->head_dim;
	uint64_t head = p->kv_dtype == QWEN_INT8 ? dim + sizeof(float) : dim * qwen_dtype_bytes(p->kv_dtype);

	return 2 * QWEN_KV_BLOCK * heads * head;
}

/* Matrices of value heads in float, and the convolution's tail as activations. */
static uint64_t
state_bytes(const qwen_plan_problem *p, const qwen_plan_kind *kind)
{
	const qwen_geometry *g = p->geometry;
	uint64_t tp = (uint64_t) p->tensor_parallel, heads = (uint64_t) g->n_value_heads / tp;
	uint64_t key = (uint64_t) g->n_key_heads / tp * (uint64_t) g->key_dim, value = heads * (uint64_t) g->value_dim;

	if (g->conv_kernel == 0)
		return 0;
	return heads * (uint64_t) g->key_dim * (uint64_t) g->value_dim * 4 +
		   (2 * key + value) * (uint64_t) (g->conv_kernel - 1) * kind->act_bytes;
}

/* ---- activations ---- */

/* q, k and v of T tokens beside what attention gives. */
static uint64_t
attention_phase(const qwen_plan_problem *p, const qwen_plan_kind *kind)
{
	const qwen_geometry *g = p->geometry;
	uint64_t t = (uint64_t) p->step_tokens, d = (uint64_t) g->head_dim;
	uint64_t q = (uint64_t) (g->n_heads / p->tensor_parallel) * d;
	uint64_t kv = (uint64_t) qwen_geometry_kv_heads(g, p->tensor_parallel) * d;

	return round_to(t * ((g->gated ? 2 : 1) * q + 2 * kv) * kind->act_bytes, kind->align) + t * q * kind->act_bytes;
}

/* q, k, v and z, b and a, what the recurrence gives, and chunks of 64 tokens on the way. */
static uint64_t
deltanet_phase(const qwen_plan_problem *p, const qwen_plan_kind *kind)
{
	const qwen_geometry *g = p->geometry;
	uint64_t tp = (uint64_t) p->tensor_parallel, t = (uint64_t) p->step_tokens;
	uint64_t heads = (uint64_t) g->n_value_heads / tp;
	uint64_t key = (uint64_t) g->n_key_heads / tp * (uint64_t) g->key_dim, value = heads * (uint64_t) g->value_dim;
	uint64_t chunks = (t + 63) / 64;

	return round_to(t * (2 * key + 2 * value + 2 * heads) * kind->act_bytes, kind->align) +
		   round_to(t * value * kind->act_bytes, kind->align) + chunks * heads * 64 * 64 * 4 * 3;
}

/* gate and up of T tokens beside their product */
static uint64_t
dense_phase(const qwen_plan_problem *p, const qwen_plan_kind *kind, int32_t width)
{
	uint64_t t = (uint64_t) p->step_tokens, f = (uint64_t) (width / p->tensor_parallel);

	return round_to(t * 2 * f * kind->act_bytes, kind->align) + t * f * kind->act_bytes;
}

/* The rows of each token's experts with gate, up and product, the router's scores, and two index arrays. */
static uint64_t
sparse_phase(const qwen_plan_problem *p, const qwen_plan_kind *kind)
{
	const qwen_geometry *g = p->geometry;
	uint64_t t = (uint64_t) p->step_tokens, used = (uint64_t) g->n_experts_used;
	uint64_t width = (uint64_t) (g->expert_size / p->tensor_parallel);

	return round_to(t * used * ((uint64_t) g->hidden_size + 3 * width) * kind->act_bytes, kind->align) +
		   round_to(t * (uint64_t) g->n_experts * 4, kind->align) + 2 * t * used * 4 +
		   dense_phase(p, kind, g->shared_size);
}

/* The phases of a layer share one stretch of memory: it is as long as the longest. */
static uint64_t
phase_bytes(const qwen_plan_problem *p, const qwen_plan_kind *kind, int layer_kind)
{
	uint64_t mixer = layer_kind & QWEN_LAYER_LINEAR ? deltanet_phase(p, kind) : attention_phase(p, kind);
	uint64_t ffn =
		layer_kind & QWEN_LAYER_SPARSE ? sparse_phase(p, kind) : dense_phase(p, kind, p->geometry->intermediate_size);

	return larger(mixer, ffn);
}

/* Elements of the longest row that a product of a layer takes. */
static int64_t
longest_row(const qwen_plan_problem *p, int layer_kind)
{
	qwen_shape shapes[QWEN_MAX_SHAPES];
	int n = qwen_layer_shapes(p->geometry, layer_kind, p->tensor_parallel, shapes);
	int64_t longest = 0;

	for (int i = 0; i < n; i++)
		longest = shapes[i].k > longest ? shapes[i].k : longest;
	return longest;
}

/* Block lists are counted at full length, even where the cache has fewer blocks: sequences may share them. */
static qwen_needs
needs_of(const qwen_plan_problem *p)
{
	const qwen_geometry *g = p->geometry;

	return (qwen_needs){
		.rows = p->step_tokens,
		.logit_rows = p->max_sequences,
		.head_k = g->hidden_size,
		.vocab = g->vocab_size / p->tensor_parallel,
		.sequences = p->max_sequences,
		.blocks = (int64_t) p->max_sequences * ((p->max_model_len + QWEN_KV_BLOCK - 1) / QWEN_KV_BLOCK),
		.n_q = g->n_heads / p->tensor_parallel,
		.dim = g->head_dim,
	};
}

/* ---- all of them ---- */

/* The engine is there once; devices that share the head share it as well. */
static uint64_t
per_shard(const qwen_plan_problem *p, uint64_t bytes)
{
	uint64_t tp = (uint64_t) p->tensor_parallel;

	return (bytes + tp - 1) / tp;
}

/* context: whether it is made already. */
static void
measure_kind(const qwen_plan_problem *p, const qwen_plan_kind *kind, bool context, qwen_plan_sizes *s)
{
	const qwen_geometry *g = p->geometry;
	uint64_t t = (uint64_t) p->step_tokens, h = (uint64_t) g->hidden_size, rows = (uint64_t) p->max_sequences;

	*s = (qwen_plan_sizes){
		.margin = kind->margin,
		.scratch_bytes = kind->scratch_bytes,
		.tied = g->tied,
		.edge = kind->matrix_bytes(p->edge_dtype, g->vocab_size / p->tensor_parallel, g->hidden_size),
		.norm = h * 4,
		.kv_block = kv_block_bytes(p),
		.state = state_bytes(p, kind),
		.stream = round_to(t * h * kind->resid_bytes, kind->align) + 2 * round_to(t * h * kind->act_bytes, kind->align),
		.rows = round_to(rows * h * kind->act_bytes, kind->align),
		.needs = needs_of(p),
		.logits = rows * (uint64_t) (g->vocab_size / p->tensor_parallel) * sizeof(float),
		.rope = (uint64_t) p->max_model_len * (uint64_t) g->rotary * sizeof(float),
		.engine = per_shard(p, kind->engine_bytes(g->vocab_size, p->threads, p->max_sequences)),
		.engine_block = per_shard(p, kind->block_bytes),
		.overhead =
			(context ? 0 : kind->context) + kind->overhead + (p->tensor_parallel > 1 ? kind->group_overhead : 0),
	};
	for (int i = 0; i < QWEN_LAYER_KINDS; i++)
	{
		s->layer[i] = weight_bytes(p, kind, i);
		s->phase[i] = phase_bytes(p, kind, i);
		s->longest[i] = longest_row(p, i);
	}
}

void
qwen_plan_measure(qwen_plan_problem *p)
{
	bool context = false;

	for (int i = 0; i < p->n; i++)
		context |= p->devices[i].has_context;
	for (int i = 0; i < 2; i++)
	{
		qwen_plan_kind kind = *qwen_plan_kind_of((qwen_device_kind) i);

		if (kind.act_bytes == 0)
			kind.act_bytes = qwen_dtype_bytes(p->dtype);
		measure_kind(p, &kind, context, &p->sizes[i]);
	}
	p->n_items = p->geometry->n_layers + 2;
	memset(p->before, 0, sizeof(p->before));
	for (int kind = 0; kind < QWEN_LAYER_KINDS; kind++)
		for (int i = 0; i < p->geometry->n_layers; i++)
			p->before[kind][i + 1] = (uint16_t) (p->before[kind][i] + (p->geometry->kinds[i] == kind));
}

qwen_plan_items
qwen_plan_range(const qwen_plan_problem *p, int first, int end)
{
	int last_item = p->n_items - 1;
	int from = first > 0 ? first - 1 : 0, to = (end < last_item ? end : last_item) - 1;
	qwen_plan_items items = {.embed = first == 0 && end > 0, .head = first <= last_item && end > last_item};

	for (int kind = 0; kind < QWEN_LAYER_KINDS && to > from; kind++)
		items.layers[kind] = p->before[kind][to] - p->before[kind][from];
	return items;
}

uint64_t
qwen_plan_full_layers(const qwen_plan_items *items)
{
	return (uint64_t) items->layers[0] + (uint64_t) items->layers[QWEN_LAYER_SPARSE];
}

uint64_t
qwen_plan_linear_layers(const qwen_plan_items *items)
{
	return (uint64_t) items->layers[QWEN_LAYER_LINEAR] +
		   (uint64_t) items->layers[QWEN_LAYER_LINEAR | QWEN_LAYER_SPARSE];
}

/* What of the needs a device with these items has. */
static uint64_t
scratch_of(const qwen_plan_sizes *s, const qwen_plan_items *items)
{
	qwen_needs needs = s->needs;
	bool layers = false;

	for (int i = 0; i < QWEN_LAYER_KINDS; i++)
		if (items->layers[i] > 0)
		{
			needs.k = s->longest[i] > needs.k ? s->longest[i] : needs.k;
			layers = true;
		}
	if (!layers)
		needs.n_q = needs.dim = 0;
	if (!items->head)
		needs.head_k = needs.vocab = needs.logit_rows = 0;
	return s->scratch_bytes(&needs);
}

/* Activations and scratch of the items' longest phase. */
static void
tally_workspace(const qwen_plan_sizes *s, const qwen_plan_items *items, qwen_plan_usage *u)
{
	uint64_t phase = 0;

	for (int i = 0; i < QWEN_LAYER_KINDS; i++)
		if (items->layers[i] > 0)
			phase = larger(phase, s->phase[i]);
	u->scratch = scratch_of(s, items);
	u->activations = s->stream + phase + (items->head ? s->rows : 0);
	u->logits = items->head ? s->logits : 0;
}

void
qwen_plan_tally(const qwen_plan_problem *p, qwen_device_kind kind, const qwen_plan_items *items, uint64_t blocks,
				uint64_t states, qwen_plan_usage *u)
{
	const qwen_plan_sizes *s = &p->sizes[kind];
	uint64_t full = qwen_plan_full_layers(items), linear = qwen_plan_linear_layers(items);

	memset(u, 0, sizeof(*u));
	if (full + linear == 0 && !items->embed && !items->head)
		return;
	u->embed = items->embed ? s->edge : 0;
	for (int i = 0; i < QWEN_LAYER_KINDS; i++)
		u->layers += (uint64_t) items->layers[i] * s->layer[i];
	if (items->head)
		u->head = s->norm + (s->tied && items->embed ? 0 : s->edge);
	u->kv = blocks * full * s->kv_block;
	u->state = states * linear * s->state;
	tally_workspace(s, items, u);
	u->rope = full > 0 ? s->rope : 0;
	u->overhead = s->overhead + (items->head ? s->engine + blocks * s->engine_block : 0);
	u->margin = s->margin;
}

uint64_t
qwen_plan_block_cost(const qwen_plan_problem *p, qwen_device_kind kind, const qwen_plan_items *items)
{
	const qwen_plan_sizes *s = &p->sizes[kind];

	return qwen_plan_full_layers(items) * s->kv_block + (items->head ? s->engine_block : 0);
}

/* ---- sums ---- */

uint64_t
qwen_plan_weights(const qwen_plan_usage *u)
{
	return u->embed + u->layers + u->head;
}

uint64_t
qwen_plan_workspace(const qwen_plan_usage *u)
{
	return u->activations + u->logits + u->scratch + u->rope;
}

uint64_t
qwen_plan_total(const qwen_plan_usage *u)
{
	return qwen_plan_weights(u) + u->kv + u->state + qwen_plan_workspace(u) + u->overhead + u->margin;
}
