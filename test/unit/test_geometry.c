/*
 * test_geometry.c
 *	  Shapes from config.json: the published numbers, the checkpoints in
 *	  test/data, and what is refused.
 */
#include "unit.h"

#include <math.h>

#include "engine/config.h"
#include "engine/geometry.h"
#include "plan_models.h"

#define GOLDEN "test/data/golden/"

#define SMALL                                                                                                          \
	"\"vocab_size\": 512, \"hidden_size\": 64, \"intermediate_size\": 160, \"num_hidden_layers\": 8, "                 \
	"\"num_attention_heads\": 4, \"num_key_value_heads\": 2"
#define SPARSE                                                                                                         \
	SMALL ", \"num_experts\": 6, \"num_experts_per_tok\": 2, \"moe_intermediate_size\": 48, "                          \
		  "\"shared_expert_intermediate_size\": 96"

static qwen_status
parse(const char *config, qwen_geometry *g, qwen_error *err)
{
	return qwen_geometry_parse(config, strlen(config), g, err);
}

static void
parameters_are_the_published_ones(void **state)
{
	for (int i = 0; i < N_MODELS; i++)
	{
		const released *m = &models[i];
		qwen_geometry g;
		double parameters;

		read_model(m, &g);
		parameters = (double) qwen_geometry_parameters(&g);
		if (fabs(parameters - m->parameters) > m->tolerance)
			fail_msg("%s has %.0f parameters, not %.0f", m->name, parameters, m->parameters);
	}
}

/* Its file holds no head, which config.json does not say. */
static void
an_embedding_model_without_a_head_lacks_just_that(void **state)
{
	released m = *find_model("Qwen3-8B");
	qwen_geometry g;

	m.vocab = 151665;
	read_model(&m, &g);
	assert_int_equal(qwen_geometry_parameters(&g) - 151665ull * 4096, 7567295488ull);
}

static void
keys_and_values_take_what_the_table_says(void **state)
{
	for (int i = 0; i < N_MODELS; i++)
	{
		qwen_geometry g;
		int full = 0;

		read_model(&models[i], &g);
		for (int layer = 0; layer < g.n_layers; layer++)
			full += !(g.kinds[layer] & QWEN_LAYER_LINEAR);
		assert_int_equal(2 * full * g.n_kv_heads * g.head_dim * 2, models[i].kv_token);
	}
}

/* Elements of the checkpoints that the reference wrote for these files, one of each family and more. */
static void
checkpoints_hold_what_the_geometry_says(void **state)
{
	static const struct
	{
		const char *folder;
		uint64_t elements;
	} cases[] = {
		{"qwen2", 195392},         {"qwen2_eps_theta", 189152}, {"qwen2_mha_tied", 175104},    {"qwen2_moe", 325760},
		{"qwen2_sharded", 195392}, {"qwen3", 199296},           {"qwen3_5", 274120},           {"qwen3_5_moe", 447944},
		{"qwen3_moe", 319104},     {"qwen3_next", 447944},      {"qwen3_untied_wide", 532512}, {"qwen3_yarn", 199296},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		char path[128];
		qwen_geometry g;
		qwen_error err;

		snprintf(path, sizeof(path), GOLDEN "%s", cases[i].folder);
		assert_ok(qwen_geometry_read(path, &g, &err), err);
		if (qwen_geometry_parameters(&g) != cases[i].elements)
			fail_msg("%s: %llu elements, not %llu", path, (unsigned long long) qwen_geometry_parameters(&g),
					 (unsigned long long) cases[i].elements);
	}
}

/* For the families that both know, config.c and geometry.c say the same. */
static void
loader_and_planner_agree(void **state)
{
	static const char *const folders[] = {"qwen2", "qwen2_mha_tied", "qwen3", "qwen3_untied_wide", "qwen3_yarn"};

	for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++)
	{
		char path[128];
		qwen_config c;
		qwen_geometry g;
		qwen_error err;

		snprintf(path, sizeof(path), GOLDEN "%s", folders[i]);
		assert_ok(qwen_config_read(path, &c, &err), err);
		assert_ok(qwen_geometry_read(path, &g, &err), err);
		assert_int_equal(qwen_config_parameters(&c), qwen_geometry_parameters(&g));
		assert_true(c.tied == g.tied && c.head_dim == g.head_dim && c.max_position_embeddings == g.max_positions);
		assert_string_equal(c.dtype, g.dtype);
		if (c.yarn)
			assert_int_equal(g.length_limit, (int) (c.yarn_factor * c.yarn_original) > g.max_positions
												 ? (int) (c.yarn_factor * c.yarn_original)
												 : g.max_positions);
	}
}

static void
layers_are_of_the_kind_that_the_file_says(void **state)
{
	static const struct
	{
		const char *config;
		const char *kinds; /* . dense, s sparse, l linear, L linear and sparse */
	} cases[] = {
		{"{\"model_type\": \"qwen2\", " SMALL "}", "........"},
		{"{\"model_type\": \"qwen2_moe\", " SPARSE "}", "ssssssss"},
		{"{\"model_type\": \"qwen2_moe\", \"decoder_sparse_step\": 2, " SPARSE "}", ".s.s.s.s"},
		{"{\"model_type\": \"qwen3_moe\", \"mlp_only_layers\": [0, 3, 99], " SPARSE "}", ".ss.ssss"},
		{"{\"model_type\": \"qwen3_moe\", \"num_experts\": 0, " SMALL "}", "........"},
		{"{\"model_type\": \"qwen3_next\", " SPARSE "}", "LLLsLLLs"},
		{"{\"model_type\": \"qwen3_next\", \"full_attention_interval\": 2, \"mlp_only_layers\": [0], " SPARSE "}",
		 "lsLsLsLs"},
		{"{\"model_type\": \"qwen3_5\", \"text_config\": {" SMALL "}}", "lll.lll."},
		{"{\"model_type\": \"qwen3_5\", \"text_config\": {\"layer_types\": [\"full_attention\", \"full_attention\", "
		 "\"linear_attention\", \"linear_attention\", \"linear_attention\", \"linear_attention\", "
		 "\"linear_attention\", \"full_attention\"], " SMALL "}}",
		 "..lllll."},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		char kinds[9] = "";
		qwen_geometry g;
		qwen_error err;

		assert_ok(parse(cases[i].config, &g, &err), err);
		for (int layer = 0; layer < g.n_layers; layer++)
			kinds[layer] = ".lsL"[g.kinds[layer]];
		assert_string_equal(kinds, cases[i].kinds);
	}
}

static void
wrappers_keep_their_tie_at_the_root(void **state)
{
	qwen_geometry g;
	qwen_error err;

	assert_ok(
		parse("{\"model_type\": \"qwen3_5\", \"tie_word_embeddings\": true, \"text_config\": {" SMALL "}}", &g, &err),
		err);
	assert_true(g.tied && g.gated && g.rotary == 64);
	assert_ok(parse("{\"model_type\": \"qwen3_5_text\", \"tie_word_embeddings\": true, " SMALL "}", &g, &err), err);
	assert_true(g.tied);
}

static void
what_cannot_be_planned_is_refused(void **state)
{
	static const struct
	{
		const char *config;
		const char *message;
	} cases[] = {
		{"[]", "JSON object"},
		{"{}", "model_type"},
		{"{\"model_type\": \"llama\"}", "\"llama\""},
		{"{\"model_type\": \"qwen2_vl\"}", "\"qwen2_vl\""},
		{"{\"model_type\": \"qwen3\", \"architectures\": [\"Qwen3ForSequenceClassification\"]}", "Classification"},
		{"{\"model_type\": \"qwen2\", \"hidden_size\": 0}", "hidden_size"},
		{"{\"model_type\": \"qwen2\", \"hidden_size\": 1e18}", "hidden_size"},
		{"{\"model_type\": \"qwen2\", \"num_hidden_layers\": 1025}", "num_hidden_layers"},
		{"{\"model_type\": \"qwen2\", \"num_attention_heads\": 7}", "query heads"},
		{"{\"model_type\": \"qwen2\", \"hidden_size\": 100, \"num_attention_heads\": 32}", "hidden_size"},
		{"{\"model_type\": \"qwen3\", \"head_dim\": 513}", "head_dim"},
		{"{\"model_type\": \"qwen3\", \"head_dim\": 127}", "127 elements"},
		{"{\"model_type\": \"qwen3_moe\", \"num_experts\": 4, \"num_experts_per_tok\": 8}", "num_experts_per_tok"},
		{"{\"model_type\": \"qwen3_moe\", \"num_experts\": 1e9}", "num_experts"},
		{"{\"model_type\": \"qwen3_moe\", \"mlp_only_layers\": [\"a\"]}", "mlp_only_layers"},
		{"{\"model_type\": \"qwen3_moe\", \"decoder_sparse_step\": 0}", "decoder_sparse_step"},
		{"{\"model_type\": \"qwen3_next\", \"linear_num_value_heads\": 33}", "value heads"},
		{"{\"model_type\": \"qwen2\", \"layer_types\": [\"full_attention\"]}", "layer_types"},
		{"{\"model_type\": \"qwen2\", \"num_hidden_layers\": 1, \"layer_types\": [\"linear_attention\"]}",
		 "layer_types"},
		{"{\"model_type\": \"qwen2\", \"use_sliding_window\": true}", "sliding windows"},
		{"{\"model_type\": \"qwen2\", \"quantization_config\": {\"quant_method\": \"gptq\"}}", "quantization_config"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		qwen_geometry g;
		qwen_error err;

		if (parse(cases[i].config, &g, &err) == QWEN_OK)
			fail_msg("accepted: %s", cases[i].config);
		if (!strstr(err.message, cases[i].message))
			fail_msg("\"%s\" does not say \"%s\"", err.message, cases[i].message);
	}
}

/* The largest of everything: no size may overflow. */
static void
the_bounds_leave_room_for_every_sum(void **state)
{
	qwen_geometry g;
	qwen_error err;

	assert_ok(parse("{\"model_type\": \"qwen3_next\", \"vocab_size\": 4194304, \"hidden_size\": 65536, "
					"\"num_hidden_layers\": 1024, \"num_attention_heads\": 1024, \"num_key_value_heads\": 1024, "
					"\"head_dim\": 512, \"num_experts\": 4096, \"moe_intermediate_size\": 524288, "
					"\"shared_expert_intermediate_size\": 524288, \"linear_num_value_heads\": 1024, "
					"\"linear_num_key_heads\": 1024, \"linear_value_head_dim\": 512, \"linear_key_head_dim\": 512}",
					&g, &err),
			  err);
	assert_true(qwen_geometry_parameters(&g) > 1ull << 58 && qwen_geometry_parameters(&g) < 1ull << 60);
}

static void
division_needs_whole_heads_and_columns(void **state)
{
	static const struct
	{
		const char *model;
		int shards;
		const char *detail; /* NULL: it divides */
	} cases[] = {
		{"Qwen1.5-14B", 2, NULL},        {"Qwen1.5-14B", 4, NULL},
		{"Qwen1.5-14B", 3, "40 query"},  {"Qwen2.5-0.5B", 2, NULL},
		{"Qwen2.5-0.5B", 4, "14 query"}, {"Qwen3-8B", 16, NULL}, /* 8 kv heads on 16 devices */
		{"Qwen3-0.6B", 16, NULL},        {"Qwen3-Embedding-0.6B", 2, "151669 rows"},
		{"Qwen3-30B-A3B", 8, NULL},      {"Qwen2.5-7B", 7, "18944 feed-forward"},
		{"Qwen3-Next-80B-A3B", 4, NULL}, {"Qwen3.5-27B", 8, NULL},
		{"Qwen3.5-27B", 16, "24 query"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		qwen_geometry g;
		qwen_error err;
		qwen_status rc;

		read_model(find_model(cases[i].model), &g);
		rc = qwen_geometry_splits(&g, cases[i].shards, &err);
		assert_int_equal(rc, cases[i].detail ? QWEN_INVALID : QWEN_OK);
		if (cases[i].detail && !strstr(err.detail, cases[i].detail))
			fail_msg("%s by %d: \"%s\"", cases[i].model, cases[i].shards, err.detail);
	}
}

static void
paths_may_name_folder_or_file(void **state)
{
	qwen_geometry g;
	qwen_error err;

	assert_ok(qwen_geometry_read(GOLDEN "qwen3/config.json", &g, &err), err);
	assert_ok(qwen_geometry_read("test/data/plan/Qwen1.5-14B-Chat.json", &g, &err), err);
	assert_int_equal(qwen_geometry_parameters(&g), 14167290880ull);
	assert_int_equal(qwen_geometry_read("/models/x.gguf", &g, &err), QWEN_UNSUPPORTED);
	assert_int_equal(qwen_geometry_read("test/data/none", &g, &err), QWEN_NOT_FOUND);
	assert_int_equal(qwen_geometry_read("test/data", &g, &err), QWEN_NOT_FOUND);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(parameters_are_the_published_ones),
		cmocka_unit_test(an_embedding_model_without_a_head_lacks_just_that),
		cmocka_unit_test(keys_and_values_take_what_the_table_says),
		cmocka_unit_test(checkpoints_hold_what_the_geometry_says),
		cmocka_unit_test(loader_and_planner_agree),
		cmocka_unit_test(layers_are_of_the_kind_that_the_file_says),
		cmocka_unit_test(wrappers_keep_their_tie_at_the_root),
		cmocka_unit_test(what_cannot_be_planned_is_refused),
		cmocka_unit_test(the_bounds_leave_room_for_every_sum),
		cmocka_unit_test(division_needs_whole_heads_and_columns),
		cmocka_unit_test(paths_may_name_folder_or_file),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
