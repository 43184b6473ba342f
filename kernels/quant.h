/*
 * quant.h
 *	  What int8 and int4 mean: the one definition that every set follows.
 *
 * A group is QWEN_GROUP consecutive elements of a row (the last one of a row
 * may be shorter).
 *
 *	  int8	w = q d, q in -127 .. 127, d = max |w| / 127
 *	  int4	w = q d + m, q in 0 .. 15, m = min w, d = (max w - m) / 15
 *
 * d and m are stored as bfloat16, d rounded up and m rounded down, so that the
 * whole group lies between the ends of the scale.  A group costs 8.25 and 4.5
 * bits an element.  int4 has a minimum because groups of 64 are rarely
 * symmetric: at this size it is worth more than groups half as long.
 *
 * On processors activations are quantised anew in each product, row by row and
 * group by group (a GPU leaves them as they are: cuda/linear.cu): x = q s, q in
 * -127 .. 127, s = max |x| / 127 as float.  The integer sums of a group are
 * exact, and every set adds the groups in order by sum = fma(sum_of_group, d s,
 * sum), for int4 after sum = fma(m, s sum(q), sum): the same bits wherever there
 * is a fused multiply-add.
 *
 * A cache of int8 has one scale for each token, kv head and side: max |x| / 127
 * as float.
 *
 * Scalar, written to be read; faster code must give the same bytes.
 */
#ifndef QWEN_QUANT_H
#define QWEN_QUANT_H

#include <math.h>
#include <stdint.h>

#include "convert.h"
#include "kernels.h"

/* The least bfloat16 that is not below f, f >= 0. */
static inline uint16_t
qwen_bf16_up(float f)
{
	return (uint16_t) ((qwen_float_bits(f) + 0xffff) >> 16);
}

/* The greatest bfloat16 that is not above f; zero has no sign, as the least of several zeros would be any of them. */
static inline uint16_t
qwen_bf16_down(float f)
{
	if (f < 0)
		return (uint16_t) (qwen_bf16_up(-f) | 0x8000);
	return f > 0 ? (uint16_t) (qwen_float_bits(f) >> 16) : 0;
}

/* x rounded to the nearest integer in [lo, hi], ties to even; NaN gives lo. */
static inline int
qwen_round_within(float x, float lo, float hi)
{
	x = x > lo ? x : lo;
	x = x < hi ? x : hi;
	return (int) rintf(x);
}

/* 1 / d, and 0 for a group without extent. */
static inline float
qwen_inverse(float d)
{
	return d > 0 ? 1.0f / d : 0;
}

static inline float
qwen_max_abs(const float *x, int n)
{
	float max = 0;

	for (int i = 0; i < n; i++)
		max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
	return max;
}

/* A group of weights w[n] as int8: q[n], and the scale as bfloat16. */
static inline uint16_t
qwen_quantize_int8(const float *w, int n, int8_t *q)
{
	uint16_t d = qwen_bf16_up(qwen_max_abs(w, n) / 127.0f);
	float inverse = qwen_inverse(qwen_bf16_float(d));

	for (int i = 0; i < n; i++)
		q[i] = (int8_t) qwen_round_within(w[i] * inverse, -127, 127);
	return d;
}

/* A group of weights w[n] as int4, one to a byte: q[n], the scale and the minimum as bfloat16. */
static inline uint16_t
qwen_quantize_int4(const float *w, int n, uint8_t *q, uint16_t *m)
{
	float min = w[0], max = w[0], low, inverse;
	uint16_t d;

	for (int i = 1; i < n; i++)
	{
		min = w[i] < min ? w[i] : min;
		max = w[i] > max ? w[i] : max;
	}
	*m = qwen_bf16_down(min);
	low = qwen_bf16_float(*m);
	d = qwen_bf16_up((max - low) / 15.0f);
	inverse = qwen_inverse(qwen_bf16_float(d));
	for (int i = 0; i < n; i++)
		q[i] = (uint8_t) qwen_round_within((w[i] - low) * inverse, 0, 15);
	return d;
}

/* n activations, or n elements of a cached head: q[n]; returns the scale. */
static inline float
qwen_quantize_row(const float *x, int n, int8_t *q)
{
	float max = qwen_max_abs(x, n);
	float inverse = max > 0 ? 127.0f / max : 0;

	for (int i = 0; i < n; i++)
		q[i] = (int8_t) qwen_round_within(x[i] * inverse, -127, 127);
	return max / 127.0f;
}

#endif
