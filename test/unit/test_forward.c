/*
 * test_forward.c
 *	  The whole model: golden logits of the reference, and bits that depend on
 *	  nothing but the sequence itself.
 *
 * Golden files (test/data/golden) hold a tiny random checkpoint each, token
 * ids, the reference's logits in float, and its logits in the stored type:
 * the distance of the two is the noise that is allowed to sets that keep
 * weights and cache in that type.
 */
#include "unit.h"

#include <math.h>

#include "engine/model.h"
#include "engine/safetensors.h"

#define GOLDEN "test/data/golden/"
#define STEP 512

/* ---- golden data ---- */

typedef struct golden
{
	char *file;
	int32_t *ids;        /* [n] */
	const float *logits; /* [n, vocab] */
	const float *stored; /* [n, vocab] or NULL */
	int32_t n;
	int32_t vocab;
} golden;

static char *
read_whole(const char *path, size_t *len)
{
	FILE *f = fopen(path, "rb");
	char *text;
	long size;

	assert_non_null(f);
	assert_int_equal(fseek(f, 0, SEEK_END), 0);
	size = ftell(f);
	rewind(f);
	text = malloc((size_t) size);
	assert_non_null(text);
	assert_int_equal(fread(text, 1, (size_t) size, f), size);
	fclose(f);
	*len = (size_t) size;
	return text;
}

static golden
read_golden(const char *name)
{
	char path[256];
	golden g = {0};
	size_t len;
	uint64_t header;
	qwen_tensor_list list = {0};
	qwen_error err;

	snprintf(path, sizeof(path), GOLDEN "%s/golden.safetensors", name);
	g.file = read_whole(path, &len);
	memcpy(&header, g.file, 8);
	assert_ok(qwen_safetensors_parse("golden", g.file + 8, header, len - 8 - header, &list, &err), err);
	for (size_t i = 0; i < list.n; i++)
	{
		const qwen_tensor *t = &list.items[i];
		const char *data = g.file + 8 + header + t->begin;

		if (!strcmp(t->name, "logits"))
		{
			g.logits = (const float *) data;
			g.n = (int32_t) t->shape[0];
			g.vocab = (int32_t) t->shape[1];
		}
		else if (!strcmp(t->name, "logits_stored_dtype"))
			g.stored = (const float *) data;
		else if (!strcmp(t->name, "input_ids"))
		{
			g.ids = malloc(t->shape[0] * sizeof(int32_t));
			assert_non_null(g.ids);
			for (uint64_t j = 0; j < t->shape[0]; j++)
				g.ids[j] = (int32_t) ((const int64_t *) data)[j];
		}
	}
	assert_true(g.logits && g.ids);
	qwen_tensor_list_free(&list);
	return g;
}

static void
free_golden(golden *g)
{
	free(g->file);
	free(g->ids);
}

static double
deviation(const float *x, size_t n)
{
	double mean = 0, sum = 0;

	for (size_t i = 0; i < n; i++)
		mean += x[i];
	mean /= (double) n;
	for (size_t i = 0; i < n; i++)
		sum += (x[i] - mean) * (x[i] - mean);
	return sqrt(sum / (double) n);
}

static double
distance(const float *a, const float *b, size_t n)
{
	double worst = 0;

	for (size_t i = 0; i < n; i++)
	{
		double d = fabs((double) a[i] - (double) b[i]);

		worst = d <= worst ? worst : d; /* NaN stays */
	}
	return worst;
}

/* ---- running ---- */

/* Placed as map and tensor_parallel say. */
static qwen_model *
open_placed(const char *name, const char *kernels, const char *map, int tensor_parallel)
{
	char path[256];
	const qwen_model_options options = {
		.path = path,
		.device_map = map,
		.max_memory = map ? "cpu:0=1GiB,cpu:1=1GiB,cpu:2=1GiB,cpu:3=1GiB" : NULL,
		.tensor_parallel = tensor_parallel,
		.kernels = kernels,
		.threads = 3,
		.max_sequences = STEP,
		.step_tokens = STEP,
		.kv_memory = (size_t) 64 << 20,
	};
	qwen_model *model;
	qwen_error err;

	snprintf(path, sizeof(path), GOLDEN "%s", name);
	assert_ok(qwen_model_open(&options, NULL, NULL, &model, &err), err);
	return model;
}

static qwen_model *
open_model(const char *name, const char *kernels)
{
	return open_placed(name, kernels, NULL, 1);
}

/* A sequence that runs in pieces, in cache blocks of its own choice. */
typedef struct stream
{
	const int32_t *ids;
	int32_t n;
	int32_t done;
	int32_t blocks[64];
} stream;

/* Blocks `first`, first + stride, ... */
static stream
make_stream(const int32_t *ids, int32_t n, int32_t first, int32_t stride)
{
	stream s = {.ids = ids, .n = n};

	for (int32_t i = 0; i < 64; i++)
		s.blocks[i] = first + i * stride;
	return s;
}

/* One step over the next `take[s]` tokens of each stream; logits of all tokens, in order, when out is given. */
static void
run_step(qwen_model *model, stream *streams, int n_streams, const int32_t *take, float *out)
{
	int32_t tokens[STEP], positions[STEP], rows[STEP];
	qwen_batch_seq seqs[STEP];
	qwen_batch batch = {.tokens = tokens, .positions = positions, .seqs = seqs, .logit_rows = rows};
	qwen_error err;

	for (int s = 0; s < n_streams; s++)
	{
		stream *st = &streams[s];

		if (take[s] == 0)
			continue;
		seqs[batch.n_seqs++] = (qwen_batch_seq){batch.n_tokens, take[s], st->done + take[s], st->blocks};
		for (int32_t i = 0; i < take[s]; i++, st->done++, batch.n_tokens++)
		{
			tokens[batch.n_tokens] = st->ids[st->done];
			positions[batch.n_tokens] = st->done;
			rows[batch.n_tokens] = batch.n_tokens;
		}
	}
	batch.n_logits = out ? batch.n_tokens : 0;
	assert_ok(qwen_model_forward(model, &batch, out, &err), err);
}

/* All logits of one sequence, `chunk` tokens a step. */
static float *
run_sequence(qwen_model *model, stream s, int32_t chunk)
{
	size_t vocab = (size_t) qwen_model_config(model)->vocab_size;
	float *logits = malloc((size_t) s.n * vocab * sizeof(float));

	assert_non_null(logits);
	memset(logits, 0xff, (size_t) s.n * vocab * sizeof(float));
	while (s.done < s.n)
	{
		int32_t at = s.done;
		int32_t take = s.n - at < chunk ? s.n - at : chunk;

		run_step(model, &s, 1, &take, logits + (size_t) at * vocab);
	}
	return logits;
}

/* ---- tests ---- */

static const char *const models[] = {
	"qwen2", "qwen2_mha_tied", "qwen2_eps_theta", "qwen2_sharded", "qwen3", "qwen3_untied_wide", "qwen3_yarn",
};
#define N_MODELS (sizeof(models) / sizeof(models[0]))

/* Calls fn for every model on every set that this processor has. */
static void
for_all(void (*fn)(qwen_model *model, const golden *g, bool ref))
{
	char why[128];

	for (const char *const *set = qwen_kernel_sets(); *set; set++)
	{
		if (!qwen_kernel_set_usable(*set, why, sizeof(why)))
		{
			fprintf(stderr, "# SKIPPED: %s\n", why);
			continue;
		}
		for (size_t i = 0; i < N_MODELS; i++)
		{
			golden g = read_golden(models[i]);
			qwen_model *model = open_model(models[i], *set);

			assert_int_equal(qwen_model_config(model)->vocab_size, g.vocab);
			fn(model, &g, !strcmp(*set, "ref"));
			qwen_model_close(model);
			free_golden(&g);
		}
	}
}

static void
check_golden(qwen_model *model, const golden *g, bool ref)
{
	size_t n = (size_t) g->n * (size_t) g->vocab;
	double std = deviation(g->logits, n);
	double noise = g->stored ? distance(g->stored, g->logits, n) / std : 1e-3;
	double bound = ref ? 1e-3 : 1.5 * noise + 2e-3;
	float *got = run_sequence(model, make_stream(g->ids, g->n, 0, 1), STEP);
	double worst = distance(got, g->logits, n) / std;

	if (!(worst <= bound))
		fail_msg("%s: logits off by %g, bound %g", qwen_model_kernels(model), worst, bound);
	free(got);
}

static void
logits_are_those_of_the_reference(void **state)
{
	for_all(check_golden);
}

static void
check_chunks(qwen_model *model, const golden *g, bool ref)
{
	static const int32_t chunks[] = {1, 7, 16, 33};
	size_t bytes = (size_t) g->n * (size_t) g->vocab * sizeof(float);
	float *whole = run_sequence(model, make_stream(g->ids, g->n, 0, 1), STEP);

	for (size_t i = 0; i < sizeof(chunks) / sizeof(chunks[0]); i++)
	{
		float *parts = run_sequence(model, make_stream(g->ids, g->n, 3, 5), chunks[i]);

		assert_memory_equal(parts, whole, bytes);
		free(parts);
	}
	free(whole);
}

/* Prefill in chunks, and token by token, gives the bits of one whole prefill, in scattered blocks too. */
static void
chunks_and_scattered_blocks_change_nothing(void **state)
{
	for_all(check_chunks);
}

#define CROWD 17

static void
check_crowd(qwen_model *model, const golden *g, bool ref)
{
	size_t vocab = (size_t) g->vocab;
	float *alone = run_sequence(model, make_stream(g->ids, g->n, 0, 1), STEP);
	float *step = malloc(STEP * vocab * sizeof(float));
	stream streams[CROWD];
	int32_t take[CROWD];

	assert_non_null(step);
	for (int s = 0; s < CROWD; s++) /* the one under test in the middle, the others from other beginnings */
		streams[s] = make_stream(s == 8 ? g->ids : g->ids + s % 5, s == 8 ? g->n : g->n - s % 5, s, CROWD);
	for (int round = 0; streams[8].done < g->n; round++)
	{
		size_t skip = 0;
		int32_t at = streams[8].done;

		for (int s = 0; s < CROWD; s++)
		{
			int32_t left = streams[s].n - streams[s].done;
			int32_t want = (round + s) % 4 == 0 ? 0 : (round + s) % 3 == 0 ? 9 : 1;

			if (s == 8 && want == 0)
				want = 2;
			take[s] = left < want ? left : want;
			if (s < 8)
				skip += (size_t) take[s];
		}
		run_step(model, streams, CROWD, take, step);
		assert_memory_equal(step + skip * vocab, alone + (size_t) at * vocab, (size_t) take[8] * vocab * sizeof(float));
	}
	free(step);
	free(alone);
}

/* A sequence has the same bits alone and among 16 others that prefill and decode in the same steps. */
static void
a_crowd_changes_nothing(void **state)
{
	for_all(check_crowd);
}

static void
steps_without_logits_fill_the_cache_all_the_same(void **state)
{
	golden g = read_golden("qwen3");
	qwen_model *model = open_model("qwen3", "auto");
	size_t vocab = (size_t) g.vocab;
	float *all = run_sequence(model, make_stream(g.ids, g.n, 0, 1), STEP);
	stream s = make_stream(g.ids, g.n, 64, 1);
	float *last = malloc(vocab * sizeof(float));
	int32_t take = g.n - 1;

	run_step(model, &s, 1, &take, NULL);
	take = 1;
	run_step(model, &s, 1, &take, last);
	assert_memory_equal(last, all + (size_t) (g.n - 1) * vocab, vocab * sizeof(float));
	free(last);
	free(all);
	qwen_model_close(model);
	free_golden(&g);
}

static qwen_status
try_open(const char *name, qwen_model_options options, qwen_error *err)
{
	char path[256];
	qwen_model *model;
	qwen_status rc;

	snprintf(path, sizeof(path), GOLDEN "%s", name);
	options.path = path;
	rc = qwen_model_open(&options, NULL, NULL, &model, err);
	if (rc == QWEN_OK)
		qwen_model_close(model);
	return rc;
}

static void
what_does_not_fit_is_refused_with_both_numbers(void **state)
{
	qwen_error err;

	/* 3 layers, 2 kv heads of 32, keys and values in bfloat16: 768 bytes a token, 3 MiB for 4096 tokens */
	assert_int_equal(
		try_open("qwen3", (qwen_model_options){.max_sequences = 4, .step_tokens = 4, .kv_memory = 1 << 20}, &err),
		QWEN_INVALID);
	assert_non_null(strstr(err.detail, "1.0 MiB"));
	assert_non_null(strstr(err.detail, "3.0 MiB"));
	assert_non_null(strstr(err.hint, "qwen.kv_memory"));
	assert_int_equal(try_open("qwen3",
							  (qwen_model_options){.max_sequences = 4, .step_tokens = 4, .kv_memory = (size_t) 1 << 50},
							  &err),
					 QWEN_NO_MEMORY);
	assert_non_null(strstr(err.message, "device cpu lacks"));
	assert_non_null(strstr(err.hint, "qwen.kv_memory"));
	assert_int_equal(
		try_open("qwen3", (qwen_model_options){.max_sequences = 4, .step_tokens = 4, .max_memory = "cpu=8MiB"}, &err),
		QWEN_NO_MEMORY);
	assert_non_null(strstr(err.detail, "8.0 MiB are available"));
	assert_non_null(strstr(err.hint, "qwen.max_memory"));
	assert_int_equal(
		try_open("qwen3", (qwen_model_options){.max_sequences = 4, .step_tokens = 4, .max_model_len = 4097}, &err),
		QWEN_INVALID);
	assert_non_null(strstr(err.detail, "4097"));
	assert_non_null(strstr(err.detail, "4096"));
	assert_int_equal(
		try_open("qwen3", (qwen_model_options){.max_sequences = 4, .step_tokens = 4, .device_map = "cuda:0"}, &err),
		QWEN_UNSUPPORTED);
	assert_non_null(strstr(err.hint, "qwen.device_map"));
	assert_int_equal(
		try_open("qwen3", (qwen_model_options){.max_sequences = 4, .step_tokens = 4, .kernels = "sse9"}, &err),
		QWEN_INVALID);
	assert_int_equal(try_open("qwen2_moe", (qwen_model_options){.max_sequences = 4, .step_tokens = 4}, &err),
					 QWEN_UNSUPPORTED);
}

static void
sizes_follow_the_settings(void **state)
{
	const qwen_model_options options = {
		.path = GOLDEN "qwen3", .max_sequences = 4, .step_tokens = 8, .max_model_len = 100};
	qwen_model *model;
	qwen_error err;

	assert_ok(qwen_model_open(&options, NULL, NULL, &model, &err), err);
	assert_int_equal(qwen_model_max_len(model), 100);
	assert_int_equal(qwen_model_kv_blocks(model), 4 * 7);
	assert_int_equal(qwen_model_kv_token_bytes(model), 768);
	assert_int_equal(qwen_model_max_sequences(model), 4);
	assert_int_equal(qwen_model_step_tokens(model), 8);
	assert_string_equal(qwen_model_dtype(model), "bfloat16");
	assert_string_equal(qwen_model_quantization(model), "none");
	assert_string_equal(qwen_model_kv_dtype(model), "bfloat16");
	qwen_model_close(model);
}

/* The types that a model gets with these settings, as "dtype quantization kv_dtype". */
static void
assert_types(const char *dtype, const char *quantization, const char *kv_dtype, const char *want)
{
	const qwen_model_options options = {
		.path = GOLDEN "qwen3",
		.max_sequences = 1,
		.step_tokens = 1,
		.kv_memory = (size_t) 64 << 20,
		.dtype = dtype,
		.quantization = quantization,
		.kv_dtype = kv_dtype,
	};
	qwen_model *model;
	char got[64];
	qwen_error err;

	assert_ok(qwen_model_open(&options, NULL, NULL, &model, &err), err);
	snprintf(got, sizeof(got), "%s %s %s", qwen_model_dtype(model), qwen_model_quantization(model),
			 qwen_model_kv_dtype(model));
	assert_string_equal(got, want);
	qwen_model_close(model);
}

static void
types_follow_the_settings(void **state)
{
	assert_types("auto", "none", "auto", "bfloat16 none bfloat16");
	assert_types("float32", "none", "auto", "float32 none float32");
	assert_types("auto", "int8", "auto", "bfloat16 int8 bfloat16");
	assert_types("auto", "int4", "float32", "bfloat16 int4 float32");
	assert_types("auto", "none", "int8", "bfloat16 none int8");
	assert_types("float16", "int4", "int8", "float16 int4 int8");
}

/* The setting is refused, and the hint ends in the known words. */
static void
assert_refused(const qwen_model_options *options, const char *setting, const char *known)
{
	qwen_error err;

	assert_int_equal(try_open("qwen3", *options, &err), QWEN_INVALID);
	assert_non_null(strstr(err.message, setting));
	assert_string_equal(err.hint, known);
}

static void
unknown_types_are_refused_with_the_known_ones(void **state)
{
	qwen_model_options options = {.max_sequences = 1, .step_tokens = 1};

	options.dtype = "int8";
	assert_refused(&options, "qwen.dtype: \"int8\"", "Known are auto, bfloat16, float16 and float32.");
	options.dtype = "";
	assert_refused(&options, "qwen.dtype: \"\"", "Known are auto, bfloat16, float16 and float32.");
	options.dtype = NULL;
	options.quantization = "INT8";
	assert_refused(&options, "qwen.quantization: \"INT8\"", "Known are none, int8 and int4.");
	options.quantization = "none";
	options.kv_dtype = "int4";
	assert_refused(&options, "qwen.kv_dtype: \"int4\"", "Known are auto, bfloat16, float16, float32 and int8.");
}

/* ---- several devices ---- */

/* Over 2, 3 and 4 devices, even and not; the last ones come back to a device, and leave the ends without layers. */
static const char *const maps[] = {
	"balanced",
	"{\"embed\": \"cpu:0\", \"layers\": {\"0-1\": \"cpu:0\", \"2\": \"cpu:1\"}, \"head\": \"cpu:1\"}",
	"{\"embed\": \"cpu:2\", \"layers\": {\"0\": \"cpu:0\", \"1\": \"cpu:1\", \"2\": \"cpu:2\"}, \"head\": \"cpu:2\"}",
	"{\"embed\": \"cpu:0\", \"layers\": {\"0\": \"cpu:1\", \"1-2\": \"cpu:2\"}, \"head\": \"cpu:3\"}",
	"{\"embed\": \"cpu:1\", \"layers\": {\"0\": \"cpu:0\", \"1\": \"cpu:1\", \"2\": \"cpu:0\"}, \"head\": \"cpu:1\"}",
};
#define N_MAPS (sizeof(maps) / sizeof(maps[0]))

/* Logits of all tokens, in chunks, in scattered blocks of a model that is placed so. */
static float *
placed_logits(const char *name, const char *kernels, const char *map, int tensor_parallel, const golden *g)
{
	qwen_model *model = open_placed(name, kernels, map, tensor_parallel);
	float *logits = run_sequence(model, make_stream(g->ids, g->n, 3, 5), 7);

	qwen_model_close(model);
	return logits;
}

static void
layers_on_several_devices_give_the_same_bits(void **state)
{
	static const char *const sets[] = {"ref", "portable", "auto"};

	for (size_t i = 0; i < N_MODELS; i++)
	{
		golden g = read_golden(models[i]);
		const char *set = sets[i % 3];
		float *whole = placed_logits(models[i], set, NULL, 1, &g);

		for (size_t m = 0; m < N_MAPS; m++)
		{
			float *split = placed_logits(models[i], set, maps[m], 1, &g);

			assert_memory_equal(split, whole, (size_t) g.n * (size_t) g.vocab * sizeof(float));
			free(split);
		}
		free(whole);
		free_golden(&g);
	}
}

/* Shards of each layer, alone and with the layers divided too: at most as far from the reference as one device is. */
static void
shards_give_the_logits_of_the_reference(void **state)
{
	static const char two_stages[] = "{\"embed\": [\"cpu:0\", \"cpu:1\"], \"layers\": {\"0\": [\"cpu:0\", \"cpu:1\"], "
									 "\"1-2\": [\"cpu:3\", \"cpu:2\"]}, \"head\": [\"cpu:3\", \"cpu:2\"]}";
	const struct
	{
		const char *map;
		int shards;
	} splits[] = {{"balanced", 2}, {"balanced", 4}, {two_stages, 2}};

	for (size_t i = 0; i < N_MODELS; i++)
	{
		golden g = read_golden(models[i]);
		size_t n = (size_t) g.n * (size_t) g.vocab;

		for (size_t s = 0; s < sizeof(splits) / sizeof(splits[0]); s++)
		{
			float *got = placed_logits(models[i], "ref", splits[s].map, splits[s].shards, &g);
			double worst = distance(got, g.logits, n) / deviation(g.logits, n);

			if (!(worst <= 1e-3))
				fail_msg("%s over %d shards: logits off by %g", models[i], splits[s].shards, worst);
			free(got);
		}
		free_golden(&g);
	}
}

static void
a_step_beyond_the_limits_is_refused(void **state)
{
	qwen_model *model = open_model("qwen3", "ref");
	const qwen_batch empty = {0}, large = {.n_tokens = STEP + 1};
	qwen_error err;

	assert_int_equal(qwen_model_forward(model, &empty, NULL, &err), QWEN_INTERNAL);
	assert_int_equal(qwen_model_forward(model, &large, NULL, &err), QWEN_INTERNAL);
	qwen_model_close(model);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(logits_are_those_of_the_reference),
		cmocka_unit_test(chunks_and_scattered_blocks_change_nothing),
		cmocka_unit_test(a_crowd_changes_nothing),
		cmocka_unit_test(steps_without_logits_fill_the_cache_all_the_same),
		cmocka_unit_test(what_does_not_fit_is_refused_with_both_numbers),
		cmocka_unit_test(sizes_follow_the_settings),
		cmocka_unit_test(types_follow_the_settings),
		cmocka_unit_test(unknown_types_are_refused_with_the_known_ones),
		cmocka_unit_test(layers_on_several_devices_give_the_same_bits),
		cmocka_unit_test(shards_give_the_logits_of_the_reference),
		cmocka_unit_test(a_step_beyond_the_limits_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
