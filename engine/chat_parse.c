/*
 * chat_parse.c
 *	  What a model's answer means: thinking, text, calls of tools.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chat.h"
#include "json_python.h"

static const char think_open[] = "<think>", think_close[] = "</think>";
static const char call_open[] = "<tool_call>", call_close[] = "</tool_call>";

#define LENGTH(literal) (sizeof(literal) - 1)

/* ---- a finished answer ---- */

/* A part of the answer. */
typedef struct slice
{
	const char *data;
	size_t len;
} slice;

static bool
is_space(char c)
{
	return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

static slice
skip_spaces(slice s)
{
	while (s.len > 0 && is_space(s.data[0]))
		s = (slice){s.data + 1, s.len - 1};
	return s;
}

static slice
strip_newlines(slice s)
{
	while (s.len > 0 && s.data[0] == '\n')
		s = (slice){s.data + 1, s.len - 1};
	while (s.len > 0 && s.data[s.len - 1] == '\n')
		s.len--;
	return s;
}

/*
 * Divides an answer whose prompt left thinking open: reasoning is what stands before the first </think>, with or
 * without a <think> before it.  An answer that ended inside the block is all reasoning.
 */
static void
split_thinking(slice *answer, slice *reasoning)
{
	slice all = *answer, begin = skip_spaces(all);
	const char *close = memmem(all.data, all.len, think_close, LENGTH(think_close));

	if (begin.len >= LENGTH(think_open) && !memcmp(begin.data, think_open, LENGTH(think_open)))
		begin = (slice){begin.data + LENGTH(think_open), begin.len - LENGTH(think_open)};
	else
		begin = all;
	if (!close)
	{
		*reasoning = strip_newlines(begin);
		*answer = (slice){"", 0};
		return;
	}
	*reasoning =
		close > begin.data ? strip_newlines((slice){begin.data, (size_t) (close - begin.data)}) : (slice){"", 0};
	answer->data = close + LENGTH(think_close);
	answer->len = all.len - (size_t) (answer->data - all.data);
	while (answer->len > 0 && answer->data[0] == '\n')
		*answer = (slice){answer->data + 1, answer->len - 1};
}

/* A call as OpenAI writes it, its arguments as the text of a JSON object; NULL when the block is no call. */
static json_t *
read_call(slice block, size_t number)
{
	json_t *in = json_loadb(block.data, block.len, 0, NULL), *out = NULL;
	const json_t *name = json_object_get(in, "name"), *arguments = json_object_get(in, "arguments");
	qwen_bytes text = {0};
	char id[32];

	snprintf(id, sizeof(id), "call_%zu", number);
	if (json_is_string(name) && json_is_string(arguments))
		out = json_pack("{s:s, s:s, s:{s:O, s:O}}", "id", id, "type", "function", "function", "name", name, "arguments",
						arguments);
	else if (json_is_string(name) && json_is_object(arguments) && qwen_json_python(arguments, &text))
		out = json_pack("{s:s, s:s, s:{s:O, s:o}}", "id", id, "type", "function", "function", "name", name, "arguments",
						json_stringn(text.data, text.len));
	qwen_bytes_free(&text);
	json_decref(in);
	return out;
}

/* Where the last call in [begin, end) is opened, or NULL. */
static const char *
last_open(const char *begin, const char *end)
{
	const char *last = NULL;

	while ((begin = memmem(begin, (size_t) (end - begin), call_open, LENGTH(call_open))) != NULL)
	{
		last = begin;
		begin += LENGTH(call_open);
	}
	return last;
}

/*
 * Takes the calls out of an answer; what is left goes to content, without the white space at its end.  A block that is
 * no call, or is not closed, stays in the text: the caller sees what the model wrote.  False when memory is short.
 */
static bool
take_calls(slice answer, json_t *calls, qwen_bytes *content)
{
	const char *p = answer.data, *end = answer.data + answer.len, *close;

	while ((close = memmem(p, (size_t) (end - p), call_close, LENGTH(call_close))) != NULL)
	{
		const char *open = last_open(p, close), *next = close + LENGTH(call_close);
		const char *body = open ? open + LENGTH(call_open) : NULL;
		json_t *call = open ? read_call((slice){body, (size_t) (close - body)}, json_array_size(calls)) : NULL;

		if (!qwen_bytes_append(content, p, (size_t) ((call ? open : next) - p)))
		{
			json_decref(call);
			return false;
		}
		if (call && json_array_append_new(calls, call) != 0)
			return false;
		p = next;
	}
	if (!qwen_bytes_append(content, p, (size_t) (end - p)))
		return false;
	while (json_array_size(calls) > 0 && content->len > 0 && is_space(content->data[content->len - 1]))
		content->len--;
	return true;
}

qwen_status
qwen_chat_parse(const char *text, size_t len, bool in_thinking, json_t **message, qwen_error *err)
{
	slice answer = {text, len}, reasoning = {"", 0};
	json_t *calls = json_array();
	qwen_bytes content = {0};
	bool ok;

	if (in_thinking)
		split_thinking(&answer, &reasoning);
	ok = calls && take_calls(answer, calls, &content);
	*message = ok ? json_pack("{s:s, s:o}", "role", "assistant", "content",
							  json_stringn(content.data ? content.data : "", content.len))
				  : NULL;
	if (*message && reasoning.len > 0)
		ok = json_object_set_new(*message, "reasoning_content", json_stringn(reasoning.data, reasoning.len)) == 0;
	if (*message && json_array_size(calls) > 0)
		ok = ok && json_object_set(*message, "tool_calls", calls) == 0;
	json_decref(calls);
	qwen_bytes_free(&content);
	if (*message && ok)
		return QWEN_OK;
	json_decref(*message);
	*message = NULL;
	/* jansson tells no reasons; text that is not UTF-8 is the other one. */
	return qwen_fail(err, QWEN_INVALID, "the answer could not be made into a message");
}

/* ---- an answer in pieces ---- */

/* Keeps the last n held bytes. */
static void
keep_tail(qwen_bytes *held, size_t n)
{
	if (held->len > n)
	{
		memmove(held->data, held->data + held->len - n, n);
		held->len = n;
	}
}

/* Not yet decided: a <think> after white space opens the block, anything else is the answer. */
static bool
decide(qwen_think_filter *f, qwen_bytes *out)
{
	slice begin = skip_spaces((slice){f->held.data, f->held.len});
	size_t n = begin.len < LENGTH(think_open) ? begin.len : LENGTH(think_open);

	if (n > 0 && memcmp(begin.data, think_open, n) != 0)
	{
		f->decided = true;
		if (!qwen_bytes_append(out, f->held.data, f->held.len))
			return false;
		f->held.len = 0;
	}
	else if (n == LENGTH(think_open))
	{
		f->decided = f->inside = true;
		keep_tail(&f->held, begin.len - n);
	}
	return true;
}

/* In the block: drops everything up to its end, or all but what may be the beginning of its end. */
static void
drop(qwen_think_filter *f)
{
	const char *close = memmem(f->held.data, f->held.len, think_close, LENGTH(think_close));

	if (close)
	{
		f->inside = false;
		f->after = true;
		keep_tail(&f->held, f->held.len - (size_t) (close - f->held.data) - LENGTH(think_close));
	}
	else
		keep_tail(&f->held, LENGTH(think_close) - 1);
}

/* Behind the block: newlines are dropped until text comes. */
static void
skip_newlines(qwen_think_filter *f)
{
	size_t n = 0;

	while (n < f->held.len && f->held.data[n] == '\n')
		n++;
	f->after = n == f->held.len;
	keep_tail(&f->held, f->held.len - n);
}

bool
qwen_think_filter_push(qwen_think_filter *f, const char *text, size_t len, qwen_bytes *out)
{
	if (len == 0)
		return true;
	if (!qwen_bytes_append(&f->held, text, len))
		return false;
	if (f->inside)
		f->decided = true;
	if (!f->decided && !decide(f, out))
		return false;
	if (f->inside)
		drop(f);
	if (f->after)
		skip_newlines(f);
	if (!f->decided || f->inside)
		return true;
	if (!qwen_bytes_append(out, f->held.data, f->held.len))
		return false;
	f->held.len = 0;
	return true;
}

bool
qwen_think_filter_finish(qwen_think_filter *f, qwen_bytes *out)
{
	bool ok = f->decided || f->inside || qwen_bytes_append(out, f->held.data, f->held.len);

	f->held.len = 0;
	return ok;
}

void
qwen_think_filter_free(qwen_think_filter *f)
{
	qwen_bytes_free(&f->held);
}
