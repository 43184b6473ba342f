/*
 * cpu_attention.h
 *	  Attention over the paged cache. Included by cpu_kernels.h.
 *
 * The tokens of a step times the query heads of one kv head are the rows of a
 * matrix, and TILE_ROWS of them are a tile.  A tile passes over its sequence
 * in spans of SPAN tokens: scores of all rows, weights, weighted sum of the
 * values, each a product of cpu_attention_product.h.  A span's result is
 * relative to its own maximum; the spans of a row are added in order.
 *
 *	  span:		m = max score, s = sum of 2^(score - m), o[dim] = sum of 2^(score - m) v
 *	  total:	M, S, O with M' = max(M, m), O' = O 2^(M - M') + o 2^(m - M'), S' likewise
 *
 * Where spans begin depends on the sequence alone, so a row has the same bits
 * in a chunk of prefill and by itself, in any batch, on any number of threads.
 * When there are fewer tiles than would keep all threads busy, the spans of a
 * tile become work of their own, and their results wait to be added in order.
 *
 * Scores are in units of log 2, for exp2 is a product less than exp: queries
 * are multiplied by log2(e) / sqrt(dim) before they are narrowed.
 */
#include "cpu_kv.h"
#include "cpu_attention_product.h"

/* Rows of a tile: a span of keys and values is read from memory once for so many. */
#define TILE_ROWS 32
/* Tokens of a span: 64 KB of keys of 128 bfloat16 and as much of values, which stay in the cache for all rows. */
#define SPAN 256
#define SPAN_BLOCKS (SPAN / QWEN_KV_BLOCK)
/* Words from one row of scores to the next; not a power of two, which would put all rows into the same cache sets. */
#define SCORE_STRIDE (SPAN + STRIP)
/* With fewer tiles for each thread the spans are handed out by themselves. */
#define ITEMS_PER_THREAD 4
/* Kv heads of a tile, where there is enough to do: the pieces of memory that are read as one grow with them. */
#define MAX_HEADS 4
/* Floats of the results that wait: those of one tile at the least, and on the caller's stack. */
#define WAITING_FLOATS 65536

typedef struct attention_job
{
	float *out;       /* [n_tokens, n_q dim] */
	const float *qkv; /* [n_tokens, (n_q + 2 n_kv) dim] */
	const qwen_heads *heads;
	const qwen_kv_layer *kv;
	const qwen_batch *batch;
	int32_t group;     /* query heads of a kv head */
	int32_t max_heads; /* kv heads of a tile */
	int32_t tile_rows; /* of the largest tile */
	bool by_span;      /* an item is a span of a tile, not a tile */
	int64_t first;     /* by span: the item that this round begins with */
	float *waiting;    /* by span: results of the round, [items][result_floats] */
} attention_job;

/*
 * Rows [first, first + n) of a sequence for each of some kv heads; row i of a kv head is its query head i % group of the
 * step's token i / group.  Several kv heads are taken together where a few rows alone would read small pieces of memory.
 */
typedef struct attention_tile
{
	const qwen_batch_seq *seq;
	int32_t g; /* the first kv head */
	int32_t heads;
	int32_t first;
	int32_t n; /* heads * n <= TILE_ROWS */
} attention_tile;

/* The result of a span, or of all spans so far, for the rows of a tile. */
typedef struct attention_result
{
	float *max; /* [tile_rows] */
	float *sum; /* [tile_rows] */
	float *out; /* [tile_rows][dim'] */
} attention_result;

/* Memory that is fetched while something else is computed: heads of blocks, one after the other, in pieces. */
typedef struct fetch_list
{
	const char *const *blocks; /* [n], where the first head begins */
	int n;
	int heads;
	int pieces; /* of a head */
	int block;  /* the next piece */
	int head;
	int piece;
} fetch_list;

/* What the work on one tile needs. */
typedef struct attention_work
{
	const attention_job *job;
	attention_tile tile;
	int64_t stride;             /* words of a row of queries */
	int n_blocks;               /* that the tile sees of the span */
	const char *k[SPAN_BLOCKS]; /* the span's blocks, from the first kv head on */
	const char *v[SPAN_BLOCKS];
	const char *next[SPAN_BLOCKS]; /* keys that will be wanted after these values */
	int n_next;
	int next_heads;
	fetch_list fetch;
	float q_scale[TILE_ROWS];                               /* of int8's queries */
	float p_scale[TILE_ROWS];                               /* of int8's weights */
	_Alignas(64) uint32_t q[TILE_ROWS * QWEN_MAX_HEAD_DIM]; /* [rows][stride] factors */
	_Alignas(64) float scores[TILE_ROWS][SCORE_STRIDE];     /* then weights */
	_Alignas(64) uint32_t p[TILE_ROWS][SCORE_STRIDE];       /* weights as factors, where those are not floats */
} attention_work;

/* ---- numbers ---- */

/*
 * 2^x for x <= 0, to about 1e-7.  x = n + r with |r| <= 1/2, n rounded by adding 1.5 * 2^23; 2^r by the polynomial of
 * degree 5 with the least relative error among those that are 1 at 0; 2^n by adding n to the exponent.
 */
INLINE vf
vf_exp2(vf x)
{
	static const float least[] = {9.6715126e-3f, 5.5507337e-2f, 2.4022242e-1f, 6.9314698e-1f, 1};
	vf shifted, r, p;

	x = vf_max(x, vf_set(-126));
	shifted = x + 0x1.8p23f;
	r = x - (shifted - 0x1.8p23f);
	p = vf_set(1.3264727e-3f);
	for (int i = 0; i < 5; i++)
		p = vf_fma(p, r, vf_set(least[i]));
	return (vf) ((vi) p + ((vi) shifted << 23));
}

/* The same for one number. */
INLINE float
scalar_exp2(float x)
{
	return vf_exp2(vf_set(x))[0];
}

/* out[n] = x[n] as int16, n a multiple of VL, by the scale that is returned. */
INLINE float
narrow_to_int16(uint32_t *out, const float *x, int64_t n)
{
	typedef int16_t narrow __attribute__((vector_size(VL * 2)));
	vf largest = {0};
	float max, inverse;

	for (int64_t i = 0; i < n; i += VL)
		largest = vf_max(vf_abs(vf_load(x + i)), largest);
	max = vf_reduce_max(largest);
	inverse = max > 0 ? 32767.0f / max : 0;
	for (int64_t i = 0; i < n; i += VL)
	{
		vi rounded = vf_round(vf_min(vf_load(x + i) * inverse, vf_set(32767)));
		narrow shorts = __builtin_convertvector(rounded, narrow);

		memcpy((int16_t *) out + i, &shorts, sizeof(shorts));
	}
	return max / 32767.0f;
}

/* out[n] = x[n] as bfloat16, n a multiple of STRIP. */
INLINE void
narrow_to_bf16(uint32_t *out, const float *x, int64_t n)
{
#if BF16_PAIRS
	for (int64_t i = 0; i < n; i += VL)
	{
		__m256bh pairs = _mm512_cvtneps_pbh(vf_load(x + i));

		memcpy((uint16_t *) out + i, &pairs, sizeof(pairs));
	}
#endif
}

/* ---- scores ---- */

/* Where a row of a tile stands in the step and in its sequence. */
typedef struct row_place
{
	int64_t token;
	int64_t head; /* query head */
	int32_t position;
} row_place;

INLINE row_place
find_row(const attention_job *job, const attention_tile *tile, int32_t row)
{
	int32_t i = tile->first + row % tile->n, token = i / job->group;

	return (row_place){
		.token = tile->seq->first_token + token,
		.head = (int64_t) (tile->g + row / tile->n) * job->group + i % job->group,
		.position = first_position(tile->seq) + token,
	};
}

INLINE int32_t
row_position(const attention_work *w, int32_t row)
{
	return find_row(w->job, &w->tile, row).position;
}

/* Bytes from the tile's first kv head to that of a row. */
INLINE size_t
row_offset(const attention_work *w, int32_t row, qwen_dtype dtype)
{
	return (size_t) (row / w->tile.n) * kv_head_bytes(dtype, w->job->heads->dim);
}

/* The next piece to fetch, or something that is there already. */
INLINE const char *
next_piece(fetch_list *f, const char *already, qwen_dtype dtype, int32_t dim)
{
	const char *head;
	size_t at;

	if (f->block >= f->n)
		return already;
	head = f->blocks[f->block] + (size_t) f->head * kv_head_bytes(dtype, dim);
	at = kv_elements_bytes(dtype, dim) / (size_t) f->pieces * (size_t) f->piece;
	if (dtype == QWEN_INT8 && f->piece == 0)
		__builtin_prefetch(head + kv_elements_bytes(dtype, dim), 0, 2);
	if (++f->piece == f->pieces)
	{
		f->piece = 0;
		if (++f->head == f->heads)
		{
			f->head = 0;
			f->block++;
		}
	}
	return head + at;
}

/* The queries of the tile as factors. */
INLINE void
narrow_queries(attention_work *w, qwen_dtype dtype)
{
	const qwen_heads *heads = w->job->heads;
	int32_t dim = heads->dim;
	int64_t padded = round_up(dim, STRIP);
	float factor = 1.44269504f / sqrtf((float) dim);
	_Alignas(64) float x[QWEN_MAX_HEAD_DIM];

	w->stride = padded * step_words(dtype) / kv_depth(dtype);
	for (int32_t i = 0; i < w->tile.heads * w->tile.n; i++)
	{
		row_place at = find_row(w->job, &w->tile, i);
		const float *q = w->job->qkv + at.token * qkv_width(heads) + at.head * dim;
		uint32_t *out = w->q + i * w->stride;

		for (int32_t d = 0; d < padded; d += VL)
			vf_store(x + d, row_load(q, d, dim) * factor);
		if (dtype == QWEN_INT8)
			w->q_scale[i] = narrow_to_int16(out, x, padded);
		else if (dtype == QWEN_BF16 && BF16_PAIRS)
			narrow_to_bf16(out, x, padded);
		else
			memcpy(out, x, (size_t) padded * sizeof(float));
	}
}

/* Scores of rows [row, row + rows) of the tile against the first n blocks of the span. */
INLINE void
score_rows(attention_work *w, int32_t row, int n, qwen_dtype dtype, int rows)
{
	int32_t dim = w->job->heads->dim;
	int steps = (dim + kv_depth(dtype) - 1) / kv_depth(dtype);

	for (int b = 0; b < n; b += STRIPS)
	{
		const char *strips[STRIPS], *ahead[STRIPS];
		sums sum;

		for (int m = 0; m < STRIPS; m++)
		{
			strips[m] = w->k[b + m < n ? b + m : b] + row_offset(w, row, dtype);
			ahead[m] = next_piece(&w->fetch, strips[m], dtype, dim);
		}
		clear_sums(&sum, rows);
		multiply_strips(&sum, strips, ahead, w->q + row * w->stride, w->stride, steps, dtype, rows);
#pragma GCC unroll 2
		for (int m = 0; m < STRIPS; m++)
#pragma GCC unroll 8
			for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
				for (int h = 0; h < LANES; h++)
				{
					vf s = sum.v[r][m][h];

					if (dtype == QWEN_INT8)
						s = __builtin_convertvector((vi) s, vf) *
							(vf_load((const float *) (strips[m] + kv_elements_bytes(dtype, dim)) + h * VL) *
							 w->q_scale[row + r]);
					vf_store(&w->scores[row + r][(b + m) * STRIP + h * VL], s);
				}
	}
}

/* ---- weights ---- */

/*
 * Scores of n cells become weights, 0 for those from n_keys on; n is a multiple of 16 and n_keys at least 1.  The sum
 * does not depend on n.
 */
INLINE void
weigh_row(float *s, int n_keys, int n, float *max, float *sum)
{
	vf largest = vf_set(-INFINITY), total = {0};

	for (int i = n_keys; i < n; i++)
		s[i] = -INFINITY;
	for (int i = 0; i < n; i += VL)
		largest = vf_max(vf_load(s + i), largest);
	*max = vf_reduce_max(largest);
	for (int i = 0; i < n; i += VL)
		vf_store(s + i, vf_exp2(vf_load(s + i) - *max));
	for (int i = n_keys; i < n; i++)
		s[i] = 0;
	for (int i = 0; i < n; i += VL)
		total += vf_load(s + i);
	*sum = vf_reduce_add(total);
}

/* Weights of n cells as factors; int8's take the scales of the values with them. */
static void
narrow_weights(attention_work *w, int32_t row, int n_keys, int n, qwen_dtype dtype)
{
	size_t scales = row_offset(w, row, dtype) + kv_elements_bytes(dtype, w->job->heads->dim);
	float *s = w->scores[row];

	if (dtype == QWEN_BF16 && BF16_PAIRS)
		narrow_to_bf16(w->p[row], s, n);
	if (dtype != QWEN_INT8)
		return;
	for (int i = 0; i < n; i += VL)
		vf_store(s + i, vf_load(s + i) * vf_load((const float *) (w->v[i / STRIP] + scales) + i % STRIP));
	for (int i = n_keys; i < n; i++) /* behind the last key there may be anything */
		s[i] = 0;
	w->p_scale[row] = narrow_to_int16(w->p[row], s, n);
}

/* Scores of rows [row, row + rows) of the tile become weights; n cells of the span are there. */
static void
weigh_rows(attention_work *w, const attention_result *result, int32_t start, int32_t row, int rows, int n)
{
	for (int r = 0; r < rows; r++)
	{
		int32_t n_keys = row_position(w, row + r) - start + 1;

		n_keys = n_keys < SPAN ? n_keys : SPAN;
		if (n_keys <= 0)
			continue;
		weigh_row(w->scores[row + r], n_keys, n, &result->max[row + r], &result->sum[row + r]);
		narrow_weights(w, row + r, n_keys, n, w->job->kv->dtype);
	}
}

/* ---- values ---- */

/* out[rows][dim'] = weights times the values of the first n blocks of the span. */
INLINE void
value_rows(attention_work *w, float *out, int32_t row, int n, qwen_dtype dtype, int rows)
{
	const uint32_t *p =
		dtype == QWEN_INT8 || (dtype == QWEN_BF16 && BF16_PAIRS) ? w->p[row] : (const uint32_t *) w->scores[row];
	const int steps = QWEN_KV_BLOCK / kv_depth(dtype);
	const int strip_size = steps * (int) kv_step_bytes(dtype);
	int64_t padded = round_up(w->job->heads->dim, STRIP);
	int n_strips = (int) padded / STRIP;

	for (int c = 0; c < n_strips; c += STRIPS)
	{
		sums sum;

		clear_sums(&sum, rows);
		for (int b = 0; b < n; b++)
		{
			const char *strips[STRIPS], *ahead[STRIPS];

			for (int m = 0; m < STRIPS; m++)
			{
				strips[m] = w->v[b] + row_offset(w, row, dtype) + (c + m < n_strips ? c + m : c) * strip_size;
				ahead[m] = next_piece(&w->fetch, strips[m], dtype, w->job->heads->dim);
			}
			multiply_strips(&sum, strips, ahead, p + b * steps * step_words(dtype), SCORE_STRIDE, steps, dtype, rows);
		}
#pragma GCC unroll 8
		for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
			for (int m = 0; m < STRIPS; m++)
#pragma GCC unroll 4
				for (int h = 0; h < LANES; h++)
				{
					vf o = sum.v[r][m][h];

					if (dtype == QWEN_INT8)
						o = __builtin_convertvector((vi) o, vf) * w->p_scale[row + r];
					if (c + m < n_strips)
						vf_store(out + r * padded + (c + m) * STRIP + h * VL, o);
				}
	}
}

/* ---- a tile ---- */

/* Weights of some rows of a kv head, or the sums of their values. */
INLINE void
span_rows(attention_work *w, const attention_result *result, int32_t start, int32_t row, bool values, qwen_dtype dtype,
		  int rows)
{
	int64_t padded = round_up(w->job->heads->dim, STRIP);
	int32_t seen = row_position(w, row + rows - 1) - start + 1; /* cells that the last row sees */
	int n = (int) round_up(seen < SPAN ? seen : SPAN, QWEN_KV_BLOCK);

	if (values)
		value_rows(w, result->out + row * padded, row, n / QWEN_KV_BLOCK, dtype, rows);
	else
	{
		score_rows(w, row, n / QWEN_KV_BLOCK, dtype, rows);
		weigh_rows(w, result, start, row, rows, n);
	}
}

INLINE void
span_any_rows(attention_work *w, const attention_result *result, int32_t start, int32_t row, bool values,
			  qwen_dtype dtype, int rows)
{
	switch (rows)
	{
		case 1:
			span_rows(w, result, start, row, values, dtype, 1);
			break;
		case 2:
			span_rows(w, result, start, row, values, dtype, 2);
			break;
#if MAX_ROWS > 2
		case 3:
			span_rows(w, result, start, row, values, dtype, 3);
			break;
		case 4:
			span_rows(w, result, start, row, values, dtype, 4);
			break;
#endif
#if MAX_ROWS > 4
		case 5:
			span_rows(w, result, start, row, values, dtype, 5);
			break;
		case 6:
			span_rows(w, result, start, row, values, dtype, 6);
			break;
		case 7:
			span_rows(w, result, start, row, values, dtype, 7);
			break;
		case 8:
			span_rows(w, result, start, row, values, dtype, 8);
			break;
#endif
	}
}

#if defined(CPU_TILES)
#include "cpu_attention_amx.h"
#endif

/* All rows of the tile that see some of the span: first the weights, while values are fetched, then the sums. */
INLINE void
attend_span(attention_work *w, const attention_result *result, int32_t start, qwen_dtype dtype)
{
	int32_t n = w->tile.n;

#if defined(CPU_TILES)
	if (dtype == QWEN_BF16 && attends_on_tiles(w->job->heads))
	{
		attend_span_on_tiles(w, result, start);
		return;
	}
#endif
	w->fetch = (fetch_list){.blocks = w->v, .n = w->n_blocks, .heads = w->tile.heads, .pieces = 1};
	for (int pass = 0; pass < 2; pass++)
	{
		for (int32_t head = 0; head < w->tile.heads; head++)
			for (int32_t row = 0; row < n; row += MAX_ROWS)
			{
				int32_t rows = n - row < MAX_ROWS ? n - row : MAX_ROWS;

				if (row_position(w, row + rows - 1) >= start)
					span_any_rows(w, result, start, head * n + row, pass == 1, dtype, rows);
			}
		w->fetch = (fetch_list){.blocks = w->next, .n = w->n_next, .heads = w->next_heads};
		w->fetch.pieces = (int) round_up(w->job->heads->dim, STRIP) / STRIP;
	}
}

/* Finds the blocks of a span that a tile sees, from the tile's first kv head on; returns their number. */
static int
find_blocks(const char **blocks, const attention_job *job, void *cache, const attention_tile *tile, int32_t span)
{
	int32_t last = find_row(job, tile, tile->n - 1).position;
	int n = 0;

	for (int32_t p = span * SPAN; p <= last && n < SPAN_BLOCKS; p += QWEN_KV_BLOCK)
		blocks[n++] = kv_head(cache, job->kv->dtype, job->heads, tile->seq->blocks[p / QWEN_KV_BLOCK], tile->g);
	return n;
}

/* One span of the tile.  The keys of next_span of the tile `next` are fetched meanwhile, unless that is NULL. */
static void
attend_tile_span(attention_work *w, const attention_result *result, int32_t span, const attention_tile *next,
				 int32_t next_span)
{
	const qwen_kv_layer *kv = w->job->kv;

	w->n_blocks = find_blocks(w->k, w->job, kv->k, &w->tile, span);
	find_blocks(w->v, w->job, kv->v, &w->tile, span);
	w->n_next = next ? find_blocks(w->next, w->job, kv->k, next, next_span) : 0;
	w->next_heads = next ? next->heads : 0;
	if (kv->dtype == QWEN_F32)
		attend_span(w, result, span * SPAN, QWEN_F32);
	else if (kv->dtype == QWEN_F16)
		attend_span(w, result, span * SPAN, QWEN_F16);
	else if (kv->dtype == QWEN_BF16)
		attend_span(w, result, span * SPAN, QWEN_BF16);
	else
		attend_span(w, result, span * SPAN, QWEN_INT8);
}

static void
begin_tile(attention_work *w, const attention_job *job, const attention_tile *tile)
{
	w->job = job;
	w->tile = *tile;
	if (job->kv->dtype == QWEN_INT8)
		narrow_queries(w, QWEN_INT8);
	else if (job->kv->dtype == QWEN_BF16)
		narrow_queries(w, QWEN_BF16);
	else
		narrow_queries(w, QWEN_F32);
}

/* ---- spans together ---- */

INLINE int64_t
result_floats(const attention_job *job)
{
	return job->tile_rows * (round_up(job->heads->dim, STRIP) + 2);
}

INLINE attention_result
result_at(const attention_job *job, float *floats)
{
	return (attention_result){floats, floats + job->tile_rows, floats + 2 * job->tile_rows};
}

/* total += the next span, or total = the first one. */
static void
add_span(const attention_job *job, const attention_tile *tile, const attention_result *total,
		 const attention_result *part, int32_t span)
{
	int64_t padded = round_up(job->heads->dim, STRIP);

	for (int32_t i = 0; i < tile->heads * tile->n; i++)
	{
		float max, keep, take;

		if (find_row(job, tile, i).position < span * SPAN)
			continue;
		max = span > 0 && total->max[i] > part->max[i] ? total->max[i] : part->max[i];
		keep = span > 0 ? scalar_exp2(total->max[i] - max) : 0;
		take = scalar_exp2(part->max[i] - max);
		total->max[i] = max;
		total->sum[i] = (span > 0 ? total->sum[i] * keep : 0) + part->sum[i] * take;
		for (int64_t d = 0; d < padded; d += VL)
		{
			vf o = vf_load(part->out + i * padded + d) * take;

			if (span > 0)
				o += vf_load(total->out + i * padded + d) * keep;
			vf_store(total->out + i * padded + d, o);
		}
	}
}

/* The rows of the tile in the output. */
static void
write_tile(const attention_job *job, const attention_tile *tile, const attention_result *total)
{
	int32_t dim = job->heads->dim;
	int64_t padded = round_up(dim, STRIP);

	for (int32_t i = 0; i < tile->heads * tile->n; i++)
	{
		row_place at = find_row(job, tile, i);
		float *out = job->out + (at.token * job->heads->n_q + at.head) * dim;
		float inverse = 1.0f / total->sum[i];

		for (int32_t d = 0; d < dim; d += VL)
		{
			vf o = vf_load(total->out + i * padded + d) * inverse;

			if (d + VL <= dim)
				vf_store(out + d, o);
			else
				vf_store_tail(out + d, o, dim - d);
		}
	}
}

/* ---- items ---- */

/* Spans that the last row of a tile sees. */
INLINE int32_t
tile_spans(const attention_job *job, const attention_tile *tile)
{
	return find_row(job, tile, tile->n - 1).position / SPAN + 1;
}

/* Sets the rows of a tile that begins at tile->first, and its kv heads to the first ones; false behind the last row. */
INLINE bool
size_tile(const attention_job *job, attention_tile *tile)
{
	int32_t left = tile->seq->n_tokens * job->group - tile->first;

	tile->n = left < TILE_ROWS ? left : TILE_ROWS;
	if (left <= 0)
		return false;
	tile->heads = TILE_ROWS / tile->n < job->max_heads ? TILE_ROWS / tile->n : job->max_heads;
	return true;
}

/* Tiles that take the same rows of all kv heads. */
INLINE int32_t
tiles_of_rows(const attention_job *job, const attention_tile *tile)
{
	return (job->heads->n_kv + tile->heads - 1) / tile->heads;
}

/* The tile that holds an item, and which span it is. Items are in order of sequences, rows, kv heads and spans. */
static int32_t
find_item(const attention_job *job, int64_t item, attention_tile *tile)
{
	*tile = (attention_tile){.seq = job->batch->seqs};
	for (;; tile->seq++)
		for (tile->first = 0; size_tile(job, tile); tile->first += TILE_ROWS)
		{
			int32_t spans = job->by_span ? tile_spans(job, tile) : 1;
			int64_t items = (int64_t) spans * tiles_of_rows(job, tile);

			if (item >= items)
			{
				item -= items;
				continue;
			}
			tile->g = (int32_t) (item / spans) * tile->heads;
			if (job->heads->n_kv - tile->g < tile->heads)
				tile->heads = job->heads->n_kv - tile->g;
			return (int32_t) (item % spans);
		}
}

/* Items are tiles. */
static void
tile_piece(void *arg, int64_t begin, int64_t end)
{
	const attention_job *job = arg;
	float total_floats[TILE_ROWS * (QWEN_MAX_HEAD_DIM + 2)], part_floats[TILE_ROWS * (QWEN_MAX_HEAD_DIM + 2)];
	attention_result total = result_at(job, total_floats), part = result_at(job, part_floats);
	attention_tile tile, next;
	attention_work w;

	find_item(job, begin, &tile);
	for (int64_t item = begin; item < end; item++, tile = next)
	{
		int32_t spans = tile_spans(job, &tile);

		if (item + 1 < end)
			find_item(job, item + 1, &next);
		begin_tile(&w, job, &tile);
		for (int32_t span = 0; span < spans; span++)
		{
			if (span + 1 < spans)
				attend_tile_span(&w, &part, span, &tile, span + 1);
			else
				attend_tile_span(&w, &part, span, item + 1 < end ? &next : NULL, 0);
			add_span(job, &tile, &total, &part, span);
		}
		write_tile(job, &tile, &total);
	}
}

/* Items are spans of tiles, counted from the beginning of the round. */
static void
span_piece(void *arg, int64_t begin, int64_t end)
{
	const attention_job *job = arg;
	attention_work w;

	for (int64_t i = begin; i < end; i++)
	{
		attention_result part = result_at(job, job->waiting + i * result_floats(job));
		attention_tile tile, next;
		int32_t span = find_item(job, job->first + i, &tile), next_span = 0;

		if (i + 1 < end)
			next_span = find_item(job, job->first + i + 1, &next);
		begin_tile(&w, job, &tile);
		attend_tile_span(&w, &part, span, i + 1 < end ? &next : NULL, next_span);
	}
}

/* Items that keep all threads busy to the end. */
INLINE int64_t
plenty(const qwen_device *dev)
{
	return (int64_t) dev->n_threads * ITEMS_PER_THREAD;
}

/* Round after round of as many spans as can wait; between them the results are added in order, tile after tile. */
static void
attend_by_span(qwen_device *dev, attention_job *job, int64_t n_items)
{
	_Alignas(64) float waiting[WAITING_FLOATS];
	float total_floats[TILE_ROWS * (QWEN_MAX_HEAD_DIM + 2)];
	attention_result total = result_at(job, total_floats);
	int64_t round = WAITING_FLOATS / result_floats(job);

	job->waiting = waiting;
	for (job->first = 0; job->first < n_items; job->first += round)
	{
		int64_t n = n_items - job->first < round ? n_items - job->first : round;

		qwen_pool_run(dev->priv, n, n / plenty(dev) + 1, span_piece, job);
		for (int64_t i = 0; i < n; i++)
		{
			attention_result part = result_at(job, waiting + i * result_floats(job));
			attention_tile tile;
			int32_t span = find_item(job, job->first + i, &tile);

			add_span(job, &tile, &total, &part, span);
			if (span == tile_spans(job, &tile) - 1)
				write_tile(job, &tile, &total);
		}
	}
}

/* Counts tiles and their spans, and finds the largest tile. */
static void
count_items(attention_job *job, int64_t *tiles, int64_t *spans)
{
	*tiles = *spans = job->tile_rows = 0;
	for (int32_t s = 0; s < job->batch->n_seqs; s++)
	{
		attention_tile tile = {.seq = &job->batch->seqs[s]};

		for (; size_tile(job, &tile); tile.first += TILE_ROWS)
		{
			int32_t rows = tile.heads * tile.n;

			job->tile_rows = rows > job->tile_rows ? rows : job->tile_rows;
			*tiles += tiles_of_rows(job, &tile);
			*spans += (int64_t) tile_spans(job, &tile) * tiles_of_rows(job, &tile);
		}
	}
}

static void
cpu_attention(qwen_device *dev, void *d_out, const void *d_qkv, const qwen_heads *heads, const qwen_kv_layer *kv,
			  const qwen_batch *batch)
{
	attention_job job = {.out = d_out, .qkv = d_qkv, .heads = heads, .kv = kv, .batch = batch, .max_heads = 1};
	int64_t tiles, spans;

	job.group = heads->n_q / heads->n_kv;
	count_items(&job, &tiles, &spans);
	while (job.max_heads < MAX_HEADS && job.max_heads < heads->n_kv && spans >= 2 * plenty(dev) * job.max_heads)
		job.max_heads *= 2;
	count_items(&job, &tiles, &spans);
	job.by_span = dev->n_threads > 1 && tiles < plenty(dev) && spans > tiles;
	if (job.by_span)
		attend_by_span(dev, &job, spans);
	else
		qwen_pool_run(dev->priv, tiles, tiles < plenty(dev) * MAX_HEADS ? tiles / plenty(dev) + 1 : MAX_HEADS,
					  tile_piece, &job);
}
