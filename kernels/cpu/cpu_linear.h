/*
 * cpu_linear.h
 *	  Matrix products. Included by cpu_kernels.h.
 *
 * out[t, j] is one vector of partial sums: lane l adds the products with
 * index l, l + VL, l + 2 VL, ... in this order, then the lanes are added.
 * Nothing else decides the order, so the same bits come out for 1 row of
 * activations and for 64, on any thread.
 *
 * A tile is NR rows of weights by up to MR rows of activations: each weight
 * is loaded and widened once for all MR rows, each activation once for all NR
 * rows.  A thread takes PIECE rows of weights and passes ROW_BLOCK rows of
 * activations at a time, which stay in its cache.
 */

/* Weight rows of a tile. */
#define NR 4
/* Activation rows of a tile: NR * MR sums, NR weights and one activation fit the registers. */
#if VL == 16
#define MR 4
#else
#define MR 2
#endif
/* Weight rows that a thread takes at a time. */
#define PIECE 32
/* Bytes of activations that stay in a core's second-level cache while PIECE rows of weights pass. */
#define BLOCK_BYTES (256 * 1024)

typedef struct linear_job
{
	float *out; /* [rows, n] */
	const qwen_matrix *w;
	const float *bias; /* [n] or NULL */
	const float *x;    /* [rows, k] */
	int64_t rows;
	int64_t row_block;
} linear_job;

/* Adds the products of elements i .. i + VL (or, at the end of the rows, i .. k) to the sums of a tile. */
INLINE void
tile_step(vf sum[NR][MR], const void *w, const float *x, int64_t k, int64_t i, bool whole, int nr, int mr,
		  qwen_dtype dtype)
{
	vf wv[NR];

#pragma GCC unroll 8
	for (int a = 0; a < nr; a++)
		wv[a] = whole ? vf_load_as(w, a * k + i, dtype) : vf_load_tail(w, a * k + i, k - i, dtype);
#pragma GCC unroll 8
	for (int b = 0; b < mr; b++)
	{
		vf xv = whole ? vf_load(x + b * k + i) : vf_load_tail(x, b * k + i, k - i, QWEN_F32);

#pragma GCC unroll 8
		for (int a = 0; a < nr; a++)
			sum[a][b] = vf_fma(wv[a], xv, sum[a][b]);
	}
}

/* Weight rows j .. j + nr by activation rows t .. t + mr. All but job, j and t are constants. */
INLINE void
tile(const linear_job *job, int64_t j, int64_t t, int nr, int mr, qwen_dtype dtype)
{
	int64_t k = job->w->k;
	const char *w = (const char *) job->w->data + (size_t) (j * k) * (dtype == QWEN_F32 ? 4 : 2);
	const float *x = job->x + t * k;
	vf sum[NR][MR] = {0};
	int64_t i = 0;

	for (; i + VL <= k; i += VL)
		tile_step(sum, w, x, k, i, true, nr, mr, dtype);
	if (i < k)
		tile_step(sum, w, x, k, i, false, nr, mr, dtype);
#pragma GCC unroll 8
	for (int a = 0; a < nr; a++)
#pragma GCC unroll 8
		for (int b = 0; b < mr; b++)
			job->out[(t + b) * job->w->n + j + a] = vf_reduce_add(sum[a][b]) + (job->bias ? job->bias[j + a] : 0);
}

/* Weight rows j .. j + nr by activation rows [begin, end). */
INLINE void
tile_row(const linear_job *job, int64_t j, int64_t begin, int64_t end, int nr, qwen_dtype dtype)
{
	int64_t t = begin;

	for (; t + MR <= end; t += MR)
		tile(job, j, t, nr, MR, dtype);
	for (; t < end; t++)
		tile(job, j, t, nr, 1, dtype);
}

INLINE void
linear_rows(const linear_job *job, int64_t begin, int64_t end, qwen_dtype dtype)
{
	for (int64_t t = 0; t < job->rows; t += job->row_block)
	{
		int64_t stop = t + job->row_block < job->rows ? t + job->row_block : job->rows;
		int64_t j = begin;

		for (; j + NR <= end; j += NR)
			tile_row(job, j, t, stop, NR, dtype);
		for (; j < end; j++)
			tile_row(job, j, t, stop, 1, dtype);
	}
}

static void
linear_piece(void *arg, int64_t begin, int64_t end)
{
	const linear_job *job = arg;

	switch (job->w->dtype)
	{
		case QWEN_F32:
			linear_rows(job, begin, end, QWEN_F32);
			break;
		case QWEN_F16:
			linear_rows(job, begin, end, QWEN_F16);
			break;
		case QWEN_BF16:
			linear_rows(job, begin, end, QWEN_BF16);
			break;
		default:
			break;
	}
}

static void
cpu_linear(qwen_device *dev, void *d_out, const qwen_matrix *w, const float *d_bias, const void *d_x, int32_t rows)
{
	int64_t fit = BLOCK_BYTES / ((int64_t) sizeof(float) * w->k);
	linear_job job = {d_out, w, d_bias, d_x, rows, fit < MR ? MR : fit - fit % MR};

	qwen_pool_run(dev->priv, w->n, PIECE, linear_piece, &job);
}

static bool
cpu_logits(qwen_device *dev, float *out, const qwen_matrix *head, const void *d_x, int32_t rows)
{
	cpu_linear(dev, out, head, NULL, d_x, rows);
	return true;
}
