/*
 * chat.h
 *	  Chat formats of the Qwen families, native, without a Jinja interpreter.
 *
 * Rendering gives one text and the list of byte ranges that came from the
 * template: only there may control tokens be recognised, so that what a user
 * or a table row contains stays data.
 */
#ifndef QWEN_CHAT_H
#define QWEN_CHAT_H

#include <jansson.h>

#include "buffer.h"
#include "error.h"
#include "tokenizer.h"

typedef enum qwen_chat_format
{
	QWEN_CHAT_NONE = 0, /* base model: no template; rendering is refused */
	QWEN_CHAT_QWEN1_5,
	QWEN_CHAT_QWEN2,
	QWEN_CHAT_QWEN2_5,
	QWEN_CHAT_QWEN3, /* hybrid thinking, April 2025 */
	QWEN_CHAT_QWEN3_INSTRUCT_2507,
	QWEN_CHAT_QWEN3_THINKING_2507
} qwen_chat_format;

typedef struct qwen_chat_options
{
	bool add_generation_prompt;
	bool thinking; /* enable_thinking; only the Qwen3 hybrid format looks at it */
} qwen_chat_options;

/* A rendered prompt. A zeroed struct is empty; free with qwen_chat_prompt_free. */
typedef struct qwen_chat_prompt
{
	qwen_bytes text;
	qwen_span *spans; /* template ranges of text, sorted, disjoint, merged when adjacent */
	size_t n_spans;
	size_t cap_spans;
} qwen_chat_prompt;

const char *qwen_chat_format_name(qwen_chat_format format);

/* Chooses the format by fingerprint of the template in tokenizer_config.json or chat_template.jinja of the folder. */
qwen_status qwen_chat_detect(const char *model_dir, qwen_chat_format *out, qwen_error *err);

/* The same from the text of a template. QWEN_UNSUPPORTED when it is none that we know. */
qwen_status qwen_chat_fingerprint(const char *text, size_t len, qwen_chat_format *out, qwen_error *err);

/* messages: array of objects as OpenAI's; tools: array or NULL. Wrong shapes are QWEN_INVALID, never a crash. */
qwen_status qwen_chat_render(qwen_chat_format format, const json_t *messages, const json_t *tools,
							 const qwen_chat_options *options, qwen_chat_prompt *out, qwen_error *err);
void qwen_chat_prompt_free(qwen_chat_prompt *prompt);

/*
 * Splits a finished answer into {"role":"assistant","content","reasoning_content","tool_calls"} (the last two only when
 * present).  in_thinking: the prompt left a think block open, or may have the model open one.
 */
qwen_status qwen_chat_parse(const char *text, size_t len, bool in_thinking, json_t **message, qwen_error *err);

/*
 * Removes the think block from an answer that arrives in pieces.  States: at the start, a leading <think> (after
 * optional white space) opens the block; inside it everything up to and with </think> is dropped; after it, leading
 * newlines are dropped, then all passes.  A zeroed struct with .inside set for formats whose prompt opened the block.
 */
typedef struct qwen_think_filter
{
	bool inside; /* in the block, or not yet decided */
	bool decided;
	bool after; /* the block was closed: strip leading newlines until text comes */
	qwen_bytes held;
} qwen_think_filter;

bool qwen_think_filter_push(qwen_think_filter *f, const char *text, size_t len, qwen_bytes *out);
bool qwen_think_filter_finish(qwen_think_filter *f, qwen_bytes *out);
void qwen_think_filter_free(qwen_think_filter *f);

#endif
