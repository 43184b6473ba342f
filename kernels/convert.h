/*
 * convert.h
 *	  Scalar conversions between float and the two 16-bit types.
 *
 * bfloat16 is the upper half of a float; float16 is IEEE binary16.  Narrowing
 * rounds to nearest, ties to even.  The compiler's own _Float16 is not used:
 * without F16C it becomes a library call.
 */
#ifndef QWEN_CONVERT_H
#define QWEN_CONVERT_H

#include <stdint.h>
#include <string.h>

static inline uint32_t
qwen_float_bits(float f)
{
	uint32_t u;

	memcpy(&u, &f, sizeof(u));
	return u;
}

static inline float
qwen_bits_float(uint32_t u)
{
	float f;

	memcpy(&f, &u, sizeof(f));
	return f;
}

static inline float
qwen_bf16_float(uint16_t h)
{
	return qwen_bits_float((uint32_t) h << 16);
}

static inline uint16_t
qwen_float_bf16(float f)
{
	uint32_t u = qwen_float_bits(f);

	if ((u & 0x7fffffffu) > 0x7f800000u) /* NaN: rounding could carry into infinity or zero */
		return (uint16_t) ((u >> 16) | 0x40);
	return (uint16_t) ((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

/* Moves exponent and mantissa into a float's place; the product with 2^112 mends the bias, subnormals included. */
static inline float
qwen_f16_float(uint16_t h)
{
	uint32_t sign = (uint32_t) (h & 0x8000) << 16;
	uint32_t rest = (uint32_t) (h & 0x7fff) << 13;
	float f = qwen_bits_float(rest) * 0x1p112f;

	if (rest >= 0x7c00u << 13) /* infinity or NaN: all exponent bits set */
		f = qwen_bits_float(rest | 0x7f800000u);
	return qwen_bits_float(qwen_float_bits(f) | sign);
}

/* Values beyond the range become infinity. */
static inline uint16_t
qwen_float_f16(float f)
{
	uint32_t u = qwen_float_bits(f);
	uint16_t sign = (uint16_t) ((u >> 16) & 0x8000);
	uint32_t rest = u & 0x7fffffffu;
	uint32_t odd;

	if (rest > 0x7f800000u)
		return (uint16_t) (sign | 0x7e00);
	if (rest >= 0x477ff000u) /* 65520: rounds beyond 65504 */
		return (uint16_t) (sign | 0x7c00);
	if (rest < 0x38800000u) /* below 2^-14: adding 1/2 puts the units of 2^-24 into the last place, rounded */
		return (uint16_t) (sign | (qwen_float_bits(qwen_bits_float(rest) + 0.5f) - qwen_float_bits(0.5f)));
	odd = (rest >> 13) & 1;
	return (uint16_t) (sign | ((rest - 0x38000000u + 0xfff + odd) >> 13));
}

#endif
