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
 *	  AVX2		vpmaddubsw: int8 as |w| times x with the sign of w, so that 2 * 127^2 fits int16; int4 as it is, eight
 *				times 2 * 15 * 127 still fit, so the way to int32 is gone once in four steps
 *	  SSE2		pmaddwd on the even and the odd bytes widened to int16
 */

/* Steps of int4 after which its sums must be emptied. */
#define NIBBLE_STEPS (VL == 8 ? 4 : QWEN_GROUP / 8)
/* Bytes of scales that are asked for before their use: two to four groups. */
#define SCALES_AHEAD 128
/* What is added to int8 weights before they are multiplied. */
#define BYTE_OFFSET (VL == 16 ? 128 : 0)

#if VL == 16

INLINE vi
byte_weights(const char *w)
{
	return vi_load(w) ^ (int32_t) 0x80808080;
}

INLINE vi
byte_dot(vi sum, vi w, vi x)
{
	return (vi) _mm512_dpbusd_epi32((__m512i) sum, (__m512i) w, (__m512i) x);
}

INLINE vi
nibble_dot(vi sum, vi w, vi x)
{
	return byte_dot(sum, w, x);
}

INLINE vi
nibble_sum(vi sum)
{
	return sum;
}

#elif VL == 8

INLINE vi
byte_weights(const char *w)
{
	return vi_load(w);
}

/* int16 pairs to int32 */
INLINE vi
nibble_sum(vi sum)
{
	return (vi) _mm256_madd_epi16((__m256i) sum, _mm256_set1_epi16(1));
}

INLINE vi
byte_dot(vi sum, vi w, vi x)
{
	__m256i magnitude = _mm256_abs_epi8((__m256i) w);

	return sum + nibble_sum((vi) _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8((__m256i) x, (__m256i) w)));
}

INLINE vi
nibble_dot(vi sum, vi w, vi x)
{
	return (vi) _mm256_add_epi16((__m256i) sum, _mm256_maddubs_epi16((__m256i) w, (__m256i) x));
}

#else

INLINE vi
byte_weights(const char *w)
{
	return vi_load(w);
}

INLINE __m128i
even_bytes(vi v)
{
	return _mm_srai_epi16(_mm_slli_epi16((__m128i) v, 8), 8);
}

INLINE __m128i
odd_bytes(vi v)
{
	return _mm_srai_epi16((__m128i) v, 8);
}

INLINE vi
byte_dot(vi sum, vi w, vi x)
{
	return sum + (vi) _mm_madd_epi16(even_bytes(w), even_bytes(x)) + (vi) _mm_madd_epi16(odd_bytes(w), odd_bytes(x));
}

INLINE vi
nibble_dot(vi sum, vi w, vi x)
{
	return byte_dot(sum, w, x);
}

INLINE vi
nibble_sum(vi sum)
{
	return sum;
}

#endif

/* ---- one group ---- */

/* What the parts of a tile pass on: the next bytes of its strips, of the memory to prefetch, of its rows. */
typedef struct int_cursor
{
	const char *w;
	const char *ahead;
	const int8_t *x;
	size_t strip; /* bytes from one strip to the next */
	int64_t row;  /* bytes from one row of x to the next */
	int64_t pace; /* bytes that `ahead` moves in a step */
} int_cursor;

/* A step of int8: four columns. */
INLINE void
byte_step(vi sum[][DOT_ROWS][SV], const int_cursor *c, int ns, int mr)
{
	vi w[DOT_STRIPS][SV];

#pragma GCC unroll 4
	for (int a = 0; a < ns; a++)
#pragma GCC unroll 4
		for (int v = 0; v < SV; v++)
			w[a][v] = byte_weights(c->w + (size_t) a * c->strip + v * 4 * VL);
#pragma GCC unroll 8
	for (int b = 0; b < mr; b++)
	{
		vi x = vi_set4(c->x + b * c->row);

#pragma GCC unroll 4
		for (int a = 0; a < ns; a++)
#pragma GCC unroll 4
			for (int v = 0; v < SV; v++)
				sum[a][b][v] = byte_dot(sum[a][b][v], w[a][v], x);
	}
}

/* Half a step of int4: the four columns in the low halves of the bytes, or those in the high ones. */
INLINE void
nibble_step(vi sum[][DOT_ROWS][SV], const int_cursor *c, int ns, int mr, bool high)
{
	vi w[DOT_STRIPS][SV];

#pragma GCC unroll 4
	for (int a = 0; a < ns; a++)
#pragma GCC unroll 4
		for (int v = 0; v < SV; v++)
		{
			vi bytes = vi_load(c->w + (size_t) a * c->strip + v * 4 * VL);

			w[a][v] = (high ? bytes >> 4 : bytes) & 0x0f0f0f0f;
		}
#pragma GCC unroll 8
	for (int b = 0; b < mr; b++)
	{
		vi x = vi_set4(c->x + b * c->row + (high ? 4 : 0));

#pragma GCC unroll 4
		for (int a = 0; a < ns; a++)
#pragma GCC unroll 4
			for (int v = 0; v < SV; v++)
				sum[a][b][v] = nibble_dot(sum[a][b][v], w[a][v], x);
	}
}

INLINE void
set_sums(vi sum[][DOT_ROWS][SV], int b, int32_t value, int ns)
{
#pragma GCC unroll 4
	for (int a = 0; a < ns; a++)
#pragma GCC unroll 4
		for (int v = 0; v < SV; v++)
			sum[a][b][v] = (vi){0} + value;
}

/* The sums of the next group, exact: sum[a][b]. */
INLINE void
byte_group(vi sum[][DOT_ROWS][SV], int_cursor *c, const int32_t *x_sums, int64_t stride, int ns, int mr)
{
#pragma GCC unroll 8
	for (int b = 0; b < mr; b++)
		set_sums(sum, b, BYTE_OFFSET ? -BYTE_OFFSET * x_sums[b * stride] : 0, ns);
	for (int i = 0; i < QWEN_GROUP / 4; i++)
	{
		prefetch(c->ahead, c->strip, ns);
		byte_step(sum, c, ns, mr);
		c->w += 64;
		c->x += 4;
		c->ahead += c->pace;
	}
}

INLINE void
nibble_part(vi sum[][DOT_ROWS][SV], int_cursor *c, int ns, int mr)
{
#pragma GCC unroll 8
	for (int b = 0; b < mr; b++)
		set_sums(sum, b, 0, ns);
	for (int i = 0; i < NIBBLE_STEPS; i++)
	{
		prefetch(c->ahead, c->strip, ns);
		nibble_step(sum, c, ns, mr, false);
		nibble_step(sum, c, ns, mr, true);
		c->w += 64;
		c->x += 8;
		c->ahead += c->pace;
	}
}

INLINE void
nibble_group(vi sum[][DOT_ROWS][SV], int_cursor *c, int ns, int mr)
{
	vi part[DOT_STRIPS][DOT_ROWS][SV];

	nibble_part(sum, c, ns, mr);
#pragma GCC unroll 8
	for (int b = 0; b < mr; b++)
#pragma GCC unroll 4
		for (int a = 0; a < ns; a++)
#pragma GCC unroll 4
			for (int v = 0; v < SV; v++)
				sum[a][b][v] = nibble_sum(sum[a][b][v]);
	if (NIBBLE_STEPS == QWEN_GROUP / 8)
		return;
	nibble_part(part, c, ns, mr);
#pragma GCC unroll 8
	for (int b = 0; b < mr; b++)
#pragma GCC unroll 4
		for (int a = 0; a < ns; a++)
#pragma GCC unroll 4
			for (int v = 0; v < SV; v++)
				sum[a][b][v] += nibble_sum(part[a][b][v]);
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

/* ns strips by mr rows over the groups of the block. */
INLINE void
int_tile(const linear_job *job, const dot_block *block, const dot_place *at, int ns, int mr, qwen_dtype dtype)
{
	int64_t k = padded_k(dtype, job->w->k), groups = k / QWEN_GROUP, row = narrow_stride(dtype, k);
	int64_t group = block->begin, group_bytes = QWEN_GROUP * STRIP / (dtype == QWEN_INT4 ? 2 : 1);
	const char *base = (const char *) job->w->data + (size_t) at->strip * block->strip_bytes;
	const char *w = base + group * group_bytes;
	const char *scales = base + strip_element_bytes(dtype, k) + group * (dtype == QWEN_INT4 ? 64 : 32);
	int_cursor c = {
		w,   w + at->ahead, (const int8_t *) job->narrow + at->row * row + group * QWEN_GROUP, block->strip_bytes,
		row, block->pace};
	vf out[DOT_STRIPS][DOT_ROWS][SV];
	dot_outputs outputs;

	load_sums(job, block, at, &outputs, out, ns, mr);
	for (; group < block->end; group++)
	{
		int64_t first = at->row * groups + group;
		vi sum[DOT_STRIPS][DOT_ROWS][SV];

		prefetch(scales + SCALES_AHEAD, c.strip, ns);
		if (dtype == QWEN_INT8)
			byte_group(sum, &c, job->sums + first, groups, ns, mr);
		else
			nibble_group(sum, &c, ns, mr);
		add_group(out, sum, scales, c.strip, job->scales + first, dtype == QWEN_INT4 ? job->shifts + first : NULL,
				  groups, ns, mr, dtype);
		scales += dtype == QWEN_INT4 ? 64 : 32;
	}
	store_sums(job, block, at, &outputs, out, ns, mr);
}
