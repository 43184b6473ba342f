/*
 * cli_text.c
 *	  `qwen-engine tokenize`, `detokenize` and `render`: text alone, no
 *	  weights.
 *
 * Extra keys of a line are ignored, so that golden files can be piped in as
 * they are.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chat.h"
#include "cli.h"
#include "tokenizer.h"

/* What the lines of all three commands need. */
typedef struct text_command
{
	qwen_tokenizer *tokenizer;
	qwen_chat_format format; /* render */
	bool plain;              /* tokenize */
} text_command;

/* Opens the tokenizer, runs fn over the lines and closes it again. */
static int
run_lines(text_command *c, const qwen_model_options *model, bool chat, const char *file, qwen_cli_line_fn fn)
{
	qwen_error err;
	int rc;

	if (qwen_tokenizer_open(model->path, &c->tokenizer, &err) != QWEN_OK)
		return qwen_cli_fail(&err);
	if (chat && qwen_chat_detect(model->path, &c->format, &err) != QWEN_OK)
		rc = qwen_cli_fail(&err);
	else
		rc = qwen_cli_lines(file, fn, c);
	qwen_tokenizer_close(c->tokenizer);
	return rc;
}

/* Parses the arguments of a text command; -1 to go on. */
static int
parse(int argc, char **argv, const char *usage, const qwen_cli_option *options, qwen_model_options *model,
	  const char **file)
{
	int rc = qwen_cli_parse(argc, argv, usage, options, model, false, file);

	if (rc < 0 && !model->path)
	{
		fprintf(stderr, "qwen-engine: %s needs -m MODEL\n", argv[0]);
		return 2;
	}
	return rc;
}

/* A new array of the ids, or NULL when memory is short. */
static json_t *
ids_array(const qwen_ids *ids)
{
	json_t *array = json_array();

	for (size_t i = 0; array && i < ids->len; i++)
		if (json_array_append_new(array, json_integer(ids->data[i])) != 0)
		{
			json_decref(array);
			array = NULL;
		}
	return array;
}

/* ---- tokenize ---- */

static json_t *
tokenize_line(void *arg, const json_t *line, qwen_error *err)
{
	const text_command *c = arg;
	const json_t *text = json_is_object(line) ? json_object_get(line, "text") : line;
	qwen_span whole = {0, json_string_length(text)};
	qwen_ids ids = {0};
	json_t *out = NULL;

	if (!json_is_string(text))
		qwen_fail(err, QWEN_INVALID, "line must be a string or an object with the string \"text\"");
	else if (qwen_tokenize(c->tokenizer, json_string_value(text), whole.end, &whole, c->plain ? 0 : 1, &ids, err) ==
			 QWEN_OK)
	{
		out = json_pack("{s:o}", "ids", ids_array(&ids));
		if (!out)
			qwen_fail_memory(err, ids.len);
	}
	qwen_ids_free(&ids);
	return out;
}

int
qwen_cmd_tokenize(int argc, char **argv)
{
	text_command c = {0};
	qwen_model_options model;
	const char *file = NULL;
	const qwen_cli_option options[] = {
		{"plain", 0, NULL, "added tokens in the text are ordinary text", NULL, &c.plain},
		{NULL},
	};
	int rc =
		parse(argc, argv,
			  "Reads one value a line, {\"text\": text} or a string, and prints {\"ids\": [...]}. Added tokens are\n"
			  "recognised in the text.",
			  options, &model, &file);

	return rc >= 0 ? rc : run_lines(&c, &model, false, file, tokenize_line);
}

/* ---- detokenize ---- */

/* Appends the ids of an array. */
static qwen_status
read_ids(const json_t *array, qwen_ids *ids, qwen_error *err)
{
	const json_t *v;
	size_t i;

	if (!json_is_array(array))
		return qwen_fail(err, QWEN_INVALID, "line must be an array of ids or an object with the array \"ids\"");
	json_array_foreach(array, i, v)
	{
		json_int_t id = json_integer_value(v);

		if (!json_is_integer(v) || id < 0 || id > INT32_MAX)
			return qwen_fail(err, QWEN_INVALID, "id %zu of the line is not a token id", i);
		if (!qwen_ids_push(ids, (int32_t) id))
			return qwen_fail_memory(err, (ids->len + 1) * sizeof(int32_t));
	}
	return QWEN_OK;
}

static json_t *
detokenize_line(void *arg, const json_t *line, qwen_error *err)
{
	const text_command *c = arg;
	qwen_ids ids = {0};
	qwen_bytes text = {0};
	json_t *out = NULL;

	if (read_ids(json_is_object(line) ? json_object_get(line, "ids") : line, &ids, err) == QWEN_OK &&
		qwen_detokenize(c->tokenizer, ids.data, ids.len, false, &text, err) == QWEN_OK)
	{
		out = json_pack("{s:o}", "text", json_stringn(text.data ? text.data : "", text.len));
		if (!out)
			qwen_fail_memory(err, text.len);
	}
	qwen_ids_free(&ids);
	qwen_bytes_free(&text);
	return out;
}

int
qwen_cmd_detokenize(int argc, char **argv)
{
	text_command c = {0};
	qwen_model_options model;
	const char *file = NULL;
	int rc =
		parse(argc, argv, "Reads one value a line, {\"ids\": [...]} or an array of ids, and prints {\"text\": text}.",
			  NULL, &model, &file);

	return rc >= 0 ? rc : run_lines(&c, &model, false, file, detokenize_line);
}

/* ---- render ---- */

/* Reads a boolean key of "options"; absent or null leaves *out. */
static qwen_status
read_option(const json_t *options, const char *key, bool *out, qwen_error *err)
{
	const json_t *v = json_object_get(options, key);

	if (!v || json_is_null(v))
		return QWEN_OK;
	if (!json_is_boolean(v))
		return qwen_fail(err, QWEN_INVALID, "option \"%s\" must be true or false", key);
	*out = json_is_true(v);
	return QWEN_OK;
}

/* The ids are those of the reference: of the text as a whole, with the added tokens recognised wherever they stand. */
static json_t *
rendered(const text_command *c, const qwen_chat_prompt *prompt, qwen_error *err)
{
	qwen_span whole = {0, prompt->text.len};
	qwen_ids ids = {0};
	json_t *out = NULL;

	if (qwen_tokenize(c->tokenizer, prompt->text.data, prompt->text.len, &whole, 1, &ids, err) == QWEN_OK)
	{
		out =
			json_pack("{s:o, s:o}", "text", json_stringn(prompt->text.data, prompt->text.len), "ids", ids_array(&ids));
		if (!out)
			qwen_fail_memory(err, ids.len);
	}
	qwen_ids_free(&ids);
	return out;
}

static json_t *
render_line(void *arg, const json_t *line, qwen_error *err)
{
	const text_command *c = arg;
	const json_t *tools = json_object_get(line, "tools"), *set = json_object_get(line, "options");
	qwen_chat_options options = {.add_generation_prompt = true, .thinking = true};
	qwen_chat_prompt prompt = {0};
	json_t *out = NULL;

	if (read_option(set, "add_generation_prompt", &options.add_generation_prompt, err) == QWEN_OK &&
		read_option(set, "enable_thinking", &options.thinking, err) == QWEN_OK &&
		qwen_chat_render(c->format, json_object_get(line, "messages"), json_is_null(tools) ? NULL : tools, &options,
						 &prompt, err) == QWEN_OK)
		out = rendered(c, &prompt, err);
	qwen_chat_prompt_free(&prompt);
	return out;
}

int
qwen_cmd_render(int argc, char **argv)
{
	text_command c = {0};
	qwen_model_options model;
	const char *file = NULL;
	int rc =
		parse(argc, argv,
			  "Reads one object a line, {\"messages\": [...], \"tools\": [...], \"options\": "
			  "{\"add_generation_prompt\": true,\n"
			  "\"enable_thinking\": false}}, renders it by the model's chat format and prints {\"text\", \"ids\"}.",
			  NULL, &model, &file);

	return rc >= 0 ? rc : run_lines(&c, &model, true, file, render_line);
}
