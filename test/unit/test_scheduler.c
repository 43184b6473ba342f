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

/* A sequence as prepare makes it. */
static qwen_sequence *
make(uint64_t id, int32_t n_prompt, int32_t max_tokens, int32_t priority)
{
	qwen_sequence *seq = calloc(1, sizeof(*seq));

	seq->id = id;
	seq->state = QWEN_SEQ_WAITING;
	seq->priority = priority;
	seq->n_prompt = n_prompt;
	seq->max_tokens = max_tokens;
	qwen_ids_reserve(&seq->tokens, (size_t) (n_prompt + max_tokens));
	for (int32_t i = 0; i < n_prompt; i++)
		qwen_ids_push(&seq->tokens, (int32_t) id * 1000 + i);
	seq->n_blocks = (n_prompt + max_tokens + QWEN_KV_BLOCK - 1) / QWEN_KV_BLOCK;
	seq->blocks = calloc((size_t) seq->n_blocks, sizeof(int32_t));
	return seq;
}

/* What a forward pass and the sampler would do. Returns how many sequences got a token. */
static int
play_step(qwen_scheduler *s)
{
	int got = 0;

	for (int32_t i = 0; i < s->batch.n_seqs; i++)
	{
		qwen_sequence *seq = s->members[i];

		seq->n_computed += s->seqs[i].n_tokens;
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

	assert_true(qwen_scheduler_init(&s, MAX_SEQUENCES, STEP_TOKENS, KV_BLOCKS));
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
admission_never_takes_more_than_there_is(void **state)
{
	qwen_scheduler s = start();
	qwen_sequence *first = make(1, 64, 32, 0);

	qwen_scheduler_add(&s, first);              /* 6 of 10 blocks */
	qwen_scheduler_add(&s, make(2, 64, 32, 0)); /* must wait */
	qwen_scheduler_add(&s, make(3, 5, 5, 0));   /* would fit, but never overtakes */
	qwen_scheduler_build(&s);
	assert_int_equal(s.n_running, 1);
	assert_int_equal(s.pool.n_free, 4);
	assert_int_equal(qwen_scheduler_waiting(&s), 2);

	qwen_scheduler_finish(&s, first);
	assert_int_equal(first->state, QWEN_SEQ_FLUSHING);
	assert_int_equal(s.pool.n_free, KV_BLOCKS);
	qwen_scheduler_build(&s);
	assert_int_equal(s.n_running, 2);
	assert_false(qwen_scheduler_idle(&s));
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

/* Ten thousand steps of arrivals, ends and removals: blocks are never shared and all come back. */
static void
random_traffic_keeps_the_books(void **state)
{
	qwen_scheduler s = start();
	uint32_t x = 1;
	uint64_t next_id = 1;

	for (int step = 0; step < 10000; step++)
	{
		bool taken[KV_BLOCKS] = {false};

		x = x * 1664525u + 1013904223u;
		if ((x >> 28) < 6 && qwen_scheduler_waiting(&s) < 5)
			qwen_scheduler_add(
				&s, make(next_id++, 1 + (int32_t) (x >> 8) % 90, 1 + (int32_t) (x >> 16) % 30, (int32_t) (x % 3) - 1));
		if (qwen_scheduler_build(&s))
		{
			check_batch(&s);
			play_step(&s);
		}
		for (int32_t i = 0; i < s.n_running; i++)
			for (int32_t b = 0; b < s.running[i]->n_blocks; b++)
			{
				assert_false(taken[s.running[i]->blocks[b]]);
				taken[s.running[i]->blocks[b]] = true;
			}
		for (int32_t i = s.n_running - 1; i >= 0; i--)
		{
			qwen_sequence *seq = s.running[i];

			if ((int32_t) seq->tokens.len - seq->n_prompt < seq->max_tokens && (x >> 20) % 50)
				continue;
			qwen_scheduler_finish(&s, seq);
			qwen_scheduler_remove(&s, seq);
			qwen_sequence_free(seq);
		}
	}
	assert_true(next_id > 1000);
	qwen_scheduler_destroy(&s);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_long_prompt_is_computed_in_chunks),
		cmocka_unit_test(decodes_go_before_prompts),
		cmocka_unit_test(admission_never_takes_more_than_there_is),
		cmocka_unit_test(better_priorities_start_first),
		cmocka_unit_test(removal_works_in_every_state),
		cmocka_unit_test(a_stream_with_a_slow_reader_waits),
		cmocka_unit_test(random_traffic_keeps_the_books),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
