/*
 * cuda_tiles.h
 *	  Attention on matrix units: 16 rows of queries against a step of keys.
 *
 * A warp works on 16 rows of queries of one kv head: in prefill 16 tokens of
 * one query head, in decode all query heads that share the kv head, of one
 * token.  Keys and values pass by in steps of KEYS tokens through shared
 * memory.  With S = Q K^T in units of log 2, a step does
 *
 *	  M' = max(M, max S)	P = 2^(S - M')
 *	  L' = L 2^(M - M') + sum P	O' = O 2^(M - M') + P V
 *
 * and O / L is the result.  P is narrowed to the activations' type for the
 * second product, as queries and keys are for the first; all sums are float.
 * Cells that a row must not see have P = 0 and change nothing, not even the
 * last bit, so a row's bits do not depend on what else its tile holds.
 *
 * int8 cells are widened on their way to the matrix units, exactly; their
 * scales multiply S of a key, and P of a value.
 *
 * Rows in shared memory are 8 elements longer than DIM: the eight rows that
 * ldmatrix reads at once then lie in different banks.  Heads may be shorter
 * than DIM, by whole tiles of 16 elements, which are left out.
 */
#ifndef QWEN_CUDA_TILES_H
#define QWEN_CUDA_TILES_H

#include <math.h>

#include "cuda_attention.h"

/* T: activations; C: cells, T or signed char; heads of at most DIM elements, in steps of KEYS tokens. */
template <typename T, typename C, int DIM, int KEYS> struct step_shape
{
	static constexpr bool narrow = sizeof(C) == 1;
	static constexpr int stride = DIM + 8;                       /* elements of T from row to row */
	static constexpr int tile = KEYS * stride * (int) sizeof(T); /* bytes of keys, or of values, as T */
	/* bytes of keys, or of values, as they come from the cache: int8 rows are dense, with their scales behind them */
	static constexpr int side = narrow ? KEYS * (DIM + (int) sizeof(float)) : tile;
	static constexpr int scales = KEYS * DIM; /* where the scales are */
};

/* ---- from the cache to shared memory ---- */

/*
 * Asks for the cells [first, first + KEYS) of kv head g; those at `context` and beyond become zeros, because what lies
 * there may be NaN, which a weight of 0 would not silence.  The sequence's list of blocks is not read beyond its end.
 * By n_threads threads: neighbours ask for neighbouring 16 bytes, and so for whole lines of memory.  Four copies are
 * unrolled, for the addresses of more would not find registers.
 */
template <typename T, typename C, int DIM, int KEYS>
static __device__ __forceinline__ void
fetch_side(unsigned char *side, const cuda_cache &cache, const int32_t *list, int32_t g, int32_t first, int32_t context,
		   int thread, int n_threads)
{
	typedef step_shape<T, C, DIM, KEYS> shape;
	constexpr int per_piece = 16 / (int) sizeof(C), pieces = DIM / per_piece; /* of 16 bytes, of a row */
	constexpr int row_bytes = shape::narrow ? DIM : shape::stride * (int) sizeof(T);

#pragma unroll 4
	for (int i = thread; i < KEYS * pieces; i += n_threads)
	{
		int row = i / pieces, piece = i % pieces;
		int32_t cell = first + row, inside = cell < context ? cell : context - 1;
		int32_t block = __ldg(&list[(KEYS == QWEN_KV_BLOCK ? first : inside) / QWEN_KV_BLOCK]);

		if (piece * per_piece < cache.dim)
			copy_async_16(side + row * row_bytes + piece * 16,
						  cache_cell<C>(cache, block, g, inside % QWEN_KV_BLOCK) + piece * per_piece,
						  cell < context ? 16 : 0);
	}
}

/* The same of the scales of int8 cells, four with each copy. */
template <typename T, int DIM, int KEYS>
static __device__ __forceinline__ void
fetch_scales(unsigned char *side, const cuda_cache &cache, const int32_t *list, int32_t g, int32_t first,
			 int32_t context, int thread)
{
	int32_t cell = first + 4 * thread, left = context - cell, inside = left > 0 ? cell : first;

	if (thread < KEYS / 4)
		copy_async_16(side + step_shape<T, signed char, DIM, KEYS>::scales + thread * 16,
					  cache_scale(cache, __ldg(&list[inside / QWEN_KV_BLOCK]), g, inside % QWEN_KV_BLOCK),
					  left > 4   ? 16
					  : left > 0 ? left * 4
								 : 0);
}

/* A step's keys to the stage and its values behind them, as one group of copies: to be waited for together. */
template <typename T, typename C, int DIM, int KEYS>
static __device__ __forceinline__ void
fetch_step(unsigned char *stage, const attention_job &job, const int32_t *list, int32_t g, int32_t first,
		   int32_t context, int thread, int n_threads)
{
	typedef step_shape<T, C, DIM, KEYS> shape;

	fetch_side<T, C, DIM, KEYS>(stage, job.k, list, g, first, context, thread, n_threads);
	fetch_side<T, C, DIM, KEYS>(stage + shape::side, job.v, list, g, first, context, thread, n_threads);
	if constexpr (shape::narrow)
	{
		fetch_scales<T, DIM, KEYS>(stage, job.k, list, g, first, context, thread);
		fetch_scales<T, DIM, KEYS>(stage + shape::side, job.v, list, g, first, context, thread);
	}
	copy_async_commit();
}

/* Elements of T and the words that hold them. */
template <typename T, typename W, int N> union packed
{
	T v[N];
	W words[N * sizeof(T) / sizeof(W)];
};

/*
 * tile = int8 cells as T, which holds them exactly: both 16-bit types have 8 bits of mantissa or more.  By n_threads
 * threads, 16 cells at a time; a barrier before and after is the caller's.
 */
template <typename T, int DIM, int KEYS>
static __device__ __forceinline__ void
widen_side(T *tile, const unsigned char *side, int dim, int thread, int n_threads)
{
	constexpr int pieces = DIM / 16, stride = step_shape<T, signed char, DIM, KEYS>::stride;

#pragma unroll 1
	for (int i = thread; i < KEYS * pieces; i += n_threads)
	{
		uint4 *dst = reinterpret_cast<uint4 *>(tile + i / pieces * stride + i % pieces * 16);
		packed<signed char, uint4, 16> from;
		packed<T, uint4, 16> to;

		if (i % pieces * 16 >= dim)
			continue;
		from.words[0] = reinterpret_cast<const uint4 *>(side)[i];
#pragma unroll
		for (int e = 0; e < 16; e++)
			to.v[e] = from_float<T>((float) from.v[e]);
		dst[0] = to.words[0];
		dst[1] = to.words[1];
	}
}

/* ---- queries ---- */

/* A row of `dim` queries at src to shared memory, zeros where there is none: 16 bytes of it. */
template <typename T, int DIM>
static __device__ __forceinline__ void
load_query(T *rows, int row, const T *src, int dim, int piece)
{
	uint4 *dst = reinterpret_cast<uint4 *>(rows + row * (DIM + 8)) + piece;

	if (piece * 8 < dim)
		*dst = src ? reinterpret_cast<const uint4 *>(src)[piece] : make_uint4(0, 0, 0, 0);
}

/* Row and column of the matrices that a lane names for four tiles of an operand: rows first, or columns first. */
static __device__ __forceinline__ int
rows_first(int stride)
{
	int lane = (int) threadIdx.x % WARP;

	return (lane / 8 % 2 * 8 + lane % 8) * stride + lane / 16 * 8;
}

static __device__ __forceinline__ int
columns_first(int stride)
{
	int lane = (int) threadIdx.x % WARP;

	return (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8;
}

/* A warp's 16 rows: in registers as far as these last, read again for each step of keys where heads are longer. */
template <typename T, int DIM> struct query_tile
{
	static constexpr bool kept = DIM <= 128;
	const T *rows; /* shared, [16][DIM + 8] */
	uint32_t fragments[kept ? DIM / 16 : 1][4];

	__device__ __forceinline__ void
	begin(const T *from, int dim)
	{
		rows = from + rows_first(DIM + 8);
		if constexpr (kept)
		{
#pragma unroll
			for (int i = 0; i < DIM / 16; i++)
				if (i * 16 < dim)
					load_matrices(fragments[i], rows + i * 16);
		}
	}

	/* Elements [16 i, 16 i + 16) of the rows. */
	__device__ __forceinline__ const uint32_t *
	part(int i)
	{
		if constexpr (!kept)
			load_matrices(fragments[0], rows + i * 16);
		return fragments[kept ? i : 0];
	}
};

/* ---- products ---- */

/* d[16, 8] += a[16, 16] b[16, 8] of a type. */
template <typename T>
static __device__ __forceinline__ void multiply(float d[4], const uint32_t a[4], const uint32_t b[2]);

template <>
__device__ __forceinline__ void
multiply<__half>(float d[4], const uint32_t a[4], const uint32_t b[2])
{
	mma_f16(d, a, b);
}

template <>
__device__ __forceinline__ void
multiply<__nv_bfloat16>(float d[4], const uint32_t a[4], const uint32_t b[2])
{
	mma_bf16(d, a, b);
}

/*
 * What a warp has of its rows so far.  A lane has rows lane / 4 (half 0) and lane / 4 + 8 (half 1), in each tile of 8
 * columns the columns 2 (lane % 4) and the next.  max is the row's; sum is of the lane's own columns.
 */
template <int DIM> struct query_sums
{
	float max[2];
	float sum[2];
	float out[DIM / 8][4];

	__device__ __forceinline__ void
	begin(void)
	{
		for (int half = 0; half < 2; half++)
		{
			max[half] = -INFINITY;
			sum[half] = 0;
		}
#pragma unroll
		for (int i = 0; i < DIM / 8; i++)
			for (int e = 0; e < 4; e++)
				out[i][e] = 0;
	}
};

/*
 * s[KEYS / 8][4] = Q K^T, tiles of 8 keys.  Keys are rows in shared memory, of which the product wants columns: as rows
 * of the operand are pairs along the head, plain ldmatrix gives just that, two tiles of keys with each load.
 */
template <typename T, int DIM, int KEYS>
static __device__ __forceinline__ void
score_keys(float (*s)[4], query_tile<T, DIM> &queries, const T *keys, int dim)
{
	keys += columns_first(DIM + 8);
#pragma unroll
	for (int j = 0; j < KEYS / 8; j++)
		for (int e = 0; e < 4; e++)
			s[j][e] = 0;
#pragma unroll
	for (int i = 0; i < DIM / 16; i++)
		if (i * 16 < dim)
		{
			const uint32_t *a = queries.part(i);

#pragma unroll
			for (int j = 0; j < KEYS / 16; j++)
			{
				uint32_t b[4];

				load_matrices(b, keys + j * 16 * (DIM + 8) + i * 16);
				multiply<T>(s[2 * j], a, b);
				multiply<T>(s[2 * j + 1], a, b + 2);
			}
		}
}

/* Of a step's key in column `e` of tile j: which of the KEYS it is. */
static __device__ __forceinline__ int
key_of(int j, int e)
{
	return j * 8 + (int) threadIdx.x % 4 * 2 + e % 2;
}

/* s = s scale of each key that its row sees, the first seen[half] of the step; all others cannot be seen. */
template <int KEYS, bool narrow>
static __device__ __forceinline__ void
mask_keys(float (*s)[4], float scale, const float *scales, const int32_t seen[2])
{
#pragma unroll
	for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
		for (int e = 0; e < 4; e++)
		{
			float x = s[j][e] * scale;

			if constexpr (narrow)
				x *= scales[key_of(j, e)];
			s[j][e] = key_of(j, e) < seen[e / 2] ? x : -INFINITY;
		}
}

/* The sum, or the greatest, of the four lanes that have a row. */
static __device__ __forceinline__ float
row_sum(float x)
{
	x += __shfl_xor_sync(ALL_LANES, x, 1);
	return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

static __device__ __forceinline__ float
row_max(float x)
{
	x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
	return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

/* s becomes P; what there is so far is brought to the new maximum.  Every row sees a key of its first step. */
template <int DIM, int KEYS>
static __device__ __forceinline__ void
weigh_keys(query_sums<DIM> &sums, float (*s)[4])
{
#pragma unroll
	for (int half = 0; half < 2; half++)
	{
		float max = sums.max[half], sum = 0, before;

#pragma unroll
		for (int j = 0; j < KEYS / 8; j++)
			max = fmaxf(max, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
		max = row_max(max);
		before = exp2f(sums.max[half] - max);
#pragma unroll
		for (int j = 0; j < KEYS / 8; j++)
			for (int e = 2 * half; e < 2 * half + 2; e++)
			{
				s[j][e] = exp2f(s[j][e] - max);
				sum += s[j][e];
			}
		sums.max[half] = max;
		sums.sum[half] = fmaf(sums.sum[half], before, sum);
#pragma unroll
		for (int i = 0; i < DIM / 8; i++)
			for (int e = 2 * half; e < 2 * half + 2; e++)
				sums.out[i][e] *= before;
	}
}

/* Two weights as the matrix units take them. */
template <typename T>
static __device__ __forceinline__ uint32_t
pack_pair(float lower, float upper)
{
	packed<T, uint32_t, 2> pair;

	pair.v[0] = from_float<T>(lower);
	pair.v[1] = from_float<T>(upper);
	return pair.words[0];
}

/*
 * out += P V.  Where a lane has P among the results of the first product is where the second wants it in its operand,
 * so weights change their type and nothing else.  Values come by rows of keys and are wanted by columns: transposed
 * loads.
 */
template <typename T, int DIM, int KEYS>
static __device__ __forceinline__ void
add_values(query_sums<DIM> &sums, const float (*p)[4], const T *values, int dim)
{
	values += rows_first(DIM + 8);
#pragma unroll
	for (int j = 0; j < KEYS / 16; j++)
	{
		const float *lower = p[2 * j], *upper = p[2 * j + 1];
		uint32_t a[4] = {pack_pair<T>(lower[0], lower[1]), pack_pair<T>(lower[2], lower[3]),
						 pack_pair<T>(upper[0], upper[1]), pack_pair<T>(upper[2], upper[3])};

#pragma unroll
		for (int i = 0; i < DIM / 16; i++)
			if (i * 16 < dim)
			{
				uint32_t b[4];

				load_matrices_transposed(b, values + j * 16 * (DIM + 8) + i * 16);
				multiply<T>(sums.out[2 * i], a, b);
				multiply<T>(sums.out[2 * i + 1], a, b + 2);
			}
	}
}

/* One step: keys and values as T, and of int8 cells their scales. seen: as mask_keys has it. */
template <typename T, typename C, int DIM, int KEYS>
static __device__ __forceinline__ void
attend_step(query_sums<DIM> &sums, query_tile<T, DIM> &queries, const T *keys, const T *values, const float *k_scales,
			const float *v_scales, const int32_t seen[2], float scale, int dim)
{
	constexpr bool narrow = step_shape<T, C, DIM, KEYS>::narrow;
	float s[KEYS / 8][4];

	score_keys<T, DIM, KEYS>(s, queries, keys, dim);
	mask_keys<KEYS, narrow>(s, scale, k_scales, seen);
	weigh_keys<DIM, KEYS>(sums, s);
	if constexpr (narrow)
	{
#pragma unroll
		for (int j = 0; j < KEYS / 8; j++)
			for (int e = 0; e < 4; e++)
				s[j][e] *= v_scales[key_of(j, e)];
	}
	add_values<T, DIM, KEYS>(sums, s, values, dim);
}

#endif
