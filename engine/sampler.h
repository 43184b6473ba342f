/*
 * sampler.h
 *	  From logits to the next token.
 */
#ifndef QWEN_SAMPLER_H
#define QWEN_SAMPLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How one sequence is sampled; every value resolved. */
typedef struct qwen_sampling
{
	float temperature;        /* 0 = greedy */
	float top_p;              /* 1 = off */
	float min_p;              /* 0 = off */
	int32_t top_k;            /* 0 = off */
	float presence_penalty;   /* 0 = off */
	float frequency_penalty;  /* 0 = off */
	float repetition_penalty; /* 1 = off */
	uint64_t seed;
} qwen_sampling;

typedef struct qwen_sampler qwen_sampler;

/*
 * A sampler for vocabularies of vocab rows.  Ids that `allowed` (vocab flags, copied) does not have are never chosen;
 * NULL allows all.  Holds scratch memory, so it belongs to one thread.  NULL when memory is short.
 */
qwen_sampler *qwen_sampler_new(int32_t vocab, const bool *allowed);
void qwen_sampler_free(qwen_sampler *sampler);

/*
 * The next token after tokens[0..n), of which the first n_prompt are the prompt.  logits[vocab] are changed.  The choice
 * depends on the arguments alone: the random number is drawn from (seed, n).
 */
int32_t qwen_sample(qwen_sampler *sampler, const qwen_sampling *sampling, float *logits, const int32_t *tokens,
					int32_t n, int32_t n_prompt);

/* A uniform number in [0, 1) from a counter-based generator (Philox4x32-10). */
double qwen_uniform(uint64_t seed, uint64_t counter);

#endif
