/*
 * cpu_layout.h
 *	  How the threaded sets keep a matrix W[n, k]: packed, and the same for
 *	  all of them.
 *
 * Rows are taken STRIP = 16 at a time (outputs of the product); a strip is
 * contiguous, and strips follow each other.  Inside a strip the elements that
 * one instruction multiplies stand together, 16 rows side by side, 64 bytes to
 * a step:
 *
 *	  float32	[k][16]                a float of each row
 *	  float16	[k][16]                (32 bytes to a step)
 *	  bfloat16	[k' / 2][16][2]        two neighbours of each row, k' = k rounded up to 32
 *	  int8		[k' / 4][16][4]        four neighbours, k' = k rounded up to 64
 *	  int4		[k' / 8][16][4]        bytes: low halves are elements 8 c + 0..3, high halves 8 c + 4..7
 *
 * and, behind the elements of a quantised strip, what its groups need, as
 * bfloat16:
 *
 *	  int8		[k' / 64][16]          scales
 *	  int4		[k' / 64][2][16]       scales, then minima
 *
 * Sixteen steps of bfloat16 or int8 are at the same time one AMX tile (16 rows
 * of 64 bytes: 32 x 16 or 64 x 16 elements), so vectors and tiles read the same
 * bytes.  A product streams a strip from front to back, for one row of
 * activations as for many, and may take strips in fours, so that as many are
 * allocated.  Rows beyond n and elements beyond k are zero, as allocated;
 * int4's minimum there is zero too, or meets an activation that is.
 *
 * Activations that a product narrows first (dev->scratch) are row-major,
 * zero-filled up to k'.  A row takes k'' elements, an odd number of cache lines: tiles read the same columns of many
 * rows, which must not all fall into the same few sets of a cache.
 *
 *	  for bfloat16	[rows][k''] bfloat16
 *	  for int8		[rows][k''] int8, then [rows][k' / 64] float scales, then [rows][k' / 64] int32 sums of the
 *					group's q
 *	  for int4		the same, with floats, scale times sum, in the sums' place
 */
#ifndef QWEN_CPU_LAYOUT_H
#define QWEN_CPU_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "../kernels.h"

#define STRIP 16
/* Strips are stored in multiples of this. */
#define STRIPS_STORED 4

/* A product in progress, as the parts that each set brings see it. */
typedef struct linear_job
{
	float *out; /* [rows, n] */
	const qwen_matrix *w;
	const float *bias; /* [n] or NULL */
	const float *x;    /* [rows, k] as it came */
	int64_t rows;
	const void *narrow;  /* [rows, k''] bfloat16 or int8: x narrowed as above, where the set multiplies it so */
	const float *scales; /* [rows, k' / 64] of int8 */
	const int32_t *sums; /* [rows, k' / 64]: sums of a group's q, where the weights are int8 */
	const float *shifts; /* [rows, k' / 64]: the same times the scale, where they are int4 */
} linear_job;

static inline int64_t
round_up(int64_t n, int64_t unit)
{
	return (n + unit - 1) / unit * unit;
}

/* k' of the description above. */
static inline int64_t
padded_k(qwen_dtype dtype, int64_t k)
{
	switch (dtype)
	{
		case QWEN_BF16:
			return round_up(k, 32);
		case QWEN_INT8:
		case QWEN_INT4:
			return round_up(k, QWEN_GROUP);
		default:
			return k;
	}
}

/* k'' of the description above. */
static inline int64_t
narrow_stride(qwen_dtype dtype, int64_t k)
{
	int64_t line = dtype == QWEN_BF16 ? 32 : 64;

	return (padded_k(dtype, k) / line | 1) * line;
}

/* Bytes of a strip's elements. */
static inline size_t
strip_element_bytes(qwen_dtype dtype, int64_t k)
{
	size_t elements = (size_t) padded_k(dtype, k) * STRIP;

	switch (dtype)
	{
		case QWEN_F32:
			return elements * 4;
		case QWEN_INT8:
			return elements;
		case QWEN_INT4:
			return elements / 2;
		default:
			return elements * 2;
	}
}

/* Bytes of a strip, a multiple of 64. */
static inline size_t
strip_bytes(qwen_dtype dtype, int64_t k)
{
	size_t groups = (size_t) padded_k(dtype, k) / QWEN_GROUP;
	size_t per_group = dtype == QWEN_INT8 ? STRIP * 2 : dtype == QWEN_INT4 ? STRIP * 4 : 0;

	return (size_t) round_up((int64_t) (strip_element_bytes(dtype, k) + groups * per_group), 64);
}

/* Bytes of a packed matrix. */
static inline size_t
packed_bytes(qwen_dtype dtype, int64_t n, int64_t k)
{
	return (size_t) (round_up(n, STRIP * STRIPS_STORED) / STRIP) * strip_bytes(dtype, k);
}

#endif
