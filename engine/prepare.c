/*
 * prepare.c
 *	  From a request to a sequence that can be scheduled: checks, rendering,
 *	  tokenising, and resolution of everything that was left unset.
 *
 * Runs in any thread and touches only what is constant after loading.  All
 * memory that the sequence will need is reserved here, so that an admitted
 * sequence cannot fail for want of it.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine_internal.h"

/* A prompt's text and where in it control tokens count. */
typedef struct prompt_text
{
	const char *text;
	size_t len;
	const qwen_span *spans;
	size_t n_spans;
} prompt_text;

static qwen_status prepare_generation(qwen_engine *engine, const qwen_request *r, qwen_sequence *seq, qwen_error *err);
static qwen_status prepare_tokens(qwen_engine *engine, const qwen_request *r, qwen_sequence *seq, qwen_error *err);
static qwen_status prompt_ids(qwen_engine *engine, const qwen_request *r, qwen_sequence *seq, qwen_error *err);

qwen_status
qwen_engine_prepare(qwen_engine *engine, const qwen_request *request, qwen_sequence **out, qwen_error *err)
{
	qwen_sequence *seq = calloc(1, sizeof(*seq));
	qwen_status status;

	*out = NULL;
	*err = (qwen_error){0};
	if (!seq)
		return qwen_fail_memory(err, sizeof(*seq));
	seq->id = request->id;
	seq->kind = request->head.kind;
	seq->flags = request->head.flags;
	seq->priority = request->head.priority;
	seq->session = request->head.session;
	if (seq->kind == QWEN_KIND_CHAT)
		seq->message_skip = request->head.skip;
	else
		seq->out.skip = request->head.skip;
	seq->arrived_us = qwen_now_us();
	switch (request->head.kind)
	{
		case QWEN_KIND_GENERATE:
		case QWEN_KIND_COMPLETE:
		case QWEN_KIND_CHAT:
			status = prepare_generation(engine, request, seq, err);
			break;
		case QWEN_KIND_TOKENIZE:
		case QWEN_KIND_COUNT:
		case QWEN_KIND_DETOKENIZE:
			seq->state = QWEN_SEQ_FLUSHING;
			status = prepare_tokens(engine, request, seq, err);
			break;
		default:
			status = qwen_fail(err, QWEN_INVALID, "unknown kind of request: %u", request->head.kind);
	}
	if (status != QWEN_OK)
	{
		qwen_sequence_free(seq);
		return status;
	}
	*out = seq;
	return QWEN_OK;
}

void
qwen_sequence_free(qwen_sequence *seq)
{
	if (!seq)
		return;
	qwen_output_free(&seq->out);
	qwen_ids_free(&seq->tokens);
	free(seq->blocks);
	free(seq->names);
	free(seq);
}

int
qwen_sequence_prompt_tokens(const qwen_sequence *seq)
{
	return seq->done.prompt_tokens;
}

/* ---- sampling ---- */

static float
given_or(float value, float fallback)
{
	return qwen_is_unset(value) ? fallback : value;
}

static qwen_status
check_range(const char *name, float value, float min, float max, qwen_error *err)
{
	if (value >= min && value <= max)
		return QWEN_OK;
	return qwen_fail(err, QWEN_INVALID, "%s must be between %g and %g, not %g", name, (double) min, (double) max,
					 (double) value);
}

/* Request over generation_config over built-in; temperature alone is greedy unless asked for. */
static qwen_status
resolve_sampling(const qwen_config *config, const qwen_request_header *h, qwen_sampling *s, qwen_error *err)
{
	*s = (qwen_sampling){.temperature = given_or(h->temperature, 0),
						 .top_p = given_or(h->top_p, config->top_p),
						 .min_p = given_or(h->min_p, config->min_p),
						 .top_k = h->top_k == QWEN_UNSET_INT ? config->top_k : h->top_k,
						 .presence_penalty = given_or(h->presence_penalty, 0),
						 .frequency_penalty = given_or(h->frequency_penalty, 0),
						 .repetition_penalty = given_or(h->repetition_penalty, config->repetition_penalty),
						 .seed = h->seed};
	if (check_range("temperature", s->temperature, 0, 100, err) || check_range("top_p", s->top_p, 0, 1, err) ||
		check_range("min_p", s->min_p, 0, 1, err) || check_range("presence_penalty", s->presence_penalty, -2, 2, err) ||
		check_range("frequency_penalty", s->frequency_penalty, -2, 2, err) ||
		check_range("repetition_penalty", s->repetition_penalty, 0.01f, 100, err))
		return err->status;
	if (s->top_k < 0)
		s->top_k = 0;
	if (h->max_tokens < 1)
		return qwen_fail(err, QWEN_INVALID, "max_tokens must be at least 1, not %d", h->max_tokens);
	return QWEN_OK;
}

static qwen_status
copy_stops(const qwen_request *r, qwen_output *out, qwen_error *err)
{
	if (r->n_stop == 0)
		return QWEN_OK;
	out->stop = calloc(r->n_stop, sizeof(char *));
	out->stop_len = calloc(r->n_stop, sizeof(size_t));
	if (!out->stop || !out->stop_len)
		return qwen_fail_memory(err, r->n_stop * (sizeof(char *) + sizeof(size_t)));
	for (size_t i = 0; i < r->n_stop; i++)
	{
		if (r->stop_len[i] == 0)
			return qwen_fail(err, QWEN_INVALID, "stop strings must not be empty");
		out->stop[i] = malloc(r->stop_len[i]);
		if (!out->stop[i])
			return qwen_fail_memory(err, r->stop_len[i]);
		memcpy(out->stop[i], r->stop[i], r->stop_len[i]);
		out->stop_len[i] = r->stop_len[i];
		out->n_stop = i + 1;
	}
	return QWEN_OK;
}

/* ---- generation ---- */

static qwen_status
too_long(const qwen_engine *engine, size_t needed, qwen_error *err)
{
	qwen_fail(err, QWEN_TOO_LONG, "prompt is longer than the context");
	qwen_fail_detail(err,
					 "The prompt takes %zu tokens and at least one is needed for the answer; the context holds %d.",
					 needed, qwen_model_max_len(engine->model));
	return qwen_fail_hint(
		err, "Shorten the prompt, raise qwen.max_model_len, or allow cutting with options => '{\"truncate\": true}'.");
}

static qwen_status
no_room(const qwen_engine *engine, size_t n_prompt, int32_t max_tokens, qwen_error *err)
{
	qwen_fail(err, QWEN_TOO_LONG, "prompt and max_tokens together are longer than the context");
	qwen_fail_detail(err, "It needs %zu tokens, %zu for the prompt and %d for the answer; the context holds %d.",
					 n_prompt + (size_t) max_tokens, n_prompt, max_tokens, qwen_model_max_len(engine->model));
	return qwen_fail_hint(err, "Lower max_tokens, leave it out to take what is left, shorten the prompt, or raise "
							   "qwen.max_model_len.");
}

/*
 * Refuses what can never fit, before anything runs.  The context is the only limit: the cache has room for at least one
 * sequence that fills it (plan.h), so a request within it is sure to come to its end.
 */
static qwen_status
check_length(const qwen_engine *engine, const qwen_request_header *h, size_t n_prompt, qwen_error *err)
{
	size_t context = (size_t) qwen_model_max_len(engine->model);

	if (n_prompt >= context)
		return too_long(engine, n_prompt, err);
	if ((h->flags & QWEN_FLAG_MAX_TOKENS) && (size_t) h->max_tokens > context - n_prompt)
		return no_room(engine, n_prompt, h->max_tokens, err);
	return QWEN_OK;
}

/* Names the full blocks of the prompt; those of the answer follow as it grows. */
static void
name_prompt(const qwen_engine *engine, qwen_sequence *seq)
{
	for (int32_t i = 0; i < seq->n_prompt / QWEN_KV_BLOCK; i++)
		seq->names[i] =
			qwen_kv_name(engine->kv_key, i ? seq->names[i - 1] : 0, seq->tokens.data + (size_t) i * QWEN_KV_BLOCK);
	seq->n_names = seq->n_prompt / QWEN_KV_BLOCK;
}

/* Reserves the tokens and the list of cache blocks for the longest answer that fits. */
static qwen_status
reserve(const qwen_engine *engine, const qwen_request_header *h, qwen_sequence *seq, qwen_error *err)
{
	size_t room = (size_t) qwen_model_max_len(engine->model) - seq->tokens.len;
	size_t n_prompt = seq->tokens.len;
	size_t total, max_blocks;
	bool cached = engine->prefix_cache && !(h->flags & QWEN_FLAG_NO_CACHE);

	seq->n_prompt = seq->done.prompt_tokens = (int32_t) n_prompt;
	seq->max_tokens = (size_t) h->max_tokens < room ? h->max_tokens : (int32_t) room;
	total = n_prompt + (size_t) seq->max_tokens;
	if (!qwen_ids_reserve(&seq->tokens, total))
		return qwen_fail_memory(err, total * sizeof(int32_t));
	max_blocks = (total + QWEN_KV_BLOCK - 1) / QWEN_KV_BLOCK;
	seq->blocks = malloc(max_blocks * sizeof(int32_t));
	if (cached)
		seq->names = malloc(max_blocks * sizeof(uint64_t));
	if (!seq->blocks || (!seq->names && cached))
		return qwen_fail_memory(err, max_blocks * (sizeof(int32_t) + sizeof(uint64_t)));
	if (seq->names)
		name_prompt(engine, seq);
	return QWEN_OK;
}

static qwen_status
prepare_generation(qwen_engine *engine, const qwen_request *r, qwen_sequence *seq, qwen_error *err)
{
	const qwen_config *config = qwen_model_config(engine->model);
	bool thinking = (r->head.flags & QWEN_FLAG_THINKING) != 0;
	bool opened = engine->chat_format == QWEN_CHAT_QWEN3_THINKING_2507;

	seq->state = QWEN_SEQ_WAITING;
	if (resolve_sampling(config, &r->head, &seq->sampling, err) || copy_stops(r, &seq->out, err) ||
		prompt_ids(engine, r, seq, err))
		return err->status;
	if (seq->tokens.len == 0)
		return qwen_fail(err, QWEN_INVALID, "prompt must not be empty");
	if (check_length(engine, &r->head, seq->tokens.len, err))
		return err->status;
	if (r->head.kind != QWEN_KIND_COMPLETE)
	{
		seq->out.in_thinking = opened;
		seq->out.may_think = thinking;
		seq->out.filter_thinking = (opened || thinking) && r->head.kind == QWEN_KIND_GENERATE;
		seq->out.think.inside = opened;
		seq->out.think.decided = opened;
	}
	return reserve(engine, &r->head, seq, err);
}

static qwen_status
need_tokenizer(const qwen_engine *engine, qwen_error *err)
{
	if (engine->tokenizer)
		return QWEN_OK;
	return qwen_fail(err, QWEN_NOT_READY, "the model's folder has no tokenizer files");
}

static qwen_status
tokenize_into(qwen_engine *engine, const qwen_request *r, prompt_text p, qwen_ids *ids, qwen_error *err)
{
	qwen_span whole = {0, p.len};

	ids->len = 0;
	if (r->head.flags & QWEN_FLAG_CONTROL_TOKENS)
		return qwen_tokenize(engine->tokenizer, p.text, p.len, &whole, 1, ids, err);
	return qwen_tokenize(engine->tokenizer, p.text, p.len, p.spans, p.n_spans, ids, err);
}

static json_t *
message(const char *role, const char *content, size_t len)
{
	return json_pack("{s:s, s:o}", "role", role, "content", json_stringn(content, len));
}

/* The messages of a GENERATE request with its prompt cut to `len` bytes; NULL when a text is not UTF-8. */
static json_t *
prompt_messages(const qwen_request *r, size_t len)
{
	json_t *messages = json_array();
	json_t *user = message("user", r->prompt, len);
	json_t *system = r->system_len ? message("system", r->system, r->system_len) : NULL;

	if (!messages || !user || (r->system_len && !system))
	{
		json_decref(messages);
		json_decref(user);
		json_decref(system);
		return NULL;
	}
	if (system)
		json_array_append_new(messages, system);
	json_array_append_new(messages, user);
	return messages;
}

static qwen_status
render_ids(qwen_engine *engine, const qwen_request *r, const json_t *messages, qwen_ids *ids, qwen_error *err)
{
	qwen_chat_options options = {.add_generation_prompt = true, .thinking = (r->head.flags & QWEN_FLAG_THINKING) != 0};
	qwen_chat_prompt prompt = {0};
	qwen_status status;

	if (engine->chat_error.status != QWEN_OK)
	{
		*err = engine->chat_error;
		return err->status;
	}
	if (engine->chat_format == QWEN_CHAT_NONE)
	{
		qwen_fail(err, QWEN_UNSUPPORTED, "the model has no chat template");
		return qwen_fail_hint(err, "Use qwen_complete with a base model.");
	}
	status = qwen_chat_render(engine->chat_format, messages, r->tools, &options, &prompt, err);
	if (status == QWEN_OK)
		status = tokenize_into(
			engine, r, (prompt_text){prompt.text.data, prompt.text.len, prompt.spans, prompt.n_spans}, ids, err);
	qwen_chat_prompt_free(&prompt);
	return status;
}

/* The ids of a prompt of which only the first `len` bytes count. */
static qwen_status
prompt_prefix_ids(qwen_engine *engine, const qwen_request *r, size_t len, qwen_ids *ids, qwen_error *err)
{
	json_t *messages;
	qwen_status status;

	if (r->head.kind == QWEN_KIND_COMPLETE)
		return tokenize_into(engine, r, (prompt_text){r->prompt, len, NULL, 0}, ids, err);
	messages = prompt_messages(r, len);
	if (!messages)
		return qwen_fail(err, QWEN_INVALID, "prompt is not valid UTF-8");
	status = render_ids(engine, r, messages, ids, err);
	json_decref(messages);
	return status;
}

/* The largest border of a character at or below `at`. */
static size_t
character_border(const char *text, size_t at)
{
	while (at > 0 && ((unsigned char) text[at] & 0xC0) == 0x80)
		at--;
	return at;
}

/* What the answer of a prompt that is cut gets: max_tokens where it was asked for, else a quarter of the context at most. */
static size_t
answer_share(const qwen_request_header *h, size_t context)
{
	size_t max_tokens = (size_t) h->max_tokens;

	if (!(h->flags & QWEN_FLAG_MAX_TOKENS) && max_tokens > context / 4)
		return context / 4 ? context / 4 : 1;
	return max_tokens;
}

/*
 * Cuts the prompt's end until it leaves room for the answer.  Each round cuts in proportion to the excess, so a few
 * rounds do.
 */
static qwen_status
truncate_prompt(qwen_engine *engine, const qwen_request *r, qwen_ids *ids, qwen_error *err)
{
	size_t context = (size_t) qwen_model_max_len(engine->model);
	size_t share = answer_share(&r->head, context);
	size_t limit = share < context ? context - share : 0;
	size_t len = r->prompt_len;

	while (ids->len > limit)
	{
		size_t next = character_border(r->prompt, (size_t) ((double) len * 0.98 * (double) limit / (double) ids->len));

		/* nothing of the prompt would be left */
		if (next == 0 || next >= len)
			return r->head.flags & QWEN_FLAG_MAX_TOKENS ? no_room(engine, ids->len, r->head.max_tokens, err)
														: too_long(engine, ids->len, err);
		len = next;
		if (prompt_prefix_ids(engine, r, len, ids, err))
			return err->status;
	}
	return QWEN_OK;
}

static qwen_status
copy_ids(const qwen_engine *engine, const qwen_request *r, qwen_ids *ids, qwen_error *err)
{
	int32_t vocab = qwen_model_config(engine->model)->vocab_size;

	for (size_t i = 0; i < r->n_ids; i++)
		if (r->ids[i] < 0 || r->ids[i] >= vocab || (engine->allowed && !engine->allowed[r->ids[i]]))
			return qwen_fail(err, QWEN_INVALID, "token id %d is not in the vocabulary", r->ids[i]);
	if (!qwen_ids_append(ids, r->ids, r->n_ids))
		return qwen_fail_memory(err, r->n_ids * sizeof(int32_t));
	return QWEN_OK;
}

static qwen_status
prompt_ids(qwen_engine *engine, const qwen_request *r, qwen_sequence *seq, qwen_error *err)
{
	if (r->ids)
		return copy_ids(engine, r, &seq->tokens, err);
	if (need_tokenizer(engine, err))
		return err->status;
	if (r->head.kind == QWEN_KIND_CHAT)
		return render_ids(engine, r, r->messages, &seq->tokens, err);
	if (prompt_prefix_ids(engine, r, r->prompt_len, &seq->tokens, err))
		return err->status;
	if (r->head.flags & QWEN_FLAG_TRUNCATE)
		return truncate_prompt(engine, r, &seq->tokens, err);
	return QWEN_OK;
}

/* ---- requests that need no model ---- */

static qwen_status
prepare_tokens(qwen_engine *engine, const qwen_request *r, qwen_sequence *seq, qwen_error *err)
{
	qwen_bytes text = {0};
	bool ok = true;

	if (need_tokenizer(engine, err))
		return err->status;
	if (r->head.kind == QWEN_KIND_DETOKENIZE)
	{
		if (qwen_detokenize(engine->tokenizer, r->ids, r->n_ids, false, &text, err) == QWEN_OK)
			ok = qwen_output_append(&seq->out, text.data, text.len);
		seq->done.output_tokens = (int32_t) r->n_ids;
		qwen_bytes_free(&text);
	}
	else if (tokenize_into(engine, r, (prompt_text){r->prompt, r->prompt_len, NULL, 0}, &seq->tokens, err) == QWEN_OK)
	{
		seq->out.raw = true;
		seq->done.prompt_tokens = (int32_t) seq->tokens.len;
		if (r->head.kind == QWEN_KIND_TOKENIZE)
			ok = qwen_output_append(&seq->out, seq->tokens.data, seq->tokens.len * sizeof(int32_t));
	}
	seq->done.finish_reason = QWEN_FINISH_STOP;
	if (!ok)
		return qwen_fail_memory(err, seq->tokens.len * sizeof(int32_t));
	return err->status;
}
