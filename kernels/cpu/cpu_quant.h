/*
 * cpu_quant.h
 *	  quant.h in vectors: whole groups of QWEN_GROUP elements, to the same
 *	  bytes. Included by cpu_kernels.h.
 *
 * Maxima and minima do not depend on the order in which lanes are compared,
 * and everything else is the scalar definition's arithmetic lane by lane.
 * Groups that are cut short by the end of a row are left to quant.h.
 */

/* q[64] = (w[64] - low) * inverse, rounded within [lo, hi]; returns their sum. */
INLINE int32_t
round_group(const float *w, float low, float inverse, float lo, float hi, void *q)
{
	vi sum = {0};

	for (int i = 0; i < QWEN_GROUP; i += VL)
	{
		vf v = (vf_load(w + i) - low) * inverse;
		vi rounded = vf_round(vf_min(vf_max(v, vf_set(lo)), vf_set(hi)));

		vi_store_bytes((char *) q + i, rounded);
		sum += rounded;
	}
	return vi_reduce_add(sum);
}

INLINE float
group_max_abs(const float *w)
{
	vf max = {0};

	for (int i = 0; i < QWEN_GROUP; i += VL)
		max = vf_max(vf_abs(vf_load(w + i)), max);
	return vf_reduce_max(max);
}

/* n <= QWEN_GROUP weights as int8: q[n], and the scale as bfloat16. */
INLINE uint16_t
quantize_int8(const float *w, int n, int8_t *q)
{
	uint16_t d;

	if (n < QWEN_GROUP)
		return qwen_quantize_int8(w, n, q);
	d = qwen_bf16_up(group_max_abs(w) / 127.0f);
	round_group(w, 0, qwen_inverse(qwen_bf16_float(d)), -127, 127, q);
	return d;
}

/* n <= QWEN_GROUP weights as int4, one to a byte: q[n], the scale and the minimum as bfloat16. */
INLINE uint16_t
quantize_int4(const float *w, int n, uint8_t *q, uint16_t *m)
{
	vf min = vf_set(w[0]), max = min;
	float low;
	uint16_t d;

	if (n < QWEN_GROUP)
		return qwen_quantize_int4(w, n, q, m);
	for (int i = 0; i < QWEN_GROUP; i += VL)
	{
		min = vf_min(vf_load(w + i), min);
		max = vf_max(vf_load(w + i), max);
	}
	*m = qwen_bf16_down(-vf_reduce_max(-min));
	low = qwen_bf16_float(*m);
	d = qwen_bf16_up((vf_reduce_max(max) - low) / 15.0f);
	round_group(w, low, qwen_inverse(qwen_bf16_float(d)), 0, 15, q);
	return d;
}

/* A group of n <= QWEN_GROUP activations: q[n] and their sum; returns the scale. */
INLINE float
quantize_activations(const float *x, int n, int8_t *q, int32_t *sum)
{
	float max;

	if (n < QWEN_GROUP)
	{
		float scale = qwen_quantize_row(x, n, q);

		*sum = 0;
		for (int i = 0; i < n; i++)
			*sum += q[i];
		return scale;
	}
	max = group_max_abs(x);
	*sum = round_group(x, 0, max > 0 ? 127.0f / max : 0, -127, 127, q);
	return max / 127.0f;
}
