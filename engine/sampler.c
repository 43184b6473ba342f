/*
 * sampler.c
 *	  From logits to the next token: penalties, temperature, truncation, draw.
 *
 * Order of processing (as the models' vendors tune for): mask, repetition,
 * frequency and presence penalty, temperature, top-k, top-p, min-p, draw.
 *
 * A vocabulary has 150,000 rows and a draw looks at a few dozen of them, so
 * one plain pass over the logits takes the maximum of each block, and what
 * follows visits only the blocks that can hold something of interest.  Every
 * truncation keeps a prefix of the candidates in the order (logit descending,
 * id ascending): candidates come in bands, each from the best blocks that are
 * left, the next one only when the one before is used up, and a heap over the
 * band gives them one by one until the draw is decided.
 */
#include "sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Logits in a block, a multiple of LANES. */
#define BLOCK 64
/* Blocks that make the first band; each further one takes twice as many. */
#define FIRST_BAND 16
/* Candidates with less than e^-52 of the best one's probability: 2^17 of them are less than a double can tell from 0. */
#define NEGLIGIBLE 52.0f

/* Elements that are treated alike in one instruction, on any processor of the kind. */
#define LANES 4
typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef uint32_t bit_lanes __attribute__((vector_size(LANES * sizeof(uint32_t))));

typedef struct candidate
{
	float logit;
	int32_t id; /* token, or block */
} candidate;

struct qwen_sampler
{
	int32_t vocab;
	int32_t n_blocks;
	int32_t *masked; /* [n_masked] ids that are never chosen, ascending */
	int32_t n_masked;
	float *maxima;      /* [n_blocks] of the logits at hand */
	candidate *blocks;  /* [n_blocks] ordered as order is, by their maxima */
	candidate *order;   /* [vocab] from the front a heap, from the back what was popped from it */
	int32_t *seen;      /* [vocab] occurrences in prompt and output; all zero between calls */
	int32_t *in_output; /* [vocab] occurrences in the output; all zero between calls */
};

/* Lists the ids that allowed lacks. */
static bool
copy_mask(qwen_sampler *s, const bool *allowed)
{
	int32_t n = 0;

	for (int32_t id = 0; id < s->vocab; id++)
		n += !allowed[id];
	s->masked = calloc((size_t) n + 1, sizeof(int32_t));
	if (!s->masked)
		return false;
	for (int32_t id = 0; id < s->vocab; id++)
		if (!allowed[id])
			s->masked[s->n_masked++] = id;
	return true;
}

qwen_sampler *
qwen_sampler_new(int32_t vocab, const bool *allowed)
{
	qwen_sampler *s = calloc(1, sizeof(*s));
	size_t n = (size_t) vocab;

	if (!s)
		return NULL;
	s->vocab = vocab;
	s->n_blocks = (vocab + BLOCK - 1) / BLOCK;
	s->maxima = calloc((size_t) s->n_blocks, sizeof(float));
	s->blocks = calloc((size_t) s->n_blocks, sizeof(candidate));
	s->order = calloc(n, sizeof(candidate));
	s->seen = calloc(n, sizeof(int32_t));
	s->in_output = calloc(n, sizeof(int32_t));
	if (!s->maxima || !s->blocks || !s->order || !s->seen || !s->in_output || (allowed && !copy_mask(s, allowed)))
	{
		qwen_sampler_free(s);
		return NULL;
	}
	return s;
}

void
qwen_sampler_free(qwen_sampler *s)
{
	if (!s)
		return;
	free(s->masked);
	free(s->maxima);
	free(s->blocks);
	free(s->order);
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

/* ---- maxima ---- */

static inline lanes
load(const float *x)
{
	lanes v;

	memcpy(&v, x, sizeof(v));
	return v;
}

/* Of n logits; comparisons with NaN are false, so it is passed over. */
static float
maximum(const float *x, int32_t n)
{
	lanes max = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
	float best = -INFINITY;
	int32_t i = 0;

	for (; i + LANES <= n; i += LANES)
	{
		lanes v = load(x + i);
		bit_lanes higher = (bit_lanes) (v > max);

		max = (lanes) (((bit_lanes) v & higher) | ((bit_lanes) max & ~higher));
	}
	for (; i < n; i++)
		best = x[i] > best ? x[i] : best;
	for (int l = 0; l < LANES; l++)
		best = max[l] > best ? max[l] : best;
	return best;
}

/* Logits of a block: all have BLOCK, but the last one. */
static int32_t
block_size(const qwen_sampler *s, int32_t block)
{
	int32_t left = s->vocab - block * BLOCK;

	return left < BLOCK ? left : BLOCK;
}

static void
find_maxima(qwen_sampler *s, const float *logits)
{
	for (int32_t b = 0; b < s->n_blocks; b++)
		s->maxima[b] = maximum(logits + b * BLOCK, block_size(s, b));
}

/* The lowest id among those of the highest logit; 0 when no logit is a number. */
static int32_t
best_id(const qwen_sampler *s, const float *logits)
{
	int32_t best = 0;

	for (int32_t b = 1; b < s->n_blocks; b++)
		if (s->maxima[b] > s->maxima[best])
			best = b;
	for (int32_t id = best * BLOCK; id < best * BLOCK + block_size(s, best); id++)
		if (logits[id] == s->maxima[best])
			return id;
	return 0;
}

/* ---- order ---- */

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

static void
make_heap(candidate *heap, int32_t n)
{
	for (int32_t i = n / 2 - 1; i >= 0; i--)
		sift_down(heap, n, i);
}

/* Takes the best of n out of a heap. */
static candidate
pop(candidate *heap, int32_t n)
{
	candidate first = heap[0];

	heap[0] = heap[n - 1];
	sift_down(heap, n - 1, 0);
	return first;
}

/* The candidates in their order, as far as somebody has asked for them. */
typedef struct ranking
{
	qwen_sampler *s;
	const float *logits;
	float best;            /* the highest logit */
	float per_temperature; /* 1 / temperature */
	float bottom;          /* candidates of at least this logit have been collected */
	int32_t n_blocks;      /* that have candidates */
	int32_t taken;         /* of them, which stand in the last places of their heap */
	int32_t band;          /* blocks in the next band */
	int32_t in_heap;       /* candidates of the band */
	int32_t popped;
	int32_t limit; /* most that may be popped */
} ranking;

static void
start_ranking(ranking *r, qwen_sampler *s, const float *logits, float best, float temperature)
{
	*r = (ranking){
		.s = s,
		.logits = logits,
		.best = best,
		.per_temperature = 1 / temperature,
		.bottom = INFINITY,
		.band = FIRST_BAND,
		.limit = INT32_MAX,
	};
	for (int32_t b = 0; b < s->n_blocks; b++)
		if (s->maxima[b] > -INFINITY)
			s->blocks[r->n_blocks++] = (candidate){s->maxima[b], b};
	make_heap(s->blocks, r->n_blocks);
}

/* The i-th best candidate, i < popped. */
static candidate *
top(const ranking *r, int32_t i)
{
	return &r->s->order[r->s->vocab - 1 - i];
}

/* Probability of the i-th best candidate in units of the best one's. */
static double
weight(const ranking *r, int32_t i)
{
	return exp(((double) top(r, i)->logit - r->best) * r->per_temperature);
}

/* Adds a block's candidates of the band [bottom, above) to the heap. */
static void
collect(ranking *r, int32_t block, float above)
{
	int32_t end = block * BLOCK + block_size(r->s, block);

	for (int32_t id = block * BLOCK; id < end; id++)
		if (r->logits[id] >= r->bottom && r->logits[id] < above && r->logits[id] > -INFINITY)
			r->s->order[r->in_heap++] = (candidate){r->logits[id], id};
}

/*
 * Puts the candidates of the next band into the empty heap; false when there are none left.  A band goes down to the
 * maximum of the last block that it takes, equal ones included, or to the end when it takes them all: so everything
 * that belongs to it is in the blocks taken so far.
 */
static bool
next_band(ranking *r)
{
	candidate *blocks = r->s->blocks;
	float above = r->bottom;
	int32_t wanted = r->taken + r->band;

	if (above == -INFINITY)
		return false;
	while (r->taken < r->n_blocks && (r->taken < wanted || blocks[0].logit == r->bottom))
	{
		candidate block = pop(blocks, r->n_blocks - r->taken);

		r->bottom = block.logit;
		blocks[r->n_blocks - 1 - r->taken++] = block;
	}
	if (r->taken == r->n_blocks)
		r->bottom = -INFINITY;
	r->band *= 2;
	for (int32_t i = 0; i < r->taken; i++)
		collect(r, blocks[r->n_blocks - 1 - i].id, above);
	make_heap(r->s->order, r->in_heap);
	return true;
}

/* Makes the i-th best candidate available; false when there are not that many. */
static bool
pop_to(ranking *r, int32_t i)
{
	while (r->popped <= i)
	{
		candidate next;

		if (r->popped >= r->limit)
			return false;
		while (r->in_heap == 0)
			if (!next_band(r))
				return false;
		next = pop(r->s->order, r->in_heap--);
		*top(r, r->popped++) = next;
	}
	return true;
}

/* ---- truncation and draw ---- */

/* Keeps the k best and everything that ties with the k-th; returns the mass relative to the best. */
static double
keep_top_k(ranking *r, int32_t k)
{
	double mass = 0;
	int32_t n = 0;

	while (pop_to(r, n) && (n < k || top(r, n)->logit == top(r, k - 1)->logit))
		mass += weight(r, n++);
	r->limit = n;
	return mass;
}

/*
 * e^x for x <= 0 within a few units of the last place: 2^(x / ln 2), of which the whole part goes into the exponent and
 * the rest, in [-1/2, 1/2], into the series of e^(t ln 2).  0 below 2^-126.
 */
static inline lanes
exponential(lanes x)
{
	const float magic = 0x1.8p23f; /* adding it leaves the nearest whole number in the lowest bits */
	lanes t = x * 1.44269504f;
	bit_lanes normal = (bit_lanes) (t > -126.0f);
	lanes whole = t + magic;
	lanes p;

	t = (t - (whole - magic)) * 0.693147181f;
	p = 1 + t * (1 + t * (1 / 2.f + t * (1 / 6.f + t * (1 / 24.f + t * (1 / 120.f + t * (1 / 720.f))))));
	return (lanes) (((bit_lanes) p + ((bit_lanes) whole << 23)) & normal);
}

/* The mass of n candidates in units of the best one's. */
static double
mass_of(const ranking *r, const float *x, int32_t n)
{
	lanes sum = {0};
	double mass = 0;
	int32_t i = 0;

	for (; i + LANES <= n; i += LANES)
		sum += exponential((load(x + i) - r->best) * r->per_temperature);
	for (int l = 0; l < LANES; l++)
		mass += (double) sum[l];
	for (; i < n; i++)
		mass += exp(((double) x[i] - r->best) * r->per_temperature);
	return mass;
}

static double
whole_mass(const ranking *r)
{
	const qwen_sampler *s = r->s;
	double mass = 0;

	for (int32_t b = 0; b < s->n_blocks; b++)
		if ((s->maxima[b] - r->best) * r->per_temperature > -NEGLIGIBLE)
			mass += mass_of(r, r->logits + b * BLOCK, block_size(s, b));
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
	bool truncate = p->top_p < 1 || p->min_p > 0;
	double mass, kept = 0, sum = 0;
	int32_t n = 0;

	if (p->top_k > 0)
		mass = keep_top_k(r, p->top_k);
	else
		mass = p->top_p < 1 || !truncate ? whole_mass(r) : INFINITY;
	if (truncate)
	{
		for (; pop_to(r, n); n++)
		{
			double w = weight(r, n);

			if (n > 0 && (kept >= p->top_p * mass || w < p->min_p))
				break;
			kept += w;
		}
		r->limit = n;
		mass = kept;
	}
	for (n = 0; n < r->limit && pop_to(r, n); n++)
	{
		sum += weight(r, n);
		if (sum > u * mass)
			return top(r, n)->id;
	}
	return top(r, n - 1)->id; /* rounding left a crumb of mass */
}

int32_t
qwen_sample(qwen_sampler *s, const qwen_sampling *p, float *logits, const int32_t *tokens, int32_t n, int32_t n_prompt)
{
	ranking r;
	int32_t best;

	for (int32_t i = 0; i < s->n_masked; i++)
		logits[s->masked[i]] = -INFINITY;
	if (p->repetition_penalty != 1 || p->presence_penalty != 0 || p->frequency_penalty != 0)
		apply_penalties(s, p, logits, tokens, n, n_prompt);
	find_maxima(s, logits);
	best = best_id(s, logits);
	if (p->temperature < 1e-5f || !isfinite(logits[best]))
		return best;
	start_ranking(&r, s, logits, logits[best], p->temperature);
	return draw(&r, p, qwen_uniform(p->seed, (uint64_t) n));
}
