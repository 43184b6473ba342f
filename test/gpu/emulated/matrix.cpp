/*
 * matrix.cpp
 *	  What a warp does together with matrices of 16-bit elements, for the
 *	  emulated CUDA.  Fragments are laid out as cuda_math.h describes them.
 *
 * Each lane brings the address of its part, which lies on its fiber's stack
 * and stays there while it waits; the last lane to come computes for all.
 */
#include "emulated_math.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

/* A lane's part of a product. */
typedef struct fragments
{
	float *d;          /* [4] */
	const uint32_t *a; /* [4] */
	const uint32_t *b; /* [2] */
} fragments;

static const fragments *
fragments_of(uint64_t word)
{
	return reinterpret_cast<const fragments *>(word);
}

static float
from_bf16(uint16_t bits)
{
	return __bfloat162float({bits});
}

static float
from_f16(uint16_t bits)
{
	return __half2float({bits});
}

/* Element i of two to a word, the lower one first. */
template <float (*widen)(uint16_t)>
static float
element(uint32_t word, int i)
{
	return widen((uint16_t) (word >> 16 * i));
}

/* The sums of each element of d run over k in order, in float. */
template <float (*widen)(uint16_t)>
static void
multiply(const uint64_t words[EMULATED_WARP])
{
	float a[16][16], b[16][8];

	for (int lane = 0; lane < EMULATED_WARP; lane++)
	{
		const fragments *f = fragments_of(words[lane]);
		int r = lane / 4, c = lane % 4;

		for (int i = 0; i < 2; i++)
		{
			a[r][2 * c + i] = element<widen>(f->a[0], i);
			a[r + 8][2 * c + i] = element<widen>(f->a[1], i);
			a[r][2 * c + 8 + i] = element<widen>(f->a[2], i);
			a[r + 8][2 * c + 8 + i] = element<widen>(f->a[3], i);
			b[2 * c + i][r] = element<widen>(f->b[0], i);
			b[2 * c + 8 + i][r] = element<widen>(f->b[1], i);
		}
	}
	for (int lane = 0; lane < EMULATED_WARP; lane++)
	{
		float *d = fragments_of(words[lane])->d;
		int r = lane / 4, c = lane % 4 * 2;

		for (int k = 0; k < 16; k++)
		{
			d[0] += a[r][k] * b[k][c];
			d[1] += a[r][k] * b[k][c + 1];
			d[2] += a[r + 8][k] * b[k][c];
			d[3] += a[r + 8][k] * b[k][c + 1];
		}
	}
}

void
mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], int line)
{
	fragments mine = {d, a, b};

	(void) emulated_meet(EMULATED_MMA, line, reinterpret_cast<uint64_t>(&mine), multiply<from_bf16>);
}

void
mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2], int line)
{
	fragments mine = {d, a, b};

	(void) emulated_meet(EMULATED_MMA, line, reinterpret_cast<uint64_t>(&mine), multiply<from_f16>);
}

/* ---- four matrices of 8 rows of 16 bytes; lane 8 i + r brings the address of row r of matrix i ---- */

typedef struct matrix_rows
{
	uint32_t *r; /* [4] */
	const uint16_t *row;
} matrix_rows;

static const matrix_rows *
rows_of(uint64_t word)
{
	return reinterpret_cast<const matrix_rows *>(word);
}

/* All at once, as the GPU does it: what a lane writes afterwards is not read here. */
template <bool transposed>
static void
distribute(const uint64_t words[EMULATED_WARP])
{
	for (unsigned lane = 0; lane < EMULATED_WARP; lane++)
	{
		const matrix_rows *mine = rows_of(words[lane]);
		unsigned r = lane / 4, c = lane % 4 * 2;

		if (reinterpret_cast<uint64_t>(mine->row) % 16)
			emulated_die("emulated CUDA: load_matrices of an address that is not a multiple of 16");
		for (unsigned i = 0; i < 4; i++)
		{
			uint32_t lower = rows_of(words[8 * i + (transposed ? c : r)])->row[transposed ? r : c];
			uint32_t upper = rows_of(words[8 * i + (transposed ? c + 1 : r)])->row[transposed ? r : c + 1];

			mine->r[i] = lower | upper << 16;
		}
	}
}

void
load_matrices(uint32_t r[4], const void *row, int line)
{
	matrix_rows mine = {r, static_cast<const uint16_t *>(row)};

	(void) emulated_meet(EMULATED_LOAD_MATRICES, line, reinterpret_cast<uint64_t>(&mine), distribute<false>);
}

void
load_matrices_transposed(uint32_t r[4], const void *row, int line)
{
	matrix_rows mine = {r, static_cast<const uint16_t *>(row)};

	(void) emulated_meet(EMULATED_LOAD_MATRICES, line, reinterpret_cast<uint64_t>(&mine), distribute<true>);
}
