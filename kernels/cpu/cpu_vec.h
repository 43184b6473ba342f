/*
 * cpu_vec.h
 *	  The vector of floats that the kernels are written in: 16, 8 or 4 wide.
 *
 * Arithmetic uses the compiler's vector operators; what they cannot say
 * (conversions, maximum, horizontal sums) stands here once for each width.
 * vf_max and vf_min give their second argument when either is NaN.  Included by each cpu_<set>.c, never by anything else.
 *
 * Sums across a vector always add halves: lane i to lane i + VL/2, and so on.
 * The build forbids reassociation and contraction: vf_fma says where one
 * rounding is meant.
 */
#ifndef QWEN_CPU_VEC_H
#define QWEN_CPU_VEC_H

#include <stdint.h>
#include <string.h>
#include <immintrin.h>

#include "../convert.h"
#include "../kernels.h"

#define INLINE static inline __attribute__((always_inline))

/*
 * Holds a vector in a register here.  Where a loop's sums fill the registers, the compiler would otherwise move additions
 * and loads past each other until some of the sums stand in memory.
 */
#define KEEP(v) __asm__("" : "+v"(v))

#if defined(__AVX512F__)

#define VL 16
typedef __m512 vf;
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint16_t vhalf __attribute__((vector_size(32)));

INLINE vf
vf_max(vf a, vf b)
{
	return _mm512_max_ps(a, b);
}

INLINE vf
vf_min(vf a, vf b)
{
	return _mm512_min_ps(a, b);
}

/* a * b + c, rounded once */
INLINE vf
vf_fma(vf a, vf b, vf c)
{
	return _mm512_fmadd_ps(a, b, c);
}

/* To the nearest integers, ties to even. */
INLINE vi
vf_round(vf v)
{
	return (vi) _mm512_cvtps_epi32(v);
}

/* VL bytes, the low ones of each lane. */
INLINE void
vi_store_bytes(void *p, vi v)
{
	_mm_storeu_si128(p, _mm512_cvtepi32_epi8((__m512i) v));
}

INLINE vf
vf_from_bf16(vhalf h)
{
	return (vf) ((vi) _mm512_cvtepu16_epi32((__m256i) h) << 16);
}

INLINE vf
vf_from_f16(vhalf h)
{
	return _mm512_cvtph_ps((__m256i) h);
}

INLINE float
vf_reduce_add(vf v)
{
	__m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
	__m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));

	b = _mm_add_ps(b, _mm_movehl_ps(b, b));
	return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}

#elif defined(__AVX2__)

#define VL 8
typedef __m256 vf;
typedef int32_t vi __attribute__((vector_size(32)));
typedef uint16_t vhalf __attribute__((vector_size(16)));

INLINE vf
vf_max(vf a, vf b)
{
	return _mm256_max_ps(a, b);
}

INLINE vf
vf_min(vf a, vf b)
{
	return _mm256_min_ps(a, b);
}

/* a * b + c, rounded once */
INLINE vf
vf_fma(vf a, vf b, vf c)
{
	return _mm256_fmadd_ps(a, b, c);
}

/* To the nearest integers, ties to even. */
INLINE vi
vf_round(vf v)
{
	return (vi) _mm256_cvtps_epi32(v);
}

/* VL bytes, from lanes of -128 .. 127. */
INLINE void
vi_store_bytes(void *p, vi v)
{
	__m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i) v), _mm256_extracti128_si256((__m256i) v, 1));

	_mm_storel_epi64(p, _mm_packs_epi16(words, words));
}

INLINE vf
vf_from_bf16(vhalf h)
{
	return (vf) ((vi) _mm256_cvtepu16_epi32((__m128i) h) << 16);
}

INLINE vf
vf_from_f16(vhalf h)
{
	return _mm256_cvtph_ps((__m128i) h);
}

INLINE float
vf_reduce_add(vf v)
{
	__m128 b = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));

	b = _mm_add_ps(b, _mm_movehl_ps(b, b));
	return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}

#else

#define VL 4
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef uint16_t vhalf __attribute__((vector_size(8)));

INLINE vf
vf_max(vf a, vf b)
{
	return _mm_max_ps(a, b);
}

INLINE vf
vf_min(vf a, vf b)
{
	return _mm_min_ps(a, b);
}

/* a * b + c, rounded twice: these processors have nothing else */
INLINE vf
vf_fma(vf a, vf b, vf c)
{
	return a * b + c;
}

/* To the nearest integers, ties to even. */
INLINE vi
vf_round(vf v)
{
	return (vi) _mm_cvtps_epi32(v);
}

/* VL bytes, from lanes of -128 .. 127. */
INLINE void
vi_store_bytes(void *p, vi v)
{
	__m128i words = _mm_packs_epi32((__m128i) v, (__m128i) v);
	int32_t bytes = _mm_cvtsi128_si32(_mm_packs_epi16(words, words));

	memcpy(p, &bytes, sizeof(bytes));
}

INLINE vf
vf_from_bf16(vhalf h)
{
	return (vf) (__builtin_convertvector(h, vi) << 16);
}

/* As qwen_f16_float, four at a time. */
INLINE vf
vf_from_f16(vhalf h)
{
	vi u = __builtin_convertvector(h, vi);
	vi sign = (u & 0x8000) << 16;
	vi rest = (u & 0x7fff) << 13;
	vi special = (rest >= (0x7c00 << 13)) & 0x7f800000;

	return (vf) ((vi) ((vf) rest * 0x1p112f) | special | sign);
}

INLINE float
vf_reduce_add(vf v)
{
	return (v[0] + v[2]) + (v[1] + v[3]);
}

#endif

typedef int16_t vshort __attribute__((vector_size(VL * 4)));

INLINE float
vf_reduce_max(vf v)
{
#if VL == 16
	return _mm512_reduce_max_ps(v);
#else
#if VL == 8
	__m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
#else
	__m128 m = v;
#endif
	m = _mm_max_ps(m, _mm_movehl_ps(m, m));
	return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
#endif
}

INLINE int32_t
vi_reduce_add(vi v)
{
#if VL == 16
	return _mm512_reduce_add_epi32((__m512i) v);
#else
#if VL == 8
	__m128i s = _mm_add_epi32(_mm256_castsi256_si128((__m256i) v), _mm256_extracti128_si256((__m256i) v, 1));
#else
	__m128i s = (__m128i) v;
#endif
	s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
	return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
#endif
}

/*
 * Asks for a line that will be written: stores that miss fill their queue, and then nothing else goes on.  Any address
 * will do, and processors of 64 bits that do not know the instruction pass over it.
 */
INLINE void
prefetch_written(const void *p)
{
	__asm__ volatile("prefetchw %0" : : "m"(*(const char *) p));
}

INLINE vf
vf_abs(vf v)
{
	return (vf) ((vi) v & 0x7fffffff);
}

INLINE vf
vf_set(float f)
{
	return (vf){0} + f;
}

INLINE vf
vf_load(const float *p)
{
	vf v;

	memcpy(&v, p, sizeof(v));
	return v;
}

INLINE vi
vi_load(const void *p)
{
	vi v;

	memcpy(&v, p, sizeof(v));
	return v;
}

/* The four bytes at p in every lane. */
INLINE vi
vi_set4(const void *p)
{
	int32_t four;

	memcpy(&four, p, sizeof(four));
	return (vi){0} + four;
}

INLINE void
vf_store(float *p, vf v)
{
	memcpy(p, &v, sizeof(v));
}

/* VL elements as bfloat16, rounded to nearest, ties to even. */
INLINE void
vf_store_bf16(uint16_t *p, vf v)
{
#if defined(__AVX512BF16__)
	__m256bh h = _mm512_cvtneps_pbh(v);

	memcpy(p, &h, sizeof(h));
#else
	for (int i = 0; i < VL; i++)
		p[i] = qwen_float_bf16(v[i]);
#endif
}

/* VL elements of an array of the given type, from element i on. `dtype` is a constant wherever this is used. */
INLINE vf
vf_load_as(const void *p, int64_t i, qwen_dtype dtype)
{
	vhalf h;

	if (dtype == QWEN_F32)
		return vf_load((const float *) p + i);
	memcpy(&h, (const uint16_t *) p + i, sizeof(h));
	return dtype == QWEN_BF16 ? vf_from_bf16(h) : vf_from_f16(h);
}

/* The same for the last `count` < VL elements; the other lanes are 0. */
INLINE vf
vf_load_tail(const void *p, int64_t i, int64_t count, qwen_dtype dtype)
{
	float part[VL] = {0}; /* as large as a vector of any of the types, and zero is zero in all */
	size_t size = dtype == QWEN_F32 ? 4 : 2;

	memcpy(part, (const char *) p + (size_t) i * size, (size_t) count * size);
	return vf_load_as(part, 0, dtype);
}

INLINE void
vf_store_tail(float *p, vf v, int64_t count)
{
	memcpy(p, &v, (size_t) count * sizeof(float));
}

/*
 * exp(x) to about 2 units in the last place.  x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by its Taylor series, whose
 * first term left out is r^8 / 8! < 6e-9; 2^n by writing n into the exponent.  Arguments are held to [-87, 88], so the
 * result is neither 0 nor infinite.
 */
INLINE vf
vf_exp(vf x)
{
	static const float taylor[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};
	vf n, r, p;
	vi k;

	x = -vf_max(-vf_max(x, vf_set(-87.0f)), vf_set(-88.0f));
	k = __builtin_convertvector(vf_fma(x, vf_set(1.44269504f), vf_set(128.5f)), vi) - 128; /* positive: this is floor */
	n = __builtin_convertvector(k, vf);
	r = vf_fma(n, vf_set(-0.693359375f), x); /* ln 2 in two parts, the first exact in few bits */
	r = vf_fma(n, vf_set(2.12194440e-4f), r);
	p = vf_set(1.0f / 5040);
	for (int i = 0; i < 7; i++)
		p = vf_fma(p, r, vf_set(taylor[i]));
	return p * (vf) ((k + 127) << 23);
}

/* sum of a[i] b[i], i < n */
INLINE float
dot(const float *a, const float *b, int64_t n)
{
	vf sum = {0};
	int64_t i = 0;

	for (; i + VL <= n; i += VL)
		sum = vf_fma(vf_load(a + i), vf_load(b + i), sum);
	if (i < n)
		sum = vf_fma(vf_load_tail(a, i, n - i, QWEN_F32), vf_load_tail(b, i, n - i, QWEN_F32), sum);
	return vf_reduce_add(sum);
}

#endif
