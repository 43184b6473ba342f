/*
 * cpu_rows.h
 *	  Operations on rows of activations. Included by cpu_kernels.h.
 *
 * Rows are independent; how many a thread takes at a time only balances the
 * cost of handing them out against the work in them.
 */

/* Elements that are worth handing to another thread. */
#define ROW_WORK 16384

static int64_t
row_grain(int64_t width)
{
	return width >= ROW_WORK ? 1 : ROW_WORK / width;
}

/* ---- gather ---- */

typedef struct gather_job
{
	float *out; /* [n, h] */
	const float *x;
	const int32_t *rows; /* [n] */
	int64_t h;
} gather_job;

static void
gather_piece(void *arg, int64_t begin, int64_t end)
{
	const gather_job *job = arg;

	for (int64_t i = begin; i < end; i++)
		memcpy(job->out + i * job->h, job->x + job->rows[i] * job->h, (size_t) job->h * sizeof(float));
}

static void
cpu_gather(qwen_device *dev, void *d_out, const void *d_x, const int32_t *rows, int32_t n, int64_t h)
{
	gather_job job = {d_out, d_x, rows, h};

	qwen_pool_run(dev->priv, n, row_grain(h), gather_piece, &job);
}

/* ---- RMSNorm ---- */

/* out = x * rsqrt(mean(x^2) + eps) * w; out may be x. */
INLINE void
norm_row(float *out, const float *x, const float *w, int64_t n, float eps)
{
	float scale = 1.0f / sqrtf(dot(x, x, n) / (float) n + eps);
	int64_t i = 0;

	for (; i + VL <= n; i += VL)
		vf_store(out + i, vf_load(x + i) * scale * vf_load(w + i));
	for (; i < n; i++)
		out[i] = x[i] * scale * w[i];
}

INLINE void
add_row(float *x, const float *delta, int64_t n)
{
	int64_t i = 0;

	for (; i + VL <= n; i += VL)
		vf_store(x + i, vf_load(x + i) + vf_load(delta + i));
	for (; i < n; i++)
		x[i] += delta[i];
}

typedef struct rmsnorm_job
{
	float *out;         /* [n, h] */
	float *resid;       /* [n, h] */
	const float *delta; /* [n, h] or NULL */
	const float *w;     /* [h] */
	int64_t h;
	float eps;
} rmsnorm_job;

static void
rmsnorm_piece(void *arg, int64_t begin, int64_t end)
{
	const rmsnorm_job *job = arg;

	for (int64_t t = begin; t < end; t++)
	{
		if (job->delta)
			add_row(job->resid + t * job->h, job->delta + t * job->h, job->h);
		norm_row(job->out + t * job->h, job->resid + t * job->h, job->w, job->h, job->eps);
	}
}

static void
cpu_add_rmsnorm(qwen_device *dev, void *d_out, float *d_resid, const void *d_delta, const float *d_w, int32_t n,
				int64_t h, float eps)
{
	rmsnorm_job job = {d_out, d_resid, d_delta, d_w, h, eps};

	qwen_pool_run(dev->priv, n, row_grain(h), rmsnorm_piece, &job);
}

/* ---- SwiGLU ---- */

typedef struct swiglu_job
{
	float *out;     /* [n, f] */
	const float *x; /* [n, 2 f]: gate | up */
	int64_t f;
} swiglu_job;

/* silu(gate) * up = gate * up / (1 + exp(-gate)) */
INLINE vf
swiglu_vector(vf gate, vf up)
{
	return gate / (vf_exp(-gate) + 1.0f) * up;
}

static void
swiglu_piece(void *arg, int64_t begin, int64_t end)
{
	const swiglu_job *job = arg;
	int64_t f = job->f;

	for (int64_t t = begin; t < end; t++)
	{
		const float *gate = job->x + t * 2 * f;
		const float *up = gate + f;
		float *out = job->out + t * f;
		int64_t i = 0;

		for (; i + VL <= f; i += VL)
			vf_store(out + i, swiglu_vector(vf_load(gate + i), vf_load(up + i)));
		if (i < f)
			vf_store_tail(out + i,
						  swiglu_vector(vf_load_tail(gate, i, f - i, QWEN_F32), vf_load_tail(up, i, f - i, QWEN_F32)),
						  f - i);
	}
}

static void
cpu_swiglu(qwen_device *dev, void *d_out, const void *d_x, int32_t n, int64_t f)
{
	swiglu_job job = {d_out, d_x, f};

	qwen_pool_run(dev->priv, n, row_grain(f), swiglu_piece, &job);
}
