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
 * On Sapphire Rapids 32 rows by a span of 256 tokens of 128 elements are 256
 * products of 16 cycles (or less for the half ones), and about 6000 cycles of
 * exp2; vdpbf16ps would take more than 100000 for the products.
 */

/* Heads of which all elements fit whole tiles. */
INLINE bool
attends_on_tiles(const qwen_heads *heads)
{
	return heads->dim % (2 * AMX_ROWS) == 0;
}

/* Scores of all rows of the tile against the first n blocks of the span. The values are fetched meanwhile. */
INLINE void
score_tiles(attention_work *w, int n, bool two_tiles)
{
	int32_t dim = w->job->heads->dim;
	int64_t stride = w->stride * 4;

	configure_tiles(w->tile.n, AMX_ROWS);
	for (int b = 0; b < n; b += 2)
	{
		bool two_blocks = b + 1 < n;
		const char *q = (const char *) w->q, *k = w->k[b], *other = w->k[two_blocks ? b + 1 : b];

		zero_tiles(two_tiles);
		for (int d = 0; d < dim; d += 2 * AMX_ROWS, q += AMX_ROW_BYTES, k += AMX_BYTES, other += AMX_BYTES)
		{
			int at = d * STRIP * 2;

			if (two_blocks)
				multiply_tiles(q, stride, k, other, two_tiles, true);
			else
				multiply_tiles(q, stride, k, other, two_tiles, false);
			fetch_lines(w->v[b] + at, AMX_ROWS);
			fetch_lines(w->v[two_blocks ? b + 1 : b] + at, AMX_ROWS);
		}
		store_tiles((char *) &w->scores[0][b * STRIP], sizeof(w->scores[0]), two_tiles, two_blocks);
	}
}

/* out[n rows][dim] = weights times the values of the first n blocks of the span. The next keys are fetched meanwhile. */
INLINE void
value_tiles(attention_work *w, float *out, int n, bool two_tiles)
{
	const int depth = QWEN_KV_BLOCK / 2, strip = depth * AMX_ROW_BYTES;
	int32_t dim = w->job->heads->dim;

	configure_tiles(w->tile.n, depth);
	for (int d = 0; d < dim; d += 2 * STRIP)
	{
		int at = d / STRIP * strip;

		zero_tiles(two_tiles);
		for (int b = 0; b < n; b++)
		{
			const char *v = w->v[b] + at;

			multiply_tiles((const char *) &w->p[0][b * depth], sizeof(w->p[0]), v, v + strip, two_tiles, true);
			fetch_lines(w->next[b] + at, 2 * depth);
		}
		store_tiles((char *) (out + d), dim * 4, two_tiles, true);
	}
}

/* One span for all rows of the tile. Rows that see none of it get a result that nobody reads. */
static void
attend_span_on_tiles(attention_work *w, const attention_result *result, int32_t start)
{
	int32_t rows = w->tile.n, seen = row_position(w, rows - 1) - start + 1; /* cells that the last row sees */
	int n = (int) round_up(seen < SPAN ? seen : SPAN, QWEN_KV_BLOCK);

	if (rows > AMX_ROWS)
		score_tiles(w, n / QWEN_KV_BLOCK, true);
	else
		score_tiles(w, n / QWEN_KV_BLOCK, false);
	weigh_rows(w, result, start, 0, rows, n);
	if (rows > AMX_ROWS)
		value_tiles(w, result->out, n / QWEN_KV_BLOCK, true);
	else
		value_tiles(w, result->out, n / QWEN_KV_BLOCK, false);
	tile_release();
}
