/*
 * test_config.c
 *	  config.json: what is read, what is refused by name, and hostile numbers.
 */
#include "unit.h"

#include <math.h>

#include "engine/config.h"
#include "engine/config_rope.h"

#define GOLDEN "test/data/golden/"

/* A small valid file; keys given later in a file win, so tests append what they change. */
#define SMALL                                                                                                          \
	"\"vocab_size\": 512, \"hidden_size\": 64, \"intermediate_size\": 160, \"num_hidden_layers\": 3, "                 \
	"\"num_attention_heads\": 4, \"num_key_value_heads\": 2"
#define QWEN2 "{\"model_type\": \"qwen2\", " SMALL
#define QWEN3 "{\"model_type\": \"qwen3\", \"head_dim\": 32, " SMALL

static qwen_status
parse(const char *config, const char *generation, qwen_config *out, qwen_error *err)
{
	return qwen_config_parse(config, strlen(config), generation, generation ? strlen(generation) : 0, out, err);
}

static void
files_of_the_reference_are_read(void **state)
{
	qwen_config c;
	qwen_error err;

	assert_ok(qwen_config_read(GOLDEN "qwen2", &c, &err), err);
	assert_int_equal(c.arch, QWEN_ARCH_QWEN2);
	assert_string_equal(c.dtype, "bfloat16");
	assert_int_equal(c.head_dim, 16);
	assert_true(c.attention_bias && !c.output_bias && !c.qk_norm && !c.tied && !c.yarn);
	assert_true(c.rope_theta == 1e6);
	assert_int_equal(c.n_eos, 1);
	assert_int_equal(c.eos[0], 2);

	assert_ok(qwen_config_read(GOLDEN "qwen2_eps_theta", &c, &err), err);
	assert_true(c.rms_norm_eps == 1e-3f && c.rope_theta == 10000);

	assert_ok(qwen_config_read(GOLDEN "qwen3_untied_wide", &c, &err), err);
	assert_int_equal(c.arch, QWEN_ARCH_QWEN3);
	assert_int_equal(c.head_dim, 64);
	assert_true(c.qk_norm && !c.attention_bias && !c.tied);

	assert_ok(qwen_config_read(GOLDEN "qwen3_yarn", &c, &err), err);
	assert_true(c.yarn && c.yarn_factor == 4 && c.yarn_original == 64 && c.yarn_truncate);
}

static void
other_families_are_refused_by_name(void **state)
{
	static const char *const cases[][2] = {
		{GOLDEN "qwen2_moe", "\"qwen2_moe\""},          {GOLDEN "qwen3_moe", "\"qwen3_moe\""},
		{GOLDEN "qwen3_next", "\"qwen3_next\""},        {GOLDEN "qwen3_5", "\"qwen3_5_text\""},
		{GOLDEN "qwen3_5_moe", "\"qwen3_5_moe_text\""},
	};
	qwen_config c;
	qwen_error err;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		assert_int_equal(qwen_config_read(cases[i][0], &c, &err), QWEN_UNSUPPORTED);
		assert_non_null(strstr(err.message, cases[i][1]));
		assert_non_null(strstr(err.hint, "qwen3"));
	}
	assert_int_equal(parse("{\"model_type\": \"llama\"}", NULL, &c, &err), QWEN_UNSUPPORTED);
	assert_non_null(strstr(err.message, "\"llama\""));
	assert_int_equal(parse("{\"architectures\": [\"QWenLMHeadModel\"]}", NULL, &c, &err), QWEN_UNSUPPORTED);
	assert_non_null(strstr(err.detail, "first-generation"));
	/* the trunk is known, the head is not */
	assert_int_equal(parse(QWEN2 ", \"architectures\": [\"Qwen2ForSequenceClassification\"]}", NULL, &c, &err),
					 QWEN_UNSUPPORTED);
	assert_non_null(strstr(err.message, "Qwen2ForSequenceClassification"));
	assert_int_equal(parse("{}", NULL, &c, &err), QWEN_CORRUPT);
}

static void
absent_keys_get_the_defaults_of_the_reference(void **state)
{
	qwen_config c;
	qwen_error err;

	assert_ok(parse("{\"model_type\": \"qwen2\"}", NULL, &c, &err), err);
	assert_int_equal(c.vocab_size, 151936);
	assert_int_equal(c.hidden_size, 4096);
	assert_int_equal(c.intermediate_size, 22016);
	assert_int_equal(c.n_layers, 32);
	assert_int_equal(c.n_heads, 32);
	assert_int_equal(c.n_kv_heads, 32);
	assert_int_equal(c.head_dim, 128);
	assert_int_equal(c.max_position_embeddings, 32768);
	assert_true(c.rope_theta == 10000 && c.rms_norm_eps == 1e-6f && !c.tied);
	assert_true(c.temperature == 1 && c.top_p == 1 && c.top_k == 0 && c.repetition_penalty == 1 && !c.has_sampling);

	/* qwen3 never derives the size of its heads */
	assert_ok(parse("{\"model_type\": \"qwen3\", \"hidden_size\": 1024, \"num_attention_heads\": 16, "
					"\"num_key_value_heads\": 8}",
					NULL, &c, &err),
			  err);
	assert_int_equal(c.head_dim, 128);
	/* null heads mean as many as queries have */
	assert_ok(parse("{\"model_type\": \"qwen2\", \"num_attention_heads\": 16, \"num_key_value_heads\": null}", NULL, &c,
					&err),
			  err);
	assert_int_equal(c.n_kv_heads, 16);
	assert_ok(parse("{\"architectures\": [\"Qwen3ForCausalLM\"], \"attention_bias\": true}", NULL, &c, &err), err);
	assert_true(c.attention_bias && c.output_bias);
}

static void
both_spellings_of_rope_are_read(void **state)
{
	qwen_config c;
	qwen_error err;

	assert_ok(parse(QWEN3 ", \"rope_theta\": 1000000}", NULL, &c, &err), err); /* an integer */
	assert_true(c.rope_theta == 1e6);
	assert_ok(parse(QWEN3
					", \"rope_theta\": 5, \"rope_parameters\": {\"rope_theta\": 7e5, \"rope_type\": \"default\"}}",
					NULL, &c, &err),
			  err);
	assert_true(c.rope_theta == 7e5 && !c.yarn);
	assert_ok(parse(QWEN3 ", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4, "
						  "\"original_max_position_embeddings\": 32768}}",
					NULL, &c, &err),
			  err);
	assert_true(c.yarn && c.yarn_original == 32768);
	assert_ok(parse(QWEN3 ", \"rope_parameters\": {\"rope_type\": \"yarn\", \"factor\": 2.0, \"rope_theta\": 1e6, "
						  "\"attention_factor\": 1.5, \"beta_fast\": 16, \"truncate\": false}}",
					NULL, &c, &err),
			  err);
	assert_true(c.yarn && c.yarn_attention_factor == 1.5 && c.yarn_beta_fast == 16 && !c.yarn_truncate);
	assert_ok(parse(QWEN3
					", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4, \"mscale\": 1, \"mscale_all_dim\": 2}}",
					NULL, &c, &err),
			  err);
	assert_float_equal(c.yarn_attention_factor, (0.1 * log(4) + 1) / (0.2 * log(4) + 1), 1e-12);
}

/* What config.json of Qwen3-8B says, with or without the scaling of its documentation. */
static void
frequencies(bool yarn, double *inv_freq, qwen_config *c)
{
	qwen_error err;

	assert_ok(parse(yarn ? "{\"model_type\": \"qwen3\", \"rope_theta\": 1000000, \"max_position_embeddings\": 40960, "
						   "\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4.0, "
						   "\"original_max_position_embeddings\": 32768}}"
						 : "{\"model_type\": \"qwen3\", \"rope_theta\": 1000000}",
					NULL, c, &err),
			  err);
	qwen_rope_frequencies(c, inv_freq);
}

static void
frequencies_have_the_published_values(void **state)
{
	static const struct
	{
		int i;
		double value;
	} scaled[] = {{0, 1},
				  {1, 0.8058421878},
				  {23, 6.978305849e-3},
				  {24, 5.375321491e-3},
				  {31, 8.029597275e-4},
				  {40, 4.445698525e-5},
				  {63, 3.102344402e-7}},
	  plain[] = {{0, 1}, {31, 1.240937761e-3}, {32, 1e-3}, {63, 1.240937761e-6}};
	double inv_freq[256];
	qwen_config c;

	frequencies(true, inv_freq, &c);
	assert_float_equal(c.yarn_attention_factor, 1.138629436, 1e-9);
	for (size_t i = 0; i < sizeof(scaled) / sizeof(scaled[0]); i++)
		assert_true(fabs(inv_freq[scaled[i].i] / scaled[i].value - 1) < 1e-9);
	frequencies(false, inv_freq, &c);
	for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++)
		assert_true(fabs(inv_freq[plain[i].i] / plain[i].value - 1) < 1e-9);
}

static void
rows_of_the_table_are_cosines_and_sines(void **state)
{
	double inv_freq[256];
	float rows[2 * 128];
	qwen_config c;

	frequencies(true, inv_freq, &c);
	qwen_rope_rows(&c, 100000, 2, rows);
	for (int i = 0; i < 64; i++)
	{
		assert_float_equal(rows[128 + i], cos(100001 * inv_freq[i]) * c.yarn_attention_factor, 1e-6);
		assert_float_equal(rows[128 + 64 + i], sin(100001 * inv_freq[i]) * c.yarn_attention_factor, 1e-6);
	}
}

static void
keys_that_change_the_mathematics_are_refused_by_name(void **state)
{
	static const char *const cases[][2] = {
		{QWEN2 ", \"use_sliding_window\": true, \"max_window_layers\": 2}", "use_sliding_window"},
		{QWEN3 ", \"layer_types\": [\"full_attention\", \"sliding_attention\", \"full_attention\"]}",
		 "sliding_attention"},
		{QWEN2 ", \"hidden_act\": \"gelu\"}", "hidden_act gelu"},
		{QWEN2 ", \"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4}}", "quantization_config gptq"},
		{QWEN3 ", \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2}}", "rope type dynamic"},
		{QWEN3 ", \"rope_scaling\": {\"factor\": 2}}", "rope type"},
		{QWEN3 ", \"rope_parameters\": {\"rope_type\": \"llama3\"}}", "rope type llama3"},
		{QWEN3 ", \"rope_scaling\": {\"type\": \"default\", \"mrope_section\": [16, 24, 24]}}", "mrope_section"},
		{QWEN3 ", \"partial_rotary_factor\": 0.25}", "partial_rotary_factor"},
		{QWEN3 ", \"rope_parameters\": {\"partial_rotary_factor\": 0.5}}", "partial_rotary_factor"},
		{QWEN3 ", \"attn_output_gate\": true}", "attn_output_gate"},
		{QWEN3 ", \"use_qk_norm\": false}", "use_qk_norm"},
		{QWEN3 ", \"num_experts\": 8}", "num_experts"},
	};
	qwen_config c;
	qwen_error err;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		assert_int_equal(parse(cases[i][0], NULL, &c, &err), QWEN_UNSUPPORTED);
		assert_non_null(strstr(err.message, cases[i][1]));
	}
}

static void
keys_that_agree_or_do_not_matter_pass(void **state)
{
	static const char *const cases[] = {
		QWEN2 ", \"use_sliding_window\": false, \"sliding_window\": 4096}",
		QWEN2 ", \"use_sliding_window\": true, \"max_window_layers\": 3}", /* no layer is beyond it */
		QWEN2 ", \"use_sliding_window\": true, \"max_window_layers\": 0, \"sliding_window\": null}",
		QWEN3 ", \"use_qk_norm\": true, \"quantization_config\": null, \"rope_scaling\": null}",
		QWEN3 ", \"layer_types\": [\"full_attention\", \"full_attention\", \"full_attention\"]}",
		QWEN3 ", \"time_step_limit\": [0.0, Infinity], \"other\": NaN, \"text\": \"NaN \\\" -Infinity\"}",
	};
	qwen_config c;
	qwen_error err;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		assert_ok(parse(cases[i], NULL, &c, &err), err);
}

static void
hostile_numbers_are_refused(void **state)
{
	static const char *const cases[][2] = {
		{QWEN2 ", \"vocab_size\": 0}", "vocab_size"},
		{QWEN2 ", \"vocab_size\": 99999999999}", "vocab_size"},
		{QWEN2 ", \"hidden_size\": -64}", "hidden_size"},
		{QWEN2 ", \"hidden_size\": 64.5}", "hidden_size"},
		{QWEN2 ", \"hidden_size\": \"64\"}", "hidden_size"},
		{QWEN2 ", \"hidden_size\": 1e30}", "hidden_size"},
		{QWEN2 ", \"intermediate_size\": 2147483648}", "intermediate_size"},
		{QWEN2 ", \"num_hidden_layers\": 100000}", "num_hidden_layers"},
		{QWEN2 ", \"num_attention_heads\": 3}", "num_attention_heads"},
		{QWEN2 ", \"num_key_value_heads\": 0}", "num_key_value_heads"},
		{QWEN2 ", \"num_key_value_heads\": 8}", "num_key_value_heads"},
		{QWEN2 ", \"max_position_embeddings\": 1e9}", "max_position_embeddings"},
		{QWEN2 ", \"rms_norm_eps\": 0}", "rms_norm_eps"},
		{QWEN2 ", \"rms_norm_eps\": NaN}", "rms_norm_eps"},
		{QWEN2 ", \"rms_norm_eps\": -Infinity}", "rms_norm_eps"},
		{QWEN2 ", \"rope_theta\": Infinity}", "rope_theta"},
		{QWEN2 ", \"rope_theta\": 0}", "rope_theta"},
		{QWEN2 ", \"tie_word_embeddings\": 1}", "tie_word_embeddings"},
		{QWEN3 ", \"head_dim\": 100000}", "head_dim"},
		{QWEN3 ", \"rope_scaling\": {\"type\": \"yarn\"}}", "no factor"},
		{QWEN3 ", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 0}}", "factor"},
		{QWEN3 ", \"rope_scaling\": []}", "rope scaling"},
		{QWEN3 ", \"rope_parameters\": 3}", "rope_parameters"},
		{QWEN3 ", \"layer_types\": [\"full_attention\"]}", "layer_types"},
		{QWEN3 ", \"eos_token_id\": 512}", "eos_token_id"},
		{QWEN3 ", \"eos_token_id\": [1, -1]}", "eos_token_id"},
		{"[]", "object"},
		{"{\"model_type\"", "JSON"},
		{"", "JSON"},
	};
	qwen_config c;
	qwen_error err;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		assert_int_equal(parse(cases[i][0], NULL, &c, &err), QWEN_CORRUPT);
		assert_non_null(strstr(err.message, cases[i][1]));
	}
	assert_int_equal(parse(QWEN3 ", \"head_dim\": 33}", NULL, &c, &err), QWEN_UNSUPPORTED);
	assert_int_equal(parse(QWEN2 ", \"num_attention_heads\": 256, \"hidden_size\": 512, \"num_key_value_heads\": 1}",
						   NULL, &c, &err),
					 QWEN_UNSUPPORTED);
}

static void
end_tokens_are_the_union_of_both_files(void **state)
{
	qwen_config c;
	qwen_error err;

	assert_ok(parse(QWEN3 ", \"eos_token_id\": 7}", "{\"eos_token_id\": [9, 7, 8]}", &c, &err), err);
	assert_int_equal(c.n_eos, 3);
	assert_int_equal(c.eos[0], 7);
	assert_int_equal(c.eos[1], 9);
	assert_int_equal(c.eos[2], 8);
	assert_ok(parse(QWEN3 ", \"eos_token_id\": null}", "{}", &c, &err), err);
	assert_int_equal(c.n_eos, 0);
}

static void
sampling_defaults_come_from_the_generation_file(void **state)
{
	qwen_config c;
	qwen_error err;

	assert_ok(parse(QWEN3 "}",
					"{\"do_sample\": true, \"temperature\": 0.6, \"top_p\": 0.95, \"top_k\": 20, "
					"\"repetition_penalty\": 1.05, \"min_p\": 0}",
					&c, &err),
			  err);
	assert_true(c.has_sampling && c.temperature == 0.6f && c.top_p == 0.95f && c.top_k == 20 &&
				c.repetition_penalty == 1.05f);
	assert_int_equal(parse(QWEN3 "}", "{\"temperature\": -1}", &c, &err), QWEN_CORRUPT);
	assert_int_equal(parse(QWEN3 "}", "not json", &c, &err), QWEN_CORRUPT);
}

static void
parameters_are_the_published_ones(void **state)
{
	static const struct
	{
		const char *config;
		uint64_t parameters;
	} cases[] = {
		{"{\"model_type\": \"qwen3\", \"hidden_size\": 1024, \"num_hidden_layers\": 28, \"num_attention_heads\": 16, "
		 "\"num_key_value_heads\": 8, \"intermediate_size\": 3072, \"tie_word_embeddings\": true}",
		 596049920},
		{"{\"model_type\": \"qwen3\", \"num_hidden_layers\": 36, \"num_key_value_heads\": 8, "
		 "\"intermediate_size\": 12288}",
		 8190735360},
		{"{\"model_type\": \"qwen2\", \"hidden_size\": 896, \"num_hidden_layers\": 24, \"num_attention_heads\": 14, "
		 "\"num_key_value_heads\": 2, \"intermediate_size\": 4864, \"tie_word_embeddings\": true}",
		 494032768},
		{"{\"model_type\": \"qwen2\", \"hidden_size\": 5120, \"num_hidden_layers\": 40, \"num_attention_heads\": 40, "
		 "\"num_key_value_heads\": 40, \"intermediate_size\": 13696, \"vocab_size\": 152064}",
		 14167290880},
	};
	qwen_config c;
	qwen_error err;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		assert_ok(parse(cases[i].config, NULL, &c, &err), err);
		assert_true(qwen_config_parameters(&c) == cases[i].parameters);
	}
}

static void
a_folder_without_a_config_says_so(void **state)
{
	qwen_config c;
	qwen_error err;

	assert_int_equal(qwen_config_read("test/data/no-such-model", &c, &err), QWEN_NOT_FOUND);
	assert_non_null(strstr(err.message, "test/data/no-such-model/config.json"));
	assert_non_null(strstr(err.hint, "qwen.model"));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(files_of_the_reference_are_read),
		cmocka_unit_test(other_families_are_refused_by_name),
		cmocka_unit_test(absent_keys_get_the_defaults_of_the_reference),
		cmocka_unit_test(both_spellings_of_rope_are_read),
		cmocka_unit_test(frequencies_have_the_published_values),
		cmocka_unit_test(rows_of_the_table_are_cosines_and_sines),
		cmocka_unit_test(keys_that_change_the_mathematics_are_refused_by_name),
		cmocka_unit_test(keys_that_agree_or_do_not_matter_pass),
		cmocka_unit_test(hostile_numbers_are_refused),
		cmocka_unit_test(end_tokens_are_the_union_of_both_files),
		cmocka_unit_test(sampling_defaults_come_from_the_generation_file),
		cmocka_unit_test(parameters_are_the_published_ones),
		cmocka_unit_test(a_folder_without_a_config_says_so),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
