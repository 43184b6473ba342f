/*-------------------------------------------------------------------------
 *
 * supervisor.c
 *	  The engine process: start, watch, end, restart.
 *
 * The engine is an ordinary program, exec'd by the worker and joined to it by
 * a socket pair.  It must be able to die in any way without the server
 * noticing more than a pause, so it is no child of the postmaster, shares no
 * memory with the server, inherits none of its files, offers itself first to
 * the kernel's OOM killer, and dies with the worker whatever happens to that.
 *
 *	none --start--> STARTING --> LOADING --> READY --replace--> (ends) --> none
 *					   |			|		   |
 *					   +-- died early: pause --+-- died: at once --> none
 *					   +-- FAILED: refused, until settings change --> none
 *
 * What an engine is started with is read from the settings at server start
 * and when it is to be replaced, and kept: after a death the next engine must
 * be the same one, because it continues the answers of its predecessor.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/timestamp.h"

#include "shared.h"
#include "supervisor.h"

#define ENGINE_FD 3        /* the engine's end of the socket pair, in the engine */
#define LONGEST_PAUSE_S 60 /* between attempts to start an engine */
#define PROBATION_MS 10000 /* after which an engine whose predecessor died is trusted like any other */
#define HOPELESS_DEATHS 3  /* early ones in a row, then queued requests fail */
#define TERM_GRACE_MS 500  /* between SIGTERM and SIGKILL when the worker ends */
#define EXIT_GRACE_MS 2000 /* between the end of its socket and SIGKILL */
#define MAX_ARGS 32

extern char **environ;

/* The command line of the engine, as it was when the settings were last read. */
typedef struct EngineCommand
{
	MemoryContext context;
	char *model;
	char *args[MAX_ARGS]; /* NULL-terminated */
	int n_args;
} EngineCommand;

static EngineCommand command;

/* The engine of this worker; the parts that others may see are copied to QwenShared. */
static struct
{
	pid_t pid; /* 0: none */
	int fd;
	int status;             /* of waitpid, once it has ended */
	bool ready;             /* has been READY */
	bool refused;           /* has been FAILED, or could not be executed */
	bool stopping;          /* was told to end */
	bool ended;             /* waitpid has said so */
	bool lost;              /* its socket is closed or of no use any more; it has ended or will be killed */
	const char *why_killed; /* NULL: not by us */
	TimestampTz last_frame;
	TimestampTz kill_at;    /* when lost */
	TimestampTz next_start; /* while there is none */
	int early_deaths;       /* in a row */
	bool is_successor;      /* of one that died */
	TimestampTz ready_since;
} engine = {.fd = -1};

static void add_option(EngineCommand *cmd, const char *name, const char *value);
static void add_choice(EngineCommand *cmd, const char *name, const char *setting, const char *standard);
static void add_number(EngineCommand *cmd, const char *name, int value, int standard);
static bool note_settings(const EngineCommand *cmd);
static void start_engine(void);
static void refuse(const char *sqlstate, const char *message, const char *detail, const char *hint);
static bool spawn(void);
static void postpone(const char *what);
pg_noreturn static void run_engine(int fd, pid_t worker);
static void leave_server(int fd, pid_t worker);
static void close_other_files(void);
static void clean_environment(void);
static void publish_start(void);
static void publish_end(QwenEngineEnd end, const char *how);
static void describe_end(QwenEngineEnd end, char *buffer, Size size);
static void accept_state(qwen_engine_state *state);
static bool accept_devices(const qwen_frame *frame, const char *payload);
static void terminate_texts(qwen_engine_state *state);

/* ---- settings ---- */

/* Names as in the program's --help; what has its default is left out, so that `ps` shows what was set. */
bool
qwen_engine_read_settings(void)
{
	EngineCommand next = {0};
	MemoryContext old;

	next.context = AllocSetContextCreate(TopMemoryContext, "qwen engine command", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(next.context);

	next.model = qwen_model_path();
	next.args[next.n_args++] = qwen_engine_path();
	next.args[next.n_args++] = pstrdup("serve");
	add_option(&next, "--fd", psprintf("%d", ENGINE_FD));
	add_option(&next, "-m", next.model);
	if (strcmp(qwen_device_map, "auto") != 0)
		add_option(&next, "--device-map", qwen_device_map);
	add_option(&next, "--max-memory", qwen_max_memory);
	add_number(&next, "--tensor-parallel", qwen_tensor_parallel, 1);
	add_choice(&next, "--offload", "qwen.offload", "off");
	add_choice(&next, "--dtype", "qwen.dtype", "auto");
	add_choice(&next, "--quantization", "qwen.quantization", "none");
	add_choice(&next, "--kv-dtype", "qwen.kv_dtype", "auto");
	if (strcmp(qwen_kv_memory, "auto") != 0)
		add_option(&next, "--kv-memory", qwen_kv_memory);
	if (!qwen_prefix_cache)
		add_option(&next, "--prefix-cache", "off");
	add_number(&next, "--max-model-len", qwen_max_model_len, 0);
	add_number(&next, "--max-sequences", qwen_max_sequences, 256);
	add_number(&next, "--threads", qwen_threads, 0);
	MemoryContextSwitchTo(old);

	if (command.context != NULL)
		MemoryContextDelete(command.context);
	command = next;
	return note_settings(&command);
}

/* What qwen.model means: empty is the bundled model. palloc'd. */
char *
qwen_model_path(void)
{
	char share[MAXPGPATH];

	if (qwen_model[0] != '\0')
		return pstrdup(qwen_model);
	get_share_path(my_exec_path, share);
	return psprintf("%s/qwen/demo-model", share);
}

/* The program, which is installed beside the library. palloc'd. */
char *
qwen_engine_path(void)
{
	return psprintf("%s/qwen-engine", pkglib_path);
}

/* Empty is the same as not given. */
static void
add_option(EngineCommand *cmd, const char *name, const char *value)
{
	if (value[0] == '\0')
		return;
	Assert(cmd->n_args + 2 < MAX_ARGS);
	cmd->args[cmd->n_args++] = pstrdup(name);
	cmd->args[cmd->n_args++] = pstrdup(value);
}

/* One of a few words, which the setting and the program share. */
static void
add_choice(EngineCommand *cmd, const char *name, const char *setting, const char *standard)
{
	const char *value = GetConfigOption(setting, false, false);

	if (strcmp(value, standard) != 0)
		add_option(cmd, name, value);
}

/* The program's own default is not passed on. */
static void
add_number(EngineCommand *cmd, const char *name, int value, int standard)
{
	if (value != standard)
		add_option(cmd, name, psprintf("%d", value));
}

/*
 * Notes in shared memory what the next engine is started with, where it outlives this worker; true if that is not what
 * was noted before.
 */
static bool
note_settings(const EngineCommand *cmd)
{
	uint32 digest = 0;
	bool changed;

	for (int i = 0; i < cmd->n_args; i++)
		digest = hash_combine(digest, hash_bytes((const unsigned char *) cmd->args[i], strlen(cmd->args[i])));

	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	changed = qwen_shared->settings != digest;
	qwen_shared->settings = digest;
	LWLockRelease(qwen_control_lock());
	return changed;
}

/* ---- start ---- */

/* A refused model is not tried again until somebody has changed something. */
void
qwen_engine_start_if_due(void)
{
	if (engine.pid == 0 && !engine.refused && GetCurrentTimestamp() >= engine.next_start)
		start_engine();
}

/*
 * A missing program is a refusal and not a death: trying again would not bring it, and callers learn it at once.
 */
static void
start_engine(void)
{
	const char *program = command.args[0];

	engine.ready = false;
	engine.stopping = false;
	engine.ended = false;
	engine.lost = false;
	engine.why_killed = NULL;
	if (access(program, X_OK) != 0)
	{
		char *message = psprintf("could not execute \"%s\": %m", program);

		refuse("58P01", message, "", "Install the program qwen-engine together with the extension.");
		pfree(message);
		return;
	}
	if (!spawn())
		return;
	publish_start();
	ereport(LOG, (errmsg("started qwen engine (PID %d) with model \"%s\"", (int) engine.pid, command.model)));
}

/* What the engine would say itself if there were one. */
static void
refuse(const char *sqlstate, const char *message, const char *detail, const char *hint)
{
	qwen_engine_state state = {.protocol = QWEN_PROTOCOL, .phase = QWEN_ENGINE_FAILED};

	strlcpy(state.error.sqlstate, sqlstate, sizeof(state.error.sqlstate));
	strlcpy(state.error.message, message, sizeof(state.error.message));
	strlcpy(state.error.detail, detail, sizeof(state.error.detail));
	strlcpy(state.error.hint, hint, sizeof(state.error.hint));
	accept_state(&state);
}

/* Forks and executes; false when that failed and will be tried again. */
static bool
spawn(void)
{
	int pair[2];
	sigset_t all;
	sigset_t before;
	pid_t worker = getpid();

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
	{
		postpone("could not create a socket pair");
		return false;
	}

	/* No handler of the server may run in the child: it would act on what it shares with its parent. */
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	engine.pid = fork();
	if (engine.pid == 0)
		run_engine(pair[1], worker);
	sigprocmask(SIG_SETMASK, &before, NULL);

	close(pair[1]);
	if (engine.pid < 0)
	{
		engine.pid = 0;
		postpone("could not fork");
		close(pair[0]);
		return false;
	}
	engine.fd = pair[0];
	engine.last_frame = GetCurrentTimestamp();
	return true;
}

/* `what` failed, with errno. It may work later. */
static void
postpone(const char *what)
{
	engine.early_deaths++;
	engine.next_start = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 1000);
	ereport(LOG, (errmsg("could not start qwen engine: %s: %m", what)));
}

/* In the child, which must neither return nor run any of the server's exit callbacks. */
static void
run_engine(int fd, pid_t worker)
{
	leave_server(fd, worker);
	execv(command.args[0], command.args);
	write_stderr("could not execute \"%s\": %s\n", command.args[0], strerror(errno));
	_exit(127);
}

/* Sheds everything of the server but the socket and standard error, which goes to the server log. */
static void
leave_server(int fd, pid_t worker)
{
	sigset_t none;
	int null;

	for (int i = 1; i < NSIG; i++)
		(void) signal(i, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);

	/* Signals to the worker go to its process group: pg_cancel_backend() and a terminal's ^C are not for the engine. */
	if (setsid() < 0)
		_exit(126);

	/* The signal comes when the worker dies; but it may have died before we asked for it. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != worker)
		_exit(126);

	null = open("/dev/null", O_RDWR);
	if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0)
		_exit(126);
	/* dup2 onto itself would keep the close-on-exec flag */
	if (fd == ENGINE_FD ? fcntl(fd, F_SETFD, 0) < 0 : dup2(fd, ENGINE_FD) < 0)
		_exit(126);
	close_other_files();
	clean_environment();
}

/* The server's files and sockets are not closed on exec, all of them: versions differ. */
static void
close_other_files(void)
{
	long limit;

	/* Kernels before 5.9 lack the call; there the limit of descriptors is an honest one. */
	if (syscall(SYS_close_range, ENGINE_FD + 1, ~0U, 0) == 0)
		return;
	limit = sysconf(_SC_OPEN_MAX);
	for (int i = ENGINE_FD + 1; i < limit; i++)
		close(i);
}

/* The server's own variables go; what concerns libraries, devices and locale stays. */
static void
clean_environment(void)
{
	char **keep = environ;

	for (char **entry = environ; *entry != NULL; entry++)
		if (strncmp(*entry, "PG", 2) != 0)
			*keep++ = *entry;
	*keep = NULL;

	/* Read by libgomp when it is loaded: its idle threads must not spin on cores that the server needs. */
	setenv("OMP_WAIT_POLICY", "passive", 1);
}

/* Whatever was known of the one before goes; only the count of deaths and the last error stay. */
static void
publish_start(void)
{
	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	qwen_shared->engine_pid = engine.pid;
	qwen_shared->engine_start = GetCurrentTimestamp();
	qwen_shared->ready_since = 0;
	qwen_shared->failed = false;
	memset(&qwen_shared->engine, 0, sizeof(qwen_shared->engine));
	qwen_shared->engine.phase = QWEN_ENGINE_STARTING;
	memset(&qwen_shared->heartbeat, 0, sizeof(qwen_shared->heartbeat));
	memset(&qwen_shared->devices, 0, sizeof(qwen_shared->devices));
	strlcpy(qwen_shared->model, command.model, sizeof(qwen_shared->model));
	LWLockRelease(qwen_control_lock());
}

/* ---- watch ---- */

/* Any frame is a sign of life; one of another size is from another build. */
bool
qwen_engine_heard(const qwen_frame *frame, const char *payload)
{
	engine.last_frame = GetCurrentTimestamp();

	if (frame->type == QWEN_FRAME_STATE)
	{
		qwen_engine_state state;

		if (frame->length != sizeof(state))
			return false;
		memcpy(&state, payload, sizeof(state));
		if (state.protocol != QWEN_PROTOCOL || state.phase < QWEN_ENGINE_STARTING || state.phase > QWEN_ENGINE_FAILED)
			return false;
		accept_state(&state);
	}
	else if (frame->type == QWEN_FRAME_DEVICES)
		return accept_devices(frame, payload);
	else
	{
		if (frame->length != sizeof(qwen_heartbeat))
			return false;
		LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
		memcpy(&qwen_shared->heartbeat, payload, sizeof(qwen_heartbeat));
		LWLockRelease(qwen_control_lock());
	}
	return true;
}

/* Numbers are looked at before they are believed: they say how much of the rest there is. */
static bool
accept_devices(const qwen_frame *frame, const char *payload)
{
	qwen_devices *devices = &qwen_shared->devices;
	Size base = offsetof(qwen_devices, devices);
	qwen_devices now;

	if (frame->length < base || frame->length > sizeof(now))
		return false;
	memset(&now, 0, sizeof(now));
	memcpy(&now, payload, frame->length);
	if (now.n_devices < 0 || now.n_devices > QWEN_MAX_WIRE_DEVICES || now.n_layers < 0 ||
		now.n_layers > QWEN_MAX_WIRE_LAYERS || frame->length != base + now.n_devices * sizeof(now.devices[0]))
		return false;
	for (int i = 0; i < now.n_devices; i++)
	{
		now.devices[i].name[sizeof(now.devices[i].name) - 1] = '\0';
		now.devices[i].kind[sizeof(now.devices[i].kind) - 1] = '\0';
	}
	if (engine.stopping)
		return true;
	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	*devices = now;
	LWLockRelease(qwen_control_lock());
	return true;
}

/* Publishes what the engine says it is, and acts on the two phases that end its start. */
static void
accept_state(qwen_engine_state *state)
{
	bool ready = state->phase == QWEN_ENGINE_READY;
	bool refused = state->phase == QWEN_ENGINE_FAILED;

	/* An engine that is on its way out says nothing of interest: what is shown is about the next one. */
	if (engine.stopping)
		return;

	terminate_texts(state);
	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	qwen_shared->engine = *state;
	if (ready && !engine.ready)
		qwen_shared->ready_since = GetCurrentTimestamp();
	if (ready)
		qwen_shared->serving = true;
	if (refused)
	{
		qwen_shared->serving = false;
		qwen_shared->failed = true;
		strlcpy(qwen_shared->model, command.model, sizeof(qwen_shared->model));
		strlcpy(qwen_shared->last_error, state->error.message, sizeof(qwen_shared->last_error));
	}
	LWLockRelease(qwen_control_lock());

	if (ready)
	{
		if (!engine.ready)
			engine.ready_since = GetCurrentTimestamp();
		engine.ready = true;
		engine.early_deaths = 0;
	}
	if (refused)
	{
		engine.refused = true;
		ereport(LOG, (errmsg("qwen engine could not load model \"%s\": %s", command.model, state->error.message),
					  state->error.detail[0] != '\0' ? errdetail_internal("%s", state->error.detail) : 0,
					  state->error.hint[0] != '\0' ? errhint("%s", state->error.hint) : 0));
	}
	if (ready || refused)
		ConditionVariableBroadcast(&qwen_shared->changed);
}

/* Texts end where their fields end, whatever the engine wrote. */
static void
terminate_texts(qwen_engine_state *state)
{
	state->architecture[sizeof(state->architecture) - 1] = '\0';
	state->dtype[sizeof(state->dtype) - 1] = '\0';
	state->quantization[sizeof(state->quantization) - 1] = '\0';
	state->kv_dtype[sizeof(state->kv_dtype) - 1] = '\0';
	state->kernels[sizeof(state->kernels) - 1] = '\0';
	state->device[sizeof(state->device) - 1] = '\0';
	state->error.sqlstate[sizeof(state->error.sqlstate) - 1] = '\0';
	state->error.message[sizeof(state->error.message) - 1] = '\0';
	state->error.detail[sizeof(state->error.detail) - 1] = '\0';
	state->error.hint[sizeof(state->error.hint) - 1] = '\0';
}

/* Called after reading, so frames that came while this process was stopped count. */
void
qwen_engine_check_heartbeat(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (engine.pid == 0 || engine.why_killed != NULL)
		return;
	if (engine.lost && now >= engine.kill_at)
		qwen_engine_kill("closed its socket");
	else if (!engine.lost && qwen_heartbeat_timeout > 0 &&
			 TimestampDifferenceExceeds(engine.last_frame, now, qwen_heartbeat_timeout * 1000))
		qwen_engine_kill("gave no sign of life for qwen.heartbeat_timeout");
}

/* It gets a moment to end by itself, because only then its exit status tells what happened. */
void
qwen_engine_lost(void)
{
	if (engine.lost)
		return;
	engine.lost = true;
	engine.kill_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), EXIT_GRACE_MS);
}

/* SIGKILL: what cannot be trusted need not be asked. */
void
qwen_engine_kill(const char *why)
{
	if (engine.pid == 0 || engine.ended || engine.why_killed != NULL)
		return;
	engine.lost = true;
	engine.why_killed = why;
	kill(engine.pid, SIGKILL);
}

/* A lost engine has none: nobody should read or write it any more. */
int
qwen_engine_socket(void)
{
	return engine.lost ? -1 : engine.fd;
}

/* Before READY it would have to store them, after SHUTDOWN it would not run them. */
bool
qwen_engine_takes_requests(void)
{
	return engine.pid != 0 && engine.ready && !engine.stopping && !engine.lost;
}

/* For the one wait of the worker. */
long
qwen_engine_timeout(void)
{
	if (engine.pid == 0)
		return engine.refused ? -1 : TimestampDifferenceMilliseconds(GetCurrentTimestamp(), engine.next_start);
	if (engine.why_killed != NULL)
		return -1;
	if (engine.lost)
		return TimestampDifferenceMilliseconds(GetCurrentTimestamp(), engine.kill_at);
	if (qwen_heartbeat_timeout == 0)
		return -1;
	return TimestampDifferenceMilliseconds(
		GetCurrentTimestamp(),
		TimestampTzPlusMilliseconds(engine.last_frame, qwen_heartbeat_timeout * INT64CONST(1000) + 1));
}

/* Running and waiting are as of the last heartbeat. */
bool
qwen_engine_describe(char *buffer, Size size)
{
	uint64 loaded;
	uint64 total;
	qwen_heartbeat heartbeat;

	LWLockAcquire(qwen_control_lock(), LW_SHARED);
	loaded = qwen_shared->engine.loaded_bytes;
	total = qwen_shared->engine.total_bytes;
	heartbeat = qwen_shared->heartbeat;
	LWLockRelease(qwen_control_lock());

	if (engine.refused)
		snprintf(buffer, size, "model refused, waiting for qwen_reload()");
	else if (engine.pid == 0 || engine.lost)
		snprintf(buffer, size, "engine lost, starting another one");
	else if (engine.stopping)
		snprintf(buffer, size, "engine is to be replaced, %d requests still running", heartbeat.running);
	else if (!engine.ready && total > 0)
		snprintf(buffer, size, "loading the model, %d percent", (int) (100.0 * loaded / total));
	else if (!engine.ready)
		snprintf(buffer, size, "starting the engine");
	else
		snprintf(buffer, size, "ready, %d requests running, %d waiting", heartbeat.running, heartbeat.waiting);
	return !engine.refused && (!engine.ready || heartbeat.running > 0);
}

/* ---- end ---- */

/* A ready engine is asked to end and goes on with what it has; until it is gone nothing new is sent to it. */
void
qwen_engine_replace(void)
{
	engine.early_deaths = 0;
	engine.refused = false;
	engine.next_start = GetCurrentTimestamp();
	if (engine.pid == 0 || engine.stopping)
		return;

	if (engine.ready)
		qwen_relay_shutdown();
	else
		qwen_engine_kill("was to be replaced");
	engine.stopping = true;
}

/* SIGCHLD has set the latch, so the worker asks soon after; the status is kept until the burial. */
bool
qwen_engine_has_ended(void)
{
	if (engine.pid != 0 && !engine.ended)
		engine.ended = waitpid(engine.pid, &engine.status, WNOHANG) == engine.pid;
	return engine.ended;
}

/* The one place where an end is judged: by what the engine had reached and by whether it was told to go. */
QwenEngineEnd
qwen_engine_bury(void)
{
	QwenEngineEnd end = engine.stopping  ? QWEN_END_STOPPED
						: engine.refused ? QWEN_END_REFUSED
						: engine.ready   ? QWEN_END_DIED
										 : QWEN_END_DIED_EARLY;
	int pause_s = 0;
	char how[256];

	engine.is_successor = end == QWEN_END_DIED || end == QWEN_END_DIED_EARLY;
	describe_end(end, how, sizeof(how));
	if (end == QWEN_END_DIED_EARLY)
	{
		engine.early_deaths++;
		pause_s = Min(LONGEST_PAUSE_S, 1 << Min(engine.early_deaths - 1, 10));
	}
	engine.next_start = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), pause_s * 1000);
	ereport(LOG, (errmsg("qwen engine (PID %d) %s", (int) engine.pid, how),
				  pause_s > 0 ? errdetail("It will be started again in %d s.", pause_s) : 0));

	close(engine.fd);
	engine.fd = -1;
	engine.pid = 0;
	engine.ended = false;
	publish_end(end, how);
	return end;
}

/* Completes "the engine ...". */
static void
describe_end(QwenEngineEnd end, char *buffer, Size size)
{
	int status = engine.status;

	if (end == QWEN_END_STOPPED)
		snprintf(buffer, size, "was stopped to be replaced");
	else if (engine.why_killed != NULL && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
		snprintf(buffer, size, "%s and was killed", engine.why_killed);
	else if (WIFSIGNALED(status))
		snprintf(buffer, size, "was terminated by signal %d: %s", WTERMSIG(status), pg_strsignal(WTERMSIG(status)));
	else
		snprintf(buffer, size, "exited with exit code %d", WEXITSTATUS(status));
}

/* A refusal stays visible with its error; after a death the next one is as good as started. */
static void
publish_end(QwenEngineEnd end, const char *how)
{
	bool died = end == QWEN_END_DIED || end == QWEN_END_DIED_EARLY;

	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	qwen_shared->engine_pid = 0;
	qwen_shared->ready_since = 0;
	memset(&qwen_shared->heartbeat, 0, sizeof(qwen_shared->heartbeat));
	memset(&qwen_shared->devices, 0, sizeof(qwen_shared->devices));
	if (died)
	{
		memset(&qwen_shared->engine, 0, sizeof(qwen_shared->engine));
		qwen_shared->engine.phase = QWEN_ENGINE_STARTING;
		qwen_shared->restarts++;
		strlcpy(qwen_shared->last_error, how, sizeof(qwen_shared->last_error));
	}
	if (engine.early_deaths >= HOPELESS_DEATHS)
		qwen_shared->serving = false;
	LWLockRelease(qwen_control_lock());
}

/* Waiting makes sense as long as an engine may come; these two need a person. */
bool
qwen_engine_is_on_probation(void)
{
	return engine.is_successor && !TimestampDifferenceExceeds(engine.ready_since, GetCurrentTimestamp(), PROBATION_MS);
}

bool
qwen_engine_is_hopeless(void)
{
	return engine.refused || engine.early_deaths >= HOPELESS_DEATHS;
}

/* For requests that were taken when there still was hope. */
void
qwen_engine_explain(qwen_wire_error *why)
{
	memset(why, 0, sizeof(*why));
	strlcpy(why->sqlstate, "55000", sizeof(why->sqlstate));
	LWLockAcquire(qwen_control_lock(), LW_SHARED);
	if (engine.refused)
	{
		strlcpy(why->message, "the model could not be loaded", sizeof(why->message));
		snprintf(why->detail, sizeof(why->detail), "The engine reported: %s.", qwen_shared->engine.error.message);
		strlcpy(why->hint, "Correct qwen.model or the setting at fault and call qwen_reload().", sizeof(why->hint));
	}
	else
	{
		strlcpy(why->message, "the engine could not be started", sizeof(why->message));
		snprintf(why->detail, sizeof(why->detail), "The last one %.512s.", qwen_shared->last_error);
		strlcpy(why->hint, "The server log has the details.", sizeof(why->hint));
	}
	LWLockRelease(qwen_control_lock());
}

/* The postmaster waits for this process, so the engine gets half a second; it has nothing to save. */
void
qwen_engine_shut_down(void)
{
	static uint32 event = 0;
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), TERM_GRACE_MS);

	if (engine.pid == 0)
		return;

	kill(engine.pid, SIGTERM);
	while (!qwen_engine_has_ended())
	{
		long left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		int events = 0;

		/* SIGCHLD sets the latch */
		if (left > 0)
			events = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_POSTMASTER_DEATH, left,
							   qwen_wait_event("QwenEngineExit", &event));
		ResetLatch(MyLatch);
		if (left <= 0 || (events & WL_POSTMASTER_DEATH))
		{
			kill(engine.pid, SIGKILL);
			(void) waitpid(engine.pid, &engine.status, 0);
			break;
		}
	}
	close(engine.fd);
	engine.fd = -1;
	engine.pid = 0;
}
