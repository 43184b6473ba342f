/*
 * linear_mma.h
 *	  Products of up to 16 rows of 16-bit activations: the decode step.
 *
 * Such a product is as fast as its weights are read: n k elements, once, while
 * the arithmetic of 16 rows would already fill the float units.  So the matrix
 * unit does it, with the rows of activations as the 16 rows of its tile (what
 * it makes of those that are not there is not stored) and eight output
 * features as its columns:
 *
 *	  d[16 rows, 8 features] += x[16 rows, 16 of k] w[8 features, 16 of k]^T
 *
 * An element of d depends on its own row and feature alone, so that a row has
 * the same bits among any others, and one kernel serves all counts.
 *
 * A block has eight warps and F times eight features.  k is cut into units of
 * 64 elements, a group of the quantised types; warp w takes units w, w + 8, ...
 * and at the end the eight sums are added in the order of the warps.  Thus
 * every sum's order follows from k alone, whatever F is.
 *
 *	  k       0      64     128         512
 *	  warp    | 0    | 1    | ...  | 7  | 0    | 1    | ...
 *
 * Lane (r, c) = (l / 4, l % 4) loads weights of feature r.  What the matrix
 * unit takes as "elements 2c, 2c+1, 2c+8, 2c+9 of k" may be any four of k, as
 * long as both operands mean the same: so a lane loads 16 bytes that lie
 * together and feeds them as they come, without passing through shared memory
 * or other lanes.  What a lane has of a unit is 16 elements in two pieces of
 * eight, four steps of the matrix unit.
 *
 * In flight are AT_ONCE units of F features of each lane: of 16-bit weights 4
 * KiB a warp, of int8 2 to 3, of int4 1 to 2.  Two blocks, which is what the
 * registers allow at least, make 64, 32 to 48 and 16 to 32 KiB of a
 * multiprocessor; 4.8 TB/s at 700 ns ask for 25, 3.3 TB/s for 17.  Activations
 * are loaded beside them, by plain loads: each is used by one warp alone, F
 * times, so shared memory would save nothing, and the first-level cache has
 * them when the next block comes.
 */
#ifndef QWEN_CUDA_LINEAR_MMA_H
#define QWEN_CUDA_LINEAR_MMA_H

#include <string.h>

#include "linear.h"

#define LINEAR_WARPS 8
#define LINEAR_THREADS (LINEAR_WARPS * WARP)
/* Columns of the matrix unit's tile. */
#define LINEAR_COLUMNS 8

/* Eight elements of 16 bits, as pairs. */
struct piece
{
	uint32_t pair[4];
};

static __device__ __forceinline__ piece
piece_of(uint4 v)
{
	piece p = {{v.x, v.y, v.z, v.w}};

	return p;
}

/* ---- the two types of activations ---- */

template <typename X> struct element;

template <> struct element<__half>
{
	static constexpr uint32_t ONES = 0x3c003c00;
	static constexpr int MANTISSA = 10;

	static __device__ __forceinline__ void
	mma(float d[4], const uint32_t a[4], const uint32_t b[2])
	{
		mma_f16(d, a, b);
	}
};

template <> struct element<__nv_bfloat16>
{
	static constexpr uint32_t ONES = 0x3f803f80;
	static constexpr int MANTISSA = 7;

	static __device__ __forceinline__ void
	mma(float d[4], const uint32_t a[4], const uint32_t b[2])
	{
		mma_bf16(d, a, b);
	}
};

template <typename X>
static __device__ __forceinline__ uint32_t
bits_of(float x)
{
	X narrow = from_float<X>(x);
	uint16_t bits;

	memcpy(&bits, &narrow, sizeof(bits));
	return bits;
}

/*
 * ---- formats: a lane's 16 elements of a unit ----
 *
 * at(c, p) is where in the unit the lane's piece p is; load() gets the feature whose weights the lane loads and the first
 * of the two whose sums it has; AT_ONCE<F> is how many units of F features are loaded together.
 */

/* Weights of the activations' type. Pieces at 8 c and 32 + 8 c of the unit: four lanes read 64 bytes that lie together. */
template <typename T> struct format_same
{
	typedef T X;
	static constexpr bool SCALED = false, MINIMUM = false;
	template <int F> static constexpr int AT_ONCE = 4 / F;

	uint4 q[2];

	static __device__ __forceinline__ int
	at(int c, int p)
	{
		return 32 * p + 8 * c;
	}

	__device__ __forceinline__ void
	load(const cuda_weights &w, int64_t row, int64_t, int unit, int c)
	{
		for (int p = 0; p < 2; p++)
		{
			int64_t i = unit * QWEN_GROUP + at(c, p);

			/* beyond k: any weights of the row, as activations are zero there */
			q[p] = load_streaming(w.q + 2 * (row * w.k + (i < w.k ? i : w.k - 8)));
		}
	}

	__device__ __forceinline__ piece
	unpack(int p) const
	{
		return piece_of(q[p]);
	}
};

/* Weights of any float type and shape, element by element. */
template <typename W, typename T> struct format_any
{
	typedef T X;
	static constexpr bool SCALED = false, MINIMUM = false;
	template <int F> static constexpr int AT_ONCE = 1;

	piece q[2];

	static __device__ __forceinline__ int
	at(int c, int p)
	{
		return 32 * p + 8 * c;
	}

	__device__ __forceinline__ void
	load(const cuda_weights &w, int64_t row, int64_t, int unit, int c)
	{
		for (int j = 0; j < 8; j++)
		{
			int64_t i = unit * QWEN_GROUP + at(c, j / 4) + 2 * (j % 4);
			uint32_t lo = i < w.k ? bits_of<X>(weight_at<W>(w, row, i)) : 0;
			uint32_t hi = i + 1 < w.k ? bits_of<X>(weight_at<W>(w, row, i + 1)) : 0;

			q[j / 4].pair[j % 4] = lo | hi << 16;
		}
	}

	__device__ __forceinline__ piece
	unpack(int p) const
	{
		return q[p];
	}
};

/*
 * int8: 16 bytes at 16 c.  All of -127 .. 127 are elements of both types, and the scale comes in after the sum.  A byte
 * becomes a float by standing in the last place of 2^23, the way that costs one byte permutation and one addition.
 */
template <typename T> struct format_int8
{
	typedef T X;
	static constexpr bool SCALED = true, MINIMUM = false;
	template <int F> static constexpr int AT_ONCE = F == 1 ? 4 : F == 2 ? 3 : 1;

	uint4 q;
	uint16_t d[2]; /* of the features of the lane's sums */

	static __device__ __forceinline__ int
	at(int c, int p)
	{
		return 16 * c + 8 * p;
	}

	__device__ __forceinline__ void
	load(const cuda_weights &w, int64_t row, int64_t sums, int unit, int c)
	{
		int64_t next = sums + 1 < w.n ? sums + 1 : sums;

		q = load_streaming(w.q + (row * w.groups + unit) * QWEN_GROUP + 16 * c);
		d[0] = w.scales[sums * w.groups + unit];
		d[1] = w.scales[next * w.groups + unit];
	}

	static __device__ __forceinline__ float
	byte_as_float(uint32_t biased, int i)
	{
		union
		{
			uint32_t bits;
			float value;
		} v = {0x4b000000u | (biased >> 8 * i & 0xff)};

		return v.value - (8388608.0f + 128.0f);
	}

	__device__ __forceinline__ piece
	unpack(int p) const
	{
		uint32_t words[2] = {(p ? q.z : q.x) ^ 0x80808080u, (p ? q.w : q.y) ^ 0x80808080u};
		piece v;

		for (int j = 0; j < 4; j++)
		{
			float lo = byte_as_float(words[j / 2], 2 * (j % 2)), hi = byte_as_float(words[j / 2], 2 * (j % 2) + 1);

			v.pair[j] = bits_of<X>(lo) | bits_of<X>(hi) << 16;
		}
		return v;
	}

	__device__ __forceinline__ float
	scale(int feature) const
	{
		return bf16_bits(d[feature]);
	}
};

/*
 * int4: eight bytes at 8 c, elements 8 c .. 8 c + 7 in the low halves and 32 elements on in the high ones.  Half a byte
 * in the upper end of the mantissa of 1 is 1 + q / 16, one shift and one mask for two elements: those of a word that are
 * two apart, and activations are paired alike.  The sums of x, which take the 1 out again and bring the minimum in, are
 * one more product, with ones.
 */
template <typename T> struct format_int4
{
	typedef T X;
	static constexpr bool SCALED = true, MINIMUM = true;
	template <int F> static constexpr int AT_ONCE = F == 1 ? 4 : F == 2 ? 3 : 2;

	uint2 q;
	uint32_t d[2]; /* scale and minimum of the features of the lane's sums */

	static __device__ __forceinline__ int
	at(int c, int p)
	{
		return 32 * p + 8 * c;
	}

	__device__ __forceinline__ void
	load(const cuda_weights &w, int64_t row, int64_t sums, int unit, int c)
	{
		const uint32_t *scales = reinterpret_cast<const uint32_t *>(w.scales);
		int64_t next = sums + 1 < w.n ? sums + 1 : sums;

		q = *reinterpret_cast<const uint2 *>(w.q + (row * w.groups + unit) * (QWEN_GROUP / 2) + 8 * c);
		d[0] = scales[sums * w.groups + unit];
		d[1] = scales[next * w.groups + unit];
	}

	/* The halves at bits `from` and `from` + 16. */
	static __device__ __forceinline__ uint32_t
	pair_at(uint32_t word, int from)
	{
		constexpr int TO = element<X>::MANTISSA - 4;
		uint32_t moved = from < TO ? word << (TO - from) : word >> (from - TO);

		return (moved & (0x000f000fu << TO)) | element<X>::ONES;
	}

	__device__ __forceinline__ piece
	unpack(int p) const
	{
		piece v = {{pair_at(q.x, 4 * p), pair_at(q.x, 4 * p + 8), pair_at(q.y, 4 * p), pair_at(q.y, 4 * p + 8)}};

		return v;
	}

	/* (0 1) (2 3) (4 5) (6 7) as (0 2) (1 3) (4 6) (5 7) */
	static __device__ __forceinline__ piece
	arrange(piece x)
	{
		piece v = {{(x.pair[0] & 0xffff) | x.pair[1] << 16, x.pair[0] >> 16 | (x.pair[1] & 0xffff0000u),
					(x.pair[2] & 0xffff) | x.pair[3] << 16, x.pair[2] >> 16 | (x.pair[3] & 0xffff0000u)}};

		return v;
	}

	__device__ __forceinline__ float
	scale(int feature) const
	{
		return bf16_pair(d[feature]).x;
	}

	__device__ __forceinline__ float
	minimum(int feature) const
	{
		return bf16_pair(d[feature]).y;
	}
};

/* ---- activations ---- */

/*
 * Eight elements of a row from i on, zero beyond k.  VECTOR: k is a multiple of eight and x is aligned; loads then stand
 * under no condition, so that nothing keeps them from being on their way together.
 */
template <typename X, bool VECTOR>
static __device__ __forceinline__ piece
load_x(const X *row, int64_t i, int64_t k)
{
	if constexpr (VECTOR)
	{
		uint4 v = *reinterpret_cast<const uint4 *>(row + (i < k ? i : k - 8));

		return piece_of(i < k ? v : make_uint4(0, 0, 0, 0));
	}
	else
	{
		piece v = {{0, 0, 0, 0}};

		for (int j = 0; j < 8 && i + j < k; j++)
		{
			X x = row[i + j];
			uint16_t bits;

			memcpy(&bits, &x, sizeof(bits));
			v.pair[j / 2] |= static_cast<uint32_t>(bits) << 16 * (j % 2);
		}
		return v;
	}
}

/* A lane's activations of a unit: of rows r and, of more than eight, r + 8. Beyond the last row: the last one's. */
template <typename Format, bool WIDE, bool VECTOR> struct activations
{
	typedef typename Format::X X;

	piece low[2], high[WIDE ? 2 : 1];

	__device__ __forceinline__ void
	load(const X *x, int rows, int64_t k, int unit, int r, int c)
	{
		for (int p = 0; p < 2; p++)
		{
			int64_t i = unit * QWEN_GROUP + Format::at(c, p);

			low[p] = load_x<X, VECTOR>(x + (r < rows ? r : rows - 1) * k, i, k);
			if constexpr (WIDE)
				high[p] = load_x<X, VECTOR>(x + (r + 8 < rows ? r + 8 : rows - 1) * k, i, k);
		}
	}

	/* The matrix unit's operand of step s of piece p. */
	__device__ __forceinline__ void
	operand(uint32_t a[4], int p, int s) const
	{
		piece l = low[p], h = {{0, 0, 0, 0}};

		if constexpr (WIDE)
			h = high[p];
		if constexpr (Format::MINIMUM)
		{
			l = Format::arrange(l);
			h = Format::arrange(h);
		}
		a[0] = l.pair[2 * s];
		a[1] = h.pair[2 * s];
		a[2] = l.pair[2 * s + 1];
		a[3] = h.pair[2 * s + 1];
	}
};

/* ---- a unit ---- */

/* sums[f] += the unit's products; `x_sums` are the sums of x, in all columns. */
template <typename Format, int F, typename A>
static __device__ __forceinline__ void
multiply_unit(float sums[F][4], float x_sums[4], const Format q[F], const A &x)
{
	typedef element<typename Format::X> E;
	const uint32_t ones[2] = {E::ONES, E::ONES};

#pragma unroll
	for (int p = 0; p < 2; p++)
	{
		piece w[F];

#pragma unroll
		for (int f = 0; f < F; f++)
			w[f] = q[f].unpack(p);
#pragma unroll
		for (int s = 0; s < 2; s++)
		{
			uint32_t a[4];

			x.operand(a, p, s);
#pragma unroll
			for (int f = 0; f < F; f++)
				E::mma(sums[f], a, &w[f].pair[2 * s]);
			if constexpr (Format::MINIMUM)
				E::mma(x_sums, a, ones);
		}
	}
}

template <typename Format, int F, typename A>
static __device__ __forceinline__ void
add_unit(float sums[F][4], const Format q[F], const A &x)
{
	float x_sums[4] = {0, 0, 0, 0};

	if constexpr (Format::SCALED)
	{
		float group[F][4] = {};

		multiply_unit<Format, F>(group, x_sums, q, x);
#pragma unroll
		for (int f = 0; f < F; f++)
#pragma unroll
			for (int j = 0; j < 4; j++)
				if constexpr (Format::MINIMUM)
				{
					float s = fmaf(16 * q[f].scale(j % 2), group[f][j] - x_sums[j], sums[f][j]);

					sums[f][j] = fmaf(q[f].minimum(j % 2), x_sums[j], s);
				}
				else
					sums[f][j] = fmaf(q[f].scale(j % 2), group[f][j], sums[f][j]);
	}
	else
		multiply_unit<Format, F>(sums, x_sums, q, x);
}

/* ---- the kernel ---- */

/* The warp's sums over its units: sums[f][4] as the matrix unit leaves them. */
template <typename Format, int F, bool WIDE, bool VECTOR>
static __device__ __forceinline__ void
sum_units(float sums[F][4], const cuda_weights &w, const typename Format::X *x, int rows, int64_t first_feature)
{
	/* of two rows to a lane, activations of fewer units are what the registers hold beside the weights */
	constexpr int ROOM = !WIDE ? 4 : Format::SCALED && F == 4 ? 1 : 2;
	constexpr int AT_ONCE = Format::template AT_ONCE<F> < ROOM ? Format::template AT_ONCE<F> : ROOM;
	int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
	int r = lane / 4, c = lane % 4, units = static_cast<int>(w.groups);

	for (int first = warp; first < units; first += LINEAR_WARPS * AT_ONCE)
	{
		Format q[AT_ONCE][F];
		activations<Format, WIDE, VECTOR> a[AT_ONCE];

#pragma unroll
		for (int i = 0; i < AT_ONCE; i++)
		{
			int unit = first + i * LINEAR_WARPS;

			if (unit < units)
			{
#pragma unroll
				for (int f = 0; f < F; f++)
				{
					/* features beyond the last one are the last one, and not stored */
					int64_t feature = first_feature + f * LINEAR_COLUMNS, last = w.n - 1;
					int64_t row = feature + r, sum = feature + 2 * c;

					q[i][f].load(w, row < last ? row : last, sum < last ? sum : last, unit, c);
				}
				a[i].load(x, rows, w.k, unit, r, c);
			}
		}
#pragma unroll
		for (int i = 0; i < AT_ONCE; i++)
			if (first + i * LINEAR_WARPS < units)
				add_unit<Format, F>(sums, q[i], a[i]);
	}
}

/*
 * Features blockIdx.x * 8 F and on.  Floor: the bytes of the weights; WIDE: more than eight rows.  Two blocks on a
 * multiprocessor leave 128 registers to a thread.
 */
template <typename Format, int F, bool WIDE, bool VECTOR>
static __global__
__launch_bounds__(LINEAR_THREADS, 2) void linear_mma(typename Format::X *__restrict__ out,
													 float *__restrict__ float_out, cuda_weights w,
													 const float *__restrict__ bias,
													 const typename Format::X *__restrict__ x, int rows)
{
	constexpr int ROWS = WIDE ? 16 : 8, TILE = ROWS * LINEAR_COLUMNS;
	__shared__ float parts[LINEAR_WARPS][F][TILE];
	int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
	int r = lane / 4, c = lane % 4;
	int64_t first_feature = static_cast<int64_t>(blockIdx.x) * F * LINEAR_COLUMNS;
	float sums[F][4] = {};

	sum_units<Format, F, WIDE, VECTOR>(sums, w, x, rows, first_feature);
#pragma unroll
	for (int f = 0; f < F; f++)
#pragma unroll
		for (int j = 0; j < (WIDE ? 4 : 2); j++)
			parts[warp][f][(r + j / 2 * 8) * LINEAR_COLUMNS + 2 * c + j % 2] = sums[f][j];
	__syncthreads();
	for (int i = static_cast<int>(threadIdx.x); i < F * TILE; i += LINEAR_THREADS)
	{
		int f = i / TILE, row = i % TILE / LINEAR_COLUMNS;
		int64_t feature = first_feature + f * LINEAR_COLUMNS + i % LINEAR_COLUMNS, at = row * w.n + feature;
		float sum = 0;

		if (row >= rows || feature >= w.n)
			continue;
#pragma unroll
		for (int part = 0; part < LINEAR_WARPS; part++)
			sum += parts[part][f][i % TILE];
		sum += bias ? bias[feature] : 0;
		if (float_out)
			float_out[at] = sum;
		else
			out[at] = from_float<typename Format::X>(sum);
	}
}

/* ---- which instance ---- */

/*
 * Tiles of features of a block.  More tiles use a loaded activation more often and have more in flight; but a
 * multiprocessor must have two blocks, one to load while the other computes or begins, and the last round of blocks must
 * not leave more of them idle than single tiles would.
 */
static inline int
tiles_of_block(const qwen_device *dev, const cuda_product *p)
{
	int64_t sms = cuda_of(dev)->n_sms, tiles = (p->w.n + LINEAR_COLUMNS - 1) / LINEAR_COLUMNS;
	int64_t rounds = (tiles + sms - 1) / sms;

	for (int f = 4; f > 1; f /= 2)
	{
		int64_t blocks = (tiles + f - 1) / f, of_f = (blocks + sms - 1) / sms;

		if (of_f >= 2 && of_f * f <= rounds)
			return f;
	}
	return 1;
}

template <typename Format, int F, bool WIDE, bool VECTOR>
static inline void
start_mma(qwen_device *dev, const cuda_product *p)
{
	typedef typename Format::X X;
	X *out = p->as_float ? NULL : static_cast<X *>(p->out);
	float *float_out = p->as_float ? static_cast<float *>(p->out) : NULL;
	unsigned blocks = (unsigned) ((p->w.n + F * LINEAR_COLUMNS - 1) / (F * LINEAR_COLUMNS));

	CUDA_LAUNCH((linear_mma<Format, F, WIDE, VECTOR>), blocks, LINEAR_THREADS, 0, cuda_of(dev)->stream, out, float_out,
				p->w, p->bias, static_cast<const X *>(p->x), p->rows);
}

template <typename Format, int F>
static inline void
start_tiles(qwen_device *dev, const cuda_product *p)
{
	if (p->rows > 8)
		start_mma<Format, F, true, true>(dev, p);
	else
		start_mma<Format, F, false, true>(dev, p);
}

/* VECTOR: activations can be loaded 16 bytes at a time; otherwise speed is not the question. */
template <typename Format>
static inline void
start_format(qwen_device *dev, const cuda_product *p, bool vector)
{
	int tiles = tiles_of_block(dev, p);

	if (!vector)
		start_mma<Format, 1, true, false>(dev, p);
	else if (tiles == 4)
		start_tiles<Format, 4>(dev, p);
	else if (tiles == 2)
		start_tiles<Format, 2>(dev, p);
	else
		start_tiles<Format, 1>(dev, p);
}

/* Of activations X, whose name as a type of weights is `same`. */
template <typename X>
static inline void
linear_few(qwen_device *dev, const cuda_product *p, qwen_dtype same)
{
	bool vector = cuda_loads_16(p->x, p->w.k * (int64_t) sizeof(X));

	if (p->dtype == same && vector && cuda_loads_16(p->w.q, p->w.k * (int64_t) sizeof(X)))
		start_format<format_same<X>>(dev, p, true);
	else if (p->dtype == QWEN_INT8)
		start_format<format_int8<X>>(dev, p, vector);
	else if (p->dtype == QWEN_INT4)
		start_format<format_int4<X>>(dev, p, vector);
	else if (p->dtype == QWEN_F32)
		start_mma<format_any<float, X>, 1, true, false>(dev, p);
	else if (p->dtype == QWEN_F16)
		start_mma<format_any<__half, X>, 1, true, false>(dev, p);
	else
		start_mma<format_any<__nv_bfloat16, X>, 1, true, false>(dev, p);
	cuda_launched(dev, "linear_mma");
}

#endif
