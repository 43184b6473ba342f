/*
 * test_plan_search.c
 *	  What holds of every plan, over thousands of small models on odd sets of
 *	  devices, and the search for the best cuts against all of them.
 *
 * Every map that the strategies could have chosen is written down as an
 * explicit one and planned, so the search is judged by results alone.
 */
#include "unit.h"

#include "engine/plan.h"

#define MIB ((uint64_t) 1 << 20)
#define MAX_DEVICES 4

/* The same models in every run. */
static uint32_t
next(uint32_t *seed)
{
	*seed = *seed * 1664525u + 1013904223u;
	return *seed >> 8;
}

static int
pick(uint32_t *seed, const int *from, int n)
{
	return from[next(seed) % (uint32_t) n];
}

/* A model of 2 to 6 layers, with anything that makes layers or ends unequal. */
static void
random_model(uint32_t *seed, qwen_geometry *g)
{
	static const char *const types[] = {"qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_5"};
	static const int hidden[] = {256, 512, 1024}, vocabulary[] = {1024, 65536, 151936}, widths[] = {512, 2048, 6144};
	char text[1024];
	qwen_error err;

	snprintf(text, sizeof(text),
			 "{\"model_type\": \"%s\", \"hidden_size\": %d, \"num_hidden_layers\": %u, \"num_attention_heads\": 8, "
			 "\"num_key_value_heads\": %d, \"head_dim\": 64, \"vocab_size\": %d, \"intermediate_size\": %d, "
			 "\"num_experts\": 16, \"num_experts_per_tok\": 4, \"moe_intermediate_size\": 256, "
			 "\"shared_expert_intermediate_size\": 256, \"mlp_only_layers\": [1, 2], \"linear_num_value_heads\": 16, "
			 "\"tie_word_embeddings\": %s, \"max_position_embeddings\": 4096, \"dtype\": \"bfloat16\"}",
			 types[next(seed) % 6], pick(seed, hidden, 3), 2 + next(seed) % 5, (int[]){2, 4, 8}[next(seed) % 3],
			 pick(seed, vocabulary, 3), pick(seed, widths, 3), next(seed) % 2 ? "true" : "false");
	/* a dense family has no experts, whatever the file says */
	assert_ok(qwen_geometry_parse(text, strlen(text), g, &err), err);
}

/* 1 to 4 processors of which some are too small; logical devices of one kind, so that all may be used. */
static int
random_devices(uint32_t *seed, qwen_plan_device *devices)
{
	int n = 1 + (int) (next(seed) % MAX_DEVICES);
	uint64_t common = (30 + next(seed) % 300) * MIB;
	bool equal = next(seed) % 3 == 0;

	for (int i = 0; i < n; i++)
	{
		devices[i] = (qwen_plan_device){.kind = QWEN_DEVICE_CPU};
		snprintf(devices[i].name, sizeof(devices[i].name), "cpu:%d", i);
		devices[i].total = devices[i].free = equal ? common : (20 + next(seed) % 400) * MIB;
	}
	return n;
}

static qwen_plan_settings
random_settings(uint32_t *seed)
{
	static const char *const quantization[] = {"none", "none", "int8", "int4"};

	return (qwen_plan_settings){.max_sequences = 1 + (int) (next(seed) % 16),
								.max_model_len = 64 + (int) (next(seed) % 4032),
								.quantization = quantization[next(seed) % 4],
								.kv_dtype = next(seed) % 4 ? "auto" : "int8"};
}

/* The largest share of its budget that any device fills. */
static double
fullest(const qwen_plan *plan)
{
	double most = 0;

	for (int i = 0; i < plan->n_devices; i++)
	{
		double fill = (double) qwen_plan_total(&plan->devices[i].usage) / (double) plan->devices[i].budget;

		most = fill > most ? fill : most;
	}
	return most;
}

static void
solve(const qwen_geometry *g, qwen_plan_settings settings, const char *map, const qwen_plan_device *d, int n,
	  qwen_plan *plan)
{
	qwen_error err;

	settings.device_map = map;
	assert_ok(qwen_plan_make(g, &settings, d, n, plan, &err), err);
}

/* ---- what holds of every plan ---- */

static void
check_plan(const qwen_plan *plan, const qwen_plan_settings *s)
{
	uint64_t sequence = ((uint64_t) s->max_model_len + 15) / 16;
	int layers = 0, embeds = 0, heads = 0;

	for (int i = 0; i < plan->n_devices; i++)
	{
		layers += plan->devices[i].n_layers;
		embeds += plan->devices[i].embed;
		heads += plan->devices[i].head;
		if (plan->fits && qwen_plan_total(&plan->devices[i].usage) > plan->devices[i].budget)
			fail_msg("%s is planned beyond its budget", plan->devices[i].device.name);
	}
	assert_true(layers == plan->n_layers && embeds == 1 && heads == 1);
	if (!plan->fits)
	{
		assert_true(plan->missing_bytes > 0 && plan->missing_device >= 0);
		return;
	}
	assert_true(plan->kv_blocks >= sequence && plan->max_sequences >= 1);
	assert_true(plan->kv_blocks <= sequence * (uint64_t) s->max_sequences);
	assert_true(plan->max_sequences <= s->max_sequences);
}

/* A remedy's settings in place of the refused ones; plans that change the map start from "balanced". */
static void
check_remedies(const qwen_geometry *g, const qwen_plan_settings *s, const qwen_plan_device *d, int n,
			   const qwen_plan *refused)
{
	for (int i = 0; i < refused->n_remedies; i++)
	{
		qwen_plan_settings changed = *s;
		const qwen_plan_remedy *r = &refused->remedies[i];
		qwen_plan plan;
		qwen_error err;

		for (int j = 0; j < r->n; j++)
		{
			const char *name = r->changes[j].name, *value = r->changes[j].value;

			if (!strcmp(name, "quantization"))
				changed.quantization = value;
			else if (!strcmp(name, "kv_dtype"))
				changed.kv_dtype = value;
			else if (!strcmp(name, "device_map"))
				changed.device_map = value;
			else if (!strcmp(name, "max_model_len"))
				changed.max_model_len = atoi(value);
			else if (!strcmp(name, "max_sequences"))
				changed.max_sequences = atoi(value);
			else if (!strcmp(name, "tensor_parallel"))
				changed.tensor_parallel = atoi(value);
			else
				fail_msg("a remedy changes %s", name);
		}
		assert_ok(qwen_plan_make(g, &changed, d, n, &plan, &err), err);
		if (!plan.fits)
			fail_msg("no remedy: %s", r->text);
	}
}

static void
plans_keep_their_promises(void **state)
{
	static const char *const maps[] = {"auto", "balanced", "balanced_low_0", "sequential", "cpu:0"};
	uint32_t seed = 7;
	int fit = 0, refused = 0, remedies = 0;

	for (int round = 0; round < 1500; round++)
	{
		qwen_plan_device d[MAX_DEVICES];
		int n = random_devices(&seed, d);
		qwen_plan_settings s = random_settings(&seed);
		qwen_geometry g;
		qwen_plan plan;
		qwen_error err;

		random_model(&seed, &g);
		s.device_map = maps[next(&seed) % 5];
		assert_ok(qwen_plan_make(&g, &s, d, n, &plan, &err), err);
		check_plan(&plan, &s);
		check_remedies(&g, &s, d, n, &plan);
		fit += plan.fits;
		refused += !plan.fits;
		remedies += plan.n_remedies;
	}
	/* the models and devices above are such that all of it happens */
	if (fit < 300 || refused < 300 || remedies < 300)
		fail_msg("%d plans, %d refusals and %d remedies are too few", fit, refused, remedies);
}

/* More memory never turns a plan into a refusal. */
static void
more_memory_never_hurts(void **state)
{
	static const char *const maps[] = {"auto", "balanced", "balanced_low_0", "sequential"};
	uint32_t seed = 11;

	for (int round = 0; round < 500; round++)
	{
		qwen_plan_device d[MAX_DEVICES];
		int n = random_devices(&seed, d);
		qwen_plan_settings s = random_settings(&seed);
		const char *map = maps[next(&seed) % 4];
		int more = (int) (next(&seed) % (uint32_t) n);
		qwen_geometry g;
		qwen_plan before, after;

		random_model(&seed, &g);
		solve(&g, s, map, d, n, &before);
		d[more].total = d[more].free += (1 + next(&seed) % 200) * MIB;
		solve(&g, s, map, d, n, &after);
		assert_true(after.fits || !before.fits);
	}
}

/* ---- the best cuts ---- */

/* Items [0, cut[0]) on device 0, [cut[0], cut[1]) on device 1, ...: as a map. The first and last are the two ends. */
static void
write_map(const qwen_geometry *g, const int *cut, int n, char *out, size_t size)
{
	int last = g->n_layers + 1;
	size_t used = 0;

	for (int item = 0; item <= last; item++)
	{
		int device = 0;

		while (device < n - 1 && item >= cut[device])
			device++;
		if (item == 0)
			used = (size_t) snprintf(out, size, "{\"embed\": \"cpu:%d\", \"layers\": {", device);
		else if (item == last)
			snprintf(out + used, size - used, "}, \"head\": \"cpu:%d\"}", device);
		else
			used += (size_t) snprintf(out + used, size - used, "%s\"%d\": \"cpu:%d\"", item > 1 ? ", " : "", item - 1,
									  device);
	}
}

/* The least of the fullest device's fill over all ways to cut. */
static double
best_of_all(const qwen_geometry *g, qwen_plan_settings s, const qwen_plan_device *d, int n)
{
	int items = g->n_layers + 2, cut[MAX_DEVICES] = {0};
	double best = 1e30;

	for (;;)
	{
		char map[512];
		qwen_plan plan;
		double fill;
		int i = n - 2;

		write_map(g, cut, n, map, sizeof(map));
		solve(g, s, map, d, n, &plan);
		fill = fullest(&plan);
		best = fill < best ? fill : best;
		while (i >= 0 && cut[i] == items)
			i--;
		if (i < 0)
			return best;
		cut[i]++;
		for (int j = i + 1; j < n - 1; j++)
			cut[j] = cut[i];
	}
}

/* With a cache of given size, so that every map holds the same. */
static qwen_plan_settings
fixed_cache(uint32_t *seed, const qwen_geometry *g)
{
	qwen_plan_settings s = random_settings(seed);
	uint64_t token = 2ull * (uint64_t) g->n_layers * (uint64_t) g->n_kv_heads * (uint64_t) g->head_dim * 2;

	s.max_model_len = 512;
	s.kv_memory = (512 + next(seed) % 2048) * token;
	s.max_sequences = 1; /* of recurrent state there is one slot in every map, then */
	return s;
}

static void
balanced_is_the_best_of_all_cuts(void **state)
{
	uint32_t seed = 3;
	int several = 0;

	for (int round = 0; round < 150; round++)
	{
		qwen_plan_device d[MAX_DEVICES];
		int n = random_devices(&seed, d);
		qwen_plan_settings s;
		qwen_geometry g;
		qwen_plan plan;
		double best;

		random_model(&seed, &g);
		s = fixed_cache(&seed, &g);
		solve(&g, s, "balanced", d, n, &plan);
		best = best_of_all(&g, s, d, n);
		if (fullest(&plan) != best)
			fail_msg("round %d: the fullest device is filled by %f, and by %f at best", round, fullest(&plan), best);
		several += n > 2;
	}
	assert_true(several > 50);
}

static void
balanced_is_never_fuller_than_sequential(void **state)
{
	uint32_t seed = 5;
	int better = 0;

	for (int round = 0; round < 800; round++)
	{
		qwen_plan_device d[MAX_DEVICES];
		int n = random_devices(&seed, d);
		qwen_plan_settings s;
		qwen_geometry g;
		qwen_plan balanced, sequential;

		random_model(&seed, &g);
		s = fixed_cache(&seed, &g);
		solve(&g, s, "balanced", d, n, &balanced);
		solve(&g, s, "sequential", d, n, &sequential);
		assert_true(fullest(&balanced) <= fullest(&sequential));
		assert_int_equal(balanced.fits, sequential.fits); /* filling finds a place whenever there is one */
		better += fullest(&balanced) < fullest(&sequential);
	}
	assert_true(better > 200);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(plans_keep_their_promises),
		cmocka_unit_test(more_memory_never_hurts),
		cmocka_unit_test(balanced_is_the_best_of_all_cuts),
		cmocka_unit_test(balanced_is_never_fuller_than_sequential),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
