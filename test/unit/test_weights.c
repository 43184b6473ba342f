/*
 * test_weights.c
 *	  From tensor names to device memory: matching, fusing, types, and one
 *	  report of everything that does not fit.
 */
#include "unit.h"

#include <math.h>

#include "engine/model.h"
#include "engine/weights.h"
#include "scratch.h"

/* A qwen2 model of one layer: h 4, 2 heads of 2, 1 kv head, f 6, V 5. */
static const qwen_config small = {
	.arch = QWEN_ARCH_QWEN2,
	.vocab_size = 5,
	.hidden_size = 4,
	.intermediate_size = 6,
	.n_layers = 1,
	.n_heads = 2,
	.n_kv_heads = 1,
	.head_dim = 2,
	.attention_bias = true,
};

typedef struct tensor_spec
{
	const char *name;
	const char *shape; /* "5,4" */
	int elements;
} tensor_spec;

static const tensor_spec all_tensors[] = {
	{"embed_tokens.weight", "5,4", 20},
	{"layers.0.input_layernorm.weight", "4", 4},
	{"layers.0.self_attn.q_proj.weight", "4,4", 16},
	{"layers.0.self_attn.k_proj.weight", "2,4", 8},
	{"layers.0.self_attn.v_proj.weight", "2,4", 8},
	{"layers.0.self_attn.q_proj.bias", "4", 4},
	{"layers.0.self_attn.k_proj.bias", "2", 2},
	{"layers.0.self_attn.v_proj.bias", "2", 2},
	{"layers.0.self_attn.o_proj.weight", "4,4", 16},
	{"layers.0.post_attention_layernorm.weight", "4", 4},
	{"layers.0.mlp.gate_proj.weight", "6,4", 24},
	{"layers.0.mlp.up_proj.weight", "6,4", 24},
	{"layers.0.mlp.down_proj.weight", "4,6", 24},
	{"norm.weight", "4", 4},
	{"lm_head.weight", "5,4", 20},
};
#define N_TENSORS ((int) (sizeof(all_tensors) / sizeof(all_tensors[0])))

/* What a test changes of the full set. */
typedef struct changes
{
	const char *prefix;  /* before names, but for lm_head */
	const char *without; /* leave this one out */
	const char *reshape; /* this one becomes [elements] */
	const char *dtype;   /* of all tensors but `retype` */
	const char *retype;
	const char *retype_to;
	const char *extra; /* one more tensor */
} changes;

static int
element_bytes(const char *dtype)
{
	return !strcmp(dtype, "F32") ? 4 : !strcmp(dtype, "I8") ? 1 : 2;
}

static size_t
add_entry(char *header, size_t size, const char *prefix, const char *name, const char *dtype, const char *shape,
		  int elements, size_t *offset)
{
	size_t begin = *offset, len = strlen(header);

	*offset += (size_t) (elements * element_bytes(dtype));
	snprintf(header + len, size - len, "%s\"%s%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
			 len > 1 ? "," : "", prefix, name, dtype, shape, begin, *offset);
	return *offset;
}

static void
write_model(const scratch *s, const changes *c)
{
	char header[4096] = "{", flat[16];
	size_t offset = 0;

	for (int i = 0; i < N_TENSORS; i++)
	{
		const tensor_spec *t = &all_tensors[i];
		bool head = !strcmp(t->name, "lm_head.weight");
		bool retype = c->retype && !strcmp(t->name, c->retype);

		if (c->without && !strcmp(t->name, c->without))
			continue;
		snprintf(flat, sizeof(flat), "%d", t->elements);
		add_entry(header, sizeof(header), head || !c->prefix ? "" : c->prefix, t->name,
				  retype ? c->retype_to : c->dtype, c->reshape && !strcmp(t->name, c->reshape) ? flat : t->shape,
				  t->elements, &offset);
	}
	if (c->extra)
		add_entry(header, sizeof(header), "", c->extra, c->dtype, "1", 1, &offset);
	strcat(header, "}");
	scratch_safetensors(s, "model.safetensors", header, offset);
}

/* All of the model on one device. */
static qwen_status
plan_whole(const qwen_config *config, const qwen_checkpoint *checkpoint, const qwen_model_options *options,
		   qwen_device *dev, qwen_weights *w, qwen_weight_plan **plan, qwen_error *err)
{
	*w = (qwen_weights){.dev = dev, .n_shards = 1, .has_embed = true, .has_head = true};
	return qwen_weights_plan(config, checkpoint, options, w, 1, plan, err);
}

/* Writes, plans and loads; the caller frees *w when that worked. */
static qwen_status
load_with(const qwen_config *config, const changes *c, const qwen_model_options *options, qwen_device *dev,
		  qwen_weights *w, qwen_error *err)
{
	scratch s;
	qwen_checkpoint *checkpoint = NULL;
	qwen_weight_plan *plan;
	qwen_status rc;

	scratch_open(&s);
	write_model(&s, c);
	assert_ok(qwen_checkpoint_open(s.dir, &checkpoint, err), *err);
	rc = plan_whole(config, checkpoint, options, dev, w, &plan, err);
	if (rc == QWEN_OK)
	{
		rc = qwen_weights_load(plan, checkpoint, dev, NULL, NULL, err);
		qwen_weight_plan_free(plan);
	}
	if (rc != QWEN_OK)
		qwen_weights_free(w);
	qwen_checkpoint_close(checkpoint);
	scratch_close(&s);
	return rc;
}

static qwen_status
load(const qwen_config *config, const changes *c, const char *dtype, qwen_device *dev, qwen_weights *w, qwen_error *err)
{
	return load_with(config, c, &(qwen_model_options){.dtype = dtype}, dev, w, err);
}

static qwen_device *
open_device(const char *kernels)
{
	char why[128];
	qwen_device *dev = qwen_device_open("cpu", kernels, 3, why, sizeof(why));

	assert_non_null(dev);
	return dev;
}

/* The byte that the file has at a place of its data, and the value of the bfloat16 there. */
static unsigned char
file_byte(size_t at)
{
	return (unsigned char) (at % 251);
}

static float
file_value(size_t at)
{
	uint32_t bits = (uint32_t) file_byte(at) << 16 | (uint32_t) file_byte(at + 1) << 24;
	float f;

	memcpy(&f, &bits, sizeof(f));
	return f;
}

/* All rows of a matrix as floats, whatever its layout: to be freed. */
static float *
rows_of(qwen_device *dev, const qwen_matrix *m)
{
	float *rows = malloc((size_t) (m->n * m->k) * sizeof(float));
	int32_t *ids = malloc((size_t) m->n * sizeof(int32_t));

	assert_true(rows && ids);
	for (int32_t i = 0; i < m->n; i++)
		ids[i] = i;
	dev->ops->embed(dev, rows, m, ids, (int32_t) m->n);
	free(ids);
	return rows;
}

/* Rows [row, row + n) of a matrix are the tensor at that place of the file. */
static void
assert_rows(qwen_device *dev, const qwen_matrix *m, int64_t row, int64_t n, size_t at)
{
	float *rows = rows_of(dev, m);

	for (int64_t i = 0; i < n * m->k; i++)
		if (rows[row * m->k + i] != file_value(at + 2 * (size_t) i))
			fail_msg("element %d of row %d is %g, not %g", (int) (i % m->k), (int) (row + i / m->k),
					 (double) rows[row * m->k + i], (double) file_value(at + 2 * (size_t) i));
	free(rows);
}

static void
tensors_find_their_place_under_every_prefix(void **state)
{
	static const char *const prefixes[] = {"model.", "", "model.language_model.", "language_model.model."};
	qwen_device *dev = open_device("portable");
	qwen_weights w;
	qwen_error err;

	for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++)
	{
		assert_ok(load(&small, &(changes){.prefix = prefixes[i], .dtype = "BF16"}, "auto", dev, &w, &err), err);
		assert_rows(dev, &w.layers[0].qkv, 0, 4, (20 + 4) * 2);
		assert_int_equal(w.layers[0].qkv.n, 8);
		assert_int_equal(w.layers[0].gate_up.n, 12);
		assert_int_equal(w.layers[0].qkv.dtype, QWEN_BF16);
		assert_true(w.head.data != w.embed.data);
		assert_null(w.layers[0].q_norm.data);
		qwen_weights_free(&w);
	}
	qwen_device_close(dev);
}

static void
parts_are_fused_in_order(void **state)
{
	qwen_device *dev = open_device("portable");
	qwen_weights w;
	qwen_error err;

	assert_ok(load(&small, &(changes){.prefix = "model.", .dtype = "BF16"}, "auto", dev, &w, &err), err);
	/* q, k and v follow each other in the file too, and so do gate and up */
	assert_rows(dev, &w.layers[0].qkv, 0, 8, 48);
	assert_rows(dev, &w.layers[0].gate_up, 0, 12, 168);
	assert_true(w.bytes == w.embed.bytes + w.head.bytes + w.layers[0].qkv.bytes + w.layers[0].out.bytes +
							   w.layers[0].gate_up.bytes + w.layers[0].down.bytes + 4 * (4 + 8 + 4 + 4));
	qwen_weights_free(&w);
	qwen_device_close(dev);
}

/*
 * Matrices of several units, whose parts begin at rows that no unit would begin at by itself: h 1024, 5 heads of 2,
 * f 1500, V 1001.  Many threads read them, and every row is where it belongs.
 */
static void
large_matrices_are_read_in_parts(void **state)
{
	static const tensor_spec tensors[] = {
		{"embed_tokens.weight", "1001,1024", 1001 * 1024},
		{"layers.0.input_layernorm.weight", "1024", 1024},
		{"layers.0.self_attn.q_proj.weight", "10,1024", 10 * 1024},
		{"layers.0.self_attn.k_proj.weight", "2,1024", 2 * 1024},
		{"layers.0.self_attn.v_proj.weight", "2,1024", 2 * 1024},
		{"layers.0.self_attn.o_proj.weight", "1024,10", 1024 * 10},
		{"layers.0.post_attention_layernorm.weight", "1024", 1024},
		{"layers.0.mlp.gate_proj.weight", "1500,1024", 1500 * 1024},
		{"layers.0.mlp.up_proj.weight", "1500,1024", 1500 * 1024},
		{"layers.0.mlp.down_proj.weight", "1024,1500", 1024 * 1500},
		{"norm.weight", "1024", 1024},
	};
	const qwen_config config = {.arch = QWEN_ARCH_QWEN2,
								.vocab_size = 1001,
								.hidden_size = 1024,
								.intermediate_size = 1500,
								.n_layers = 1,
								.n_heads = 5,
								.n_kv_heads = 1,
								.head_dim = 2,
								.tied = true};
	qwen_device *dev = open_device("auto");
	scratch s;
	char header[4096] = "{";
	size_t offset = 0, at[11];
	qwen_checkpoint *checkpoint;
	qwen_weight_plan *plan;
	qwen_weights w;
	qwen_error err;

	for (int i = 0; i < 11; i++)
	{
		at[i] = offset;
		add_entry(header, sizeof(header), "", tensors[i].name, "BF16", tensors[i].shape, tensors[i].elements, &offset);
	}
	strcat(header, "}");
	scratch_open(&s);
	scratch_safetensors(&s, "model.safetensors", header, offset);
	assert_ok(qwen_checkpoint_open(s.dir, &checkpoint, &err), err);
	assert_ok(plan_whole(&config, checkpoint, &(qwen_model_options){0}, dev, &w, &plan, &err), err);
	assert_ok(qwen_weights_load(plan, checkpoint, dev, NULL, NULL, &err), err);
	assert_rows(dev, &w.embed, 0, 1001, at[0]);
	assert_rows(dev, &w.layers[0].qkv, 0, 14, at[2]);
	assert_rows(dev, &w.layers[0].out, 0, 1024, at[5]);
	assert_rows(dev, &w.layers[0].gate_up, 0, 1500, at[7]);
	assert_rows(dev, &w.layers[0].gate_up, 1500, 1500, at[8]);
	assert_rows(dev, &w.layers[0].down, 0, 1024, at[9]);
	assert_true(w.norm.data[1023] == file_value(at[10] + 2 * 1023));
	qwen_weight_plan_free(plan);
	qwen_weights_free(&w);
	qwen_checkpoint_close(checkpoint);
	qwen_device_close(dev);
	scratch_close(&s);
}

/* The layers as asked, rows of the vocabulary in int8 at most, vectors not at all. */
static void
matrices_are_quantized_by_their_place(void **state)
{
	static const char *const words[] = {"int8", "int4"};
	static const qwen_dtype types[] = {QWEN_INT8, QWEN_INT4};
	qwen_device *dev = open_device("auto");
	qwen_weights w;
	qwen_error err;

	for (int i = 0; i < 2; i++)
	{
		const qwen_model_options options = {.quantization = words[i], .dtype = "float16"};

		assert_ok(load_with(&small, &(changes){.prefix = "model.", .dtype = "BF16"}, &options, dev, &w, &err), err);
		assert_int_equal(w.dtype, QWEN_F16);
		assert_int_equal(w.layers[0].qkv.dtype, types[i]);
		assert_int_equal(w.layers[0].out.dtype, types[i]);
		assert_int_equal(w.layers[0].gate_up.dtype, types[i]);
		assert_int_equal(w.layers[0].down.dtype, types[i]);
		assert_int_equal(w.embed.dtype, QWEN_INT8);
		assert_int_equal(w.head.dtype, QWEN_INT8);
		assert_int_equal(w.head.bytes, dev->ops->matrix_bytes(dev, QWEN_INT8, 5, 4));
		assert_true(w.layers[0].ffn_norm.data[0] == file_value(2 * (20 + 4 + 32 + 8 + 16)));
		qwen_weights_free(&w);
	}
	qwen_device_close(dev);
}

static void
a_tied_head_is_the_embedding(void **state)
{
	qwen_config tied = small;
	qwen_device *dev = open_device("portable");
	qwen_weights w;
	qwen_error err;

	tied.tied = true;
	assert_ok(
		load(&tied, &(changes){.prefix = "model.", .dtype = "F16", .without = "lm_head.weight"}, "auto", dev, &w, &err),
		err);
	assert_ptr_equal(w.head.data, w.embed.data);
	qwen_weights_free(&w);
	/* a head that is stored all the same is not used */
	assert_ok(load(&tied, &(changes){.prefix = "model.", .dtype = "F16"}, "auto", dev, &w, &err), err);
	assert_ptr_equal(w.head.data, w.embed.data);
	qwen_weights_free(&w);
	qwen_device_close(dev);
}

static void
everything_that_does_not_fit_is_reported_at_once(void **state)
{
	qwen_device *dev = open_device("portable");
	qwen_weights w;
	qwen_error err;

	assert_int_equal(load(&small,
						  &(changes){.prefix = "model.",
									 .dtype = "BF16",
									 .without = "lm_head.weight",
									 .reshape = "layers.0.mlp.up_proj.weight",
									 .extra = "model.layers.0.surprise"},
						  "auto", dev, &w, &err),
					 QWEN_CORRUPT);
	assert_non_null(strstr(err.detail, "Missing tensors: lm_head.weight."));
	assert_non_null(strstr(err.detail, "model.layers.0.mlp.up_proj.weight is [24], not [6, 4]"));
	assert_non_null(strstr(err.detail, "Unexpected tensors: model.layers.0.surprise."));
	assert_int_equal(
		load(
			&small,
			&(changes){.prefix = "model.", .dtype = "BF16", .retype = "layers.0.mlp.up_proj.weight", .retype_to = "I8"},
			"auto", dev, &w, &err),
		QWEN_UNSUPPORTED);
	assert_non_null(strstr(err.detail, "model.layers.0.mlp.up_proj.weight is I8"));
	qwen_device_close(dev);
}

static void
a_model_of_another_size_gives_a_list_that_is_cut(void **state)
{
	qwen_config deep = small;
	qwen_device *dev = open_device("portable");
	qwen_weights w;
	qwen_error err;

	deep.n_layers = 40;
	assert_int_equal(load(&deep, &(changes){.prefix = "model.", .dtype = "BF16"}, "auto", dev, &w, &err), QWEN_CORRUPT);
	assert_non_null(strstr(err.detail, "Missing tensors: layers.1."));
	assert_non_null(strstr(err.detail, " more."));
	qwen_device_close(dev);
}

static void
tensors_of_wrappers_are_ignored(void **state)
{
	static const char *const extras[] = {"model.visual.patch", "visual.patch", "mtp.fc.weight",
										 "model.layers.0.self_attn.rotary_emb.inv_freq"};
	qwen_device *dev = open_device("portable");
	qwen_weights w;
	qwen_error err;

	for (size_t i = 0; i < sizeof(extras) / sizeof(extras[0]); i++)
	{
		assert_ok(
			load(&small, &(changes){.prefix = "model.", .dtype = "BF16", .extra = extras[i]}, "auto", dev, &w, &err),
			err);
		qwen_weights_free(&w);
	}
	qwen_device_close(dev);
}

static void
the_type_is_kept_or_the_one_asked_for(void **state)
{
	qwen_device *cpu = open_device("portable"), *ref = open_device("ref");
	qwen_weights w;
	qwen_error err;

	assert_ok(load(&small, &(changes){.prefix = "model.", .dtype = "F32"}, "auto", cpu, &w, &err), err);
	assert_int_equal(w.embed.dtype, QWEN_F32);
	qwen_weights_free(&w);
	assert_ok(load(&small, &(changes){.prefix = "model.", .dtype = "BF16"}, "float32", cpu, &w, &err), err);
	assert_int_equal(w.layers[0].down.dtype, QWEN_F32);
	qwen_weights_free(&w);
	assert_ok(load(&small, &(changes){.prefix = "model.", .dtype = "BF16"}, "auto", ref, &w, &err), err);
	assert_int_equal(w.embed.dtype, QWEN_F32);
	qwen_weights_free(&w);
	/* parts of one matrix that differ meet in float */
	assert_ok(
		load(&small,
			 &(changes){
				 .prefix = "model.", .dtype = "BF16", .retype = "layers.0.self_attn.k_proj.weight", .retype_to = "F16"},
			 "auto", cpu, &w, &err),
		err);
	assert_int_equal(w.layers[0].qkv.dtype, QWEN_F32);
	assert_int_equal(w.layers[0].down.dtype, QWEN_BF16);
	qwen_weights_free(&w);
	/* bytes that count up are huge as bfloat16: float16 cannot hold them */
	assert_int_equal(load(&small, &(changes){.prefix = "model.", .dtype = "BF16"}, "float16", cpu, &w, &err),
					 QWEN_INVALID);
	assert_non_null(strstr(err.message, "does not fit the type float16"));
	assert_int_equal(load(&small, &(changes){.prefix = "model.", .dtype = "BF16"}, "int9", cpu, &w, &err),
					 QWEN_INVALID);
	assert_non_null(strstr(err.message, "qwen.dtype"));
	qwen_device_close(cpu);
	qwen_device_close(ref);
}

static void
truncated_weights_name_file_and_byte(void **state)
{
	scratch s;
	char path[PATH_MAX];
	qwen_checkpoint *checkpoint;
	qwen_weight_plan *plan;
	qwen_weights w;
	qwen_device *dev = open_device("portable");
	qwen_error err;

	scratch_open(&s);
	write_model(&s, &(changes){.prefix = "model.", .dtype = "BF16"});
	assert_ok(qwen_checkpoint_open(s.dir, &checkpoint, &err), err);
	assert_ok(plan_whole(&small, checkpoint, &(qwen_model_options){0}, dev, &w, &plan, &err), err);
	assert_int_equal(truncate(scratch_path(&s, "model.safetensors", path), 1500), 0);
	assert_int_equal(qwen_weights_load(plan, checkpoint, dev, NULL, NULL, &err), QWEN_IO);
	assert_non_null(strstr(err.message, "model.safetensors"));
	assert_non_null(strstr(err.detail, "byte 1500"));
	qwen_weight_plan_free(plan);
	qwen_weights_free(&w);
	qwen_checkpoint_close(checkpoint);
	qwen_device_close(dev);
	scratch_close(&s);
}

typedef struct progress_seen
{
	uint64_t last;
	uint64_t total;
	uint64_t loaded; /* on the first device */
	int calls;
} progress_seen;

static void
watch(void *arg, const qwen_model *model, uint64_t done, uint64_t total)
{
	progress_seen *p = arg;

	assert_true(done > p->last && done <= total);
	assert_true(qwen_model_loaded(model, 0) > p->loaded);
	p->loaded = qwen_model_loaded(model, 0);
	p->last = done;
	p->total = total;
	p->calls++;
}

static void
progress_ends_at_the_total(void **state)
{
	const qwen_model_options options = {
		.path = "test/data/golden/qwen2_sharded", .kernels = "portable", .max_sequences = 1, .step_tokens = 1};
	progress_seen seen = {0};
	qwen_model *model;
	qwen_error err;

	assert_ok(qwen_model_open(&options, watch, &seen, &model, &err), err);
	assert_true(seen.calls > 10 && seen.last == seen.total && seen.total > 300000);
	qwen_model_close(model);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tensors_find_their_place_under_every_prefix),
		cmocka_unit_test(parts_are_fused_in_order),
		cmocka_unit_test(large_matrices_are_read_in_parts),
		cmocka_unit_test(matrices_are_quantized_by_their_place),
		cmocka_unit_test(a_tied_head_is_the_embedding),
		cmocka_unit_test(everything_that_does_not_fit_is_reported_at_once),
		cmocka_unit_test(a_model_of_another_size_gives_a_list_that_is_cut),
		cmocka_unit_test(tensors_of_wrappers_are_ignored),
		cmocka_unit_test(the_type_is_kept_or_the_one_asked_for),
		cmocka_unit_test(truncated_weights_name_file_and_byte),
		cmocka_unit_test(progress_ends_at_the_total),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
