/*
 * cpu_narrow.h
 *	  Activations narrowed into dev->scratch, for products that multiply them
 *	  so. Included by cpu_linear.h; the layout is cpu_layout.h's.
 */

/* Whether bfloat16 weights meet activations of the same type. */
#if defined(__AVX512BF16__)
#define NARROW_BF16 true
#else
#define NARROW_BF16 false
#endif

/* Bytes that are asked for before they are written. */
#define WRITE_AHEAD 1024

typedef struct narrow_job
{
	const float *x; /* [rows, k] */
	int64_t k;
	int64_t padded;  /* k' of the type */
	int64_t stride;  /* k'' */
	uint16_t *halfs; /* [rows, k''] */
	int8_t *q;       /* [rows, k''] */
	float *scales;   /* [rows, k' / 64] */
	int32_t *sums;   /* [rows, k' / 64] or NULL */
	float *shifts;   /* [rows, k' / 64] or NULL */
} narrow_job;

static bool
narrows(qwen_dtype dtype)
{
	return dtype == QWEN_INT8 || dtype == QWEN_INT4 || (dtype == QWEN_BF16 && NARROW_BF16);
}

static size_t
narrow_bytes(qwen_dtype dtype, int64_t rows, int64_t k)
{
	int64_t stride = narrow_stride(dtype, k), groups = padded_k(dtype, k) / QWEN_GROUP;

	if (dtype == QWEN_BF16)
		return (size_t) (rows * stride) * sizeof(uint16_t);
	return (size_t) rows * (size_t) (stride + groups * (int64_t) (sizeof(float) + sizeof(int32_t)));
}

/* Of a product's activations, whatever type its weights have. */
static size_t
product_bytes(int64_t rows, int64_t k)
{
	size_t q = narrow_bytes(QWEN_INT8, rows, k);
	size_t halfs = NARROW_BF16 ? narrow_bytes(QWEN_BF16, rows, k) : 0;

	return k == 0 ? 0 : q > halfs ? q : halfs;
}

/* Products come one after the other. */
static size_t
cpu_scratch_bytes(const qwen_device *dev, const qwen_needs *needs)
{
	size_t layer = product_bytes(needs->rows, needs->k), head = product_bytes(needs->logit_rows, needs->head_k);

	return layer > head ? layer : head;
}

/* Rows [begin, end) as int8. */
static void
quantize_piece(void *arg, int64_t begin, int64_t end)
{
	const narrow_job *job = arg;
	int64_t groups = job->padded / QWEN_GROUP;

	for (int64_t t = begin; t < end; t++)
		for (int64_t g = 0; g < groups; g++)
		{
			int64_t i = g * QWEN_GROUP, n = job->k - i < QWEN_GROUP ? job->k - i : QWEN_GROUP;
			int8_t *q = job->q + t * job->stride + i;
			int32_t sum;
			float scale;

			prefetch_written(q + WRITE_AHEAD);
			scale = quantize_activations(job->x + t * job->k + i, (int) n, q, &sum);
			if (n < QWEN_GROUP)
				memset(q + n, 0, (size_t) (QWEN_GROUP - n));
			job->scales[t * groups + g] = scale;
			if (job->sums)
				job->sums[t * groups + g] = sum;
			else
				job->shifts[t * groups + g] = scale * (float) sum;
		}
}

/* Rows [begin, end) as bfloat16. */
static void
halve_piece(void *arg, int64_t begin, int64_t end)
{
	const narrow_job *job = arg;

	for (int64_t t = begin; t < end; t++)
	{
		const float *x = job->x + t * job->k;
		uint16_t *out = job->halfs + t * job->stride;
		int64_t i = 0;

		for (; i + VL <= job->k; i += VL)
			vf_store_bf16(out + i, vf_load(x + i));
		for (; i < job->k; i++)
			out[i] = qwen_float_bf16(x[i]);
		memset(out + i, 0, (size_t) (job->padded - i) * sizeof(uint16_t));
	}
}

/* x[rows, k] of the product into the scratch memory, where it is multiplied narrowed. */
static void
narrow_inputs(qwen_device *dev, linear_job *job)
{
	int64_t k = job->w->k, padded = padded_k(job->w->dtype, k), stride = narrow_stride(job->w->dtype, k);
	narrow_job narrow = {.x = job->x, .k = k, .padded = padded, .stride = stride};

	if (!narrows(job->w->dtype))
		return;
	job->narrow = dev->scratch;
	if (job->w->dtype == QWEN_BF16)
		narrow.halfs = dev->scratch;
	else
	{
		narrow.q = dev->scratch;
		job->scales = narrow.scales = (float *) (narrow.q + job->rows * stride);
		if (job->w->dtype == QWEN_INT8)
			job->sums = narrow.sums = (int32_t *) (narrow.scales + job->rows * (padded / QWEN_GROUP));
		else
			job->shifts = narrow.shifts = narrow.scales + job->rows * (padded / QWEN_GROUP);
	}
	qwen_pool_run(dev->priv, job->rows, row_grain(k), narrow.q ? quantize_piece : halve_piece, &narrow);
}
