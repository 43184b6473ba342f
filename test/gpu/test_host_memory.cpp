/*
 * test_host_memory.cpp
 *	  What the plug-in does between the operations: opening, memory, copies,
 *	  sums over devices, errors.
 *
 * Emulated queues work as late as they may, so a copy that nobody waits for,
 * or whose source is overwritten too early, shows as wrong bytes.
 */
#include "test_host.h"

#include <random>
#include <thread>

#include <sys/wait.h>

static const qwen_needs usual = {
	.rows = 16,
	.k = 64,
	.logit_rows = 4,
	.head_k = 64,
	.vocab = 100,
	.sequences = 4,
	.blocks = 100,
	.n_q = 2,
	.dim = 64,
};

/* Bytes that tell where they are. */
static std::vector<uint8_t>
pattern(size_t n, uint32_t salt)
{
	std::vector<uint8_t> out(n);
	uint32_t x = salt * 2654435761u + 1;

	for (uint8_t &byte : out)
	{
		x = x * 1664525u + 1013904223u;
		byte = (uint8_t) (x >> 24);
	}
	return out;
}

/* ---- opening ---- */

static void
test_open(void **)
{
	char err[256] = "";
	qwen_device *dev = qwen_cuda_open(1, "cuda:1.3", QWEN_BF16, err, sizeof(err));

	assert_non_null(dev);
	assert_string_equal(dev->name, "cuda:1.3");
	assert_string_equal(dev->ops->name, "cuda");
	assert_false(dev->host);
	assert_int_equal(dev->act, QWEN_BF16);
	assert_int_equal(dev->act_bytes, 2);
	assert_int_equal(dev->n_threads, 1);
	assert_int_equal(dev->ops->scratch_bytes(dev, &usual), cuda_scratch_of(&usual).bytes);
	assert_int_equal(cuda_of(dev)->capability, 90);
	assert_true(cuda_of(dev)->n_sms > 0 && cuda_of(dev)->shared_bytes > 48 << 10);
	dev->ops->close(dev);
}

/* Every function of the table is there: the engine asks for none of them. */
static void
test_table_is_complete(void **)
{
	qwen_device *dev = open_device(0, "cuda:0", &usual);
	void *const *entries = (void *const *) dev->ops;

	for (size_t i = 0; i < sizeof(qwen_ops) / sizeof(void *); i++)
		assert_non_null(entries[i]);
	close_device(dev);
}

static void
test_open_refused(void **)
{
	char err[256] = "";

	assert_null(qwen_cuda_open(2, "cuda:2", QWEN_F32, err, sizeof(err)));
	assert_string_equal(err, "cuda:2 is not there: 2 GPUs are visible");
	assert_null(qwen_cuda_open(-1, "cuda:-1", QWEN_F32, err, sizeof(err)));
	assert_null(qwen_cuda_open(0, "cuda:0", QWEN_INT8, err, sizeof(err)));
	setenv("QWEN_EMULATED_GPU_BROKEN", "1", 1);
	assert_null(qwen_cuda_open(0, "cuda:0", QWEN_F32, err, sizeof(err)));
	unsetenv("QWEN_EMULATED_GPU_BROKEN");
	assert_non_null(strstr(err, "no CUDA devices: "));
}

/* Opening and closing gives back what it took. */
static void
test_close_gives_all_back(void **)
{
	size_t before = 0, after = 0, total = 0;

	assert_int_equal(cudaSetDevice(0), cudaSuccess);
	assert_int_equal(cudaMemGetInfo(&before, &total), cudaSuccess);
	for (int i = 0; i < 3; i++)
		close_device(open_device(0, "cuda:0", &usual));
	assert_int_equal(cudaMemGetInfo(&after, &total), cudaSuccess);
	assert_int_equal(before, after);
}

/* ---- memory ---- */

static void
test_memory_is_zeroed(void **)
{
	qwen_device *dev = open_device(0, "cuda:0", &usual);
	std::vector<uint8_t> data = pattern(100001, 3);

	for (int i = 0; i < 3; i++)
	{
		uint8_t *p = (uint8_t *) dev->ops->alloc(dev, data.size());

		assert_true(fetch(dev, p, data.size()) == std::vector<uint8_t>(data.size()));
		assert_true(dev->ops->upload(dev, p, data.data(), data.size()));
		dev->ops->free(dev, p, data.size());
	}
	dev->ops->free(dev, NULL, 0);
	close_device(dev);
}

/* That there is no room for an allocation is an answer, and the device goes on. */
static void
test_no_room(void **)
{
	qwen_device *dev = open_device(0, "cuda:0", &usual);
	void *p;

	listen_to_log();
	p = dev->ops->alloc(dev, (size_t) 1 << 40);
	assert_string_equal(heard_in_log(), "");
	assert_null(p);
	assert_true(dev->ops->synchronize(dev));
	close_device(dev);
}

/* ---- copies from and to the host ---- */

/* The source is overwritten as soon as upload returns, as a loader's buffer is. */
static void
test_staging_sizes(void **)
{
	static const size_t sizes[] = {0,
								   1,
								   CUDA_STAGING / 8 - 1,
								   CUDA_STAGING / 8,
								   CUDA_STAGING / 8 + 1,
								   CUDA_STAGING - 1,
								   CUDA_STAGING,
								   CUDA_STAGING + 1,
								   3 * CUDA_STAGING + 17};
	qwen_device *dev = open_device(0, "cuda:0", &usual);

	for (size_t n : sizes)
	{
		std::vector<uint8_t> data = pattern(n, (uint32_t) n), source = data;
		uint8_t *p = (uint8_t *) dev->ops->alloc(dev, n);

		assert_true(dev->ops->upload(dev, p, source.data(), n));
		source.assign(n, 0xee);
		assert_true(fetch(dev, p, n) == data);
		dev->ops->free(dev, p, n);
	}
	close_device(dev);
}

/* Four threads store their parts of one allocation in pieces of odd sizes. */
static void
test_staging_is_shared(void **)
{
	static const size_t part = CUDA_STAGING * 2 + 1001;
	qwen_device *dev = open_device(0, "cuda:0", &usual);
	std::vector<uint8_t> data = pattern(4 * part, 9);
	uint8_t *p = (uint8_t *) dev->ops->alloc(dev, data.size());
	std::vector<std::thread> threads;
	std::atomic<int> failures(0);

	for (size_t t = 0; t < 4; t++)
		threads.emplace_back(
			[&, t]
			{
				for (size_t at = 0, n; at < part; at += n)
				{
					n = at + 700001 + 1000 * t < part ? 700001 + 1000 * t : part - at;
					failures += !dev->ops->upload(dev, p + t * part + at, data.data() + t * part + at, n);
				}
			});
	for (std::thread &thread : threads)
		thread.join();
	assert_int_equal(failures.load(), 0);
	assert_true(fetch(dev, p, data.size()) == data);
	dev->ops->free(dev, p, data.size());
	close_device(dev);
}

/* ---- copies between devices ---- */

/* What is queued on the source before the copy is in it, what is queued after it is not. */
static void
copied(int from_index, int to_index, size_t n)
{
	qwen_device *from = open_device(from_index, "cuda:a", &usual), *to = open_device(to_index, "cuda:b", &usual);
	std::vector<uint8_t> data = pattern(n, 1), later = pattern(n, 2);
	uint8_t *src = (uint8_t *) from->ops->alloc(from, n), *dst = (uint8_t *) to->ops->alloc(to, n);

	assert_true(from->ops->upload(from, src, data.data(), n));
	assert_true(to->ops->copy(to, dst, from, src, n));
	assert_true(from->ops->upload(from, src, later.data(), n));
	assert_true(fetch(from, src, n) == later);
	assert_true(fetch(to, dst, n) == data);
	from->ops->free(from, src, n);
	to->ops->free(to, dst, n);
	close_device(from);
	close_device(to);
}

static void
test_copies(void **)
{
	listen_to_log();
	copied(0, 0, 1);
	copied(0, 0, 123457);
	copied(0, 1, 123457);
	copied(1, 0, 4096);
	assert_string_equal(heard_in_log(), "");
}

static void
test_copy_from_the_host(void **)
{
	qwen_device *dev = open_device(0, "cuda:0", &usual);
	std::vector<uint8_t> data = pattern(70001, 1), source = data;
	uint8_t *p = (uint8_t *) dev->ops->alloc(dev, data.size());
	qwen_device host = {};

	host.host = true;
	assert_true(dev->ops->copy(dev, p, &host, source.data(), source.size()));
	source.assign(source.size(), 0);
	assert_true(fetch(dev, p, data.size()) == data);
	dev->ops->free(dev, p, data.size());
	close_device(dev);
}

/* ---- sums ---- */

typedef struct summands
{
	std::vector<qwen_device *> devs;
	std::vector<void *> x; /* of each device: [count] */
} summands;

template <typename T>
static std::vector<T>
numbers(size_t n, unsigned seed)
{
	std::mt19937 random(seed);
	std::vector<T> out(n);

	for (T &x : out)
		x = from_float<T>((float) ((int) (random() % 4001) - 2000) / 64);
	return out;
}

/* In the order of the shards; rounded at the end or, as NCCL does, after each. */
template <typename T>
static std::vector<T>
expected_sum(const std::vector<std::vector<T>> &parts, bool rounded_at_the_end)
{
	std::vector<T> out(parts[0].size());

	for (size_t i = 0; i < out.size(); i++)
	{
		float sum = to_float(parts[0][i]);

		for (size_t s = 1; s < parts.size(); s++)
		{
			sum += to_float(parts[s][i]);
			if (!rounded_at_the_end)
				sum = to_float(from_float<T>(sum));
		}
		out[i] = from_float<T>(sum);
	}
	return out;
}

template <typename T>
static bool
equal(const std::vector<T> &x, const std::vector<T> &y)
{
	return x.size() == y.size() && memcmp(x.data(), y.data(), x.size() * sizeof(T)) == 0;
}

static bool
sum_parts(summands *s, int64_t count, bool resid)
{
	std::vector<float *> resids;

	if (!resid)
		return s->devs[0]->ops->sum(s->devs.data(), s->x.data(), (int) s->devs.size(), count);
	for (void *x : s->x)
		resids.push_back((float *) x);
	return s->devs[0]->ops->sum_resid(s->devs.data(), resids.data(), (int) s->devs.size(), count);
}

/* Twice, the second time with the last device's part replaced while the first sum is under way. */
template <typename T>
static void
check_sum(const std::vector<int> &gpus, qwen_dtype act, size_t count, bool resid)
{
	bool nccl = gpus.size() == 2 && gpus[0] != gpus[1] && getenv("QWEN_EMULATED_NCCL") == NULL;
	std::vector<std::vector<T>> parts;
	std::vector<T> first, second;
	summands s;

	for (size_t i = 0; i < gpus.size(); i++)
	{
		s.devs.push_back(open_device(gpus[i], "cuda:x", &usual, act));
		parts.push_back(numbers<T>(count, (unsigned) i));
		s.x.push_back(send(s.devs[i], parts[i]));
	}
	assert_true(s.devs[0]->ops->join(s.devs.data(), (int) s.devs.size()));
	assert_true(sum_parts(&s, (int64_t) count, resid));
	first = expected_sum(parts, !nccl);
	parts.assign(gpus.size(), first);
	parts.back() = numbers<T>(count, 77);
	assert_true(s.devs.back()->ops->upload(s.devs.back(), s.x.back(), parts.back().data(), count * sizeof(T)));
	assert_true(sum_parts(&s, (int64_t) count, resid));
	second = expected_sum(parts, !nccl);
	for (size_t i = gpus.size(); i-- > 0;) /* the one that sums comes last: the others have waited by themselves */
		assert_true(equal(fetch(s.devs[i], (T *) s.x[i], count), second));
	for (size_t i = 0; i < gpus.size(); i++)
		s.devs[i]->ops->free(s.devs[i], s.x[i], 0);
	for (qwen_device *dev : s.devs)
		close_device(dev);
}

static void
check_sums(const std::vector<int> &gpus)
{
	check_sum<float>(gpus, QWEN_F32, 1, false);
	check_sum<float>(gpus, QWEN_F32, 1001, false);
	check_sum<__half>(gpus, QWEN_F16, 777, false);
	check_sum<__nv_bfloat16>(gpus, QWEN_BF16, 777, false);
	check_sum<float>(gpus, QWEN_BF16, 515, true);
}

static void
test_sums_on_one_gpu(void **)
{
	check_sums({0, 0});
	check_sums({1, 1, 1, 1});
}

static void
test_sums_by_nccl(void **)
{
	check_sums({0, 1});
	check_sums({1, 0});
}

/* A library that does not work is told, once for each group, and the sums are right all the same. */
static void
test_sums_without_nccl(void **)
{
	const char *log;

	setenv("QWEN_EMULATED_NCCL", "off", 1);
	listen_to_log();
	check_sum<__nv_bfloat16>({0, 1}, QWEN_BF16, 1001, false);
	log = heard_in_log();
	assert_non_null(strstr(log, "qwen-engine: cuda:x: NCCL cannot be used, sums are made of copies: "));
	assert_ptr_equal(strchr(log, '\n'), log + strlen(log) - 1);
	unsetenv("QWEN_EMULATED_NCCL");
}

/* Devices that share a GPU beside some that do not: NCCL does not know such groups. */
static void
test_sums_of_mixed_groups(void **)
{
	listen_to_log();
	check_sums({0, 1, 0, 1});
	check_sums({0, 0, 1});
	check_sums({0, 1, 1});
	assert_string_equal(heard_in_log(), "");
}

/* More elements than the parts of other GPUs find room at once. */
static void
test_sums_in_pieces(void **)
{
	cuda_scratch scratch = cuda_scratch_of(&usual);

	check_sum<float>({0, 1, 1, 1}, QWEN_F32, (scratch.partials - scratch.blas) / 3 / sizeof(float) + 5, false);
}

static void
test_groups(void **)
{
	qwen_device *a = open_device(0, "cuda:a", &usual), *b = open_device(0, "cuda:b", &usual),
				*c = open_device(1, "cuda:c", &usual);
	qwen_device *ab[] = {a, b}, *ba[] = {b, a}, *ac[] = {a, c}, *all[] = {a, b, c};
	float *d_x[] = {send(a, std::vector<float>(1)), send(b, std::vector<float>(1)), send(c, std::vector<float>(1))};

	assert_true(a->ops->join(ab, 2));
	assert_true(a->ops->join(ab, 2)); /* another stage of the same devices */
	assert_false(a->ops->join(ba, 2));
	assert_false(a->ops->join(ac, 2));
	assert_false(c->ops->join(all, 3));
	assert_true(c->ops->join(&c, 1));
	assert_true(a->ops->sum_resid(ab, d_x, 2, 1));
	assert_true(c->ops->sum_resid(&c, d_x + 2, 1, 1)); /* nothing to add */
	a->ops->free(a, d_x[0], 0);
	b->ops->free(b, d_x[1], 0);
	c->ops->free(c, d_x[2], 0);
	close_device(b); /* ends the group */
	assert_true(a->ops->join(ac, 2));
	close_device(a);
	close_device(c);
}

static void
test_sum_of_strangers(void **)
{
	qwen_device *devs[] = {open_device(0, "cuda:0", &usual), open_device(0, "cuda:0.1", &usual)};
	float *d_x[] = {send(devs[0], std::vector<float>(1)), send(devs[1], std::vector<float>(1))};

	listen_to_log();
	assert_false(devs[0]->ops->sum_resid(devs, d_x, 2, 1));
	assert_string_equal(heard_in_log(), "qwen-engine: cuda:0: a sum over GPUs: the devices have not been joined\n");
	devs[0]->ops->free(devs[0], d_x[0], 0);
	devs[1]->ops->free(devs[1], d_x[1], 0);
	close_device(devs[0]);
	close_device(devs[1]);
}

/* ---- loops ---- */

typedef struct loop_record
{
	std::vector<int> times;
	int64_t longest;
} loop_record;

static void
record_loop(void *arg, int64_t begin, int64_t end)
{
	loop_record *record = (loop_record *) arg;

	for (int64_t i = begin; i < end; i++)
		record->times[(size_t) i]++;
	record->longest = end - begin > record->longest ? end - begin : record->longest;
}

static void
test_loop(void **)
{
	qwen_device *dev = open_device(0, "cuda:0", &usual);
	loop_record record = {std::vector<int>(100), 0};

	dev->ops->loop(dev, 100, 7, record_loop, &record);
	assert_true(record.times == std::vector<int>(100, 1));
	assert_int_equal(record.longest, 7);
	dev->ops->loop(dev, 0, 7, record_loop, &record);
	assert_true(record.times == std::vector<int>(100, 1));
	close_device(dev);
}

/* ---- errors ---- */

static bool
step_of_one(qwen_device *dev)
{
	int32_t zero = 0;
	qwen_batch_seq seq = {0, 1, 1, &zero};
	qwen_batch batch = {1, &zero, &zero, 1, &seq, 1, &zero};

	return dev->ops->step(dev, &batch);
}

/* After a failure nothing reaches the GPU any more, every answer says so, and the log has its first reason alone. */
static void
test_failure_stays(void **)
{
	qwen_device *dev = open_device(0, "cuda:0", &usual), *other = open_device(0, "cuda:0.1", &usual);
	qwen_device *devs[] = {other, dev};
	float *d_x[] = {send(other, std::vector<float>(1, 3.0f)), send(dev, std::vector<float>(1, 5.0f))}, out = 0;

	assert_true(other->ops->join(devs, 2));
	listen_to_log();
	cuda_fail(dev, "a test", "it wants to");
	cuda_fail(dev, "a second failure", "it is not the first");
	assert_null(dev->ops->alloc(dev, 1));
	assert_false(dev->ops->upload(dev, d_x[1], &out, sizeof(out)));
	assert_false(dev->ops->download(dev, &out, d_x[1], sizeof(out)));
	assert_false(dev->ops->copy(dev, d_x[1], other, d_x[0], sizeof(out)));
	assert_false(other->ops->copy(other, d_x[0], dev, d_x[1], sizeof(out)));
	assert_false(other->ops->sum_resid(devs, d_x, 2, 1));
	assert_false(step_of_one(dev));
	assert_true(dev->ops->segment_begin(dev, 0));
	dev->ops->segment_end(dev);
	assert_false(dev->ops->synchronize(dev));
	assert_string_equal(heard_in_log(), "qwen-engine: cuda:0: a test: it wants to\n");

	assert_true(other->ops->synchronize(other));
	assert_true(fetch(other, d_x[0], 1)[0] == 3.0f);
	dev->ops->free(dev, d_x[1], 0);
	other->ops->free(other, d_x[0], 0);
	close_device(other);
	close_device(dev);
}

/* Copies beyond an allocation, which the runtime refuses. */
static void
test_errors_of_the_runtime(void **)
{
	qwen_device *dev = open_device(0, "cuda:0", &usual);
	std::vector<uint8_t> data(1000);
	uint8_t *p = send(dev, data);
	const char *log;

	listen_to_log();
	assert_false(dev->ops->upload(dev, p + 1, data.data(), data.size()));
	log = heard_in_log();
	assert_non_null(strstr(log, "qwen-engine: cuda:0: copying to the GPU: invalid argument\n"));
	assert_false(dev->ops->synchronize(dev));
	assert_int_equal(cudaGetLastError(), cudaSuccess);
	dev->ops->free(dev, p, data.size());
	close_device(dev);
}

/* A kernel that kills its GPU is met by whoever asks next; closing still works. In a process of its own: it ends all. */
static void
test_fault_of_a_kernel(void **)
{
	int status = 0;
	pid_t child = fork();

	if (child == 0)
	{
		qwen_device *devs[2];
		float *d_x[2];
		const char *log;
		bool ok;

		setenv("QWEN_EMULATED_GPU_FAULT", "1", 1);
		for (int i = 0; i < 2; i++)
		{
			devs[i] = open_device(0, "cuda:0", &usual);
			d_x[i] = send(devs[i], std::vector<float>(1));
		}
		ok = devs[0]->ops->join(devs, 2) && devs[0]->ops->sum_resid(devs, d_x, 2, 1);
		listen_to_log();
		ok = ok && !devs[0]->ops->synchronize(devs[0]) && !devs[0]->ops->synchronize(devs[0]);
		log = heard_in_log();
		ok = ok && strcmp(log, "qwen-engine: cuda:0: a step: an illegal memory access was encountered\n") == 0;
		for (int i = 0; i < 2; i++)
		{
			devs[i]->ops->free(devs[i], d_x[i], 0);
			close_device(devs[i]);
		}
		_exit(ok ? 0 : 1);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fault_of_a_kernel), /* first: the setting is read by the first kernel */
		cmocka_unit_test(test_open),
		cmocka_unit_test(test_table_is_complete),
		cmocka_unit_test(test_open_refused),
		cmocka_unit_test(test_close_gives_all_back),
		cmocka_unit_test(test_memory_is_zeroed),
		cmocka_unit_test(test_no_room),
		cmocka_unit_test(test_staging_sizes),
		cmocka_unit_test(test_staging_is_shared),
		cmocka_unit_test(test_copies),
		cmocka_unit_test(test_copy_from_the_host),
		cmocka_unit_test(test_sums_on_one_gpu),
		cmocka_unit_test(test_sums_by_nccl),
		cmocka_unit_test(test_sums_without_nccl),
		cmocka_unit_test(test_sums_of_mixed_groups),
		cmocka_unit_test(test_sums_in_pieces),
		cmocka_unit_test(test_groups),
		cmocka_unit_test(test_sum_of_strangers),
		cmocka_unit_test(test_loop),
		cmocka_unit_test(test_failure_stays),
		cmocka_unit_test(test_errors_of_the_runtime),
	};

	setenv("QWEN_EMULATED_GPUS", "2", 1);
	return cmocka_run_group_tests_name("memory and sums of the plug-in", tests, NULL, NULL);
}
