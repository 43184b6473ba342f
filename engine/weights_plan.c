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

/* ---- slots ---- */

static qwen_slot *add_slot(qwen_weight_plan *plan, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static qwen_slot *
add_slot(qwen_weight_plan *plan, const char *fmt, ...)
{
	qwen_slot *slot = &plan->slots[plan->n++];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(slot->name, sizeof(slot->name), fmt, ap);
	va_end(ap);
	return slot;
}

/* layer < 0: the tensor is not part of a layer. */
static void
add_matrix(qwen_weight_plan *plan, int layer, const char *name, qwen_matrix *m, int64_t offset, int64_t rows)
{
	qwen_slot *slot = layer < 0 ? add_slot(plan, "%s", name) : add_slot(plan, "layers.%d.%s", layer, name);

	slot->matrix = m;
	slot->offset = offset;
	slot->rows = rows;
	slot->cols = m->k;
}

/* One of the vectors that together fill `total` elements. */
static void
add_vector(qwen_weight_plan *plan, int layer, const char *name, float **vector, int64_t offset, int64_t n,
		   int64_t total)
{
	qwen_slot *slot = layer < 0 ? add_slot(plan, "%s", name) : add_slot(plan, "layers.%d.%s", layer, name);

	slot->vector = vector;
	slot->offset = offset;
	slot->rows = n;
	slot->cols = 1;
	slot->total = total;
}

/* Biases and head norms differ between the families: qwen-models.md 6.1 and 6.2. */
static void
add_attention(qwen_weight_plan *plan, const qwen_config *c, int i, qwen_layer_weights *w)
{
	int64_t h = c->hidden_size;
	int64_t q = (int64_t) c->n_heads * c->head_dim;
	int64_t kv = (int64_t) c->n_kv_heads * c->head_dim;

	w->qkv = (qwen_matrix){.n = q + 2 * kv, .k = h};
	w->out = (qwen_matrix){.n = h, .k = q};
	add_vector(plan, i, "input_layernorm.weight", &w->attn_norm, 0, h, h);
	add_matrix(plan, i, "self_attn.q_proj.weight", &w->qkv, 0, q);
	add_matrix(plan, i, "self_attn.k_proj.weight", &w->qkv, q, kv);
	add_matrix(plan, i, "self_attn.v_proj.weight", &w->qkv, q + kv, kv);
	add_matrix(plan, i, "self_attn.o_proj.weight", &w->out, 0, h);
	if (c->attention_bias)
	{
		add_vector(plan, i, "self_attn.q_proj.bias", &w->qkv_bias, 0, q, q + 2 * kv);
		add_vector(plan, i, "self_attn.k_proj.bias", &w->qkv_bias, q, kv, q + 2 * kv);
		add_vector(plan, i, "self_attn.v_proj.bias", &w->qkv_bias, q + kv, kv, q + 2 * kv);
	}
	if (c->output_bias)
		add_vector(plan, i, "self_attn.o_proj.bias", &w->out_bias, 0, h, h);
	if (c->qk_norm)
	{
		add_vector(plan, i, "self_attn.q_norm.weight", &w->q_norm, 0, c->head_dim, c->head_dim);
		add_vector(plan, i, "self_attn.k_norm.weight", &w->k_norm, 0, c->head_dim, c->head_dim);
	}
}

/* gate and up become one matrix: gate in rows [0, f), up in rows [f, 2 f). */
static void
add_ffn(qwen_weight_plan *plan, const qwen_config *c, int i, qwen_layer_weights *w)
{
	int64_t h = c->hidden_size;
	int64_t f = c->intermediate_size;

	w->gate_up = (qwen_matrix){.n = 2 * f, .k = h};
	w->down = (qwen_matrix){.n = h, .k = f};
	add_vector(plan, i, "post_attention_layernorm.weight", &w->ffn_norm, 0, h, h);
	add_matrix(plan, i, "mlp.gate_proj.weight", &w->gate_up, 0, f);
	add_matrix(plan, i, "mlp.up_proj.weight", &w->gate_up, f, f);
	add_matrix(plan, i, "mlp.down_proj.weight", &w->down, 0, h);
}

/* The model, in the order of its forward pass. */
static void
add_all(qwen_weight_plan *plan, const qwen_config *c, qwen_weights *w)
{
	w->embed = w->head = (qwen_matrix){.n = c->vocab_size, .k = c->hidden_size};
	add_matrix(plan, -1, "embed_tokens.weight", &w->embed, 0, c->vocab_size);
	for (int i = 0; i < c->n_layers; i++)
	{
		add_attention(plan, c, i, &w->layers[i]);
		add_ffn(plan, c, i, &w->layers[i]);
	}
	add_vector(plan, -1, "norm.weight", &w->norm, 0, c->hidden_size, c->hidden_size);
	if (!c->tied)
		add_matrix(plan, -1, "lm_head.weight", &w->head, 0, c->vocab_size);
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

/*
 * Every matrix gets a type and a size: first the type of its tensors, or float32 if its parts differ, then what the
 * device makes of that.  Each matrix has one slot at offset 0.
 */
static void
choose_dtypes(qwen_weight_plan *plan, const qwen_device *dev, const choice *c)
{
	qwen_weights *w = plan->weights;

	for (size_t i = 0; i < plan->n; i++)
		if (plan->slots[i].matrix && plan->slots[i].offset == 0)
			plan->slots[i].matrix->dtype = float_dtype(&plan->slots[i], c);
	for (size_t i = 0; i < plan->n; i++)
		if (plan->slots[i].matrix && plan->slots[i].matrix->dtype != float_dtype(&plan->slots[i], c))
			plan->slots[i].matrix->dtype = QWEN_F32;
	w->dtype = dev->ops->matrix_dtype(dev, w->layers[0].qkv.dtype);
	for (size_t i = 0; i < plan->n; i++)
	{
		qwen_matrix *m = plan->slots[i].matrix;

		if (!m || plan->slots[i].offset != 0)
			continue;
		m->dtype = dev->ops->matrix_dtype(dev, stored_dtype(w, m, c));
		m->bytes = dev->ops->matrix_bytes(dev, m->dtype, m->n, m->k);
	}
}

/* The sum that the memory plan needs; each matrix and vector counts with its first part. */
static void
add_sizes(qwen_weight_plan *plan)
{
	qwen_weights *w = plan->weights;

	w->bytes = 0;
	for (size_t i = 0; i < plan->n; i++)
	{
		const qwen_slot *s = &plan->slots[i];

		plan->source_bytes += s->tensor->end - s->tensor->begin;
		if (s->offset == 0)
			w->bytes += s->matrix ? s->matrix->bytes : (uint64_t) s->total * sizeof(float);
	}
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
fill_plan(qwen_weight_plan *plan, const qwen_config *config, const qwen_checkpoint *checkpoint, const qwen_device *dev,
		  const qwen_model_options *options, qwen_error *err)
{
	choice types;
	qwen_status rc;

	if ((rc = parse_choice(options, &types, err)) != QWEN_OK)
		return rc;
	add_all(plan, config, plan->weights);
	if ((rc = match_all(plan, config, checkpoint, err)) != QWEN_OK)
		return rc;
	choose_dtypes(plan, dev, &types);
	add_sizes(plan);
	if (config->tied)
		plan->weights->head = plan->weights->embed;
	qsort(plan->slots, plan->n, sizeof(*plan->slots), slot_by_place);
	return QWEN_OK;
}

qwen_status
qwen_weights_plan(const qwen_config *config, const qwen_checkpoint *checkpoint, const qwen_device *dev,
				  const qwen_model_options *options, qwen_weights *weights, qwen_weight_plan **out, qwen_error *err)
{
	size_t n = (size_t) config->n_layers * LAYER_SLOTS + OTHER_SLOTS;
	qwen_weight_plan *plan = calloc(1, sizeof(*plan));
	qwen_status rc;

	memset(weights, 0, sizeof(*weights));
	weights->layers = calloc((size_t) config->n_layers, sizeof(*weights->layers));
	weights->n_layers = config->n_layers;
	if (plan)
		plan->slots = calloc(n, sizeof(*plan->slots));
	if (!plan || !plan->slots || !weights->layers)
	{
		qwen_weight_plan_free(plan);
		return qwen_fail_memory(err, n * sizeof(qwen_slot));
	}
	plan->weights = weights;
	rc = fill_plan(plan, config, checkpoint, dev, options, err);
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
	free(plan);
}
