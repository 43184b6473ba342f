/*
 * test_attention.c
 *	  Head norms, RoPE, the paged cache and attention of every set of kernels
 *	  that this processor can run against the oracle.
 */
#include "kernel_sets.h"

static const qwen_dtype all_dtypes[] = {QWEN_F32, QWEN_F16, QWEN_BF16};

#define N_SEQS 5
#define N_BLOCKS 64

/* Tokens that are in the cache before the step, and tokens of the step. */
static const struct
{
	int32_t before;
	int32_t now;
} sequences[N_SEQS] = {{0, 1}, {0, 37}, {39, 1}, {15, 1}, {20, 33}};

static int32_t block_table[N_SEQS][N_BLOCKS];

/* Sequences' blocks are scattered over the cache and interleaved. */
static void
scatter_blocks(void)
{
	for (int s = 0; s < N_SEQS; s++)
		for (int b = 0; b < N_BLOCKS / N_SEQS; b++)
			block_table[s][b] = (s + b * N_SEQS) * 37 % N_BLOCKS; /* 37 is odd: no block twice */
}

typedef struct attention_case
{
	qwen_heads heads;
	bool norms;
	qwen_dtype kv_dtype;
} attention_case;

/* A batch made of the sequences [first, last), either what comes before the step or the step itself. */
typedef struct test_batch
{
	qwen_batch batch;
	qwen_batch_seq seqs[N_SEQS];
	int32_t positions[256];
} test_batch;

static void
make_batch(test_batch *b, int first, int last, bool before)
{
	memset(b, 0, sizeof(*b));
	b->batch = (qwen_batch){.positions = b->positions, .seqs = b->seqs};
	for (int s = first; s < last; s++)
	{
		int32_t from = before ? 0 : sequences[s].before;
		int32_t n = before ? sequences[s].before : sequences[s].now;

		if (n == 0)
			continue;
		b->seqs[b->batch.n_seqs++] = (qwen_batch_seq){b->batch.n_tokens, n, from + n, block_table[s]};
		for (int32_t i = 0; i < n; i++)
			b->positions[b->batch.n_tokens++] = from + i;
	}
}

/* What both steps of a case need, the same on every device. */
typedef struct attention_data
{
	float *rope;
	float *q_norm;
	float *k_norm;
	float *before; /* qkv rows */
	float *now;
	size_t width;
} attention_data;

static qwen_kv_layer
make_cache(qwen_device *d, const attention_case *c)
{
	size_t cells = (size_t) N_BLOCKS * QWEN_KV_BLOCK * (size_t) (c->heads.n_kv * c->heads.dim);
	qwen_kv_layer kv = {.dtype = d->ops->kv_dtype(d, c->kv_dtype), .n_blocks = N_BLOCKS};
	size_t bytes = cells * qwen_dtype_bytes(kv.dtype);

	kv.k = malloc(bytes);
	kv.v = malloc(bytes);
	assert_non_null(kv.k);
	assert_non_null(kv.v);
	memset(kv.k, 0xff, bytes); /* NaN: cells that were not written must not be read */
	memset(kv.v, 0xff, bytes);
	return kv;
}

/* Fills the cache, then runs the step for the sequences [first, last); qkv and out are those of the step. */
static void
run_attention(qwen_device *d, const attention_case *c, const attention_data *data, int first, int last, float *qkv,
			  float *out)
{
	qwen_kv_layer kv = make_cache(d, c);
	test_batch before, now;
	float *old;

	make_batch(&before, first, last, true);
	old = copy_array(data->before, (size_t) before.batch.n_tokens * data->width);
	if (before.batch.n_tokens)
		d->ops->qk_rope_store(d, old, data->q_norm, data->k_norm, data->rope, &c->heads, &kv, &before.batch);
	make_batch(&now, first, last, false);
	d->ops->qk_rope_store(d, qkv, data->q_norm, data->k_norm, data->rope, &c->heads, &kv, &now.batch);
	d->ops->attention(d, out, qkv, &c->heads, &kv, &now.batch);
	free(kv.k);
	free(kv.v);
	free(old);
}

static int32_t
tokens_of(int first, int last, bool before)
{
	test_batch b;

	make_batch(&b, first, last, before);
	return b.batch.n_tokens;
}

static attention_data
make_data(const attention_case *c)
{
	attention_data d = {.width = (size_t) ((c->heads.n_q + 2 * c->heads.n_kv) * c->heads.dim)};
	size_t dim = (size_t) c->heads.dim;

	d.rope = random_array(256 * (size_t) c->heads.rotary, 1);
	d.q_norm = c->norms ? random_array(dim, 2) : NULL;
	d.k_norm = c->norms ? random_array(dim, 2) : NULL;
	d.before = random_array((size_t) tokens_of(0, N_SEQS, true) * d.width, 2);
	d.now = random_array((size_t) tokens_of(0, N_SEQS, false) * d.width, 2);
	return d;
}

static void
free_data(attention_data *d)
{
	free(d->rope);
	free(d->q_norm);
	free(d->k_norm);
	free(d->before);
	free(d->now);
}

/* Each sequence alone must give the bits that it gave among the others. */
static void
check_alone(const attention_case *c, const attention_data *data, const float *all)
{
	size_t row = (size_t) (c->heads.n_q * c->heads.dim);

	for (int s = 0; s < N_SEQS; s++)
	{
		size_t skip_before = (size_t) tokens_of(0, s, true), skip = (size_t) tokens_of(0, s, false);
		size_t n = (size_t) sequences[s].now;
		attention_data part = *data;
		float *qkv = copy_array(data->now + skip * data->width, n * data->width);
		float *out = poisoned(n * row);

		part.before += skip_before * data->width;
		run_attention(dev, c, &part, s, s + 1, qkv, out);
		assert_memory_equal(out, all + skip * row, n * row * sizeof(float));
		free(qkv);
		free(out);
	}
}

static void
check_attention(const attention_case *c)
{
	attention_data data = make_data(c);
	size_t n = (size_t) tokens_of(0, N_SEQS, false);
	size_t row = (size_t) (c->heads.n_q * c->heads.dim);
	float *qkv_want = copy_array(data.now, n * data.width), *qkv_got = copy_array(data.now, n * data.width);
	float *want = poisoned(n * row), *got = poisoned(n * row);
	float tolerance = c->kv_dtype == QWEN_F32 ? 2e-5f : c->kv_dtype == QWEN_F16 ? 6e-3f : 5e-2f;

	run_attention(ref, c, &data, 0, N_SEQS, qkv_want, want);
	run_attention(dev, c, &data, 0, N_SEQS, qkv_got, got);
	compare("qkv", qkv_want, qkv_got, n * data.width, 5e-6f);
	compare("attention", want, got, n * row, tolerance);
	check_alone(c, &data, got);
	free_data(&data);
	free(qkv_want);
	free(qkv_got);
	free(want);
	free(got);
}

static void
attention_agrees_and_sequences_do_not_disturb_each_other(void **state)
{
	static const qwen_heads heads[] = {
		{4, 2, 16, 16, 1e-6f},   {6, 2, 64, 64, 1e-6f}, {3, 1, 20, 20, 1e-6f},
		{4, 4, 128, 128, 1e-6f}, {2, 1, 42, 18, 1e-6f}, {64, 1, 8, 8, 1e-6f},
	};

	scatter_blocks();
	for (size_t h = 0; h < sizeof(heads) / sizeof(heads[0]); h++)
		for (size_t d = 0; d < 3; d++)
			for (int norms = 0; norms < 2; norms++)
				check_attention(&(attention_case){heads[h], norms, all_dtypes[d]});
}

static const set_test set_tests[] = {
	{"attention agrees and sequences do not disturb each other",
	 attention_agrees_and_sequences_do_not_disturb_each_other},
};

int
main(void)
{
	static test_list list;

	return run_sets("attention", &list, set_tests, sizeof(set_tests) / sizeof(set_tests[0]));
}
