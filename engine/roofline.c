/*
 * roofline.c
 *	  What steps cost at least.
 *
 * Counted is what no implementation can avoid: every stored weight once a
 * step, whatever the number of rows, except for an embedding apart from the
 * head, of which a step reads single rows; every cached key and value of a
 * sequence once a step.  Activations are not counted, they stay in caches.
 * The formulas are those of qwen-models.md 14, with the types as stored.
 */
#include "roofline.h"

#include "../kernels/cpu/cpu_units.h"
#include "measure.h"
#include "model_internal.h"

/* Of the unit itself, or of the device's own products where that is not known. */
static double
best_rate(qwen_device *dev, qwen_dtype dtype)
{
	double unit = qwen_unit_rate(dev, dtype);

	return unit > 0 ? unit : qwen_measure_matrix(dev, dtype);
}

/* Attention multiplies floats or bfloat16, whichever the device is faster at. */
void
qwen_rates_measure(qwen_rates *rates, const qwen_model *m)
{
	const qwen_part *part = qwen_stage_parts(m, m->plan.layer_stage[0]);
	double f32, bf16;

	*rates = (qwen_rates){0};
	if (!part->dev->host)
		return;
	f32 = best_rate(part->dev, QWEN_F32);
	bf16 = best_rate(part->dev, QWEN_BF16);
	rates->bandwidth = qwen_measure_bandwidth(part->dev->n_threads);
	rates->linear = best_rate(part->dev, part->weights->layers[0].qkv.dtype);
	rates->attention = f32 > bf16 ? f32 : bf16;
}

/* Elements of the matrices of all layers. */
static double
layer_elements(const qwen_config *c)
{
	double q = (double) c->n_heads * c->head_dim, kv = (double) c->n_kv_heads * c->head_dim;

	return (double) c->n_layers * c->hidden_size * (2 * q + 2 * kv + 3.0 * c->intermediate_size);
}

/* Bytes of weights that a step reads: of an embedding that is not the head too, hardly any. */
static double
read_bytes(const qwen_model *m)
{
	double sum = 0;

	for (const qwen_weights *w = m->weights; w < m->weights + m->n_parts; w++)
		sum += (double) (w->bytes - (m->config.tied && w->has_head ? 0 : w->embed.bytes));
	return sum;
}

void
qwen_work_add(qwen_work *work, const qwen_model *m, int n_seqs, int first, int n)
{
	const qwen_config *c = &m->config;
	double rows = (double) n_seqs * n;
	double head = (double) c->vocab_size * c->hidden_size;
	double pairs = rows * (first + (n + 1) / 2.0); /* of a query and a key that it sees */

	work->bytes += read_bytes(m) + (double) n_seqs * (first + n) * (double) qwen_model_kv_token_bytes(m);
	work->linear += 2 * (rows * layer_elements(c) + n_seqs * head);
	work->attention += 4 * pairs * c->n_layers * c->n_heads * c->head_dim;
}

/* Seconds for `amount` at `rate`. */
static double
at_rate(double amount, double rate)
{
	return rate > 0 ? amount / rate : 0;
}

static double
compute_seconds(const qwen_work *work, const qwen_rates *rates)
{
	return at_rate(work->linear, rates->linear) + at_rate(work->attention, rates->attention);
}

double
qwen_work_seconds(const qwen_work *work, const qwen_rates *rates)
{
	return qwen_work_moves(work, rates) ? at_rate(work->bytes, rates->bandwidth) : compute_seconds(work, rates);
}

bool
qwen_work_moves(const qwen_work *work, const qwen_rates *rates)
{
	return at_rate(work->bytes, rates->bandwidth) >= compute_seconds(work, rates);
}
