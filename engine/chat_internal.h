/*
 * chat_internal.h
 *	  A conversation as the formats see it: checked turns, no JSON any more
 *	  except what is printed as JSON.
 */
#ifndef QWEN_CHAT_INTERNAL_H
#define QWEN_CHAT_INTERNAL_H

#include "chat.h"

typedef enum qwen_role
{
	QWEN_ROLE_SYSTEM,
	QWEN_ROLE_USER,
	QWEN_ROLE_ASSISTANT,
	QWEN_ROLE_TOOL
} qwen_role;

/* A piece of somebody else's text. */
typedef struct qwen_text
{
	const char *data;
	size_t len;
} qwen_text;

/* A call that an assistant turn made. */
typedef struct qwen_call
{
	qwen_text name;
	const json_t *arguments;
} qwen_call;

typedef struct qwen_turn
{
	qwen_role role;
	qwen_text content;
	bool has_reasoning; /* reasoning_content was given */
	qwen_text reasoning;
	qwen_call *calls; /* [n_calls] */
	size_t n_calls;
	qwen_bytes joined; /* holds the content when it came in parts */
} qwen_turn;

typedef struct qwen_conversation
{
	qwen_turn *turns; /* [n] at least one */
	size_t n;
	const json_t *tools; /* array of at least one, or NULL */
} qwen_conversation;

/* Checks messages and tools; the conversation borrows from them. Freed in any case by qwen_conversation_free. */
qwen_status qwen_conversation_read(const json_t *messages, const json_t *tools, qwen_conversation *out,
								   qwen_error *err);
void qwen_conversation_free(qwen_conversation *conversation);

#endif
