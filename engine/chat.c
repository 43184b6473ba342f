/*
 * chat.c
 *	  Rendering of conversations in the formats of the Qwen families.
 *
 * Each format is what the family's own template does, written out.  Two
 * functions write: put() text of the template, which is recorded as a span,
 * and put_text() text of somebody else, which is not.  Control tokens are
 * recognised in spans alone, so a role, a tag or an end of turn can only come
 * from here.
 *
 *	  <|im_start|>user\n  Hi  <|im_end|>\n<|im_start|>assistant\n
 *	  [---- span ------]      [------------- span --------------]
 */
#include <stdlib.h>
#include <string.h>

#include "chat_internal.h"
#include "json_python.h"

#define START "<|im_start|>"
#define END "<|im_end|>\n"

/* The text that tells a model of Qwen2.5 and Qwen3 about its tools; the tools stand between the two halves. */
static const char tools_before[] =
	"# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
	"You are provided with function signatures within <tools></tools> XML tags:\n<tools>";
static const char tools_after[] =
	"\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
	"<tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": "
	"<args-json-object>}\n</tool_call>";

static const char *const turn_starts[] = {
	[QWEN_ROLE_SYSTEM] = START "system\n",
	[QWEN_ROLE_USER] = START "user\n",
	[QWEN_ROLE_ASSISTANT] = START "assistant\n",
	[QWEN_ROLE_TOOL] = START "tool\n",
};

/* A prompt being written. Failures are remembered, so that formats need not look at every write. */
typedef struct writer
{
	qwen_chat_prompt *prompt;
	bool failed; /* memory is short */
} writer;

static void render_plain(writer *w, const qwen_conversation *c, const char *default_system);
static void render_qwen2_5(writer *w, const qwen_conversation *c);
static void render_qwen3(writer *w, const qwen_conversation *c, bool thinks);

static void put(writer *w, const char *text);
static void put_text(writer *w, qwen_text text);

const char *
qwen_chat_format_name(qwen_chat_format format)
{
	static const char *const names[] = {
		[QWEN_CHAT_NONE] = "none",
		[QWEN_CHAT_QWEN1_5] = "qwen1.5",
		[QWEN_CHAT_QWEN2] = "qwen2",
		[QWEN_CHAT_QWEN2_5] = "qwen2.5",
		[QWEN_CHAT_QWEN3] = "qwen3",
		[QWEN_CHAT_QWEN3_INSTRUCT_2507] = "qwen3-instruct-2507",
		[QWEN_CHAT_QWEN3_THINKING_2507] = "qwen3-thinking-2507",
	};

	return names[format];
}

/* The beginning of the assistant's turn that is to be generated. */
static void
put_generation_prompt(writer *w, qwen_chat_format format, bool thinking)
{
	put(w, turn_starts[QWEN_ROLE_ASSISTANT]);
	if (format == QWEN_CHAT_QWEN3 && !thinking)
		put(w, "<think>\n\n</think>\n\n");
	else if (format == QWEN_CHAT_QWEN3_THINKING_2507)
		put(w, "<think>\n");
}

qwen_status
qwen_chat_render(qwen_chat_format format, const json_t *messages, const json_t *tools, const qwen_chat_options *options,
				 qwen_chat_prompt *out, qwen_error *err)
{
	qwen_conversation c = {0};
	writer w = {out, false};
	qwen_status rc = QWEN_OK;

	if (format == QWEN_CHAT_NONE)
		return qwen_fail(err, QWEN_UNSUPPORTED, "the model has no chat template");
	if (qwen_conversation_read(messages, tools, &c, err) != QWEN_OK)
	{
		qwen_conversation_free(&c);
		return err->status;
	}
	switch (format)
	{
		case QWEN_CHAT_NONE:
			break;
		case QWEN_CHAT_QWEN1_5:
			render_plain(&w, &c, "You are a helpful assistant");
			break;
		case QWEN_CHAT_QWEN2:
			render_plain(&w, &c, "You are a helpful assistant.");
			break;
		case QWEN_CHAT_QWEN2_5:
			render_qwen2_5(&w, &c);
			break;
		case QWEN_CHAT_QWEN3:
		case QWEN_CHAT_QWEN3_THINKING_2507:
			render_qwen3(&w, &c, true);
			break;
		case QWEN_CHAT_QWEN3_INSTRUCT_2507:
			render_qwen3(&w, &c, false);
			break;
	}
	if (options->add_generation_prompt)
		put_generation_prompt(&w, format, options->thinking);
	if (w.failed)
		rc = qwen_fail_memory(err, out->text.len);
	qwen_conversation_free(&c);
	return rc;
}

void
qwen_chat_prompt_free(qwen_chat_prompt *prompt)
{
	qwen_bytes_free(&prompt->text);
	free(prompt->spans);
	*prompt = (qwen_chat_prompt){0};
}

/* ---- Qwen1.5 and Qwen2: turns, nothing else ---- */

/* One turn: the role of the template, the content of somebody else. */
static void
put_turn(writer *w, const qwen_turn *turn)
{
	put(w, turn_starts[turn->role]);
	put_text(w, turn->content);
	put(w, END);
}

/* The templates of these families know no tools and no reasoning; both are passed over, as there. */
static void
render_plain(writer *w, const qwen_conversation *c, const char *default_system)
{
	if (c->turns[0].role != QWEN_ROLE_SYSTEM)
	{
		put(w, turn_starts[QWEN_ROLE_SYSTEM]);
		put(w, default_system);
		put(w, END);
	}
	for (size_t i = 0; i < c->n; i++)
		put_turn(w, &c->turns[i]);
}

/* ---- what Qwen2.5 and Qwen3 have in common ---- */

/* Tools and arguments come from the caller: no span. */
static void
put_json(writer *w, const json_t *value)
{
	if (!w->failed && !qwen_json_python(value, &w->prompt->text))
		w->failed = true;
}

/* # Tools ... <tools>, one tool a line, </tools> ... */
static void
put_tools(writer *w, const json_t *tools)
{
	const json_t *tool;
	size_t i;

	put(w, tools_before);
	json_array_foreach(tools, i, tool)
	{
		put(w, "\n");
		put_json(w, tool);
	}
	put(w, tools_after);
}

/* A run of tool results is one turn of the user. */
static void
put_tool_result(writer *w, const qwen_conversation *c, size_t i)
{
	if (i == 0 || c->turns[i - 1].role != QWEN_ROLE_TOOL)
		put(w, START "user");
	put(w, "\n<tool_response>\n");
	put_text(w, c->turns[i].content);
	put(w, "\n</tool_response>");
	if (i + 1 == c->n || c->turns[i + 1].role != QWEN_ROLE_TOOL)
		put(w, END);
}

/* Up to the arguments, which the families write differently. The name is not escaped: neither does the template. */
static void
put_call_start(writer *w, const qwen_call *call)
{
	put(w, "<tool_call>\n{\"name\": \"");
	put_text(w, call->name);
	put(w, "\", \"arguments\": ");
}

/* ---- Qwen2.5 ---- */

/* The template writes a string as a JSON string; OpenAI's arguments are the text of an object, which is meant. */
static void
put_arguments_2_5(writer *w, const json_t *arguments)
{
	json_t *object = json_is_string(arguments)
						 ? json_loadb(json_string_value(arguments), json_string_length(arguments), 0, NULL)
						 : NULL;

	put_json(w, json_is_object(object) ? object : arguments);
	json_decref(object);
}

/* With calls the newline after the role belongs to what follows: content, if there is any, then each call. */
static void
put_assistant_2_5(writer *w, const qwen_turn *turn)
{
	if (turn->n_calls == 0)
	{
		put_turn(w, turn);
		return;
	}
	put(w, START "assistant");
	if (turn->content.len > 0)
	{
		put(w, "\n");
		put_text(w, turn->content);
	}
	for (size_t k = 0; k < turn->n_calls; k++)
	{
		put(w, "\n");
		put_call_start(w, &turn->calls[k]);
		put_arguments_2_5(w, turn->calls[k].arguments);
		put(w, "}\n</tool_call>");
	}
	put(w, END);
}

/* There always is a system turn; tools are appended to it. */
static void
render_qwen2_5(writer *w, const qwen_conversation *c)
{
	bool system = c->turns[0].role == QWEN_ROLE_SYSTEM;

	put(w, turn_starts[QWEN_ROLE_SYSTEM]);
	if (system)
		put_text(w, c->turns[0].content);
	else
		put(w, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.");
	if (c->tools)
	{
		put(w, "\n\n");
		put_tools(w, c->tools);
	}
	put(w, END);
	for (size_t i = system ? 1 : 0; i < c->n; i++)
	{
		if (c->turns[i].role == QWEN_ROLE_ASSISTANT)
			put_assistant_2_5(w, &c->turns[i]);
		else if (c->turns[i].role == QWEN_ROLE_TOOL)
			put_tool_result(w, c, i);
		else
			put_turn(w, &c->turns[i]);
	}
}

/* ---- Qwen3 ---- */

/* Python's lstrip('\n') and rstrip('\n'): newlines alone, not other white space. */
static qwen_text
strip_leading(qwen_text t)
{
	while (t.len > 0 && t.data[0] == '\n')
	{
		t.data++;
		t.len--;
	}
	return t;
}

static qwen_text
strip_trailing(qwen_text t)
{
	while (t.len > 0 && t.data[t.len - 1] == '\n')
		t.len--;
	return t;
}

/* Where a tag begins in the text, the first or the last time, or NULL. */
static const char *
find_tag(qwen_text t, const char *tag, bool last)
{
	const char *hit = memmem(t.data, t.len, tag, strlen(tag)), *next = hit;

	while (last && next)
	{
		hit = next;
		next = memmem(hit + 1, t.len - (size_t) (hit + 1 - t.data), tag, strlen(tag));
	}
	return hit;
}

/* What follows a tag that was found in the text. */
static qwen_text
behind(qwen_text t, const char *tag_at, const char *tag)
{
	const char *from = tag_at + strlen(tag);

	return (qwen_text){from, t.len - (size_t) (from - t.data)};
}

/* Takes the think block out of an assistant's content, where reasoning was not given by itself. */
static void
split_reasoning(qwen_text *content, qwen_text *reasoning)
{
	const char *first = find_tag(*content, "</think>", false), *open;
	qwen_text before;

	if (!first)
		return;
	before = strip_trailing((qwen_text){content->data, (size_t) (first - content->data)});
	open = find_tag(before, "<think>", true);
	*reasoning = strip_leading(open ? behind(before, open, "<think>") : before);
	*content = strip_leading(behind(*content, find_tag(*content, "</think>", true), "</think>"));
}

/*
 * Index of the last message that a user really wrote; of the last message when there is none.  A user's message in the
 * shape of a tool result is one: some callers send results in that way.
 */
static size_t
last_query(const qwen_conversation *c)
{
	static const char open[] = "<tool_response>", close[] = "</tool_response>";

	for (size_t i = c->n; i-- > 0;)
	{
		qwen_text t = c->turns[i].content;
		bool result = t.len >= sizeof(close) - 1 && !memcmp(t.data, open, sizeof(open) - 1) &&
					  !memcmp(t.data + t.len - (sizeof(close) - 1), close, sizeof(close) - 1);

		if (c->turns[i].role == QWEN_ROLE_USER && !result)
			return i;
	}
	return c->n - 1;
}

/* String arguments are taken to be JSON already. */
static void
put_calls_3(writer *w, const qwen_turn *turn, bool after_content)
{
	for (size_t k = 0; k < turn->n_calls; k++)
	{
		const json_t *arguments = turn->calls[k].arguments;

		if (k > 0 || after_content)
			put(w, "\n");
		put_call_start(w, &turn->calls[k]);
		if (json_is_string(arguments))
			put_text(w, (qwen_text){json_string_value(arguments), json_string_length(arguments)});
		else
			put_json(w, arguments);
		put(w, "}\n</tool_call>");
	}
}

/*
 * Reasoning is shown from the last query on; in earlier rounds it is left out.  The last message gets a think block
 * even when there was no reasoning, an empty one, because the model has been trained on it.
 */
static void
put_assistant_3(writer *w, const qwen_turn *turn, bool thinks, bool current, bool last)
{
	qwen_text content = turn->content, reasoning = turn->has_reasoning ? turn->reasoning : (qwen_text){"", 0};

	if (thinks && !turn->has_reasoning)
		split_reasoning(&content, &reasoning);
	put(w, turn_starts[QWEN_ROLE_ASSISTANT]);
	if (thinks && current && (last || reasoning.len > 0))
	{
		put(w, "<think>\n");
		put_text(w, strip_trailing(strip_leading(reasoning)));
		put(w, "\n</think>\n\n");
		put_text(w, strip_leading(content));
	}
	else
		put_text(w, content);
	put_calls_3(w, turn, content.len > 0);
	put(w, END);
}

/* thinks: false for Instruct-2507, whose template is the same without anything about reasoning. */
static void
render_qwen3(writer *w, const qwen_conversation *c, bool thinks)
{
	bool system = c->turns[0].role == QWEN_ROLE_SYSTEM;
	size_t query = last_query(c);

	if (c->tools)
	{
		put(w, turn_starts[QWEN_ROLE_SYSTEM]);
		if (system)
		{
			put_text(w, c->turns[0].content);
			put(w, "\n\n");
		}
		put_tools(w, c->tools);
		put(w, END);
	}
	else if (system)
		put_turn(w, &c->turns[0]);
	for (size_t i = system ? 1 : 0; i < c->n; i++)
	{
		if (c->turns[i].role == QWEN_ROLE_ASSISTANT)
			put_assistant_3(w, &c->turns[i], thinks, i > query, i + 1 == c->n);
		else if (c->turns[i].role == QWEN_ROLE_TOOL)
			put_tool_result(w, c, i);
		else
			put_turn(w, &c->turns[i]);
	}
}

/* ---- writing ---- */

/* Records that [begin, end) is the template's; neighbours become one span. */
static bool
add_span(qwen_chat_prompt *p, size_t begin, size_t end)
{
	if (p->n_spans > 0 && p->spans[p->n_spans - 1].end == begin)
	{
		p->spans[p->n_spans - 1].end = end;
		return true;
	}
	if (p->n_spans == p->cap_spans)
	{
		size_t cap = p->cap_spans ? 2 * p->cap_spans : 16;
		qwen_span *spans = realloc(p->spans, cap * sizeof(*spans));

		if (!spans)
			return false;
		p->spans = spans;
		p->cap_spans = cap;
	}
	p->spans[p->n_spans++] = (qwen_span){begin, end};
	return true;
}

/* Writes text of the template. */
static void
put(writer *w, const char *text)
{
	size_t begin = w->prompt->text.len;

	if (!w->failed &&
		(!qwen_bytes_append_str(&w->prompt->text, text) || !add_span(w->prompt, begin, w->prompt->text.len)))
		w->failed = true;
}

/* Writes text of somebody else. */
static void
put_text(writer *w, qwen_text text)
{
	if (!w->failed && !qwen_bytes_append(&w->prompt->text, text.data, text.len))
		w->failed = true;
}
