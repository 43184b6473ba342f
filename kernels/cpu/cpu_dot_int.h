/*
 * cpu_dot_int.h
 *	  Tiles of a product whose weights are int8 or int4. Included by
 *	  cpu_linear.h.
 *
 * The activations are int8 too.  Four neighbours of each of VL rows of
 * weights meet four activations in one instruction or a few, and a group's
 * sum is exact in int32, whatever the order; then it is scaled and added to
 * the output as quant.h says.
 *
 *	  AVX-512	vpdpbusd, which wants the weights unsigned: int8 is moved up by 128, and the sums begin with
 *				-128 times the sum of the activations
 *	  AVX2		int4 by vpmaddubsw: eight times 2 * 15 * 127 fit int16, so the way to int32 is gone once in four
 *				steps.  int8 by vpmaddwd, even and odd bytes widened to int16.  vpmaddubsw, of |w| and x with the sign
 *				of w, needs as many instructions for as many products, but three of four on the units that multiply
 *				instead of two: 1.57 cycles against 1.25 on Zen 4
 *	  SSE2		both by pmaddwd
 *
 * A tile takes a whole quad, a group at a time: the outputs wait in the first-level cache anyway while the sums of a
 * group fill the registers, so the strips may as well take turns, and activations are widened once for all of them.
 */

/* Bytes of scales that are asked for before their use: two to four groups. */
#define SCALES_AHEAD 128
/* What is added to int8 weights before they are multiplied. */
#define BYTE_OFFSET (VL == 16 ? 128 : 0)
/* Bytes of a group of activations that were widened: even ones, then odd ones. */
#define WIDE_BYTES (2 * QWEN_GROUP)

/* Whether even and odd bytes are multiplied as int16. */
INLINE bool
widens(qwen_dtype dtype)
{
	return VL == 4 || (VL == 8 && dtype == QWEN_INT8);
}

/* Whether sums are int16, which hold eight products of four columns at the most. */
INLINE bool
sums_short(qwen_dtype dtype)
{
	return VL == 8 && dtype == QWEN_INT4;
}

/* sum + w x: int32 in each lane, or where sums are short, two int16. */
INLINE vi
int_dot(vi sum, vi w, vi x, qwen_dtype dtype)
{
#if VL == 16
	return (vi) _mm512_dpbusd_epi32((__m512i) sum, (__m512i) w, (__m512i) x);
#elif VL == 8
	if (sums_short(dtype))
		return (vi) _mm256_add_epi16((__m256i) sum, _mm256_maddubs_epi16((__m256i) w, (__m256i) x));
	return sum + (vi) _mm256_madd_epi16((__m256i) w, (__m256i) x);
#else
	return sum + (vi) _mm_madd_epi16((__m128i) w, (__m128i) x);
#endif
}

/* Two int16 in each lane to their sum. */
INLINE vi
lengthen_sum(vi sum)
{
#if VL == 8
	return (vi) _mm256_madd_epi16((__m256i) sum, _mm256_set1_epi16(1));
#else
	return sum;
#endif
}

/* ---- one group ---- */

/*
 * A step of a strip, 64 bytes, is multiplied in parts, each of four columns or of two: the low halves of int4's bytes,
 * then the high ones; of those, the even ones, then the odd ones, where they are widened.
 */
typedef struct int_part
{
	bool high;
	bool odd;
	int x; /* bytes from the step's first activation to the part's */
} int_part;

INLINE int
parts_of(qwen_dtype dtype)
{
	return (dtype == QWEN_INT4 ? 2 : 1) * (widens(dtype) ? 2 : 1);
}

INLINE int_part
part_of(qwen_dtype dtype, int i)
{
	bool odd = widens(dtype) && i % 2 != 0, high = widens(dtype) ? i >= 2 : i >= 1;

	return (int_part){high, odd, (high ? 4 : 0) + (odd ? WIDE_BYTES / 2 : 0)};
}

INLINE vi
part_weights(const char *p, int_part part, qwen_dtype dtype)
{
	vi w = vi_load(p);

	if (dtype == QWEN_INT4)
		w = (part.high ? w >> 4 : w) & 0x0f0f0f0f;
	else if (BYTE_OFFSET)
		w ^= (int32_t) 0x80808080;
	if (!widens(dtype))
		return w;
	return (vi) (part.odd ? (vshort) w >> 8 : (vshort) w << 8 >> 8);
}

/* What the parts of a tile pass on: the next bytes of some strips, of the memory to prefetch, of some rows. */
typedef struct int_cursor
{
	const char *w;
	const char *ahead;
	const char *x;
	size_t strip; /* bytes from one strip to the next */
	int64_t row;  /* bytes from one row of x to the next */
	int64_t pace; /* bytes that `ahead` moves in a step */
} int_cursor;

/* One part of a step: all ns strips by mr rows. */
INLINE void
add_part(vi sum[][DOT_ROWS][SV], const int_cursor *c, int_part part, int ns, int mr, qwen_dtype dtype)
{
	vi w[DOT_STRIPS][SV];

#pragma GCC unroll 4
	for (int a = 0; a < ns; a++)
#pragma GCC unroll 4
		for (int v = 0; v < SV; v++)
		{
			w[a][v] = part_weights(c->w + (size_t) a * c->strip + v * 4 * VL, part, dtype);
			KEEP(w[a][v]);
		}
#pragma GCC unroll 8
	for (int b = 0; b < mr; b++)
	{
		vi x = vi_set4(c->x + b * c->row + part.x);

#pragma GCC unroll 4
		for (int a = 0; a < ns; a++)
#pragma GCC unroll 4
			for (int v = 0; v < SV; v++)
			{
				sum[a][b][v] = int_dot(sum[a][b][v], w[a][v], x, dtype);
				KEEP(sum[a][b][v]);
			}
	}
}

/* sum = the sums of the next steps; in int8 they begin with what moving the weights up by BYTE_OFFSET adds. */
INLINE void
sum_steps(vi sum[][DOT_ROWS][SV], int_cursor *c, int steps, const int32_t *x_sums, int64_t stride, int ns, int mr,
		  qwen_dtype dtype)
{
#pragma GCC unroll 8
	for (int b = 0; b < mr; b++)
#pragma GCC unroll 4
		for (int a = 0; a < ns; a++)
#pragma GCC unroll 4
			for (int v = 0; v < SV; v++)
				sum[a][b][v] = (vi){0} + (dtype == QWEN_INT8 ? -BYTE_OFFSET * x_sums[b * stride] : 0);
	for (int i = 0; i < steps; i++)
	{
		prefetch(c->ahead, c->strip, ns);
#pragma GCC unroll 4
		for (int part = 0; part < parts_of(dtype); part++)
			add_part(sum, c, part_of(dtype, part), ns, mr, dtype);
		c->w += 64;
		c->x += dtype == QWEN_INT4 ? 8 : 4;
		c->ahead += c->pace;
	}
}

/* The exact sums of a group; short ones are lengthened after half of it. */
INLINE void
sum_group(vi sum[][DOT_ROWS][SV], int_cursor c, const int32_t *x_sums, int64_t stride, int ns, int mr, qwen_dtype dtype)
{
	int steps = QWEN_GROUP / (dtype == QWEN_INT4 ? 8 : 4);
	vi half[DOT_STRIPS][DOT_ROWS][SV];

	if (!sums_short(dtype))
	{
		sum_steps(sum, &c, steps, x_sums, stride, ns, mr, dtype);
		return;
	}
	sum_steps(half, &c, steps / 2, x_sums, stride, ns, mr, dtype);
	sum_steps(sum, &c, steps / 2, x_sums, stride, ns, mr, dtype);
#pragma GCC unroll 8
	for (int b = 0; b < mr; b++)
#pragma GCC unroll 4
		for (int a = 0; a < ns; a++)
#pragma GCC unroll 4
			for (int v = 0; v < SV; v++)
				sum[a][b][v] = lengthen_sum(half[a][b][v]) + lengthen_sum(sum[a][b][v]);
}

/* ---- the tile ---- */

/* out += (d s) sum, for int4 after m (s sum(q)); scales[0..] of strip a are at scales + a strip. */
INLINE void
add_group(vf out[][DOT_ROWS][SV], vi sum[][DOT_ROWS][SV], const char *scales, size_t strip, const float *s,
		  const float *shifts, int64_t stride, int ns, int mr, qwen_dtype dtype)
{
#pragma GCC unroll 4
	for (int a = 0; a < ns; a++)
#pragma GCC unroll 4
		for (int v = 0; v < SV; v++)
		{
			vf d = vf_load_as(scales + (size_t) a * strip, v * VL, QWEN_BF16);

#pragma GCC unroll 8
			for (int b = 0; b < mr; b++)
			{
				vf sv = vf_set(s[b * stride]);

				if (dtype == QWEN_INT4)
				{
					vf m = vf_load_as(scales + (size_t) a * strip, STRIP + v * VL, QWEN_BF16);

					out[a][b][v] = vf_fma(m, vf_set(shifts[b * stride]), out[a][b][v]);
				}
				out[a][b][v] = vf_fma(__builtin_convertvector(sum[a][b][v], vf), d * sv, out[a][b][v]);
			}
		}
}

/* A group of mr rows, each as WIDE_BYTES at wide + b WIDE_BYTES. */
INLINE void
widen_inputs(char *wide, const int8_t *x, int64_t row, int mr)
{
#pragma GCC unroll 8
	for (int b = 0; b < mr; b++)
#pragma GCC unroll 4
		for (int i = 0; i < QWEN_GROUP; i += (int) sizeof(vi))
		{
			vshort bytes = (vshort) vi_load(x + b * row + i), even = bytes << 8 >> 8, odd = bytes >> 8;

			memcpy(wide + b * WIDE_BYTES + i, &even, sizeof(even));
			memcpy(wide + b * WIDE_BYTES + WIDE_BYTES / 2 + i, &odd, sizeof(odd));
		}
}

/* A quad by mr rows over the groups of the block, ns strips at a time. */
INLINE void
int_tile(const linear_job *job, const dot_block *block, const dot_place *at, int ns, int mr, qwen_dtype dtype)
{
	int64_t k = padded_k(dtype, job->w->k), groups = k / QWEN_GROUP, row = narrow_stride(dtype, k);
	int64_t group = block->begin, group_bytes = QWEN_GROUP * STRIP / (dtype == QWEN_INT4 ? 2 : 1);
	int64_t steps = group_bytes / 64, scale_bytes = dtype == QWEN_INT4 ? 64 : 32;
	size_t strip = block->strip_bytes;
	const char *w = (const char *) job->w->data + (size_t) at->strip * strip + group * group_bytes;
	const char *scales = w - group * group_bytes + strip_element_bytes(dtype, k) + group * scale_bytes;
	const char *ahead = w + at->ahead;
	const int8_t *x = (const int8_t *) job->narrow + at->row * row + group * QWEN_GROUP;
	vf out[DOT_STRIPS][DOT_ROWS][SV];
	dot_outputs outputs;

	load_sums(job, block, at, &outputs, out, DOT_STRIPS, mr);
	for (; group < block->end; group++)
	{
		_Alignas(64) char wide[DOT_ROWS * WIDE_BYTES];
		int64_t first = at->row * groups + group;

		if (widens(dtype))
			widen_inputs(wide, x, row, mr);
#pragma GCC unroll 1
		for (int a = 0; a < DOT_STRIPS; a += ns)
		{
			size_t offset = (size_t) a * strip;
			int_cursor c = {w + offset, ahead + offset, (const char *) x, strip, row, block->pace};
			vi sum[DOT_STRIPS][DOT_ROWS][SV];

			if (widens(dtype))
			{
				c.x = wide;
				c.row = WIDE_BYTES;
			}
			prefetch(scales + offset + SCALES_AHEAD, strip, ns);
			sum_group(sum, c, job->sums + first, groups, ns, mr, dtype);
			add_group(out + a, sum, scales + offset, strip, job->scales + first,
					  dtype == QWEN_INT4 ? job->shifts + first : NULL, groups, ns, mr, dtype);
		}
		w += group_bytes;
		x += QWEN_GROUP;
		ahead += steps * block->pace;
		scales += scale_bytes;
	}
	store_sums(job, block, at, &outputs, out, DOT_STRIPS, mr);
}
