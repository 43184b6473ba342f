/*
 * cpu_attention.h
 *	  Head norms, RoPE, the paged cache and attention. Included by
 *	  cpu_kernels.h.
 *
 * Attention is one pass with a running maximum and sum (online softmax), a
 * cache block of 16 tokens at a time.  The unit of work is up to TILE
 * consecutive tokens of one sequence with the query heads of one kv head:
 * keys and values of a block are widened once for all of them.  What a query
 * row computes depends only on its own position: blocks in order, up to the
 * row itself.  The output row doubles as the accumulator.
 */

/* Tokens of a tile. */
#define TILE 16
/* Tokens whose heads are turned and stored by one thread at a time. */
#define STORE_GRAIN 4

/* First element of kv head g in a cache block. */
INLINE int64_t
cache_block(const qwen_heads *heads, int32_t block, int32_t g)
{
	return ((int64_t) block * heads->n_kv + g) * QWEN_KV_BLOCK * heads->dim;
}

/* Elements of a row of d_qkv. */
INLINE int64_t
qkv_width(const qwen_heads *heads)
{
	return (int64_t) (heads->n_q + 2 * heads->n_kv) * heads->dim;
}

/* ---- norm, rotate, store ---- */

typedef struct store_job
{
	float *qkv;          /* [n_tokens, (n_q + 2 n_kv) dim] */
	const float *q_norm; /* [dim] or NULL */
	const float *k_norm; /* [dim] or NULL */
	const float *rope;   /* [max_positions, rotary] */
	const qwen_heads *heads;
	const qwen_kv_layer *kv;
	const qwen_batch *batch;
} store_job;

/* Pairs element i with i + half; table = cos[half] | sin[half]. */
INLINE void
rope_row(float *x, const float *table, int32_t half)
{
	int32_t i = 0;

	for (; i + VL <= half; i += VL)
	{
		vf a = vf_load(x + i), b = vf_load(x + i + half);
		vf c = vf_load(table + i), s = vf_load(table + i + half);

		vf_store(x + i, a * c - b * s);
		vf_store(x + i + half, b * c + a * s);
	}
	for (; i < half; i++)
	{
		float a = x[i], b = x[i + half];

		x[i] = a * table[i] - b * table[i + half];
		x[i + half] = b * table[i] + a * table[i + half];
	}
}

/* x[dim] into the cache from element `cell` on. */
INLINE void
store_row(void *cache, int64_t cell, const float *x, int32_t dim, qwen_dtype dtype)
{
	uint16_t *half = (uint16_t *) cache + cell;

	if (dtype == QWEN_F32)
		memcpy((float *) cache + cell, x, (size_t) dim * sizeof(float));
	else if (dtype == QWEN_BF16)
		for (int32_t i = 0; i < dim; i++)
			half[i] = qwen_float_bf16(x[i]);
	else
		for (int32_t i = 0; i < dim; i++) /* held to the range: one infinite key would spoil its whole sequence */
			half[i] = qwen_float_f16(fminf(fmaxf(x[i], -65504.0f), 65504.0f));
}

/* One token's row of qkv; seq says where its cells are. */
static void
store_token(const store_job *job, const qwen_batch_seq *seq, int64_t t)
{
	const qwen_heads *heads = job->heads;
	int32_t dim = heads->dim;
	int32_t position = job->batch->positions[t];
	int32_t block = seq->blocks[position / QWEN_KV_BLOCK];
	float *q = job->qkv + t * qkv_width(heads);
	float *k = q + (int64_t) heads->n_q * dim;
	float *v = k + (int64_t) heads->n_kv * dim;

	for (int32_t j = 0; j < heads->n_q + heads->n_kv; j++)
	{
		const float *w = j < heads->n_q ? job->q_norm : job->k_norm;
		float *x = q + (int64_t) j * dim;

		if (w)
			norm_row(x, x, w, dim, heads->eps);
		rope_row(x, job->rope + (int64_t) position * heads->rotary, heads->rotary / 2);
	}
	for (int32_t g = 0; g < heads->n_kv; g++)
	{
		int64_t cell = cache_block(heads, block, g) + (int64_t) (position % QWEN_KV_BLOCK) * dim;

		store_row(job->kv->k, cell, k + (int64_t) g * dim, dim, job->kv->dtype);
		store_row(job->kv->v, cell, v + (int64_t) g * dim, dim, job->kv->dtype);
	}
}

/* Tokens [begin, end) of the batch. Sequences are in order of their tokens. */
static void
store_piece(void *arg, int64_t begin, int64_t end)
{
	const store_job *job = arg;
	const qwen_batch_seq *seq = job->batch->seqs;

	for (int64_t t = begin; t < end; t++)
	{
		while (t >= seq->first_token + seq->n_tokens)
			seq++;
		store_token(job, seq, t);
	}
}

static void
cpu_qk_rope_store(qwen_device *dev, void *d_qkv, const float *d_q_norm, const float *d_k_norm, const float *d_rope,
				  const qwen_heads *heads, const qwen_kv_layer *kv, const qwen_batch *batch)
{
	store_job job = {d_qkv, d_q_norm, d_k_norm, d_rope, heads, kv, batch};

	qwen_pool_run(dev->priv, batch->n_tokens, STORE_GRAIN, store_piece, &job);
}

/* ---- attention ---- */

typedef struct attention_job
{
	float *out;       /* [n_tokens, n_q dim] */
	const float *qkv; /* [n_tokens, (n_q + 2 n_kv) dim] */
	const qwen_heads *heads;
	const qwen_kv_layer *kv;
	const qwen_batch *batch;
	float scale; /* 1 / sqrt(dim) */
} attention_job;

/* Running maximum and sum of one query row. */
typedef struct softmax_state
{
	float max;
	float sum;
} softmax_state;

INLINE float
vf_array_max(const float *x)
{
	float max = x[0];

	for (int i = 1; i < QWEN_KV_BLOCK; i++)
		max = x[i] > max ? x[i] : max;
	return max;
}

/* p[16] = exp(p - max), and their sum, with the cells from n_keys on left out. */
INLINE float
block_weights(float *p, int n_keys, float max)
{
	vf sum = {0};

	for (int i = 0; i < QWEN_KV_BLOCK; i += VL)
		vf_store(p + i, vf_exp(vf_load(p + i) - max));
	for (int i = n_keys; i < QWEN_KV_BLOCK; i++)
		p[i] = 0;
	for (int i = 0; i < QWEN_KV_BLOCK; i += VL)
		sum += vf_load(p + i);
	return vf_reduce_add(sum);
}

/* out[dim] = out * keep + sum over j of p[j] v[j, dim] */
INLINE void
add_values(float *out, float keep, const float *p, const float *v, int n_keys, int32_t dim)
{
	int32_t i = 0;

	for (; i + VL <= dim; i += VL)
	{
		vf sum = vf_load(out + i) * keep;

		for (int j = 0; j < n_keys; j++)
			sum = vf_fma(vf_load(v + (int64_t) j * dim + i), vf_set(p[j]), sum);
		vf_store(out + i, sum);
	}
	for (; i < dim; i++)
	{
		float sum = out[i] * keep;

		for (int j = 0; j < n_keys; j++)
			sum += v[(int64_t) j * dim + i] * p[j];
		out[i] = sum;
	}
}

/* One query row against the first n_keys cells of a block, already widened. */
INLINE void
attend_block(float *out, softmax_state *state, const float *q, const float *k, const float *v, int n_keys, int32_t dim,
			 float scale)
{
	float p[QWEN_KV_BLOCK];
	float max, keep;

	for (int j = 0; j < QWEN_KV_BLOCK; j++)
		p[j] = j < n_keys ? dot(q, k + (int64_t) j * dim, dim) * scale : -INFINITY;
	max = vf_array_max(p);
	max = max > state->max ? max : state->max;
	keep = expf(state->max - max); /* 0 at the first block */
	state->sum = state->sum * keep + block_weights(p, n_keys, max);
	state->max = max;
	add_values(out, keep, p, v, n_keys, dim);
}

/* Rows of a tile: n tokens from batch row `first` on, heads of kv head g. */
typedef struct attention_tile
{
	const qwen_batch_seq *seq;
	int64_t first;
	int32_t n;
	int32_t g;
} attention_tile;

/* All query rows of the tile against the block that holds positions from `start` on. */
static void
tile_block(const attention_job *job, const attention_tile *at, softmax_state *states, int32_t start)
{
	const qwen_heads *heads = job->heads;
	int32_t group = heads->n_q / heads->n_kv;
	int32_t dim = heads->dim;
	int64_t cells = cache_block(heads, at->seq->blocks[start / QWEN_KV_BLOCK], at->g);
	int32_t last = job->batch->positions[at->first + at->n - 1] - start + 1; /* cells that any row of the tile sees */
	int32_t n_cells = last < QWEN_KV_BLOCK ? last : QWEN_KV_BLOCK;
	int64_t size = (int64_t) qwen_dtype_bytes(job->kv->dtype);
	float k[QWEN_KV_BLOCK * QWEN_MAX_HEAD_DIM];
	float v[QWEN_KV_BLOCK * QWEN_MAX_HEAD_DIM];

	widen_any(k, (const char *) job->kv->k + cells * size, (int64_t) n_cells * dim, job->kv->dtype);
	widen_any(v, (const char *) job->kv->v + cells * size, (int64_t) n_cells * dim, job->kv->dtype);
	for (int32_t i = 0; i < at->n; i++)
	{
		int64_t t = at->first + i;
		int32_t seen = job->batch->positions[t] - start + 1;

		if (seen <= 0)
			continue;
		for (int32_t j = 0; j < group; j++)
		{
			int64_t head = (int64_t) at->g * group + j;

			attend_block(job->out + (t * heads->n_q + head) * dim, &states[i * group + j],
						 job->qkv + t * qkv_width(heads) + head * dim, k, v,
						 seen < QWEN_KV_BLOCK ? seen : QWEN_KV_BLOCK, dim, job->scale);
		}
	}
}

static void
attend_tile(const attention_job *job, const attention_tile *at)
{
	const qwen_heads *heads = job->heads;
	int32_t group = heads->n_q / heads->n_kv;
	softmax_state states[TILE * QWEN_MAX_GROUP];
	int32_t last = job->batch->positions[at->first + at->n - 1];

	for (int32_t i = 0; i < at->n * group; i++)
		states[i] = (softmax_state){-INFINITY, 0};
	for (int32_t i = 0; i < at->n; i++)
		memset(job->out + ((at->first + i) * heads->n_q + (int64_t) at->g * group) * heads->dim, 0,
			   (size_t) group * (size_t) heads->dim * sizeof(float));
	for (int32_t start = 0; start <= last; start += QWEN_KV_BLOCK)
		tile_block(job, at, states, start);
	for (int32_t i = 0; i < at->n; i++)
		for (int32_t j = 0; j < group; j++)
		{
			float *out = job->out + ((at->first + i) * heads->n_q + (int64_t) at->g * group + j) * heads->dim;
			float inverse = 1.0f / states[i * group + j].sum;

			for (int32_t d = 0; d < heads->dim; d++)
				out[d] *= inverse;
		}
}

INLINE int64_t
seq_tiles(const qwen_batch_seq *seq)
{
	return (seq->n_tokens + TILE - 1) / TILE;
}

/* Items are (sequence, tile, kv head), counted in this order. */
static void
attention_piece(void *arg, int64_t begin, int64_t end)
{
	const attention_job *job = arg;
	const qwen_batch_seq *seq = job->batch->seqs;
	int32_t n_kv = job->heads->n_kv;
	int64_t before = 0; /* items of the sequences before seq */

	for (int64_t item = begin; item < end; item++)
	{
		int64_t done;
		attention_tile at;

		while (item >= before + seq_tiles(seq) * n_kv)
			before += seq_tiles(seq++) * n_kv;
		done = (item - before) / n_kv * TILE; /* tokens of the sequence in earlier tiles */
		at.seq = seq;
		at.first = seq->first_token + done;
		at.n = seq->n_tokens - done < TILE ? (int32_t) (seq->n_tokens - done) : TILE;
		at.g = (int32_t) ((item - before) % n_kv);
		attend_tile(job, &at);
	}
}

static void
cpu_attention(qwen_device *dev, void *d_out, const void *d_qkv, const qwen_heads *heads, const qwen_kv_layer *kv,
			  const qwen_batch *batch)
{
	attention_job job = {d_out, d_qkv, heads, kv, batch, 1.0f / sqrtf((float) heads->dim)};
	int64_t items = 0;

	for (int32_t s = 0; s < batch->n_seqs; s++)
		items += seq_tiles(&batch->seqs[s]) * heads->n_kv;
	qwen_pool_run(dev->priv, items, 1, attention_piece, &job);
}
