/*
 * test_scheduler.c
 *	  Admission, batches and lists, without any model: the test plays the
 *	  forward pass by counting what the batches say.
 */
#include "unit.h"

#include "engine/scheduler.h"

enum
{
	MAX_SEQUENCES = 4,
	STEP_TOKENS = 40,
	KV_BLOCKS = 10
};

static const uint64_t key[2] = {1, 2};

/* What a step takes on the device that is played: so much, and so much for every token. */
static uint64_t fixed_us, token_us;

/* A sequence as prepare makes it: its tokens are first, first + 1, ... */
static qwen_sequence *
make_text(uint64_t id, int32_t first, int32_t n_prompt, int32_t max_tokens, int32_t session)
{
	qwen_sequence *seq = calloc(1, sizeof(*seq));
	size_t blocks = (size_t) (n_prompt + max_tokens + QWEN_KV_BLOCK - 1) / QWEN_KV_BLOCK;

	seq->id = id;
	seq->state = QWEN_SEQ_WAITING;
	seq->session = session;
	seq->arrived_us = id;
	seq->n_prompt = n_prompt;
	seq->max_tokens = max_tokens;
	qwen_ids_reserve(&seq->tokens, (size_t) (n_prompt + max_tokens));
	for (int32_t i = 0; i < n_prompt; i++)
		qwen_ids_push(&seq->tokens, first + i);
	seq->blocks = calloc(blocks, sizeof(int32_t));
	seq->names = calloc(blocks, sizeof(uint64_t));
	for (int32_t i = 0; i < n_prompt / QWEN_KV_BLOCK; i++)
		seq->names[seq->n_names++] =
			qwen_kv_name(key, i ? seq->names[i - 1] : 0, seq->tokens.data + (size_t) i * QWEN_KV_BLOCK);
	return seq;
}

static qwen_sequence *
make(uint64_t id, int32_t n_prompt, int32_t max_tokens, int32_t priority)
{
	qwen_sequence *seq = make_text(id, (int32_t) id * 1000, n_prompt, max_tokens, 0);

	seq->priority = priority;
	return seq;
}

/* What a forward pass and the sampler would do. Returns how many sequences got a token. */
static int
play_step(qwen_scheduler *s)
{
	int got = 0;

	qwen_scheduler_computed(s);
	qwen_scheduler_note_time(s, fixed_us + token_us * (uint64_t) s->batch.n_tokens);

	for (int32_t i = 0; i < s->batch.n_seqs; i++)
	{
		qwen_sequence *seq = s->members[i];

		if (qwen_sequence_pending(seq) == 0)
		{
			qwen_ids_push(&seq->tokens, 7);
			got++;
		}
	}
	assert_int_equal(got, s->batch.n_logits);
	return got;
}

/* The parts cover the batch in order, and every token, position and block list is the sequence's own. */
static void
check_batch(const qwen_scheduler *s)
{
	int32_t at = 0;

	for (int32_t i = 0; i < s->batch.n_seqs; i++)
	{
		const qwen_batch_seq *part = &s->seqs[i];
		const qwen_sequence *seq = s->members[i];

		assert_int_equal(part->first_token, at);
		assert_int_equal(part->context, seq->n_computed + part->n_tokens);
		assert_ptr_equal(part->blocks, seq->blocks);
		for (int32_t t = 0; t < part->n_tokens; t++)
		{
			assert_int_equal(s->positions[at + t], seq->n_computed + t);
			assert_int_equal(s->tokens[at + t], seq->tokens.data[seq->n_computed + t]);
		}
		at += part->n_tokens;
	}
	assert_int_equal(at, s->batch.n_tokens);
	assert_true(at <= STEP_TOKENS);
}

static qwen_scheduler
start(void)
{
	qwen_scheduler s;

	fixed_us = 100;
	token_us = 0;
	assert_true(qwen_scheduler_init(&s, MAX_SEQUENCES, STEP_TOKENS, KV_BLOCKS, key));
	return s;
}

static void
a_long_prompt_is_computed_in_chunks(void **state)
{
	qwen_scheduler s = start();

	qwen_scheduler_add(&s, make(1, 100, 10, 0));
	for (int chunk = 0; chunk < 3; chunk++)
	{
		assert_true(qwen_scheduler_build(&s));
		check_batch(&s);
		assert_int_equal(s.batch.n_tokens, chunk < 2 ? 40 : 20);
		assert_int_equal(play_step(&s), chunk == 2);
	}
	assert_true(qwen_scheduler_build(&s));
	assert_int_equal(s.batch.n_tokens, 1);
	qwen_scheduler_destroy(&s);
}

static void
decodes_go_before_prompts(void **state)
{
	qwen_scheduler s = start();

	qwen_scheduler_add(&s, make(1, 5, 20, 0));
	qwen_scheduler_build(&s);
	play_step(&s);
	qwen_scheduler_add(&s, make(2, 60, 5, 0));
	assert_true(qwen_scheduler_build(&s));
	check_batch(&s);
	assert_int_equal(s.batch.n_seqs, 2);
	assert_int_equal(s.members[0]->id, 1);
	assert_int_equal(s.seqs[0].n_tokens, 1);
	assert_int_equal(s.seqs[1].n_tokens, STEP_TOKENS - 1);
	assert_int_equal(play_step(&s), 1);
	qwen_scheduler_destroy(&s);
}

static void
nobody_starts_without_memory(void **state)
{
	qwen_scheduler s = start();
	qwen_sequence *first = make(1, 64, 32, 0);

	qwen_scheduler_add(&s, first);              /* 5 of 10 blocks, 6 at its end */
	qwen_scheduler_add(&s, make(2, 90, 32, 0)); /* 6: must wait */
	qwen_scheduler_add(&s, make(3, 5, 5, 0));   /* would fit, but never overtakes */
	qwen_scheduler_build(&s);
	assert_int_equal(s.n_running, 1);
	assert_int_equal(s.pool.n_free, 5);
	assert_int_equal(qwen_scheduler_waiting(&s), 2);

	qwen_scheduler_finish(&s, first);
	assert_int_equal(first->state, QWEN_SEQ_FLUSHING);
	assert_int_equal(s.pool.n_free, KV_BLOCKS);
	/* the second fills two steps, and the third comes with what is left of it */
	for (int step = 1; step <= 3; step++)
	{
		qwen_scheduler_build(&s);
		assert_int_equal(s.n_running, step < 3 ? 1 : 2);
		play_step(&s);
	}
	assert_false(qwen_scheduler_idle(&s));
	qwen_scheduler_destroy(&s);
}

/* Runs steps until nothing is left to compute, ending sequences at max_tokens. Returns the tokens computed. */
static int
run_to_the_end(qwen_scheduler *s)
{
	int computed = 0;

	while (qwen_scheduler_build(s))
	{
		check_batch(s);
		computed += s->batch.n_tokens;
		play_step(s);
		for (int32_t i = s->n_running - 1; i >= 0; i--)
			if ((int32_t) s->running[i]->tokens.len - s->running[i]->n_prompt == s->running[i]->max_tokens)
				qwen_scheduler_finish(s, s->running[i]);
	}
	return computed;
}

static void
who_started_last_gives_way(void **state)
{
	qwen_scheduler s = start();

	/* each grows to 6 of the 10 blocks */
	qwen_scheduler_add(&s, make(1, 40, 50, 0));
	qwen_scheduler_add(&s, make(2, 40, 50, 0));
	run_to_the_end(&s);
	assert_true(s.preemptions > 0);
	assert_int_equal(s.flushing.n, 2);
	assert_int_equal(s.flushing.head->id, 1); /* the first was never thrown out */
	assert_int_equal(s.pool.n_free, KV_BLOCKS);
	qwen_scheduler_destroy(&s);
}

static void
a_common_beginning_is_computed_once(void **state)
{
	qwen_scheduler s = start();
	int computed;

	/* 32 tokens of template, then 4 of each one's own */
	for (uint64_t id = 1; id <= 8; id++)
	{
		qwen_sequence *seq = make_text(id, 100, 36, 1, 0);

		for (int i = 32; i < 36; i++)
			seq->tokens.data[i] = (int32_t) id;
		qwen_scheduler_add(&s, seq);
	}
	computed = run_to_the_end(&s);
	assert_int_equal(computed, 36 + 7 * 4);
	assert_int_equal(s.cached_tokens, 7 * 32);
	assert_int_equal(s.flushing.n, 8);

	/* A later one finds it too, though nobody has it in use; the last token is always computed. */
	qwen_scheduler_add(&s, make_text(9, 100, 32, 1, 0));
	assert_int_equal(run_to_the_end(&s), 16);
	qwen_scheduler_destroy(&s);
}

/* 36 tokens, of which the first 32 are those of a template and the rest is its own. */
static qwen_sequence *
make_of_template(uint64_t id, int32_t template)
{
	qwen_sequence *seq = make_text(id, 100 + 1000 * template, 36, 1, 0);

	for (int i = 32; i < 36; i++)
		seq->tokens.data[i] = (int32_t) id;
	return seq;
}

/*
 * Rows of six templates in turn, and a cache of ten blocks: each template has two, each row one of its own.  In order of
 * arrival every row would compute its template anew.
 */
static void
rows_of_one_template_follow_each_other(void **state)
{
	qwen_scheduler s = start();
	const int n = 60, templates = 6;

	for (int i = 0; i < n; i++)
		qwen_scheduler_add(&s, make_of_template((uint64_t) i + 1, i % templates));
	assert_int_equal(run_to_the_end(&s), n * 4 + templates * 32);
	assert_int_equal(s.flushing.n, n);
	assert_int_equal(s.flushing.head->id, 1);
	qwen_scheduler_destroy(&s);
}

static void
nobody_is_passed_over_for_ever(void **state)
{
	qwen_scheduler s = start();
	uint64_t id = 3;
	int passed = 0;
	qwen_sequence *odd = make_of_template(2, 1);

	/* Rows with the template that is in the cache arrive without end. */
	qwen_scheduler_add(&s, make_of_template(1, 0));
	run_to_the_end(&s);
	qwen_scheduler_add(&s, odd);
	while (odd->state == QWEN_SEQ_WAITING && passed < 1000)
	{
		while (qwen_scheduler_waiting(&s) < 8)
			qwen_scheduler_add(&s, make_of_template(id++, 0));
		assert_true(qwen_scheduler_build(&s));
		play_step(&s);
		while (s.n_running > 0)
		{
			passed += s.running[0] != odd;
			qwen_scheduler_finish(&s, s.running[0]);
		}
	}
	assert_in_range(passed, 10, 70);
	qwen_scheduler_destroy(&s);
}

static void
a_beginning_that_is_never_finished_is_not_waited_for(void **state)
{
	qwen_scheduler s = start();
	qwen_sequence *first = make_text(1, 100, 80, 1, 0);

	qwen_scheduler_add(&s, first);
	qwen_scheduler_add(&s, make_text(2, 100, 80, 1, 0));
	qwen_scheduler_build(&s);
	assert_int_equal(s.n_running, 1);
	qwen_scheduler_remove(&s, first);
	qwen_sequence_free(first);
	assert_true(qwen_scheduler_build(&s));
	assert_int_equal(s.running[0]->id, 2);
	assert_int_equal(s.running[0]->n_computed, 0);
	qwen_scheduler_destroy(&s);
}

static void
the_cache_can_be_left_alone(void **state)
{
	qwen_scheduler s = start();

	for (uint64_t id = 1; id <= 2; id++)
	{
		qwen_sequence *seq = make_text(id, 100, 32, 1, 0);

		free(seq->names);
		seq->names = NULL;
		seq->n_names = 0;
		qwen_scheduler_add(&s, seq);
	}
	assert_int_equal(run_to_the_end(&s), 64);
	qwen_scheduler_destroy(&s);
}

static void
names_depend_on_everything_before(void **state)
{
	const uint64_t other_key[2] = {1, 3};
	int32_t tokens[QWEN_KV_BLOCK] = {5, 6, 7};
	uint64_t name = qwen_kv_name(key, 0, tokens);

	assert_true(name == qwen_kv_name(key, 0, tokens));
	assert_true(name != qwen_kv_name(key, 1, tokens));
	assert_true(name != qwen_kv_name(other_key, 0, tokens));
	tokens[QWEN_KV_BLOCK - 1] = 1;
	assert_true(name != qwen_kv_name(key, 0, tokens));
}

/* One session has all seats; another one's first request gets one at once. */
static void
a_newcomer_gets_a_seat(void **state)
{
	qwen_scheduler s = start();

	for (uint64_t id = 1; id <= 10; id++)
		qwen_scheduler_add(&s, make_text(id, (int32_t) id * 100, 4, 20, 1));
	qwen_scheduler_build(&s);
	play_step(&s);
	assert_int_equal(s.n_running, MAX_SEQUENCES);
	qwen_scheduler_add(&s, make_text(11, 7, 4, 20, 2));
	qwen_scheduler_build(&s);
	assert_int_equal(s.n_running, MAX_SEQUENCES);
	assert_int_equal(qwen_scheduler_find(&s, 11)->state, QWEN_SEQ_RUNNING);
	assert_int_equal(s.preemptions, 1);
	assert_int_equal(qwen_scheduler_find(&s, 4)->state, QWEN_SEQ_WAITING); /* it had started last */
	run_to_the_end(&s);
	assert_int_equal(s.flushing.n, 11);
	qwen_scheduler_destroy(&s);
}

/* From now on steps take so long, and some have been measured. */
static void
measure_steps(qwen_scheduler *s, uint64_t fixed, uint64_t each)
{
	fixed_us = fixed;
	token_us = each;
	for (int i = 0; i < 100; i++)
	{
		s->batch.n_tokens = 1 + i % 8;
		qwen_scheduler_note_time(s, fixed + each * (uint64_t) s->batch.n_tokens);
	}
}

static void
a_step_is_no_longer_than_pays(void **state)
{
	qwen_scheduler s;

	assert_true(qwen_scheduler_init(&s, 4, 1000, KV_BLOCKS, key));
	assert_int_equal(qwen_scheduler_budget(&s), 1000); /* nothing is known */

	/* ten times 1100 us */
	measure_steps(&s, 1000, 100);
	assert_in_range(qwen_scheduler_budget(&s), 95, 105);

	/* a device that takes the same time for one token and for eight */
	qwen_scheduler_destroy(&s);
	qwen_scheduler_init(&s, 4, 1000, KV_BLOCKS, key);
	measure_steps(&s, 1000, 0);
	assert_int_equal(qwen_scheduler_budget(&s), 1000);

	/* one that takes time for tokens alone */
	qwen_scheduler_destroy(&s);
	qwen_scheduler_init(&s, 4, 1000, KV_BLOCKS, key);
	measure_steps(&s, 0, 100);
	assert_int_equal(qwen_scheduler_budget(&s), 16);

	/* other work on the machine, which stretches every step by another factor */
	qwen_scheduler_destroy(&s);
	qwen_scheduler_init(&s, 4, 1000, KV_BLOCKS, key);
	for (uint64_t i = 0; i < 1000; i++)
	{
		s.batch.n_tokens = 1 + (int32_t) i % 80;
		qwen_scheduler_note_time(&s, (1000 + 100 * (uint64_t) s.batch.n_tokens) * (10 + i * 7 % 41) / 10);
	}
	assert_in_range(qwen_scheduler_budget(&s), 80, 120);
	qwen_scheduler_destroy(&s);
}

/* Where a step's time is mostly its tokens, a session with many requests may not fill the step that another shares. */
static void
a_small_session_is_not_slowed_down_by_a_large_one(void **state)
{
	qwen_scheduler s = start();

	measure_steps(&s, 10, 10); /* two tokens double the step of one */
	for (uint64_t id = 2; id <= 9; id++)
		qwen_scheduler_add(&s, make_text(id, (int32_t) id * 1000, 30, 20, 2));
	qwen_scheduler_build(&s);
	play_step(&s);
	qwen_scheduler_add(&s, make_text(1, 100, 12, 20, 1));
	qwen_scheduler_build(&s);
	check_batch(&s);
	assert_int_equal(s.members[0]->session + s.members[1]->session, 3);
	assert_in_range(s.batch.n_tokens, 12 + 1, 12 + 12); /* no more of the others than of this one's prompt */
	play_step(&s);
	qwen_scheduler_build(&s);
	check_batch(&s);
	assert_int_equal(s.members[0]->id, 1);
	assert_in_range(s.batch.n_tokens, 2, 3);
	play_step(&s);
	run_to_the_end(&s);
	assert_int_equal(s.flushing.n, 9);
	assert_int_equal(s.flushing.head->id, 1);
	qwen_scheduler_destroy(&s);
}

/* A large session stands beside so many small ones that they fill every step, and goes on all the same. */
static void
a_large_session_never_stands_still(void **state)
{
	qwen_scheduler s;
	int got = 0;

	assert_true(qwen_scheduler_init(&s, 64, 64, 256, key));
	measure_steps(&s, 10, 10);
	for (uint64_t id = 1; id <= 8; id++)
		qwen_scheduler_add(&s, make_text(id, (int32_t) id * 1000, 4, 20, 1));
	for (uint64_t id = 101; id <= 140; id++)
		qwen_scheduler_add(&s, make_text(id, (int32_t) id * 1000, 30, 20, (int32_t) id));
	for (int step = 0; step < 30; step++)
	{
		assert_true(qwen_scheduler_build(&s));
		for (int32_t i = 0; i < s.batch.n_seqs; i++)
			got += s.members[i]->session == 1 ? s.seqs[i].n_tokens : 0;
		assert_true(s.batch.n_tokens <= 24);
		play_step(&s);
	}
	assert_in_range(got, 30, 100);
	qwen_scheduler_destroy(&s);
}

/* Sixteen sessions decode, a seventeenth comes: no step is longer for it, and it does not wait for their end. */
static void
sessions_take_turns(void **state)
{
	qwen_scheduler s;
	bool served = false;

	assert_true(qwen_scheduler_init(&s, 64, 64, 256, key));
	measure_steps(&s, 0, 100);
	for (uint64_t id = 1; id <= 20; id++)
		qwen_scheduler_add(&s, make_text(id, (int32_t) id * 1000, 1, 40, (int32_t) id));
	for (int step = 0; step < 5; step++)
	{
		qwen_scheduler_build(&s);
		assert_int_equal(s.batch.n_tokens, 16);
		play_step(&s);
	}
	for (int32_t i = 0; i < s.n_running; i++)
		assert_int_equal(s.running[i]->n_computed, 4); /* 5 x 16 tokens among 20 */
	qwen_scheduler_add(&s, make_text(30, 7, 1, 4, 30));
	qwen_scheduler_build(&s);
	for (int32_t i = 0; i < s.batch.n_seqs; i++)
		served |= s.members[i]->id == 30;
	assert_true(served);
	qwen_scheduler_destroy(&s);
}

static void
a_long_prompt_does_not_stop_the_others(void **state)
{
	qwen_scheduler s;

	assert_true(qwen_scheduler_init(&s, 64, 64, 256, key));
	measure_steps(&s, 0, 100);
	for (uint64_t id = 1; id <= 5; id++)
		qwen_scheduler_add(&s, make_text(id, (int32_t) id * 1000, id == 1 ? 500 : 1, 40, (int32_t) id));
	for (int step = 1; step <= 20; step++)
	{
		assert_true(qwen_scheduler_build(&s));
		assert_int_equal(s.batch.n_seqs, 5);
		assert_int_equal(s.batch.n_tokens, 16);
		play_step(&s);
	}
	qwen_scheduler_destroy(&s);
}

/* Further sequences of a session start only when those that run do not fill the step. */
static void
no_more_are_started_than_have_work(void **state)
{
	qwen_scheduler s;

	assert_true(qwen_scheduler_init(&s, 64, 64, 256, key));
	measure_steps(&s, 0, 100);
	for (uint64_t id = 1; id <= 60; id++)
		qwen_scheduler_add(&s, make_text(id, (int32_t) id * 1000, 8, 20, 1));
	for (int step = 0; step < 40; step++)
	{
		assert_true(qwen_scheduler_build(&s));
		assert_int_equal(s.batch.n_tokens, 16);
		assert_true(s.n_running <= 17);
		play_step(&s);
		for (int32_t i = s.n_running - 1; i >= 0; i--)
			if ((int32_t) s.running[i]->tokens.len - s.running[i]->n_prompt == s.running[i]->max_tokens)
				qwen_scheduler_finish(&s, s.running[i]);
	}
	qwen_scheduler_destroy(&s);
}

/* A stream that nobody reads must not keep the cache from the others. */
static void
an_unread_stream_gives_its_memory_to_others(void **state)
{
	qwen_scheduler s = start();
	qwen_sequence *seq = make_text(1, 100, 90, 20, 1);

	seq->flags = QWEN_FLAG_STREAM;
	qwen_scheduler_add(&s, seq);
	while (qwen_scheduler_build(&s) && !play_step(&s))
		;
	qwen_output_append(&seq->out, "unread", 6);
	qwen_scheduler_add(&s, make_text(2, 5000, 90, 20, 1));
	run_to_the_end(&s);
	assert_int_equal(s.flushing.n, 1);
	assert_int_equal(s.flushing.head->id, 2);
	assert_int_equal(seq->state, QWEN_SEQ_WAITING);
	seq->out.sent = seq->out.ready.len = 0;
	run_to_the_end(&s);
	assert_int_equal(s.flushing.n, 2);
	qwen_scheduler_destroy(&s);
}

static void
better_priorities_start_first(void **state)
{
	qwen_scheduler s = start();

	for (uint64_t id = 1; id <= 6; id++)
		qwen_scheduler_add(&s, make(id, 4, 4, id <= 2 ? -1 : id <= 4 ? 0 : 1));
	qwen_scheduler_build(&s);
	assert_int_equal(s.n_running, MAX_SEQUENCES);
	assert_int_equal(s.running[0]->id, 5);
	assert_int_equal(s.running[1]->id, 6);
	assert_int_equal(s.running[2]->id, 3);
	assert_int_equal(s.running[3]->id, 4);
	qwen_scheduler_destroy(&s);
}

static void
removal_works_in_every_state(void **state)
{
	qwen_scheduler s = start();

	for (uint64_t id = 1; id <= 6; id++)
		qwen_scheduler_add(&s, make(id, 4, 4, 0));
	qwen_scheduler_build(&s);
	qwen_scheduler_finish(&s, qwen_scheduler_find(&s, 2));
	for (uint64_t id = 1; id <= 6; id++)
	{
		qwen_sequence *seq = qwen_scheduler_find(&s, id);

		assert_non_null(seq);
		qwen_scheduler_remove(&s, seq);
		qwen_sequence_free(seq);
		assert_null(qwen_scheduler_find(&s, id));
	}
	assert_true(qwen_scheduler_idle(&s));
	assert_int_equal(s.pool.n_free, KV_BLOCKS);
	assert_false(qwen_scheduler_build(&s));
	qwen_scheduler_destroy(&s);
}

static void
a_stream_with_a_slow_reader_waits(void **state)
{
	qwen_scheduler s = start();
	qwen_sequence *seq = make(1, 4, 20, 0);

	seq->flags = QWEN_FLAG_STREAM;
	qwen_scheduler_add(&s, seq);
	assert_true(qwen_scheduler_build(&s));
	play_step(&s);
	qwen_output_append(&seq->out, "unread", 6);
	assert_false(qwen_scheduler_build(&s));
	seq->out.sent = seq->out.ready.len = 0;
	assert_true(qwen_scheduler_build(&s));
	qwen_scheduler_destroy(&s);
}

/* Whether the books are right: every block has as many users as tables that hold it, the rest is free. */
static void
check_books(const qwen_scheduler *s)
{
	int users[KV_BLOCKS] = {0};
	int n_free = 0;

	for (int32_t i = 0; i < s->n_running; i++)
		for (int32_t b = 0; b < s->running[i]->n_blocks; b++)
			users[s->running[i]->blocks[b]]++;
	for (int b = 0; b < KV_BLOCKS; b++)
	{
		assert_int_equal(s->pool.blocks[b].users, users[b]);
		n_free += users[b] == 0;
		assert_true(users[b] < 2 || s->pool.blocks[b].ready);
	}
	assert_int_equal(s->pool.n_free, n_free);
}

/* Ten thousand steps of arrivals, ends and removals, with common beginnings, sessions and priorities. */
static void
random_traffic_keeps_the_books(void **state)
{
	qwen_scheduler s = start();
	uint32_t x = 1;
	uint64_t next_id = 1;
	int ended = 0;

	for (int step = 0; step < 10000; step++)
	{
		x = x * 1664525u + 1013904223u;
		if ((x >> 28) < 6 && qwen_scheduler_waiting(&s) < 5)
		{
			qwen_sequence *seq = make_text(next_id++, (int32_t) (x >> 27 & 1) * 500, 1 + (int32_t) (x >> 8) % 90,
										   1 + (int32_t) (x >> 16) % 60, (int32_t) (x >> 5) % 3);

			seq->priority = (int32_t) (x % 3) - 1;
			assert_true(qwen_scheduler_add(&s, seq));
		}
		if (qwen_scheduler_build(&s))
		{
			check_batch(&s);
			play_step(&s);
		}
		else
			assert_int_equal(qwen_scheduler_waiting(&s), 0); /* nobody waits beside an idle processor */
		check_books(&s);
		for (int32_t i = s.n_running - 1; i >= 0; i--)
		{
			qwen_sequence *seq = s.running[i];

			if ((int32_t) seq->tokens.len - seq->n_prompt < seq->max_tokens && (x >> 20) % 50)
				continue;
			qwen_scheduler_finish(&s, seq);
			qwen_scheduler_remove(&s, seq);
			qwen_sequence_free(seq);
			ended++;
		}
	}
	assert_true(next_id > 500 && ended > 500 && s.preemptions > 0 && s.cached_tokens > 0);
	assert_true(s.n_sessions <= 9);
	qwen_scheduler_destroy(&s);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_long_prompt_is_computed_in_chunks),
		cmocka_unit_test(decodes_go_before_prompts),
		cmocka_unit_test(nobody_starts_without_memory),
		cmocka_unit_test(who_started_last_gives_way),
		cmocka_unit_test(a_common_beginning_is_computed_once),
		cmocka_unit_test(rows_of_one_template_follow_each_other),
		cmocka_unit_test(nobody_is_passed_over_for_ever),
		cmocka_unit_test(a_beginning_that_is_never_finished_is_not_waited_for),
		cmocka_unit_test(the_cache_can_be_left_alone),
		cmocka_unit_test(names_depend_on_everything_before),
		cmocka_unit_test(a_newcomer_gets_a_seat),
		cmocka_unit_test(a_step_is_no_longer_than_pays),
		cmocka_unit_test(no_more_are_started_than_have_work),
		cmocka_unit_test(sessions_take_turns),
		cmocka_unit_test(a_long_prompt_does_not_stop_the_others),
		cmocka_unit_test(a_large_session_never_stands_still),
		cmocka_unit_test(a_small_session_is_not_slowed_down_by_a_large_one),
		cmocka_unit_test(an_unread_stream_gives_its_memory_to_others),
		cmocka_unit_test(better_priorities_start_first),
		cmocka_unit_test(removal_works_in_every_state),
		cmocka_unit_test(a_stream_with_a_slow_reader_waits),
		cmocka_unit_test(random_traffic_keeps_the_books),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
