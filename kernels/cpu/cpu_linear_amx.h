/*
 * cpu_linear_amx.h
 *	  Matrix products on tiles. Included by cpu_kernels.h in the set that has
 *	  them; the layout of weights and activations is cpu_layout.h's.
 *
 * A tile of activations is 16 rows of 64 bytes of the narrowed array as it
 * stands, a tile of weights 16 steps of a strip, and their product 16 rows by
 * the strip's 16 outputs.  Rows are taken 32 at a time, two tiles; what is
 * left at the end is a pass of its own, whose tiles are configured with the
 * rows that there are.  The arithmetic of a row depends on nothing but the row
 * and the weights, so 1 row and 64 give the same bits.
 *
 * bfloat16.  Two tiles of rows by two strips: 4 sums, 2 + 2 operands.  An
 * output is one chain along k, begun with its bias; where more than 32 rows
 * pass, it is put down in `out` and taken up again every BF16_STEPS tiles, so
 * that two strips' part stays in the first-level cache for all rows while the
 * rows' part stays in the second.
 *
 * int8, int4.  Each group of 64 is one product into a zeroed tile of int32,
 * which vectors turn into float and add, in quant.h's order and therefore to
 * the same bits as without tiles.  A unit is up to two tiles of rows by a strip
 * by two groups.  Its products are started before the unit before it is
 * scaled: one hides behind the other.  Nibbles become bytes once for all rows
 * of a block of INT_ROWS.
 *
 * What binds on Sapphire Rapids, in cycles, counted from the code that comes
 * out and the published throughputs: two loads and one store of 64 bytes, two
 * operations on 64 bytes in a cycle, 16 cycles for a product of full tiles.
 * These are floors.  This file has not yet run on such a processor.
 *
 *	  bfloat16, 32 rows x 32 outputs x 32 of k: four products, 64, bind.  Their four tile loads take 32 of the load
 *	  ports, and the rows' half of them comes from the second-level cache at 32 bytes a cycle.  After BF16_STEPS of
 *	  these, 4 tiles are stored and 4 loaded: 96 to 1024, if nothing of it is hidden.
 *	  int8, 16 rows x 16 outputs x 64 of k: the product takes 16; conversion, multiplication and multiply-add of each
 *	  row 24; loads 25 to 28 (rows 8, products 8, outputs 4, scales 5 to 8, weights 1 with 128 rows); stores 24.  So
 *	  some 26, where VNNI needs 128 + 24.
 *	  int4: one multiply-add and one load more, 32; two groups are unpacked in some 50, with 128 rows 3 for each tile.
 *	  Up to 16 rows: weights come from memory, a tile of int8 or bfloat16 in some 150 at 19 GB/s a core, of int4 in
 *	  75.  Loads and product of it take 16, unpacking 25, and the vectors' part counts the rows that there are.
 */

#include "cpu_tile.h"

/* Rows of a block: two tiles. */
#define PAIR_ROWS (2 * AMX_ROWS)
/* Bytes of a tile. */
#define AMX_BYTES (AMX_ROWS * AMX_ROW_BYTES)
/* Tiles along k of bfloat16 between two visits to `out`: two strips' part is 32 KiB. */
#define BF16_STEPS 16
/* Rows whose bfloat16 of that length stay in the second-level cache: 1 MiB. */
#define BF16_ROWS 1024
/* Rows whose sums (8 KiB a strip) and two groups of int8 (16 KiB) stay in the first-level cache. */
#define INT_ROWS 128
/* Bytes of strips that stay in the second-level cache while blocks of rows pass. */
#define CHUNK_BYTES (512 * 1024)
/* How far ahead of the tiles a strip is fetched: two strips under way are more than the memory's latency takes. */
#define FETCH_AHEAD 4096
/* The same for the scales behind a strip's elements: 4 groups of int4, 8 of int8. */
#define TABLES_AHEAD 256
#define LINE 64

/* Asks for `lines` lines in the second-level cache. Any address will do. */
INLINE void
fetch_lines(const char *p, int64_t lines)
{
	for (int64_t i = 0; i < lines; i++)
		_mm_prefetch(p + i * LINE, _MM_HINT_T1);
}

/*
 * Sizes for blocks of `rows` <= PAIR_ROWS rows and steps of `depth` words of 32 bits along k.  Tiles 0, 1 and 4 have the
 * first 16 rows, 2, 3 and 5 the others and, where there are none, no size: they must not be used then.
 */
static void
configure_tiles(int64_t rows, int depth)
{
	uint8_t first = (uint8_t) (rows < AMX_ROWS ? rows : AMX_ROWS), second = (uint8_t) (rows - first);
	tile_config config = {
		.palette = 1,
		.rows = {first, first, second, second, first, second, (uint8_t) depth, (uint8_t) depth},
	};

	for (int t = 0; t < AMX_TILES; t++)
		config.row_bytes[t] = !config.rows[t] ? 0 : (uint16_t) (t == 4 || t == 5 ? 4 * depth : AMX_ROW_BYTES);
	tile_configure(&config);
}

/* ---- bfloat16 ---- */

/* Tiles 0 and 1: the first 16 rows by the two strips; 2 and 3: the other rows. */
INLINE void
zero_tiles(bool two_tiles)
{
	TILE_ZERO(0);
	TILE_ZERO(1);
	if (two_tiles)
	{
		TILE_ZERO(2);
		TILE_ZERO(3);
	}
}

INLINE void
load_tiles(const char *from, int64_t stride, bool two_tiles, bool two_strips)
{
	const char *second = from + AMX_ROWS * stride;

	TILE_LOAD(0, from, stride);
	if (two_strips)
		TILE_LOAD(1, from + AMX_ROW_BYTES, stride);
	if (two_tiles)
		TILE_LOAD(2, second, stride);
	if (two_tiles && two_strips)
		TILE_LOAD(3, second + AMX_ROW_BYTES, stride);
}

INLINE void
store_tiles(char *to, int64_t stride, bool two_tiles, bool two_strips)
{
	char *second = to + AMX_ROWS * stride;

	TILE_STORE(0, to, stride);
	if (two_strips)
		TILE_STORE(1, to + AMX_ROW_BYTES, stride);
	if (two_tiles)
		TILE_STORE(2, second, stride);
	if (two_tiles && two_strips)
		TILE_STORE(3, second + AMX_ROW_BYTES, stride);
}

/* Adds the products of rows x by the next tile of one strip, a, and of the other, b. */
INLINE void
multiply_tiles(const char *x, int64_t x_stride, const char *a, const char *b, bool two_tiles, bool two_strips)
{
	TILE_LOAD(6, a, AMX_ROW_BYTES);
	TILE_LOAD(4, x, x_stride);
	TILE_MULTIPLY_BF16(0, 4, 6);
	if (two_tiles)
	{
		TILE_LOAD(5, x + AMX_ROWS * x_stride, x_stride);
		TILE_MULTIPLY_BF16(2, 5, 6);
	}
	if (two_strips)
	{
		TILE_LOAD(7, b, AMX_ROW_BYTES);
		TILE_MULTIPLY_BF16(1, 4, 7);
	}
	if (two_strips && two_tiles)
		TILE_MULTIPLY_BF16(3, 5, 7);
}

/* Up to two strips' part along k, and up to 32 rows of activations and of outputs. */
typedef struct bf16_part
{
	const char *x;    /* the rows' first element of the part */
	int64_t x_stride; /* bytes, as all of these */
	const char *w;    /* the first strip's part */
	int64_t strip;    /* from one strip to the next */
	int64_t steps;    /* tiles along k */
	float *out;
	int64_t out_stride;
	const float *begin;   /* what sums begin with: out, bias or NULL, zero */
	int64_t begin_stride; /* 0 for the bias */
	const char *ahead;    /* what is fetched meanwhile, of the first strip */
	int64_t pace;         /* lines in each step */
	int64_t skip_step;    /* from this step on ... */
	int64_t skip;         /* ... so many bytes further */
} bf16_part;

INLINE void
bf16_block(const bf16_part *p, bool two_tiles, bool two_strips)
{
	const char *x = p->x, *w = p->w, *ahead = p->ahead;
	int64_t x_stride = p->x_stride, strip = p->strip, pace = p->pace, skip_step = p->skip_step, skip = p->skip;

	if (p->begin)
		load_tiles((const char *) p->begin, p->begin_stride, two_tiles, two_strips);
	else
		zero_tiles(two_tiles);
	for (int64_t step = 0, steps = p->steps; step < steps; step++)
	{
		ahead += step == skip_step ? skip : 0;
		multiply_tiles(x, x_stride, w, w + strip, two_tiles, two_strips);
		fetch_lines(ahead, pace);
		if (two_strips)
			fetch_lines(ahead + strip, pace);
		x += AMX_ROW_BYTES;
		w += AMX_BYTES;
		ahead += pace * LINE;
	}
	store_tiles((char *) p->out, p->out_stride, two_tiles, two_strips);
}

static void
bf16_any_block(const bf16_part *p, bool two_tiles, bool two_strips)
{
	if (two_tiles && two_strips)
		bf16_block(p, true, true);
	else if (two_tiles)
		bf16_block(p, true, false);
	else if (two_strips)
		bf16_block(p, false, true);
	else
		bf16_block(p, false, false);
}

/* Rows [row, end): a whole number of pairs of tiles, or fewer rows than one has. */
typedef struct amx_rows
{
	int64_t row;
	int64_t end;
	int64_t pairs;
	bool two_tiles;
} amx_rows;

static amx_rows
start_rows(int64_t row, int64_t end)
{
	configure_tiles(end - row < PAIR_ROWS ? end - row : PAIR_ROWS, AMX_ROWS);
	return (amx_rows){row, end, (end - row + PAIR_ROWS - 1) / PAIR_ROWS, end - row > AMX_ROWS};
}

/* A strip's part from tile `step` on. */
static bf16_part
bf16_part_of(const linear_job *job, int64_t strip, int64_t step, int64_t steps)
{
	int64_t k = padded_k(QWEN_BF16, job->w->k), size = (int64_t) strip_bytes(QWEN_BF16, k);
	const char *w = (const char *) job->w->data + strip * size + step * AMX_BYTES;

	return (bf16_part){.x_stride = narrow_stride(QWEN_BF16, k) * 2,
					   .w = w,
					   .strip = size,
					   .steps = steps,
					   .out_stride = job->w->n * 4,
					   .ahead = w};
}

/* One pair of tiles, or less, is all rows: the strips are fetched further on, and then the next two. */
static void
fetch_along(bf16_part *p)
{
	p->ahead = p->w + FETCH_AHEAD;
	p->pace = AMX_ROWS;
	p->skip_step = p->steps - FETCH_AHEAD / AMX_BYTES;
	p->skip = p->strip;
}

/* Block i of n fetches its share of the part that comes next. */
static void
fetch_share(bf16_part *p, const char *next, int64_t i, int64_t n)
{
	int64_t pace = (AMX_ROWS + n - 1) / n;

	p->ahead = next + i * pace * p->steps * LINE;
	p->pace = i * pace < AMX_ROWS ? pace : 0;
}

/* Part p of two strips or one, whose first outputs are `strip`'s, for all rows; next is the part that follows or NULL. */
static void
bf16_strips(const linear_job *job, const amx_rows *rows, bf16_part p, int64_t strip, int64_t step, bool two_strips,
			const char *next)
{
	if (rows->pairs == 1)
		fetch_along(&p);
	for (int64_t i = 0; i < rows->pairs; i++)
	{
		int64_t row = rows->row + i * PAIR_ROWS;

		p.x = (const char *) job->narrow + row * p.x_stride + step * AMX_ROW_BYTES;
		p.out = job->out + row * job->w->n + strip * STRIP;
		p.begin = step ? p.out : job->bias ? job->bias + strip * STRIP : NULL;
		p.begin_stride = step ? p.out_stride : 0;
		if (rows->pairs > 1 && next)
			fetch_share(&p, next, i, rows->pairs);
		bf16_any_block(&p, rows->two_tiles, two_strips);
	}
}

/* The matrix's last strip, when some of its outputs do not exist: by way of a whole tile. */
static void
bf16_cut_strip(const linear_job *job, const amx_rows *rows, int64_t strip)
{
	int64_t n = job->w->n, first = strip * STRIP, width = n - first;
	bf16_part p = bf16_part_of(job, strip, 0, padded_k(QWEN_BF16, job->w->k) / 32);
	float out[PAIR_ROWS][STRIP], bias[STRIP] = {0};

	if (job->bias)
		memcpy(bias, job->bias + first, (size_t) width * sizeof(float));
	p.begin = bias;
	p.out = out[0];
	p.out_stride = sizeof(out[0]);
	for (int64_t row = rows->row; row < rows->end; row += PAIR_ROWS)
	{
		p.x = (const char *) job->narrow + row * p.x_stride;
		bf16_any_block(&p, rows->two_tiles, false);
		for (int64_t r = 0; r < PAIR_ROWS && row + r < rows->end; r++)
			memcpy(job->out + (row + r) * n + first, out[r], (size_t) width * sizeof(float));
	}
}

static void
bf16_rows(const linear_job *job, int64_t begin, int64_t end, amx_rows rows)
{
	int64_t steps = padded_k(QWEN_BF16, job->w->k) / 32, block = rows.pairs == 1 ? steps : BF16_STEPS;
	int64_t whole = job->w->n / STRIP < end ? job->w->n / STRIP : end;

	for (int64_t step = 0; step < steps; step += block)
		for (int64_t strip = begin; strip < whole; strip += 2)
		{
			int64_t now = steps - step < block ? steps - step : block;
			bf16_part p = bf16_part_of(job, strip, step, now);
			const char *next = strip + 2 < whole    ? p.w + 2 * p.strip
							   : step + now < steps ? bf16_part_of(job, begin, step + now, 0).w
													: NULL;

			bf16_strips(job, &rows, p, strip, step, strip + 1 < whole, next);
		}
	if (whole < end)
		bf16_cut_strip(job, &rows, whole);
}

/* ---- int8 and int4 ---- */

/* Sums of two groups by 32 rows: [group][row][output]. */
typedef int32_t unit_sums[2][PAIR_ROWS][STRIP];

/* A unit whose products are under way. */
typedef struct int_unit
{
	unit_sums *sums;
	float *out; /* [rows][STRIP] */
	int64_t rows;
	int groups;            /* 1 or 2; 0: there is no unit */
	const uint16_t *d;     /* [groups][STRIP], or for int4 [groups][2][STRIP] with the minima */
	const float *x_scales; /* of the first row and group */
	const float *shifts;   /* the same, for int4 */
	int64_t x_groups;      /* from one row's to the next row's */
} int_unit;

/* Tiles 0 and 1: the first 16 rows' products of the two groups; 2 and 3: the other rows'; 6 and 7: the groups' weights. */
INLINE void
multiply_unit(const int_unit *unit, const char *x, int64_t x_stride, bool two_tiles, bool two_groups)
{
	unit_sums *sums = unit->sums;
	const char *second = x + AMX_ROWS * x_stride;

	TILE_LOAD(4, x, x_stride);
	TILE_ZERO(0);
	TILE_MULTIPLY_INT8(0, 4, 6);
	if (two_tiles)
	{
		TILE_LOAD(5, second, x_stride);
		TILE_ZERO(2);
		TILE_MULTIPLY_INT8(2, 5, 6);
	}
	if (two_groups)
	{
		TILE_LOAD(4, x + QWEN_GROUP, x_stride);
		TILE_ZERO(1);
		TILE_MULTIPLY_INT8(1, 4, 7);
	}
	if (two_groups && two_tiles)
	{
		TILE_LOAD(5, second + QWEN_GROUP, x_stride);
		TILE_ZERO(3);
		TILE_MULTIPLY_INT8(3, 5, 7);
	}
	TILE_STORE(0, (*sums)[0], AMX_ROW_BYTES);
	if (two_tiles)
		TILE_STORE(2, (*sums)[0][AMX_ROWS], AMX_ROW_BYTES);
	if (two_groups)
		TILE_STORE(1, (*sums)[1], AMX_ROW_BYTES);
	if (two_groups && two_tiles)
		TILE_STORE(3, (*sums)[1][AMX_ROWS], AMX_ROW_BYTES);
}

/* The unit's sums, scaled as quant.h says, into its rows' outputs. */
INLINE void
scale_unit(const int_unit *unit, int groups, qwen_dtype dtype)
{
	const float *s = unit->x_scales;
	vf d[2], m[2];

#pragma GCC unroll 2
	for (int g = 0; g < groups; g++)
	{
		d[g] = vf_load_as(unit->d, g * (dtype == QWEN_INT4 ? 2 * STRIP : STRIP), QWEN_BF16);
		m[g] = dtype == QWEN_INT4 ? vf_load_as(unit->d, (2 * g + 1) * STRIP, QWEN_BF16) : vf_set(0);
	}
	for (int64_t r = 0; r < unit->rows; r++, s += unit->x_groups)
	{
		vf out = vf_load(unit->out + r * STRIP);

#pragma GCC unroll 2
		for (int g = 0; g < groups; g++)
		{
			if (dtype == QWEN_INT4)
				out = vf_fma(m[g], vf_set(unit->shifts[r * unit->x_groups + g]), out);
			out = vf_fma(__builtin_convertvector(vi_load((*unit->sums)[g][r]), vf), d[g] * vf_set(s[g]), out);
		}
		vf_store(unit->out + r * STRIP, out);
	}
}

INLINE void
scale_any_unit(const int_unit *unit, qwen_dtype dtype)
{
	if (unit->groups == 2)
		scale_unit(unit, 2, dtype);
	else if (unit->groups == 1)
		scale_unit(unit, 1, dtype);
}

/* A group of int4 as the bytes of a tile: [16 / 2][16][4] halves to [16][16][4]. */
INLINE void
unpack_group(char *bytes, const char *w)
{
	for (int i = 0; i < AMX_ROWS / 2; i++)
	{
		vi both = vi_load(w + i * LINE), low = both & 0x0f0f0f0f, high = both >> 4 & 0x0f0f0f0f;

		memcpy(bytes + 2 * i * LINE, &low, LINE);
		memcpy(bytes + (2 * i + 1) * LINE, &high, LINE);
	}
}

/* The product's constants, and the place of one strip's `groups` groups in it. */
typedef struct int_strip
{
	const linear_job *job;
	const amx_rows *rows;
	const char *w; /* the strip */
	float *out;    /* [INT_ROWS][STRIP] */
	int64_t group;
	int groups;
} int_strip;

/* What the groups need beside their elements. */
INLINE const uint16_t *
group_scales(const int_strip *at, qwen_dtype dtype)
{
	const uint16_t *scales = (const uint16_t *) (at->w + strip_element_bytes(dtype, at->job->w->k));

	return scales + at->group * (dtype == QWEN_INT4 ? 2 * STRIP : STRIP);
}

/* Loads the groups' weights, and has the strip fetched further on. */
INLINE void
load_groups(const int_strip *at, qwen_dtype dtype)
{
	int64_t size = (int64_t) strip_bytes(dtype, at->job->w->k), bytes = dtype == QWEN_INT4 ? AMX_BYTES / 2 : AMX_BYTES;
	int64_t from = at->group * bytes;
	const char *w = at->w + from, *scales = (const char *) group_scales(at, dtype);
	_Alignas(64) char unpacked[2][AMX_BYTES];

	fetch_lines(w + FETCH_AHEAD + (from + FETCH_AHEAD < size ? 0 : size), at->groups * bytes / LINE);
	fetch_lines(scales + TABLES_AHEAD, dtype == QWEN_INT4 ? 2 : 1);
	if (dtype == QWEN_INT4)
	{
		for (int g = 0; g < at->groups; g++)
			unpack_group(unpacked[g], w + g * bytes);
		w = unpacked[0];
	}
	TILE_LOAD(6, w, LINE);
	if (at->groups == 2)
		TILE_LOAD(7, w + AMX_BYTES, LINE);
}

/*
 * All rows by the groups of one strip.  sums: two, taken in turn; waiting: the unit before, whose sums are in the other
 * one, and on return the last one of these.
 */
INLINE void
multiply_groups(const int_strip *at, unit_sums sums[2], int_unit *waiting, bool two_tiles, bool two_groups,
				qwen_dtype dtype)
{
	const linear_job *job = at->job;
	int64_t k = padded_k(dtype, job->w->k), x_groups = k / QWEN_GROUP, stride = narrow_stride(dtype, k);

	load_groups(at, dtype);
	for (int64_t row = at->rows->row; row < at->rows->end; row += PAIR_ROWS)
	{
		int_unit unit = {
			.sums = waiting->sums == &sums[0] ? &sums[1] : &sums[0],
			.out = at->out + (row - at->rows->row) * STRIP,
			.rows = at->rows->end - row < PAIR_ROWS ? at->rows->end - row : PAIR_ROWS,
			.groups = at->groups,
			.d = group_scales(at, dtype),
			.x_scales = job->scales + row * x_groups + at->group,
			.shifts = dtype == QWEN_INT4 ? job->shifts + row * x_groups + at->group : NULL,
			.x_groups = x_groups,
		};

		multiply_unit(&unit, (const char *) job->narrow + row * stride + at->group * QWEN_GROUP, stride, two_tiles,
					  two_groups);
		scale_any_unit(waiting, dtype);
		*waiting = unit;
	}
}

INLINE void
multiply_any_groups(const int_strip *at, unit_sums sums[2], int_unit *waiting, qwen_dtype dtype)
{
	bool two_tiles = at->rows->two_tiles, two_groups = at->groups == 2;

	if (two_tiles && two_groups)
		multiply_groups(at, sums, waiting, true, true, dtype);
	else if (two_tiles)
		multiply_groups(at, sums, waiting, true, false, dtype);
	else if (two_groups)
		multiply_groups(at, sums, waiting, false, true, dtype);
	else
		multiply_groups(at, sums, waiting, false, false, dtype);
}

/* The outputs of a strip, with their bias, to where they belong. */
static void
put_strip(const linear_job *job, const amx_rows *rows, int64_t strip, const float *from)
{
	int64_t n = job->w->n, first = strip * STRIP, width = n - first < STRIP ? n - first : STRIP;
	vf bias = job->bias ? vf_load_tail(job->bias, first, width, QWEN_F32) : vf_set(0);

	for (int64_t row = rows->row; row < rows->end; row++, from += STRIP)
	{
		float *to = job->out + row * n + first;

		if (width == STRIP)
			vf_store(to, vf_load(from) + bias);
		else
			vf_store_tail(to, vf_load(from) + bias, width);
	}
}

/* Strips [begin, end) for up to INT_ROWS rows, two strips at a time. */
INLINE void
int_rows(const linear_job *job, int64_t begin, int64_t end, amx_rows rows, qwen_dtype dtype)
{
	int64_t k = padded_k(dtype, job->w->k), groups = k / QWEN_GROUP, size = (int64_t) strip_bytes(dtype, k);
	_Alignas(64) float out[2][INT_ROWS][STRIP];
	_Alignas(64) unit_sums sums[2];

	for (int64_t strip = begin; strip < end; strip += 2)
	{
		int n_strips = end - strip < 2 ? 1 : 2;
		int_unit waiting = {0};

		for (int s = 0; s < n_strips; s++)
			memset(out[s], 0, (size_t) (rows.end - rows.row) * sizeof(out[0][0]));
		for (int64_t group = 0; group < groups; group += 2)
			for (int s = 0; s < n_strips; s++)
			{
				int_strip at = {job,       &rows, (const char *) job->w->data + (strip + s) * size,
								out[s][0], group, groups - group < 2 ? 1 : 2};

				multiply_any_groups(&at, sums, &waiting, dtype);
			}
		scale_any_unit(&waiting, dtype);
		for (int s = 0; s < n_strips; s++)
			put_strip(job, &rows, strip + s, out[s][0]);
	}
}

/* ---- all of them ---- */

static void
rows_amx(const linear_job *job, int64_t begin, int64_t end, int64_t row, int64_t stop)
{
	amx_rows rows = start_rows(row, stop);

	if (job->w->dtype == QWEN_BF16)
		bf16_rows(job, begin, end, rows);
	else if (job->w->dtype == QWEN_INT8)
		int_rows(job, begin, end, rows, QWEN_INT8);
	else
		int_rows(job, begin, end, rows, QWEN_INT4);
}

/* Strips [begin, end) of a product of bfloat16, int8 or int4, for all its rows: a part of them at a time. */
static void
linear_strips_amx(const linear_job *job, int64_t begin, int64_t end)
{
	int64_t block = job->w->dtype == QWEN_BF16 ? BF16_ROWS : INT_ROWS, paired = job->rows / PAIR_ROWS * PAIR_ROWS;
	int64_t fit = CHUNK_BYTES / (int64_t) strip_bytes(job->w->dtype, job->w->k);
	int64_t chunk = fit < 2 ? 2 : fit - fit % 2;

	for (int64_t strip = begin; strip < end; strip += chunk)
	{
		int64_t last = end - strip < chunk ? end : strip + chunk;

		for (int64_t row = 0; row < paired; row += block)
			rows_amx(job, strip, last, row, paired - row < block ? paired : row + block);
		if (paired < job->rows)
			rows_amx(job, strip, last, paired, job->rows);
	}
	tile_release();
}
