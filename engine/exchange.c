/*
 * exchange.c
 *	  What devices give each other in a step.
 *
 * All devices are parts of one processor and see each other's memory: a sum
 * over shards is a loop, a hand-over a copy.  Sums are added in the order of
 * the shards, so that a step's result depends on nothing but the map.
 */
#include <string.h>

#include "model_internal.h"

/* Elements that a thread sums at a time. */
#define SUM_GRAIN 4096

typedef struct sum_job
{
	const qwen_part *parts; /* [tp] */
	int tp;
} sum_job;

/* A qwen_loop_fn over elements. */
static void
sum_piece(void *arg, int64_t begin, int64_t end)
{
	const sum_job *job = arg;
	float *sum = job->parts[0].ws.delta;

	for (int s = 1; s < job->tp; s++)
	{
		const float *other = job->parts[s].ws.delta;

		for (int64_t i = begin; i < end; i++)
			sum[i] += other[i];
	}
	for (int s = 1; s < job->tp; s++)
		memcpy((float *) job->parts[s].ws.delta + begin, sum + begin, (size_t) (end - begin) * sizeof(float));
}

void
qwen_sum_shards(const qwen_model *m, int stage, int32_t n_tokens)
{
	const qwen_part *parts = qwen_stage_parts(m, stage);
	sum_job job = {parts, m->tp};

	if (m->tp > 1)
		parts->dev->ops->loop(parts->dev, (int64_t) n_tokens * m->config.hidden_size, SUM_GRAIN, sum_piece, &job);
}

void
qwen_share_rows(const qwen_model *m, int stage, const int32_t *tokens, int32_t n_tokens)
{
	const qwen_part *parts = qwen_stage_parts(m, stage);
	size_t row = (size_t) m->config.hidden_size * parts->dev->act_bytes;
	int32_t shard_rows = m->config.vocab_size / m->tp;

	for (int32_t t = 0; t < n_tokens; t++)
	{
		int owner = tokens[t] / shard_rows;
		const char *src = (const char *) parts[owner].ws.resid + (size_t) t * row;

		for (int s = 0; s < m->tp; s++)
			if (s != owner)
				memcpy((char *) parts[s].ws.resid + (size_t) t * row, src, row);
	}
}

bool
qwen_hand_over(const qwen_model *m, int from, int to, int32_t n_tokens, bool delta)
{
	bool ok = true;

	for (int s = 0; s < m->tp; s++)
	{
		const qwen_part *a = qwen_stage_parts(m, from) + s, *b = qwen_stage_parts(m, to) + s;
		size_t bytes = (size_t) n_tokens * (size_t) m->config.hidden_size * a->dev->act_bytes;

		ok = ok && b->dev->ops->upload(b->dev, b->ws.resid, a->ws.resid, bytes);
		if (delta)
			ok = ok && b->dev->ops->upload(b->dev, b->ws.delta, a->ws.delta, bytes);
	}
	return ok;
}

/*
 * In place, as a second copy of all logits would be memory that nobody planned: the piece of shard s and row r stands at
 * s * rows + r and belongs to r * tp + s.  Every cycle of that permutation is walked once, with one piece in hand.
 */
void
qwen_interleave_logits(qwen_model *m, float *logits, int32_t rows)
{
	size_t width = (size_t) (m->config.vocab_size / m->tp), bytes = width * sizeof(float);
	size_t n = (size_t) rows * (size_t) m->tp;

	memset(m->moved, 0, n * sizeof(bool));
	for (size_t start = 0; start < n; start++)
	{
		size_t at = start;

		if (m->moved[start])
			continue;
		memcpy(m->local_logits, logits + start * width, bytes);
		for (;;)
		{
			size_t source = at % (size_t) m->tp * (size_t) rows + at / (size_t) m->tp; /* whose piece belongs here */

			m->moved[at] = true;
			if (source == start)
				break;
			memcpy(logits + at * width, logits + source * width, bytes);
			at = source;
		}
		memcpy(logits + at * width, m->local_logits, bytes);
	}
}
