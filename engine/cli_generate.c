/*
 * cli_generate.c
 *	  `qwen-engine generate`: answers prompts, many at a time.
 *
 * Lines are read as fast as they come, all run as one continuous batch, and
 * answers are printed in the order of the lines as soon as all earlier ones
 * are there.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "engine.h"

static const char usage[] =
	"Reads one JSON object a line: {\"prompt\": text} (chat template applied), {\"complete\": text} (raw),\n"
	"{\"messages\": [...]} or {\"ids\": [...]}, with options by their SQL names (max_tokens, temperature, top_p, "
	"top_k,\n"
	"min_p, seed, stop, system, thinking, penalties, ignore_eos). Prints one object a line, in the same order.\n"
	"With -p, answers one prompt and prints the answer as it is decoded.";

/* One line's request and, when it is there, what will be printed for it. */
typedef struct answer
{
	qwen_bytes text;
	json_t *out;
	bool is_chat;
} answer;

typedef struct run
{
	qwen_engine *engine;
	answer *answers; /* [n]; the request's id is its index + 1 */
	size_t n;
	size_t cap;
	size_t printed;
} run;

/* ---- one line -> qwen_request ---- */

/* Everything that a request's pointers need to live until prepare has returned. */
typedef struct line_request
{
	qwen_request request;
	int32_t *ids;
	const char **stop;
	size_t *stop_len;
} line_request;

/* Reads a number into *out; a missing or null key leaves it. */
static bool
read_float(const json_t *line, const char *key, float *out, qwen_error *err)
{
	const json_t *v = json_object_get(line, key);

	if (!v || json_is_null(v))
		return true;
	if (!json_is_number(v))
	{
		qwen_fail(err, QWEN_INVALID, "%s must be a number", key);
		return false;
	}
	*out = (float) json_number_value(v);
	return true;
}

static bool
read_int(const json_t *line, const char *key, int64_t min, int64_t max, int64_t *out, qwen_error *err)
{
	const json_t *v = json_object_get(line, key);

	if (!v || json_is_null(v))
		return true;
	if (!json_is_integer(v) || json_integer_value(v) < min || json_integer_value(v) > max)
	{
		qwen_fail(err, QWEN_INVALID, "%s must be a whole number from %lld to %lld", key, (long long) min,
				  (long long) max);
		return false;
	}
	*out = json_integer_value(v);
	return true;
}

static bool
read_flag(const json_t *line, const char *key, uint32_t flag, uint32_t *flags, qwen_error *err)
{
	const json_t *v = json_object_get(line, key);

	if (!v || json_is_null(v) || json_is_false(v))
		return true;
	if (!json_is_true(v))
	{
		qwen_fail(err, QWEN_INVALID, "%s must be true or false", key);
		return false;
	}
	*flags |= flag;
	return true;
}

static bool
read_numbers(const json_t *line, qwen_request_header *h, qwen_error *err)
{
	int64_t max_tokens = 512, top_k = QWEN_UNSET_INT, seed = 0;

	*h = (qwen_request_header){.protocol = QWEN_PROTOCOL,
							   .temperature = 0,
							   .top_p = QWEN_UNSET_FLOAT,
							   .min_p = QWEN_UNSET_FLOAT,
							   .presence_penalty = QWEN_UNSET_FLOAT,
							   .frequency_penalty = QWEN_UNSET_FLOAT,
							   .repetition_penalty = QWEN_UNSET_FLOAT};
	if (!read_float(line, "temperature", &h->temperature, err) || !read_float(line, "top_p", &h->top_p, err) ||
		!read_float(line, "min_p", &h->min_p, err) ||
		!read_float(line, "presence_penalty", &h->presence_penalty, err) ||
		!read_float(line, "frequency_penalty", &h->frequency_penalty, err) ||
		!read_float(line, "repetition_penalty", &h->repetition_penalty, err) ||
		!read_int(line, "max_tokens", 1, INT32_MAX, &max_tokens, err) ||
		!read_int(line, "top_k", -1, INT32_MAX, &top_k, err) ||
		!read_int(line, "seed", INT64_MIN, INT64_MAX, &seed, err) ||
		!read_flag(line, "thinking", QWEN_FLAG_THINKING, &h->flags, err) ||
		!read_flag(line, "ignore_eos", QWEN_FLAG_IGNORE_EOS, &h->flags, err) ||
		!read_flag(line, "truncate", QWEN_FLAG_TRUNCATE, &h->flags, err) ||
		!read_flag(line, "control_tokens", QWEN_FLAG_CONTROL_TOKENS, &h->flags, err))
		return false;
	h->max_tokens = (int32_t) max_tokens;
	if (json_is_integer(json_object_get(line, "max_tokens")))
		h->flags |= QWEN_FLAG_MAX_TOKENS;
	h->top_k = (int32_t) top_k;
	h->seed = (uint64_t) seed;
	return true;
}

/* A text value; false with err when it is there but no string. */
static bool
read_text(const json_t *line, const char *key, const char **text, size_t *len, qwen_error *err)
{
	const json_t *v = json_object_get(line, key);

	if (!v || json_is_null(v))
		return true;
	if (!json_is_string(v))
	{
		qwen_fail(err, QWEN_INVALID, "%s must be a string", key);
		return false;
	}
	*text = json_string_value(v);
	*len = json_string_length(v);
	return true;
}

static bool
read_ids(const json_t *v, line_request *r, qwen_error *err)
{
	size_t n = json_array_size(v);

	r->ids = malloc(n * sizeof(int32_t) + 1);
	if (!r->ids)
		return qwen_fail_memory(err, n * sizeof(int32_t)) == QWEN_OK;
	for (size_t i = 0; i < n; i++)
	{
		const json_t *id = json_array_get(v, i);

		if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
			return qwen_fail(err, QWEN_INVALID, "ids must be token ids") == QWEN_OK;
		r->ids[i] = (int32_t) json_integer_value(id);
	}
	r->request.ids = r->ids;
	r->request.n_ids = n;
	return true;
}

/* stop: a string or an array of strings. */
static bool
read_stops(const json_t *line, line_request *r, qwen_error *err)
{
	const json_t *v = json_object_get(line, "stop");
	size_t n = json_is_array(v) ? json_array_size(v) : 1;

	if (!v || json_is_null(v))
		return true;
	r->stop = calloc(n + 1, sizeof(*r->stop));
	r->stop_len = calloc(n + 1, sizeof(*r->stop_len));
	if (!r->stop || !r->stop_len)
		return qwen_fail_memory(err, n * sizeof(*r->stop)) == QWEN_OK;
	for (size_t i = 0; i < n; i++)
	{
		const json_t *one = json_is_array(v) ? json_array_get(v, i) : v;

		if (!json_is_string(one))
			return qwen_fail(err, QWEN_INVALID, "stop must be a string or an array of strings") == QWEN_OK;
		r->stop[i] = json_string_value(one);
		r->stop_len[i] = json_string_length(one);
	}
	r->request.stop = r->stop;
	r->request.stop_len = r->stop_len;
	r->request.n_stop = n;
	return true;
}

/* Chooses the kind by the subject that the line has. */
static bool
read_subject(const json_t *line, line_request *r, qwen_error *err)
{
	qwen_request *q = &r->request;
	const json_t *ids = json_object_get(line, "ids");

	if (json_object_get(line, "prompt"))
	{
		q->head.kind = QWEN_KIND_GENERATE;
		return read_text(line, "prompt", &q->prompt, &q->prompt_len, err);
	}
	if (json_object_get(line, "complete"))
	{
		q->head.kind = QWEN_KIND_COMPLETE;
		return read_text(line, "complete", &q->prompt, &q->prompt_len, err);
	}
	if (json_is_array(json_object_get(line, "messages")))
	{
		q->head.kind = QWEN_KIND_CHAT;
		q->messages = json_object_get(line, "messages");
		q->tools = json_is_array(json_object_get(line, "tools")) ? json_object_get(line, "tools") : NULL;
		return true;
	}
	if (json_is_array(ids))
	{
		q->head.kind = QWEN_KIND_COMPLETE;
		return read_ids(ids, r, err);
	}
	return qwen_fail(err, QWEN_INVALID, "line has none of prompt, complete, messages, ids") == QWEN_OK;
}

static bool
read_request(const json_t *line, uint64_t id, line_request *r, qwen_error *err)
{
	const json_t *schema = json_object_get(line, "schema");

	if (!json_is_object(line))
		return qwen_fail(err, QWEN_INVALID, "line must be a JSON object") == QWEN_OK;
	if (schema && !json_is_null(schema))
		return qwen_fail(err, QWEN_UNSUPPORTED, "answers under a JSON schema are not available in this version") ==
			   QWEN_OK;
	r->request.id = id;
	return read_numbers(line, &r->request.head, err) && read_subject(line, r, err) &&
		   read_text(line, "system", &r->request.system, &r->request.system_len, err) && read_stops(line, r, err);
}

/* ---- events ---- */

static void
print_ready(run *r)
{
	while (r->printed < r->n && r->answers[r->printed].out)
	{
		answer *a = &r->answers[r->printed++];

		qwen_cli_print(a->out);
		json_decref(a->out);
		a->out = NULL;
	}
}

static void
on_data(void *arg, uint64_t id, const char *data, size_t len)
{
	run *r = arg;

	qwen_bytes_append(&r->answers[id - 1].text, data, len);
}

static void
on_done(void *arg, uint64_t id, const qwen_done *done, const int32_t *ids, size_t n_ids)
{
	run *r = arg;
	answer *a = &r->answers[id - 1];
	json_t *message = a->is_chat ? json_loadb(a->text.data, a->text.len, 0, NULL) : NULL;
	json_t *list = json_array();
	json_t *text = json_null();

	for (size_t i = 0; i < n_ids; i++)
		json_array_append_new(list, json_integer(ids[i]));
	if (message)
		text = json_incref(json_object_get(message, "content"));
	else if (qwen_engine_tokenizer(r->engine))
		text = json_stringn(a->text.data ? a->text.data : "", a->text.len);
	a->out = json_pack("{s:o, s:o, s:s, s:i, s:i, s:i, s:o*}", "text", text, "ids", list, "finish_reason",
					   qwen_finish_name(done->finish_reason), "prompt_tokens", done->prompt_tokens, "cached_tokens",
					   done->cached_tokens, "output_tokens", done->output_tokens, "message", message);
	qwen_bytes_free(&a->text);
	print_ready(r);
}

static void
on_failed(void *arg, uint64_t id, const qwen_error *err)
{
	run *r = arg;

	r->answers[id - 1].out = qwen_cli_error_object(err);
	print_ready(r);
}

/* ---- the run ---- */

static bool
add_answer(run *r)
{
	if (r->n == r->cap)
	{
		size_t cap = r->cap ? 2 * r->cap : 64;
		answer *more = realloc(r->answers, cap * sizeof(*more));

		if (!more)
			return false;
		r->answers = more;
		r->cap = cap;
	}
	r->answers[r->n++] = (answer){0};
	return true;
}

/* Prepares and submits one line; what is wrong with it becomes its answer. */
static void
submit_line(run *r, const char *text, size_t len)
{
	line_request lr = {0};
	qwen_error err = {0};
	json_error_t where;
	json_t *line = json_loadb(text, len, JSON_ALLOW_NUL, &where);
	qwen_sequence *seq;

	if (!line)
		qwen_fail(&err, QWEN_INVALID, "line is not valid JSON: %.200s", where.text);
	else if (read_request(line, r->n, &lr, &err))
	{
		r->answers[r->n - 1].is_chat = lr.request.head.kind == QWEN_KIND_CHAT;
		if (qwen_engine_prepare(r->engine, &lr.request, &seq, &err) == QWEN_OK)
			qwen_engine_submit(r->engine, seq);
	}
	if (err.status != QWEN_OK)
		on_failed(r, r->n, &err);
	free(lr.ids);
	free(lr.stop);
	free(lr.stop_len);
	json_decref(line);
}

static int
run_lines(run *r, const char *file)
{
	FILE *in = file ? fopen(file, "r") : stdin;
	char *line = NULL;
	size_t cap = 0;
	ssize_t len;
	bool ran = true;
	qwen_error err = {0};

	if (!in)
	{
		qwen_fail(&err, QWEN_NOT_FOUND, "could not open \"%s\"", file);
		return qwen_cli_fail(&err);
	}
	while ((len = getline(&line, &cap, in)) >= 0)
		if (line[strspn(line, " \t\r\n")])
		{
			if (!add_answer(r))
				break;
			submit_line(r, line, (size_t) len);
		}
	free(line);
	if (file)
		fclose(in);
	while (ran)
		if (qwen_engine_step(r->engine, &ran, &err) != QWEN_OK)
			return qwen_cli_fail(&err);
	return 0;
}

static void
on_piece(void *arg, uint64_t id, const char *data, size_t len)
{
	fwrite(data, 1, len, stdout);
	fflush(stdout);
}

static void
on_end(void *arg, uint64_t id, const qwen_done *done, const int32_t *ids, size_t n_ids)
{
	putchar('\n');
}

static void
on_error(void *arg, uint64_t id, const qwen_error *err)
{
	*(int *) arg = qwen_cli_fail(err);
}

/* For people: one prompt, the answer as it is decoded. */
static int
run_prompt(qwen_engine *engine, const char *prompt)
{
	int rc = 0;
	bool ran = true;
	qwen_error err = {0};
	qwen_sequence *seq;
	qwen_request request = {.id = 1,
							.head = {.protocol = QWEN_PROTOCOL,
									 .kind = QWEN_KIND_GENERATE,
									 .flags = QWEN_FLAG_STREAM,
									 .max_tokens = 512,
									 .top_k = QWEN_UNSET_INT,
									 .top_p = QWEN_UNSET_FLOAT,
									 .min_p = QWEN_UNSET_FLOAT,
									 .presence_penalty = QWEN_UNSET_FLOAT,
									 .frequency_penalty = QWEN_UNSET_FLOAT,
									 .repetition_penalty = QWEN_UNSET_FLOAT},
							.prompt = prompt,
							.prompt_len = strlen(prompt)};
	qwen_events events = {.data = on_piece, .done = on_end, .failed = on_error, .arg = &rc};

	qwen_engine_set_events(engine, &events);
	if (qwen_engine_prepare(engine, &request, &seq, &err) != QWEN_OK)
		return qwen_cli_fail(&err);
	qwen_engine_submit(engine, seq);
	while (ran)
		if (qwen_engine_step(engine, &ran, &err) != QWEN_OK)
			return qwen_cli_fail(&err);
	return rc;
}

int
qwen_cmd_generate(int argc, char **argv)
{
	const char *prompt = NULL, *file = NULL;
	qwen_model_options model;
	qwen_error err;
	run r = {0};
	int rc;
	const qwen_cli_option options[] = {
		{"prompt", 'p', "TEXT", "answer this prompt and print the answer as it is decoded", &prompt, NULL},
		{NULL},
	};
	qwen_events events = {.data = on_data, .done = on_done, .failed = on_failed, .arg = &r};

	rc = qwen_cli_parse(argc, argv, usage, options, &model, true, &file);
	if (rc >= 0)
		return rc;
	if (!model.path)
	{
		fprintf(stderr, "qwen-engine: generate needs -m MODEL\n");
		return 2;
	}
	if (qwen_engine_open(&model, qwen_cli_progress, NULL, &r.engine, &err) != QWEN_OK)
		return qwen_cli_fail(&err);
	qwen_engine_set_events(r.engine, &events);
	rc = prompt ? run_prompt(r.engine, prompt) : run_lines(&r, file);
	free(r.answers);
	qwen_engine_close(r.engine);
	return rc;
}
