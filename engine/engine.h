/*
 * engine.h
 *	  The engine as a library: a model, a tokenizer and a scheduler.
 *
 * Two callers: the command line (cli_*.c) and the server loop (serve.c).
 *
 * Threads.  qwen_engine_prepare (parsing, rendering, tokenising) may run in
 * any thread.  submit, cancel, credit and step belong to one thread, the one
 * that steps.  Events are delivered from inside these calls.
 *
 * Ownership.  A qwen_sequence belongs to the caller from prepare until
 * submit, then to the engine until its last event (done or failed) has been
 * delivered or it is cancelled.
 */
#ifndef QWEN_ENGINE_H
#define QWEN_ENGINE_H

#include "buffer.h"
#include "chat.h"
#include "error.h"
#include "model.h"
#include "protocol.h"
#include "tokenizer.h"

typedef struct qwen_engine qwen_engine;
typedef struct qwen_sequence qwen_sequence;

/* A request in the engine's own terms. Pointers are borrowed for the duration of prepare. */
typedef struct qwen_request
{
	uint64_t id;              /* names the sequence in events and calls; unique among those alive */
	qwen_request_header head; /* kind, flags and numbers */
	const char *prompt;       /* GENERATE, COMPLETE */
	size_t prompt_len;
	const char *system; /* NULL: none given */
	size_t system_len;
	const json_t *messages; /* CHAT */
	const json_t *tools;    /* NULL: none */
	const int32_t *ids;     /* when given, the prompt itself (COMPLETE) */
	size_t n_ids;
	const char *const *stop; /* stop strings */
	const size_t *stop_len;
	size_t n_stop;
} qwen_request;

/* What the engine tells about its sequences. Exactly one of done and failed ends a sequence that is not cancelled. */
typedef struct qwen_events
{
	void (*data)(void *arg, uint64_t id, const char *data, size_t len);
	void (*done)(void *arg, uint64_t id, const qwen_done *done, const int32_t *ids, size_t n_ids);
	void (*failed)(void *arg, uint64_t id, const qwen_error *err);
	void (*started)(void *arg, uint64_t id, const qwen_progress *progress); /* NULL: not wanted */
	void *arg;
	uint64_t window; /* unread bytes of DATA records allowed per sequence, 0 = no limit */
} qwen_events;

qwen_status qwen_engine_open(const qwen_model_options *options, qwen_progress_fn progress, void *arg, qwen_engine **out,
							 qwen_error *err);
void qwen_engine_close(qwen_engine *engine);
void qwen_engine_set_events(qwen_engine *engine, const qwen_events *events);

const qwen_model *qwen_engine_model(const qwen_engine *engine);
const qwen_tokenizer *qwen_engine_tokenizer(const qwen_engine *engine); /* NULL when the folder has none */

/* Checks a request, renders and tokenises its prompt. */
qwen_status qwen_engine_prepare(qwen_engine *engine, const qwen_request *request, qwen_sequence **out, qwen_error *err);
void qwen_sequence_free(qwen_sequence *seq); /* one that was never submitted */
int qwen_sequence_prompt_tokens(const qwen_sequence *seq);

void qwen_engine_submit(qwen_engine *engine, qwen_sequence *seq);
void qwen_engine_cancel(qwen_engine *engine, uint64_t id);
void qwen_engine_credit(qwen_engine *engine, uint64_t id, uint64_t consumed);
/* Whether nothing waits, runs or is being delivered. */
bool qwen_engine_idle(const qwen_engine *engine);

/* Runs one forward pass if any sequence can go on; *ran says whether. Fails only when the device has failed. */
qwen_status qwen_engine_step(qwen_engine *engine, bool *ran, qwen_error *err);

void qwen_engine_heartbeat(const qwen_engine *engine, qwen_heartbeat *out);
/* Calls fn for each running sequence: what PROGRESS frames carry. */
void qwen_engine_each(const qwen_engine *engine, void (*fn)(void *arg, uint64_t id, const qwen_progress *progress),
					  void *arg);

#endif
