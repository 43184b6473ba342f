/*-------------------------------------------------------------------------
 *
 * supervisor.h
 *	  Interfaces between the three files of the worker.
 *
 *	  worker.c		the background worker: its main loop
 *	  supervisor.c	the engine process: start, watch, end, restart
 *	  relay.c		frames between the slots and the engine's socket
 *
 *-------------------------------------------------------------------------
 */
#ifndef QWEN_SUPERVISOR_H
#define QWEN_SUPERVISOR_H

#include "qwen.h"

/* ---- supervisor.c ---- */

typedef enum QwenEngineEnd
{
	QWEN_END_STOPPED,   /* as it was told to */
	QWEN_END_REFUSED,   /* it could not serve the model and said why */
	QWEN_END_DIED,      /* after it had been ready */
	QWEN_END_DIED_EARLY /* before */
} QwenEngineEnd;

/* Reads the settings that the next engine is started with; true if they differ from what was read before. */
extern bool qwen_engine_read_settings(void);

/* The model that qwen.model names, and the engine's program; palloc'd. Any process may ask. */
extern char *qwen_model_path(void);
extern char *qwen_engine_path(void);

/* Starts an engine if there is none and it is time to. */
extern void qwen_engine_start_if_due(void);

/* Has another engine started at once; one that is ready finishes what it runs, others are killed. */
extern void qwen_engine_replace(void);

/* Whether the engine has ended; then qwen_engine_bury logs how, and decides when the next one is started. */
extern bool qwen_engine_has_ended(void);
extern QwenEngineEnd qwen_engine_bury(void);

/* Kills an engine that has been silent for qwen.heartbeat_timeout, or closed its socket and did not end. */
extern void qwen_engine_check_heartbeat(void);

/* The socket has come to its end: the engine has ended or is about to. */
extern void qwen_engine_lost(void);

/* Kills an engine that cannot be trusted any more. `why` completes "the engine ...". */
extern void qwen_engine_kill(const char *why);

/* Ends the engine for good, when the worker ends. */
extern void qwen_engine_shut_down(void);

/* The engine's words about itself; false if they are malformed. */
extern bool qwen_engine_heard(const qwen_frame *frame, const char *payload);

extern int qwen_engine_socket(void); /* -1: none */
extern bool qwen_engine_takes_requests(void);

/* Milliseconds until start_if_due or check_heartbeat has something to do; -1: never. */
extern long qwen_engine_timeout(void);

/* What the worker is doing, for pg_stat_activity; true if it is busy. */
extern bool qwen_engine_describe(char *buffer, Size size);

/* Whether the engine before this one died and this one has not been ready for long. */
extern bool qwen_engine_is_on_probation(void);

/* Whether queued requests cannot be served: the model was refused, or engines die again and again before they are ready. */
extern bool qwen_engine_is_hopeless(void);
extern void qwen_engine_explain(qwen_wire_error *why);

/* ---- relay.c ---- */

/* Reads what the engine has sent. */
extern void qwen_relay_receive(void);

/* Sends what can be sent; true if more is waiting for the socket to become writable. */
extern bool qwen_relay_send(void);

/* Has a SHUTDOWN frame sent after what is on its way. */
extern void qwen_relay_shutdown(void);

/*
 * The engine with all that was on board is gone.  Its requests are queued again; died: it counts against them.  replaced:
 * another model may come, so answers that have begun to arrive cannot be continued.
 */
extern void qwen_relay_engine_gone(bool died, bool replaced);

/* Fails all queued requests. */
extern void qwen_relay_fail_queue(const qwen_wire_error *error);

/* Cancels the requests of processes that ended without doing so. */
extern void qwen_relay_drop_orphans(void);

#endif /* QWEN_SUPERVISOR_H */
