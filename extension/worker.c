/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  The background worker: one for the server, started by the postmaster.
 *
 * Its loop does four things in turn: reload (settings, orders), reap (an
 * engine that has ended, one that is due to start), pump (frames in, frames
 * out), wait.  It waits in one place, for its latch, the engine's socket and
 * the postmaster's death, and blocks nowhere else.
 *
 * It is connected to no database and reads no catalog.  It does join the
 * server's processes as a backend without a database (as the launcher of
 * logical replication does), because only those are shown in
 * pg_stat_activity, and absorbs the server's barriers so that nobody who
 * waits for all processes waits for this one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/procsignal.h"
#include "storage/sinval.h"
#include "utils/backend_status.h"
#include "utils/timestamp.h"

#include "shared.h"
#include "supervisor.h"

#define RESTART_S 5     /* after which the postmaster starts the worker again */
#define ORPHANS_MS 1000 /* between two looks for slots whose owner is gone */

/* where the events are in the wait set */
enum
{
	EVENT_LATCH,
	EVENT_POSTMASTER,
	EVENT_SOCKET,
	N_EVENTS
};

static WaitEventSet *wait_set = NULL;
static int wait_socket = -1; /* the socket in wait_set, -1: none */

static void on_child(SIGNAL_ARGS);
static void sign_on(void);
static void sign_off(int code, Datum arg);
static void reload(void);
static bool take_order(void);
static void reap(void);
static bool pump(void);
static void report(void);
static void wait_for_work(bool blocked);
static void drop_wait_set(void);
static void make_wait_set(void);

/* Starts at consistent state, so that standbys answer too; the worker writes nothing. */
void
qwen_register_worker(void)
{
	BackgroundWorker worker = {0};

	strlcpy(worker.bgw_name, "qwen worker", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "qwen worker", BGW_MAXLEN);
	strlcpy(worker.bgw_library_name, "qwen", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "qwen_worker_main", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_ConsistentState;
	worker.bgw_restart_time = RESTART_S;
	RegisterBackgroundWorker(&worker);
}

/*
 * Requests that an earlier worker left RUNNING were lost with its engine and are queued again before anything else;
 * if the settings have changed since, answers that had begun cannot be continued.
 */
void
qwen_worker_main(Datum arg)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	pqsignal(SIGINT, SIG_IGN); /* pg_cancel_backend() must not cost an engine */
	pqsignal(SIGUSR1, procsignal_sigusr1_handler);
	pqsignal(SIGCHLD, on_child);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	sign_on();
	(void) qwen_arena(); /* now, while no lock is held */
	qwen_relay_engine_gone(false, qwen_engine_read_settings());

	while (!ShutdownRequestPending)
	{
		bool blocked;

		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (catchupInterruptPending)
			ProcessCatchupInterrupt();
		reload();
		reap();
		blocked = pump();
		report();
		wait_for_work(blocked);
	}

	/* Not 0: the postmaster would take that for the end of our work and never start a worker again. */
	proc_exit(1);
}

/* The engine has ended, or stopped for a moment; the loop finds out. */
static void
on_child(SIGNAL_ARGS)
{
	int save_errno = errno;

	SetLatch(MyLatch);
	errno = save_errno;
}

/* Makes this process the worker. */
static void
sign_on(void)
{
	int other;

	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	other = qwen_shared->worker_pid;
	if (other == 0 || (kill(other, 0) != 0 && errno == ESRCH))
	{
		other = 0;
		qwen_shared->worker_pid = MyProcPid;
		qwen_shared->worker_procno = qwen_my_procno();
		qwen_shared->engine_pid = 0;
		qwen_shared->failed = false;
		qwen_shared->reload_taken = qwen_shared->reload_wanted;
	}
	LWLockRelease(qwen_control_lock());
	if (other != 0)
		ereport(ERROR, (errmsg("qwen worker is already running under PID %d", other)));

	before_shmem_exit(sign_off, (Datum) 0);
	ConditionVariableBroadcast(&qwen_shared->changed);
}

/*
 * Takes the engine along.  Requests stay where they are: those who wait for them look after the worker themselves, and
 * the next one takes over.
 */
static void
sign_off(int code, Datum arg)
{
	LWLockReleaseAll();
	qwen_engine_shut_down();

	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	qwen_shared->worker_pid = 0;
	qwen_shared->worker_procno = QWEN_NO_PROC;
	qwen_shared->worker_gone = GetCurrentTimestamp();
	qwen_shared->engine_pid = 0;
	qwen_shared->ready_since = 0;
	qwen_shared->engine.phase = QWEN_ENGINE_STARTING;
	LWLockRelease(qwen_control_lock());
	ConditionVariableBroadcast(&qwen_shared->changed);
}

/*
 * An order to reload replaces the engine.  The server's own reload does not: it only gives an engine another chance that
 * does not serve anyway, if a setting of it has changed.
 */
static void
reload(void)
{
	if (take_order())
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		(void) qwen_engine_read_settings();
		qwen_engine_replace();
		ConditionVariableBroadcast(&qwen_shared->changed);
	}
	else if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		if (qwen_engine_is_hopeless() && qwen_engine_read_settings())
			qwen_engine_replace();
	}
}

/* From here on calls wait for the next engine. */
static bool
take_order(void)
{
	bool order;

	LWLockAcquire(qwen_control_lock(), LW_EXCLUSIVE);
	order = qwen_shared->reload_taken != qwen_shared->reload_wanted;
	if (order)
	{
		qwen_shared->reload_taken = qwen_shared->reload_wanted;
		qwen_shared->serving = false;
		qwen_shared->failed = false;
		qwen_shared->ready_since = 0;
		memset(&qwen_shared->engine, 0, sizeof(qwen_shared->engine));
		qwen_shared->engine.phase = QWEN_ENGINE_STARTING;
	}
	LWLockRelease(qwen_control_lock());
	return order;
}

/* An engine's end is handled before the next one is started, so there is never more than one. */
static void
reap(void)
{
	if (qwen_engine_has_ended())
	{
		QwenEngineEnd end;

		/* its last words */
		qwen_relay_receive();
		end = qwen_engine_bury();
		qwen_relay_engine_gone(end == QWEN_END_DIED || end == QWEN_END_DIED_EARLY, end == QWEN_END_STOPPED);
		drop_wait_set();
	}
	qwen_engine_start_if_due();
	if (qwen_engine_is_hopeless())
	{
		qwen_wire_error why;

		qwen_engine_explain(&why);
		qwen_relay_fail_queue(&why);
	}
}

/* Returns whether frames wait for the socket to become writable. */
static bool
pump(void)
{
	static TimestampTz last_look = 0;
	TimestampTz now = GetCurrentTimestamp();

	qwen_relay_receive();
	qwen_engine_check_heartbeat();
	if (TimestampDifferenceExceeds(last_look, now, ORPHANS_MS))
	{
		qwen_relay_drop_orphans();
		last_look = now;
	}
	return qwen_relay_send();
}

/* Only when it changes: pg_stat_activity is read rarely, this runs for every batch of frames. */
static void
report(void)
{
	static char shown[128] = "";
	char text[128];
	bool busy = qwen_engine_describe(text, sizeof(text));

	if (strcmp(text, shown) == 0)
		return;
	strlcpy(shown, text, sizeof(shown));
	pgstat_report_activity(busy ? STATE_RUNNING : STATE_IDLE, text);
}

/* `blocked`: ask for room in the socket too, which is always there otherwise and would end every wait at once. */
static void
wait_for_work(bool blocked)
{
	static uint32 event = 0;
	WaitEvent occurred[N_EVENTS];

	if (wait_set == NULL || wait_socket != qwen_engine_socket())
		make_wait_set();
	if (wait_socket >= 0)
		ModifyWaitEvent(wait_set, EVENT_SOCKET, WL_SOCKET_READABLE | (blocked ? WL_SOCKET_WRITEABLE : 0), NULL);

	(void) WaitEventSetWait(wait_set, qwen_engine_timeout(), occurred, N_EVENTS,
							qwen_wait_event("QwenWorkerMain", &event));
}

/* A set's sockets cannot be exchanged, and the next engine's may well have the same number. */
static void
drop_wait_set(void)
{
	if (wait_set != NULL)
		FreeWaitEventSet(wait_set);
	wait_set = NULL;
}

/* Latch, postmaster, and the engine's socket if there is one. */
static void
make_wait_set(void)
{
	drop_wait_set();
	wait_set = qwen_create_wait_event_set(N_EVENTS);
	AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	wait_socket = qwen_engine_socket();
	if (wait_socket >= 0)
		AddWaitEventToSet(wait_set, WL_SOCKET_READABLE, wait_socket, NULL, NULL);
}
