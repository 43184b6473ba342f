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

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/ipc.h"
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

/* Between two looks at whether the program has exited. */
#define EXIT_POLL_MS 1

/* The program's name and what it is told: its command, its format, threads, and each option with its value. */
#define MAX_WORDS (5 + 2 * lengthof(options))

/* The program while it runs. */
typedef struct Program
{
	pid_t pid;
	int fd; /* that it writes to */
} Program;

static char **build_command(FunctionCallInfo fcinfo);
static char *option_value(FunctionCallInfo fcinfo, int i);
static char *run(char **args, int *status);
static void start(Program *program, char **args);
static int wait_for_exit(pid_t pid);
static void close_output(const Program *program);
static void abandon(int code, Datum arg);
static char *read_output(int fd);
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

/* NULL-terminated, palloc'd. No shell reads it, so that values may have any characters. */
static char **
build_command(FunctionCallInfo fcinfo)
{
	char **args = palloc0((MAX_WORDS + 1) * sizeof(char *));
	int n = 0;

	args[n++] = qwen_engine_path();
	args[n++] = "plan";
	args[n++] = "--json";
	args[n++] = "--threads";
	args[n++] = psprintf("%d", qwen_threads);
	for (int i = 0; i < lengthof(options); i++)
	{
		char *value = option_value(fcinfo, i);

		if (value == NULL || value[0] == '\0')
			continue;
		args[n++] = (char *) options[i].option;
		args[n++] = value;
	}
	return args;
}

/* The argument, or what the server is set to; settings about the machine's devices say nothing about others. */
static char *
option_value(FunctionCallInfo fcinfo, int i)
{
	if (!PG_ARGISNULL(i))
		return options[i].is_int ? psprintf("%d", PG_GETARG_INT32(i)) : text_to_cstring(PG_GETARG_TEXT_PP(i));
	if (i == ARG_MODEL)
		return qwen_model_path();
	if (options[i].setting == NULL || (options[i].placement && !PG_ARGISNULL(ARG_DEVICES)))
		return NULL;
	return pstrdup(GetConfigOption(options[i].setting, false, false));
}

/* ---- the process ---- */

/*
 * Everything that the program prints, its complaints included.  It lives no longer than we wait for it: an error, a
 * cancel and the end of this process kill it.
 */
static char *
run(char **args, int *status)
{
	Program program;
	char *output = NULL;

	start(&program, args);
	PG_ENSURE_ERROR_CLEANUP(abandon, PointerGetDatum(&program));
	{
		output = read_output(program.fd);
		*status = wait_for_exit(program.pid);
	}
	PG_END_ENSURE_ERROR_CLEANUP(abandon, PointerGetDatum(&program));
	close_output(&program);
	return output;
}

/* In a process group of its own: cancels are sent to the group of a backend, and what they mean is ours to decide. */
static void
start(Program *program, char **args)
{
	posix_spawnattr_t attributes;
	posix_spawn_file_actions_t actions;
	sigset_t signals;
	int ends[2], failure;

	ReserveExternalFD();
	if (pipe2(ends, O_CLOEXEC) != 0)
	{
		ReleaseExternalFD();
		ereport(ERROR, errcode_for_socket_access(), errmsg("could not create a pipe: %m"));
	}
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
	sigfillset(&signals);
	posix_spawnattr_setsigdefault(&attributes, &signals);
	sigemptyset(&signals);
	posix_spawnattr_setsigmask(&attributes, &signals);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
	posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
	failure = posix_spawn(&program->pid, args[0], &actions, &attributes, args, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attributes);
	close(ends[1]);
	program->fd = ends[0];
	if (failure == 0)
		return;
	close(program->fd);
	ReleaseExternalFD();
	errno = failure;
	ereport(ERROR, errcode_for_file_access(), errmsg("could not execute \"%s\": %m", args[0]),
			errhint("Install the program qwen-engine together with the extension."));
}

/*
 * The wait status of a program that has closed its output, so that all but its exit is done.  That takes no time, but
 * for a driver that hangs at exit: then we look again and can be interrupted.
 */
static int
wait_for_exit(pid_t pid)
{
	static uint32 event;
	int status = 0;

	while (waitpid(pid, &status, WNOHANG) == 0)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, EXIT_POLL_MS,
						 qwen_wait_event("QwenPlan", &event));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return status;
}

static void
close_output(const Program *program)
{
	close(program->fd);
	ReleaseExternalFD();
}

/* A cleanup callback. */
static void
abandon(int code, Datum arg)
{
	const Program *program = (const Program *) DatumGetPointer(arg);

	kill(program->pid, SIGKILL);
	while (waitpid(program->pid, NULL, 0) < 0 && errno == EINTR)
		;
	close_output(program);
}

static char *
read_output(int fd)
{
	static uint32 event;
	StringInfoData output;
	bool ended = false;

	initStringInfo(&output);
	while (!ended)
	{
		int events = WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_SOCKET_READABLE | WL_EXIT_ON_PM_DEATH, fd, -1,
									   qwen_wait_event("QwenPlan", &event));

		if (events & WL_LATCH_SET)
			ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (events & WL_SOCKET_READABLE)
			ended = !read_some(fd, &output);
	}
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
