/*
 * ref_attention.c
 *	  Head norms, RoPE, the paged cache and attention of the oracle.
 *
 * The cache holds floats, [n_kv][QWEN_KV_BLOCK][dim] to a block.  Where int8
 * is wanted they are what int8 stands for, quantised and multiplied by the
 * scale again, so that what another set makes of an int8 cache can be compared
 * closely.
 */
#include "ref.h"

#include <math.h>
#include <string.h>

#include "../quant.h"

qwen_dtype
qwen_ref_kv_dtype(const qwen_device *dev, qwen_dtype wanted)
{
	return wanted == QWEN_INT8 ? QWEN_INT8 : QWEN_F32;
}

size_t
qwen_ref_kv_block_bytes(const qwen_device *dev, qwen_dtype dtype, const qwen_heads *heads)
{
	return (size_t) heads->n_kv * QWEN_KV_BLOCK * (size_t) heads->dim * sizeof(float);
}

/* The cell of kv head g at a position of a sequence: dim floats of k or v. */
static float *
cache_cell(void *cache, const qwen_heads *heads, const qwen_batch_seq *seq, int32_t position, int32_t g)
{
	int64_t block = seq->blocks[position / QWEN_KV_BLOCK];
	int64_t cell = (block * heads->n_kv + g) * QWEN_KV_BLOCK + position % QWEN_KV_BLOCK;

	return (float *) cache + cell * heads->dim;
}

/* x[dim] = x / sqrt(mean(x^2) + eps) * w */
static void
norm_head(float *x, const float *w, int32_t dim, float eps)
{
	float sum = 0;
	float scale;

	for (int32_t i = 0; i < dim; i++)
		sum += x[i] * x[i];
	scale = 1.0f / sqrtf(sum / (float) dim + eps);
	for (int32_t i = 0; i < dim; i++)
		x[i] = x[i] * scale * w[i];
}

/* Rotate-half pairing: element i with element i + rotary / 2. table = cos | sin of the position. */
static void
rope_head(float *x, const float *table, int32_t rotary)
{
	int32_t half = rotary / 2;

	for (int32_t i = 0; i < half; i++)
	{
		float a = x[i];
		float b = x[i + half];
		float c = table[i];
		float s = table[i + half];

		x[i] = a * c - b * s;
		x[i + half] = b * c + a * s;
	}
}

/* One head of a token into its cell. */
static void
store_head(float *cell, const float *x, int32_t dim, qwen_dtype dtype)
{
	int8_t q[QWEN_MAX_HEAD_DIM];
	float scale;

	memcpy(cell, x, (size_t) dim * sizeof(float));
	if (dtype != QWEN_INT8)
		return;
	scale = qwen_quantize_row(x, dim, q);
	for (int32_t i = 0; i < dim; i++)
		cell[i] = (float) q[i] * scale;
}

void
qwen_ref_qk_rope_store(qwen_device *dev, void *d_qkv, const float *d_q_norm, const float *d_k_norm, const float *d_rope,
					   const qwen_heads *heads, const qwen_kv_layer *kv, const qwen_batch *batch)
{
	for (int32_t s = 0; s < batch->n_seqs; s++)
		for (int32_t i = 0; i < batch->seqs[s].n_tokens; i++)
		{
			const qwen_batch_seq *seq = &batch->seqs[s];
			int64_t t = seq->first_token + i;
			int32_t position = batch->positions[t];
			float *q = (float *) d_qkv + t * (heads->n_q + 2 * heads->n_kv) * heads->dim;
			float *k = q + heads->n_q * heads->dim;
			float *v = k + heads->n_kv * heads->dim;

			for (int32_t j = 0; j < heads->n_q + heads->n_kv; j++)
			{
				const float *w = j < heads->n_q ? d_q_norm : d_k_norm;

				if (w)
					norm_head(q + j * heads->dim, w, heads->dim, heads->eps);
				rope_head(q + j * heads->dim, d_rope + (int64_t) position * heads->rotary, heads->rotary);
			}
			for (int32_t g = 0; g < heads->n_kv; g++)
			{
				store_head(cache_cell(kv->k, heads, seq, position, g), k + g * heads->dim, heads->dim, kv->dtype);
				store_head(cache_cell(kv->v, heads, seq, position, g), v + g * heads->dim, heads->dim, kv->dtype);
			}
		}
}

static float
score(const float *q, const float *k, int32_t dim)
{
	float sum = 0;

	for (int32_t i = 0; i < dim; i++)
		sum += q[i] * k[i];
	return sum / sqrtf((float) dim);
}

/*
 * One query head over the positions 0..last.  Two passes, the scores computed twice, so that no room for them is
 * needed: first their maximum, then weights and sum.
 */
static void
attend(float *out, const float *q, const qwen_heads *heads, const qwen_kv_layer *kv, const qwen_batch_seq *seq,
	   int32_t last, int32_t g)
{
	float max = -INFINITY;
	float sum = 0;

	for (int32_t p = 0; p <= last; p++)
		max = fmaxf(max, score(q, cache_cell(kv->k, heads, seq, p, g), heads->dim));
	memset(out, 0, (size_t) heads->dim * sizeof(float));
	for (int32_t p = 0; p <= last; p++)
	{
		float w = expf(score(q, cache_cell(kv->k, heads, seq, p, g), heads->dim) - max);
		const float *v = cache_cell(kv->v, heads, seq, p, g);

		sum += w;
		for (int32_t i = 0; i < heads->dim; i++)
			out[i] += w * v[i];
	}
	for (int32_t i = 0; i < heads->dim; i++)
		out[i] /= sum;
}

void
qwen_ref_attention(qwen_device *dev, void *d_out, const void *d_qkv, const qwen_heads *heads, const qwen_kv_layer *kv,
				   const qwen_batch *batch)
{
	int32_t group = heads->n_q / heads->n_kv;

	for (int32_t s = 0; s < batch->n_seqs; s++)
		for (int32_t i = 0; i < batch->seqs[s].n_tokens; i++)
		{
			int64_t t = batch->seqs[s].first_token + i;
			const float *q = (const float *) d_qkv + t * (heads->n_q + 2 * heads->n_kv) * heads->dim;
			float *out = (float *) d_out + t * heads->n_q * heads->dim;

			for (int32_t j = 0; j < heads->n_q; j++)
				attend(out + j * heads->dim, q + j * heads->dim, heads, kv, &batch->seqs[s], batch->positions[t],
					   j / group);
		}
}
