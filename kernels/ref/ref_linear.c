/*
 * ref_linear.c
 *	  Matrix products and row lookups of the oracle. Matrices are float.
 */
#include "ref.h"

#include <string.h>

/* out[t, :] = E[ids[t], :], zeros for -1 */
void
qwen_ref_embed(qwen_device *dev, float *d_out, const qwen_matrix *e, const int32_t *ids, int32_t n)
{
	const float *rows = e->data;

	for (int32_t t = 0; t < n; t++)
		if (ids[t] < 0)
			memset(d_out + t * e->k, 0, (size_t) e->k * sizeof(float));
		else
			memcpy(d_out + t * e->k, rows + ids[t] * e->k, (size_t) e->k * sizeof(float));
}

/* out[i, :] = x[rows[i], :] */
void
qwen_ref_gather(qwen_device *dev, void *d_out, const void *d_x, const int32_t *rows, int32_t n, int64_t h)
{
	float *out = d_out;
	const float *x = d_x;

	for (int32_t i = 0; i < n; i++)
		memcpy(out + i * h, x + rows[i] * h, (size_t) h * sizeof(float));
}

/* out[t, j] = sum over i of W[j, i] x[t, i] + bias[j] */
void
qwen_ref_linear(qwen_device *dev, void *d_out, const qwen_matrix *w, const float *d_bias, const void *d_x, int32_t rows)
{
	float *out = d_out;

	for (int32_t t = 0; t < rows; t++)
		for (int64_t j = 0; j < w->n; j++)
		{
			const float *x = (const float *) d_x + t * w->k;
			const float *row = (const float *) w->data + j * w->k;
			float sum = 0;

			for (int64_t i = 0; i < w->k; i++)
				sum += row[i] * x[i];
			out[t * w->n + j] = sum + (d_bias ? d_bias[j] : 0);
		}
}

bool
qwen_ref_logits(qwen_device *dev, float *out, const qwen_matrix *head, const void *d_x, int32_t rows)
{
	qwen_ref_linear(dev, out, head, NULL, d_x, rows);
	return true;
}
