/*
 * cpu_attention_amx.h
 *	  Attention over a cache of bfloat16 on tiles. Included by cpu_attention.h
 *	  in the set that has them.
 *
 * The cache's blocks stand as packed weights do, so all rows of a tile of
 * attention, up to 32, meet them as they meet weights: two tiles of rows by two
 * blocks of keys, 32 elements at a time, or by two strips of values, 16 tokens
 * at a time, which is half of a tile.  Between the two products the weights
 * are the work of vectors.
 *
 * On Sapphire Rapids 32 rows by a span of 256 tokens of 128 elements are 128
 * products of 16 cycles and 256 of half the depth, some 6000 at the most, and
 * about as much of exp2; vdpbf16ps would take more than 100000 for the
 * products.  Counted, not measured: this has not yet run on such a processor.
 */

/* Heads of which all elements fit whole tiles. */
INLINE bool
attends_on_tiles(const qwen_heads *heads)
{
	return heads->dim % (2 * AMX_ROWS) == 0;
}

/* Scores of the tile's rows from `row` on, those of one kv head, against the first n blocks of the span. */
INLINE void
score_tiles(attention_work *w, int32_t row, int n, bool two_tiles)
{
	int32_t dim = w->job->heads->dim;
	int64_t stride = w->stride * 4;
	size_t offset = row_offset(w, row, QWEN_BF16);

	configure_tiles(w->tile.n, AMX_ROWS);
	for (int b = 0; b < n; b += 2)
	{
		int second = b + 1 < n ? b + 1 : b;
		const char *q = (const char *) (w->q + row * w->stride);
		const char *k = w->k[b] + offset, *other = w->k[second] + offset;
		const char *v = w->v[b] + offset, *other_v = w->v[second] + offset; /* wanted next */

		zero_tiles(two_tiles);
		for (int at = 0; at < dim * STRIP * 2; at += AMX_BYTES, q += AMX_ROW_BYTES)
		{
			multiply_tiles(q, stride, k + at, other + at, two_tiles, true);
			fetch_lines(v + at, AMX_ROWS);
			fetch_lines(other_v + at, AMX_ROWS);
		}
		store_tiles((char *) &w->scores[row][b * STRIP], sizeof(w->scores[0]), two_tiles, second > b);
	}
}

/* out[n rows][dim] = weights of the rows times the values of the first n blocks of the span. */
INLINE void
value_tiles(attention_work *w, float *out, int32_t row, int n, bool two_tiles)
{
	const int depth = QWEN_KV_BLOCK / 2, strip = depth * AMX_ROW_BYTES;
	int32_t dim = w->job->heads->dim;
	size_t offset = row_offset(w, row, QWEN_BF16);

	configure_tiles(w->tile.n, depth);
	for (int d = 0; d < dim; d += 2 * STRIP, offset += 2 * (size_t) strip)
	{
		zero_tiles(two_tiles);
		for (int b = 0; b < n; b++)
		{
			const char *v = w->v[b] + offset;

			multiply_tiles((const char *) &w->p[row][b * depth], sizeof(w->p[0]), v, v + strip, two_tiles, true);
		}
		store_tiles((char *) (out + d), dim * 4, two_tiles, true);
	}
}

/* One span for the rows of one kv head, which begin at `row`; rows that see none of it get what nobody reads. */
static void
attend_head_on_tiles(attention_work *w, const attention_result *result, int32_t start, int32_t row)
{
	int32_t rows = w->tile.n, seen = row_position(w, row + rows - 1) - start + 1; /* cells that the last row sees */
	int cells = (int) round_up(seen < SPAN ? seen : SPAN, QWEN_KV_BLOCK), n = cells / QWEN_KV_BLOCK;
	float *out = result->out + row * (int64_t) w->job->heads->dim;

	if (rows > AMX_ROWS)
		score_tiles(w, row, n, true);
	else
		score_tiles(w, row, n, false);
	weigh_rows(w, result, start, row, rows, cells);
	if (rows > AMX_ROWS)
		value_tiles(w, out, row, n, true);
	else
		value_tiles(w, out, row, n, false);
}

/* One span for all rows of the tile. */
static void
attend_span_on_tiles(attention_work *w, const attention_result *result, int32_t start)
{
	for (int32_t row = 0; row < w->tile.heads * w->tile.n; row += w->tile.n)
		if (row_position(w, row + w->tile.n - 1) >= start)
			attend_head_on_tiles(w, result, start, row);
	tile_release();
}
