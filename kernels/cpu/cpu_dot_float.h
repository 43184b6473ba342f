/*
 * cpu_dot_float.h
 *	  Tiles of a product whose weights are floats of any width. Included by
 *	  cpu_linear.h.
 *
 * Every output is one chain of fused multiply-adds over k, in order.  Weights
 * are widened in registers, once for all rows of the tile.  Where there is
 * vdpbf16ps, bfloat16 is multiplied with activations narrowed to it: the
 * instruction adds the products of two neighbours.
 */

/* Columns of a strip that a step of the product takes, and the bytes it reads of the strip. */
INLINE int64_t
float_step_columns(qwen_dtype dtype)
{
	return dtype == QWEN_BF16 ? 2 : 1;
}

INLINE int64_t
float_step_bytes(qwen_dtype dtype)
{
	return dtype == QWEN_F16 ? 32 : 64;
}

/* sum[a][b] += w[a] x[b], all of ns strips and mr rows whose next element is at x + b stride. */
INLINE void
add_products(vf sum[][DOT_ROWS][SV], vf w[][SV], const float *x, int64_t stride, int ns, int mr)
{
#pragma GCC unroll 8
	for (int b = 0; b < mr; b++)
	{
		vf xv = vf_set(x[b * stride]);

#pragma GCC unroll 4
		for (int a = 0; a < ns; a++)
#pragma GCC unroll 4
			for (int v = 0; v < SV; v++)
				sum[a][b][v] = vf_fma(w[a][v], xv, sum[a][b][v]);
	}
}

/* Vector v of a step of 16 floats, or of the first (odd: second) of two neighbours in bfloat16. */
INLINE vf
step_weights(const char *w, int v, qwen_dtype dtype, bool odd)
{
	if (dtype != QWEN_BF16)
		return vf_load_as(w, v * VL, dtype);
	return (vf) (odd ? vi_load(w + v * 4 * VL) & (int32_t) 0xffff0000 : vi_load(w + v * 4 * VL) << 16);
}

/* A step of float32 or float16, or one half of a step of bfloat16. */
INLINE void
float_step(vf sum[][DOT_ROWS][SV], const char *w, size_t strip, const float *x, int64_t stride, int ns, int mr,
		   qwen_dtype dtype, bool odd)
{
	vf weights[DOT_STRIPS][SV];

#pragma GCC unroll 4
	for (int a = 0; a < ns; a++)
#pragma GCC unroll 4
		for (int v = 0; v < SV; v++)
			weights[a][v] = step_weights(w + (size_t) a * strip, v, dtype, odd);
	add_products(sum, weights, x, stride, ns, mr);
}

/* ns strips by mr rows over the columns of the block. */
INLINE void
float_tile(const linear_job *job, const dot_block *block, const dot_place *at, int ns, int mr, qwen_dtype dtype)
{
	int64_t k = job->w->k, columns = float_step_columns(dtype), bytes = float_step_bytes(dtype);
	size_t strip = block->strip_bytes;
	const char *w = (const char *) job->w->data + (size_t) at->strip * strip + block->begin * bytes;
	const char *ahead = w + at->ahead;
	const float *x = job->x + at->row * k + block->begin * columns;
	vf sum[DOT_STRIPS][DOT_ROWS][SV];
	dot_outputs outputs;

	load_sums(job, block, at, &outputs, sum, ns, mr);
	for (int64_t i = block->begin; i < block->end; i++, w += bytes, x += columns, ahead += block->pace)
	{
		prefetch(ahead, strip, ns);
		float_step(sum, w, strip, x, k, ns, mr, dtype, false);
		if (dtype == QWEN_BF16)
			float_step(sum, w, strip, x + 1, k, ns, mr, dtype, true);
	}
	if (dtype == QWEN_BF16 && block->last && k % 2 != 0)
		float_step(sum, w, strip, x, k, ns, mr, dtype, false);
	store_sums(job, block, at, &outputs, sum, ns, mr);
}

#if defined(__AVX512BF16__)

/* The same for bfloat16 on both sides. */
INLINE void
bf16_tile(const linear_job *job, const dot_block *block, const dot_place *at, int ns, int mr)
{
	int64_t row = narrow_stride(QWEN_BF16, job->w->k);
	size_t strip = block->strip_bytes;
	const char *w = (const char *) job->w->data + (size_t) at->strip * strip + block->begin * 64;
	const char *ahead = w + at->ahead;
	const uint16_t *x = (const uint16_t *) job->narrow + at->row * row + block->begin * 2;
	vf sum[DOT_STRIPS][DOT_ROWS][SV];
	dot_outputs outputs;

	load_sums(job, block, at, &outputs, sum, ns, mr);
	for (int64_t i = block->begin; i < block->end; i++, w += 64, x += 2, ahead += block->pace)
	{
		vi weights[DOT_STRIPS];

		prefetch(ahead, strip, ns);
#pragma GCC unroll 4
		for (int a = 0; a < ns; a++)
			weights[a] = vi_load(w + (size_t) a * strip);
#pragma GCC unroll 8
		for (int b = 0; b < mr; b++)
		{
			vi xv = vi_set4(x + b * row);

#pragma GCC unroll 4
			for (int a = 0; a < ns; a++)
				sum[a][b][0] = _mm512_dpbf16_ps(sum[a][b][0], (__m512bh) weights[a], (__m512bh) xv);
		}
	}
	store_sums(job, block, at, &outputs, sum, ns, mr);
}

#endif
