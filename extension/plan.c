/*-------------------------------------------------------------------------
 *
 * plan.c
 *	  qwen_plan_json(), under qwen_plan(): where a model would go.
 *
 * A backend holds no model code, and the engine that serves may be down or
 * have another model, so the plan is asked of the program itself:
 * qwen-engine plan --json, which reads config.json alone, takes milliseconds
 * and prints one object.  Its errors are objects too and are raised here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/wait.h>
#include <unistd.h>

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "supervisor.h"

/* Arguments of qwen_plan_json and the program's options, which are named as the settings are. */
static const struct
{
	const char *option;
	const char *setting; /* what NULL stands for; NULL: nothing */
	bool placement;      /* of this machine's devices: no default when others are described */
	bool is_int;
} options[] = {
	{"-m", NULL, false, false}, /* qwen_model_path() */
	{"--device-map", "qwen.device_map", true, false},
	{"--max-memory", "qwen.max_memory", true, false},
	{"--devices", NULL, false, false},
	{"--tensor-parallel", "qwen.tensor_parallel", true, true},
	{"--dtype", "qwen.dtype", false, false},
	{"--quantization", "qwen.quantization", false, false},
	{"--kv-dtype", "qwen.kv_dtype", false, false},
	{"--kv-memory", "qwen.kv_memory", false, false},
	{"--max-model-len", "qwen.max_model_len", false, true},
	{"--max-sequences", "qwen.max_sequences", false, true},
	{"--offload", "qwen.offload", false, false},
};

/* Of options[]. */
#define ARG_MODEL 0
#define ARG_DEVICES 3

static char *build_command(FunctionCallInfo fcinfo);
static const char *option_value(FunctionCallInfo fcinfo, int i);
static void append_quoted(StringInfo command, const char *value);
static char *run(const char *command, int *status);
static bool read_some(int fd, StringInfo out);
static Jsonb *parse_output(char *output, int status);
static const char *member(Jsonb *object, const char *name);
pg_noreturn static void raise_error(Jsonb *error);

PG_FUNCTION_INFO_V1(qwen_plan_json);

Datum
qwen_plan_json(PG_FUNCTION_ARGS)
{
	int status;
	char *output;
	Jsonb *result;

	if (PG_NARGS() != lengthof(options))
		elog(ERROR, "qwen_plan_json takes %d arguments", (int) lengthof(options));
	output = run(build_command(fcinfo), &status);
	result = parse_output(output, status);
	if (member(result, "error") != NULL)
		raise_error(result);
	PG_RETURN_JSONB_P(result);
}

/* ---- the command ---- */

static char *
build_command(FunctionCallInfo fcinfo)
{
	StringInfoData command;

	initStringInfo(&command);
	append_quoted(&command, qwen_engine_path());
	appendStringInfoString(&command, " plan --json");
	for (int i = 0; i < lengthof(options); i++)
	{
		const char *value = option_value(fcinfo, i);

		if (value == NULL || value[0] == '\0')
			continue;
		appendStringInfo(&command, " %s ", options[i].option);
		append_quoted(&command, value);
	}
	return command.data;
}

/* The argument, or what the server is set to; settings about the machine's devices say nothing about others. */
static const char *
option_value(FunctionCallInfo fcinfo, int i)
{
	if (!PG_ARGISNULL(i))
		return options[i].is_int ? psprintf("%d", PG_GETARG_INT32(i)) : text_to_cstring(PG_GETARG_TEXT_PP(i));
	if (i == ARG_MODEL)
		return qwen_model_path();
	if (options[i].setting == NULL || (options[i].placement && !PG_ARGISNULL(ARG_DEVICES)))
		return NULL;
	return GetConfigOption(options[i].setting, false, false);
}

/* For the shell: within single quotes nothing but those has a meaning. */
static void
append_quoted(StringInfo command, const char *value)
{
	appendStringInfoChar(command, '\'');
	for (; *value != '\0'; value++)
	{
		if (*value == '\'')
			appendStringInfoString(command, "'\\''");
		else
			appendStringInfoChar(command, *value);
	}
	appendStringInfoChar(command, '\'');
}

/* ---- the process ---- */

/*
 * Everything that the command prints, its complaints included.  The pipe belongs to the transaction, which closes it
 * when we are interrupted.
 */
static char *
run(const char *command, int *status)
{
	static uint32 event;
	StringInfoData output;
	bool ended = false;
	FILE *pipe = OpenPipeStream(psprintf("%s 2>&1", command), PG_BINARY_R);

	if (pipe == NULL)
		ereport(ERROR, errcode_for_file_access(), errmsg("could not execute command \"%s\": %m", command));
	initStringInfo(&output);
	while (!ended)
	{
		int events = WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_SOCKET_READABLE | WL_EXIT_ON_PM_DEATH, fileno(pipe),
									   -1, qwen_wait_event("QwenPlan", &event));

		if (events & WL_LATCH_SET)
			ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (events & WL_SOCKET_READABLE)
			ended = !read_some(fileno(pipe), &output);
	}
	*status = ClosePipeStream(pipe);
	return output.data;
}

/* False at the end. */
static bool
read_some(int fd, StringInfo out)
{
	char buffer[4096];
	ssize_t n = read(fd, buffer, sizeof(buffer));

	if (n > 0)
		appendBinaryStringInfo(out, buffer, n);
	return n > 0 || (n < 0 && (errno == EINTR || errno == EAGAIN));
}

/* One object is the plan or an error; anything else is not the program that we know. */
static Jsonb *
parse_output(char *output, int status)
{
	char *text = pg_any_to_server(output, strlen(output), PG_UTF8);

	if (text[0] != '{')
		ereport(
			ERROR, errcode(ERRCODE_SYSTEM_ERROR), errmsg("could not make a plan"),
			status != 0 ? errdetail("The engine's program %s.", wait_result_to_str(status)) : 0,
			text[0] != '\0' ? errdetail_log("It said: %s", text) : 0,
			errhint("Check that qwen-engine of this version is installed beside the library; the server's log has what "
					"it said."));
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
}

/* ---- errors ---- */

/* A member that is a string, palloc'd, or NULL. */
static const char *
member(Jsonb *object, const char *name)
{
	JsonbValue *value = getKeyJsonValueFromContainer(&object->root, name, strlen(name), NULL);

	if (value == NULL || value->type != jbvString)
		return NULL;
	return pnstrdup(value->val.string.val, value->val.string.len);
}

/* {"error", "code", "detail", "hint"} as SQL raises it. */
static void
raise_error(Jsonb *error)
{
	const char *code = member(error, "code");
	const char *detail = member(error, "detail");
	const char *hint = member(error, "hint");

	ereport(ERROR,
			errcode(code != NULL && strlen(code) == 5 ? MAKE_SQLSTATE(code[0], code[1], code[2], code[3], code[4])
													  : ERRCODE_SYSTEM_ERROR),
			errmsg_internal("%s", member(error, "error")),
			detail != NULL && detail[0] != '\0' ? errdetail_internal("%s", detail) : 0,
			hint != NULL && hint[0] != '\0' ? errhint("%s", hint) : 0);
}
