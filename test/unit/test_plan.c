/*
 * test_plan.c
 *	  Plans of released models on sets of devices, checked term by term
 *	  against the formulas of the specification, computed here.
 */
#include "unit.h"

#include "engine/config.h"
#include "engine/model_internal.h"
#include "engine/plan.h"
#include "plan_formulas.h"

/* ---- checks ---- */

static void
check_term(const char *model, const char *device, const char *term, uint64_t is, uint64_t should)
{
	if (is != should)
		fail_msg("%s on %s: %s is %llu, not %llu", model, device, term, (unsigned long long) is,
				 (unsigned long long) should);
}

static void
check_device(const figures *f, const qwen_plan *plan, int device)
{
	const qwen_plan_share *share = &plan->devices[device];
	const qwen_plan_usage *u = &share->usage, e = expected_usage(f, plan, device);
	const struct
	{
		const char *name;
		uint64_t is;
		uint64_t should;
	} terms[] = {
		{"embed", u->embed, e.embed},
		{"layers", u->layers, e.layers},
		{"head", u->head, e.head},
		{"kv", u->kv, e.kv},
		{"state", u->state, e.state},
		{"activations", u->activations, e.activations},
		{"logits", u->logits, e.logits},
		{"rope", u->rope, e.rope},
		{"overhead", u->overhead, e.overhead},
		{"margin", u->margin, e.margin},
	};

	for (size_t i = 0; i < sizeof(terms) / sizeof(terms[0]); i++)
		check_term(f->m->name, share->device.name, terms[i].name, terms[i].is, terms[i].should);
	if (plan->fits)
		assert_true(qwen_plan_total(u) <= share->budget);
}

/* Of a refusal: the worst device lacks just what is missing. */
static void
check_missing(const qwen_plan *plan)
{
	uint64_t worst = 0;

	for (int i = 0; i < plan->n_devices; i++)
	{
		uint64_t total = qwen_plan_total(&plan->devices[i].usage);

		if (total > plan->devices[i].budget)
			worst = most(worst, total - plan->devices[i].budget);
	}
	assert_true(worst > 0);
	assert_int_equal(plan->missing_bytes, worst);
	assert_int_equal(qwen_plan_total(&plan->devices[plan->missing_device].usage) -
						 plan->devices[plan->missing_device].budget,
					 worst);
}

/* Puts a remedy's settings in place of the original ones. */
static void
apply_remedy(const qwen_plan_remedy *r, qwen_plan_settings *s)
{
	for (int i = 0; i < r->n; i++)
	{
		const char *name = r->changes[i].name, *value = r->changes[i].value;

		if (!strcmp(name, "device_map"))
			s->device_map = value;
		else if (!strcmp(name, "max_memory"))
			s->max_memory = value;
		else if (!strcmp(name, "quantization"))
			s->quantization = value;
		else if (!strcmp(name, "kv_dtype"))
			s->kv_dtype = value;
		else if (!strcmp(name, "offload"))
			s->offload = value;
		else if (!strcmp(name, "tensor_parallel"))
			s->tensor_parallel = atoi(value);
		else if (!strcmp(name, "max_model_len"))
			s->max_model_len = atoi(value);
		else if (!strcmp(name, "max_sequences"))
			s->max_sequences = atoi(value);
		else if (!strcmp(name, "kv_memory"))
			s->kv_memory = 0;
		else
			fail_msg("a remedy changes %s", name);
	}
}

/* Every remedy, applied, plans, and its text says what it changes. */
static void
check_remedies(const qwen_geometry *g, const qwen_plan_settings *settings, const qwen_plan_device *devices, int n,
			   const qwen_plan *refused)
{
	for (int i = 0; i < refused->n_remedies; i++)
	{
		const qwen_plan_remedy *r = &refused->remedies[i];
		qwen_plan_settings s = *settings;
		qwen_plan plan;
		qwen_error err;

		apply_remedy(r, &s);
		assert_ok(qwen_plan_make(g, &s, devices, n, &plan, &err), err);
		if (!plan.fits)
			fail_msg("no remedy: %s", r->text);
		for (int j = 0; j < r->n; j++)
		{
			char statement[96];

			snprintf(statement, sizeof(statement), "ALTER SYSTEM SET qwen.%s = '%s';", r->changes[j].name,
					 r->changes[j].value);
			assert_non_null(strstr(r->text, statement));
		}
	}
}

static void
describe(const char *text, qwen_plan_device *devices, int *n)
{
	qwen_error err;

	assert_ok(qwen_plan_describe(text, devices, n, &err), err);
}

/* Plans a released model on described devices; the settings must be valid. */
static void
make(const char *model, const char *text, const qwen_plan_settings *settings, qwen_plan *plan)
{
	qwen_plan_device devices[QWEN_PLAN_MAX_DEVICES];
	qwen_geometry g;
	qwen_error err;
	int n;

	read_model(find_model(model), &g);
	describe(text, devices, &n);
	assert_ok(qwen_plan_make(&g, settings, devices, n, plan, &err), err);
	if (!plan->fits)
	{
		check_missing(plan);
		check_remedies(&g, settings, devices, n, plan);
	}
}

/* ---- the table ---- */

/*
 * blocks: of the cache; 0: refused.  They were found outside of the planner, by trying every way to cut the model into
 * pieces; -1: it fits, and how much an automatic cache takes is another matter (processors, recurrent state).
 */
static const struct
{
	const char *model;
	const char *devices;
	qwen_plan_settings settings;
	int64_t blocks;
} cases[] = {
	{"Qwen1.5-14B", "4x22GiB", {}, 4397},
	{"Qwen1.5-14B", "1x22GiB", {}, 0},
	{"Qwen1.5-14B", "1x24GiB", {.quantization = "int8"}, 0},
	{"Qwen1.5-14B", "1x24GiB", {.quantization = "int8", .max_model_len = 8192}, 749},
	{"Qwen1.5-14B", "1x24GiB", {.quantization = "int4", .kv_dtype = "int8"}, 2325},
	{"Qwen1.5-14B", "1x40GiB", {}, 0},
	{"Qwen1.5-14B", "1x40GiB", {.max_model_len = 8192}, 1012},
	{"Qwen1.5-14B", "1x40GiB", {.quantization = "int8"}, 2058},
	{"Qwen1.5-14B", "3x12GiB", {}, 0},
	{"Qwen1.5-14B", "3x12GiB", {.max_model_len = 4096}, 458},
	{"Qwen1.5-14B", "3x12GiB", {.quantization = "int8", .kv_dtype = "int8"}, 2961},
	{"Qwen1.5-14B", "4x22GiB", {.tensor_parallel = 2}, 4650},
	{"Qwen1.5-14B", "4x22GiB", {.tensor_parallel = 4}, 4677},
	{"Qwen1.5-14B", "1x80GiB", {}, 4288},
	{"Qwen1.5-14B", "2x80GiB,1x24GiB", {.device_map = "balanced"}, 12173},
	{"Qwen1.5-0.5B", "1x8GiB", {}, 4137},
	{"Qwen1.5-1.8B", "1x8GiB", {}, 0},
	{"Qwen1.5-1.8B", "1x12GiB", {}, 2543},
	{"Qwen1.5-4B", "1x24GiB", {}, 2538},
	{"Qwen1.5-7B", "2x16GiB", {}, 0},
	{"Qwen1.5-7B", "2x24GiB", {.device_map = "balanced"}, 3992},
	{"Qwen1.5-32B", "4x24GiB", {}, 7261},
	{"Qwen1.5-72B", "8x24GiB", {}, 0},
	{"Qwen1.5-72B", "4x80GiB", {.tensor_parallel = 4}, 4624},
	{"Qwen1.5-110B", "4x80GiB", {}, 20959},
	{"Qwen1.5-MoE-A2.7B", "2x24GiB", {}, 6506},
	{"Qwen2.5-0.5B", "1x4GiB", {}, 10944},
	{"Qwen2.5-0.5B", "cpu=4GiB", {}, -1},
	{"Qwen2.5-1.5B", "cpu=16GiB", {}, -1},
	{"Qwen2.5-3B", "1x8GiB", {.quantization = "int8"}, 7089},
	{"Qwen2.5-7B", "1x16GiB", {}, 0},
	{"Qwen2.5-7B", "1x16GiB", {.quantization = "int8"}, 8738},
	{"Qwen2.5-7B", "1x24GiB", {}, 10059},
	{"Qwen2.5-7B", "4x22GiB", {.tensor_parallel = 4}, 81182},
	{"Qwen2.5-14B", "2x22GiB", {}, 4768},
	{"Qwen2.5-32B", "2x40GiB", {}, 4192},
	{"Qwen2.5-32B", "1x40GiB", {.quantization = "int8", .max_model_len = 8192}, 1854},
	{"Qwen2.5-72B", "4x40GiB", {}, 3437},
	{"Qwen2.5-72B", "2x40GiB", {.quantization = "int4", .kv_dtype = "int8"}, 15090},
	{"Qwen2-57B-A14B", "2x80GiB", {}, 59040},
	{"Qwen3-0.6B", "cpu=16GiB", {}, -1},
	{"Qwen3-1.7B", "cpu=8GiB", {}, -1},
	{"Qwen3-4B", "1x16GiB", {}, 3322},
	{"Qwen3-8B", "1x24GiB", {}, 3423},
	{"Qwen3-8B", "2x16GiB", {}, 6508},
	{"Qwen3-8B", "16x24GiB", {.tensor_parallel = 16}, 79922},
	{"Qwen3-14B", "1x80GiB,1x24GiB", {}, 20979},
	{"Qwen3-14B", "1x40GiB", {}, 4595},
	{"Qwen3-14B", "2x16GiB,1x24GiB", {}, 9916},
	{"Qwen3-32B", "1x80GiB", {}, 4501},
	{"Qwen3-32B", "2x48GiB", {.tensor_parallel = 2}, 8297},
	{"Qwen3-30B-A3B", "1x80GiB", {}, 14962},
	{"Qwen3-30B-A3B", "1x24GiB", {.quantization = "int4", .kv_dtype = "int8", .max_model_len = 16384}, 8629},
	{"Qwen3-235B-A22B", "8x80GiB", {}, 63244},
	{"Qwen3-235B-A22B", "4x80GiB", {.quantization = "int4"}, 64813},
	{"Qwen3-Coder-480B-A35B", "8x141GiB", {.max_model_len = 65536}, 50436},
	{"Qwen3-Coder-480B-A35B", "16x80GiB", {.tensor_parallel = 8}, 96250},
	{"Qwen3-Next-80B-A3B", "2x80GiB", {}, -1},
	{"Qwen3-Next-80B-A3B", "2x80GiB", {.quantization = "int8"}, -1},
	{"Qwen3.5-0.8B", "1x8GiB", {}, -1},
	{"Qwen3.5-4B", "1x24GiB", {}, -1},
	{"Qwen3.5-9B", "1x24GiB", {}, 0},
	{"Qwen3.5-27B", "1x80GiB", {}, -1},
	{"Qwen3.5-27B", "4x24GiB", {.tensor_parallel = 4}, -1},
	{"Qwen3.5-35B-A3B", "2x48GiB", {}, -1},
	{"Qwen3.5-122B-A10B", "4x80GiB", {}, -1},
	{"Qwen3.5-397B-A17B", "8x80GiB", {.quantization = "int8"}, -1},
};
#define N_CASES ((int) (sizeof(cases) / sizeof(cases[0])))

static void
released_models_are_planned_to_the_byte(void **state)
{
	for (int i = 0; i < N_CASES; i++)
	{
		const qwen_plan_settings *s = &cases[i].settings;
		figures f = {.m = find_model(cases[i].model),
					 .cpu = !strncmp(cases[i].devices, "cpu", 3),
					 .tp = s->tensor_parallel ? (uint64_t) s->tensor_parallel : 1,
					 .type = s->quantization ? s->quantization : "none",
					 .narrow_kv = s->kv_dtype != NULL,
					 .rows = 256};
		qwen_plan plan;

		f.length = (uint64_t) (s->max_model_len ? s->max_model_len : f.m->length);
		make(cases[i].model, cases[i].devices, s, &plan);
		if (plan.fits != (cases[i].blocks != 0))
			fail_msg("%s on %s: fits is %d", cases[i].model, cases[i].devices, plan.fits);
		if (cases[i].blocks > 0 && plan.kv_blocks != (uint64_t) cases[i].blocks)
			fail_msg("%s on %s: %llu blocks, not %lld", cases[i].model, cases[i].devices,
					 (unsigned long long) plan.kv_blocks, (long long) cases[i].blocks);
		if (plan.fits)
			assert_true(plan.max_sequences >= 1 && plan.max_tokens_total >= f.length);
		else if (!is_hybrid(f.m)) /* a refusal shows one slot, which state_slots counts */
			assert_int_equal(plan.max_sequences, 1);
		for (int device = 0; device < plan.n_devices; device++)
			check_device(&f, &plan, device);
	}
}

/* The report that started it all: 88 GiB in four cards, and a model of 26. */
static void
fourteen_billion_on_four_cards_of_22(void **state)
{
	qwen_plan_device devices[QWEN_PLAN_MAX_DEVICES];
	qwen_plan_settings settings = {0};
	qwen_geometry g;
	qwen_plan plan;
	qwen_error err;
	int n;

	assert_ok(qwen_geometry_read("test/data/plan/Qwen1.5-14B-Chat.json", &g, &err), err);
	describe("4x22GiB", devices, &n);
	assert_ok(qwen_plan_make(&g, &settings, devices, n, &plan, &err), err);
	assert_true(plan.fits && plan.max_sequences >= 2 && plan.max_model_len == 32768);
	for (int i = 0; i < 4; i++)
		assert_int_equal(plan.devices[i].n_layers, 10);
	assert_true(plan.devices[0].embed && plan.devices[3].head);

	describe("1x22GiB", devices, &n);
	assert_ok(qwen_plan_make(&g, &settings, devices, n, &plan, &err), err);
	assert_false(plan.fits);
	assert_true(plan.n_remedies > 0);
	check_remedies(&g, &settings, devices, n, &plan);
	assert_int_equal(qwen_plan_refusal(&plan, &err), QWEN_NO_MEMORY);
	assert_non_null(strstr(err.message, "cuda:0"));
	assert_non_null(strstr(err.detail, "Exactly 32908062720 bytes are missing."));
	assert_non_null(strstr(err.hint, "ALTER SYSTEM SET qwen."));
}

/* ---- what is allocated is what was planned ---- */

/* Every device of a loaded model, term by term. */
static void
check_allocated(const char *model_name, const qwen_model *model)
{
	for (int i = 0; i < model->n_parts; i++)
	{
		const qwen_part *part = &model->parts[i];
		const qwen_plan_usage *u = &part->share->usage;
		const char *device = part->dev->name;
		uint64_t weights = 0;

		for (size_t j = 0; j < part->weights->n_memory; j++)
			weights += part->weights->memory[j].bytes;
		check_term(model_name, device, "weights", weights, qwen_plan_weights(u));
		check_term(model_name, device, "weights announced", part->weights->bytes, weights);
		check_term(model_name, device, "weights loaded", part->weights->loaded, weights);
		check_term(model_name, device, "cache", 2 * part->kv_bytes * (uint64_t) part->share->n_layers, u->kv);
		check_term(model_name, device, "buffers and cache", part->allocated,
				   u->kv + u->activations + u->scratch + u->rope);
	}
}

static void
what_is_allocated_is_what_was_planned(void **state)
{
	static const char *const folders[] = {"qwen2", "qwen2_eps_theta", "qwen2_mha_tied", "qwen3", "qwen3_untied_wide"};
	static const struct
	{
		const char *map;
		int shards;
		const char *quantization;
	} ways[] = {{"cpu", 1, "none"},      {"balanced", 1, "none"},   {"balanced", 1, "int4"},
				{"balanced", 2, "none"}, {"sequential", 4, "none"}, {"cpu", 1, "int8"}};
	static const char limits[] = "cpu:0=110MiB,cpu:1=110MiB,cpu:2=110MiB,cpu:3=110MiB";

	for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++)
		for (size_t j = 0; j < sizeof(ways) / sizeof(ways[0]); j++)
		{
			char path[128];
			qwen_model_options options = {.path = path,
										  .device_map = ways[j].map,
										  .tensor_parallel = ways[j].shards,
										  .quantization = ways[j].quantization,
										  .max_memory = !strcmp(ways[j].map, "cpu") ? NULL : limits,
										  .kernels = "portable",
										  .threads = 1,
										  .max_sequences = 7,
										  .step_tokens = 33};
			qwen_model *model;
			qwen_error err;

			snprintf(path, sizeof(path), "test/data/golden/%s", folders[i]);
			assert_ok(qwen_model_open(&options, NULL, NULL, &model, &err), err);
			check_allocated(path, model);
			qwen_model_close(model);
		}
}

/* ---- placement ---- */

static void
auto_takes_the_first_device_that_holds_all(void **state)
{
	qwen_plan_settings settings = {0};
	qwen_plan plan;

	make("Qwen3-8B", "1x16GiB,2x24GiB", &settings, &plan);
	assert_true(plan.fits && plan.n_stages == 1 && plan.devices[1].n_layers == 36);
	make("Qwen3-8B", "cpu=512GiB,1x24GiB", &settings, &plan);
	assert_true(plan.fits && plan.devices[1].n_layers == 36);
	make("Qwen3-8B", "cpu=64GiB", &settings, &plan);
	assert_true(plan.fits && plan.devices[0].n_layers == 36);
}

static void
the_processor_helps_only_when_asked(void **state)
{
	qwen_plan_settings settings = {0};
	qwen_plan plan;

	make("Qwen3-14B", "1x24GiB,cpu=256GiB", &settings, &plan);
	assert_false(plan.fits);
	settings.offload = "cpu";
	make("Qwen3-14B", "1x24GiB,cpu=256GiB", &settings, &plan);
	assert_true(plan.fits && plan.devices[1].embed && plan.devices[0].head);
	assert_true(plan.devices[1].n_layers > 0 && plan.devices[0].n_layers > plan.devices[1].n_layers);
	/* nothing is offloaded that has room */
	make("Qwen3-14B", "1x80GiB,cpu=256GiB", &settings, &plan);
	assert_int_equal(plan.devices[0].n_layers, 40);
}

static void
low_0_spares_the_first_device(void **state)
{
	qwen_plan_settings settings = {.device_map = "balanced_low_0"};
	qwen_plan plan;

	make("Qwen3-8B", "3x24GiB", &settings, &plan);
	assert_true(plan.fits && plan.devices[0].n_layers == 0 && qwen_plan_total(&plan.devices[0].usage) == 0);
	assert_int_equal(plan.devices[1].n_layers + plan.devices[2].n_layers, 36);
	make("Qwen1.5-14B", "4x17GiB", &settings, &plan);
	assert_true(plan.fits && plan.devices[0].n_layers > 0);
	for (int i = 1; i < 4; i++)
		assert_true(plan.devices[0].n_layers < plan.devices[i].n_layers);
}

static void
sequential_fills_one_after_the_other(void **state)
{
	qwen_plan_settings settings = {.device_map = "sequential"};
	qwen_plan plan;

	make("Qwen2.5-14B", "4x22GiB", &settings, &plan);
	assert_true(plan.fits && plan.devices[0].n_layers > 24 && plan.devices[2].n_layers == 0);
	assert_true(plan.devices[0].n_layers > plan.devices[1].n_layers);
}

static void
faster_devices_hold_more(void **state)
{
	qwen_plan_settings settings = {.device_map = "balanced"};
	qwen_plan plan;

	make("Qwen3-8B", "1x80GiB@3000,1x80GiB@1000", &settings, &plan);
	assert_in_range(plan.devices[0].n_layers, 26, 28);
	make("Qwen3-8B", "1x80GiB@1000,1x80GiB@1000", &settings, &plan);
	assert_in_range(plan.devices[0].n_layers, 17, 19);
	/* but memory goes before speed */
	make("Qwen3-8B", "1x8GiB@3000,1x80GiB@1000", &settings, &plan);
	assert_true(plan.fits && plan.devices[0].n_layers < 16);
}

static void
a_tied_head_apart_from_its_embedding_is_a_copy(void **state)
{
	qwen_plan_settings settings = {0};
	qwen_plan together, apart;

	make("Qwen3-4B", "1x24GiB", &settings, &together);
	settings.device_map = "balanced";
	make("Qwen3-4B", "2x24GiB", &settings, &apart);
	assert_int_equal(together.devices[0].usage.head, 2560 * 4);
	assert_int_equal(apart.devices[1].usage.head, 2560 * 4 + 151936ull * 2560 * 2);
}

/* ---- tensor parallelism ---- */

static void
shards_are_equal_and_add_up(void **state)
{
	qwen_plan_settings settings = {.tensor_parallel = 4};
	qwen_plan whole, shards;
	uint64_t sum = 0;

	make("Qwen3-8B", "4x24GiB", &settings, &shards);
	settings.tensor_parallel = 1;
	make("Qwen3-8B", "1x80GiB", &settings, &whole);
	for (int i = 0; i < 4; i++)
	{
		assert_memory_equal(&shards.devices[i].usage, &shards.devices[0].usage, sizeof(qwen_plan_usage));
		sum += shards.devices[i].usage.layers;
	}
	/* norms are held by all: two of 4096 and two of 128 floats in each of 36 layers */
	assert_int_equal(sum, whole.devices[0].usage.layers + 3 * 36 * (2 * 4096 + 2 * 128) * 4);
}

static void
layers_and_shards_combine(void **state)
{
	qwen_plan_settings settings = {.tensor_parallel = 2, .device_map = "balanced"};
	qwen_plan plan;

	make("Qwen1.5-14B", "5x22GiB", &settings, &plan);
	assert_true(plan.fits && plan.n_stages == 2);
	for (int i = 0; i < 4; i++)
		assert_int_equal(plan.devices[i].n_layers, 20);
	assert_int_equal(plan.devices[4].n_layers, 0);
	assert_true(plan.stages[1][0] == 2 && plan.stages[1][1] == 3);
}

/* ---- settings that are wrong ---- */

static void
assert_refused(const char *model, const char *text, const qwen_plan_settings *settings, const char *part)
{
	qwen_plan_device devices[QWEN_PLAN_MAX_DEVICES];
	qwen_geometry g;
	qwen_plan plan;
	qwen_error err;
	int n;

	read_model(find_model(model), &g);
	describe(text, devices, &n);
	assert_int_equal(qwen_plan_make(&g, settings, devices, n, &plan, &err), QWEN_INVALID);
	if (!strstr(err.message, part) && !strstr(err.detail, part))
		fail_msg("\"%s\" (%s) does not say \"%s\"", err.message, err.detail, part);
	assert_true(err.hint[0] != '\0' || strstr(err.message, "must be"));
}

static void
maps_are_checked_strictly(void **state)
{
	static const char *const bad[][2] = {
		{"{\"embed\": \"cuda:0\", \"layers\": {\"0-34\": \"cuda:0\"}, \"head\": \"cuda:0\"}", "Layer 35 is not placed"},
		{"{\"embed\": \"cuda:0\", \"layers\": {\"0-20\": \"cuda:0\", \"20-35\": \"cuda:1\"}, \"head\": \"cuda:0\"}",
		 "Layer 20 is placed twice"},
		{"{\"embed\": \"cuda:0\", \"layers\": {\"0-36\": \"cuda:0\"}, \"head\": \"cuda:0\"}", "beyond the last layer"},
		{"{\"embed\": \"cuda:0\", \"layers\": {\"9-0\": \"cuda:0\"}, \"head\": \"cuda:0\"}", "before it begins"},
		{"{\"embed\": \"cuda:0\", \"layers\": {\"0-\": \"cuda:0\"}, \"head\": \"cuda:0\"}", "not a range"},
		{"{\"embed\": \"cuda:0\", \"layers\": {\"-1\": \"cuda:0\"}, \"head\": \"cuda:0\"}", "not a range"},
		{"{\"embed\": \"cuda:0\", \"layers\": {\"0-99999999999999999999\": \"cuda:0\"}, \"head\": \"cuda:0\"}",
		 "beyond the last layer"},
		{"{\"embed\": \"cuda:7\", \"layers\": {\"0-35\": \"cuda:0\"}, \"head\": \"cuda:0\"}", "\"cuda:7\""},
		{"{\"embed\": 0, \"layers\": {\"0-35\": \"cuda:0\"}, \"head\": \"cuda:0\"}", "not the name of a device"},
		{"{\"layers\": {\"0-35\": \"cuda:0\"}, \"head\": \"cuda:0\"}", "\"embed\" is not placed"},
		{"{\"embed\": \"cuda:0\", \"layers\": {\"0-35\": \"cuda:0\"}}", "\"head\" is not placed"},
		{"{\"embed\": \"cuda:0\", \"head\": \"cuda:0\"}", "\"layers\" is not placed"},
		{"{\"embed\": \"cuda:0\", \"layers\": \"cuda:0\", \"head\": \"cuda:0\"}", "not an object"},
		{"{\"tail\": \"cuda:0\"}", "\"tail\" is no part"},
		{"{\"embed\": \"cuda:0\", \"embed\": \"cuda:1\"}", "not valid JSON"},
		{"{\"embed\": [\"cuda:0\", \"cuda:1\"], \"layers\": {\"0-35\": \"cuda:0\"}, \"head\": \"cuda:0\"}",
		 "2 devices, but qwen.tensor_parallel is 1"},
		{"{", "not valid JSON"},
		{"evenly", "\"evenly\""},
		{"cuda:2", "\"cuda:2\""},
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
	{
		qwen_plan_settings settings = {.device_map = bad[i][0]};

		assert_refused("Qwen3-8B", "2x24GiB", &settings, bad[i][1]);
	}
}

static void
maps_go_where_they_say(void **state)
{
	qwen_plan_settings settings = {
		.device_map =
			" {\"embed\": \"cpu\", \"layers\": {\"0-9\": \"cuda:1\", \"10\": \"cuda:0\", \"11-30\": \"cuda:1\", "
			"\"31-35\": \"cuda:0\"}, \"head\": \"cuda:0\"}"};
	qwen_plan plan;

	make("Qwen3-8B", "2x24GiB,cpu=64GiB", &settings, &plan);
	assert_true(plan.fits && plan.devices[2].embed && plan.devices[0].head);
	assert_true(plan.devices[0].n_layers == 6 && plan.devices[1].n_layers == 30 && plan.devices[2].n_layers == 0);
	assert_true(plan.layer_stage[10] == plan.head_stage && plan.layer_stage[9] == plan.layer_stage[11]);
}

static void
maps_of_shards_name_their_devices(void **state)
{
	static const char *const bad[][2] = {
		{"{\"embed\": \"cuda:0\", \"layers\": {\"0-35\": \"cuda:0\"}, \"head\": \"cuda:0\"}", "tensor_parallel is 2"},
		{"{\"embed\": [\"cuda:0\", \"cuda:0\"]}", "twice in one list"},
		{"{\"embed\": [\"cuda:0\", \"cuda:1\"], \"head\": [\"cuda:1\", \"cuda:2\"]}", "two different lists"},
		{"{\"embed\": [\"cuda:0\", \"cpu\"]}", "different kinds"},
		{"cuda:0", "tensor_parallel is 2"},
	};
	qwen_plan_settings settings = {
		.tensor_parallel = 2,
		.device_map = "{\"embed\": [\"cuda:3\", \"cuda:1\"], \"layers\": {\"0-35\": [\"cuda:3\", \"cuda:1\"]}, "
					  "\"head\": [\"cuda:0\", \"cuda:2\"]}"};
	qwen_plan plan;

	make("Qwen3-8B", "4x24GiB,cpu=64GiB", &settings, &plan);
	assert_true(plan.fits && plan.devices[3].n_layers == 36 && plan.devices[1].embed && plan.devices[2].head);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
	{
		settings.device_map = bad[i][0];
		assert_refused("Qwen3-8B", "4x24GiB,cpu=64GiB", &settings, bad[i][1]);
	}
}

static void
wrong_numbers_and_words_are_refused(void **state)
{
	static const struct
	{
		qwen_plan_settings settings;
		const char *part;
	} bad[] = {
		{{.tensor_parallel = 3}, "40 query heads"},
		{{.tensor_parallel = 4}, "larger than the number of devices"},
		{{.tensor_parallel = -1}, "must be from 1"},
		{{.tensor_parallel = 65}, "must be from 1"},
		{{.tensor_parallel = 2, .offload = "cpu"}, "cannot be combined"},
		{{.offload = "disk"}, "\"disk\""},
		{{.dtype = "int8"}, "qwen.dtype"},
		{{.quantization = "fp8"}, "qwen.quantization"},
		{{.kv_dtype = "int4"}, "qwen.kv_dtype"},
		{{.max_model_len = 40000}, "above what the model supports"},
		{{.kv_memory = 1 << 20}, "too small for one sequence"},
		{{.max_memory = "cuda:0"}, "not a device and a size"},
		{{.max_memory = "cuda:0=20GiB,"}, "not a device and a size"},
		{{.max_memory = "cuda:0=20 gallons"}, "\"20 gallons\" is not a size"},
		{{.max_memory = "cuda:0=-1"}, "is not a size"},
		{{.max_memory = "cuda:0=99999999TiB"}, "is not a size"},
		{{.max_memory = "cuda:0=1GiB,cuda:0=2GiB"}, "named twice"},
		{{.max_memory = "cuda:2=1GiB"}, "\"cuda:2\""},
		{{.max_memory = "gpu=1GiB"}, "\"gpu\""},
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_refused("Qwen1.5-14B", "2x24GiB", &bad[i].settings, bad[i].part);
}

/* ---- limits and sizes ---- */

static void
limits_bound_a_device(void **state)
{
	qwen_plan_settings settings = {.max_memory = " cuda:1 = 6GiB , cuda:0=20 GB", .device_map = "balanced"};
	qwen_plan plan;

	make("Qwen3-8B", "2x24GiB", &settings, &plan);
	assert_true(plan.fits && plan.devices[0].budget == 20 * GIB && plan.devices[1].budget == 6 * GIB);
	assert_true(plan.devices[0].n_layers > 2 * plan.devices[1].n_layers);
	settings.max_memory = "cuda:0=4GiB,cuda:1=4GiB"; /* removing it is a remedy, then */
	make("Qwen3-8B", "2x24GiB", &settings, &plan);
	assert_false(plan.fits);
	assert_string_equal(plan.remedies[0].changes[0].name, "max_memory");
}

static void
sizes_are_read_as_the_server_reads_them(void **state)
{
	static const struct
	{
		const char *text;
		uint64_t bytes;
	} good[] = {
		{"0", 0},
		{"123", 123},
		{"7B", 7},
		{"20GiB", 20 * GIB},
		{"20GB", 20 * GIB},
		{"20G", 20 * GIB},
		{"1.5 GiB", GIB * 3 / 2},
		{"512MB", 512 * MIB},
		{"512mib", 512 * MIB},
		{"64kB", 65536},
		{"2TiB", 2048 * GIB},
	};
	static const char *const bad[] = {"",      " ",    "GiB",  "-1",     "+1",  "1e3", "0x10",    "1.",  ".5",
									  "1..5G", "1GiX", "1GBB", "1 G iB", "1G ", "nan", "2000PiB", "1,5G"};

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
	{
		uint64_t bytes;

		assert_true(qwen_parse_size(good[i].text, strlen(good[i].text), &bytes));
		assert_int_equal(bytes, good[i].bytes);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
	{
		uint64_t bytes;

		if (qwen_parse_size(bad[i], strlen(bad[i]), &bytes))
			fail_msg("\"%s\" is a size of %llu bytes", bad[i], (unsigned long long) bytes);
	}
}

static void
devices_are_described_in_a_line(void **state)
{
	static const char *const bad[] = {"",
									  "4x",
									  "x22GiB",
									  "0x22GiB",
									  "65x1GiB",
									  "22",
									  "2x2x2GiB",
									  "gpu=1GiB",
									  "cuda=1GiB",
									  "cuda:=1GiB",
									  "cuda:01=1GiB",
									  "cpu:x=1GB",
									  "1x1GiB@",
									  "1x1GiB@fast",
									  "1x0GiB",
									  "cuda:0=1GiB,1x1GiB,cuda:1=1GiB",
									  "1x1GiB,,",
									  "cuda:1000=1GiB"};
	qwen_plan_device d[QWEN_PLAN_MAX_DEVICES];
	qwen_error err;
	int n;

	describe("2x80GiB@3350,1x24GiB,cpu=64GB", d, &n);
	assert_int_equal(n, 4);
	assert_string_equal(d[2].name, "cuda:2");
	assert_true(d[1].total == 80 * GIB && d[1].bandwidth == 3350e9 && d[2].bandwidth == 0);
	assert_true(d[3].kind == QWEN_DEVICE_CPU && d[3].free == 64 * GIB);
	describe("64x1GiB", d, &n);
	assert_int_equal(n, 64);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		if (qwen_plan_describe(bad[i], d, &n, &err) != QWEN_INVALID && strcmp(bad[i], "22") != 0)
			fail_msg("\"%s\" describes %d devices", bad[i], n);
}

static void
one_processor_can_be_several_devices(void **state)
{
	qwen_plan_device d[QWEN_PLAN_MAX_DEVICES];
	qwen_plan_settings settings = {.max_memory = "cpu:2=1GiB,cpu:0=3GiB"};
	qwen_error err;
	int n;

	describe("1x24GiB,cpu=10GiB", d, &n);
	assert_ok(qwen_plan_divide(&settings, d, &n, &err), err);
	assert_int_equal(n, 4);
	assert_string_equal(d[0].name, "cuda:0");
	assert_string_equal(d[2].name, "cpu:1");
	assert_true(d[1].free == 3 * GIB && d[2].free == 6 * GIB && d[3].free == 1 * GIB);

	settings = (qwen_plan_settings){.device_map = "{\"embed\": \"cpu:0\", \"head\": \"cpu:1\"}"};
	describe("cpu=10GiB", d, &n);
	assert_ok(qwen_plan_divide(&settings, d, &n, &err), err);
	assert_true(n == 2 && d[0].free == 5 * GIB && d[1].free == 5 * GIB && d[1].total == 10 * GIB);

	settings = (qwen_plan_settings){.max_memory = "cpu:0=8GiB,cpu:1=8GiB"}; /* there is no more than there is */
	describe("cpu=10GiB", d, &n);
	assert_ok(qwen_plan_divide(&settings, d, &n, &err), err);
	assert_true(d[0].free == 8 * GIB && d[1].free == 2 * GIB);

	settings = (qwen_plan_settings){.max_memory = "cpu:64=1GiB"};
	describe("cpu=10GiB", d, &n);
	assert_int_equal(qwen_plan_divide(&settings, d, &n, &err), QWEN_INVALID);
}

static void
one_gpu_can_be_several_devices(void **state)
{
	qwen_plan_device d[QWEN_PLAN_MAX_DEVICES];
	qwen_plan_settings settings = {.max_memory = "cuda:0.1=4GiB,cpu:1=1GiB",
								   .device_map = "{\"embed\": \"cuda:10.1\", \"head\": \"cuda:0.2\"}"};
	qwen_error err;
	int n;

	describe("cuda:0=24GiB,cuda:1=8GiB,cuda:10=10GiB,cpu=10GiB", d, &n);
	assert_ok(qwen_plan_divide(&settings, d, &n, &err), err);
	assert_int_equal(n, 8);
	assert_string_equal(d[0].name, "cuda:0.0");
	assert_true(d[0].free == 10 * GIB && d[1].free == 4 * GIB && d[2].free == 10 * GIB && d[2].total == 24 * GIB);
	assert_string_equal(d[3].name, "cuda:1");
	assert_true(d[3].free == 8 * GIB);
	assert_string_equal(d[5].name, "cuda:10.1");
	assert_true(d[4].free == 5 * GIB && d[5].free == 5 * GIB);
	assert_string_equal(d[7].name, "cpu:1");
	assert_true(d[5].kind == QWEN_DEVICE_CUDA && d[6].free == 9 * GIB && d[7].free == 1 * GIB);
}

/* Free memory of a device that is here was asked for with our context on it; a described one has that still to come. */
static void
a_context_is_counted_once(void **state)
{
	qwen_plan_device d[QWEN_PLAN_MAX_DEVICES];
	qwen_plan_settings settings = {0};
	qwen_plan described, present;
	qwen_geometry g;
	qwen_error err;
	int n;

	read_model(find_model("Qwen3-8B"), &g);
	describe("1x80GiB", d, &n);
	assert_ok(qwen_plan_make(&g, &settings, d, n, &described, &err), err);
	d[0].has_context = true;
	assert_ok(qwen_plan_make(&g, &settings, d, n, &present, &err), err);
	assert_int_equal(described.devices[0].usage.overhead - present.devices[0].usage.overhead, 512 * MIB);
}

/* A GPU's activations have the model's type. */
static void
activations_of_gpus_are_as_wide_as_the_model(void **state)
{
	qwen_plan narrow, wide;
	uint64_t resid = 512 * 4096 * 4;

	make("Qwen3-8B", "1x80GiB", &(qwen_plan_settings){0}, &narrow);
	make("Qwen3-8B", "1x80GiB", &(qwen_plan_settings){.dtype = "float32"}, &wide);
	assert_int_equal(wide.devices[0].usage.activations - resid, 2 * (narrow.devices[0].usage.activations - resid));
}

/* ---- the cache ---- */

static void
a_given_cache_is_taken_as_given(void **state)
{
	qwen_plan_settings settings = {.kv_memory = 10 * GIB, .device_map = "balanced"};
	qwen_plan plan;

	make("Qwen3-8B", "2x24GiB", &settings, &plan);
	assert_true(plan.fits);
	assert_int_equal(plan.kv_blocks, 10 * GIB / (147456 * 16));
	assert_in_range(plan.devices[0].usage.kv + plan.devices[1].usage.kv, 10 * GIB - 147456 * 16, 10 * GIB);
	settings.kv_memory = 100 * GIB; /* leaving it to us is a remedy, then */
	make("Qwen3-8B", "2x24GiB", &settings, &plan);
	assert_false(plan.fits);
	assert_string_equal(plan.remedies[0].changes[0].name, "kv_memory");
	assert_string_equal(plan.remedies[0].changes[0].value, "auto");
}

/* A server shares the processor's memory: a cache that nobody asked for takes a quarter of the rest. */
static void
an_automatic_cache_leaves_memory_to_the_server(void **state)
{
	qwen_plan_settings settings = {.max_model_len = 2048};
	qwen_plan plan, limited;

	make("Qwen3-0.6B", "cpu=16GiB", &settings, &plan);
	assert_true(plan.fits && plan.devices[0].usage.kv < 4 * GIB && plan.devices[0].usage.kv > 3 * GIB);
	settings.max_memory = "cpu=12GiB"; /* what the administrator gave is ours */
	make("Qwen3-0.6B", "cpu=16GiB", &settings, &limited);
	assert_true(limited.kv_blocks > 2 * plan.kv_blocks);
}

static void
no_more_is_taken_than_sequences_can_use(void **state)
{
	qwen_plan_settings settings = {.max_sequences = 3, .max_model_len = 1000};
	qwen_plan plan;

	make("Qwen3-0.6B", "1x80GiB", &settings, &plan);
	assert_int_equal(plan.kv_blocks, 3 * 63);
	assert_int_equal(plan.max_sequences, 3);
	assert_int_equal(plan.max_tokens_total, 3 * 63 * 16);
}

/* A limit is used up but for less than a block and what the engine keeps of it: the cache counts both. */
static void
a_limit_is_used_up_to_the_last_block(void **state)
{
	qwen_plan_settings settings = {.max_memory = "cpu=4GiB", .max_model_len = 4096};
	qwen_plan plan;
	uint64_t total;

	make("Qwen3-0.6B", "cpu=64GiB", &settings, &plan);
	total = qwen_plan_total(&plan.devices[0].usage);
	assert_true(total <= 4 * GIB);
	assert_true(total + 28 * 2 * 8 * 128 * 2 * 16 + 384 > 4 * GIB);
}

/* What the engine itself holds is where the head is: of each thread, and of the sampler of each that has a row to draw. */
static void
threads_are_counted_once(void **state)
{
	qwen_plan_settings settings = {.max_sequences = 4, .max_model_len = 1000, .threads = 2};
	qwen_plan two, ten, apart;

	make("Qwen3-0.6B", "cpu=64GiB", &settings, &two);
	settings.threads = 10;
	make("Qwen3-0.6B", "cpu=64GiB", &settings, &ten);
	assert_int_equal(ten.devices[0].usage.overhead - two.devices[0].usage.overhead, 8 * 704 * 1024 + 2 * 16 * 151936);
	settings.device_map = "{\"embed\": \"cpu:0\", \"layers\": {\"0-13\": \"cpu:0\", \"14-27\": \"cpu:1\"}, "
						  "\"head\": \"cpu:1\"}";
	make("Qwen3-0.6B", "cpu:0=32GiB,cpu:1=32GiB", &settings, &apart);
	assert_int_equal(apart.devices[0].usage.overhead, 0);
	assert_int_equal(apart.devices[1].usage.overhead, ten.devices[0].usage.overhead);
}

/* Absurd configurations are refused, not wrapped around. */
static void
absurd_sizes_do_not_overflow(void **state)
{
	static const char config[] =
		"{\"model_type\": \"qwen3_next\", \"vocab_size\": 4194304, \"hidden_size\": 65536, \"num_hidden_layers\": "
		"1024, "
		"\"num_attention_heads\": 1024, \"num_key_value_heads\": 1024, \"head_dim\": 512, \"num_experts\": 4096, "
		"\"moe_intermediate_size\": 524288, \"max_position_embeddings\": 16777216, \"num_experts_per_tok\": 4096, "
		"\"dtype\": \"float32\"}";
	qwen_plan_settings settings = {.max_sequences = 1 << 16, .step_tokens = 1 << 20, .device_map = "balanced"};
	qwen_plan_device d[QWEN_PLAN_MAX_DEVICES];
	qwen_geometry g;
	qwen_plan plan;
	qwen_error err;
	int n;

	assert_ok(qwen_geometry_parse(config, strlen(config), &g, &err), err);
	describe("64x1PiB", d, &n);
	assert_ok(qwen_plan_make(&g, &settings, d, n, &plan, &err), err);
	assert_false(plan.fits);
	check_missing(&plan);
	for (int i = 0; i < n; i++)
		assert_true(qwen_plan_total(&plan.devices[i].usage) < 1ull << 62);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(released_models_are_planned_to_the_byte),
		cmocka_unit_test(fourteen_billion_on_four_cards_of_22),
		cmocka_unit_test(what_is_allocated_is_what_was_planned),
		cmocka_unit_test(auto_takes_the_first_device_that_holds_all),
		cmocka_unit_test(the_processor_helps_only_when_asked),
		cmocka_unit_test(low_0_spares_the_first_device),
		cmocka_unit_test(sequential_fills_one_after_the_other),
		cmocka_unit_test(faster_devices_hold_more),
		cmocka_unit_test(a_tied_head_apart_from_its_embedding_is_a_copy),
		cmocka_unit_test(shards_are_equal_and_add_up),
		cmocka_unit_test(layers_and_shards_combine),
		cmocka_unit_test(maps_are_checked_strictly),
		cmocka_unit_test(maps_go_where_they_say),
		cmocka_unit_test(maps_of_shards_name_their_devices),
		cmocka_unit_test(wrong_numbers_and_words_are_refused),
		cmocka_unit_test(limits_bound_a_device),
		cmocka_unit_test(sizes_are_read_as_the_server_reads_them),
		cmocka_unit_test(devices_are_described_in_a_line),
		cmocka_unit_test(one_processor_can_be_several_devices),
		cmocka_unit_test(one_gpu_can_be_several_devices),
		cmocka_unit_test(a_context_is_counted_once),
		cmocka_unit_test(activations_of_gpus_are_as_wide_as_the_model),
		cmocka_unit_test(a_given_cache_is_taken_as_given),
		cmocka_unit_test(an_automatic_cache_leaves_memory_to_the_server),
		cmocka_unit_test(no_more_is_taken_than_sequences_can_use),
		cmocka_unit_test(a_limit_is_used_up_to_the_last_block),
		cmocka_unit_test(threads_are_counted_once),
		cmocka_unit_test(absurd_sizes_do_not_overflow),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
