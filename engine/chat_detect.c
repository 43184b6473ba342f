/*
 * chat_detect.c
 *	  Which chat format a checkpoint's template is.
 *
 * A template is a program in Jinja, which is not run here.  It is recognised
 * by strings that it must and must not contain; the families' templates differ
 * in them, and a fine-tune that changes what the model sees nearly always
 * changes one of them too.  What fits no line is refused, for a prompt in the
 * wrong format gives bad answers and no error.
 */
#include <string.h>

#include <jansson.h>

#include "chat.h"
#include "textfile.h"

#define MAX_FILE (16u << 20)

/* Strings that a template of the format contains, all of them, and strings that it does not; NULL ends each list. */
typedef struct fingerprint
{
	qwen_chat_format format;
	const char *has[6];
	const char *lacks[6];
} fingerprint;

/* Of templates later than Qwen3 (calls as XML, kept thinking, images): not ours, whatever else they contain. */
static const char *const foreign[] = {
	"<function=", "preserve_thinking", "reasoning_effort", "<|vision_start|>", "<|audio_bos|>", "DeepSeek", NULL};

/* Newlines are written as a backslash and an n here, whichever way the template has them. */
static const fingerprint fingerprints[] = {
	{QWEN_CHAT_QWEN3,
	 {"enable_thinking", "reasoning_content", "last_query_index", "# Tools", "<think>\\n\\n</think>\\n\\n"},
	 {"You are Qwen", "You are a helpful"}},
	{QWEN_CHAT_QWEN3_THINKING_2507,
	 {"<|im_start|>assistant\\n<think>\\n", "reasoning_content", "last_query_index", "# Tools"},
	 {"enable_thinking", "You are Qwen"}},
	{QWEN_CHAT_QWEN3_INSTRUCT_2507,
	 {"<|im_start|>assistant\\n", "# Tools", "<tool_response>", "<tool_call>"},
	 {"think>", "enable_thinking", "You are Qwen", "You are a helpful", "Please reason"}},
	{QWEN_CHAT_QWEN2_5,
	 {"You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", "# Tools", "<tool_response>",
	  "<|im_start|>assistant\\n"},
	 {"think>"}},
	{QWEN_CHAT_QWEN2,
	 {"<|im_start|>system\\nYou are a helpful assistant.<|im_end|>", "<|im_start|>assistant\\n"},
	 {"think>", "tool"}},
	{QWEN_CHAT_QWEN1_5,
	 {"<|im_start|>system\\nYou are a helpful assistant<|im_end|>", "<|im_start|>assistant\\n"},
	 {"think>", "tool"}},
};

static bool
contains(const char *text, size_t len, const char *word)
{
	return memmem(text, len, word, strlen(word)) != NULL;
}

static bool
fits(const fingerprint *f, const char *text, size_t len)
{
	for (size_t i = 0; i < 6 && f->has[i]; i++)
		if (!contains(text, len, f->has[i]))
			return false;
	for (size_t i = 0; i < 6 && f->lacks[i]; i++)
		if (contains(text, len, f->lacks[i]))
			return false;
	return true;
}

/* The format of a template whose newlines are escaped, or QWEN_CHAT_NONE. */
static qwen_chat_format
find_format(const char *text, size_t len)
{
	for (const char *const *word = foreign; *word; word++)
		if (contains(text, len, *word))
			return QWEN_CHAT_NONE;
	for (size_t i = 0; i < sizeof(fingerprints) / sizeof(fingerprints[0]); i++)
		if (fits(&fingerprints[i], text, len))
			return fingerprints[i].format;
	return QWEN_CHAT_NONE;
}

/* Inside a string of Jinja a newline may be written as an escape (Qwen2.5 and later) or as itself (before). */
static bool
escape_newlines(const char *text, size_t len, qwen_bytes *out)
{
	const char *end = text + len, *newline;

	while ((newline = memchr(text, '\n', (size_t) (end - text))) != NULL)
	{
		if (!qwen_bytes_append(out, text, (size_t) (newline - text)) || !qwen_bytes_append_str(out, "\\n"))
			return false;
		text = newline + 1;
	}
	return qwen_bytes_append(out, text, (size_t) (end - text));
}

qwen_status
qwen_chat_fingerprint(const char *text, size_t len, qwen_chat_format *out, qwen_error *err)
{
	qwen_bytes escaped = {0};
	bool ok = escape_newlines(text, len, &escaped);

	*out = ok ? find_format(escaped.data, escaped.len) : QWEN_CHAT_NONE;
	qwen_bytes_free(&escaped);
	if (!ok)
		return qwen_fail_memory(err, len);
	if (*out != QWEN_CHAT_NONE)
		return QWEN_OK;
	qwen_fail(err, QWEN_UNSUPPORTED, "the model's chat template is not known");
	return qwen_fail_detail(err, "Known are the templates of Qwen1.5, Qwen2, Qwen2.5, Qwen3, Qwen3-Instruct-2507 and "
								 "Qwen3-Thinking-2507.");
}

/* "chat_template" is a string, or a list of {"name", "template"} of which "default" counts. NULL: there is none. */
static const json_t *
find_template(const json_t *root)
{
	const json_t *template = json_object_get(root, "chat_template"), *entry;
	size_t i;

	if (json_is_string(template))
		return template;
	json_array_foreach(template, i, entry)
	{
		const char *name = json_string_value(json_object_get(entry, "name"));

		if (name && !strcmp(name, "default"))
			return json_object_get(entry, "template");
	}
	return NULL;
}

/* A file without a template, or no file, is a base model's: no error. */
static qwen_status
detect_in_config(const char *model_dir, qwen_chat_format *out, qwen_error *err)
{
	qwen_bytes text = {0};
	json_t *root = NULL;
	const json_t *template;
	qwen_status rc = qwen_read_text_file(model_dir, "tokenizer_config.json", MAX_FILE, &text, err);

	if (rc == QWEN_OK)
		rc = qwen_parse_json_object("tokenizer_config.json", text.data, text.len, &root, err);
	else if (rc == QWEN_NOT_FOUND)
		rc = QWEN_OK;
	template = find_template(root);
	if (rc == QWEN_OK && json_is_string(template))
		rc = qwen_chat_fingerprint(json_string_value(template), json_string_length(template), out, err);
	json_decref(root);
	qwen_bytes_free(&text);
	return rc;
}

/* Newer checkpoints have the template in a file of its own, which then counts. */
qwen_status
qwen_chat_detect(const char *model_dir, qwen_chat_format *out, qwen_error *err)
{
	qwen_bytes text = {0};
	qwen_status rc = qwen_read_text_file(model_dir, "chat_template.jinja", MAX_FILE, &text, err);

	*out = QWEN_CHAT_NONE;
	if (rc == QWEN_OK)
		rc = qwen_chat_fingerprint(text.data, text.len, out, err);
	else if (rc == QWEN_NOT_FOUND)
		rc = detect_in_config(model_dir, out, err);
	qwen_bytes_free(&text);
	return rc;
}
