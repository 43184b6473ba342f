/*
 * geometry.c
 *	  Reading of shapes from config.json.
 *
 * Every value is checked as config.c checks it: JSON type, range, and the
 * products that sizes are made of.  The bounds are far above any released
 * model and low enough that every size fits 63 bits.
 *
 *	  qwen_geometry_parse: family -> refusals -> sizes -> attention -> experts, DeltaNet -> kinds of layers -> length
 */
#include "geometry.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "../kernels/kernels.h"
#include "config_json.h"
#include "textfile.h"

#define MAX_CONFIG_BYTES (4 << 20)
#define MAX_VOCAB (1 << 22)
#define MAX_WIDTH (1 << 19) /* of feed-forward parts */
#define MAX_HIDDEN (1 << 16)
#define MAX_HEADS 1024
#define MAX_EXPERTS 4096
#define MAX_POSITIONS (1 << 24)

/* Names in files, and what the files do not say. */
typedef struct family_facts
{
	const char *name;
	const char *model_types[2];
	const char *architectures[2];
	bool qkv_bias; /* whatever the file says */
	bool qk_norm;
	bool hybrid; /* DeltaNet layers, gated attention, a quarter of each head turned */
} family_facts;

static const family_facts families[] = {
	[QWEN_FAMILY_QWEN2] = {"qwen2", {"qwen2"}, {"Qwen2ForCausalLM", "Qwen2Model"}, true, false, false},
	[QWEN_FAMILY_QWEN3] = {"qwen3", {"qwen3"}, {"Qwen3ForCausalLM", "Qwen3Model"}, false, true, false},
	[QWEN_FAMILY_QWEN2_MOE] = {"qwen2_moe", {"qwen2_moe"}, {"Qwen2MoeForCausalLM"}, true, false, false},
	[QWEN_FAMILY_QWEN3_MOE] = {"qwen3_moe", {"qwen3_moe"}, {"Qwen3MoeForCausalLM"}, false, true, false},
	[QWEN_FAMILY_QWEN3_NEXT] = {"qwen3_next", {"qwen3_next"}, {"Qwen3NextForCausalLM"}, false, true, true},
	[QWEN_FAMILY_QWEN3_5] = {"qwen3_5",
							 {"qwen3_5", "qwen3_5_text"},
							 {"Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"},
							 false,
							 true,
							 true},
	[QWEN_FAMILY_QWEN3_5_MOE] = {"qwen3_5_moe",
								 {"qwen3_5_moe", "qwen3_5_moe_text"},
								 {"Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"},
								 false,
								 true,
								 true},
};

/*
 * What the reference's configuration classes put for an absent key: qwen-models.md 2 and 8.1.  head_dim 0: hidden_size
 * over heads; n_experts 0: the family has none.
 */
typedef struct family_defaults
{
	int32_t vocab_size, hidden_size, intermediate_size, n_layers;
	int32_t n_heads, n_kv_heads, head_dim;
	int32_t n_experts, n_experts_used, expert_size, shared_size;
} family_defaults;

static const family_defaults defaults[] = {
	[QWEN_FAMILY_QWEN2] = {151936, 4096, 22016, 32, 32, 32, 0, 0, 0, 0, 0},
	[QWEN_FAMILY_QWEN3] = {151936, 4096, 22016, 32, 32, 32, 128, 0, 0, 0, 0},
	[QWEN_FAMILY_QWEN2_MOE] = {151936, 2048, 5632, 24, 16, 16, 0, 60, 4, 1408, 5632},
	[QWEN_FAMILY_QWEN3_MOE] = {151936, 2048, 6144, 24, 32, 4, 0, 128, 8, 768, 0},
	[QWEN_FAMILY_QWEN3_NEXT] = {151936, 2048, 5632, 48, 16, 2, 256, 512, 10, 512, 512},
	[QWEN_FAMILY_QWEN3_5] = {248320, 4096, 12288, 32, 16, 4, 256, 0, 0, 0, 0},
	[QWEN_FAMILY_QWEN3_5_MOE] = {248320, 2048, 6144, 40, 16, 2, 256, 256, 8, 512, 512},
};
#define N_FAMILIES (sizeof(families) / sizeof(families[0]))

const char *
qwen_family_name(qwen_family family)
{
	return families[family].name;
}

/* ---- family ---- */

static bool
is_one_of(const char *name, const char *const *names, size_t n)
{
	for (size_t i = 0; i < n && names[i]; i++)
		if (!strcmp(names[i], name))
			return true;
	return false;
}

static qwen_status
refuse_family(const char *key, const char *name, qwen_error *err)
{
	char shown[80];

	qwen_config_printable(shown, sizeof(shown), name);
	qwen_fail(err, QWEN_UNSUPPORTED, "model architecture \"%s\" is not supported", shown);
	qwen_fail_detail(err, "config.json has %s \"%s\".", key, shown);
	return qwen_fail_hint(err, "Plans can be made for Qwen1.5, Qwen2, Qwen2.5, Qwen3, Qwen3-Next and Qwen3.5.");
}

/* model_type decides, then architectures; a file that has only the second is enough. */
static qwen_status
parse_family(const json_t *root, qwen_geometry *g, qwen_error *err)
{
	const char *type = json_string_value(json_object_get(root, "model_type"));
	const char *architecture = json_string_value(json_array_get(json_object_get(root, "architectures"), 0));

	if (!type && !architecture)
		return qwen_fail(err, QWEN_CORRUPT, "config.json has neither model_type nor architectures");
	for (size_t i = 0; i < N_FAMILIES; i++)
	{
		bool named = architecture && is_one_of(architecture, families[i].architectures, 2);

		if (type ? !is_one_of(type, families[i].model_types, 2) : !named)
			continue;
		if (architecture && !named)
			return refuse_family("architectures", architecture, err);
		g->family = (qwen_family) i;
		return QWEN_OK;
	}
	return refuse_family(type ? "model_type" : "architectures", type ? type : architecture, err);
}

/* ---- numbers ---- */

typedef struct number
{
	const char *key;
	int32_t fallback;
	int32_t min;
	int32_t max;
	int32_t *out;
} number;

static qwen_status
parse_numbers(const json_t *text, const number *numbers, size_t n, qwen_error *err)
{
	qwen_status rc = QWEN_OK;

	for (size_t i = 0; i < n && rc == QWEN_OK; i++)
		rc = qwen_config_int(text, numbers[i].key, numbers[i].fallback, numbers[i].min, numbers[i].max, numbers[i].out,
							 err);
	return rc;
}

static qwen_status
parse_sizes(const json_t *text, qwen_geometry *g, qwen_error *err)
{
	const family_defaults *f = &defaults[g->family];
	const number numbers[] = {
		{"vocab_size", f->vocab_size, 1, MAX_VOCAB, &g->vocab_size},
		{"hidden_size", f->hidden_size, 1, MAX_HIDDEN, &g->hidden_size},
		{"intermediate_size", f->intermediate_size, 1, MAX_WIDTH, &g->intermediate_size},
		{"num_hidden_layers", f->n_layers, 1, QWEN_MAX_LAYERS, &g->n_layers},
		{"num_attention_heads", f->n_heads, 1, MAX_HEADS, &g->n_heads},
		{"max_position_embeddings", 32768, 1, MAX_POSITIONS, &g->max_positions},
	};

	return parse_numbers(text, numbers, sizeof(numbers) / sizeof(numbers[0]), err);
}

/* num_key_value_heads: the default when absent, but the number of query heads when null. */
static qwen_status
parse_heads(const json_t *text, qwen_geometry *g, qwen_error *err)
{
	const family_defaults *f = &defaults[g->family];
	int32_t fallback = json_object_get(text, "num_key_value_heads") ? g->n_heads : f->n_kv_heads;
	int32_t derived = f->head_dim > 0 ? f->head_dim : g->hidden_size / g->n_heads;
	bool given = json_is_number(json_object_get(text, "head_dim"));
	qwen_status rc;

	if ((rc = qwen_config_int(text, "num_key_value_heads", fallback, 1, MAX_HEADS, &g->n_kv_heads, err)) != QWEN_OK)
		return rc;
	if (g->n_heads % g->n_kv_heads != 0 || g->n_heads / g->n_kv_heads > QWEN_MAX_GROUP)
	{
		qwen_fail(err, QWEN_CORRUPT, "config.json: query heads cannot share the key-value heads");
		return qwen_fail_detail(err, "There are %d and %d; each must serve the same number, at most %d.", g->n_heads,
								g->n_kv_heads, QWEN_MAX_GROUP);
	}
	if (!given && f->head_dim == 0 && g->hidden_size % g->n_heads != 0)
		return qwen_fail(err, QWEN_CORRUPT, "config.json: hidden_size is not a multiple of num_attention_heads");
	if (!given)
		g->head_dim = derived;
	else if ((rc = qwen_config_int(text, "head_dim", derived, 2, QWEN_MAX_HEAD_DIM, &g->head_dim, err)) != QWEN_OK)
		return rc;
	if (g->head_dim < 2 || g->head_dim > QWEN_MAX_HEAD_DIM || g->head_dim % 2 != 0)
		return qwen_fail(err, QWEN_UNSUPPORTED, "attention heads of %d elements are not supported", g->head_dim);
	return QWEN_OK;
}

/* partial_rotary_factor stands at the top or in rope_parameters. */
static qwen_status
parse_rotary(const json_t *text, qwen_geometry *g, qwen_error *err)
{
	double fallback = families[g->family].hybrid ? 0.25 : 1, partial;
	qwen_status rc = qwen_config_number(text, "partial_rotary_factor", fallback, 0.01, 1, &partial, err);

	if (rc == QWEN_OK)
		rc = qwen_config_number(json_object_get(text, "rope_parameters"), "partial_rotary_factor", partial, 0.01, 1,
								&partial, err);
	g->rotary = (int32_t) (partial * g->head_dim) / 2 * 2;
	return rc;
}

/* root: of the file, where wrappers keep tie_word_embeddings. */
static qwen_status
parse_attention(const json_t *root, const json_t *text, qwen_geometry *g, qwen_error *err)
{
	const family_facts *f = &families[g->family];
	bool asked;
	qwen_status rc;

	if ((rc = parse_heads(text, g, err)) != QWEN_OK || (rc = parse_rotary(text, g, err)) != QWEN_OK ||
		(rc = qwen_config_bool(text, "attention_bias", false, &asked, err)) != QWEN_OK ||
		(rc = qwen_config_bool(text, "tie_word_embeddings", false, &g->tied, err)) != QWEN_OK ||
		(rc = qwen_config_bool(root, "tie_word_embeddings", g->tied, &g->tied, err)) != QWEN_OK)
		return rc;
	g->attention_bias = f->qkv_bias || asked;
	if (g->family == QWEN_FAMILY_QWEN2_MOE &&
		(rc = qwen_config_bool(text, "qkv_bias", true, &g->attention_bias, err)) != QWEN_OK)
		return rc;
	g->output_bias = !f->qkv_bias && asked;
	g->qk_norm = f->qk_norm;
	g->gated = f->hybrid;
	return QWEN_OK;
}

/* The number of experts has two names: newer writers use num_local_experts. */
static qwen_status
parse_experts(const json_t *text, qwen_geometry *g, qwen_error *err)
{
	const family_defaults *f = &defaults[g->family];
	bool given = json_object_get(text, "num_experts") != NULL;
	const number numbers[] = {
		{given ? "num_experts" : "num_local_experts", f->n_experts, 0, MAX_EXPERTS, &g->n_experts},
		{"num_experts_per_tok", f->n_experts_used, 1, MAX_EXPERTS, &g->n_experts_used},
		{"moe_intermediate_size", f->expert_size, 1, MAX_WIDTH, &g->expert_size},
		{"shared_expert_intermediate_size", f->shared_size, 0, MAX_WIDTH, &g->shared_size},
	};
	qwen_status rc;

	if (f->n_experts == 0)
		return QWEN_OK;
	if ((rc = parse_numbers(text, numbers, sizeof(numbers) / sizeof(numbers[0]), err)) != QWEN_OK)
		return rc;
	if (g->n_experts > 0 && g->n_experts_used > g->n_experts)
		return qwen_fail(err, QWEN_CORRUPT, "config.json: num_experts_per_tok is above num_experts");
	return QWEN_OK;
}

static qwen_status
parse_deltanet(const json_t *text, qwen_geometry *g, qwen_error *err)
{
	const number numbers[] = {
		{"linear_conv_kernel_dim", 4, 1, 64, &g->conv_kernel},
		{"linear_num_key_heads", 16, 1, MAX_HEADS, &g->n_key_heads},
		{"linear_num_value_heads", 32, 1, MAX_HEADS, &g->n_value_heads},
		{"linear_key_head_dim", 128, 1, QWEN_MAX_HEAD_DIM, &g->key_dim},
		{"linear_value_head_dim", 128, 1, QWEN_MAX_HEAD_DIM, &g->value_dim},
	};
	qwen_status rc;

	if (!families[g->family].hybrid)
		return QWEN_OK;
	if ((rc = parse_numbers(text, numbers, sizeof(numbers) / sizeof(numbers[0]), err)) != QWEN_OK)
		return rc;
	if (g->n_value_heads % g->n_key_heads != 0)
		return qwen_fail(err, QWEN_CORRUPT, "config.json: value heads cannot share the key heads of linear attention");
	return QWEN_OK;
}

/* ---- kinds of layers ---- */

/* Windows would change the cache and the answers. */
static qwen_status
refuse_window(qwen_error *err)
{
	qwen_fail(err, QWEN_UNSUPPORTED, "config.json asks for sliding windows, which are not supported");
	return qwen_fail_hint(err, "Only full and linear attention are supported.");
}

/* An explicit list of names, one for each layer. */
static qwen_status
parse_layer_types(const json_t *types, qwen_geometry *g, qwen_error *err)
{
	bool hybrid = families[g->family].hybrid;

	if (!json_is_array(types) || json_array_size(types) != (size_t) g->n_layers)
		return qwen_fail(err, QWEN_CORRUPT, "config.json: layer_types does not describe the layers");
	for (int i = 0; i < g->n_layers; i++)
	{
		const char *type = json_string_value(json_array_get(types, (size_t) i));

		if (type && !strcmp(type, "sliding_attention"))
			return refuse_window(err);
		if (type && hybrid && !strcmp(type, "linear_attention"))
			g->kinds[i] = QWEN_LAYER_LINEAR;
		else if (!type || strcmp(type, "full_attention") != 0)
			return qwen_fail(err, QWEN_UNSUPPORTED, "config.json has layer_types that are not supported");
	}
	return QWEN_OK;
}

/* Which layers attend how: the list, or every full_attention_interval-th of a hybrid, or all. */
static qwen_status
parse_mixers(const json_t *text, qwen_geometry *g, qwen_error *err)
{
	const json_t *types = json_object_get(text, "layer_types");
	const json_t *window = json_object_get(text, "sliding_window");
	bool windowed;
	int32_t first, interval;
	qwen_status rc;

	if (types && !json_is_null(types))
		return parse_layer_types(types, g, err);
	if ((rc = qwen_config_bool(text, "use_sliding_window", false, &windowed, err)) != QWEN_OK ||
		(rc = qwen_config_int(text, "max_window_layers", 28, 0, INT32_MAX, &first, err)) != QWEN_OK ||
		(rc = qwen_config_int(text, "full_attention_interval", 4, 1, INT32_MAX, &interval, err)) != QWEN_OK)
		return rc;
	if (windowed && !(window && json_is_null(window)) && first < g->n_layers)
		return refuse_window(err);
	if (families[g->family].hybrid)
		for (int i = 0; i < g->n_layers; i++)
			g->kinds[i] = (i + 1) % interval == 0 ? 0 : QWEN_LAYER_LINEAR;
	return QWEN_OK;
}

/* Layer i has experts unless it is listed in mlp_only_layers or the step passes over it: qwen-models.md 2.2. */
static qwen_status
parse_sparsity(const json_t *text, qwen_geometry *g, qwen_error *err)
{
	const json_t *dense = json_object_get(text, "mlp_only_layers");
	int32_t step;
	qwen_status rc = qwen_config_int(text, "decoder_sparse_step", 1, 1, INT32_MAX, &step, err);

	if (rc != QWEN_OK || g->n_experts == 0)
		return rc;
	if (dense && !json_is_null(dense) && !json_is_array(dense))
		return qwen_fail(err, QWEN_CORRUPT, "config.json: mlp_only_layers must be a list");
	for (int i = 0; i < g->n_layers; i++)
		if ((i + 1) % step == 0)
			g->kinds[i] |= QWEN_LAYER_SPARSE;
	for (size_t i = 0; i < json_array_size(dense); i++)
	{
		json_int_t layer = json_integer_value(json_array_get(dense, i));

		if (!json_is_integer(json_array_get(dense, i)) || layer < 0)
			return qwen_fail(err, QWEN_CORRUPT, "config.json: mlp_only_layers must list numbers of layers");
		if (layer < g->n_layers)
			g->kinds[layer] &= (uint8_t) ~QWEN_LAYER_SPARSE;
	}
	return QWEN_OK;
}

/* ---- the rest ---- */

/* GPTQ, AWQ and FP8 checkpoints hold other tensors under the same names. */
static qwen_status
check_quantization(const json_t *root, qwen_error *err)
{
	const json_t *q = json_object_get(root, "quantization_config");

	if (!q || json_is_null(q))
		return QWEN_OK;
	qwen_fail(err, QWEN_UNSUPPORTED, "config.json has a quantization_config, which is not supported");
	return qwen_fail_hint(err, "Use the checkpoint in bfloat16, float16 or float32, and qwen.quantization.");
}

/* YaRN stretches what the positions allow: qwen-models.md 4.1. */
static qwen_status
parse_length(const json_t *text, qwen_geometry *g, qwen_error *err)
{
	const json_t *rope = json_object_get(text, "rope_parameters");
	const json_t *type;
	double factor, original;
	qwen_status rc;

	if (!json_is_object(rope))
		rope = json_object_get(text, "rope_scaling");
	type = json_object_get(rope, "rope_type");
	if (!type)
		type = json_object_get(rope, "type");
	g->length_limit = g->max_positions;
	if (!json_is_string(type) || strcmp(json_string_value(type), "yarn") != 0)
		return QWEN_OK;
	if ((rc = qwen_config_number(rope, "factor", 1, 1e-3, 1e4, &factor, err)) != QWEN_OK ||
		(rc = qwen_config_number(rope, "original_max_position_embeddings", g->max_positions, 1, MAX_POSITIONS,
								 &original, err)) != QWEN_OK)
		return rc;
	if (factor * original > g->length_limit)
		g->length_limit = factor * original < MAX_POSITIONS ? (int32_t) (factor * original) : MAX_POSITIONS;
	return QWEN_OK;
}

/* torch_dtype of older files, dtype of newer ones. */
static void
parse_dtype(const json_t *text, qwen_geometry *g)
{
	const char *dtype = json_string_value(json_object_get(text, "dtype"));

	if (!dtype)
		dtype = json_string_value(json_object_get(text, "torch_dtype"));
	qwen_config_printable(g->dtype, sizeof(g->dtype), dtype ? dtype : "");
}

/* The text model's keys are the file's own, or those of text_config in multimodal wrappers. */
static qwen_status
parse_model(const json_t *root, qwen_geometry *g, qwen_error *err)
{
	const json_t *text = json_object_get(root, "text_config");
	qwen_status rc;

	if (!json_is_object(text))
		text = root;
	if ((rc = parse_family(root, g, err)) != QWEN_OK || (rc = check_quantization(root, err)) != QWEN_OK ||
		(rc = parse_sizes(text, g, err)) != QWEN_OK || (rc = parse_attention(root, text, g, err)) != QWEN_OK ||
		(rc = parse_experts(text, g, err)) != QWEN_OK || (rc = parse_deltanet(text, g, err)) != QWEN_OK ||
		(rc = parse_mixers(text, g, err)) != QWEN_OK || (rc = parse_sparsity(text, g, err)) != QWEN_OK ||
		(rc = parse_length(text, g, err)) != QWEN_OK)
		return rc;
	parse_dtype(text, g);
	if (!g->dtype[0])
		parse_dtype(root, g);
	return QWEN_OK;
}

qwen_status
qwen_geometry_parse(const char *config, size_t len, qwen_geometry *out, qwen_error *err)
{
	json_t *root = NULL;
	qwen_status rc;

	memset(out, 0, sizeof(*out));
	rc = qwen_config_load_json("config.json", config, len, &root, err);
	if (rc == QWEN_OK)
		rc = parse_model(root, out, err);
	json_decref(root);
	return rc;
}

/* "." for a bare name, else what stands before the last slash. */
static void
split_path(const char *path, char *dir, size_t size, const char **name)
{
	const char *slash = strrchr(path, '/');

	*name = slash ? slash + 1 : path;
	snprintf(dir, size, "%.*s", slash ? (int) (slash - path) : 1, slash ? path : ".");
	if (slash == path)
		snprintf(dir, size, "/");
}

qwen_status
qwen_geometry_read(const char *path, qwen_geometry *out, qwen_error *err)
{
	qwen_bytes text = {0};
	struct stat st;
	char dir[4096];
	const char *name = "config.json";
	qwen_status rc;

	if (strlen(path) >= sizeof(dir))
		return qwen_fail(err, QWEN_INVALID, "the path of the model is too long");
	if (strlen(path) > 5 && !strcmp(path + strlen(path) - 5, ".gguf"))
	{
		qwen_fail(err, QWEN_UNSUPPORTED, "GGUF files are not supported yet");
		return qwen_fail_hint(err, "Name a folder with config.json, or a config.json.");
	}
	if (stat(path, &st) == 0 && S_ISREG(st.st_mode))
		split_path(path, dir, sizeof(dir), &name);
	else
		snprintf(dir, sizeof(dir), "%s", path);
	rc = qwen_read_text_file(dir, name, MAX_CONFIG_BYTES, &text, err);
	if (rc == QWEN_OK)
		rc = qwen_geometry_parse(text.data, text.len, out, err);
	qwen_bytes_free(&text);
	return rc;
}
