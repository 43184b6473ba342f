/*
 * test_engine.c
 *	  The engine as a library on the bundled model: bits, streams, windows,
 *	  stop strings, limits.
 */
#include "unit.h"

#include "engine/engine.h"
#include "engine/sequence.h"

#define MODEL "test/data/demo-model"
#define MAX_IDS 64

/* What the events of one sequence gave. */
typedef struct seen
{
	qwen_bytes text;
	qwen_done done;
	int32_t ids[512];
	size_t n_ids;
	int n_pieces;
	int n_started;
	bool ended;
	qwen_error error;
} seen;

static qwen_engine *engine;
static seen results[MAX_IDS];

static void
on_data(void *arg, uint64_t id, const char *data, size_t len)
{
	assert_true(len > 0 && len <= QWEN_DATA_MAX);
	qwen_bytes_append(&results[id].text, data, len);
	results[id].n_pieces++;
}

static void
on_done(void *arg, uint64_t id, const qwen_done *done, const int32_t *ids, size_t n_ids)
{
	assert_false(results[id].ended);
	results[id].done = *done;
	results[id].n_ids = n_ids < 512 ? n_ids : 512;
	if (n_ids)
		memcpy(results[id].ids, ids, results[id].n_ids * sizeof(int32_t));
	results[id].ended = true;
}

static void
on_started(void *arg, uint64_t id, const qwen_progress *progress)
{
	assert_true(progress->running);
	assert_true(progress->prompt_tokens > 0);
	assert_int_equal(progress->output_tokens, 0);
	assert_false(results[id].ended);
	results[id].n_started++;
}

static void
on_failed(void *arg, uint64_t id, const qwen_error *err)
{
	results[id].error = *err;
	results[id].ended = true;
}

static void
listen_with_window(uint64_t window)
{
	const qwen_events events = {
		.data = on_data, .done = on_done, .failed = on_failed, .started = on_started, .window = window};

	qwen_engine_set_events(engine, &events);
}

static int
open_engine(size_t kv_memory, bool no_prefix_cache)
{
	const qwen_model_options options = {.path = MODEL,
										.device_map = "auto",
										.kernels = "auto",
										.dtype = "auto",
										.max_sequences = 32,
										.step_tokens = 64,
										.kv_memory = kv_memory,
										.no_prefix_cache = no_prefix_cache};
	qwen_error err;

	if (qwen_engine_open(&options, NULL, NULL, &engine, &err) == QWEN_OK)
		return 0;
	fprintf(stderr, "%s\n", err.message);
	return -1;
}

static int
start(void **state)
{
	return open_engine(0, false);
}

static int
stop(void **state)
{
	qwen_engine_close(engine);
	return 0;
}

static int
clear(void **state)
{
	for (int i = 0; i < MAX_IDS; i++)
		qwen_bytes_free(&results[i].text);
	memset(results, 0, sizeof(results));
	listen_with_window(0);
	return 0;
}

static qwen_request
ask(uint64_t id, uint32_t kind, const char *prompt, int32_t max_tokens)
{
	return (qwen_request){.id = id,
						  .head = {.protocol = QWEN_PROTOCOL,
								   .kind = kind,
								   .max_tokens = max_tokens,
								   .top_k = QWEN_UNSET_INT,
								   .top_p = QWEN_UNSET_FLOAT,
								   .min_p = QWEN_UNSET_FLOAT,
								   .presence_penalty = QWEN_UNSET_FLOAT,
								   .frequency_penalty = QWEN_UNSET_FLOAT,
								   .repetition_penalty = QWEN_UNSET_FLOAT},
						  .prompt = prompt,
						  .prompt_len = strlen(prompt)};
}

static void
submit(const qwen_request *request)
{
	qwen_sequence *seq;
	qwen_error err;

	assert_ok(qwen_engine_prepare(engine, request, &seq, &err), err);
	qwen_engine_submit(engine, seq);
}

static void
run_all(void)
{
	qwen_error err;
	bool ran = true;

	while (ran)
		assert_ok(qwen_engine_step(engine, &ran, &err), err);
}

static void
assert_nothing_left(void)
{
	qwen_heartbeat h;

	qwen_engine_heartbeat(engine, &h);
	assert_int_equal(h.running + h.waiting, 0);
	assert_int_equal(h.kv_blocks_used, 0);
	assert_true(qwen_engine_idle(engine));
}

static void
a_prompt_is_answered(void **state)
{
	qwen_request r = ask(1, QWEN_KIND_GENERATE, "What is the capital of Kenya?", 40);

	submit(&r);
	run_all();
	assert_true(results[1].ended);
	assert_string_equal(results[1].text.data, "The capital of Kenya is Nairobi.");
	assert_int_equal(results[1].done.finish_reason, QWEN_FINISH_STOP);
	assert_int_equal(results[1].done.output_tokens, (int) results[1].n_ids);
	assert_int_equal(results[1].n_pieces, 1);
	assert_nothing_left();
}

/* Two answers, one after the other and side by side: steps, tokens and times are those of the engine's own counters. */
static void
an_answer_tells_what_it_took(void **state)
{
	qwen_heartbeat before, after;

	for (uint64_t id = 1; id <= 4; id++)
	{
		qwen_request r =
			ask(id, QWEN_KIND_GENERATE, id % 2 ? "What is 17 + 25?" : "Translate to French: thank you", 40);
		const qwen_done *done = &results[id].done;

		qwen_engine_heartbeat(engine, &before);
		submit(&r);
		if (id == 3)
			continue;
		run_all();
		qwen_engine_heartbeat(engine, &after);
		assert_int_equal(results[id].n_started, 1);
		assert_true(done->first_us > 0 && done->first_us <= done->run_us);
		if (id <= 2)
		{
			/* one step or a few for the prompt, then a token a step, of which the last one is the end */
			assert_in_range(done->steps, done->output_tokens + 1, done->output_tokens + 1 + done->prompt_tokens / 16);
			assert_int_equal(done->steps, (int) (after.steps - before.steps));
			assert_int_equal(done->batched_tokens, done->prompt_tokens - done->cached_tokens + done->output_tokens);
		}
	}
	assert_int_equal(results[3].n_started, 1);
	/* more than its own tokens, because the third ran beside it */
	assert_true((int64_t) results[4].done.batched_tokens >
				results[4].done.prompt_tokens - results[4].done.cached_tokens + results[4].done.output_tokens);
	assert_nothing_left();
}

/* The company that a sequence keeps must not change a bit of its answer, nor must chunked prefill or a seed. */
static void
an_answer_does_not_depend_on_the_batch(void **state)
{
	static const char *const prompts[] = {"Describe these countries: France, Japan.", "What is 17 + 25?",
										  "Translate to French: thank you",
										  "Write SQL that counts the rows of the table orders."};

	for (int hot = 0; hot < 2; hot++)
	{
		qwen_request r = ask(0, QWEN_KIND_GENERATE, prompts[0], 100);

		clear(state);
		r.head.temperature = hot ? 0.9f : 0;
		r.head.seed = 7;
		submit(&r);
		run_all();
		for (uint64_t id = 1; id <= 17; id++)
		{
			qwen_request other = ask(id, QWEN_KIND_GENERATE, prompts[id % 4], 100 - (int32_t) id);

			if (id == 9)
			{
				other = r;
				other.id = 9;
			}
			submit(&other);
		}
		run_all();
		assert_int_equal(results[9].n_ids, results[0].n_ids);
		assert_memory_equal(results[9].ids, results[0].ids, results[0].n_ids * sizeof(int32_t));
		assert_string_equal(results[9].text.data, results[0].text.data);
	}
	assert_nothing_left();
}

/* Neither shared beginnings nor being thrown out and computed again may change a bit. */
static void
an_answer_does_not_depend_on_the_cache(void **state)
{
	static seen want[MAX_IDS];
	qwen_engine *large = engine;
	qwen_heartbeat h;

	for (int round = 0; round < 3; round++)
	{
		/* the second has memory for one sequence of full length, the third no prefix cache either */
		if (round > 0)
			assert_int_equal(open_engine((size_t) 4600 * 1024, round == 2), 0);
		clear(state);
		for (uint64_t id = 1; id <= 16; id++)
		{
			qwen_request r = ask(
				id, QWEN_KIND_GENERATE,
				id % 2 ? "Describe these countries: France, Japan." : "Describe these countries: France, Kenya.", 200);

			r.head.flags = QWEN_FLAG_IGNORE_EOS;
			r.head.session = (int32_t) id % 3;
			submit(&r);
		}
		run_all();
		qwen_engine_heartbeat(engine, &h);
		assert_true(round == 0 ? h.preemptions == 0 : h.preemptions > 0);
		assert_true(round == 2 ? h.cached_tokens == 0 : h.cached_tokens > 0);
		assert_nothing_left();
		for (uint64_t id = 1; id <= 16; id++)
		{
			assert_int_equal(results[id].n_ids, 200);
			if (round == 0)
				want[id] = results[id];
			assert_memory_equal(results[id].ids, want[id].ids, 200 * sizeof(int32_t));
		}
		if (round > 0)
			qwen_engine_close(engine);
		engine = large;
	}
}

static void
a_stream_comes_in_pieces_and_waits_for_credit(void **state)
{
	qwen_request r = ask(1, QWEN_KIND_GENERATE, "Describe these countries: France, Japan.", 100);
	uint64_t consumed = 0;
	bool ran;
	qwen_error err;

	submit(&r);
	run_all();
	listen_with_window(64);
	r.id = 2;
	r.head.flags = QWEN_FLAG_STREAM;
	submit(&r);
	for (int round = 0; !results[2].ended; round++)
	{
		assert_true(round < 1000);
		run_all();
		assert_true(results[2].n_pieces > round);
		/* full: no step runs before the reader has read */
		if (!results[2].ended)
		{
			assert_ok(qwen_engine_step(engine, &ran, &err), err);
			assert_false(ran);
		}
		consumed = results[2].text.len + (size_t) results[2].n_pieces * sizeof(qwen_record);
		qwen_engine_credit(engine, 2, consumed);
	}
	assert_true(results[2].n_pieces > 10);
	assert_string_equal(results[2].text.data, results[1].text.data);
	assert_nothing_left();
}

static void
what_the_reader_has_is_left_out(void **state)
{
	qwen_request r = ask(1, QWEN_KIND_GENERATE, "Describe these countries: France, Japan.", 100);

	submit(&r);
	run_all();
	for (uint64_t skip = 1; skip < results[1].text.len; skip += 13)
	{
		qwen_request again = r;

		qwen_bytes_free(&results[2].text);
		results[2] = (seen){0};
		again.id = 2;
		again.head.skip = skip;
		again.head.flags = skip % 2 ? QWEN_FLAG_STREAM : 0;
		submit(&again);
		run_all();
		assert_string_equal(results[2].text.data, results[1].text.data + skip);
	}
}

static void
stop_strings_end_the_answer_and_are_not_in_it(void **state)
{
	/* "Nair" begins inside one token and ends inside another or the same: the match is on bytes */
	static const char *const stops[] = {"zzz", "Nair"};
	static const size_t lens[] = {3, 4};

	for (int stream = 0; stream < 2; stream++)
	{
		qwen_request r = ask(1, QWEN_KIND_GENERATE, "What is the capital of Kenya?", 40);

		clear(state);
		r.stop = stops;
		r.stop_len = lens;
		r.n_stop = 2;
		r.head.flags = stream ? QWEN_FLAG_STREAM : 0;
		submit(&r);
		run_all();
		assert_string_equal(results[1].text.data, "The capital of Kenya is ");
		assert_int_equal(results[1].done.finish_reason, QWEN_FINISH_STOP);
	}
	assert_nothing_left();
}

static void
limits_are_kept(void **state)
{
	qwen_request r = ask(1, QWEN_KIND_GENERATE, "Describe these countries: France, Japan.", 5);
	qwen_sequence *seq;
	qwen_error err;
	qwen_bytes text = {0};

	submit(&r);
	run_all();
	assert_int_equal(results[1].done.output_tokens, 5);
	assert_int_equal(results[1].done.finish_reason, QWEN_FINISH_LENGTH);

	while (text.len < 20000)
		qwen_bytes_append_str(&text, "word and number 17, ");
	r = ask(2, QWEN_KIND_GENERATE, text.data, 5);
	assert_int_equal(qwen_engine_prepare(engine, &r, &seq, &err), QWEN_TOO_LONG);
	assert_non_null(strstr(err.detail, "2048"));
	r.head.flags = QWEN_FLAG_TRUNCATE;
	submit(&r);
	run_all();
	assert_int_equal(results[2].done.output_tokens <= 5, 1);
	assert_true(results[2].done.prompt_tokens > 1024 && results[2].done.prompt_tokens < 2048);
	qwen_bytes_free(&text);
	assert_nothing_left();
}

/* An answer that was asked for in full is refused where it has no room, with the numbers; one by default is cut. */
static void
what_cannot_fit_is_refused(void **state)
{
	qwen_request r = ask(1, QWEN_KIND_GENERATE, "Describe these countries: France, Japan.", 5);
	const int32_t context = 2048;
	int32_t n_prompt;
	char numbers[64];
	qwen_sequence *seq;
	qwen_error err;

	assert_ok(qwen_engine_prepare(engine, &r, &seq, &err), err);
	n_prompt = qwen_sequence_prompt_tokens(seq);
	qwen_sequence_free(seq);

	r.head.max_tokens = context - n_prompt + 1;
	assert_ok(qwen_engine_prepare(engine, &r, &seq, &err), err);
	assert_int_equal(seq->max_tokens, context - n_prompt);
	qwen_sequence_free(seq);

	r.head.flags = QWEN_FLAG_MAX_TOKENS;
	assert_int_equal(qwen_engine_prepare(engine, &r, &seq, &err), QWEN_TOO_LONG);
	assert_null(seq);
	snprintf(numbers, sizeof(numbers), "needs %d tokens", context + 1);
	assert_non_null(strstr(err.detail, numbers));
	snprintf(numbers, sizeof(numbers), "the context holds %d", context);
	assert_non_null(strstr(err.detail, numbers));
	assert_non_null(strstr(err.hint, "qwen.max_model_len"));
	r.head.max_tokens = INT32_MAX;
	assert_int_equal(qwen_engine_prepare(engine, &r, &seq, &err), QWEN_TOO_LONG);

	/* the last that fits, down to the last block of the cache */
	r.head.max_tokens = context - n_prompt;
	r.head.flags |= QWEN_FLAG_IGNORE_EOS;
	submit(&r);
	run_all();
	assert_int_equal(results[1].done.output_tokens, context - n_prompt);
	assert_int_equal(results[1].done.finish_reason, QWEN_FINISH_LENGTH);
	assert_nothing_left();
}

/* Where the prompt may be cut it makes room for the answer, as long as something of it is left. */
static void
a_prompt_is_cut_for_an_answer_in_full(void **state)
{
	qwen_bytes text = {0};
	qwen_request r;
	qwen_sequence *seq;
	qwen_error err;

	while (text.len < 20000)
		qwen_bytes_append_str(&text, "word and number 17, ");
	r = ask(1, QWEN_KIND_GENERATE, text.data, 1500);
	r.head.flags = QWEN_FLAG_TRUNCATE;
	assert_ok(qwen_engine_prepare(engine, &r, &seq, &err), err);
	assert_true(qwen_sequence_prompt_tokens(seq) > 1024 && qwen_sequence_prompt_tokens(seq) <= 2048 - 512);
	qwen_sequence_free(seq);
	r.head.flags |= QWEN_FLAG_MAX_TOKENS;
	assert_ok(qwen_engine_prepare(engine, &r, &seq, &err), err);
	assert_true(qwen_sequence_prompt_tokens(seq) > 300 && qwen_sequence_prompt_tokens(seq) <= 548);
	assert_int_equal(seq->max_tokens, 1500);
	qwen_sequence_free(seq);
	for (int32_t max_tokens = 2045; max_tokens < 2050; max_tokens++)
	{
		r.head.max_tokens = max_tokens;
		assert_int_equal(qwen_engine_prepare(engine, &r, &seq, &err), QWEN_TOO_LONG);
		assert_non_null(strstr(err.message, "max_tokens"));
	}
	qwen_bytes_free(&text);
}

static void
bad_requests_are_refused(void **state)
{
	static const size_t zero = 0;
	static const char *const empty[] = {""};
	qwen_request r = ask(1, QWEN_KIND_COMPLETE, "", 5);
	qwen_sequence *seq;
	qwen_error err;

	assert_int_equal(qwen_engine_prepare(engine, &r, &seq, &err), QWEN_INVALID);
	assert_null(seq);
	r = ask(1, QWEN_KIND_COMPLETE, "x", 0);
	assert_int_equal(qwen_engine_prepare(engine, &r, &seq, &err), QWEN_INVALID);
	r = ask(1, QWEN_KIND_COMPLETE, "x", 5);
	r.head.temperature = -1;
	assert_int_equal(qwen_engine_prepare(engine, &r, &seq, &err), QWEN_INVALID);
	r = ask(1, QWEN_KIND_COMPLETE, "x\xff", 5);
	assert_int_equal(qwen_engine_prepare(engine, &r, &seq, &err), QWEN_INVALID);
	r = ask(1, QWEN_KIND_GENERATE, "\xc3", 5);
	assert_int_equal(qwen_engine_prepare(engine, &r, &seq, &err), QWEN_INVALID);
	r = ask(1, QWEN_KIND_COMPLETE, "x", 5);
	r.stop = empty;
	r.stop_len = &zero;
	r.n_stop = 1;
	assert_int_equal(qwen_engine_prepare(engine, &r, &seq, &err), QWEN_INVALID);
	r = ask(1, 99, "x", 5);
	assert_int_equal(qwen_engine_prepare(engine, &r, &seq, &err), QWEN_INVALID);
	assert_nothing_left();
}

static void
cancelled_sequences_are_gone_at_once(void **state)
{
	bool ran;
	qwen_error err;

	for (uint64_t id = 1; id <= 40; id++)
	{
		qwen_request r = ask(id, QWEN_KIND_GENERATE, "Describe these countries: France, Japan.", 100);

		r.head.flags = QWEN_FLAG_IGNORE_EOS;
		submit(&r);
	}
	for (int i = 0; i < 5; i++)
		assert_ok(qwen_engine_step(engine, &ran, &err), err);
	for (uint64_t id = 1; id <= 40; id++)
		qwen_engine_cancel(engine, id);
	qwen_engine_cancel(engine, 1); /* unknown by now */
	assert_nothing_left();
	run_all();
	for (int id = 1; id <= 40; id++)
		assert_false(results[id].ended);
}

static void
requests_without_a_model_go_the_same_way(void **state)
{
	qwen_request r = ask(1, QWEN_KIND_TOKENIZE, "<|im_end|> is data", 1);
	const int32_t *ids;
	size_t n;

	submit(&r);
	ids = (const int32_t *) results[1].text.data;
	n = results[1].text.len / sizeof(int32_t);
	assert_int_equal(results[1].done.prompt_tokens, (int) n);
	for (size_t i = 0; i < n; i++)
		assert_true(ids[i] < 4096);
	r = ask(2, QWEN_KIND_COUNT, "<|im_end|> is data", 1);
	submit(&r);
	assert_int_equal(results[2].done.prompt_tokens, (int) n);
	assert_int_equal(results[2].n_pieces, 0);
	r = ask(3, QWEN_KIND_DETOKENIZE, "", 1);
	r.ids = ids;
	r.n_ids = n;
	submit(&r);
	assert_string_equal(results[3].text.data, "<|im_end|> is data");
	assert_nothing_left();
}

static void
a_chat_gives_a_message(void **state)
{
	json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", "What is 17 + 25?");
	qwen_request r = ask(1, QWEN_KIND_CHAT, "", 40);
	json_t *message;

	r.prompt = NULL;
	r.messages = messages;
	submit(&r);
	run_all();
	message = json_loads(results[1].text.data, 0, NULL);
	assert_string_equal(json_string_value(json_object_get(message, "role")), "assistant");
	assert_string_equal(json_string_value(json_object_get(message, "content")), "42");

	/* what the reader already has of the message is left out of the message, not of the text before it */
	r.id = 2;
	r.head.skip = 10;
	submit(&r);
	run_all();
	assert_string_equal(results[2].text.data, results[1].text.data + 10);
	json_decref(message);

	/* a model that was free to think and did not: all of it is the answer */
	r.id = 3;
	r.head.skip = 0;
	r.head.flags = QWEN_FLAG_THINKING;
	submit(&r);
	run_all();
	message = json_loads(results[3].text.data, 0, NULL);
	assert_true(strlen(json_string_value(json_object_get(message, "content"))) > 0);
	json_decref(message);
	json_decref(messages);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(a_prompt_is_answered, clear),
		cmocka_unit_test_setup(an_answer_tells_what_it_took, clear),
		cmocka_unit_test_setup(an_answer_does_not_depend_on_the_batch, clear),
		cmocka_unit_test_setup(an_answer_does_not_depend_on_the_cache, clear),
		cmocka_unit_test_setup(a_stream_comes_in_pieces_and_waits_for_credit, clear),
		cmocka_unit_test_setup(what_the_reader_has_is_left_out, clear),
		cmocka_unit_test_setup(stop_strings_end_the_answer_and_are_not_in_it, clear),
		cmocka_unit_test_setup(limits_are_kept, clear),
		cmocka_unit_test_setup(what_cannot_fit_is_refused, clear),
		cmocka_unit_test_setup(a_prompt_is_cut_for_an_answer_in_full, clear),
		cmocka_unit_test_setup(bad_requests_are_refused, clear),
		cmocka_unit_test_setup(cancelled_sequences_are_gone_at_once, clear),
		cmocka_unit_test_setup(requests_without_a_model_go_the_same_way, clear),
		cmocka_unit_test_setup(a_chat_gives_a_message, clear),
	};
	int rc = cmocka_run_group_tests(tests, start, stop);

	return rc;
}
