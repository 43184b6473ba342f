/*
 * sampler.c
 *	  From logits to the next token: penalties, temperature, truncation, draw.
 *
 * Order of processing (as the models' vendors tune for): mask, repetition,
 * frequency and presence penalty, temperature, top-k, top-p, min-p, draw.
 *
 * Every truncation keeps a prefix of the candidates in the order (probability
 * descending, id ascending), so nothing is ever sorted as a whole: a heap
 * over the vocabulary gives the candidates one by one, and sampling stops
 * popping as soon as the draw is decided.
 */
#include "sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct candidate
{
	float logit;
	int32_t id;
} candidate;

struct qwen_sampler
{
	int32_t vocab;
	bool *allowed;      /* [vocab], or NULL: all */
	candidate *heap;    /* [vocab] */
	candidate *top;     /* [vocab] popped from the heap, in order */
	int32_t *seen;      /* [vocab] occurrences in prompt and output; all zero between calls */
	int32_t *in_output; /* [vocab] occurrences in the output; all zero between calls */
};

qwen_sampler *
qwen_sampler_new(int32_t vocab, const bool *allowed)
{
	qwen_sampler *s = calloc(1, sizeof(*s));
	size_t n = (size_t) vocab;

	if (!s)
		return NULL;
	s->vocab = vocab;
	s->heap = calloc(n, sizeof(candidate));
	s->top = calloc(n, sizeof(candidate));
	s->seen = calloc(n, sizeof(int32_t));
	s->in_output = calloc(n, sizeof(int32_t));
	if (allowed)
		s->allowed = malloc(n * sizeof(bool));
	if (!s->heap || !s->top || !s->seen || !s->in_output || (allowed && !s->allowed))
	{
		qwen_sampler_free(s);
		return NULL;
	}
	if (allowed)
		memcpy(s->allowed, allowed, n * sizeof(bool));
	return s;
}

void
qwen_sampler_free(qwen_sampler *s)
{
	if (!s)
		return;
	free(s->allowed);
	free(s->heap);
	free(s->top);
	free(s->seen);
	free(s->in_output);
	free(s);
}

/* One round constant pair each, from the generator's definition (Salmon et al., 2011). */
static void
philox_round(uint32_t c[4], const uint32_t k[2])
{
	uint64_t p0 = (uint64_t) 0xD2511F53u * c[0];
	uint64_t p1 = (uint64_t) 0xCD9E8D57u * c[2];
	uint32_t old1 = c[1], old3 = c[3];

	c[0] = (uint32_t) (p1 >> 32) ^ old1 ^ k[0];
	c[1] = (uint32_t) p1;
	c[2] = (uint32_t) (p0 >> 32) ^ old3 ^ k[1];
	c[3] = (uint32_t) p0;
}

double
qwen_uniform(uint64_t seed, uint64_t counter)
{
	uint32_t c[4] = {(uint32_t) counter, (uint32_t) (counter >> 32), 0, 0};
	uint32_t k[2] = {(uint32_t) seed, (uint32_t) (seed >> 32)};
	uint64_t bits;

	for (int round = 0; round < 10; round++)
	{
		philox_round(c, k);
		k[0] += 0x9E3779B9u;
		k[1] += 0xBB67AE85u;
	}
	bits = ((uint64_t) c[0] << 32) | c[1];
	return (double) (bits >> 11) * 0x1.0p-53;
}

/* Lowers the logits of tokens that have occurred, once per distinct token. */
static void
apply_penalties(qwen_sampler *s, const qwen_sampling *p, float *logits, const int32_t *tokens, int32_t n,
				int32_t n_prompt)
{
	for (int32_t i = 0; i < n; i++)
	{
		s->seen[tokens[i]]++;
		s->in_output[tokens[i]] += i >= n_prompt;
	}
	for (int32_t i = 0; i < n; i++)
	{
		int32_t id = tokens[i];
		float *l = &logits[id];

		if (!s->seen[id])
			continue; /* done at an earlier occurrence */
		*l = *l > 0 ? *l / p->repetition_penalty : *l * p->repetition_penalty;
		*l -= p->frequency_penalty * (float) s->in_output[id];
		if (s->in_output[id])
			*l -= p->presence_penalty;
		s->seen[id] = s->in_output[id] = 0;
	}
}

static int32_t
argmax(const float *logits, int32_t n)
{
	int32_t best = 0;

	for (int32_t i = 1; i < n; i++)
		if (logits[i] > logits[best])
			best = i;
	return best;
}

static bool
before(candidate a, candidate b)
{
	return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static void
sift_down(candidate *heap, int32_t n, int32_t i)
{
	candidate moving = heap[i];

	for (;;)
	{
		int32_t child = 2 * i + 1;

		if (child >= n)
			break;
		if (child + 1 < n && before(heap[child + 1], heap[child]))
			child++;
		if (!before(heap[child], moving))
			break;
		heap[i] = heap[child];
		i = child;
	}
	heap[i] = moving;
}

/* The candidates that are left, as a heap; popped ones stand in s->top. */
typedef struct ranking
{
	qwen_sampler *s;
	int32_t in_heap;
	int32_t popped;
	int32_t limit; /* most that may be popped (top-k) */
} ranking;

static void
rank(ranking *r, qwen_sampler *s, const float *logits, float temperature)
{
	*r = (ranking){.s = s, .limit = INT32_MAX};
	for (int32_t id = 0; id < s->vocab; id++)
		if (logits[id] > -INFINITY)
			s->heap[r->in_heap++] = (candidate){logits[id] / temperature, id};
	for (int32_t i = r->in_heap / 2 - 1; i >= 0; i--)
		sift_down(s->heap, r->in_heap, i);
}

/* Makes the i-th best candidate available in s->top; false when there are not that many. */
static bool
pop_to(ranking *r, int32_t i)
{
	candidate *heap = r->s->heap;

	while (r->popped <= i)
	{
		if (r->in_heap == 0 || r->popped >= r->limit)
			return false;
		r->s->top[r->popped++] = heap[0];
		heap[0] = heap[--r->in_heap];
		sift_down(heap, r->in_heap, 0);
	}
	return true;
}

/* Keeps the k best and everything that ties with the k-th; returns the mass relative to the best. */
static double
keep_top_k(ranking *r, int32_t k)
{
	double mass = 0;
	int32_t n = 0;

	while (pop_to(r, n) && (n < k || r->s->top[n].logit == r->s->top[k - 1].logit))
		n++;
	r->limit = n;
	r->popped = n;
	for (int32_t i = 0; i < n; i++)
		mass += exp((double) r->s->top[i].logit - r->s->top[0].logit);
	return mass;
}

static double
whole_mass(const ranking *r)
{
	double mass = 0;

	for (int32_t i = 0; i < r->in_heap; i++)
		mass += exp((double) r->s->heap[i].logit - r->s->heap[0].logit);
	return mass;
}

/*
 * Draws by inverse distribution function.  A prefix is kept until its mass
 * reaches top_p of the total or a probability falls below min_p of the best;
 * u then selects within the prefix.  Without truncation the draw needs no
 * more of the order than up to the chosen token.
 */
static int32_t
draw(ranking *r, const qwen_sampling *p, double u)
{
	double mass = p->top_k > 0 ? keep_top_k(r, p->top_k) : whole_mass(r);
	bool truncate = p->top_p < 1 || p->min_p > 0;
	double kept = 0, sum = 0;
	int32_t n = 0;
	const candidate *top = r->s->top;

	if (truncate)
	{
		for (; pop_to(r, n); n++)
		{
			double e = exp((double) top[n].logit - top[0].logit);

			if (n > 0 && (kept >= p->top_p * mass || e < p->min_p))
				break;
			kept += e;
		}
		r->limit = n;
		mass = kept;
	}
	for (n = 0; (!truncate || n < r->limit) && pop_to(r, n); n++)
	{
		sum += exp((double) top[n].logit - top[0].logit);
		if (sum > u * mass)
			return top[n].id;
	}
	return top[n - 1].id; /* rounding left a crumb of mass */
}

int32_t
qwen_sample(qwen_sampler *s, const qwen_sampling *p, float *logits, const int32_t *tokens, int32_t n, int32_t n_prompt)
{
	ranking r;

	if (s->allowed)
		for (int32_t id = 0; id < s->vocab; id++)
			if (!s->allowed[id])
				logits[id] = -INFINITY;
	if (p->repetition_penalty != 1 || p->presence_penalty != 0 || p->frequency_penalty != 0)
		apply_penalties(s, p, logits, tokens, n, n_prompt);
	if (p->temperature < 1e-5f)
		return argmax(logits, s->vocab);
	rank(&r, s, logits, p->temperature);
	if (r.in_heap == 0)
		return argmax(logits, s->vocab);
	return draw(&r, p, qwen_uniform(p->seed, (uint64_t) n));
}
