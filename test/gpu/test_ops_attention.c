/*
 * test_ops_attention.c
 *	  Head norms, RoPE, the paged cache and attention of a CUDA plug-in against
 *	  the oracle.
 *
 * A case is some sequences, each with tokens that are in the cache already and
 * some of this step: one decodes, more are a prompt or a piece of one.  Blocks
 * of all sequences are scattered over one cache, which is poisoned first: what
 * was not written must not be used.  The oracle's cache and queries are rounded
 * to the types of the device before its attention, so that only the arithmetic
 * of attention itself is compared; tensor cores round the weights of values
 * too, which the tolerance knows.
 */
#include "gpu_sets.h"

#define MAX_SEQS 12
#define MAX_TOKENS 4000
#define DECODE_ROOM 32 /* rows, of steps of up to MAX_SEQS */

typedef struct sequence
{
	int32_t cached;
	int32_t rows; /* of the step */
} sequence;

typedef struct attention_case
{
	qwen_heads heads;
	bool norms;
	qwen_dtype kv_dtype;
	int n;
	const sequence *seqs; /* [n] */
} attention_case;

/* Inputs; the tokens of the sequences one after the other. */
typedef struct attention_data
{
	const attention_case *c;
	float *rope;
	float *q_norm;
	float *k_norm;
	float *qkv;                    /* [tokens][width], as activations */
	int32_t first[MAX_SEQS];       /* token */
	int32_t first_block[MAX_SEQS]; /* before they are scattered */
	int32_t n_blocks;              /* of the cache: some are nobody's */
	int32_t longest;
	size_t width;
	size_t out_width;
} attention_data;

static attention_data
make_data(const attention_case *c)
{
	size_t dim = (size_t) c->heads.dim;
	attention_data d = {.c = c, .width = (size_t) (c->heads.n_q + 2 * c->heads.n_kv) * dim};
	int32_t tokens = 0;

	d.out_width = (size_t) c->heads.n_q * dim;
	for (int s = 0; s < c->n; s++)
	{
		int32_t n = c->seqs[s].cached + c->seqs[s].rows;

		d.first[s] = tokens;
		d.first_block[s] = d.n_blocks;
		d.n_blocks += (n + QWEN_KV_BLOCK - 1) / QWEN_KV_BLOCK;
		d.longest = n > d.longest ? n : d.longest;
		tokens += n;
	}
	assert_true(tokens <= MAX_TOKENS && c->n <= MAX_SEQS);
	d.n_blocks += 5;
	d.n_blocks += d.n_blocks % 37 == 0; /* no two blocks fall on one */
	d.rope = keep_random((size_t) d.longest * (size_t) c->heads.rotary, 1);
	d.q_norm = c->norms ? keep_random(dim, 2) : NULL;
	d.k_norm = c->norms ? keep_random(dim, 2) : NULL;
	d.qkv = keep_activations((size_t) tokens * d.width, 2);
	return d;
}

static int32_t
scattered(const attention_data *d, int s, int32_t block)
{
	return (int32_t) ((int64_t) (d->first_block[s] + block + 3) * 37 % d->n_blocks);
}

/* ---- a step ---- */

/* A step on a device, and the token of the data that each of its rows is. */
typedef struct step
{
	qwen_batch batch;
	qwen_batch_seq seqs[MAX_SEQS];
	int32_t tokens[MAX_TOKENS]; /* ids, which nobody looks at here */
	int32_t positions[MAX_TOKENS];
	int32_t rows[MAX_TOKENS];
	int32_t blocks[MAX_TOKENS / QWEN_KV_BLOCK + MAX_SEQS];
	int32_t last;
} step;

/* Tokens [begin, begin + n) of the sequences [first, last), of each as begin and n of cached and rows say. */
static void
build_step(step *st, const attention_data *d, int first, int last, bool of_cached)
{
	int32_t *blocks = st->blocks;

	st->batch = (qwen_batch){
		.tokens = st->tokens, .positions = st->positions, .seqs = st->seqs, .n_logits = 1, .logit_rows = &st->last};
	for (int s = first; s < last; s++)
	{
		const sequence *q = &d->c->seqs[s];
		int32_t begin = of_cached ? 0 : q->cached, n = of_cached ? q->cached : q->rows;

		if (n == 0)
			continue;
		st->seqs[st->batch.n_seqs++] = (qwen_batch_seq){st->batch.n_tokens, n, begin + n, blocks};
		for (int32_t b = 0; b < (begin + n + QWEN_KV_BLOCK - 1) / QWEN_KV_BLOCK; b++)
			*blocks++ = scattered(d, s, b);
		for (int32_t i = 0; i < n; i++)
		{
			st->positions[st->batch.n_tokens] = begin + i;
			st->rows[st->batch.n_tokens++] = d->first[s] + begin + i;
		}
	}
	st->last = st->batch.n_tokens - 1;
}

/* The step's rows of the inputs on a device. */
static void *
upload_rows(qwen_device *on, const attention_data *d, const step *st)
{
	size_t n = (size_t) st->batch.n_tokens, room = st->batch.n_tokens == st->batch.n_seqs ? DECODE_ROOM : n;
	float *x = keep_poisoned(n * d->width);

	for (size_t t = 0; t < n; t++)
		memcpy(x + t * d->width, d->qkv + (size_t) st->rows[t] * d->width, d->width * sizeof(float));
	return device_activations(on, x, n * d->width, room * d->width);
}

/* ---- the oracle's types become the device's ---- */

static void
round_queries(float *qkv, const attention_data *d, size_t n)
{
	for (size_t t = 0; t < n; t++)
		round_to(qkv + t * d->width, d->out_width, act);
}

static void
round_cache(const attention_data *d, const qwen_kv_layer *kv)
{
	size_t n = (size_t) d->n_blocks * ref->ops->kv_block_bytes(ref, kv->dtype, &d->c->heads) / sizeof(float);

	if (d->c->kv_dtype == QWEN_INT8)
		return;
	round_to(kv->k, n, d->c->kv_dtype);
	round_to(kv->v, n, d->c->kv_dtype);
}

/* ---- running it ---- */

static qwen_kv_layer
make_cache(qwen_device *on, const attention_data *d)
{
	qwen_kv_layer kv = {.dtype = on->ops->kv_dtype(on, d->c->kv_dtype), .n_blocks = d->n_blocks};
	size_t bytes = (size_t) d->n_blocks * on->ops->kv_block_bytes(on, kv.dtype, &d->c->heads);

	kv.k = device_bytes(on, bytes);
	kv.v = device_bytes(on, bytes);
	return kv;
}

/* Blocks of no sequence among [first, last) have been left alone. */
static void
check_strangers(qwen_device *on, const attention_data *d, const qwen_kv_layer *kv, int first, int last)
{
	size_t bytes = on->ops->kv_block_bytes(on, kv->dtype, &d->c->heads);
	unsigned char *cache = keep(malloc((size_t) d->n_blocks * bytes));
	bool *used = keep(calloc((size_t) d->n_blocks, sizeof(bool)));

	for (int s = first; s < last; s++)
		for (int32_t b = 0; b * QWEN_KV_BLOCK < d->c->seqs[s].cached + d->c->seqs[s].rows; b++)
			used[scattered(d, s, b)] = true;
	for (int side = 0; side < 2; side++)
	{
		assert_true(on->ops->download(on, cache, side ? kv->v : kv->k, (size_t) d->n_blocks * bytes));
		for (int32_t b = 0; b < d->n_blocks; b++)
			for (size_t i = 0; !used[b] && i < bytes; i++)
				if (cache[(size_t) b * bytes + i] != 0xff)
					fail_msg("wrote into block %d, which is nobody's", b);
	}
}

/* What became of the inputs, and attention, of the rows of the step, in the order of the sequences. */
typedef struct results
{
	int32_t n;
	float *qkv;
	float *out;
} results;

static results
run_sequences(qwen_device *on, const attention_data *d, int first, int last)
{
	static step filling, st;
	const attention_case *c = d->c;
	const float *q_norm = c->norms ? device_floats(on, d->q_norm, (size_t) c->heads.dim) : NULL;
	const float *k_norm = c->norms ? device_floats(on, d->k_norm, (size_t) c->heads.dim) : NULL;
	const float *rope = device_floats(on, d->rope, (size_t) d->longest * (size_t) c->heads.rotary);
	qwen_kv_layer kv = make_cache(on, d);
	void *x, *y;
	size_t n;

	build_step(&filling, d, first, last, true);
	if (filling.batch.n_tokens > 0)
	{
		assert_true(on->ops->step(on, &filling.batch));
		on->ops->qk_rope_store(on, upload_rows(on, d, &filling), q_norm, k_norm, rope, &c->heads, &kv, &filling.batch);
		assert_true(on->ops->synchronize(on));
	}
	build_step(&st, d, first, last, false);
	n = (size_t) st.batch.n_tokens;
	x = upload_rows(on, d, &st);
	y = device_bytes(on, (st.batch.n_seqs == st.batch.n_tokens ? DECODE_ROOM : n) * d->out_width * on->act_bytes);
	assert_true(on->ops->step(on, &st.batch));
	on->ops->qk_rope_store(on, x, q_norm, k_norm, rope, &c->heads, &kv, &st.batch);
	if (on == ref)
	{
		round_queries(x, d, n);
		round_cache(d, &kv);
	}
	on->ops->attention(on, y, x, &c->heads, &kv, &st.batch);
	if (on != ref)
		check_strangers(on, d, &kv, first, last);
	return (results){st.batch.n_tokens, read_activations(on, x, n * d->width),
					 read_activations(on, y, n * d->out_width)};
}

/* ---- comparisons ---- */

/* Heads of n floats that stand `width` apart, from element `from` on: one after the other, as compare wants them. */
static float *
columns(const float *x, size_t rows, size_t width, size_t from, size_t n)
{
	float *c = keep_poisoned(rows * n);

	for (size_t t = 0; t < rows; t++)
		memcpy(c + t * n, x + t * width + from, n * sizeof(float));
	return c;
}

/*
 * Of attention: the rounding of weights and results, with values up to 2; of an int8 cache also of keys and values that
 * are widened to the activations' type.  A key that lay between two numbers of the cache's type may have become the
 * other one, a gap away: that moves a score by 2 gap / sqrt(dim), and with it at most a quarter of the weight from one
 * value to another.
 */
static float
tolerance_of(qwen_dtype kv_dtype, int32_t dim)
{
	float gap = kv_dtype == QWEN_INT8 ? 2.0f / 127 : 2 * unit_of(kv_dtype);

	return 2e-5f + 2 * gap / sqrtf((float) dim) + unit_of(act) * (kv_dtype == QWEN_INT8 ? 5 : 2);
}

static void
check_attention(const attention_case *c)
{
	attention_data d = make_data(c);
	results want = run_sequences(ref, &d, 0, c->n), got = run_sequences(dev, &d, 0, c->n);
	size_t n = (size_t) got.n, values = (size_t) (c->heads.n_kv * c->heads.dim), before = d.width - values;
	char what[96];

	snprintf(what, sizeof(what), "cache %s, %d heads of %d on %d, %d sequences, first %d + %d",
			 qwen_dtype_name(c->kv_dtype), c->heads.n_q, c->heads.dim, c->heads.n_kv, c->n, c->seqs[0].cached,
			 c->seqs[0].rows);
	assert_int_equal(got.n, want.n);
	compare("queries", columns(want.qkv, n, d.width, 0, d.out_width), columns(got.qkv, n, d.width, 0, d.out_width),
			n * d.out_width, 1e-5f + 2 * unit_of(act));
	compare("values", columns(want.qkv, n, d.width, before, values), columns(got.qkv, n, d.width, before, values),
			n * values, 0);
	compare(what, want.out, got.out, n * d.out_width, tolerance_of(c->kv_dtype, c->heads.dim));
	end_check(what);
}

/* ---- tests ---- */

static const qwen_dtype kv_dtypes[] = {QWEN_F32, QWEN_F16, QWEN_BF16, QWEN_INT8};
#define N_KV (sizeof(kv_dtypes) / sizeof(kv_dtypes[0]))

#define COUNT(a) ((int) (sizeof(a) / sizeof((a)[0])))

/* What one token meets: the borders of blocks and of splits. */
static const sequence decoding[] = {{0, 1}, {14, 1}, {15, 1}, {16, 1}, {254, 1}, {255, 1}, {256, 1}, {299, 1}};
static const sequence far[] = {{1039, 1}, {2100, 1}, {512, 1}};
static const sequence prompts[] = {{0, 70}, {0, 16}, {0, 2}};
static const sequence pieces[] = {{37, 30}, {64, 65}, {15, 2}, {16, 17}};
static const sequence mixed[] = {{20, 1}, {0, 33}, {270, 1}, {250, 20}, {0, 1}};

/* A device for heads of that kind takes the place of `dev`. */
static void
reopen(const qwen_heads *heads)
{
	qwen_needs needs = small_needs();

	needs.rows = MAX_TOKENS;
	needs.sequences = MAX_SEQS;
	needs.n_q = heads->n_q;
	needs.dim = heads->dim;
	end_device(dev);
	dev = new_device(0, "cuda:0", act, needs);
}

/* Every kind of step on each kind of heads, in each type of the cache. */
static void
check_heads(const qwen_heads *heads, int n)
{
	for (int h = 0; h < n; h++)
	{
		reopen(&heads[h]);
		for (size_t t = 0; t < N_KV; t++)
		{
			check_attention(&(attention_case){heads[h], t % 2, kv_dtypes[t], COUNT(decoding), decoding});
			check_attention(&(attention_case){heads[h], t / 2, kv_dtypes[t], COUNT(prompts), prompts});
			check_attention(&(attention_case){heads[h], true, kv_dtypes[t], COUNT(pieces), pieces});
			check_attention(&(attention_case){heads[h], h % 2, kv_dtypes[t], COUNT(mixed), mixed});
		}
	}
}

static void
common_heads_agree(void **state)
{
	static const qwen_heads heads[] = {
		{2, 2, 64, 64, 0.03f}, {4, 2, 80, 80, 0.03f},   {4, 1, 96, 96, 0.03f},  {10, 2, 128, 128, 0.03f},
		{7, 1, 64, 32, 0.03f}, {8, 1, 128, 128, 0.03f}, {2, 1, 256, 64, 0.03f},
	};

	check_heads(heads, COUNT(heads));
}

static void
odd_heads_agree(void **state)
{
	static const qwen_heads heads[] = {
		{3, 1, 20, 18, 0.03f},   {1, 1, 1, 0, 0.03f},  {5, 1, 33, 32, 0.03f},
		{2, 1, 512, 512, 0.03f}, {64, 1, 8, 8, 0.03f},
	};

	check_heads(heads, COUNT(heads));
}

static void
long_contexts_agree(void **state)
{
	static const qwen_heads heads[] = {{4, 1, 128, 128, 0.03f}, {7, 1, 64, 64, 0.03f}, {2, 1, 33, 32, 0.03f}};

	for (int h = 0; h < COUNT(heads); h++)
	{
		reopen(&heads[h]);
		for (size_t t = 0; t < N_KV; t++)
			check_attention(&(attention_case){heads[h], true, kv_dtypes[t], COUNT(far), far});
	}
}

/* A sequence that decodes gives the bits that it gave among the others. */
static void
check_alone(const attention_case *c)
{
	attention_data d = make_data(c);
	results all = run_sequences(dev, &d, 0, c->n);

	for (int s = 0; s < c->n; s++)
	{
		results one = run_sequences(dev, &d, s, s + 1);

		if (memcmp(one.out, all.out + (size_t) s * d.out_width, d.out_width * sizeof(float)) != 0)
			fail_msg("cache %s, %d heads of %d on %d: a context of %d has other bits than among %d sequences",
					 qwen_dtype_name(c->kv_dtype), c->heads.n_q, c->heads.dim, c->heads.n_kv, c->seqs[s].cached + 1,
					 c->n);
	}
	end_check("alone");
}

static void
a_sequence_has_the_same_bits_alone(void **state)
{
	static const qwen_heads heads[] = {{4, 2, 128, 128, 0.03f}, {5, 1, 64, 64, 0.03f}, {2, 1, 33, 32, 0.03f}};

	for (int h = 0; h < COUNT(heads); h++)
	{
		reopen(&heads[h]);
		for (size_t t = 0; t < N_KV; t++)
		{
			check_alone(&(attention_case){heads[h], true, kv_dtypes[t], COUNT(decoding), decoding});
			if (t == 0)
				check_alone(&(attention_case){heads[h], true, kv_dtypes[t], COUNT(far), far});
		}
	}
}

static const set_test tests[] = {
	{"common heads agree", common_heads_agree},
	{"odd heads agree", odd_heads_agree},
	{"long contexts agree", long_contexts_agree},
	{"a sequence has the same bits alone", a_sequence_has_the_same_bits_alone},
};

int
main(int argc, char **argv)
{
	return run_on_gpu(argc, argv, "attention", tests, sizeof(tests) / sizeof(tests[0]));
}
