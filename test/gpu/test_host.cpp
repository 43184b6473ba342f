/*
 * test_host.cpp
 *	  Steps: what the kernels find of a batch on the device, and stretches
 *	  that are recorded and repeated.
 */
#include "test_host.h"

#include <algorithm>
#include <set>

/* ---- batches ---- */

static const qwen_needs usual = {
	.rows = 300,
	.k = 64,
	.logit_rows = 24,
	.head_k = 64,
	.vocab = 100,
	.sequences = 24,
	.blocks = 400,
	.n_q = 2,
	.dim = 64,
};

/* Types of this file alone: linked with the plug-in, a template must not take another file's for its own. */
namespace
{
typedef struct part
{
	int32_t rows;
	int32_t context;
} part;

/* A batch and what it points to. */
typedef struct made_batch
{
	std::vector<int32_t> tokens, positions, logit_rows;
	std::vector<std::vector<int32_t>> blocks;
	std::vector<qwen_batch_seq> seqs;
	qwen_batch batch;
} made_batch;
} // namespace

/* Every value is different, and others for every salt. The last row of each sequence wants logits. */
static void
make(made_batch *m, const std::vector<part> &parts, int32_t salt)
{
	*m = made_batch();
	for (const part &p : parts)
	{
		std::vector<int32_t> blocks;
		int32_t s = (int32_t) m->seqs.size();

		for (int32_t b = 0; b < (p.context + QWEN_KV_BLOCK - 1) / QWEN_KV_BLOCK; b++)
			blocks.push_back(salt + 1000 * s + b);
		m->blocks.push_back(blocks);
		m->seqs.push_back({(int32_t) m->tokens.size(), p.rows, p.context, NULL});
		for (int32_t r = 0; r < p.rows; r++)
		{
			m->tokens.push_back(salt + (int32_t) m->tokens.size());
			m->positions.push_back(p.context - p.rows + r);
		}
		m->logit_rows.push_back((int32_t) m->tokens.size() - 1);
	}
	for (size_t s = 0; s < parts.size(); s++)
		m->seqs[s].blocks = m->blocks[s].data();
	m->batch = {(int32_t) m->tokens.size(), m->tokens.data(), m->positions.data(),
				(int32_t) m->seqs.size(),   m->seqs.data(),   (int32_t) m->logit_rows.size(),
				m->logit_rows.data()};
}

static void
check_rows(qwen_device *dev, const made_batch *m)
{
	const cuda_batch *b = &cuda_of(dev)->batch;
	size_t n = m->tokens.size(), rows = (size_t) b->rows;
	std::vector<int32_t> tokens = fetch(dev, b->tokens, rows), positions = fetch(dev, b->positions, rows),
						 row_seq = fetch(dev, b->row_seq, rows),
						 logit_rows = fetch(dev, b->logit_rows, m->logit_rows.size());

	for (size_t t = 0; t < rows; t++)
	{
		assert_int_equal(tokens[t], t < n ? m->tokens[t] : 0);
		assert_int_equal(positions[t], t < n ? m->positions[t] : 0);
		if (t >= n)
			assert_int_equal(row_seq[t], -1);
	}
	for (size_t s = 0; s < m->seqs.size(); s++)
		for (int32_t r = 0; r < m->seqs[s].n_tokens; r++)
			assert_int_equal(row_seq[(size_t) (m->seqs[s].first_token + r)], s);
	assert_true(logit_rows == m->logit_rows);
}

static void
check_sequences(qwen_device *dev, const made_batch *m)
{
	const cuda_batch *b = &cuda_of(dev)->batch;
	std::vector<cuda_seq> seqs = fetch(dev, b->seqs, (size_t) b->n_seqs);

	for (size_t s = 0; s < seqs.size(); s++)
	{
		if (s >= m->seqs.size())
		{
			assert_int_equal(seqs[s].context, 0);
			assert_int_equal(seqs[s].n_rows, 0);
			continue;
		}
		assert_int_equal(seqs[s].first_row, m->seqs[s].first_token);
		assert_int_equal(seqs[s].n_rows, m->seqs[s].n_tokens);
		assert_int_equal(seqs[s].context, m->seqs[s].context);
		assert_true(fetch(dev, b->blocks + seqs[s].blocks, m->blocks[s].size()) == m->blocks[s]);
	}
}

/* Each row of a sequence is either on the decode list or in one tile; long work comes first. */
static void
check_work(qwen_device *dev, const made_batch *m)
{
	const cuda_batch *b = &cuda_of(dev)->batch;
	std::vector<int32_t> decode = fetch(dev, b->decode, (size_t) b->n_decode), expected;
	std::vector<int> times(m->tokens.size());
	int32_t before = INT32_MAX;

	for (size_t s = 0; s < m->seqs.size(); s++)
		if (m->seqs[s].n_tokens == 1)
			expected.push_back((int32_t) s);
	for (int32_t s : expected)
		times[(size_t) m->seqs[(size_t) s].first_token]++;
	expected.resize(decode.size(), -1);
	assert_true(decode == expected);

	for (const cuda_tile &t : fetch(dev, b->tiles, (size_t) b->n_tiles))
	{
		const qwen_batch_seq *seq = &m->seqs[(size_t) t.seq];
		int32_t context = seq->context - seq->n_tokens + t.first + t.n;

		assert_in_range(t.n, 1, CUDA_TILE_ROWS);
		assert_true(t.first >= 0 && t.first + t.n <= seq->n_tokens);
		assert_true(context <= before);
		before = context;
		for (int32_t r = 0; r < t.n; r++)
			times[(size_t) (seq->first_token + t.first + r)]++;
	}
	assert_int_equal(std::count(times.begin(), times.end(), 1), times.size());
}

static void
check_step(qwen_device *dev, const made_batch *m)
{
	check_rows(dev, m);
	check_sequences(dev, m);
	check_work(dev, m);
}

/* ---- sizes ---- */

static void
test_buckets(void **)
{
	static const int32_t expected[] = {1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024};
	std::set<int32_t> seen;

	for (int32_t n = 1, before = 1; n <= 1024; n++)
	{
		int32_t bucket = cuda_bucket(n, 4096);

		assert_true(bucket >= n && bucket >= before && bucket < 2 * n);
		assert_int_equal(cuda_bucket(bucket, 4096), bucket);
		seen.insert(bucket);
		before = bucket;
	}
	assert_int_equal(seen.size(), sizeof(expected) / sizeof(expected[0]));
	for (int32_t bucket : expected)
		assert_int_equal(seen.count(bucket), 1);
}

static void
test_buckets_are_bounded(void **)
{
	assert_int_equal(cuda_bucket(5, 7), 7);
	assert_int_equal(cuda_bucket(5, 5), 5);
	assert_int_equal(cuda_bucket(100, 100), 100);
	assert_int_equal(cuda_bucket(60, 100), 64);
	assert_int_equal(cuda_bucket(INT32_MAX, INT32_MAX), INT32_MAX);
}

static void
test_splits(void **)
{
	assert_int_equal(cuda_splits(1), 1);
	assert_int_equal(cuda_splits(CUDA_SPLIT_TOKENS), 1);
	assert_int_equal(cuda_splits(CUDA_SPLIT_TOKENS + 1), 2);
	assert_int_equal(cuda_splits(CUDA_SPLIT_TOKENS * CUDA_MAX_SPLITS), CUDA_MAX_SPLITS);
	assert_int_equal(cuda_splits(CUDA_SPLIT_TOKENS * CUDA_MAX_SPLITS + 1), CUDA_MAX_SPLITS);
	assert_int_equal(cuda_splits(1 << 20), CUDA_MAX_SPLITS);
}

/* ---- what is on the device ---- */

static void
test_decode_step(void **)
{
	qwen_device *dev = open_device(0, "cuda:0", &usual);
	const cuda_batch *b = &cuda_of(dev)->batch;
	made_batch m;

	make(&m, {{1, 7}, {1, 600}, {1, 1}, {1, 16}, {1, 17}}, 5000);
	assert_true(dev->ops->step(dev, &m.batch));
	assert_true(b->decode_step);
	assert_int_equal(b->n_tokens, 5);
	assert_int_equal(b->rows, 8);
	assert_int_equal(b->n_decode, 8);
	assert_int_equal(b->n_tiles, 0);
	assert_int_equal(b->n_splits, 4); /* 600 tokens have three */
	assert_int_equal(cuda_rows(dev, 5), 8);
	assert_int_equal(cuda_rows(dev, 3), 3);
	check_step(dev, &m);
	assert_true(dev->ops->synchronize(dev));
	assert_int_equal(cuda_rows(dev, 5), 5); /* outside a step it is a number like any other */
	close_device(dev);
}

/* All that stands in front of the block numbers lies where it lay, whatever the sequences of a bucket are. */
static void
test_places_follow_from_the_bucket(void **)
{
	qwen_device *dev = open_device(0, "cuda:0", &usual);
	made_batch m;
	cuda_batch first;

	make(&m, {{1, 7}, {1, 30}, {1, 90}, {1, 2}, {1, 5}}, 0);
	assert_true(dev->ops->step(dev, &m.batch));
	first = cuda_of(dev)->batch;
	make(&m, {{1, 200}, {1, 1}, {1, 1}, {1, 2}, {1, 5}, {1, 80}, {1, 81}, {1, 82}}, 100);
	m.batch.n_logits = 3;
	m.logit_rows.resize(3);
	assert_true(dev->ops->step(dev, &m.batch));
	assert_ptr_equal(cuda_of(dev)->batch.seqs, first.seqs);
	assert_ptr_equal(cuda_of(dev)->batch.decode, first.decode);
	assert_ptr_equal(cuda_of(dev)->batch.tokens, first.tokens);
	assert_ptr_equal(cuda_of(dev)->batch.positions, first.positions);
	assert_ptr_equal(cuda_of(dev)->batch.row_seq, first.row_seq);
	assert_ptr_equal(cuda_of(dev)->batch.logit_rows, first.logit_rows);
	assert_ptr_equal(cuda_of(dev)->batch.blocks, first.blocks);
	check_step(dev, &m);
	close_device(dev);
}

static void
test_prefill(void **)
{
	qwen_device *dev = open_device(0, "cuda:0", &usual);
	const cuda_batch *b = &cuda_of(dev)->batch;
	made_batch m;

	make(&m, {{130, 400}, {64, 64}, {2, 900}}, 70);
	assert_true(dev->ops->step(dev, &m.batch));
	assert_false(b->decode_step);
	assert_int_equal(b->rows, 196);
	assert_int_equal(b->n_decode, 0);
	assert_int_equal(b->n_tiles, 5);
	assert_int_equal(cuda_rows(dev, 196), 196);
	check_step(dev, &m);
	close_device(dev);
}

static void
test_mixed(void **)
{
	qwen_device *dev = open_device(0, "cuda:0", &usual);
	const cuda_batch *b = &cuda_of(dev)->batch;
	made_batch m;

	make(&m, {{1, 1300}, {65, 65}, {1, 3}, {63, 700}, {1, 256}}, 900);
	assert_true(dev->ops->step(dev, &m.batch));
	assert_false(b->decode_step);
	assert_int_equal(b->rows, 131);
	assert_int_equal(b->n_decode, 3);
	assert_int_equal(b->n_tiles, 3);
	assert_int_equal(b->n_splits, 6);
	check_step(dev, &m);
	close_device(dev);
}

/* As many of everything as the needs say. */
static void
test_largest_steps(void **)
{
	qwen_needs needs = usual;
	std::vector<part> parts;
	qwen_device *dev;
	made_batch m;

	needs.rows = needs.sequences = needs.logit_rows = 17;
	needs.blocks = 17 * 3;
	dev = open_device(0, "cuda:0", &needs);
	for (int i = 0; i < 17; i++)
		parts.push_back({1, 48});
	make(&m, parts, 1);
	assert_true(dev->ops->step(dev, &m.batch));
	assert_int_equal(cuda_of(dev)->batch.rows, 17);
	check_step(dev, &m);
	make(&m, {{17, 51 * 16}}, 2);
	assert_true(dev->ops->step(dev, &m.batch));
	check_step(dev, &m);
	close_device(dev);
}

/* The piece of a step is written while those before it wait in the queue. */
static void
test_steps_do_not_overwrite_each_other(void **)
{
	qwen_device *dev = open_device(0, "cuda:0", &usual);
	int32_t *d_seen = (int32_t *) dev->ops->alloc(dev, 6 * sizeof(int32_t));
	std::vector<int32_t> seen;

	for (int32_t i = 0; i < 6; i++)
	{
		made_batch m;

		make(&m, {{1, 10 + i}}, 100 * i + 1);
		assert_true(dev->ops->step(dev, &m.batch));
		assert_true(dev->ops->copy(dev, d_seen + i, dev, cuda_of(dev)->batch.tokens, sizeof(int32_t)));
	}
	seen = fetch(dev, d_seen, 6);
	for (int32_t i = 0; i < 6; i++)
		assert_int_equal(seen[(size_t) i], 100 * i + 1);
	dev->ops->free(dev, d_seen, 6 * sizeof(int32_t));
	close_device(dev);
}

/* A device with the embedding or the head alone has no room for what only layers read. */
static void
test_devices_without_layers_or_head(void **)
{
	qwen_needs needs = usual;
	qwen_device *dev;
	made_batch m;

	needs.sequences = 0;
	needs.blocks = 0;
	needs.n_q = needs.dim = 0;
	make(&m, {{1, 7}, {1, 600}, {1, 9}}, 11);
	dev = open_device(0, "cuda:0", &needs);
	assert_true(dev->ops->step(dev, &m.batch));
	assert_false(cuda_of(dev)->batch.decode_step);
	assert_int_equal(cuda_rows(dev, 3), 3);
	assert_true(fetch(dev, cuda_of(dev)->batch.tokens, 3) == m.tokens);
	assert_true(fetch(dev, cuda_of(dev)->batch.logit_rows, 3) == m.logit_rows);
	close_device(dev);

	needs = usual;
	needs.logit_rows = 0;
	dev = open_device(0, "cuda:0", &needs);
	assert_true(dev->ops->step(dev, &m.batch));
	check_sequences(dev, &m);
	check_work(dev, &m);
	close_device(dev);
}

/* A step that the device was not prepared for ends it, and says what was too much. */
static void
refused(const std::vector<part> &parts, void (*spoil)(made_batch *), const char *reason)
{
	qwen_needs needs = usual;
	qwen_device *dev;
	const char *log;
	made_batch m;

	needs.rows = 40;
	needs.sequences = 5;
	needs.logit_rows = 3;
	needs.blocks = 9;
	dev = open_device(0, "cuda:0", &needs);
	make(&m, parts, 1);
	m.batch.n_logits = 1;
	if (spoil)
		spoil(&m);
	listen_to_log();
	assert_false(dev->ops->step(dev, &m.batch));
	log = heard_in_log();
	if (strstr(log, "qwen-engine: cuda:0: a step is beyond") == NULL || strstr(log, reason) == NULL)
		fail_msg("\"%s\" and not \"%s\"", log, reason);
	assert_false(dev->ops->synchronize(dev));
	close_device(dev);
}

static void
test_steps_beyond_the_needs(void **)
{
	refused({{41, 41}}, NULL, ": rows: 41, at most 40");
	refused({{1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, NULL, ": sequences: 6, at most 5");
	refused({{1, 145}}, NULL, ": blocks: 10, at most 9");
	refused({{5, 4}}, NULL, "ends before them: 5, at most 4");
	refused(
		{{1, 1}}, [](made_batch *m) { m->batch.n_logits = 4; }, ": rows of logits: 4, at most 3");
	refused(
		{{1, 1}}, [](made_batch *m) { m->batch.n_logits = -1; }, ": rows of logits: -1");
	refused(
		{{1, 1}}, [](made_batch *m) { m->batch.n_tokens = 0; }, ": rows: 0");
	refused(
		{{4, 4}}, [](made_batch *m) { m->seqs[0].n_tokens = 5; }, "rows of a sequence: 5, at most 4");
	refused(
		{{4, 4}}, [](made_batch *m) { m->seqs[0].n_tokens = 0; }, "rows of a sequence: 0");
	refused(
		{{4, 4}}, [](made_batch *m) { m->seqs[0].n_tokens = 3; }, "rows of no sequence: 1");
	refused(
		{{4, 4}, {3, 3}}, [](made_batch *m) { m->seqs[1].first_token = 5; }, "rows of a sequence: 3");
	refused(
		{{1, 1}}, [](made_batch *m) { m->batch.n_seqs = 0; }, ": sequences: 0");
}

/* ---- recordings ---- */

/* out[t] = 3 token + context of the row's sequence, -1 of rows of none; counts its runs. */
static __global__ void
probe(int32_t *out, int32_t *runs, const int32_t *tokens, const int32_t *row_seq, const cuda_seq *seqs)
{
	int t = (int) threadIdx.x;

	out[t] = row_seq[t] < 0 ? -1 : 3 * tokens[t] + seqs[row_seq[t]].context;
	if (t == 0)
		runs[0]++;
}

/* A device with a stretch that consists of the probe. */
typedef struct recorder
{
	qwen_device *dev;
	int32_t *d_out; /* [usual.rows] */
	int32_t *d_runs;
	int32_t runs; /* expected */
} recorder;

static recorder
start_recorder(void)
{
	recorder r = {open_device(0, "cuda:0", &usual), NULL, NULL, 0};

	r.d_out = send(r.dev, std::vector<int32_t>((size_t) usual.rows));
	r.d_runs = send(r.dev, std::vector<int32_t>(1));
	return r;
}

static void
end_recorder(recorder *r)
{
	r->dev->ops->free(r->dev, r->d_out, 0);
	r->dev->ops->free(r->dev, r->d_runs, 0);
	close_device(r->dev);
}

static void
launch_probe(recorder *r)
{
	const cuda_batch *b = &cuda_of(r->dev)->batch;

	CUDA_LAUNCH(probe, 1, (unsigned) b->rows, 0, cuda_of(r->dev)->stream, r->d_out, r->d_runs, b->tokens, b->row_seq,
				b->seqs);
	cuda_launched(r->dev, "probe");
}

/* One step with one stretch, whose result must be right however it came about. True: the operations had to be given. */
static bool
run_stretch(recorder *r, int id, const std::vector<part> &parts, int32_t salt)
{
	qwen_device *dev = r->dev;
	std::vector<int32_t> out;
	made_batch m;
	bool given;

	make(&m, parts, salt);
	assert_true(dev->ops->step(dev, &m.batch));
	given = dev->ops->segment_begin(dev, id);
	if (given)
	{
		launch_probe(r);
		dev->ops->segment_end(dev);
	}
	out = fetch(dev, r->d_out, (size_t) cuda_of(dev)->batch.rows);
	for (size_t t = 0; t < out.size(); t++)
		if (t >= m.tokens.size())
			assert_int_equal(out[t], -1);
		else
			for (const qwen_batch_seq &seq : m.seqs)
				if ((int32_t) t >= seq.first_token && (int32_t) t < seq.first_token + seq.n_tokens)
					assert_int_equal(out[t], 3 * m.tokens[t] + seq.context);
	assert_int_equal(fetch(dev, r->d_runs, 1)[0], ++r->runs);
	assert_true(dev->ops->synchronize(dev));
	return given;
}

/* Given when it is new, given again while it is recorded, then never again. */
static void
test_stretch_is_repeated(void **)
{
	recorder r = start_recorder();

	assert_true(run_stretch(&r, 0, {{1, 7}, {1, 30}, {1, 5}}, 10));
	assert_true(run_stretch(&r, 0, {{1, 8}, {1, 31}, {1, 6}}, 200));
	assert_false(run_stretch(&r, 0, {{1, 9}, {1, 32}, {1, 7}}, 3000));
	assert_false(run_stretch(&r, 0, {{1, 10}, {1, 33}, {1, 8}, {1, 100}}, 40000));
	assert_false(run_stretch(&r, 0, {{1, 1}, {1, 2}, {1, 256}}, 7));
	end_recorder(&r);
}

/* Rows, splits and the stretch itself: each makes another recording, and the old ones stay. */
static void
test_keys(void **)
{
	recorder r = start_recorder();
	static const struct
	{
		int id;
		std::vector<part> parts;
	} keys[] = {
		{0, {{1, 7}}}, {1, {{1, 7}}}, {0, {{1, 7}, {1, 7}}}, {0, {{1, 257}}}, {QWEN_MAX_SEGMENTS - 1, {{1, 600}}},
	};

	for (int round = 0; round < 4; round++)
		for (const auto &key : keys)
			assert_int_equal(run_stretch(&r, key.id, key.parts, 100 * round), round < 2);
	end_recorder(&r);
}

static void
test_other_steps_are_not_recorded(void **)
{
	recorder r = start_recorder();

	for (int i = 0; i < 4; i++)
	{
		assert_true(run_stretch(&r, 0, {{5, 7}}, 10));
		assert_true(run_stretch(&r, 0, {{1, 7}, {2, 7}}, 10));
	}
	end_recorder(&r);
}

/* A device that waits for partners within its stretches cannot be recorded by itself. */
static void
test_partners_are_not_recorded(void **)
{
	recorder r = start_recorder();
	qwen_device *devs[] = {r.dev, open_device(0, "cuda:0.1", &usual)};

	assert_true(r.dev->ops->join(devs, 2));
	for (int i = 0; i < 4; i++)
		assert_true(run_stretch(&r, 0, {{1, 7}}, 10));
	close_device(devs[1]);
	end_recorder(&r);
}

/* More keys than are kept: those that have not been used for long are recorded anew, one that is in use stays. */
static void
test_kept_recordings_are_bounded(void **)
{
	static const std::vector<part> rows[] = {
		{{1, 3}}, {{1, 3}, {1, 4}}, {{1, 3}, {1, 4}, {1, 5}}, {{1, 300}}, {{1, 300}, {1, 4}},
	};
	recorder r = start_recorder();
	int given = 0;

	for (const std::vector<part> &parts : rows)
		for (int id = 1; id < QWEN_MAX_SEGMENTS; id++)
		{
			assert_true(run_stretch(&r, id, parts, 1 + id));
			assert_true(run_stretch(&r, id, parts, 2 + id));
			given += run_stretch(&r, 0, rows[0], 3 + id);
		}
	assert_int_equal(given, 2);
	assert_false(run_stretch(&r, 1, rows[4], 5));
	assert_true(run_stretch(&r, 1, rows[0], 6));
	assert_true(run_stretch(&r, 1, rows[0], 7));
	assert_false(run_stretch(&r, 1, rows[0], 8));
	end_recorder(&r);
}

static void
test_full_gpu_records_nothing(void **)
{
	recorder r = start_recorder();
	size_t left = 0, total = 0, taken;
	const char *log;
	void *p;

	assert_int_equal(cudaMemGetInfo(&left, &total), cudaSuccess);
	taken = left - ((size_t) 32 << 20);
	p = r.dev->ops->alloc(r.dev, taken);
	assert_non_null(p);
	listen_to_log();
	for (int i = 0; i < 4; i++)
		assert_true(run_stretch(&r, 0, {{1, 7}}, 10 + i));
	log = heard_in_log();
	assert_string_equal(log, "qwen-engine: cuda:0: too little memory is free to record steps\n");
	r.dev->ops->free(r.dev, p, taken);
	assert_true(run_stretch(&r, 0, {{1, 7}}, 50));
	assert_false(run_stretch(&r, 0, {{1, 7}}, 51));
	end_recorder(&r);
}

/* A queue that cannot be recorded, as when a tool forbids it: steps go on as they came, and that is told once. */
static void
test_device_that_cannot_record(void **)
{
	recorder r = start_recorder();
	cudaStream_t stream = cuda_of(r.dev)->stream;
	cudaGraph_t graph = NULL;
	const char *log;

	assert_true(run_stretch(&r, 0, {{1, 7}}, 1));
	listen_to_log();
	{
		made_batch m;

		make(&m, {{1, 7}}, 2);
		assert_true(r.dev->ops->step(r.dev, &m.batch));
		assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
		assert_true(r.dev->ops->segment_begin(r.dev, 0));
		r.dev->ops->segment_end(r.dev);
		assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
		assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
	}
	for (int i = 0; i < 4; i++)
		assert_true(run_stretch(&r, 0, {{1, 7}}, 3));
	log = heard_in_log();
	assert_non_null(strstr(log, "qwen-engine: cuda:0: steps are not recorded: "));
	assert_ptr_equal(strchr(log, '\n'), log + strlen(log) - 1);
	end_recorder(&r);
}

/* Operations that failed while they were recorded have not run: the device has failed, and its queue is usable. */
static void
test_broken_recording(void **)
{
	recorder r = start_recorder();
	const char *log;
	made_batch m;

	assert_true(run_stretch(&r, 0, {{1, 7}}, 1));
	make(&m, {{1, 7}}, 2);
	assert_true(r.dev->ops->step(r.dev, &m.batch));
	listen_to_log();
	assert_true(r.dev->ops->segment_begin(r.dev, 0));
	launch_probe(&r);
	(void) cudaStreamSynchronize(cuda_of(r.dev)->stream);
	r.dev->ops->segment_end(r.dev);
	assert_false(r.dev->ops->synchronize(r.dev));
	log = heard_in_log();
	assert_non_null(strstr(log, "qwen-engine: cuda:0: recording a step: "));
	assert_ptr_equal(strchr(log, '\n'), log + strlen(log) - 1);
	end_recorder(&r);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_buckets),
		cmocka_unit_test(test_buckets_are_bounded),
		cmocka_unit_test(test_splits),
		cmocka_unit_test(test_decode_step),
		cmocka_unit_test(test_places_follow_from_the_bucket),
		cmocka_unit_test(test_prefill),
		cmocka_unit_test(test_mixed),
		cmocka_unit_test(test_largest_steps),
		cmocka_unit_test(test_steps_do_not_overwrite_each_other),
		cmocka_unit_test(test_devices_without_layers_or_head),
		cmocka_unit_test(test_steps_beyond_the_needs),
		cmocka_unit_test(test_stretch_is_repeated),
		cmocka_unit_test(test_keys),
		cmocka_unit_test(test_other_steps_are_not_recorded),
		cmocka_unit_test(test_partners_are_not_recorded),
		cmocka_unit_test(test_kept_recordings_are_bounded),
		cmocka_unit_test(test_full_gpu_records_nothing),
		cmocka_unit_test(test_device_that_cannot_record),
		cmocka_unit_test(test_broken_recording),
	};

	return cmocka_run_group_tests_name("steps of the plug-in", tests, NULL, NULL);
}
