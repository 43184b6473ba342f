/*
 * test_ops_device.c
 *	  What devices of a CUDA plug-in do for each other and over time: copies,
 *	  sums, stretches that are recorded and repeated, and how they fail.
 *
 * Several devices are opened on one GPU, as for a plan of several logical
 * devices, and over all GPUs when there is more than one.
 */
#include "gpu_sets.h"

#define MAX_SHARDS 4

/* ---- copies ---- */

static void
check_copy(qwen_device *to, qwen_device *from, size_t n)
{
	float *x = keep_random(n, 1), *back;
	float *src = device_floats(from, x, n), *dst = device_bytes(to, n * sizeof(float));

	assert_true(to->ops->copy(to, dst, from, src, n * sizeof(float)));
	/* queued behind the copy: it must not overtake it */
	fill_device(from, src, 0, n * sizeof(float));
	back = read_elements(to, dst, n, QWEN_F32);
	assert_memory_equal(back, x, n * sizeof(float));
	end_check("copy");
}

static int
visible_gpus(void)
{
	static qwen_cuda_device devices[64];
	char why[256];

	return count_gpus(devices, 64, why, sizeof(why));
}

static void
copies_arrive(void **state)
{
	qwen_device *other = new_device(visible_gpus() > 1, "cuda:b", act, small_needs());

	for (size_t n = 1; n <= (3 << 20); n = 9 * n + 4)
	{
		check_copy(other, dev, n);
		check_copy(dev, other, n);
		check_copy(dev, ref, n);
		check_copy(ref, dev, n);
	}
	end_device(other);
}

/* A copy waits for what is queued on the source, and what follows on the destination for the copy. */
static void
copies_keep_the_order(void **state)
{
	const size_t n = 5120;
	qwen_device *other = new_device(0, "cuda:b", act, small_needs());
	float *x = keep_random(n, 1), *delta = keep_activations(n, 1), *d_x = device_floats(dev, x, n);
	float *d_y = device_bytes(other, n * sizeof(float));
	void *d_delta = device_activations(dev, delta, n, n), *d_delta2 = device_activations(other, delta, n, n);

	announce(dev, 1, false);
	announce(other, 1, false);
	dev->ops->add(dev, d_x, d_delta, 1, (int64_t) n);
	assert_true(other->ops->copy(other, d_y, dev, d_x, n * sizeof(float)));
	other->ops->add(other, d_y, d_delta2, 1, (int64_t) n);
	dev->ops->add(dev, d_x, d_delta, 1, (int64_t) n);
	ref->ops->add(ref, x, delta, 1, (int64_t) n);
	ref->ops->add(ref, x, delta, 1, (int64_t) n);
	compare("copied", x, read_elements(other, d_y, n, QWEN_F32), n, 0);
	compare("source", x, read_elements(dev, d_x, n, QWEN_F32), n, 0);
	end_check("order");
	end_device(other);
}

/* ---- sums ---- */

typedef struct shards
{
	int n;
	qwen_device *devs[MAX_SHARDS];
} shards;

/* On one GPU, or one after the other on those that there are. */
static shards
open_shards(int n, int gpus)
{
	shards s = {.n = n};

	for (int i = 0; i < n; i++)
	{
		char name[16];

		snprintf(name, sizeof(name), "cuda:%d", i);
		s.devs[i] = new_device(i % gpus, name, act, small_needs());
	}
	assert_true(s.devs[0]->ops->join(s.devs, n));
	return s;
}

static void
close_shards(shards *s)
{
	for (int i = 0; i < s->n; i++)
		end_device(s->devs[i]);
}

/* Sums of activations, or of the residual stream; every shard has the same bits after it. */
static void
check_sum(const shards *s, size_t count, bool resid)
{
	float *want = keep_poisoned(count), *first = NULL;
	void *d_x[MAX_SHARDS];

	memset(want, 0, count * sizeof(float));
	for (int i = 0; i < s->n; i++)
	{
		float *x = resid ? keep_random(count, 1) : keep_activations(count, 1);

		for (size_t j = 0; j < count; j++)
			want[j] += x[j];
		d_x[i] = device_elements(s->devs[i], x, count, count, resid ? QWEN_F32 : act);
	}
	if (resid)
		assert_true(s->devs[0]->ops->sum_resid(s->devs, (float *const *) d_x, s->n, (int64_t) count));
	else
		assert_true(s->devs[0]->ops->sum(s->devs, d_x, s->n, (int64_t) count));
	for (int i = 0; i < s->n; i++)
	{
		float *got = read_elements(s->devs[i], d_x[i], count, resid ? QWEN_F32 : act);

		/* NCCL rounds after each shard */
		compare(resid ? "sum_resid" : "sum", want, got, count, resid ? 1e-6f : (float) s->n * unit_of(act) + 1e-6f);
		first = i == 0 ? got : first;
		assert_memory_equal(first, got, count * sizeof(float));
	}
	end_check("sum");
}

static void
check_sums(int n, int gpus)
{
	shards s = open_shards(n, gpus);

	for (size_t count = 1; count <= 70000; count = 8 * count + 5)
	{
		check_sum(&s, count, false);
		check_sum(&s, count, true);
	}
	close_shards(&s);
}

static void
shards_on_one_gpu_add_up(void **state)
{
	check_sums(2, 1);
	check_sums(4, 1);
}

static void
shards_on_several_gpus_add_up(void **state)
{
	int gpus = visible_gpus();

	if (gpus < 2)
	{
		fprintf(stderr, "# SKIPPED: there is one GPU\n");
		return;
	}
	check_sums(2, 2);
	check_sums(4, gpus < 4 ? gpus : 4);
}

/* ---- stretches that are repeated ---- */

#define SEQS 6
#define BLOCKS_PER_SEQ 40
#define LAYERS 2

/* A small model's layers on a device; both devices of a check have the same weights. */
typedef struct small_model
{
	qwen_device *on;
	qwen_matrix embed, qkv, o;
	float *norm, *rope;
	float *resid;             /* [SEQS, h], room for a filled-up step */
	void *normed, *x, *y, *z; /* [SEQS, h], [SEQS, width], [SEQS, n_q * dim], [SEQS, h] */
	qwen_kv_layer kv[LAYERS];
	int repeated; /* times that the device repeated the stretch by itself */
} small_model;

static const qwen_heads model_heads = {4, 2, 64, 64, 1e-6f};
#define MODEL_H 96
#define MODEL_WIDTH ((4 + 2 * 2) * 64)

static small_model
make_model(qwen_device *on, const float *w, const float *rope)
{
	size_t kv_bytes = SEQS * BLOCKS_PER_SEQ * on->ops->kv_block_bytes(on, act, &model_heads);
	size_t width = on->act_bytes * MAX_ROWS;
	small_model m = {
		.on = on,
		.embed = device_matrix(on, act, MAX_ROWS, MODEL_H, w, act),
		.qkv = device_matrix(on, act, MODEL_WIDTH, MODEL_H, w, act),
		.o = device_matrix(on, act, MODEL_H, 4 * 64, w, act),
		.norm = device_floats(on, w, MODEL_H),
		.rope = device_floats(on, rope, BLOCKS_PER_SEQ * QWEN_KV_BLOCK * 64),
		.resid = device_bytes(on, sizeof(float) * MAX_ROWS * MODEL_H),
		.normed = device_bytes(on, width * MODEL_H),
		.x = device_bytes(on, width * MODEL_WIDTH),
		.y = device_bytes(on, width * 4 * 64),
		.z = device_bytes(on, width * MODEL_H),
	};

	for (int i = 0; i < LAYERS; i++)
		m.kv[i] = (qwen_kv_layer){act, device_bytes(on, kv_bytes), device_bytes(on, kv_bytes), SEQS * BLOCKS_PER_SEQ};
	return m;
}

/* The layers, as a stretch of that number or, negative, plainly. */
static void
run_layers(small_model *m, const qwen_batch *batch, int segment)
{
	const qwen_ops *ops = m->on->ops;
	int32_t n = batch->n_tokens;

	if (segment >= 0 && !ops->segment_begin(m->on, segment))
	{
		m->repeated++;
		return;
	}
	for (int i = 0; i < LAYERS; i++)
	{
		ops->add_rmsnorm(m->on, m->normed, m->resid, i ? m->z : NULL, m->norm, n, MODEL_H, 1e-6f);
		ops->linear(m->on, m->x, &m->qkv, NULL, m->normed, n);
		ops->qk_rope_store(m->on, m->x, NULL, NULL, m->rope, &model_heads, &m->kv[i], batch);
		ops->attention(m->on, m->y, m->x, &model_heads, &m->kv[i], batch);
		ops->linear(m->on, m->z, &m->o, NULL, m->y, n);
	}
	ops->add(m->on, m->resid, m->z, n, MODEL_H);
	if (segment >= 0)
		ops->segment_end(m->on);
}

/* A step of n sequences: their next token, or their first `prompt` ones. */
typedef struct model_step
{
	qwen_batch batch;
	qwen_batch_seq seqs[SEQS];
	int32_t tokens[MAX_ROWS], positions[MAX_ROWS], blocks[SEQS][BLOCKS_PER_SEQ], last;
} model_step;

static void
next_model_step(model_step *st, int n, int32_t *context, int32_t prompt)
{
	st->batch = (qwen_batch){0, st->tokens, st->positions, n, st->seqs, 1, &st->last};
	for (int s = 0; s < n; s++)
	{
		st->seqs[s] = (qwen_batch_seq){st->batch.n_tokens, prompt, context[s] + prompt, st->blocks[s]};
		for (int b = 0; b < BLOCKS_PER_SEQ; b++)
			st->blocks[s][b] = (b * SEQS + s) * 7 % (SEQS * BLOCKS_PER_SEQ);
		for (int32_t i = 0; i < prompt; i++)
		{
			st->positions[st->batch.n_tokens] = context[s]++;
			st->tokens[st->batch.n_tokens++] =
				(int32_t) (random_state = random_state * 1664525u + 1013904223u) >> 8 & 63;
		}
	}
	st->last = st->batch.n_tokens - 1;
}

/* A step on both; the residual streams have the same bits. */
static void
check_model_step(small_model *plain, small_model *recorded, const qwen_batch *batch, int segment)
{
	size_t n = (size_t) batch->n_tokens * MODEL_H;
	small_model *both[] = {plain, recorded};
	float *got[2];

	for (int i = 0; i < 2; i++)
	{
		qwen_device *on = both[i]->on;

		assert_true(on->ops->step(on, batch));
		on->ops->embed(on, both[i]->resid, &both[i]->embed, batch->tokens, batch->n_tokens);
		run_layers(both[i], batch, i ? segment : -1);
		got[i] = read_elements(on, both[i]->resid, n, QWEN_F32);
		assert_true(on->ops->synchronize(on));
	}
	for (size_t i = 0; i < n; i++)
		if (!isfinite(got[0][i]) || memcmp(&got[0][i], &got[1][i], sizeof(float)) != 0)
			fail_msg("%d rows, stretch %d: element %zu is %g recorded and %g plainly", batch->n_tokens, segment, i,
					 (double) got[1][i], (double) got[0][i]);
}

/* Prompts, then steps of several numbers of sequences in turn, over the border of a split. */
static void
recorded_stretches_give_the_same(void **state)
{
	static const int counts[] = {3, 3, 1, 6, 3, 5, 6, 1, 2};
	static model_step st;
	qwen_device *other = new_device(0, "cuda:b", act, small_needs());
	float *w = keep_activations(MODEL_WIDTH * MODEL_H, 0.2f);
	float *rope = keep_random(BLOCKS_PER_SEQ * QWEN_KV_BLOCK * 64, 1);
	small_model plain = make_model(dev, w, rope), recorded = make_model(other, w, rope);
	int32_t context[SEQS] = {0};

	for (int i = 0; i < 19; i++) /* to 247 tokens */
	{
		next_model_step(&st, SEQS, context, 13);
		check_model_step(&plain, &recorded, &st.batch, 0);
	}
	assert_int_equal(recorded.repeated, 0); /* prompts never are */
	for (int i = 0; i < 27; i++)
	{
		next_model_step(&st, counts[i % 9], context, 1);
		check_model_step(&plain, &recorded, &st.batch, i % 4 == 3);
	}
	assert_true(recorded.repeated > 0);
	end_check("stretches");
	end_device(other);
}

/* ---- failure ---- */

static void
no_such_gpu_is_refused(void **state)
{
	char why[256] = "";

	assert_null(open_gpu(4711, "cuda:4711", act, why, sizeof(why)));
	assert_true(why[0] != '\0');
	assert_true(dev->ops->synchronize(dev));
}

/* A step beyond what the device was told is its end: everything later says so, and does nothing. */
static void
a_failed_device_stays_failed(void **state)
{
	qwen_device *other = new_device(0, "cuda:b", act, small_needs());
	float x = 1;
	float *d_x = device_floats(other, &x, 1), *d_y = device_floats(dev, &x, 1);
	qwen_batch batch = *announce(other, 1, false);

	batch.n_tokens = MAX_ROWS + 1;
	assert_false(other->ops->step(other, &batch));
	assert_false(other->ops->synchronize(other));
	other->ops->add(other, d_x, d_x, 1, 1);
	assert_false(other->ops->upload(other, d_x, &x, sizeof(x)));
	assert_false(other->ops->download(other, &x, d_x, sizeof(x)));
	assert_false(other->ops->synchronize(other));
	assert_true(dev->ops->synchronize(dev));
	assert_true(read_elements(dev, d_y, 1, QWEN_F32)[0] == 1);
	release_all(); /* a failed device shows no guards */
	end_device(other);
}

static const set_test tests[] = {
	{"copies arrive", copies_arrive},
	{"copies keep the order", copies_keep_the_order},
	{"shards on one GPU add up", shards_on_one_gpu_add_up},
	{"shards on several GPUs add up", shards_on_several_gpus_add_up},
	{"recorded stretches give the same", recorded_stretches_give_the_same},
	{"no such GPU is refused", no_such_gpu_is_refused},
	{"a failed device stays failed", a_failed_device_stays_failed},
};

int
main(int argc, char **argv)
{
	return run_on_gpu(argc, argv, "devices", tests, sizeof(tests) / sizeof(tests[0]));
}
