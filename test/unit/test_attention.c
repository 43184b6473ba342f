/*
 * test_attention.c
 *	  Head norms, RoPE, the paged cache and attention of every set of kernels
 *	  that this processor can run, against the oracle and against itself.
 *
 * Some sequences of fixed lengths, whose blocks are scattered over one cache,
 * are computed in several ways: each whole in one step, token after token, in
 * chunks, together and alone, on one thread and on more.  The oracle's answer
 * is compared with one of the ways, and all ways must have the same bits.
 * Caches are filled with NaN first: what was not written must not be used.
 */
#include "kernel_sets.h"

#define N_SEQS 5
#define N_BLOCKS 128
#define MAX_TOKENS 600

/* Sequences; a case may cut them shorter. Two are longer than the part of a sequence that is summed at a time. */
static const int32_t lengths[N_SEQS] = {1, 37, 263, MAX_TOKENS, 16};

/* The chunks in which sequences are computed: sequence s begins with number s and takes them in turn. */
typedef struct chunking
{
	int n;
	int32_t sizes[4];
} chunking;

static const chunking whole = {1, {MAX_TOKENS}};
static const chunking token_by_token = {1, {1}};
static const chunking pieces = {4, {5, 1, 64, 250}};
static const chunking blocks_of_16 = {2, {16, 32}};

typedef struct attention_case
{
	qwen_heads heads;
	bool norms;
	qwen_dtype kv_dtype;
	int32_t longest;
	float range; /* of queries, keys and values */
} attention_case;

/* Inputs, and the answers of one way to compute them; rows are those of the sequences one after the other. */
typedef struct attention_data
{
	const attention_case *c;
	float *rope;
	float *q_norm;
	float *k_norm;
	float *qkv; /* [tokens][width] */
	int32_t tokens;
	int32_t first[N_SEQS]; /* row of a sequence's first token */
	size_t width;
	size_t out_width;
} attention_data;

static int32_t
length_of(const attention_case *c, int s)
{
	return lengths[s] < c->longest ? lengths[s] : c->longest;
}

static attention_data
make_data(const attention_case *c)
{
	size_t dim = (size_t) c->heads.dim;
	attention_data d = {.c = c, .width = (size_t) (c->heads.n_q + 2 * c->heads.n_kv) * dim};

	d.out_width = (size_t) c->heads.n_q * dim;
	for (int s = 0; s < N_SEQS; s++)
	{
		d.first[s] = d.tokens;
		d.tokens += length_of(c, s);
	}
	d.rope = random_array(MAX_TOKENS * (size_t) c->heads.rotary, 1);
	d.q_norm = c->norms ? random_array(dim, 2) : NULL;
	d.k_norm = c->norms ? random_array(dim, 2) : NULL;
	d.qkv = random_array((size_t) d.tokens * d.width, c->range);
	return d;
}

static void
free_data(attention_data *d)
{
	free(d->rope);
	free(d->q_norm);
	free(d->k_norm);
	free(d->qkv);
}

/* ---- one way to compute it ---- */

static qwen_kv_layer
make_cache(qwen_device *d, const attention_case *c)
{
	qwen_kv_layer kv = {.dtype = d->ops->kv_dtype(d, c->kv_dtype), .n_blocks = N_BLOCKS};
	size_t bytes = N_BLOCKS * d->ops->kv_block_bytes(d, kv.dtype, &c->heads);

	kv.k = malloc(bytes);
	kv.v = malloc(bytes);
	assert_non_null(kv.k);
	assert_non_null(kv.v);
	memset(kv.k, 0xff, bytes);
	memset(kv.v, 0xff, bytes);
	return kv;
}

/* Block b of sequence s: interleaved and out of order; 37 is odd, so no block is used twice. */
static int32_t
scattered_block(int s, int b)
{
	static const int before[N_SEQS] = {0, 1, 4, 21, 59};

	return (before[s] + b) * 37 % N_BLOCKS;
}

/* A step: the sequences' parts of it, and the row of the data that each row of the step is. */
typedef struct step
{
	qwen_batch batch;
	qwen_batch_seq seqs[N_SEQS];
	int32_t positions[N_SEQS * MAX_TOKENS];
	int32_t rows[N_SEQS * MAX_TOKENS];
	int32_t blocks[N_SEQS][MAX_TOKENS / QWEN_KV_BLOCK + 1];
} step;

static void
add_sequence(step *st, const attention_data *d, int s, int32_t done, int32_t n)
{
	qwen_batch_seq *seq = &st->seqs[st->batch.n_seqs];
	int32_t *blocks = st->blocks[st->batch.n_seqs++];

	for (int b = 0; b < (done + n + QWEN_KV_BLOCK - 1) / QWEN_KV_BLOCK; b++)
		blocks[b] = scattered_block(s, b);
	*seq = (qwen_batch_seq){st->batch.n_tokens, n, done + n, blocks};
	for (int32_t i = 0; i < n; i++)
	{
		st->positions[st->batch.n_tokens] = done + i;
		st->rows[st->batch.n_tokens++] = d->first[s] + done + i;
	}
}

/* The next chunk of each sequence of [first, last) that has one; false when none has. */
static bool
next_step(step *st, const attention_data *d, const chunking *chunks, int first, int last, int32_t *done, int i)
{
	st->batch = (qwen_batch){.positions = st->positions, .seqs = st->seqs};
	for (int s = first; s < last; s++)
	{
		int32_t n = chunks->sizes[(i + s) % chunks->n], left = length_of(d->c, s) - done[s];

		n = n < left ? n : left;
		if (n > 0)
			add_sequence(st, d, s, done[s], n);
		done[s] += n;
	}
	return st->batch.n_tokens > 0;
}

static void
run_step(qwen_device *on, const attention_data *d, const qwen_kv_layer *kv, const step *st, float *qkv, float *out)
{
	size_t n = (size_t) st->batch.n_tokens;
	float *x = poisoned(n * d->width), *y = poisoned(n * d->out_width);

	for (size_t t = 0; t < n; t++)
		memcpy(x + t * d->width, d->qkv + (size_t) st->rows[t] * d->width, d->width * sizeof(float));
	on->ops->qk_rope_store(on, x, d->q_norm, d->k_norm, d->rope, &d->c->heads, kv, &st->batch);
	on->ops->attention(on, y, x, &d->c->heads, kv, &st->batch);
	for (size_t i = 0; i < GUARD; i++)
		assert_true(x[n * d->width + i] == 1234 && y[n * d->out_width + i] == 1234);
	for (size_t t = 0; t < n; t++)
	{
		memcpy(qkv + (size_t) st->rows[t] * d->width, x + t * d->width, d->width * sizeof(float));
		memcpy(out + (size_t) st->rows[t] * d->out_width, y + t * d->out_width, d->out_width * sizeof(float));
	}
	free(x);
	free(y);
}

/* Computes the sequences [first, last); qkv[tokens][width] is what became of the input. */
static void
run_sequences(qwen_device *on, const attention_data *d, const chunking *chunks, int first, int last, float *qkv,
			  float *out)
{
	static step st;
	qwen_kv_layer kv = make_cache(on, d->c);
	int32_t done[N_SEQS] = {0};

	for (int i = 0; next_step(&st, d, chunks, first, last, done, i); i++)
		run_step(on, d, &kv, &st, qkv, out);
	free(kv.k);
	free(kv.v);
}

/* ---- comparisons ---- */

static float
tolerance_of(qwen_dtype dtype)
{
	switch (dtype)
	{
		case QWEN_F32:
			return 2e-5f;
		case QWEN_F16:
			return 6e-3f;
		default:
			return 5e-2f;
	}
}

static void
check_against_oracle(const attention_data *d, const float *qkv, const float *out)
{
	size_t n = (size_t) d->tokens;
	float *qkv_want = poisoned(n * d->width), *want = poisoned(n * d->out_width);
	char what[64];

	run_sequences(ref, d, &whole, 0, N_SEQS, qkv_want, want);
	snprintf(what, sizeof(what), "%s, %d heads of %d on %d", qwen_dtype_name(d->c->kv_dtype), d->c->heads.n_q,
			 d->c->heads.dim, d->c->heads.n_kv);
	compare(what, qkv_want, qkv, n * d->width, 5e-6f);
	compare(what, want, out, n * d->out_width, tolerance_of(d->c->kv_dtype));
	free(qkv_want);
	free(want);
}

/* The same sequences in another way must give the same bits. */
static void
check_same(qwen_device *on, const attention_data *d, const chunking *chunks, bool alone, const float *want)
{
	size_t n = (size_t) d->tokens;
	float *qkv = poisoned(n * d->width), *got = poisoned(n * d->out_width);

	if (alone)
		for (int s = 0; s < N_SEQS; s++)
			run_sequences(on, d, chunks, s, s + 1, qkv, got);
	else
		run_sequences(on, d, chunks, 0, N_SEQS, qkv, got);
	for (size_t i = 0; i < n * d->out_width; i++)
		if (memcmp(&want[i], &got[i], sizeof(float)) != 0)
			fail_msg("%s, %s, %d heads of %d on %d, chunks of %d, %s, %d threads: element %zu of row %zu is %.9g, "
					 "not %.9g",
					 on->ops->name, qwen_dtype_name(d->c->kv_dtype), d->c->heads.n_q, d->c->heads.dim, d->c->heads.n_kv,
					 chunks->sizes[0], alone ? "alone" : "together", on->n_threads, i % d->out_width, i / d->out_width,
					 (double) got[i], (double) want[i]);
	free(qkv);
	free(got);
}

static qwen_device *
open_same_set(int n_threads)
{
	char why[128];
	qwen_device *d = qwen_device_open("cpu", dev->ops->name, n_threads, why, sizeof(why));

	assert_non_null(d);
	return d;
}

static void
check_attention(const attention_case *c)
{
	attention_data d = make_data(c);
	size_t n = (size_t) d.tokens;
	float *qkv = poisoned(n * d.width), *out = poisoned(n * d.out_width);
	qwen_device *one = open_same_set(1), *two = open_same_set(2);

	run_sequences(dev, &d, &whole, 0, N_SEQS, qkv, out);
	check_against_oracle(&d, qkv, out);
	check_same(one, &d, &whole, true, out);
	check_same(dev, &d, &whole, true, out);
	check_same(dev, &d, &token_by_token, false, out);
	check_same(one, &d, &pieces, false, out);
	check_same(two, &d, &pieces, true, out);
	check_same(two, &d, &blocks_of_16, false, out);
	qwen_device_close(one);
	qwen_device_close(two);
	free_data(&d);
	free(qkv);
	free(out);
}

/* ---- tests ---- */

static const qwen_dtype all_dtypes[] = {QWEN_F32, QWEN_F16, QWEN_BF16, QWEN_INT8};
#define N_DTYPES (sizeof(all_dtypes) / sizeof(all_dtypes[0]))

static void
check_heads(const qwen_heads *heads, size_t n, bool norms, int32_t longest)
{
	for (size_t h = 0; h < n; h++)
		for (size_t d = 0; d < N_DTYPES; d++)
			check_attention(&(attention_case){heads[h], norms, all_dtypes[d], longest, 2});
}

static void
long_sequences_agree(void **state)
{
	static const qwen_heads heads[] = {
		{4, 2, 32, 32, 1e-6f},
		{3, 1, 20, 20, 1e-6f},
		{1, 1, 128, 128, 1e-6f},
		{7, 1, 8, 8, 1e-6f},
	};

	check_heads(heads, sizeof(heads) / sizeof(heads[0]), true, MAX_TOKENS);
}

static void
odd_heads_and_groups_agree(void **state)
{
	static const qwen_heads heads[] = {
		{1, 1, 1, 0, 1e-6f},   {2, 2, 2, 2, 1e-6f},    {2, 1, 42, 18, 1e-6f},  {5, 1, 33, 32, 1e-6f},
		{6, 2, 64, 64, 1e-6f}, {8, 2, 16, 16, 1e-6f},  {12, 2, 17, 8, 1e-6f},  {8, 1, 80, 80, 1e-6f},
		{9, 1, 31, 30, 1e-6f}, {64, 1, 8, 8, 1e-6f},   {17, 1, 24, 24, 1e-6f}, {2, 1, 512, 512, 1e-6f},
		{4, 4, 96, 96, 1e-6f}, {3, 1, 256, 64, 1e-6f},
	};

	check_heads(heads, sizeof(heads) / sizeof(heads[0]), false, 70);
	check_heads(heads, sizeof(heads) / sizeof(heads[0]), true, 20);
}

static const set_test set_tests[] = {
	{"long sequences agree, whole and in parts", long_sequences_agree},
	{"odd heads and groups agree, whole and in parts", odd_heads_and_groups_agree},
};

int
main(void)
{
	static test_list list;

	return run_sets("attention", &list, set_tests, sizeof(set_tests) / sizeof(set_tests[0]));
}
