/*
 * engine.c
 *	  The engine as a library: load, submit, step, answer.
 *
 * A step is: build a batch, run the forward pass, draw one token for every
 * sequence whose tokens are all computed, send what can be sent.
 */
#include <malloc.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "engine_internal.h"

static qwen_status open_tokenizer(qwen_engine *e, const char *path, qwen_error *err);
static bool mark_allowed(qwen_engine *e);
static bool open_samplers(qwen_engine *e, size_t rows);
static void collect_eos(qwen_engine *e);
static void announce(const qwen_engine *e);
static void draw(qwen_engine *e, int32_t n);
static void advance(qwen_engine *e, qwen_sequence *seq, int32_t id);
static void finish(qwen_engine *e, qwen_sequence *seq, qwen_finish_reason reason, bool stopped);
static void deliver(qwen_engine *e, qwen_sequence *seq);
static void fail(qwen_engine *e, qwen_sequence *seq, const qwen_error *err);

qwen_status
qwen_engine_open(const qwen_model_options *options, qwen_progress_fn progress, void *arg, qwen_engine **out,
				 qwen_error *err)
{
	qwen_engine *e = calloc(1, sizeof(*e));
	qwen_model_options opts = *options;
	size_t vocab, rows;

	*out = NULL;
	*err = (qwen_error){0};
	if (!e)
		return qwen_fail_memory(err, sizeof(*e));
	if (opts.step_tokens < opts.max_sequences)
		opts.step_tokens = opts.max_sequences;
	/* The tokenizer first: it is small, and its mistakes should not wait for gigabytes. */
	if (open_tokenizer(e, opts.path, err))
		goto failed;
	malloc_trim(0); /* its file was a tree of objects, five times as large as what is left of it */
	if (qwen_model_open(&opts, progress, arg, &e->model, err))
		goto failed;
	vocab = (size_t) qwen_model_config(e->model)->vocab_size;
	rows = (size_t) qwen_model_max_sequences(e->model);
	e->logits = malloc(rows * vocab * sizeof(float));
	if (e->logits == NULL || !mark_allowed(e) || !open_samplers(e, rows) ||
		getrandom(e->kv_key, sizeof(e->kv_key), 0) != sizeof(e->kv_key) ||
		!qwen_scheduler_init(&e->scheduler, (int32_t) rows, qwen_model_step_tokens(e->model),
							 qwen_model_kv_blocks(e->model), e->kv_key))
	{
		qwen_fail_memory(err, rows * vocab * sizeof(float));
		goto failed;
	}
	collect_eos(e);
	e->prefix_cache = !opts.no_prefix_cache;
	*out = e;
	return QWEN_OK;

failed:
	qwen_engine_close(e);
	return err->status;
}

void
qwen_engine_close(qwen_engine *e)
{
	if (!e)
		return;
	qwen_scheduler_destroy(&e->scheduler);
	for (int32_t i = 0; e->samplers && i < e->n_samplers; i++)
		qwen_sampler_free(e->samplers[i]);
	free(e->samplers);
	free(e->drawing);
	free(e->drawn);
	free(e->logits);
	free(e->allowed);
	qwen_model_close(e->model);
	qwen_tokenizer_close(e->tokenizer);
	free(e);
}

/* A folder without tokenizer files is fine for work on ids. */
static qwen_status
open_tokenizer(qwen_engine *e, const char *path, qwen_error *err)
{
	if (qwen_tokenizer_open(path, &e->tokenizer, err) != QWEN_OK)
	{
		if (err->status != QWEN_NOT_FOUND)
			return err->status;
		*err = (qwen_error){0};
		return QWEN_OK;
	}
	if (qwen_chat_detect(path, &e->chat_format, err) == QWEN_OK)
	{
		*err = (qwen_error){0};
		return QWEN_OK;
	}
	/* A template that is not known is no reason to refuse raw continuations. */
	if (err->status != QWEN_UNSUPPORTED)
		return err->status;
	e->chat_error = *err;
	*err = (qwen_error){0};
	return QWEN_OK;
}

/* Rows of the head beyond the tokenizer's ids are padding and must never be drawn. */
static bool
mark_allowed(qwen_engine *e)
{
	int32_t vocab = qwen_model_config(e->model)->vocab_size;
	size_t len;

	if (!e->tokenizer)
		return true;
	e->allowed = malloc((size_t) vocab * sizeof(bool));
	if (!e->allowed)
		return false;
	for (int32_t id = 0; id < vocab; id++)
		e->allowed[id] = qwen_tokenizer_token(e->tokenizer, id, &len) != NULL;
	return true;
}

/* One for each thread, as they hold scratch memory; more than rows would have nothing to do. */
static bool
open_samplers(qwen_engine *e, size_t rows)
{
	int32_t vocab = qwen_model_config(e->model)->vocab_size;
	int32_t n = qwen_model_threads(e->model);

	e->n_samplers = (size_t) n < rows ? n : (int32_t) rows;
	e->samplers = calloc((size_t) e->n_samplers, sizeof(*e->samplers));
	e->drawing = calloc(rows, sizeof(*e->drawing));
	e->drawn = calloc(rows, sizeof(*e->drawn));
	if (!e->samplers || !e->drawing || !e->drawn)
		return false;
	for (int32_t i = 0; i < e->n_samplers; i++)
		if (!(e->samplers[i] = qwen_sampler_new(vocab, e->allowed)))
			return false;
	return true;
}

static void
collect_eos(qwen_engine *e)
{
	const qwen_config *config = qwen_model_config(e->model);
	int32_t own = e->tokenizer ? qwen_tokenizer_eos(e->tokenizer) : -1;

	memcpy(e->eos, config->eos, (size_t) config->n_eos * sizeof(int32_t));
	e->n_eos = config->n_eos;
	if (own >= 0)
		e->eos[e->n_eos++] = own;
}

void
qwen_engine_set_events(qwen_engine *e, const qwen_events *events)
{
	e->events = *events;
}

const qwen_model *
qwen_engine_model(const qwen_engine *e)
{
	return e->model;
}

const qwen_tokenizer *
qwen_engine_tokenizer(const qwen_engine *e)
{
	return e->tokenizer;
}

void
qwen_engine_submit(qwen_engine *e, qwen_sequence *seq)
{
	if (!qwen_scheduler_add(&e->scheduler, seq))
	{
		qwen_error err;

		qwen_fail_memory(&err, sizeof(qwen_session));
		e->events.failed(e->events.arg, seq->id, &err);
		qwen_sequence_free(seq);
	}
	else if (seq->state == QWEN_SEQ_FLUSHING)
		deliver(e, seq);
}

void
qwen_engine_cancel(qwen_engine *e, uint64_t id)
{
	qwen_sequence *seq = qwen_scheduler_find(&e->scheduler, id);

	if (!seq)
		return;
	qwen_scheduler_remove(&e->scheduler, seq);
	qwen_sequence_free(seq);
}

void
qwen_engine_credit(qwen_engine *e, uint64_t id, uint64_t consumed)
{
	qwen_sequence *seq = qwen_scheduler_find(&e->scheduler, id);

	if (!seq || consumed < seq->out.credited || consumed > seq->out.sent_records)
		return;
	seq->out.credited = consumed;
	deliver(e, seq);
}

bool
qwen_engine_idle(const qwen_engine *e)
{
	return qwen_scheduler_idle(&e->scheduler);
}

qwen_status
qwen_engine_step(qwen_engine *e, bool *ran, qwen_error *err)
{
	qwen_scheduler *s = &e->scheduler;
	int32_t rows = 0;
	uint64_t begin = qwen_now_us();

	*ran = qwen_scheduler_build(s);
	if (!*ran)
		return QWEN_OK;
	if (e->events.started)
		announce(e);
	if (qwen_model_forward(e->model, &s->batch, e->logits, err) != QWEN_OK)
		return err->status;
	e->steps++;
	qwen_scheduler_computed(s);
	for (int32_t i = 0; i < s->batch.n_seqs; i++)
	{
		qwen_sequence *seq = s->members[i];

		seq->done.steps++;
		seq->done.batched_tokens += (uint64_t) s->batch.n_tokens;
		if (qwen_sequence_pending(seq) == 0)
			e->drawing[rows++] = seq;
	}
	draw(e, rows);
	for (int32_t i = 0; i < rows; i++)
		advance(e, e->drawing[i], e->drawn[i]);
	qwen_scheduler_note_time(s, qwen_now_us() - begin);
	return QWEN_OK;
}

/* Tells of the sequences whose first step this is. */
static void
announce(const qwen_engine *e)
{
	for (int32_t i = 0; i < e->scheduler.batch.n_seqs; i++)
	{
		const qwen_sequence *seq = e->scheduler.members[i];
		qwen_progress p = {seq->n_prompt, 0, 1};

		if (seq->done.steps == 0)
			e->events.started(e->events.arg, seq->id, &p);
	}
}

static bool
is_eos(const qwen_engine *e, int32_t id)
{
	for (int32_t i = 0; i < e->n_eos; i++)
		if (e->eos[i] == id)
			return true;
	return false;
}

/* The rows of a step that are to be drawn, shared among the samplers. */
typedef struct draw_job
{
	qwen_engine *e;
	int32_t rows;
	atomic_int next; /* row that nobody has taken */
} draw_job;

/* A qwen_loop_fn: one item a sampler. It takes rows until there are none. */
static void
draw_rows(void *arg, int64_t begin, int64_t end)
{
	draw_job *job = arg;
	qwen_engine *e = job->e;
	size_t vocab = (size_t) qwen_model_config(e->model)->vocab_size;

	for (int64_t i = begin; i < end; i++)
		for (int row; (row = atomic_fetch_add(&job->next, 1)) < job->rows;)
		{
			const qwen_sequence *seq = e->drawing[row];

			e->drawn[row] = qwen_sample(e->samplers[i], &seq->sampling, e->logits + vocab * (size_t) row,
										seq->tokens.data, (int32_t) seq->tokens.len, seq->n_prompt);
		}
}

/* Draws the next tokens of the first n of e->drawing. */
static void
draw(qwen_engine *e, int32_t n)
{
	draw_job job = {.e = e, .rows = n};

	qwen_model_loop(e->model, n < e->n_samplers ? n : e->n_samplers, 1, draw_rows, &job);
}

/* Adds the sequence's next token and sends what that completes. */
static void
advance(qwen_engine *e, qwen_sequence *seq, int32_t id)
{
	bool stopped = false;

	if (seq->tokens.len == (size_t) seq->n_prompt)
		seq->done.first_us = qwen_now_us() - seq->started_us;
	if (is_eos(e, id) && !(seq->flags & QWEN_FLAG_IGNORE_EOS))
	{
		finish(e, seq, QWEN_FINISH_STOP, false);
		return;
	}
	seq->tokens.data[seq->tokens.len++] = id; /* room was reserved by prepare */
	seq->done.output_tokens++;
	if (e->tokenizer && !qwen_output_push(&seq->out, e->tokenizer, id, &stopped))
	{
		qwen_error err;

		qwen_fail_memory(&err, seq->out.ready.len);
		fail(e, seq, &err);
	}
	else if (stopped)
		finish(e, seq, QWEN_FINISH_STOP, true);
	else if (seq->done.output_tokens == seq->max_tokens)
		finish(e, seq, QWEN_FINISH_LENGTH, false);
	else if (seq->flags & QWEN_FLAG_STREAM)
		deliver(e, seq);
}

/* Whether a model that was free to think did so. */
static bool
begins_with_think(const qwen_bytes *text)
{
	size_t at = text->len ? strspn(text->data, " \t\r\n") : 0;

	return text->len && !strncmp(text->data + at, "<think>", strlen("<think>"));
}

/* Replaces the raw text of a CHAT answer by its message as JSON. */
static qwen_status
make_message(qwen_sequence *seq, qwen_error *err)
{
	qwen_bytes text = seq->out.ready;
	bool thinking = seq->out.in_thinking || (seq->out.may_think && begins_with_think(&text));
	json_t *message;
	char *dump;
	bool ok;

	seq->out.ready = (qwen_bytes){0};
	seq->out.skip = seq->message_skip;
	if (qwen_chat_parse(text.data ? text.data : "", text.len, thinking, &message, err) != QWEN_OK)
	{
		qwen_bytes_free(&text);
		return err->status;
	}
	qwen_bytes_free(&text);
	dump = json_dumps(message, JSON_PRESERVE_ORDER | JSON_COMPACT);
	json_decref(message);
	ok = dump && qwen_output_append(&seq->out, dump, strlen(dump));
	free(dump);
	return ok ? QWEN_OK : qwen_fail_memory(err, text.len);
}

/* The last token is there: frees the cache, completes the answer, sends it. */
static void
finish(qwen_engine *e, qwen_sequence *seq, qwen_finish_reason reason, bool stopped)
{
	qwen_error err = {0};
	uint64_t now = qwen_now_us();

	qwen_scheduler_finish(&e->scheduler, seq);
	seq->done.finish_reason = reason;
	seq->done.queue_us = seq->started_us - seq->arrived_us;
	seq->done.run_us = now - seq->started_us;
	if (!stopped && !qwen_output_finish(&seq->out))
		qwen_fail_memory(&err, seq->out.held.len);
	else if (seq->kind == QWEN_KIND_CHAT)
		make_message(seq, &err);
	if (err.status != QWEN_OK)
		fail(e, seq, &err);
	else
		deliver(e, seq);
}

/* Sends what the window allows; a complete answer that is all sent ends the sequence. */
static void
deliver(qwen_engine *e, qwen_sequence *seq)
{
	if (!qwen_output_flush(&seq->out, seq->id, &e->events) || seq->state != QWEN_SEQ_FLUSHING)
		return;
	qwen_scheduler_remove(&e->scheduler, seq);
	e->events.done(e->events.arg, seq->id, &seq->done, seq->tokens.data + seq->n_prompt,
				   seq->tokens.len - (size_t) seq->n_prompt);
	qwen_sequence_free(seq);
}

static void
fail(qwen_engine *e, qwen_sequence *seq, const qwen_error *err)
{
	qwen_scheduler_remove(&e->scheduler, seq);
	e->events.failed(e->events.arg, seq->id, err);
	qwen_sequence_free(seq);
}

void
qwen_engine_heartbeat(const qwen_engine *e, qwen_heartbeat *out)
{
	const qwen_scheduler *s = &e->scheduler;

	*out = (qwen_heartbeat){.steps = e->steps,
							.running = s->n_running,
							.waiting = qwen_scheduler_waiting(s),
							.kv_blocks_used = s->pool.n_blocks - s->pool.n_free,
							.kv_blocks = s->pool.n_blocks,
							.batched_tokens = s->batched_tokens,
							.cached_tokens = s->cached_tokens,
							.preemptions = s->preemptions};
}

void
qwen_engine_each(const qwen_engine *e, void (*fn)(void *arg, uint64_t id, const qwen_progress *progress), void *arg)
{
	for (int32_t i = 0; i < e->scheduler.n_running; i++)
	{
		const qwen_sequence *seq = e->scheduler.running[i];
		qwen_progress p = {seq->n_prompt, seq->done.output_tokens, 1};

		fn(arg, seq->id, &p);
	}
}
