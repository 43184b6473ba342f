/*
 * cpu_pack.h
 *	  Storing matrices in strips, and reading rows out of them. Included by
 *	  cpu_kernels.h; the layout is cpu_layout.h's.
 *
 * Rows come in as the checkpoint has them.  PACK = 64 columns of the 16 rows
 * of a strip are first written one below the other in the stored type, then
 * transposed in words of 32 bits: what stands together in a step of the strip
 * is such a word in every type but float16, whose words are two steps.
 *
 * Threads may store different rows of one strip at the same time: a row's
 * words and scales are nobody else's, and nothing is read back.
 */

/* Columns that are packed at a time: a group of the quantised types. */
#define PACK QWEN_GROUP

/* A part of 16 rows in the stored type, as words: [row][column], and a group's scale and minimum of each row. */
typedef struct pack_block
{
	_Alignas(64) uint32_t words[STRIP][PACK];
	uint16_t scales[STRIP];
	uint16_t minima[STRIP];
} pack_block;

/* Words of 32 bits that n columns of a row take in a strip; they come every STRIP words, float16's two halves apart. */
INLINE int64_t
packed_words(qwen_dtype dtype, int64_t n)
{
	switch (dtype)
	{
		case QWEN_F32:
			return n;
		case QWEN_INT8:
			return round_up(n, QWEN_GROUP) / 4;
		case QWEN_INT4:
			return round_up(n, QWEN_GROUP) / 8;
		default:
			return (n + 1) / 2;
	}
}

/* ---- one row, up to PACK columns ---- */

INLINE void
widen_row(float *out, const char *x, int64_t n, qwen_dtype dtype)
{
	int64_t i = 0;

	for (; i + VL <= n; i += VL)
		vf_store(out + i, vf_load_as(x, i, dtype));
	if (i < n)
		vf_store_tail(out + i, vf_load_tail(x, i, n - i, dtype), n - i);
}

/* out[n] = x[n] of one of the types that have elements of their own. */
static void
widen_any(float *out, const char *x, int64_t n, qwen_dtype dtype)
{
	if (dtype == QWEN_F32)
		memcpy(out, x, (size_t) n * sizeof(float));
	else if (dtype == QWEN_BF16)
		widen_row(out, x, n, QWEN_BF16);
	else
		widen_row(out, x, n, QWEN_F16);
}

/* False when a finite value becomes infinite. */
static bool
narrow_to_f16(uint16_t *out, const float *x, int64_t n)
{
	bool fits = true;

	for (int64_t i = 0; i < n; i++)
	{
		out[i] = qwen_float_f16(x[i]);
		fits &= (out[i] & 0x7fff) != 0x7c00 || isinf(x[i]);
	}
	return fits;
}

/* x[n] as row r of the block, zero beyond; false when a value does not fit. */
static bool
pack_row(pack_block *block, int r, qwen_dtype dtype, const char *x, qwen_dtype source, int n)
{
	void *words = block->words[r];
	uint8_t q[QWEN_GROUP] = {0};
	float wide[PACK];
	bool fits = true;

	if (n < PACK)
		memset(words, 0, sizeof(block->words[r]));
	if (dtype == source)
	{
		memcpy(words, x, (size_t) n * qwen_dtype_bytes(source));
		return true;
	}
	widen_any(wide, x, n, source);
	switch (dtype)
	{
		case QWEN_F32:
			memcpy(words, wide, (size_t) n * sizeof(float));
			break;
		case QWEN_F16:
			fits = narrow_to_f16(words, wide, n);
			break;
		case QWEN_BF16:
			for (int i = 0; i < n; i++)
				((uint16_t *) words)[i] = qwen_float_bf16(wide[i]);
			break;
		case QWEN_INT8:
			block->scales[r] = quantize_int8(wide, n, words);
			break;
		case QWEN_INT4:
			block->scales[r] = quantize_int4(wide, n, q, &block->minima[r]);
			for (int c = 0; c < QWEN_GROUP / 8; c++)
			{
				uint64_t eight; /* the high four go into the high halves of the low four */

				memcpy(&eight, q + 8 * c, sizeof(eight));
				block->words[r][c] = (uint32_t) (eight | eight >> 28);
			}
			break;
	}
	return fits;
}

/* ---- 16 rows ---- */

/* dst[n][16] = the first n columns of block[16][PACK], n a multiple of 4. */
INLINE void
transpose_words(uint32_t (*dst)[STRIP], const pack_block *block, int n)
{
	for (int c = 0; c < n; c += 4)
		for (int r = 0; r < STRIP; r += 4)
		{
			__m128i a = _mm_load_si128((const __m128i *) &block->words[r][c]);
			__m128i b = _mm_load_si128((const __m128i *) &block->words[r + 1][c]);
			__m128i d = _mm_load_si128((const __m128i *) &block->words[r + 2][c]);
			__m128i e = _mm_load_si128((const __m128i *) &block->words[r + 3][c]);
			__m128i ab_low = _mm_unpacklo_epi32(a, b), ab_high = _mm_unpackhi_epi32(a, b);
			__m128i de_low = _mm_unpacklo_epi32(d, e), de_high = _mm_unpackhi_epi32(d, e);

			_mm_store_si128((__m128i *) &dst[c][r], _mm_unpacklo_epi64(ab_low, de_low));
			_mm_store_si128((__m128i *) &dst[c + 1][r], _mm_unpackhi_epi64(ab_low, de_low));
			_mm_store_si128((__m128i *) &dst[c + 2][r], _mm_unpacklo_epi64(ab_high, de_high));
			_mm_store_si128((__m128i *) &dst[c + 3][r], _mm_unpackhi_epi64(ab_high, de_high));
		}
}

/* The same words of 32 bits as two steps of float16: dst[2 n][16]. */
INLINE void
split_words(uint16_t (*dst)[STRIP], uint32_t (*words)[STRIP], int64_t n)
{
	for (int64_t c = 0; c < n; c++)
		for (int r = 0; r < STRIP; r++)
		{
			dst[2 * c][r] = (uint16_t) words[c][r];
			dst[2 * c + 1][r] = (uint16_t) (words[c][r] >> 16);
		}
}

/* The first n words of rows [r, r + n_rows) to their places from dst on. */
static void
store_words(uint32_t (*dst)[STRIP], qwen_dtype dtype, const pack_block *block, int64_t n, int r, int n_rows)
{
	uint32_t words[PACK / 2][STRIP];

	if (n_rows < STRIP || n % 4 != 0)
		for (int end = r + n_rows; r < end; r++)
			for (int64_t c = 0; c < n; c++)
				if (dtype == QWEN_F16)
				{
					((uint16_t(*)[STRIP]) dst)[2 * c][r] = (uint16_t) block->words[r][c];
					((uint16_t(*)[STRIP]) dst)[2 * c + 1][r] = (uint16_t) (block->words[r][c] >> 16);
				}
				else
					dst[c][r] = block->words[r][c];
	else if (dtype == QWEN_F16)
	{
		transpose_words(words, block, n);
		split_words((uint16_t(*)[STRIP]) dst, words, n);
	}
	else
		transpose_words(dst, block, n);
}

/* What group `group` of a quantised strip needs: [16] scales, and for int4 [16] minima behind them. */
INLINE uint16_t *
strip_scales(char *strip, qwen_dtype dtype, int64_t k, int64_t group)
{
	return (uint16_t *) (strip + strip_element_bytes(dtype, k)) + group * (dtype == QWEN_INT4 ? 2 * STRIP : STRIP);
}

/* Rows [r, r + n_rows) of a strip from src[n_rows, k]. */
static bool
pack_rows(qwen_matrix *m, char *strip, int r, int n_rows, const char *src, qwen_dtype source)
{
	size_t size = qwen_dtype_bytes(source);
	pack_block block;
	bool fits = true;

	for (int64_t first = 0; first < m->k; first += PACK)
	{
		int n = m->k - first < PACK ? (int) (m->k - first) : PACK;

		for (int i = 0; i < n_rows; i++)
			fits &= pack_row(&block, r + i, m->dtype, src + (size_t) (i * m->k + first) * size, source, n);
		store_words((uint32_t(*)[STRIP]) strip + packed_words(m->dtype, first), m->dtype, &block,
					packed_words(m->dtype, n), r, n_rows);
		if (m->dtype == QWEN_INT8 || m->dtype == QWEN_INT4)
			memcpy(strip_scales(strip, m->dtype, m->k, first / PACK) + r, block.scales + r,
				   (size_t) n_rows * sizeof(uint16_t));
		if (m->dtype == QWEN_INT4)
			memcpy(strip_scales(strip, m->dtype, m->k, first / PACK) + STRIP + r, block.minima + r,
				   (size_t) n_rows * sizeof(uint16_t));
	}
	return fits;
}

static bool
cpu_matrix_upload(qwen_device *dev, qwen_matrix *m, int64_t row, int64_t n_rows, const void *src, qwen_dtype source)
{
	size_t row_bytes = (size_t) m->k * qwen_dtype_bytes(source);
	bool fits = true;

	for (int64_t done = 0, n; done < n_rows; done += n)
	{
		int64_t r = (row + done) % STRIP;

		n = STRIP - r < n_rows - done ? STRIP - r : n_rows - done;
		fits &= pack_rows(m, (char *) m->data + (size_t) ((row + done) / STRIP) * strip_bytes(m->dtype, m->k), (int) r,
						  (int) n, (const char *) src + (size_t) done * row_bytes, source);
	}
	return fits;
}

static size_t
cpu_matrix_bytes(const qwen_device *dev, qwen_dtype dtype, int64_t n, int64_t k)
{
	return packed_bytes(dtype, n, k);
}

/* ---- rows out of a matrix ---- */

/* Element i of row r of a strip, with q d + m of its group where the type has one. */
INLINE float
strip_element(char *strip, qwen_dtype dtype, int64_t k, int r, int64_t i)
{
	const uint16_t *scales;
	uint8_t byte;

	switch (dtype)
	{
		case QWEN_F32:
			return ((const float *) strip)[i * STRIP + r];
		case QWEN_F16:
			return qwen_f16_float(((const uint16_t *) strip)[i * STRIP + r]);
		case QWEN_BF16:
			return qwen_bf16_float(((const uint16_t *) strip)[i / 2 * 2 * STRIP + 2 * r + i % 2]);
		case QWEN_INT8:
			scales = strip_scales(strip, dtype, k, i / QWEN_GROUP);
			return (float) ((const int8_t *) strip)[i / 4 * 4 * STRIP + 4 * r + i % 4] * qwen_bf16_float(scales[r]);
		default:
			scales = strip_scales(strip, dtype, k, i / QWEN_GROUP);
			byte = ((const uint8_t *) strip)[i / 8 * 4 * STRIP + 4 * r + i % 4];
			return (float) (i % 8 < 4 ? byte & 15 : byte >> 4) * qwen_bf16_float(scales[r]) +
				   qwen_bf16_float(scales[STRIP + r]);
	}
}

typedef struct embed_job
{
	float *out; /* [n, k] */
	const qwen_matrix *e;
	const int32_t *ids; /* [n], -1: zeros */
} embed_job;

INLINE void
embed_rows(const embed_job *job, int64_t begin, int64_t end, qwen_dtype dtype)
{
	int64_t k = job->e->k;

	for (int64_t t = begin; t < end; t++)
	{
		char *strip;

		if (job->ids[t] < 0)
		{
			memset(job->out + t * k, 0, (size_t) k * sizeof(float));
			continue;
		}
		strip = (char *) job->e->data + (size_t) (job->ids[t] / STRIP) * strip_bytes(dtype, k);

		for (int64_t i = 0; i < k; i++)
			job->out[t * k + i] = strip_element(strip, dtype, k, job->ids[t] % STRIP, i);
	}
}

static void
embed_piece(void *arg, int64_t begin, int64_t end)
{
	const embed_job *job = arg;

	switch (job->e->dtype)
	{
		case QWEN_F32:
			embed_rows(job, begin, end, QWEN_F32);
			break;
		case QWEN_F16:
			embed_rows(job, begin, end, QWEN_F16);
			break;
		case QWEN_BF16:
			embed_rows(job, begin, end, QWEN_BF16);
			break;
		case QWEN_INT8:
			embed_rows(job, begin, end, QWEN_INT8);
			break;
		case QWEN_INT4:
			embed_rows(job, begin, end, QWEN_INT4);
			break;
	}
}

static void
cpu_embed(qwen_device *dev, float *d_out, const qwen_matrix *e, const int32_t *ids, int32_t n)
{
	embed_job job = {d_out, e, ids};

	qwen_pool_run(dev->priv, n, row_grain(e->k), embed_piece, &job);
}
