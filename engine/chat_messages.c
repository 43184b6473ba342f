/*
 * chat_messages.c
 *	  From OpenAI's messages to checked turns.
 *
 * The reference's templates pass over what they do not understand, or fail
 * somewhere inside; here a message that no format can render is refused with
 * its number and the key that is wrong.
 */
#include <stdlib.h>
#include <string.h>

#include "chat_internal.h"
#include "config_json.h"

static const char *const role_names[] = {"system", "user", "assistant", "tool"};

/* QWEN_INVALID about a key of the message with that index. */
static qwen_status
fail_key(size_t i, const char *key, const char *want, qwen_error *err)
{
	return qwen_fail(err, QWEN_INVALID, "\"%s\" of message %zu must be %s", key, i + 1, want);
}

static qwen_text
text_of(const json_t *string)
{
	return (qwen_text){json_string_value(string), json_string_length(string)};
}

/* Roles become part of the template's text, so only known ones pass. */
static qwen_status
read_role(const json_t *message, size_t i, qwen_turn *turn, qwen_error *err)
{
	const char *role = json_string_value(json_object_get(message, "role"));
	char shown[40];

	if (!role)
		return fail_key(i, "role", "a string", err);
	for (size_t r = 0; r < sizeof(role_names) / sizeof(role_names[0]); r++)
		if (!strcmp(role, role_names[r]))
		{
			turn->role = (qwen_role) r;
			return QWEN_OK;
		}
	qwen_config_printable(shown, sizeof(shown), role);
	qwen_fail(err, QWEN_INVALID, "role \"%s\" of message %zu is not known", shown, i + 1);
	return qwen_fail_detail(err, "Known roles are system, user, assistant and tool.");
}

/* Content in parts: [{"type": "text", "text": …}, …], joined without separators. */
static qwen_status
join_parts(const json_t *parts, size_t i, qwen_turn *turn, qwen_error *err)
{
	const json_t *part;
	size_t k;

	json_array_foreach(parts, k, part)
	{
		const char *type = json_string_value(json_object_get(part, "type"));
		const json_t *text = json_object_get(part, "text");
		char shown[40];

		if (!type)
			return fail_key(i, "content", "a string or an array of parts with a \"type\"", err);
		if (strcmp(type, "text") != 0)
		{
			qwen_config_printable(shown, sizeof(shown), type);
			qwen_fail(err, QWEN_INVALID, "content of type \"%s\" in message %zu is not supported", shown, i + 1);
			return qwen_fail_detail(err, "Only parts of type \"text\" can be read.");
		}
		if (!json_is_string(text))
			return fail_key(i, "text", "a string in every part", err);
		if (!qwen_bytes_append(&turn->joined, json_string_value(text), json_string_length(text)))
			return qwen_fail_memory(err, json_string_length(text));
	}
	turn->content = (qwen_text){turn->joined.data ? turn->joined.data : "", turn->joined.len};
	return QWEN_OK;
}

/* An assistant that only called tools has no content. */
static qwen_status
read_content(const json_t *message, size_t i, qwen_turn *turn, qwen_error *err)
{
	const json_t *content = json_object_get(message, "content");

	turn->content = (qwen_text){"", 0};
	if (json_is_string(content))
		turn->content = text_of(content);
	else if (json_is_array(content))
		return join_parts(content, i, turn, err);
	else if ((content && !json_is_null(content)) || turn->role != QWEN_ROLE_ASSISTANT)
		return fail_key(i, "content", "a string or an array of parts", err);
	return QWEN_OK;
}

/* Given but empty is not the same as absent: then the content is not searched for a think block. */
static qwen_status
read_reasoning(const json_t *message, size_t i, qwen_turn *turn, qwen_error *err)
{
	const json_t *reasoning = json_object_get(message, "reasoning_content");

	if (!reasoning || json_is_null(reasoning))
		return QWEN_OK;
	if (!json_is_string(reasoning))
		return fail_key(i, "reasoning_content", "a string", err);
	turn->has_reasoning = true;
	turn->reasoning = text_of(reasoning);
	return QWEN_OK;
}

/* [{"type": "function", "function": {"name", "arguments"}}, …]; the function may also stand there by itself. */
static qwen_status
read_calls(const json_t *message, size_t i, qwen_turn *turn, qwen_error *err)
{
	const json_t *calls = json_object_get(message, "tool_calls"), *call;
	size_t k;

	if (!calls || json_is_null(calls))
		return QWEN_OK;
	if (!json_is_array(calls))
		return fail_key(i, "tool_calls", "an array", err);
	turn->calls = calloc(json_array_size(calls) + 1, sizeof(*turn->calls));
	if (!turn->calls)
		return qwen_fail_memory(err, json_array_size(calls) * sizeof(*turn->calls));
	json_array_foreach(calls, k, call)
	{
		const json_t *function = json_object_get(call, "function");
		const json_t *name;
		qwen_call *out = &turn->calls[turn->n_calls++];

		if (json_is_object(function))
			call = function;
		name = json_object_get(call, "name");
		out->arguments = json_object_get(call, "arguments");
		if (!json_is_string(name) || !out->arguments)
			return fail_key(i, "tool_calls", "an array of functions with \"name\" and \"arguments\"", err);
		out->name = text_of(name);
	}
	return QWEN_OK;
}

static qwen_status
read_message(const json_t *message, size_t i, qwen_turn *turn, qwen_error *err)
{
	if (!json_is_object(message))
		return qwen_fail(err, QWEN_INVALID, "message %zu must be an object", i + 1);
	if (read_role(message, i, turn, err) || read_content(message, i, turn, err))
		return err->status;
	if (turn->role != QWEN_ROLE_ASSISTANT)
		return QWEN_OK;
	return read_reasoning(message, i, turn, err) ? err->status : read_calls(message, i, turn, err);
}

qwen_status
qwen_conversation_read(const json_t *messages, const json_t *tools, qwen_conversation *out, qwen_error *err)
{
	size_t n = json_array_size(messages);

	*out = (qwen_conversation){0};
	if (!json_is_array(messages) || n == 0)
		return qwen_fail(err, QWEN_INVALID, "messages must be an array of at least one message");
	if (tools && !json_is_array(tools))
		return qwen_fail(err, QWEN_INVALID, "tools must be an array");
	out->tools = json_array_size(tools) ? tools : NULL;
	out->turns = calloc(n, sizeof(*out->turns));
	if (!out->turns)
		return qwen_fail_memory(err, n * sizeof(*out->turns));
	for (out->n = 0; out->n < n;)
	{
		size_t i = out->n++; /* counted first, so that a turn that fails half-way is freed */

		if (read_message(json_array_get(messages, i), i, &out->turns[i], err) != QWEN_OK)
			return err->status;
	}
	return QWEN_OK;
}

void
qwen_conversation_free(qwen_conversation *conversation)
{
	for (size_t i = 0; i < conversation->n; i++)
	{
		free(conversation->turns[i].calls);
		qwen_bytes_free(&conversation->turns[i].joined);
	}
	free(conversation->turns);
	*conversation = (qwen_conversation){0};
}
