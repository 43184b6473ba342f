/*-------------------------------------------------------------------------
 *
 * qwen.h
 *	  Interfaces between the files of the PostgreSQL side.
 *
 *	  settings.c	GUCs
 *	  shared.c		the shared memory: request slots, queue, payload arena
 *	  client.c		a backend's calls: submit, receive, release
 *	  inspect.c		copies of the shared state, orders to the worker, errors
 *	  stat.c		cumulative counters (stat.h)
 *	  worker.c		the background worker: its main loop
 *	  supervisor.c	the engine process: start, watch, end, restart
 *	  relay.c		frames between the slots and the engine's socket
 *	  options.c		named arguments and options jsonb -> request
 *	  batch_plan.c, batch_rewrite.c, batch_exec.c, batch_cache.c, batch_explain.c
 *					the plan node QwenBatch (batch.h)
 *	  cost.c		estimates for the planner
 *	  generate.c, chat.c, stream.c, tokens.c, status.c, plan.c, admin.c
 *					SQL functions
 *
 *-------------------------------------------------------------------------
 */
#ifndef QWEN_EXTENSION_H
#define QWEN_EXTENSION_H

#include "postgres.h"

#include "compat.h"
#include "lib/stringinfo.h"
#include "utils/guc.h"

#include "engine/protocol.h"

/* ---- settings.c ---- */

typedef enum QwenOnError
{
	QWEN_ON_ERROR_RAISE,
	QWEN_ON_ERROR_NULL
} QwenOnError;

typedef enum QwenCache
{
	QWEN_CACHE_OFF,       /* every request is computed anew, from its first token */
	QWEN_CACHE_STATEMENT, /* equal greedy requests of a statement are run once */
	QWEN_CACHE_SHARED     /* in this version the same */
} QwenCache;

/* engine settings: sighup, take effect at qwen_reload() */
extern char *qwen_model;
extern char *qwen_device_map;
extern char *qwen_max_memory; /* empty: no limits */
extern int qwen_tensor_parallel;
extern int qwen_max_model_len;
extern int qwen_max_sequences;
extern char *qwen_kv_memory;
extern bool qwen_prefix_cache;
extern int qwen_threads;

/* shared memory: postmaster */
extern int qwen_max_requests;
extern int qwen_queue_memory; /* kB */

/* supervision: sighup */
extern int qwen_heartbeat_timeout; /* s */

/* generation defaults: user */
extern int qwen_max_tokens;
extern double qwen_temperature;
extern double qwen_top_p;
extern int qwen_top_k;
extern int qwen_seed;
extern char *qwen_system;
extern bool qwen_thinking;
extern int qwen_on_error;      /* QwenOnError */
extern int qwen_cache;         /* QwenCache */
extern int qwen_priority;      /* -1 batch, 0 normal, 1 interactive; superuser */
extern int qwen_wait_ready;    /* ms */
extern int qwen_queue_timeout; /* ms */
extern bool qwen_log_prompts;  /* superuser */

/* many rows at a time: user */
extern bool qwen_batch_scan;
extern int qwen_batch_rows;
extern bool qwen_debug_require_batch;

extern void qwen_define_settings(void);

/* ---- shared.c ---- */

/* Whether the library was preloaded and this process sees the shared memory; otherwise the SQL functions raise 55000. */
extern bool qwen_is_preloaded(void);
extern void qwen_request_shared_memory(void); /* hooks; from _PG_init when preloading */

/* ---- client.c ---- */

/* A request on its way, known to this backend alone. */
typedef struct QwenCall QwenCall;

/*
 * One piece of a reply.  For QWEN_FRAME_DATA `data` is valid until the next qwen_call_next on the same call; for DONE
 * `done` is filled.  Errors of the engine arrive as QWEN_FRAME_ERROR with `error` filled, so that the caller can choose
 * between raising (qwen_raise) and NULL.
 */
typedef struct QwenReply
{
	qwen_frame_type type; /* DATA, DONE or ERROR */
	const char *data;
	uint32 length;
	qwen_done done;
	qwen_wire_error error;
} QwenReply;

/*
 * Submits a request: `request` is a complete request (qwen_request_header and fields).  Waits for the model (up to
 * qwen.wait_ready), for a slot and for room in the arena (up to qwen.queue_timeout); raises 55000, 53000 or 54000 when
 * there is none.  With nowait it gives NULL instead of waiting for a slot or room: a caller that holds calls already must
 * not wait for more, or two such callers could wait for each other.
 *
 * The call belongs to CurrentResourceOwner: if that is released first (error, ROLLBACK, cursor closed), the request is
 * cancelled, the slot given back and the call freed.
 */
extern QwenCall *qwen_call_submit(const StringInfo request, bool nowait);

/* Waits for the next piece; interruptible. After DONE or ERROR the slot has been given back already. */
extern void qwen_call_next(QwenCall *call, QwenReply *reply);

/* Whether a piece is there without waiting. */
extern bool qwen_call_ready(QwenCall *call);

/* Cancels what still runs, gives the slot back and frees the call. */
extern void qwen_call_release(QwenCall *call);

/* The SQLSTATE of an error of the engine, as errcode() takes it. */
extern int qwen_error_code(const qwen_wire_error *error);

/* Raises an error of the engine as SQL error. */
pg_noreturn extern void qwen_raise(const qwen_wire_error *error);

/* The worker's and engine's state, a consistent copy. */
typedef struct QwenStatus
{
	bool worker_running;
	int worker_pid;
	int engine_pid; /* 0: none */
	int draining;   /* requests that an engine which is to be replaced still has to finish */
	qwen_engine_state engine;
	qwen_heartbeat heartbeat;
	TimestampTz engine_start;
	TimestampTz ready_since;
	int64 restarts;        /* engine deaths since the server started */
	char model[MAXPGPATH]; /* path that the engine was started with */
	char last_error[1024]; /* how the last engine died, or why the model was refused */
} QwenStatus;

extern void qwen_get_status(QwenStatus *status);

/* What the engine has said of its devices, a consistent copy; none when there is no engine that has. */
extern void qwen_get_devices(qwen_devices *devices);

/* One row of qwen_requests. */
typedef struct QwenRequestInfo
{
	int pid;
	Oid userid;
	Oid databaseid;
	const char *state;  /* "queued", "running", "done", "cancelled" */
	int queue_position; /* of a queued one, from 1; 0: not queued */
	const char *kind;   /* "generate", ... */
	int priority;
	int32 prompt_tokens;
	int32 output_tokens;
	int deaths; /* engine deaths survived */
	TimestampTz submitted;
} QwenRequestInfo;

/* Copies the slots in use into a palloc'd array, in the order in which the engine begins with them. */
extern int qwen_list_requests(QwenRequestInfo **out);

/*
 * Asks the worker to re-read the settings and restart the engine; returns when the worker has taken the order.  Requests
 * that run then are finished first, for which nobody waits here.
 */
extern void qwen_request_reload(void);

/* ---- worker.c ---- */
extern PGDLLEXPORT void qwen_worker_main(Datum arg);
extern void qwen_register_worker(void);

/* ---- options.c ---- */

/* The generation options of one call, all sources merged (sql-api.md 2). */
typedef struct QwenOptions
{
	qwen_request_header head; /* kind and n_fields are set by the caller */
	const char *system;       /* NULL: none */
	bool system_given;        /* by the caller, not by qwen.system */
	List *stop;               /* of text */
	QwenOnError on_error;
} QwenOptions;

#endif /* QWEN_EXTENSION_H */
