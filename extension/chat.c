/*-------------------------------------------------------------------------
 *
 * chat.c
 *	  qwen_chat.
 *
 * Messages and tools are checked here for their shape, so that a slip is an
 * error before anything is queued, and travel as JSON text.  What the model's
 * template makes of them is the engine's business.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"

#include "answer.h"
#include "options.h"

static int check_objects(Jsonb *json, const char *name);
static void check_messages(Jsonb *messages);
static void check_message(JsonbContainer *message, int number);
static bool has_tool_calls(JsonbContainer *message);
static bool begins_with_system(Jsonb *messages);
static JsonbValue *member(JsonbContainer *object, const char *name);
static bool is_string(const JsonbValue *value, const char *expected);
static char *messages_text(Jsonb *messages, const QwenOptions *options, Size *length);
static bool prepare_chat(FunctionCallInfo fcinfo, QwenAsk *ask);
static bool add_conversation(FunctionCallInfo fcinfo, const QwenOptions *options, QwenAsk *ask);
static Datum finish_chat(FunctionCallInfo fcinfo, QwenOnError on_error, QwenAnswer *answer);

PG_FUNCTION_INFO_V1(qwen_chat);

const QwenFunction qwen_chat_function = {qwen_chat, "qwen_chat", prepare_chat, finish_chat};

Datum
qwen_chat(PG_FUNCTION_ARGS)
{
	return qwen_run_function(fcinfo, &qwen_chat_function);
}

static bool
prepare_chat(FunctionCallInfo fcinfo, QwenAsk *ask)
{
	QwenOptions options;

	if (PG_ARGISNULL(QWEN_ARG_SUBJECT))
		return false;

	/* Which end of a conversation to cut is not for the engine to decide. */
	qwen_read_options(fcinfo, QWEN_KIND_CHAT, QWEN_OPTION_BIT(QWEN_OPTION_TRUNCATE), &options);
	ask->on_error = options.on_error;

	if (!add_conversation(fcinfo, &options, ask))
	{
		pfree(ask->request.data);
		ask->request.data = NULL;
	}
	return true;
}

static bool
add_conversation(FunctionCallInfo fcinfo, const QwenOptions *options, QwenAsk *ask)
{
	Jsonb *messages = PG_GETARG_JSONB_P(QWEN_ARG_SUBJECT);
	char *json;
	Size length;

	check_messages(messages);
	json = messages_text(messages, options, &length);
	qwen_request_begin(&ask->request, options);
	if (!qwen_request_add_text(&ask->request, QWEN_FIELD_MESSAGES, json, length, &ask->error))
		return false;
	if (!PG_ARGISNULL(QWEN_ARG_TOOLS))
	{
		Jsonb *tools = PG_GETARG_JSONB_P(QWEN_ARG_TOOLS);

		if (check_objects(tools, "tools") > 0)
		{
			json = JsonbToCString(NULL, &tools->root, VARSIZE(tools));
			return qwen_request_add_text(&ask->request, QWEN_FIELD_TOOLS, json, strlen(json), &ask->error);
		}
	}
	return true;
}

/* The messages as JSON; a system message from the options or the settings goes first, unless they have one. */
static char *
messages_text(Jsonb *messages, const QwenOptions *options, Size *length)
{
	bool has_system = begins_with_system(messages);
	StringInfoData json;

	if (has_system && options->system_given)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("system is given twice"),
						errdetail("It is both an option and the first of the messages.")));

	initStringInfo(&json);
	(void) JsonbToCString(&json, &messages->root, VARSIZE(messages));
	if (options->system != NULL && !has_system)
	{
		StringInfoData with_system;

		initStringInfo(&with_system);
		appendStringInfoString(&with_system, "[{\"role\": \"system\", \"content\": ");
		escape_json(&with_system, options->system);
		appendStringInfo(&with_system, "}, %s", json.data + 1);
		pfree(json.data);
		json = with_system;
	}
	*length = json.len;
	return json.data;
}

static Datum
finish_chat(FunctionCallInfo fcinfo, QwenOnError on_error, QwenAnswer *answer)
{
	text *json = answer->failed ? NULL : qwen_answer_text(answer);

	if (json == NULL)
	{
		qwen_fail_row(fcinfo, on_error, &answer->error);
		PG_RETURN_NULL();
	}
	PG_RETURN_DATUM(DirectFunctionCall1(jsonb_in, CStringGetDatum(text_to_cstring(json))));
}

/* ---- shapes ---- */

/* Raises unless it is an array of objects; returns how many. */
static int
check_objects(Jsonb *json, const char *name)
{
	int n = 0;

	if (!JB_ROOT_IS_ARRAY(json) || JB_ROOT_IS_SCALAR(json))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s must be a JSON array", name)));
	n = JB_ROOT_COUNT(json);
	for (int i = 0; i < n; i++)
	{
		JsonbValue *element = getIthJsonbValueFromContainer(&json->root, i);

		if (element->type != jbvBinary || !JsonContainerIsObject(element->val.binary.data))
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("element %d of %s must be a JSON object", i + 1, name)));
		pfree(element);
	}
	return n;
}

static void
check_messages(Jsonb *messages)
{
	int n = check_objects(messages, "messages");

	if (n == 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("messages must not be empty")));
	for (int i = 0; i < n; i++)
	{
		JsonbValue *message = getIthJsonbValueFromContainer(&messages->root, i);

		check_message(message->val.binary.data, i + 1);
		pfree(message);
	}
}

static void
check_message(JsonbContainer *message, int number)
{
	JsonbValue *role = member(message, "role");
	JsonbValue *content = member(message, "content");

	if (!is_string(role, "system") && !is_string(role, "user") && !is_string(role, "assistant") &&
		!is_string(role, "tool"))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("message %d has no valid role", number),
						errhint("Valid roles are system, user, assistant and tool.")));

	if (content != NULL && content->type == jbvString)
		return;
	if ((content == NULL || content->type == jbvNull) && is_string(role, "assistant") && has_tool_calls(message))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("content of message %d must be a string", number)));
}

static bool
has_tool_calls(JsonbContainer *message)
{
	JsonbValue *calls = member(message, "tool_calls");

	return calls != NULL && calls->type == jbvBinary && JsonContainerIsArray(calls->val.binary.data) &&
		   JsonContainerSize(calls->val.binary.data) > 0;
}

static bool
begins_with_system(Jsonb *messages)
{
	JsonbValue *first = getIthJsonbValueFromContainer(&messages->root, 0);

	return is_string(member(first->val.binary.data, "role"), "system");
}

static JsonbValue *
member(JsonbContainer *object, const char *name)
{
	return getKeyJsonValueFromContainer(object, name, strlen(name), NULL);
}

static bool
is_string(const JsonbValue *value, const char *expected)
{
	return value != NULL && value->type == jbvString && value->val.string.len == strlen(expected) &&
		   memcmp(value->val.string.val, expected, value->val.string.len) == 0;
}
