/*
 * config.c
 *	  config.json and generation_config.json of a checkpoint.
 *
 * The files come from anywhere, so every value is checked before it is used:
 * its JSON type, its range, and the products that sizes are made of.  The
 * bounds are far above any released model and low enough that no size
 * computed from them can overflow 64 bits.
 *
 *	  qwen_config_read -> read_file -> qwen_config_parse
 *		 family -> refusals -> sizes -> attention -> rope -> generation
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../kernels/kernels.h"
#include "config_json.h"
#include "config_rope.h"

/* Real files have a few kilobytes. */
#define MAX_CONFIG_BYTES (4 << 20)

#define MAX_VOCAB (1 << 22)
#define MAX_HIDDEN (1 << 16)
#define MAX_INTERMEDIATE (1 << 19)
#define MAX_LAYERS 1024
#define MAX_HEADS 1024
#define MAX_POSITIONS (1 << 24)

/* What is known of families that are not here, so that the refusal can say what the model is. */
static const struct
{
	const char *name; /* model_type or architecture */
	const char *what;
} other_families[] = {
	{"qwen", "It is a first-generation Qwen model."},
	{"QWenLMHeadModel", "It is a first-generation Qwen model."},
	{"qwen2_moe", "It is a mixture-of-experts model."},
	{"qwen3_moe", "It is a mixture-of-experts model."},
	{"qwen3_next", "It is a hybrid of linear and full attention."},
	{"qwen3_5", "It is a hybrid of linear and full attention."},
	{"qwen3_5_text", "It is a hybrid of linear and full attention."},
	{"qwen3_5_moe", "It is a hybrid of linear and full attention with experts."},
	{"qwen3_5_moe_text", "It is a hybrid of linear and full attention with experts."},
	{"qwen2_vl", "It is a vision-language model."},
	{"qwen2_5_vl", "It is a vision-language model."},
	{"qwen3_vl", "It is a vision-language model."},
	{"qwen3_vl_moe", "It is a vision-language model."},
	{"qwen2_audio", "It is an audio-language model."},
	{"qwen2_5_omni", "It is a multimodal model."},
	{"qwen3_omni_moe", "It is a multimodal model."},
};

static const struct
{
	const char *model_type;
	const char *architectures[2]; /* with a language-model head, and the bare trunk */
	qwen_arch arch;
} families[] = {
	{"qwen2", {"Qwen2ForCausalLM", "Qwen2Model"}, QWEN_ARCH_QWEN2},
	{"qwen3", {"Qwen3ForCausalLM", "Qwen3Model"}, QWEN_ARCH_QWEN3},
};
#define N_FAMILIES (sizeof(families) / sizeof(families[0]))

const char *
qwen_arch_name(qwen_arch arch)
{
	return families[arch].model_type;
}

/* ---- architecture ---- */

/* Key and name are those that decided; name comes from the file. */
static qwen_status
refuse_family(const char *key, const char *name, qwen_error *err)
{
	char shown[80];

	qwen_config_printable(shown, sizeof(shown), name);
	qwen_fail(err, QWEN_UNSUPPORTED, "model architecture \"%s\" is not supported", shown);
	for (size_t i = 0; i < sizeof(other_families) / sizeof(other_families[0]); i++)
		if (!strcmp(other_families[i].name, name))
			qwen_fail_detail(err, "config.json has %s \"%s\". %s", key, shown, other_families[i].what);
	if (!err->detail[0])
		qwen_fail_detail(err, "config.json has %s \"%s\".", key, shown);
	return qwen_fail_hint(err, "Supported are the dense models of the architectures qwen2 (Qwen1.5, Qwen2, Qwen2.5, "
							   "QwQ) and qwen3 (Qwen3).");
}

/* The first of "architectures", or NULL. */
static const char *
first_architecture(const json_t *root)
{
	return json_string_value(json_array_get(json_object_get(root, "architectures"), 0));
}

/* model_type decides, then architectures; a file that has only the second is enough. */
static qwen_status
parse_family(const json_t *root, qwen_config *out, qwen_error *err)
{
	const char *type = json_string_value(json_object_get(root, "model_type"));
	const char *architecture = first_architecture(root);

	if (!type && !architecture)
		return qwen_fail(err, QWEN_CORRUPT, "config.json has neither model_type nor architectures");
	for (size_t i = 0; i < N_FAMILIES; i++)
	{
		bool named = architecture && (!strcmp(architecture, families[i].architectures[0]) ||
									  !strcmp(architecture, families[i].architectures[1]));

		if (type ? strcmp(type, families[i].model_type) != 0 : !named)
			continue;
		/* another head, such as a classifier's, makes another model of the same trunk */
		if (architecture && !named)
			return refuse_family("architectures", architecture, err);
		out->arch = families[i].arch;
		return QWEN_OK;
	}
	return refuse_family(type ? "model_type" : "architectures", type ? type : architecture, err);
}

/* ---- keys that would change the mathematics ---- */

/* The refusal of a key whose value would change the mathematics. hint may be NULL. */
static qwen_status
refuse_key(const char *key, const char *value, const char *hint, qwen_error *err)
{
	qwen_fail(err, QWEN_UNSUPPORTED, "config.json has %s %s, which is not supported", key, value);
	return hint ? qwen_fail_hint(err, "%s", hint) : QWEN_UNSUPPORTED;
}

/* GPTQ, AWQ and FP8 checkpoints hold other tensors under the same names. */
static qwen_status
check_quantization(const json_t *root, qwen_error *err)
{
	const json_t *q = json_object_get(root, "quantization_config");
	const char *method = json_string_value(json_object_get(q, "quant_method"));
	char shown[64];

	if (!q || json_is_null(q))
		return QWEN_OK;
	qwen_config_printable(shown, sizeof(shown), method ? method : "of unknown method");
	return refuse_key("quantization_config", shown, "Use the checkpoint in bfloat16, float16 or float32.", err);
}

/* Booleans that are right only one way. */
static qwen_status
check_switches(const json_t *root, qwen_config *out, qwen_error *err)
{
	bool on;
	qwen_status rc;

	if ((rc = qwen_config_bool(root, "attn_output_gate", false, &on, err)) != QWEN_OK)
		return rc;
	if (on)
		return refuse_key("attn_output_gate", "true", NULL, err);
	if ((rc = qwen_config_bool(root, "use_qk_norm", out->arch == QWEN_ARCH_QWEN3, &on, err)) != QWEN_OK)
		return rc;
	if (on != (out->arch == QWEN_ARCH_QWEN3))
		return refuse_key("use_qk_norm", on ? "true" : "false", NULL, err);
	return QWEN_OK;
}

/* num_experts of a dense architecture would be ignored by the formulas here. */
static qwen_status
check_dense(const json_t *root, qwen_error *err)
{
	int32_t experts;
	qwen_status rc = qwen_config_int(root, "num_experts", 0, 0, INT32_MAX, &experts, err);

	if (rc == QWEN_OK && experts > 0)
		return refuse_key("num_experts", "above 0", NULL, err);
	return rc;
}

/* Full attention is the only kind here; a layer with a window is refused, a window that no layer uses is not. */
static qwen_status
check_layer_types(const json_t *types, const qwen_config *out, qwen_error *err)
{
	char shown[64];

	if (!json_is_array(types) || json_array_size(types) != (size_t) out->n_layers)
	{
		qwen_fail(err, QWEN_CORRUPT, "config.json: layer_types does not describe the layers");
		return qwen_fail_detail(err, "It must be a list of %d names, one for each layer.", out->n_layers);
	}
	for (size_t i = 0; i < json_array_size(types); i++)
	{
		const char *type = json_string_value(json_array_get(types, i));

		if (type && !strcmp(type, "full_attention"))
			continue;
		qwen_config_printable(shown, sizeof(shown), type ? type : "of no name");
		return refuse_key("layer_types", shown, "Only full attention is supported.", err);
	}
	return QWEN_OK;
}

/*
 * The reference's rule (qwen-models.md 2.1): an explicit list wins; without it layer i has a window when the flag is
 * set and i >= max_window_layers.
 */
static qwen_status
check_window(const json_t *root, const qwen_config *out, qwen_error *err)
{
	const json_t *types = json_object_get(root, "layer_types");
	const json_t *window = json_object_get(root, "sliding_window");
	bool windowed;
	int32_t first;
	qwen_status rc;

	if (types && !json_is_null(types))
		return check_layer_types(types, out, err);
	if ((rc = qwen_config_bool(root, "use_sliding_window", false, &windowed, err)) != QWEN_OK ||
		(rc = qwen_config_int(root, "max_window_layers", 28, 0, INT32_MAX, &first, err)) != QWEN_OK)
		return rc;
	if (windowed && !(window && json_is_null(window)) && first < out->n_layers)
		return refuse_key("use_sliding_window", "true", "Only full attention is supported.", err);
	return QWEN_OK;
}

/* Another activation would give other numbers without any other sign. */
static qwen_status
check_activation(const json_t *root, qwen_error *err)
{
	const json_t *act = json_object_get(root, "hidden_act");
	char shown[64];

	if (!act || json_is_null(act) || (json_is_string(act) && !strcmp(json_string_value(act), "silu")))
		return QWEN_OK;
	qwen_config_printable(shown, sizeof(shown), json_is_string(act) ? json_string_value(act) : "of no name");
	return refuse_key("hidden_act", shown, "Only silu is supported.", err);
}

/* Everything that is refused by name. Sizes are known already: some refusals depend on the number of layers. */
static qwen_status
check_supported(const json_t *root, qwen_config *out, qwen_error *err)
{
	qwen_status rc;

	if ((rc = check_quantization(root, err)) != QWEN_OK || (rc = check_activation(root, err)) != QWEN_OK ||
		(rc = check_switches(root, out, err)) != QWEN_OK || (rc = check_dense(root, err)) != QWEN_OK)
		return rc;
	return check_window(root, out, err);
}

/* ---- sizes ---- */

/* Defaults are those of the reference's configuration classes; they are the same for both families but for head_dim. */
static qwen_status
parse_sizes(const json_t *root, qwen_config *out, qwen_error *err)
{
	const struct
	{
		const char *key;
		int32_t fallback;
		int32_t max;
		int32_t *out;
	} sizes[] = {
		{"vocab_size", 151936, MAX_VOCAB, &out->vocab_size},
		{"hidden_size", 4096, MAX_HIDDEN, &out->hidden_size},
		{"intermediate_size", 22016, MAX_INTERMEDIATE, &out->intermediate_size},
		{"num_hidden_layers", 32, MAX_LAYERS, &out->n_layers},
		{"num_attention_heads", 32, MAX_HEADS, &out->n_heads},
		{"max_position_embeddings", 32768, MAX_POSITIONS, &out->max_position_embeddings},
	};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
	{
		qwen_status rc = qwen_config_int(root, sizes[i].key, sizes[i].fallback, 1, sizes[i].max, sizes[i].out, err);

		if (rc != QWEN_OK)
			return rc;
	}
	return QWEN_OK;
}

/* num_key_value_heads: 32 when absent, but the number of query heads when null. */
static qwen_status
parse_kv_heads(const json_t *root, qwen_config *out, qwen_error *err)
{
	int32_t fallback = json_object_get(root, "num_key_value_heads") ? out->n_heads : 32;
	qwen_status rc = qwen_config_int(root, "num_key_value_heads", fallback, 1, MAX_HEADS, &out->n_kv_heads, err);

	if (rc != QWEN_OK)
		return rc;
	if (out->n_heads % out->n_kv_heads != 0)
	{
		qwen_fail(err, QWEN_CORRUPT, "config.json: num_attention_heads is not a multiple of num_key_value_heads");
		return qwen_fail_detail(err, "They are %d and %d.", out->n_heads, out->n_kv_heads);
	}
	if (out->n_heads / out->n_kv_heads > QWEN_MAX_GROUP)
		return refuse_key("more than 64 query heads", "for each key-value head", NULL, err);
	return QWEN_OK;
}

/* head_dim: explicit or 128 in qwen3, explicit or hidden / heads in qwen2. */
static qwen_status
parse_head_dim(const json_t *root, qwen_config *out, qwen_error *err)
{
	const json_t *given = json_object_get(root, "head_dim");
	bool derived = out->arch == QWEN_ARCH_QWEN2 && (!given || json_is_null(given));
	qwen_status rc;

	if (derived && out->hidden_size % out->n_heads != 0)
	{
		qwen_fail(err, QWEN_CORRUPT, "config.json: hidden_size is not a multiple of num_attention_heads");
		return qwen_fail_detail(err, "They are %d and %d, and there is no head_dim.", out->hidden_size, out->n_heads);
	}
	if (derived)
		out->head_dim = out->hidden_size / out->n_heads;
	else if ((rc = qwen_config_int(root, "head_dim", 128, 2, QWEN_MAX_HEAD_DIM, &out->head_dim, err)) != QWEN_OK)
		return rc;
	if (out->head_dim < 2 || out->head_dim > QWEN_MAX_HEAD_DIM || out->head_dim % 2 != 0)
	{
		qwen_fail(err, QWEN_UNSUPPORTED, "attention heads of %d elements are not supported", out->head_dim);
		return qwen_fail_detail(err, "The size must be even and at most %d.", QWEN_MAX_HEAD_DIM);
	}
	return QWEN_OK;
}

/* Heads, epsilon and biases. */
static qwen_status
parse_attention(const json_t *root, qwen_config *out, qwen_error *err)
{
	double eps;
	qwen_status rc;

	if ((rc = parse_kv_heads(root, out, err)) != QWEN_OK || (rc = parse_head_dim(root, out, err)) != QWEN_OK ||
		(rc = qwen_config_number(root, "rms_norm_eps", 1e-6, 1e-30, 1, &eps, err)) != QWEN_OK ||
		(rc = qwen_config_bool(root, "tie_word_embeddings", false, &out->tied, err)) != QWEN_OK ||
		(rc = qwen_config_bool(root, "attention_bias", false, &out->attention_bias, err)) != QWEN_OK)
		return rc;
	out->rms_norm_eps = (float) eps;
	out->qk_norm = out->arch == QWEN_ARCH_QWEN3;
	out->output_bias = out->arch == QWEN_ARCH_QWEN3 && out->attention_bias;
	if (out->arch == QWEN_ARCH_QWEN2) /* q, k and v have biases whatever the file says, o never */
		out->attention_bias = true;
	return QWEN_OK;
}

/* torch_dtype of older files, dtype of newer ones; information only, since tensors carry their own types. */
static void
parse_dtype(const json_t *root, qwen_config *out)
{
	const char *dtype = json_string_value(json_object_get(root, "dtype"));

	if (!dtype)
		dtype = json_string_value(json_object_get(root, "torch_dtype"));
	qwen_config_printable(out->dtype, sizeof(out->dtype), dtype ? dtype : "");
}

/* ---- generation ---- */

/* Ids outside the vocabulary mean that file and weights do not belong together. */
static qwen_status
add_eos(const json_t *id, const char *file, qwen_config *out, qwen_error *err)
{
	json_int_t value = json_integer_value(id);

	if (!json_is_integer(id) || value < 0 || value >= out->vocab_size)
	{
		qwen_fail(err, QWEN_CORRUPT, "%s: eos_token_id is not a token of the vocabulary", file);
		return qwen_fail_detail(err, "It must be a whole number from 0 to %d, or a list of such numbers.",
								out->vocab_size - 1);
	}
	for (int i = 0; i < out->n_eos; i++)
		if (out->eos[i] == value)
			return QWEN_OK;
	if (out->n_eos == QWEN_MAX_EOS)
		return qwen_fail(err, QWEN_UNSUPPORTED, "%s: more than %d different end-of-text tokens", file, QWEN_MAX_EOS);
	out->eos[out->n_eos++] = (int32_t) value;
	return QWEN_OK;
}

/* eos_token_id: a number, a list of numbers, null or absent. */
static qwen_status
collect_eos(const json_t *root, const char *file, qwen_config *out, qwen_error *err)
{
	const json_t *eos = json_object_get(root, "eos_token_id");
	qwen_status rc = QWEN_OK;

	if (!eos || json_is_null(eos))
		return QWEN_OK;
	if (!json_is_array(eos))
		return add_eos(eos, file, out, err);
	for (size_t i = 0; i < json_array_size(eos) && rc == QWEN_OK; i++)
		rc = add_eos(json_array_get(eos, i), file, out, err);
	return rc;
}

/* generation_config.json: more end tokens, and the vendor's advice for sampling. */
static qwen_status
parse_generation(const json_t *root, qwen_config *out, qwen_error *err)
{
	double temperature, top_p, min_p, penalty;
	qwen_status rc;

	if ((rc = collect_eos(root, "generation_config.json", out, err)) != QWEN_OK ||
		(rc = qwen_config_bool(root, "do_sample", false, &out->has_sampling, err)) != QWEN_OK ||
		(rc = qwen_config_number(root, "temperature", 1, 0, 100, &temperature, err)) != QWEN_OK ||
		(rc = qwen_config_number(root, "top_p", 1, 0, 1, &top_p, err)) != QWEN_OK ||
		(rc = qwen_config_number(root, "min_p", 0, 0, 1, &min_p, err)) != QWEN_OK ||
		(rc = qwen_config_number(root, "repetition_penalty", 1, 0.01, 100, &penalty, err)) != QWEN_OK ||
		(rc = qwen_config_int(root, "top_k", 0, -1, INT32_MAX, &out->top_k, err)) != QWEN_OK)
		return rc;
	out->temperature = (float) temperature;
	out->top_p = (float) top_p;
	out->min_p = (float) min_p;
	out->repetition_penalty = (float) penalty;
	if (out->top_k < 0) /* both 0 and -1 mean off */
		out->top_k = 0;
	return QWEN_OK;
}

/* ---- entry points ---- */

/* Family first: it decides which defaults and refusals the other keys have. */
static qwen_status
parse_model(const json_t *root, qwen_config *out, qwen_error *err)
{
	qwen_status rc;

	if ((rc = parse_family(root, out, err)) != QWEN_OK || (rc = parse_sizes(root, out, err)) != QWEN_OK ||
		(rc = check_supported(root, out, err)) != QWEN_OK || (rc = parse_attention(root, out, err)) != QWEN_OK ||
		(rc = qwen_config_parse_rope(root, out, err)) != QWEN_OK)
		return rc;
	parse_dtype(root, out);
	return collect_eos(root, "config.json", out, err);
}

qwen_status
qwen_config_parse(const char *config, size_t config_len, const char *generation, size_t generation_len,
				  qwen_config *out, qwen_error *err)
{
	json_t *root = NULL;
	qwen_status rc;

	memset(out, 0, sizeof(*out));
	out->temperature = out->top_p = out->repetition_penalty = 1;
	rc = qwen_config_load_json("config.json", config, config_len, &root, err);
	if (rc == QWEN_OK)
		rc = parse_model(root, out, err);
	json_decref(root);
	if (rc != QWEN_OK || !generation)
		return rc;

	root = NULL;
	rc = qwen_config_load_json("generation_config.json", generation, generation_len, &root, err);
	if (rc == QWEN_OK)
		rc = parse_generation(root, out, err);
	json_decref(root);
	return rc;
}

/* Reads all of an open file into *out, which the caller frees. */
static qwen_status
read_open_file(int fd, const char *path, char **out, size_t *len, qwen_error *err)
{
	struct stat st;
	ssize_t n;

	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
		return qwen_fail(err, QWEN_IO, "\"%s\" is not a regular file", path);
	if (st.st_size > MAX_CONFIG_BYTES)
		return qwen_fail(err, QWEN_TOO_LONG, "\"%s\" is longer than %d bytes", path, MAX_CONFIG_BYTES);
	*out = malloc((size_t) st.st_size + 1);
	if (!*out)
		return qwen_fail_memory(err, (unsigned long long) st.st_size);
	for (*len = 0; *len < (size_t) st.st_size; *len += (size_t) n)
	{
		n = read(fd, *out + *len, (size_t) st.st_size - *len);
		if (n < 0 && errno == EINTR)
			n = 0;
		else if (n <= 0)
			return qwen_fail(err, QWEN_IO, "could not read \"%s\": %s", path,
							 n ? strerror(errno) : "it became shorter");
	}
	return QWEN_OK;
}

/* Reads a file of the model folder; when it is optional and not there, *out stays NULL. */
static qwen_status
read_file(const char *dir, const char *name, bool optional, char **out, size_t *len, qwen_error *err)
{
	char path[PATH_MAX];
	int fd;
	qwen_status rc;

	if ((size_t) snprintf(path, sizeof(path), "%s/%s", dir, name) >= sizeof(path))
		return qwen_fail(err, QWEN_INVALID, "the path of the model folder is too long");
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* not to hang on a pipe of that name */
	if (fd < 0 && optional && errno == ENOENT)
		return QWEN_OK;
	if (fd < 0)
	{
		qwen_fail(err, errno == ENOENT ? QWEN_NOT_FOUND : QWEN_IO, "could not open \"%s\": %s", path, strerror(errno));
		return qwen_fail_hint(err, "qwen.model must name a folder with config.json, safetensors and tokenizer files.");
	}
	rc = read_open_file(fd, path, out, len, err);
	close(fd);
	return rc;
}

qwen_status
qwen_config_read(const char *model_dir, qwen_config *out, qwen_error *err)
{
	char *config = NULL, *generation = NULL;
	size_t config_len = 0, generation_len = 0;
	qwen_status rc;

	rc = read_file(model_dir, "config.json", false, &config, &config_len, err);
	if (rc == QWEN_OK)
		rc = read_file(model_dir, "generation_config.json", true, &generation, &generation_len, err);
	if (rc == QWEN_OK)
		rc = qwen_config_parse(config, config_len, generation, generation_len, out, err);
	free(config);
	free(generation);
	return rc;
}

/* qwen-models.md 14. The bounds on the sizes keep this far below 2^63. */
uint64_t
qwen_config_parameters(const qwen_config *c)
{
	uint64_t h = (uint64_t) c->hidden_size, f = (uint64_t) c->intermediate_size, d = (uint64_t) c->head_dim;
	uint64_t q = (uint64_t) c->n_heads * d, kv = (uint64_t) c->n_kv_heads * d;
	uint64_t attention = 2 * h * q + 2 * h * kv;
	uint64_t head = (uint64_t) c->vocab_size * h;

	if (c->attention_bias)
		attention += q + 2 * kv;
	if (c->output_bias)
		attention += h;
	if (c->qk_norm)
		attention += 2 * d;
	return (uint64_t) c->n_layers * (attention + 3 * h * f + 2 * h) + h + head * (c->tied ? 1 : 2);
}
