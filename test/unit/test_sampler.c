/*
 * test_sampler.c
 *	  Greedy choice, penalties, truncation and the distribution of draws.
 */
#include "unit.h"

#include <math.h>

#include "engine/sampler.h"

#define VOCAB 8

static const qwen_sampling greedy = {.top_p = 1, .repetition_penalty = 1};

static int32_t
choose(const qwen_sampling *p, const float *logits, const bool *allowed, const int32_t *tokens, int32_t n,
	   int32_t n_prompt)
{
	qwen_sampler *s = qwen_sampler_new(VOCAB, allowed);
	float copy[VOCAB];
	int32_t id;

	assert_non_null(s);
	memcpy(copy, logits, sizeof(copy));
	id = qwen_sample(s, p, copy, tokens, n, n_prompt);
	/* a second call on the same scratch gives the same answer */
	memcpy(copy, logits, sizeof(copy));
	assert_int_equal(qwen_sample(s, p, copy, tokens, n, n_prompt), id);
	qwen_sampler_free(s);
	return id;
}

static void
greedy_takes_the_lowest_of_equals(void **state)
{
	const float logits[VOCAB] = {0, 3, 1, 3, 2, -1, 0, 0};

	assert_int_equal(choose(&greedy, logits, NULL, NULL, 0, 0), 1);
}

static void
masked_rows_are_never_chosen(void **state)
{
	const float logits[VOCAB] = {0, 3, 1, 3, 2, -1, 0, 9};
	const bool allowed[VOCAB] = {true, false, true, true, true, true, true, false};
	qwen_sampling hot = {.temperature = 50, .top_p = 1, .repetition_penalty = 1};

	assert_int_equal(choose(&greedy, logits, allowed, NULL, 0, 0), 3);
	for (uint64_t seed = 0; seed < 500; seed++)
	{
		hot.seed = seed;
		assert_true(allowed[choose(&hot, logits, allowed, NULL, 0, 0)]);
	}
}

static void
penalties_follow_their_definitions(void **state)
{
	const int32_t tokens[] = {1, 2, 2, 3}; /* prompt 1 2, output 2 3 */
	const float positive[VOCAB] = {1.9f, 4, 1, 1, 0, 0, 0, 0};
	const float negative[VOCAB] = {-3, -1.6f, -9, -9, -9, -9, -9, -9};
	const float twice[VOCAB] = {1.2f, 0, 2, 0, 0, 0, 0, 0};
	qwen_sampling p = greedy;

	/* positive logits are divided, negative multiplied, the prompt counts */
	p.repetition_penalty = 2;
	assert_int_equal(choose(&p, positive, NULL, tokens, 4, 2), 1);
	p.repetition_penalty = 2.2f;
	assert_int_equal(choose(&p, positive, NULL, tokens, 4, 2), 0);
	p.repetition_penalty = 2;
	assert_int_equal(choose(&p, negative, NULL, tokens, 4, 2), 0);

	/* presence and frequency look at the output alone: token 2 occurs once there, token 1 not at all */
	p = greedy;
	p.presence_penalty = 0.7f;
	assert_int_equal(choose(&p, twice, NULL, tokens, 4, 2), 2);
	p.presence_penalty = 0.9f;
	assert_int_equal(choose(&p, twice, NULL, tokens, 4, 2), 0);
	p.presence_penalty = 0;
	p.frequency_penalty = 0.5f;
	assert_int_equal(choose(&p, twice, NULL, tokens, 4, 2), 2);
	assert_int_equal(choose(&p, twice, NULL, tokens, 4, 0), 0); /* both occurrences are output now */
}

/* Shares of 20,000 draws with different seeds. */
static void
shares(const qwen_sampling *base, const float *logits, double share[VOCAB])
{
	qwen_sampler *s = qwen_sampler_new(VOCAB, NULL);
	const int n = 20000;

	memset(share, 0, VOCAB * sizeof(double));
	for (int i = 0; i < n; i++)
	{
		qwen_sampling p = *base;
		float copy[VOCAB];

		p.seed = (uint64_t) i;
		memcpy(copy, logits, sizeof(copy));
		share[qwen_sample(s, &p, copy, NULL, 0, 0)] += 1.0 / n;
	}
	qwen_sampler_free(s);
}

static void
assert_share(double got, double want)
{
	if (fabs(got - want) > 0.015)
		fail_msg("share %g, expected %g", got, want);
}

static void
draws_follow_the_softmax(void **state)
{
	float logits[VOCAB];
	const double p[VOCAB] = {0.30, 0.25, 0.15, 0.10, 0.08, 0.06, 0.04, 0.02};
	double share[VOCAB];
	qwen_sampling s = {.temperature = 1, .top_p = 1, .repetition_penalty = 1};

	for (int i = 0; i < VOCAB; i++)
		logits[i] = (float) log(p[i]);
	shares(&s, logits, share);
	for (int i = 0; i < VOCAB; i++)
		assert_share(share[i], p[i]);

	/* temperature 0.5 squares the probabilities */
	s.temperature = 0.5f;
	shares(&s, logits, share);
	assert_share(share[0], 0.09 / 0.1970);
}

static void
truncation_keeps_a_prefix(void **state)
{
	float logits[VOCAB];
	const double p[VOCAB] = {0.02, 0.25, 0.15, 0.10, 0.08, 0.06, 0.04, 0.30};
	double share[VOCAB];
	qwen_sampling s = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .top_k = 2};

	for (int i = 0; i < VOCAB; i++)
		logits[i] = (float) log(p[i]);
	shares(&s, logits, share);
	assert_share(share[7], 0.30 / 0.55);
	assert_share(share[1], 0.25 / 0.55);

	/* the token that crosses top_p is kept */
	s.top_k = 0;
	s.top_p = 0.6f;
	shares(&s, logits, share);
	assert_share(share[7], 0.30 / 0.70);
	assert_share(share[2], 0.15 / 0.70);
	assert_true(share[3] == 0);

	/* at least one is kept */
	s.top_p = 0;
	shares(&s, logits, share);
	assert_true(share[7] > 0.999);

	/* min_p is relative to the best */
	s.top_p = 1;
	s.min_p = 0.4f;
	shares(&s, logits, share);
	assert_share(share[2], 0.15 / 0.70);
	assert_true(share[3] == 0);

	/* top_p counts within what top_k has left */
	s = (qwen_sampling){.temperature = 1, .top_p = 0.5f, .repetition_penalty = 1, .top_k = 2};
	shares(&s, logits, share);
	assert_true(share[7] > 0.999);
}

static void
ties_at_the_border_of_top_k_are_kept(void **state)
{
	const float logits[VOCAB] = {1, 5, 4, 4, 4, 0, 0, 0};
	double share[VOCAB];
	const qwen_sampling s = {.temperature = 10, .top_p = 1, .repetition_penalty = 1, .top_k = 2};

	shares(&s, logits, share);
	assert_true(share[2] > 0.1 && share[3] > 0.1 && share[4] > 0.1);
	assert_true(share[0] == 0 && share[5] == 0);
}

/* ---- against a plain sort ---- */

/* As a large vocabulary is: several blocks of the sampler, the last one not full. */
#define LARGE 3001

static const float *sorting; /* logits that by_logit compares */

static int
by_logit(const void *a, const void *b)
{
	int32_t x = *(const int32_t *) a, y = *(const int32_t *) b;

	return sorting[x] > sorting[y] ? -1 : sorting[x] < sorting[y] ? 1 : x - y;
}

/* How many of order[0, n) are kept; *mass is theirs. *near: a border is too close to tell apart from rounding. */
static int32_t
keep(const qwen_sampling *p, const float *logits, const int32_t *order, double *mass, bool *near)
{
	double total = 0, kept = 0;
	int32_t n = LARGE, i;

	if (p->top_k > 0 && p->top_k < n)
		for (n = p->top_k; n < LARGE && logits[order[n]] == logits[order[p->top_k - 1]]; n++)
			;
	for (i = 0; i < n; i++)
		total += exp(((double) logits[order[i]] - logits[order[0]]) / p->temperature);
	for (i = 0; i < n; i++)
	{
		double w = exp(((double) logits[order[i]] - logits[order[0]]) / p->temperature);

		*near |= p->top_p < 1 && fabs(kept / total - p->top_p) < 1e-6;
		*near |= p->min_p > 0 && fabs(w - p->min_p) < 1e-6;
		if (i > 0 && ((p->top_p < 1 && kept >= p->top_p * total) || w < p->min_p))
			break;
		kept += w;
	}
	*mass = kept;
	return i;
}

/* What the definitions say, from a sort of everything. */
static int32_t
draw_plainly(const qwen_sampling *p, const float *logits, bool *near)
{
	static int32_t order[LARGE];
	double mass, sum = 0, u = qwen_uniform(p->seed, 0);
	int32_t n;

	for (int32_t i = 0; i < LARGE; i++)
		order[i] = i;
	sorting = logits;
	qsort(order, LARGE, sizeof(*order), by_logit);
	*near = false;
	n = keep(p, logits, order, &mass, near);
	for (int32_t i = 0; i < n; i++)
	{
		sum += exp(((double) logits[order[i]] - logits[order[0]]) / p->temperature);
		*near |= fabs(sum / mass - u) < 1e-6;
		if (sum > u * mass)
			return order[i];
	}
	return order[n - 1];
}

/* Normal logits with a few peaks and many ties, as of a model of that many rows. */
static void
make_logits(float *logits, uint64_t seed)
{
	for (int i = 0; i < LARGE; i++)
	{
		double radius = sqrt(-2 * log(qwen_uniform(seed, 2 * (uint64_t) i) + 1e-300));

		logits[i] = (float) (rint(8 * 2.5 * radius * cos(6.28318530718 * qwen_uniform(seed, 2 * (uint64_t) i + 1))) / 8);
	}
	for (int i = 0; i < 5; i++)
		logits[(int) (LARGE * qwen_uniform(seed, 100000 + (uint64_t) i))] += 8;
}

static void
draws_agree_with_a_plain_sort(void **state)
{
	static const qwen_sampling kinds[] = {
		{.temperature = 0.7f, .top_p = 1, .top_k = 20},      {.temperature = 0.7f, .top_p = 0.8f, .top_k = 20},
		{.temperature = 1, .top_p = 1},                      {.temperature = 1, .top_p = 0.95f},
		{.temperature = 1.5f, .top_p = 0.9f},                {.temperature = 1, .top_p = 1, .min_p = 0.05f},
		{.temperature = 2, .top_p = 0.99f, .min_p = 0.001f}, {.temperature = 100, .top_p = 1},
		{.temperature = 100, .top_p = 0.5f},                 {.temperature = 1, .top_p = 1, .top_k = 2 * LARGE},
		{.temperature = 0.01f, .top_p = 1},
	};
	static float logits[LARGE], copy[LARGE];
	qwen_sampler *s = qwen_sampler_new(LARGE, NULL);
	int compared = 0;

	for (uint64_t seed = 0; seed < 40; seed++)
		for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++)
		{
			qwen_sampling p = kinds[k];
			bool near;
			int32_t want;

			p.seed = seed;
			p.repetition_penalty = 1;
			make_logits(logits, seed);
			want = draw_plainly(&p, logits, &near);
			memcpy(copy, logits, sizeof(copy));
			if (qwen_sample(s, &p, copy, NULL, 0, 0) != want && !near)
				fail_msg("kind %zu, seed %d: another token than %d", k, (int) seed, want);
			compared += !near;
		}
	assert_true(compared > 400);
	qwen_sampler_free(s);
}

static void
the_best_of_many_is_the_lowest_of_equals(void **state)
{
	static float logits[LARGE];
	qwen_sampler *s = qwen_sampler_new(LARGE, NULL);

	for (int32_t at = 0; at < LARGE; at += 37)
	{
		for (int i = 0; i < LARGE; i++)
			logits[i] = i < at ? -2 : i == at || i % 5 == 0 ? -1 : -3;
		assert_int_equal(qwen_sample(s, &greedy, logits, NULL, 0, 0), at);
	}
	/* what is not a number is passed over, and infinity is the best there can be */
	for (int i = 0; i < LARGE; i++)
		logits[i] = NAN;
	assert_int_equal(qwen_sample(s, &greedy, logits, NULL, 0, 0), 0);
	logits[LARGE - 1] = -5;
	assert_int_equal(qwen_sample(s, &greedy, logits, NULL, 0, 0), LARGE - 1);
	logits[70] = INFINITY;
	assert_int_equal(qwen_sample(s, &(qwen_sampling){.temperature = 1, .top_p = 1, .repetition_penalty = 1}, logits,
								 NULL, 0, 0),
					 70);
	qwen_sampler_free(s);
}

static void
uniform_numbers_are_a_function_of_seed_and_counter(void **state)
{
	double sum = 0;

	/* first output words of Philox4x32-10 for key 0, counter 0 (published known answer 6627e8d5 e169c58d) */
	assert_true(qwen_uniform(0, 0) == (double) (0x6627e8d5e169c58dULL >> 11) * 0x1.0p-53);
	for (uint64_t i = 0; i < 10000; i++)
	{
		double u = qwen_uniform(42, i);

		assert_true(u >= 0 && u < 1);
		sum += u;
	}
	assert_true(fabs(sum / 10000 - 0.5) < 0.02);
	assert_true(qwen_uniform(1, 0) != qwen_uniform(2, 0));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(greedy_takes_the_lowest_of_equals),
		cmocka_unit_test(masked_rows_are_never_chosen),
		cmocka_unit_test(penalties_follow_their_definitions),
		cmocka_unit_test(draws_follow_the_softmax),
		cmocka_unit_test(truncation_keeps_a_prefix),
		cmocka_unit_test(ties_at_the_border_of_top_k_are_kept),
		cmocka_unit_test(draws_agree_with_a_plain_sort),
		cmocka_unit_test(the_best_of_many_is_the_lowest_of_equals),
		cmocka_unit_test(uniform_numbers_are_a_function_of_seed_and_counter),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
