/*
 * weights_plan.c
 *	  Which tensor of the checkpoint goes where.
 *
 * The configuration says which tensors there must be; a slot stands for each.
 * Slots are matched with the checkpoint's names after normalisation, then
 * whatever does not fit, on either side, is reported in one error.  Nothing
 * is allocated on the device here, so the caller can compare the sum with
 * the memory that there is.
 */
#include "weights_internal.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config_json.h"
#include "dtype.h"

/* Slots of one layer, and beside the layers. */
#define LAYER_SLOTS 15
#define OTHER_SLOTS 3

/* ---- names ---- */

/* Without the prefixes that wrappers and older writers put before the same names. */
static const char *
normal_name(const char *name)
{
	static const char *const prefixes[] = {"model.language_model.", "language_model.model.", "model."};

	for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++)
		if (!strncmp(name, prefixes[i], strlen(prefixes[i])))
			return name + strlen(prefixes[i]);
	return name;
}

static bool
ends_with(const char *s, const char *end)
{
	size_t n = strlen(s), m = strlen(end);

	return n >= m && !strcmp(s + n - m, end);
}

/* Tensors that some files have and the forward pass does not use. */
static bool
ignorable(const qwen_config *config, const char *name)
{
	return ends_with(name, "rotary_emb.inv_freq") || ends_with(name, ".masked_bias") || !strncmp(name, "visual.", 7) ||
		   !strncmp(name, "mtp.", 4) || (config->tied && !strcmp(name, "lm_head.weight"));
}

/* ---- which tensors there are ---- */

/* What rows and columns of a tensor are, which says how they are divided. */
typedef enum axis
{
	ONE, /* a vector's columns */
	HIDDEN,
	HEAD_DIM,
	QUERIES, /* heads times their elements; keys are also values */
	KEYS,
	WIDTH,
	VOCABULARY
} axis;

/* Tensors that not every model has: qwen-models.md 6.1 and 6.2. */
typedef enum need
{
	ALWAYS,
	ATTENTION_BIAS,
	OUTPUT_BIAS,
	HEAD_NORMS
} need;

/* Tensors of one layer; those with the same place follow each other in it, in this order. */
typedef struct layer_rule
{
	const char *name;
	size_t place; /* of a qwen_vector, or where cols is not ONE of a qwen_matrix, in qwen_layer_weights */
	axis rows;
	axis cols;
	need need;
} layer_rule;

static const layer_rule layer_rules[LAYER_SLOTS] = {
	{"input_layernorm.weight", offsetof(qwen_layer_weights, attn_norm), HIDDEN, ONE, ALWAYS},
	{"self_attn.q_proj.weight", offsetof(qwen_layer_weights, qkv), QUERIES, HIDDEN, ALWAYS},
	{"self_attn.k_proj.weight", offsetof(qwen_layer_weights, qkv), KEYS, HIDDEN, ALWAYS},
	{"self_attn.v_proj.weight", offsetof(qwen_layer_weights, qkv), KEYS, HIDDEN, ALWAYS},
	{"self_attn.o_proj.weight", offsetof(qwen_layer_weights, out), HIDDEN, QUERIES, ALWAYS},
	{"self_attn.q_proj.bias", offsetof(qwen_layer_weights, qkv_bias), QUERIES, ONE, ATTENTION_BIAS},
	{"self_attn.k_proj.bias", offsetof(qwen_layer_weights, qkv_bias), KEYS, ONE, ATTENTION_BIAS},
	{"self_attn.v_proj.bias", offsetof(qwen_layer_weights, qkv_bias), KEYS, ONE, ATTENTION_BIAS},
	{"self_attn.o_proj.bias", offsetof(qwen_layer_weights, out_bias), HIDDEN, ONE, OUTPUT_BIAS},
	{"self_attn.q_norm.weight", offsetof(qwen_layer_weights, q_norm), HEAD_DIM, ONE, HEAD_NORMS},
	{"self_attn.k_norm.weight", offsetof(qwen_layer_weights, k_norm), HEAD_DIM, ONE, HEAD_NORMS},
	{"post_attention_layernorm.weight", offsetof(qwen_layer_weights, ffn_norm), HIDDEN, ONE, ALWAYS},
	{"mlp.gate_proj.weight", offsetof(qwen_layer_weights, gate_up), WIDTH, HIDDEN, ALWAYS},
	{"mlp.up_proj.weight", offsetof(qwen_layer_weights, gate_up), WIDTH, HIDDEN, ALWAYS},
	{"mlp.down_proj.weight", offsetof(qwen_layer_weights, down), HIDDEN, WIDTH, ALWAYS},
};

static bool
has_tensor(const qwen_config *c, need n)
{
	switch (n)
	{
		case ATTENTION_BIAS:
			return c->attention_bias;
		case OUTPUT_BIAS:
			return c->output_bias;
		case HEAD_NORMS:
			return c->qk_norm;
		default:
			return true;
	}
}

static int64_t
axis_length(const qwen_config *c, axis a)
{
	switch (a)
	{
		case HIDDEN:
			return c->hidden_size;
		case HEAD_DIM:
			return c->head_dim;
		case QUERIES:
			return (int64_t) c->n_heads * c->head_dim;
		case KEYS:
			return (int64_t) c->n_kv_heads * c->head_dim;
		case WIDTH:
			return c->intermediate_size;
		case VOCABULARY:
			return c->vocab_size;
		default:
			return 1;
	}
}

/* ---- slots ---- */

typedef struct span
{
	int64_t begin;
	int64_t n;
} span;

/*
 * What a shard holds of an axis.  The planner has seen to it that the divisions come out even; where there are more
 * shards than key heads, a head is held by several neighbours, whose queries it answers.
 */
static span
shard_span(const qwen_config *c, axis a, const qwen_weights *part)
{
	int64_t n = axis_length(c, a), shards = part->n_shards;

	if (a == ONE || a == HIDDEN || a == HEAD_DIM)
		return (span){0, n};
	if (a == KEYS && c->n_kv_heads < shards)
		return (span){part->shard * (int64_t) c->n_kv_heads / shards * c->head_dim, c->head_dim};
	return (span){part->shard * (n / shards), n / shards};
}

/* layer < 0: the tensor is not part of a layer. Its targets follow. */
static void
add_slot(qwen_weight_plan *plan, const qwen_config *c, int layer, const char *name, axis rows, axis cols)
{
	qwen_slot *slot = &plan->slots[plan->n++];

	if (layer < 0)
		snprintf(slot->name, sizeof(slot->name), "%s", name);
	else
		snprintf(slot->name, sizeof(slot->name), "layers.%d.%s", layer, name);
	slot->rows = axis_length(c, rows);
	slot->cols = axis_length(c, cols);
	slot->matrix = cols != ONE;
	slot->first = plan->n_targets;
}

/* The part's share of the last slot, behind what its matrix or vector has already. */
static void
add_target(qwen_weight_plan *plan, const qwen_config *c, qwen_weights *part, void *place, axis rows, axis cols)
{
	span r = shard_span(c, rows, part), k = shard_span(c, cols, part);
	qwen_target *t = &plan->targets[plan->n_targets++];

	*t = (qwen_target){.part = part, .row = r.begin, .n_rows = r.n, .col = k.begin, .n_cols = k.n};
	plan->slots[plan->n - 1].n++;
	if (cols == ONE)
	{
		t->vector = place;
		t->offset = t->vector->n;
		t->vector->n += r.n;
		return;
	}
	t->matrix = place;
	t->offset = t->matrix->n;
	t->matrix->n += r.n;
	t->matrix->k = k.n;
}

static void
add_layer(qwen_weight_plan *plan, const qwen_config *c, int layer)
{
	for (const layer_rule *rule = layer_rules; rule < layer_rules + LAYER_SLOTS; rule++)
	{
		if (!has_tensor(c, rule->need))
			continue;
		add_slot(plan, c, layer, rule->name, rule->rows, rule->cols);
		for (qwen_weights *p = plan->parts; p < plan->parts + plan->n_parts; p++)
			if (!p->holds || p->holds[layer])
				add_target(plan, c, p, (char *) &p->layers[layer] + rule->place, rule->rows, rule->cols);
	}
}

/* A tied head that is apart from the embedding is a copy of it. */
static void
add_embedding(qwen_weight_plan *plan, const qwen_config *c)
{
	add_slot(plan, c, -1, "embed_tokens.weight", VOCABULARY, HIDDEN);
	for (qwen_weights *p = plan->parts; p < plan->parts + plan->n_parts; p++)
		if (p->has_embed)
			add_target(plan, c, p, &p->embed, VOCABULARY, HIDDEN);
		else if (p->has_head && c->tied)
			add_target(plan, c, p, &p->head, VOCABULARY, HIDDEN);
}

static void
add_head(qwen_weight_plan *plan, const qwen_config *c)
{
	add_slot(plan, c, -1, "norm.weight", HIDDEN, ONE);
	for (qwen_weights *p = plan->parts; p < plan->parts + plan->n_parts; p++)
		if (p->has_head)
			add_target(plan, c, p, &p->norm, HIDDEN, ONE);
	if (c->tied)
		return;
	add_slot(plan, c, -1, "lm_head.weight", VOCABULARY, HIDDEN);
	for (qwen_weights *p = plan->parts; p < plan->parts + plan->n_parts; p++)
		if (p->has_head)
			add_target(plan, c, p, &p->head, VOCABULARY, HIDDEN);
}

/* The model, in the order of its forward pass. */
static void
add_all(qwen_weight_plan *plan, const qwen_config *c)
{
	add_embedding(plan, c);
	for (int i = 0; i < c->n_layers; i++)
		add_layer(plan, c, i);
	add_head(plan, c);
}

/* ---- matching ---- */

/* A list of findings for the error's detail, cut when it grows too long. */
typedef struct findings
{
	char text[320];
	size_t len;
	int n;
	int shown;
} findings;

static void note(findings *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Adds an item; once one did not fit, later ones are only counted. */
static void
note(findings *f, const char *fmt, ...)
{
	char item[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(item, sizeof(item), fmt, ap);
	va_end(ap);
	f->n++;
	if (f->shown + 1 < f->n || f->len + strlen(item) + 2 >= sizeof(f->text) - 24)
		return;
	f->len += (size_t) snprintf(f->text + f->len, sizeof(f->text) - f->len, "%s%s", f->n > 1 ? ", " : "", item);
	f->shown++;
}

/* "Missing: a, b and 3 more." appended to text. */
static void
describe(char *text, size_t size, const char *what, const findings *f)
{
	size_t len = strlen(text);

	if (f->n == 0)
		return;
	if (f->shown < f->n)
		snprintf(text + len, size - len, "%s%s: %s and %d more.", len ? " " : "", what, f->text, f->n - f->shown);
	else
		snprintf(text + len, size - len, "%s%s: %s.", len ? " " : "", what, f->text);
}

static int
slot_by_name(const void *a, const void *b)
{
	return strcmp(((const qwen_slot *) a)->name, ((const qwen_slot *) b)->name);
}

/* The types that a device can take; false for all others. */
static bool
source_dtype(const qwen_tensor *t, qwen_dtype *out)
{
	if (!strcmp(t->dtype, "BF16"))
		*out = QWEN_BF16;
	else if (!strcmp(t->dtype, "F16"))
		*out = QWEN_F16;
	else if (!strcmp(t->dtype, "F32"))
		*out = QWEN_F32;
	else
		return false;
	return true;
}

/* Shapes are exact: a matrix stored flat or transposed is another one. */
static bool
same_shape(const qwen_slot *slot, const qwen_tensor *t)
{
	int rank = slot->matrix ? 2 : 1;

	return t->rank == rank && t->shape[0] == (uint64_t) slot->rows &&
		   (rank == 1 || t->shape[1] == (uint64_t) slot->cols);
}

static void
shape_text(char *out, size_t size, const qwen_tensor *t)
{
	size_t len = 0;

	out[0] = '\0';
	for (int i = 0; i < t->rank && len < size; i++)
		len += (size_t) snprintf(out + len, size - len, "%s%llu", i ? ", " : "", (unsigned long long) t->shape[i]);
}

/* What the checkpoint and the configuration disagree about. */
typedef struct mismatch
{
	findings missing;
	findings unexpected;
	findings shape;
	findings dtype;
} mismatch;

/* Finds the slot of one tensor of the checkpoint, and notes what does not fit. */
static void
match_tensor(qwen_weight_plan *plan, const qwen_config *config, const qwen_tensor *t, mismatch *bad)
{
	qwen_slot key = {0};
	const char *name = normal_name(t->name);
	qwen_slot *slot;
	char shown[120], shape[64];

	qwen_config_printable(shown, sizeof(shown), t->name);
	snprintf(key.name, sizeof(key.name), "%s", name);
	slot = strlen(name) < sizeof(key.name) ? bsearch(&key, plan->slots, plan->n, sizeof(key), slot_by_name) : NULL;
	if (!slot || slot->tensor)
	{
		if (slot || !ignorable(config, name))
			note(&bad->unexpected, "%s", shown);
		return;
	}
	slot->tensor = t;
	shape_text(shape, sizeof(shape), t);
	if (!source_dtype(t, &slot->source))
		note(&bad->dtype, "%s is %s", shown, t->dtype);
	else if (!same_shape(slot, t) && slot->matrix)
		note(&bad->shape, "%s is [%s], not [%lld, %lld]", shown, shape, (long long) slot->rows, (long long) slot->cols);
	else if (!same_shape(slot, t))
		note(&bad->shape, "%s is [%s], not [%lld]", shown, shape, (long long) slot->rows);
}

/* One error for everything that was found, the worst first. */
static qwen_status
report(const mismatch *bad, qwen_error *err)
{
	char text[sizeof(err->detail)] = "";

	if (bad->missing.n + bad->unexpected.n + bad->shape.n + bad->dtype.n == 0)
		return QWEN_OK;
	qwen_fail(err, bad->dtype.n ? QWEN_UNSUPPORTED : QWEN_CORRUPT, "the checkpoint does not match its config.json");
	describe(text, sizeof(text), "Missing tensors", &bad->missing);
	describe(text, sizeof(text), "Wrong shape", &bad->shape);
	describe(text, sizeof(text), "Unsupported type", &bad->dtype);
	describe(text, sizeof(text), "Unexpected tensors", &bad->unexpected);
	qwen_fail_detail(err, "%s", text);
	return qwen_fail_hint(err,
						  "qwen.model must name the folder of a complete checkpoint in bfloat16, float16 or float32.");
}

static qwen_status
match_all(qwen_weight_plan *plan, const qwen_config *config, const qwen_checkpoint *checkpoint, qwen_error *err)
{
	const qwen_tensor_list *tensors = qwen_checkpoint_tensors(checkpoint);
	mismatch bad = {0};

	qsort(plan->slots, plan->n, sizeof(*plan->slots), slot_by_name);
	for (size_t i = 0; i < tensors->n; i++)
		match_tensor(plan, config, &tensors->items[i], &bad);
	for (size_t i = 0; i < plan->n; i++)
		if (!plan->slots[i].tensor)
			note(&bad.missing, "%s", plan->slots[i].name);
	return report(&bad, err);
}

/* ---- types and sizes ---- */

/* The types that the settings ask for. */
typedef struct choice
{
	bool convert; /* to dtype, else as the checkpoint has it */
	qwen_dtype dtype;
	bool quantize; /* to quantized */
	qwen_dtype quantized;
} choice;

static qwen_status
parse_choice(const qwen_model_options *options, choice *c, qwen_error *err)
{
	qwen_status rc = qwen_dtype_parse(&qwen_setting_dtype, options->dtype, &c->convert, &c->dtype, err);

	if (rc != QWEN_OK)
		return rc;
	return qwen_dtype_parse(&qwen_setting_quantization, options->quantization, &c->quantize, &c->quantized, err);
}

static qwen_dtype
float_dtype(const qwen_slot *slot, const choice *c)
{
	return c->convert ? c->dtype : slot->source;
}

/*
 * Rows of the vocabulary are quantised to int8 at most: an error in a layer is one of many that average out, one in a
 * row of the head changes that token's logit and nothing corrects it.  On the demo model int4 layers cost a divergence of
 * 0.054 nats, and 0.116 with an int4 head.  An embedding apart from the head costs no time, as only a few of its rows are
 * read, but at int8 it loses nothing that can be measured and takes half the memory.
 */
static qwen_dtype
stored_dtype(const qwen_weights *w, const qwen_matrix *m, const choice *c)
{
	if (!c->quantize)
		return m->dtype;
	return m == &w->embed || m == &w->head ? QWEN_INT8 : c->quantized;
}

/* Calls fn for every target of a matrix. */
static void
each_matrix(qwen_weight_plan *plan, void (*fn)(const qwen_slot *slot, qwen_target *t, const choice *c), const choice *c)
{
	for (const qwen_slot *s = plan->slots; s < plan->slots + plan->n; s++)
		for (qwen_target *t = plan->targets + s->first; t < plan->targets + s->first + s->n; t++)
			if (t->matrix)
				fn(s, t, c);
}

static void
first_dtype(const qwen_slot *slot, qwen_target *t, const choice *c)
{
	if (t->offset == 0)
		t->matrix->dtype = float_dtype(slot, c);
}

static void
common_dtype(const qwen_slot *slot, qwen_target *t, const choice *c)
{
	if (t->matrix->dtype != float_dtype(slot, c))
		t->matrix->dtype = QWEN_F32;
}

/* What the device makes of the type, and its bytes. */
static void
final_dtype(const qwen_slot *slot, qwen_target *t, const choice *c)
{
	qwen_device *dev = t->part->dev;
	qwen_matrix *m = t->matrix;

	if (t->offset != 0)
		return;
	t->part->dtype = dev->ops->matrix_dtype(dev, m->dtype);
	m->dtype = dev->ops->matrix_dtype(dev, stored_dtype(t->part, m, c));
	m->bytes = dev->ops->matrix_bytes(dev, m->dtype, m->n, m->k);
}

/*
 * Every matrix gets a type and a size: first the type of its tensors, or float32 if its parts differ, then what the
 * device makes of that.  Each matrix has one target at offset 0.
 */
static void
choose_dtypes(qwen_weight_plan *plan, const choice *c)
{
	each_matrix(plan, first_dtype, c);
	each_matrix(plan, common_dtype, c);
	each_matrix(plan, final_dtype, c);
	for (qwen_weights *p = plan->parts; p < plan->parts + plan->n_parts; p++)
		if (p->has_head && p->head.n == 0) /* tied, and here too */
			p->head = p->embed;
}

/* The sums that the memory plan needs; each matrix and vector counts with its first part. */
static void
add_sizes(qwen_weight_plan *plan)
{
	for (size_t i = 0; i < plan->n; i++)
		plan->source_bytes += plan->slots[i].tensor->end - plan->slots[i].tensor->begin;
	for (qwen_target *t = plan->targets; t < plan->targets + plan->n_targets; t++)
		if (t->offset == 0)
			t->part->bytes += t->matrix ? t->matrix->bytes : (uint64_t) t->vector->n * sizeof(float);
}

/* The order in which the files hold them, so that they are read from front to back. */
static int
slot_by_place(const void *a, const void *b)
{
	const qwen_tensor *x = ((const qwen_slot *) a)->tensor, *y = ((const qwen_slot *) b)->tensor;

	if (x->file != y->file)
		return x->file < y->file ? -1 : 1;
	return (x->begin > y->begin) - (x->begin < y->begin);
}

/* Slots are sorted twice: by name to be found, then by place to be read. */
static qwen_status
fill_plan(qwen_weight_plan *plan, const qwen_config *config, const qwen_checkpoint *checkpoint,
		  const qwen_model_options *options, qwen_error *err)
{
	choice types;
	qwen_status rc;

	if ((rc = parse_choice(options, &types, err)) != QWEN_OK)
		return rc;
	add_all(plan, config);
	if ((rc = match_all(plan, config, checkpoint, err)) != QWEN_OK)
		return rc;
	choose_dtypes(plan, &types);
	add_sizes(plan);
	qsort(plan->slots, plan->n, sizeof(*plan->slots), slot_by_place);
	return QWEN_OK;
}

/* Memory for slots and targets, of as many as there can be, and for the parts' layers. */
static qwen_status
allocate_plan(qwen_weight_plan *plan, int n_layers, qwen_error *err)
{
	size_t n = (size_t) n_layers * LAYER_SLOTS + OTHER_SLOTS;
	size_t n_targets = n * (size_t) plan->n_parts;
	bool ok;

	plan->slots = calloc(n, sizeof(*plan->slots));
	plan->targets = calloc(n_targets, sizeof(*plan->targets));
	ok = plan->slots && plan->targets;
	for (qwen_weights *p = plan->parts; p < plan->parts + plan->n_parts; p++)
	{
		p->n_layers = n_layers;
		p->layers = calloc((size_t) n_layers, sizeof(*p->layers));
		ok = ok && p->layers;
	}
	return ok ? QWEN_OK : qwen_fail_memory(err, n_targets * sizeof(qwen_target));
}

qwen_status
qwen_weights_plan(const qwen_config *config, const qwen_checkpoint *checkpoint, const qwen_model_options *options,
				  qwen_weights *parts, int n, qwen_weight_plan **out, qwen_error *err)
{
	qwen_weight_plan *plan = calloc(1, sizeof(*plan));
	qwen_status rc;

	if (!plan)
		return qwen_fail_memory(err, sizeof(*plan));
	plan->parts = parts;
	plan->n_parts = n;
	if ((rc = allocate_plan(plan, config->n_layers, err)) == QWEN_OK)
		rc = fill_plan(plan, config, checkpoint, options, err);
	if (rc != QWEN_OK)
	{
		qwen_weight_plan_free(plan);
		return rc;
	}
	*out = plan;
	return QWEN_OK;
}

void
qwen_weight_plan_free(qwen_weight_plan *plan)
{
	if (!plan)
		return;
	free(plan->slots);
	free(plan->targets);
	free(plan);
}

qwen_dtype
qwen_checkpoint_dtype(const qwen_checkpoint *checkpoint)
{
	const qwen_tensor_list *tensors = qwen_checkpoint_tensors(checkpoint);
	qwen_dtype common = QWEN_BF16, one;
	bool found = false;

	for (const qwen_tensor *t = tensors->items; t < tensors->items + tensors->n; t++)
	{
		if (t->rank != 2 || !source_dtype(t, &one))
			continue;
		if (found && one != common)
			return QWEN_F32;
		common = one;
		found = true;
	}
	return common;
}
