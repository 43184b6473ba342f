/*
 * cpu_linear.h
 *	  Matrix products. Included by cpu_kernels.h.
 *
 * First the activations are narrowed, where they are multiplied so; then the
 * threads share the strips of weights.  A thread takes DOT_STRIPS strips at a
 * time (a quad), a block of columns of them that fits its second-level cache,
 * and passes all rows of activations by it in tiles of up to DOT_ROWS rows,
 * whose sums stay in registers from the first column of the block to the
 * last.  Between blocks they wait in the output.
 *
 * So each output is one chain of additions over the columns, in their order
 * (of a group's exact sum where weights are quantised), whatever the number of
 * rows, strips and threads: the same bits come out for 1 row and for 64.
 *
 * Weights are prefetched all the time, at the pace at which they are used:
 * while a block is multiplied, each of its tiles asks for its share of the
 * next block.  With one tile that would be too early, and a block is asked
 * for AHEAD_BYTES before its use.
 */

/* Strips of a quad, which are stored even where a matrix has fewer. */
#define DOT_STRIPS STRIPS_STORED
/* Vectors of a strip's 16 outputs. */
#define SV (STRIP / VL)
/* Rows of a tile, and registers that hold sums: beside them there is room for the weights of a step and an activation. */
#if VL == 16
#define DOT_ROWS 6
#define DOT_SUMS 24
#elif VL == 8
#define DOT_ROWS 6
#define DOT_SUMS 12
#else
#define DOT_ROWS 2
#define DOT_SUMS 8
#endif
/* Bytes of a quad that stay in a core's second-level cache while the rows pass. */
#define BLOCK_BYTES (256 * 1024)
/*
 * Bytes of the strips under way that are asked for before their use, when one tile holds all rows: what was best on
 * Zen 4.  Floats, read a quad at a time, come 10 % faster with half of what is best for the others.
 */
#define AHEAD_BYTES 8192
#define AHEAD_BYTES_FLOAT_QUAD 4096

/* A range of columns, counted in steps of floats or in groups. */
typedef struct dot_block
{
	int64_t begin;
	int64_t end;
	bool first; /* sums begin with 0 */
	bool last;  /* bias is added */
	size_t strip_bytes;
	int64_t next; /* bytes from the block's beginning to that of the one to prefetch */
	int64_t pace; /* bytes to prefetch in a step of each strip */
} dot_block;

/* Where a tile stands. */
typedef struct dot_place
{
	int64_t strip;
	int64_t row;
	int64_t ahead; /* bytes from the weights it reads to those it prefetches */
} dot_place;

/* ---- what the tiles of all types share ---- */

INLINE void
prefetch(const char *p, size_t strip, int ns)
{
#pragma GCC unroll 4
	for (int a = 0; a < ns; a++)
		_mm_prefetch(p + (size_t) a * strip, _MM_HINT_T1);
}

/* The outputs of a tile: in `out`, or, where the matrix ends among them, in a copy of its own. */
typedef struct dot_outputs
{
	float *first;
	int64_t stride; /* floats from one row to the next */
	bool copied;
	float copy[DOT_ROWS * DOT_STRIPS * STRIP];
} dot_outputs;

/* Copies the outputs of `mr` rows and up to `n` strips that exist, from `out` or to it. */
static __attribute__((noinline)) void
copy_outputs(const linear_job *job, const dot_place *at, dot_outputs *o, int n, int mr, bool to)
{
	int64_t j = at->strip * STRIP, left = job->w->n - j;
	size_t bytes = (size_t) (left < 0 ? 0 : left < n * STRIP ? left : n * STRIP) * sizeof(float);

	for (int b = 0; bytes && b < mr; b++)
	{
		float *out = job->out + (at->row + b) * job->w->n + j;

		memcpy(to ? out : o->copy + b * o->stride, to ? o->copy + b * o->stride : out, bytes);
	}
}

/* Adds the bias of n outputs from j on to each of mr rows. */
static __attribute__((noinline)) void
add_bias(const float *bias, float *out, int64_t stride, int64_t n, int mr)
{
	for (int b = 0; b < mr; b++)
		for (int64_t j = 0; j < n; j++)
			out[b * stride + j] += bias[j];
}

/* Asks for the lines that the tile will write at its end. */
INLINE void
fetch_outputs(const dot_outputs *o, int ns, int mr)
{
	for (int b = 0; b < mr; b++)
		for (int a = 0; a < ns; a++)
			prefetch_written(o->first + b * o->stride + a * STRIP);
}

/* The sums of the blocks before this one. */
INLINE void
load_sums(const linear_job *job, const dot_block *block, const dot_place *at, dot_outputs *o, vf sum[][DOT_ROWS][SV],
		  int ns, int mr)
{
	o->copied = (at->strip + ns) * STRIP > job->w->n;
	o->first = o->copied ? o->copy : job->out + at->row * job->w->n + at->strip * STRIP;
	o->stride = o->copied ? DOT_STRIPS * STRIP : job->w->n;
	if (block->first)
		fetch_outputs(o, ns, mr);
	else if (o->copied)
		copy_outputs(job, at, o, ns, mr, false);
#pragma GCC unroll 4
	for (int a = 0; a < ns; a++)
#pragma GCC unroll 8
		for (int b = 0; b < mr; b++)
#pragma GCC unroll 4
			for (int v = 0; v < SV; v++)
				sum[a][b][v] = block->first ? (vf){0} : vf_load(o->first + b * o->stride + a * STRIP + v * VL);
}

INLINE void
store_sums(const linear_job *job, const dot_block *block, const dot_place *at, dot_outputs *o, vf sum[][DOT_ROWS][SV],
		   int ns, int mr)
{
	int64_t j = at->strip * STRIP;

#pragma GCC unroll 4
	for (int a = 0; a < ns; a++)
#pragma GCC unroll 8
		for (int b = 0; b < mr; b++)
#pragma GCC unroll 4
			for (int v = 0; v < SV; v++)
				vf_store(o->first + b * o->stride + a * STRIP + v * VL, sum[a][b][v]);
	if (block->last && job->bias)
		add_bias(job->bias + j, o->first, o->stride, job->w->n - j < ns * STRIP ? job->w->n - j : ns * STRIP, mr);
	if (o->copied)
		copy_outputs(job, at, o, ns, mr, true);
}

#include "cpu_dot_float.h"
#include "cpu_dot_int.h"

/* ---- tiles of a block ---- */

/* Strips that a tile of mr rows takes at a time. */
INLINE int
dot_strips(int mr)
{
	int n = DOT_SUMS / (mr * SV);

	return n >= DOT_STRIPS ? DOT_STRIPS : n >= 2 ? 2 : 1;
}

/* mr rows by a quad. */
INLINE void
quad_tile(const linear_job *job, const dot_block *block, dot_place at, int mr, qwen_dtype dtype)
{
	int64_t end = at.strip + DOT_STRIPS;

	if (dtype == QWEN_INT8 || dtype == QWEN_INT4)
	{
		int_tile(job, block, &at, dot_strips(mr), mr, dtype);
		return;
	}
	for (; at.strip < end; at.strip += dot_strips(mr))
	{
#if defined(__AVX512BF16__)
		if (dtype == QWEN_BF16)
		{
			bf16_tile(job, block, &at, dot_strips(mr), mr);
			continue;
		}
#endif
		float_tile(job, block, &at, dot_strips(mr), mr, dtype);
	}
}

/* A function for each type and number of rows: what it works with are constants. */
typedef void (*quad_tile_fn)(const linear_job *job, const dot_block *block, dot_place at);

#define QUAD_TILE(type, mr)                                                                                            \
	static void quad_tile_##type##_##mr(const linear_job *job, const dot_block *block, dot_place at)                   \
	{                                                                                                                  \
		quad_tile(job, block, at, mr, QWEN_##type);                                                                    \
	}

#if DOT_ROWS == 6
#define QUAD_TILES(type)                                                                                               \
	QUAD_TILE(type, 1)                                                                                                 \
	QUAD_TILE(type, 2)                                                                                                 \
	QUAD_TILE(type, 3) QUAD_TILE(type, 4) QUAD_TILE(type, 5) QUAD_TILE(type, 6)
#define QUAD_TILE_FNS(type)                                                                                            \
	{                                                                                                                  \
		quad_tile_##type##_1, quad_tile_##type##_2, quad_tile_##type##_3, quad_tile_##type##_4, quad_tile_##type##_5,  \
			quad_tile_##type##_6                                                                                       \
	}
#else
#define QUAD_TILES(type) QUAD_TILE(type, 1) QUAD_TILE(type, 2)
#define QUAD_TILE_FNS(type)                                                                                            \
	{                                                                                                                  \
		quad_tile_##type##_1, quad_tile_##type##_2                                                                     \
	}
#endif

QUAD_TILES(F32)
QUAD_TILES(F16)
#if !defined(CPU_TILES)
QUAD_TILES(BF16)
QUAD_TILES(INT8)
QUAD_TILES(INT4)
#endif

static const quad_tile_fn quad_tiles[][DOT_ROWS] = {
	[QWEN_F32] = QUAD_TILE_FNS(F32),   [QWEN_F16] = QUAD_TILE_FNS(F16),
#if !defined(CPU_TILES)
	[QWEN_BF16] = QUAD_TILE_FNS(BF16), [QWEN_INT8] = QUAD_TILE_FNS(INT8), [QWEN_INT4] = QUAD_TILE_FNS(INT4),
#endif
};

/* ---- blocks of a quad ---- */

/* What the columns of a matrix are counted in: steps of floats, groups. */
typedef struct dot_units
{
	int64_t n;          /* in a row */
	int64_t bytes;      /* of a strip */
	int64_t step_bytes; /* of those, read between two prefetches */
} dot_units;

static dot_units
units_of(const qwen_matrix *w)
{
	qwen_dtype dtype = w->dtype;
	int64_t step = dtype == QWEN_F16 ? 32 : 64;

	if (dtype == QWEN_INT8 || dtype == QWEN_INT4)
		return (dot_units){padded_k(dtype, w->k) / QWEN_GROUP, (dtype == QWEN_INT8 ? 16 : 8) * step, step};
	if (dtype == QWEN_BF16)
		return (dot_units){(NARROW_BF16 ? padded_k(dtype, w->k) : w->k) / 2, step, step};
	return (dot_units){w->k, step, step};
}

/*
 * The end of the block that begins at unit `begin`.  With one tile, the last `ahead` bytes of a strip are a block of
 * their own, during which the beginning of the next quad is prefetched.
 */
static int64_t
block_end(const dot_units *units, int64_t begin, int64_t tiles, int64_t ahead)
{
	int64_t most = BLOCK_BYTES / DOT_STRIPS / units->bytes;
	int64_t blocks = (units->n + most - 1) / most;
	int64_t even = blocks > 0 ? (units->n + blocks - 1) / blocks : 0;

	if (tiles == 1)
		return begin == 0 && units->n > ahead / units->bytes ? units->n - ahead / units->bytes : units->n;
	return begin + even < units->n ? begin + even : units->n;
}

/* All rows by a block of a quad, in tiles of nearly the same number of rows. */
static void
quad_block(const linear_job *job, const dot_block *block, int64_t strip, int64_t tiles, int64_t block_bytes)
{
	for (int64_t i = 0; i < tiles; i++)
	{
		int64_t row = job->rows * i / tiles, end = job->rows * (i + 1) / tiles;

		quad_tiles[job->w->dtype][end - row - 1](job, block,
												 (dot_place){strip, row, block->next + block_bytes * i / tiles});
	}
}

/* Bytes of each strip that are asked for before their use, when one tile holds all rows. */
static int64_t
bytes_ahead(const linear_job *job)
{
	bool floats = job->w->dtype != QWEN_INT8 && job->w->dtype != QWEN_INT4;
	int strips = dot_strips((int) job->rows);

	return (floats && strips == DOT_STRIPS ? AHEAD_BYTES_FLOAT_QUAD : AHEAD_BYTES) / strips;
}

/* All rows by the quad that begins with that strip. */
static void
quad_product(const linear_job *job, int64_t strip)
{
	dot_units units = units_of(job->w);
	int64_t tiles = (job->rows + DOT_ROWS - 1) / DOT_ROWS;
	int64_t ahead = tiles == 1 ? bytes_ahead(job) : 0;
	int64_t begin = 0;

	do
	{
		dot_block block = {.begin = begin, .end = block_end(&units, begin, tiles, ahead)};
		int64_t bytes = (block.end - begin) * units.bytes;

		block.first = begin == 0;
		block.last = block.end == units.n;
		block.strip_bytes = strip_bytes(job->w->dtype, job->w->k);
		block.next = block.last   ? DOT_STRIPS * (int64_t) block.strip_bytes - begin * units.bytes
					 : tiles == 1 ? ahead
								  : bytes;
		block.pace = (units.step_bytes + tiles - 1) / tiles;
		quad_block(job, &block, strip, tiles, bytes);
		begin = block.end;
	} while (begin < units.n);
}

/* ---- the product ---- */

/* Strips [begin, end), whole quads but for the end of the matrix. */
static void
linear_piece(void *arg, int64_t begin, int64_t end)
{
	const linear_job *job = arg;

#if defined(CPU_TILES)
	if (job->w->dtype != QWEN_F32 && job->w->dtype != QWEN_F16)
	{
		linear_strips_amx(job, begin, end);
		return;
	}
#endif
	for (; begin < end; begin += DOT_STRIPS)
		quad_product(job, begin);
}

/*
 * Strips that a thread takes at a time: whole quads, some eight pieces for each thread, so that a thread that was held
 * up costs little, while most of what is prefetched is used by the one that asked.
 */
static int64_t
strip_grain(const qwen_device *dev, int64_t strips)
{
	return round_up(strips / (8 * dev->n_threads) + 1, DOT_STRIPS);
}

static void
cpu_linear(qwen_device *dev, void *d_out, const qwen_matrix *w, const float *d_bias, const void *d_x, int32_t rows)
{
	linear_job job = {.out = d_out, .w = w, .bias = d_bias, .x = d_x, .rows = rows};
	int64_t strips = (w->n + STRIP - 1) / STRIP;

	narrow_inputs(dev, &job);
	qwen_pool_run(dev->priv, strips, strip_grain(dev, strips), linear_piece, &job);
}

static bool
cpu_logits(qwen_device *dev, float *out, const qwen_matrix *head, const void *d_x, int32_t rows)
{
	cpu_linear(dev, out, head, NULL, d_x, rows);
	return true;
}
