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
#define TILES_PER_THREAD 4
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
	int32_t tile_rows; /* of the largest tile */
	bool by_span;      /* an item is a span of a tile, not a tile */
	int64_t first;     /* by span: the item that this round begins with */
	float *waiting;    /* by span: results of the round, [items][result_floats] */
} attention_job;

/* Rows [first, first + n) of a sequence and kv head; row i is head i % group of the step's token i / group. */
typedef struct attention_tile
{
	const qwen_batch_seq *seq;
	int32_t g;
	int32_t first;
	int32_t n;
} attention_tile;

/* The result of a span, or of all spans so far, for the rows of a tile. */
typedef struct attention_result
{
	float *max; /* [tile_rows] */
	float *sum; /* [tile_rows] */
	float *out; /* [tile_rows][dim'] */
} attention_result;

/* What the work on one tile needs. */
typedef struct attention_work
{
	const attention_job *job;
	attention_tile tile;
	int64_t stride;             /* words of a row of queries */
	const char *k[SPAN_BLOCKS]; /* the span's blocks, kv head g */
	const char *v[SPAN_BLOCKS];
	const char *next[SPAN_BLOCKS];                          /* keys that will be wanted after these values */
	float q_scale[TILE_ROWS];                               /* of int8's queries */
	float p_scale[MAX_ROWS];                                /* of int8's weights */
	_Alignas(64) uint32_t q[TILE_ROWS * QWEN_MAX_HEAD_DIM]; /* [n][stride] factors */
	_Alignas(64) float scores[MAX_ROWS][SCORE_STRIDE];      /* then weights */
	_Alignas(64) uint32_t p[MAX_ROWS][SCORE_STRIDE];        /* weights as factors, where those are not floats */
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

INLINE int32_t
row_position(const attention_work *w, int32_t row)
{
	return first_position(w->tile.seq) + (w->tile.first + row) / w->job->group;
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
	for (int32_t i = 0; i < w->tile.n; i++)
	{
		int64_t token = w->tile.seq->first_token + (w->tile.first + i) / w->job->group;
		int64_t head = (int64_t) w->tile.g * w->job->group + (w->tile.first + i) % w->job->group;
		const float *q = w->job->qkv + token * qkv_width(heads) + head * dim;
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
			strips[m] = w->k[b + m < n ? b + m : b];
			ahead[m] = w->v[b + m < n ? b + m : b];
			if (dtype == QWEN_INT8)
				__builtin_prefetch(ahead[m] + kv_elements_bytes(dtype, dim), 0, 2);
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
					vf_store(&w->scores[r][(b + m) * STRIP + h * VL], s);
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
narrow_weights(attention_work *w, int r, int n_keys, int n, qwen_dtype dtype)
{
	float *s = w->scores[r];

	if (dtype == QWEN_BF16 && BF16_PAIRS)
		narrow_to_bf16(w->p[r], s, n);
	if (dtype != QWEN_INT8)
		return;
	for (int i = 0; i < n; i += VL)
	{
		const char *scales = w->v[i / STRIP] + kv_elements_bytes(dtype, w->job->heads->dim);

		vf_store(s + i, vf_load(s + i) * vf_load((const float *) scales + i % STRIP));
	}
	for (int i = n_keys; i < n; i++) /* behind the last key there may be anything */
		s[i] = 0;
	w->p_scale[r] = narrow_to_int16(w->p[r], s, n);
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
		weigh_row(w->scores[r], n_keys, n, &result->max[row + r], &result->sum[row + r]);
		narrow_weights(w, r, n_keys, n, w->job->kv->dtype);
	}
}

/* ---- values ---- */

/* out[rows][dim'] = weights times the values of the first n blocks of the span. */
INLINE void
value_rows(attention_work *w, float *out, int n, qwen_dtype dtype, int rows)
{
	const uint32_t *p =
		dtype == QWEN_INT8 || (dtype == QWEN_BF16 && BF16_PAIRS) ? w->p[0] : (const uint32_t *) w->scores[0];
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
				int offset = (c + m < n_strips ? c + m : c) * strip_size;

				strips[m] = w->v[b] + offset;
				ahead[m] = w->next[b] + offset;
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
						o = __builtin_convertvector((vi) o, vf) * w->p_scale[r];
					if (c + m < n_strips)
						vf_store(out + r * padded + (c + m) * STRIP + h * VL, o);
				}
	}
}

/* ---- a tile ---- */

INLINE void
span_rows(attention_work *w, const attention_result *result, int32_t start, int32_t row, qwen_dtype dtype, int rows)
{
	int64_t padded = round_up(w->job->heads->dim, STRIP);
	int32_t seen = row_position(w, row + rows - 1) - start + 1; /* cells that the last row sees */
	int n = (int) round_up(seen < SPAN ? seen : SPAN, QWEN_KV_BLOCK);

	score_rows(w, row, n / QWEN_KV_BLOCK, dtype, rows);
	weigh_rows(w, result, start, row, rows, n);
	value_rows(w, result->out + row * padded, n / QWEN_KV_BLOCK, dtype, rows);
}

/* One span for all rows of the tile that see some of it. */
INLINE void
attend_span(attention_work *w, const attention_result *result, int32_t start, qwen_dtype dtype)
{
	int32_t row = 0;

	while (row < w->tile.n)
	{
		int32_t rows = w->tile.n - row < MAX_ROWS ? w->tile.n - row : MAX_ROWS;

		if (row_position(w, row + rows - 1) >= start)
			switch (rows)
			{
				case 1:
					span_rows(w, result, start, row, dtype, 1);
					break;
				case 2:
					span_rows(w, result, start, row, dtype, 2);
					break;
#if MAX_ROWS > 2
				case 3:
					span_rows(w, result, start, row, dtype, 3);
					break;
				case 4:
					span_rows(w, result, start, row, dtype, 4);
					break;
#endif
#if MAX_ROWS > 4
				case 5:
					span_rows(w, result, start, row, dtype, 5);
					break;
				case 6:
					span_rows(w, result, start, row, dtype, 6);
					break;
				case 7:
					span_rows(w, result, start, row, dtype, 7);
					break;
				case 8:
					span_rows(w, result, start, row, dtype, 8);
					break;
#endif
			}
		row += rows;
	}
}

static void
attend_tile_span(attention_work *w, const attention_result *result, int32_t span)
{
	const qwen_kv_layer *kv = w->job->kv;
	int32_t start = span * SPAN;
	int32_t last = row_position(w, w->tile.n - 1);

	for (int b = 0; b < SPAN_BLOCKS && start + b * QWEN_KV_BLOCK <= last; b++)
	{
		int32_t block = w->tile.seq->blocks[start / QWEN_KV_BLOCK + b];

		w->k[b] = kv_head(kv->k, kv->dtype, w->job->heads, block, w->tile.g);
		w->v[b] = kv_head(kv->v, kv->dtype, w->job->heads, block, w->tile.g);
		w->next[b] = w->k[b] + (w->tile.g + 1 < w->job->heads->n_kv ? kv_head_bytes(kv->dtype, w->job->heads->dim) : 0);
		if (start + SPAN + b * QWEN_KV_BLOCK <= last)
			w->next[b] = kv_head(kv->k, kv->dtype, w->job->heads,
								 w->tile.seq->blocks[start / QWEN_KV_BLOCK + SPAN_BLOCKS + b], w->tile.g);
	}
	if (kv->dtype == QWEN_F32)
		attend_span(w, result, start, QWEN_F32);
	else if (kv->dtype == QWEN_F16)
		attend_span(w, result, start, QWEN_F16);
	else if (kv->dtype == QWEN_BF16)
		attend_span(w, result, start, QWEN_BF16);
	else
		attend_span(w, result, start, QWEN_INT8);
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
	int32_t first = first_position(tile->seq);

	for (int32_t i = 0; i < tile->n; i++)
	{
		float max, keep, take;

		if (first + (tile->first + i) / job->group < span * SPAN)
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

	for (int32_t i = 0; i < tile->n; i++)
	{
		int64_t token = tile->seq->first_token + (tile->first + i) / job->group;
		int64_t head = (int64_t) tile->g * job->group + (tile->first + i) % job->group;
		float *out = job->out + (token * job->heads->n_q + head) * dim;
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
	return (first_position(tile->seq) + (tile->first + tile->n - 1) / job->group) / SPAN + 1;
}

/* The tile that holds an item, and which span it is. Items are in order of sequences, tiles, kv heads and spans. */
static int32_t
find_item(const attention_job *job, int64_t item, attention_tile *tile)
{
	*tile = (attention_tile){.seq = job->batch->seqs};
	for (;; tile->seq++)
	{
		int32_t rows = tile->seq->n_tokens * job->group;

		for (tile->first = 0; tile->first < rows; tile->first += TILE_ROWS)
		{
			int32_t spans = 1;

			tile->n = rows - tile->first < TILE_ROWS ? rows - tile->first : TILE_ROWS;
			if (job->by_span)
				spans = tile_spans(job, tile);
			if (item < (int64_t) spans * job->heads->n_kv)
			{
				tile->g = (int32_t) item / spans;
				return (int32_t) item % spans;
			}
			item -= (int64_t) spans * job->heads->n_kv;
		}
	}
}

/* Items are tiles. */
static void
tile_piece(void *arg, int64_t begin, int64_t end)
{
	const attention_job *job = arg;
	float total_floats[TILE_ROWS * (QWEN_MAX_HEAD_DIM + 2)], part_floats[TILE_ROWS * (QWEN_MAX_HEAD_DIM + 2)];
	attention_result total = result_at(job, total_floats), part = result_at(job, part_floats);
	attention_work w;

	for (int64_t item = begin; item < end; item++)
	{
		attention_tile tile;

		find_item(job, item, &tile);
		begin_tile(&w, job, &tile);
		for (int32_t span = 0; span < tile_spans(job, &tile); span++)
		{
			attend_tile_span(&w, &part, span);
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
		attention_tile tile;
		int32_t span = find_item(job, job->first + i, &tile);

		begin_tile(&w, job, &tile);
		attend_tile_span(&w, &part, span);
	}
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

		qwen_pool_run(dev->priv, n, 1, span_piece, job);
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
	*tiles = *spans = 0;
	for (int32_t s = 0; s < job->batch->n_seqs; s++)
	{
		attention_tile tile = {.seq = &job->batch->seqs[s]};
		int32_t rows = tile.seq->n_tokens * job->group;

		for (; tile.first < rows; tile.first += TILE_ROWS)
		{
			tile.n = rows - tile.first < TILE_ROWS ? rows - tile.first : TILE_ROWS;
			job->tile_rows = tile.n > job->tile_rows ? tile.n : job->tile_rows;
			*tiles += job->heads->n_kv;
			*spans += (int64_t) tile_spans(job, &tile) * job->heads->n_kv;
		}
	}
}

static void
cpu_attention(qwen_device *dev, void *d_out, const void *d_qkv, const qwen_heads *heads, const qwen_kv_layer *kv,
			  const qwen_batch *batch)
{
	attention_job job = {.out = d_out, .qkv = d_qkv, .heads = heads, .kv = kv, .batch = batch};
	int64_t plenty = (int64_t) dev->n_threads * TILES_PER_THREAD;
	int64_t tiles, spans;

	job.group = heads->n_q / heads->n_kv;
	count_items(&job, &tiles, &spans);
	job.by_span = dev->n_threads > 1 && tiles < plenty && spans > tiles;
	if (job.by_span)
		attend_by_span(dev, &job, spans);
	else
		qwen_pool_run(dev->priv, tiles, tiles < plenty * heads->n_kv ? 1 : heads->n_kv, tile_piece, &job);
}
