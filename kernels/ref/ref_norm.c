/*
 * ref_norm.c
 *	  RMSNorm with its residual, and SwiGLU, of the oracle.
 */
#include "ref.h"

#include <math.h>

/* resid += delta; out = resid / sqrt(mean(resid^2) + eps) * w, row by row */
void
qwen_ref_add_rmsnorm(qwen_device *dev, void *d_out, float *d_resid, const void *d_delta, const float *d_w, int32_t n,
					 int64_t h, float eps)
{
	for (int32_t t = 0; t < n; t++)
	{
		float *out = (float *) d_out + t * h;
		float *resid = d_resid + t * h;
		const float *delta = d_delta ? (const float *) d_delta + t * h : NULL;
		float sum = 0;
		float scale;

		for (int64_t i = 0; i < h; i++)
		{
			if (delta)
				resid[i] += delta[i];
			sum += resid[i] * resid[i];
		}
		scale = 1.0f / sqrtf(sum / (float) h + eps);
		for (int64_t i = 0; i < h; i++)
			out[i] = resid[i] * scale * d_w[i];
	}
}

/* out = silu(gate) * up, x[t] = gate[f] | up[f], silu(z) = z / (1 + exp(-z)) */
void
qwen_ref_swiglu(qwen_device *dev, void *d_out, const void *d_x, int32_t n, int64_t f)
{
	for (int32_t t = 0; t < n; t++)
	{
		const float *gate = (const float *) d_x + t * 2 * f;
		const float *up = gate + f;
		float *out = (float *) d_out + t * f;

		for (int64_t i = 0; i < f; i++)
			out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
	}
}
