/*
 * serve_work.c
 *	  The front and compute threads of `qwen-engine serve`.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "request.h"
#include "sequence.h"
#include "serve.h"

/* Progress of loading is reported at most this often. */
#define PROGRESS_US 100000

static void
send_error(qwen_server *s, uint64_t id, const qwen_error *err)
{
	qwen_wire_error wire = {0};

	snprintf(wire.sqlstate, sizeof(wire.sqlstate), "%s", qwen_sqlstate(err->status));
	snprintf(wire.message, sizeof(wire.message), "%s", err->message);
	snprintf(wire.detail, sizeof(wire.detail), "%s", err->detail);
	snprintf(wire.hint, sizeof(wire.hint), "%s", err->hint);
	qwen_server_send(s, QWEN_FRAME_ERROR, id, &wire, sizeof(wire));
}

/* ---- front ---- */

/* Waits for the next job; NULL when the server ends. The job's id stands in current_id. */
static qwen_job *
next_job(qwen_server *s)
{
	qwen_job *job = NULL;

	pthread_mutex_lock(&s->lock);
	while (!s->stop && !(s->ready && s->jobs.first))
		pthread_cond_wait(&s->front_wake, &s->lock);
	if (!s->stop)
	{
		job = qwen_job_queue_take(&s->jobs);
		s->current_id = job->id;
		s->current_canceled = false;
	}
	pthread_mutex_unlock(&s->lock);
	return job;
}

/* Step 2 of the protocol in serve.h. */
static void
hand_over(qwen_server *s, qwen_sequence *seq)
{
	qwen_command c = {.kind = QWEN_COMMAND_SUBMIT, .id = seq->id, .seq = seq};

	pthread_mutex_lock(&s->lock);
	if (s->current_canceled)
		qwen_sequence_free(seq);
	else if (!qwen_bytes_append(&s->inbox, &c, sizeof(c)))
	{
		qwen_sequence_free(seq);
		qwen_server_stop(s, true);
	}
	s->current_id = 0;
	pthread_cond_signal(&s->compute_wake);
	pthread_mutex_unlock(&s->lock);
}

static void
prepare(qwen_server *s, const qwen_job *job)
{
	qwen_decoded decoded;
	qwen_sequence *seq = NULL;
	qwen_error err;

	if (qwen_request_decode(job->id, job->payload, job->length, &decoded, &err) == QWEN_OK)
	{
		qwen_engine_prepare(s->engine, &decoded.request, &seq, &err);
		qwen_decoded_free(&decoded);
	}
	if (seq)
	{
		qwen_progress progress = {.prompt_tokens = qwen_sequence_prompt_tokens(seq)};

		qwen_server_send(s, QWEN_FRAME_PROGRESS, job->id, &progress, sizeof(progress));
		hand_over(s, seq);
		return;
	}
	send_error(s, job->id, &err);
	pthread_mutex_lock(&s->lock);
	s->current_id = 0;
	pthread_cond_signal(&s->compute_wake);
	pthread_mutex_unlock(&s->lock);
	qwen_server_wake_reader(s);
}

void *
qwen_server_front(void *arg)
{
	qwen_server *s = arg;
	qwen_job *job;

	while ((job = next_job(s)) != NULL)
	{
		prepare(s, job);
		free(job->payload);
		free(job);
	}
	return NULL;
}

/* ---- compute: loading ---- */

typedef struct loading
{
	qwen_server *server;
	qwen_engine_state *state;
	uint64_t next_us;
} loading;

static void
send_state(qwen_server *s, const qwen_engine_state *state)
{
	qwen_server_send(s, QWEN_FRAME_STATE, 0, state, sizeof(*state));
	qwen_server_wake_reader(s);
}

static void
on_progress(void *arg, const qwen_model *model, uint64_t done, uint64_t total)
{
	loading *l = arg;
	uint64_t now = qwen_now_us();

	if (now < l->next_us && done < total)
		return;
	l->next_us = now + PROGRESS_US;
	l->state->loaded_bytes = done;
	l->state->total_bytes = total;
	qwen_server_note_devices(l->server, model);
	qwen_server_send_devices(l->server);
	send_state(l->server, l->state);
}

/* "cpu:0, cpu:1": those that are used, as many as there is room for. */
static void
describe_devices(const qwen_plan *plan, char *out, size_t size)
{
	size_t used = 0;

	for (int i = 0; i < plan->n_stages * plan->tensor_parallel && used < size; i++)
	{
		int device = plan->stages[i / plan->tensor_parallel][i % plan->tensor_parallel];

		used += (size_t) snprintf(out + used, size - used, "%s%s", i ? ", " : "", plan->devices[device].device.name);
	}
}

static void
describe_model(const qwen_model *model, qwen_engine_state *state)
{
	const qwen_config *config = qwen_model_config(model);

	state->phase = QWEN_ENGINE_READY;
	state->parameters = qwen_config_parameters(config);
	state->context = qwen_model_max_len(model);
	state->max_sequences = qwen_model_max_sequences(model);
	state->kv_tokens = (int64_t) qwen_model_kv_blocks(model) * QWEN_KV_BLOCK;
	snprintf(state->architecture, sizeof(state->architecture), "%s", qwen_arch_name(config->arch));
	snprintf(state->dtype, sizeof(state->dtype), "%s", qwen_model_dtype(model));
	snprintf(state->quantization, sizeof(state->quantization), "%s", qwen_model_quantization(model));
	snprintf(state->kv_dtype, sizeof(state->kv_dtype), "%s", qwen_model_kv_dtype(model));
	snprintf(state->kernels, sizeof(state->kernels), "%s", qwen_model_kernels(model));
	describe_devices(qwen_model_plan(model), state->device, sizeof(state->device));
}

static void
describe_failure(const qwen_error *err, qwen_engine_state *state)
{
	state->phase = QWEN_ENGINE_FAILED;
	snprintf(state->error.sqlstate, sizeof(state->error.sqlstate), "%s", qwen_sqlstate(err->status));
	snprintf(state->error.message, sizeof(state->error.message), "%s", err->message);
	snprintf(state->error.detail, sizeof(state->error.detail), "%s", err->detail);
	snprintf(state->error.hint, sizeof(state->error.hint), "%s", err->hint);
	fprintf(stderr, "qwen-engine: %s\n", err->message);
}

/* Loads the model and says how it went; false when it was refused. */
static bool
load(qwen_server *s)
{
	qwen_engine_state state = {.protocol = QWEN_PROTOCOL, .phase = QWEN_ENGINE_LOADING};
	loading l = {s, &state, 0};
	qwen_error err;

	send_state(s, &state);
	if (qwen_engine_open(&s->options, on_progress, &l, &s->engine, &err) == QWEN_OK)
	{
		describe_model(qwen_engine_model(s->engine), &state);
		qwen_server_note_devices(s, qwen_engine_model(s->engine));
		qwen_server_send_devices(s);
	}
	else
		describe_failure(&err, &state);
	send_state(s, &state);
	pthread_mutex_lock(&s->lock);
	if (s->engine)
	{
		s->ready = true;
		pthread_cond_broadcast(&s->front_wake);
	}
	else
		qwen_server_stop(s, true);
	pthread_mutex_unlock(&s->lock);
	return s->engine != NULL;
}

/* ---- compute: events of the engine ---- */

static void
on_data(void *arg, uint64_t id, const char *data, size_t len)
{
	qwen_server_send(arg, QWEN_FRAME_DATA, id, data, len);
}

static void
on_done(void *arg, uint64_t id, const qwen_done *done, const int32_t *ids, size_t n_ids)
{
	qwen_server_send(arg, QWEN_FRAME_DONE, id, done, sizeof(*done));
}

static void
on_failed(void *arg, uint64_t id, const qwen_error *err)
{
	send_error(arg, id, err);
}

static void
on_running(void *arg, uint64_t id, const qwen_progress *progress)
{
	qwen_server_send(arg, QWEN_FRAME_PROGRESS, id, progress, sizeof(*progress));
}

/* ---- compute: the loop ---- */

/*
 * Takes the inbox, waiting for something to do when `idle`.  False: the server ends.  A drained server ends by itself
 * once nothing is queued, prepared, waiting or running.
 */
static bool
take_inbox(qwen_server *s, bool idle, qwen_bytes *inbox, bool *progress_due)
{
	qwen_bytes empty = *inbox;
	bool go_on;

	empty.len = 0;
	pthread_mutex_lock(&s->lock);
	while (idle && !s->stop && s->inbox.len == 0 &&
		   !(s->draining && !s->jobs.first && !s->current_id && qwen_engine_idle(s->engine)))
		pthread_cond_wait(&s->compute_wake, &s->lock);
	if (idle && s->inbox.len == 0)
		qwen_server_stop(s, false);
	*inbox = s->inbox;
	s->inbox = empty;
	*progress_due = s->progress_due;
	s->progress_due = false;
	go_on = !s->stop;
	pthread_mutex_unlock(&s->lock);
	return go_on;
}

static void
apply(qwen_server *s, qwen_bytes *inbox)
{
	qwen_command *commands = (qwen_command *) inbox->data;

	for (size_t i = 0; i < inbox->len / sizeof(*commands); i++)
	{
		qwen_command *c = &commands[i];

		switch (c->kind)
		{
			case QWEN_COMMAND_SUBMIT:
				qwen_engine_submit(s->engine, c->seq);
				break;
			case QWEN_COMMAND_CANCEL:
				qwen_engine_cancel(s->engine, c->id);
				break;
			case QWEN_COMMAND_CREDIT:
				qwen_engine_credit(s->engine, c->id, c->consumed);
				break;
		}
	}
	inbox->len = 0;
}

/* Publishes the counters and wakes the reader if there is something to write. */
static void
publish(qwen_server *s)
{
	bool anything;

	pthread_mutex_lock(&s->lock);
	qwen_engine_heartbeat(s->engine, &s->heartbeat);
	anything = s->outbox.len > 0;
	pthread_mutex_unlock(&s->lock);
	if (anything)
		qwen_server_wake_reader(s);
}

static void
run(qwen_server *s)
{
	qwen_bytes inbox = {0};
	qwen_error err;
	bool ran = false, progress_due;

	publish(s); /* sizes, for those who look before anybody asks */
	while (take_inbox(s, !ran, &inbox, &progress_due))
	{
		apply(s, &inbox);
		if (qwen_engine_step(s->engine, &ran, &err) != QWEN_OK)
		{
			fprintf(stderr, "qwen-engine: %s\n", err.message);
			pthread_mutex_lock(&s->lock);
			qwen_server_stop(s, true);
			pthread_mutex_unlock(&s->lock);
			break;
		}
		if (progress_due)
			qwen_engine_each(s->engine, on_running, s);
		publish(s);
	}
	for (size_t i = 0; i < inbox.len / sizeof(qwen_command); i++)
		qwen_sequence_free(((qwen_command *) inbox.data)[i].seq);
	qwen_bytes_free(&inbox);
}

void *
qwen_server_compute(void *arg)
{
	qwen_server *s = arg;
	qwen_events events = {
		.data = on_data, .done = on_done, .failed = on_failed, .started = on_running, .arg = s, .window = QWEN_WINDOW};

	if (load(s))
	{
		qwen_engine_set_events(s->engine, &events);
		run(s);
	}
	return NULL;
}
