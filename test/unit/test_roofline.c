/*
 * test_roofline.c
 *	  What steps cost at least, against figures worked out by hand for the
 *	  shape of Qwen3-0.6B in bfloat16.
 */
#include "unit.h"

#include "engine/model_internal.h"
#include "engine/roofline.h"
#include "kernels/cpu/cpu_units.h"

#define LAYERS 28
#define MATRICES (1024.0 * (2 * 2048 + 2 * 1024 + 3 * 3072) * LAYERS) /* elements of all layers: 440,401,920 */
#define VOCABULARY (151936.0 * 1024)
#define TOKEN_BYTES (2.0 * LAYERS * 1024 * 2) /* keys and values of 8 heads of 128: 114,688 */

static qwen_weights tied_weights = {.bytes = (uint64_t) (2 * (MATRICES + VOCABULARY)), .has_head = true};

static const qwen_plan_share whole_share = {.n_layers = LAYERS};
static qwen_part tied_part = {.share = &whole_share, .kv_block_bytes = 16 * 1024 * 2};

static const qwen_model tied = {
	.config = {.vocab_size = 151936,
			   .hidden_size = 1024,
			   .intermediate_size = 3072,
			   .n_layers = LAYERS,
			   .n_heads = 16,
			   .n_kv_heads = 8,
			   .head_dim = 128,
			   .tied = true},
	.tp = 1,
	.weights = &tied_weights,
	.n_parts = 1,
	.parts = &tied_part,
};

#define assert_close(a, b) assert_true((a) > 0.999999 * (b) && (a) < 1.000001 * (b))

static void
decode_reads_everything_once(void **state)
{
	qwen_work work = {0};

	qwen_work_add(&work, &tied, 32, 100, 1);
	assert_close(work.bytes, 2 * (MATRICES + VOCABULARY) + 32 * 101 * TOKEN_BYTES);
	assert_close(work.linear, 32 * 2 * (MATRICES + VOCABULARY));
	assert_close(work.attention, 32 * 4.0 * LAYERS * 2048 * 101);
}

static void
prompts_need_one_row_of_the_head(void **state)
{
	qwen_work work = {0};

	qwen_work_add(&work, &tied, 1, 0, 512);
	assert_close(work.linear, 512 * 2 * MATRICES + 2 * VOCABULARY);
	assert_close(work.attention, 4.0 * LAYERS * 2048 * (512.0 * 513 / 2));
}

static void
pieces_of_a_prompt_do_the_work_of_the_whole(void **state)
{
	qwen_work whole = {0}, pieces = {0};

	qwen_work_add(&whole, &tied, 1, 0, 96);
	qwen_work_add(&pieces, &tied, 1, 0, 64);
	qwen_work_add(&pieces, &tied, 1, 64, 32);
	assert_close(pieces.attention, whole.attention);
	assert_close(pieces.linear, whole.linear + 2 * VOCABULARY);
	assert_close(pieces.bytes, whole.bytes + 2 * (MATRICES + VOCABULARY) + 64 * TOKEN_BYTES);
}

static void
an_embedding_apart_from_the_head_is_not_read(void **state)
{
	qwen_weights weights = tied_weights;
	qwen_model untied = tied;
	qwen_work work = {0};

	untied.config.tied = false;
	untied.weights = &weights;
	weights.bytes += (uint64_t) (2 * VOCABULARY);
	weights.embed.bytes = (size_t) (2 * VOCABULARY);
	qwen_work_add(&work, &untied, 1, 0, 1);
	assert_close(work.bytes, 2 * (MATRICES + VOCABULARY) + TOKEN_BYTES);
}

static void
the_longer_of_moving_and_computing_counts(void **state)
{
	const qwen_work work = {.bytes = 100, .linear = 300, .attention = 60};

	assert_close(qwen_work_seconds(&work, &(qwen_rates){.bandwidth = 10, .linear = 100, .attention = 20}), 10);
	assert_true(qwen_work_moves(&work, &(qwen_rates){.bandwidth = 10, .linear = 100, .attention = 20}));
	assert_close(qwen_work_seconds(&work, &(qwen_rates){.bandwidth = 100, .linear = 100, .attention = 20}), 6);
	assert_false(qwen_work_moves(&work, &(qwen_rates){.bandwidth = 100, .linear = 100, .attention = 20}));
	assert_close(qwen_work_seconds(&work, &(qwen_rates){.linear = 100}), 3);
	assert_true(qwen_work_seconds(&work, &(qwen_rates){0}) == 0);
}

/* Whatever they are: that the loops end, and leave the program as it was. */
static void
units_of_every_set_can_be_measured(void **state)
{
	for (const char *const *set = qwen_kernel_sets(); *set; set++)
	{
		char why[128];
		qwen_device *dev;

		if (!qwen_kernel_set_usable(*set, why, sizeof(why)))
			continue;
		dev = qwen_device_open("cpu", *set, 2, why, sizeof(why));
		assert_non_null(dev);
		for (qwen_dtype dtype = QWEN_F32; dtype <= QWEN_INT4; dtype++)
			assert_true(qwen_unit_rate(dev, dtype) > 0 || !strstr("avx2 avx512 avx512bf16", *set));
		qwen_device_close(dev);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(decode_reads_everything_once),
		cmocka_unit_test(prompts_need_one_row_of_the_head),
		cmocka_unit_test(pieces_of_a_prompt_do_the_work_of_the_whole),
		cmocka_unit_test(an_embedding_apart_from_the_head_is_not_read),
		cmocka_unit_test(the_longer_of_moving_and_computing_counts),
		cmocka_unit_test(units_of_every_set_can_be_measured),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
