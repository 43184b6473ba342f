/*
 * cpu_attention_product.h
 *	  The product that both halves of attention are made of. Included by
 *	  cpu_attention.h.
 *
 * Keys and values stand in the cache as steps of 16 lanes (cpu_kv.h).  Some
 * rows of factors - queries, or weights of tokens - are multiplied by some of
 * these strips:
 *
 *	  sum[row][strip][16 lanes] += factor[row][step] * strip[step][16 lanes]
 *
 * The factors of a row are words of 32 bits, each broadcast to all lanes: a
 * float, a pair of bfloat16 where the processor multiplies such pairs, or a
 * pair of int16 for int8, whose sums are exact in 32 bits (127 * 32767 * 512).
 * A sum has one chain of additions, in order of the steps, whatever rows and
 * strips it is computed with.
 */

/* Rows and strips that are multiplied at a time: their sums fit the registers. */
#if VL == 16
#define MAX_ROWS 8
#define STRIPS 2
#elif VL == 8
#define MAX_ROWS 4
#define STRIPS 1
#else
#define MAX_ROWS 2
#define STRIPS 1
#endif

/* Vectors of 16 lanes. */
#define LANES (STRIP / VL)

#if defined(__AVX512BF16__)
#define BF16_PAIRS true
#else
#define BF16_PAIRS false
#endif

/* Factor words of a step. */
INLINE int
step_words(qwen_dtype dtype)
{
	return dtype == QWEN_INT8 || (dtype == QWEN_BF16 && !BF16_PAIRS) ? 2 : 1;
}

/* The vector's part of a step, split so that each factor word has its own. */
INLINE void
load_step(vf part[2], const char *p, qwen_dtype dtype)
{
	vi words;
	vhalf half;

	if (dtype == QWEN_F16)
	{
		memcpy(&half, p, sizeof(half));
		part[0] = vf_from_f16(half);
		return;
	}
	words = vi_load(p);
	__asm__("" : "+x"(words)); /* loaded once: the compiler would rather load it for each row */
	part[0] = (vf) words;
	if (dtype == QWEN_BF16 && !BF16_PAIRS)
	{
		part[0] = (vf) (words << 16);
		part[1] = (vf) (words & (int32_t) 0xffff0000);
	}
	else if (dtype == QWEN_INT8)
	{
		part[0] = (vf) ((vshort) words << 8 >> 8);
		part[1] = (vf) ((vshort) words >> 8);
	}
}

/* sum + part * factor; int8's sums are integers. */
INLINE vf
multiply_add(vf part, vf factor, vf sum, qwen_dtype dtype)
{
#if BF16_PAIRS
	if (dtype == QWEN_BF16)
		return _mm512_dpbf16_ps(sum, (__m512bh) part, (__m512bh) factor);
#endif
	if (dtype != QWEN_INT8)
		return vf_fma(part, factor, sum);
#if VL == 16
	return (vf) _mm512_dpwssd_epi32((__m512i) sum, (__m512i) part, (__m512i) factor);
#elif VL == 8
	return (vf) ((vi) sum + (vi) _mm256_madd_epi16((__m256i) part, (__m256i) factor));
#else
	return (vf) ((vi) sum + (vi) _mm_madd_epi16((__m128i) part, (__m128i) factor));
#endif
}

/* Sums of up to MAX_ROWS rows and STRIPS strips. */
typedef struct sums
{
	vf v[MAX_ROWS][STRIPS][LANES];
} sums;

/*
 * Adds `steps` steps of the strips; factors[rows][stride] begin with those of the first step.  On the way it fetches as
 * many bytes of other strips, which will be wanted next.
 */
INLINE void
multiply_strips(sums *sum, const char *const strips[STRIPS], const char *const ahead[STRIPS], const uint32_t *factors,
				int64_t stride, int steps, qwen_dtype dtype, int rows)
{
	int words = step_words(dtype);

#pragma GCC unroll 1
	for (int s = 0; s < steps; s++)
	{
		vf part[STRIPS][LANES][2];

#pragma GCC unroll 2
		for (int m = 0; m < STRIPS; m++)
			__builtin_prefetch(ahead[m] + s * (int) kv_step_bytes(dtype), 0, 2);
#pragma GCC unroll 2
		for (int m = 0; m < STRIPS; m++)
#pragma GCC unroll 4
			for (int h = 0; h < LANES; h++)
				load_step(part[m][h],
						  strips[m] + s * (int) kv_step_bytes(dtype) + h * (int) kv_step_bytes(dtype) / LANES, dtype);
#pragma GCC unroll 8
		for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
			for (int w = 0; w < words; w++)
			{
				vf factor = (vf) vi_set4(factors + r * stride + s * words + w);

#pragma GCC unroll 2
				for (int m = 0; m < STRIPS; m++)
#pragma GCC unroll 4
					for (int h = 0; h < LANES; h++)
						sum->v[r][m][h] = multiply_add(part[m][h][w], factor, sum->v[r][m][h], dtype);
			}
	}
}

INLINE void
clear_sums(sums *sum, int rows)
{
#pragma GCC unroll 8
	for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
		for (int m = 0; m < STRIPS; m++)
#pragma GCC unroll 4
			for (int h = 0; h < LANES; h++)
				sum->v[r][m][h] = (vf){0};
}
