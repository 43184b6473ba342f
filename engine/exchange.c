/*
 * exchange.c
 *	  What devices give each other in a step.
 *
 * Which devices they are and how bytes get from one to another is the
 * business of their kernels; here is what they exchange.  Sums are added in
 * the order of the shards, so that a step's result depends on nothing but the
 * map.
 */
#include <string.h>

#include "model_internal.h"

void
qwen_stage_devices(const qwen_model *m, int stage, qwen_device **devs)
{
	for (int s = 0; s < m->tp; s++)
		devs[s] = qwen_stage_parts(m, stage)[s].dev;
}

bool
qwen_sum_shards(const qwen_model *m, int stage, int32_t n_tokens)
{
	qwen_device *devs[QWEN_PLAN_MAX_DEVICES];
	void *deltas[QWEN_PLAN_MAX_DEVICES];

	if (m->tp == 1)
		return true;
	qwen_stage_devices(m, stage, devs);
	for (int s = 0; s < m->tp; s++)
		deltas[s] = qwen_stage_parts(m, stage)[s].ws.delta;
	return devs[0]->ops->sum(devs, deltas, m->tp, (int64_t) n_tokens * m->config.hidden_size);
}

bool
qwen_sum_rows(const qwen_model *m, int stage, int32_t n_tokens)
{
	qwen_device *devs[QWEN_PLAN_MAX_DEVICES];
	float *rows[QWEN_PLAN_MAX_DEVICES];

	if (m->tp == 1)
		return true;
	qwen_stage_devices(m, stage, devs);
	for (int s = 0; s < m->tp; s++)
		rows[s] = qwen_stage_parts(m, stage)[s].ws.resid;
	return devs[0]->ops->sum_resid(devs, rows, m->tp, (int64_t) n_tokens * m->config.hidden_size);
}

bool
qwen_hand_over(const qwen_model *m, int from, int to, int32_t n_tokens, bool delta)
{
	size_t bytes = (size_t) n_tokens * (size_t) m->config.hidden_size * sizeof(float);
	bool ok = true;

	for (int s = 0; s < m->tp; s++)
	{
		const qwen_part *a = qwen_stage_parts(m, from) + s, *b = qwen_stage_parts(m, to) + s;

		if (delta)
			a->dev->ops->add(a->dev, a->ws.resid, a->ws.delta, n_tokens, m->config.hidden_size);
		ok = ok && b->dev->ops->copy(b->dev, b->ws.resid, a->dev, a->ws.resid, bytes);
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
