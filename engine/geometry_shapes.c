/*
 * geometry_shapes.c
 *	  The tensors of a layer, whole or divided among tensor-parallel devices.
 *
 * Division follows the heads: a device has some of the query heads with the
 * key and value heads that they read, the columns of the output projection
 * that take them in, and its part of every feed-forward width.  Norms,
 * routers and gates of a single row are held by all.
 */
#include "geometry.h"

#include <string.h>

/* A list being filled. */
typedef struct shape_list
{
	qwen_shape *items;
	int n;
} shape_list;

static void
add_matrices(shape_list *list, int64_t n, int64_t k, int64_t count, bool exact)
{
	list->items[list->n++] = (qwen_shape){.n = n, .k = k, .count = count, .exact = exact};
}

static void
add_vector(shape_list *list, int64_t n)
{
	list->items[list->n++] = (qwen_shape){.n = n, .count = 1};
}

int32_t
qwen_geometry_kv_heads(const qwen_geometry *g, int shards)
{
	return g->n_kv_heads > shards ? g->n_kv_heads / shards : 1;
}

/* qwen-models.md 6.1, 6.2 and 8.3 */
static void
add_attention(shape_list *list, const qwen_geometry *g, int shards)
{
	int64_t h = g->hidden_size;
	int64_t q = (int64_t) g->n_heads / shards * g->head_dim;
	int64_t kv = (int64_t) qwen_geometry_kv_heads(g, shards) * g->head_dim;
	int64_t qkv = (g->gated ? 2 : 1) * q + 2 * kv;

	add_matrices(list, qkv, h, 1, false);
	add_matrices(list, h, q, 1, false);
	if (g->attention_bias)
		add_vector(list, qkv);
	if (g->output_bias)
		add_vector(list, h);
	if (g->qk_norm)
	{
		add_vector(list, g->head_dim);
		add_vector(list, g->head_dim);
	}
}

/* qwen-models.md 8.4; the four or two input projections are one matrix for q, k, v, z and one for b, a. */
static void
add_deltanet(shape_list *list, const qwen_geometry *g, int shards)
{
	int64_t h = g->hidden_size, heads = g->n_value_heads / shards;
	int64_t key = (int64_t) g->n_key_heads / shards * g->key_dim, value = heads * g->value_dim;

	add_matrices(list, 2 * key + 2 * value, h, 1, false);
	add_matrices(list, 2 * heads, h, 1, true);
	add_matrices(list, h, value, 1, false);
	add_vector(list, (2 * key + value) * g->conv_kernel);
	add_vector(list, heads); /* A_log */
	add_vector(list, heads); /* dt_bias */
	add_vector(list, g->value_dim);
}

/* Gate and up are one matrix. */
static void
add_ffn(shape_list *list, int64_t h, int64_t width, int64_t count)
{
	add_matrices(list, 2 * width, h, count, false);
	add_matrices(list, h, width, count, false);
}

/* qwen-models.md 6.3 */
static void
add_experts(shape_list *list, const qwen_geometry *g, int shards)
{
	int64_t h = g->hidden_size;

	add_matrices(list, g->n_experts, h, 1, true);
	add_ffn(list, h, g->expert_size / shards, g->n_experts);
	if (g->shared_size == 0)
		return;
	add_ffn(list, h, g->shared_size / shards, 1);
	add_vector(list, h);
}

int
qwen_layer_shapes(const qwen_geometry *g, int kind, int shards, qwen_shape out[QWEN_MAX_SHAPES])
{
	shape_list list = {.items = out};

	add_vector(&list, g->hidden_size);
	add_vector(&list, g->hidden_size);
	if (kind & QWEN_LAYER_LINEAR)
		add_deltanet(&list, g, shards);
	else
		add_attention(&list, g, shards);
	if (kind & QWEN_LAYER_SPARSE)
		add_experts(&list, g, shards);
	else
		add_ffn(&list, g->hidden_size, g->intermediate_size / shards, 1);
	return list.n;
}

uint64_t
qwen_geometry_parameters(const qwen_geometry *g)
{
	uint64_t of_kind[QWEN_LAYER_KINDS] = {0};
	uint64_t edge = (uint64_t) g->vocab_size * (uint64_t) g->hidden_size;
	uint64_t sum = edge * (g->tied ? 1 : 2) + (uint64_t) g->hidden_size;
	qwen_shape shapes[QWEN_MAX_SHAPES];

	for (int kind = 0; kind < QWEN_LAYER_KINDS; kind++)
	{
		int n = qwen_layer_shapes(g, kind, 1, shapes);

		for (int i = 0; i < n; i++)
			of_kind[kind] += (uint64_t) (shapes[i].count * shapes[i].n * (shapes[i].k ? shapes[i].k : 1));
	}
	for (int i = 0; i < g->n_layers; i++)
		sum += of_kind[g->kinds[i]];
	return sum;
}

/* ---- which numbers of devices are possible ---- */

static bool
has_layers(const qwen_geometry *g, uint8_t bit, bool set)
{
	for (int i = 0; i < g->n_layers; i++)
		if (((g->kinds[i] & bit) != 0) == set)
			return true;
	return false;
}

static qwen_status
refuse_split(const char *what, int n, int shards, qwen_error *err)
{
	qwen_fail(err, QWEN_INVALID, "the model cannot be divided among %d devices", shards);
	qwen_fail_detail(err, "It has %d %s, which is not a multiple of %d.", n, what, shards);
	return qwen_fail_hint(err, "Set qwen.tensor_parallel to another number, or to 1 to divide the model by layers.");
}

qwen_status
qwen_geometry_splits(const qwen_geometry *g, int shards, qwen_error *err)
{
	bool linear = has_layers(g, QWEN_LAYER_LINEAR, true), full = has_layers(g, QWEN_LAYER_LINEAR, false);
	bool sparse = has_layers(g, QWEN_LAYER_SPARSE, true), dense = has_layers(g, QWEN_LAYER_SPARSE, false);
	const struct
	{
		bool used;
		int32_t n;
		const char *what;
	} rules[] = {
		{full, g->n_heads, "query heads"},
		{linear, g->n_key_heads, "key heads of linear attention"},
		{linear, g->n_value_heads, "value heads of linear attention"},
		{dense, g->intermediate_size, "feed-forward columns"},
		{sparse, g->expert_size, "columns in an expert"},
		{sparse, g->shared_size, "columns in the shared expert"},
		{true, g->vocab_size, "rows of vocabulary"},
	};

	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++)
		if (rules[i].used && rules[i].n % shards != 0)
			return refuse_split(rules[i].what, rules[i].n, shards, err);
	/* fewer key-value heads than devices: each is held by several */
	if (full && g->n_kv_heads % shards != 0 && shards % g->n_kv_heads != 0)
		return refuse_split("key-value heads", g->n_kv_heads, shards, err);
	return QWEN_OK;
}
