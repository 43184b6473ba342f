/*
 * model.c
 *	  Opening and closing of a model.
 *
 *	  config.json -> checkpoint headers -> plan -> devices -> which tensor goes
 *	  where -> cache, workspace, rope tables -> weights
 *
 * The plan comes before any large allocation, and the weights, which take the
 * time, come last: a model that does not fit is refused at once.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine.h"
#include "model_internal.h"

/* ---- planning ---- */

/* The oracle keeps everything in float, whatever is asked for. */
static void
plan_for_oracle(qwen_plan_settings *settings)
{
	settings->dtype = settings->kv_dtype = "float32";
	settings->quantization = "none";
}

/* The machine's devices; what keeps GPUs from being used although nobody forbids them goes to the log. */
static qwen_status
list_devices(const qwen_plan_settings *settings, const qwen_model_options *options, qwen_plan_device *devices, int *n,
			 qwen_error *err)
{
	char why[256], line[320];
	qwen_status rc = qwen_machine_devices(settings, devices, n, why, sizeof(why), err);

	if (rc != QWEN_OK || !why[0] || !options->log)
		return rc;
	snprintf(line, sizeof(line), "%s: %s", devices[0].kind == QWEN_DEVICE_CUDA ? "a GPU is not used" : "no GPU is used",
			 why);
	options->log(line);
	return QWEN_OK;
}

/* m->plan, or the refusal; what the checkpoint's tensors are counts, not what config.json says of them. */
static qwen_status
make_plan(qwen_model *m, const qwen_model_options *options, const qwen_checkpoint *checkpoint, qwen_error *err)
{
	qwen_plan_device devices[QWEN_PLAN_MAX_DEVICES];
	qwen_geometry geometry;
	qwen_plan_settings settings = {
		.device_map = options->device_map,
		.max_memory = options->max_memory,
		.dtype = options->dtype,
		.quantization = options->quantization,
		.kv_dtype = options->kv_dtype,
		.offload = options->offload,
		.tensor_parallel = options->tensor_parallel,
		.kv_memory = options->kv_memory,
		.max_model_len = options->max_model_len,
		.max_sequences = options->max_sequences,
		.step_tokens = options->step_tokens,
		.threads = options->threads > 0 ? options->threads : qwen_cpu_count(),
	};
	qwen_status rc;
	int n;

	m->max_sequences = options->max_sequences;
	if (m->max_sequences < 1 || options->step_tokens < 1)
		return qwen_fail(err, QWEN_INVALID, "a step must have room for a token and a sequence");
	if (options->kernels && !strcmp(options->kernels, "ref"))
		plan_for_oracle(&settings);
	if ((rc = qwen_geometry_read(options->path, &geometry, err)) != QWEN_OK ||
		(rc = list_devices(&settings, options, devices, &n, err)) != QWEN_OK)
		return rc;
	snprintf(geometry.dtype, sizeof(geometry.dtype), "%s", qwen_dtype_name(qwen_checkpoint_dtype(checkpoint)));
	if ((rc = qwen_plan_make(&geometry, &settings, devices, n, &m->plan, err)) != QWEN_OK)
		return rc;
	m->max_len = m->plan.max_model_len;
	m->step_tokens = m->plan.step_tokens;
	return m->plan.fits ? QWEN_OK : qwen_plan_refusal(&m->plan, err);
}

/* ---- opening ---- */

/* All layers have the same heads in these families; a shard has some of them. */
static void
set_heads(qwen_model *m)
{
	m->heads = (qwen_heads){
		.n_q = m->config.n_heads / m->tp,
		.n_kv = m->config.n_kv_heads > m->tp ? m->config.n_kv_heads / m->tp : 1,
		.dim = m->config.head_dim,
		.rotary = m->config.head_dim,
		.eps = m->config.rms_norm_eps,
	};
}

/* Whom to tell how far loading is. */
typedef struct observer
{
	const qwen_model *model;
	qwen_progress_fn progress; /* or NULL */
	void *arg;
} observer;

/* A qwen_load_fn. */
static void
observe(void *arg, uint64_t done, uint64_t total)
{
	const observer *o = arg;

	if (o->progress)
		o->progress(o->arg, o->model, done, total);
}

/* All devices' tensors in one plan, since each tensor is read once. */
static qwen_status
load(qwen_model *m, const qwen_model_options *options, const qwen_checkpoint *checkpoint, qwen_progress_fn progress,
	 void *arg, qwen_error *err)
{
	observer o = {m, progress, arg};
	qwen_weight_plan *plan;
	qwen_status rc;

	rc = qwen_weights_plan(&m->config, checkpoint, options, m->weights, m->n_parts, &plan, err);
	if (rc != QWEN_OK)
		return rc;
	if ((rc = qwen_parts_allocate(m, err)) == QWEN_OK)
		rc = qwen_weights_load(plan, checkpoint, m->host, observe, &o, err);
	qwen_weight_plan_free(plan);
	return rc;
}

/* The configuration comes first: it is small and refuses most of what cannot work. */
static qwen_status
open_model(qwen_model *m, const qwen_model_options *options, qwen_progress_fn progress, void *arg, qwen_error *err)
{
	qwen_checkpoint *checkpoint;
	qwen_status rc;

	if ((rc = qwen_config_read(options->path, &m->config, err)) != QWEN_OK ||
		(rc = qwen_checkpoint_open(options->path, &checkpoint, err)) != QWEN_OK)
		return rc;
	if ((rc = make_plan(m, options, checkpoint, err)) == QWEN_OK && (rc = qwen_parts_open(m, options, err)) == QWEN_OK)
	{
		set_heads(m);
		if ((rc = qwen_parts_choose_cache(m, options->kv_dtype, err)) == QWEN_OK)
			rc = load(m, options, checkpoint, progress, arg, err);
	}
	qwen_checkpoint_close(checkpoint);
	return rc;
}

qwen_status
qwen_model_open(const qwen_model_options *options, qwen_progress_fn progress, void *arg, qwen_model **out,
				qwen_error *err)
{
	qwen_model *m;
	qwen_status rc;

	if (!options->path || !*options->path)
	{
		qwen_fail(err, QWEN_NOT_READY, "no model is configured");
		return qwen_fail_hint(err, "Set qwen.model to the folder of a model.");
	}
	m = calloc(1, sizeof(*m));
	if (!m)
		return qwen_fail_memory(err, sizeof(*m));
	rc = open_model(m, options, progress, arg, err);
	if (rc != QWEN_OK)
	{
		qwen_model_close(m);
		return rc;
	}
	*out = m;
	return QWEN_OK;
}

/* ---- closing ---- */

void
qwen_model_close(qwen_model *m)
{
	if (!m)
		return;
	qwen_parts_close(m);
	free(m);
}

/* ---- what callers may use and know ---- */

void
qwen_model_loop(qwen_model *m, int64_t n, int64_t grain, qwen_loop_fn fn, void *arg)
{
	m->host->ops->loop(m->host, n, grain, fn, arg);
}

const qwen_config *
qwen_model_config(const qwen_model *m)
{
	return &m->config;
}

int
qwen_model_threads(const qwen_model *m)
{
	return m->host->n_threads;
}

const qwen_plan *
qwen_model_plan(const qwen_model *m)
{
	return &m->plan;
}

uint64_t
qwen_model_loaded(const qwen_model *m, int device)
{
	for (const qwen_part *p = m->parts; p < m->parts + m->n_parts; p++)
		if (p->share == &m->plan.devices[device])
			return p->weights->loaded;
	return 0;
}

uint64_t
qwen_model_used(const qwen_model *m, int device)
{
	for (const qwen_part *p = m->parts; p < m->parts + m->n_parts; p++)
		if (p->share == &m->plan.devices[device])
			return p->allocated + p->weights->loaded;
	return 0;
}

int
qwen_model_max_len(const qwen_model *m)
{
	return m->max_len;
}

int
qwen_model_kv_blocks(const qwen_model *m)
{
	return (int) m->plan.kv_blocks;
}

uint64_t
qwen_model_kv_token_bytes(const qwen_model *m)
{
	uint64_t sum = 0;

	for (const qwen_part *p = m->parts; p < m->parts + m->n_parts; p++)
		sum += 2 * (uint64_t) p->share->n_layers * p->kv_block_bytes;
	return sum / QWEN_KV_BLOCK;
}

int
qwen_model_step_tokens(const qwen_model *m)
{
	return m->step_tokens;
}

int
qwen_model_max_sequences(const qwen_model *m)
{
	return m->max_sequences;
}

uint64_t
qwen_model_weight_bytes(const qwen_model *m)
{
	uint64_t sum = 0;

	for (int i = 0; i < m->n_parts; i++)
		sum += m->weights[i].bytes;
	return sum;
}

/* One that holds the first layer. */
static const qwen_part *
layer_part(const qwen_model *m)
{
	return qwen_stage_parts(m, m->plan.layer_stage[0]);
}

const char *
qwen_model_kernels(const qwen_model *m)
{
	return layer_part(m)->dev->ops->name;
}

const char *
qwen_model_dtype(const qwen_model *m)
{
	return qwen_dtype_name(layer_part(m)->weights->dtype);
}

const char *
qwen_model_quantization(const qwen_model *m)
{
	qwen_dtype stored = layer_part(m)->weights->layers[0].qkv.dtype;

	return stored == QWEN_INT8 || stored == QWEN_INT4 ? qwen_dtype_name(stored) : "none";
}

const char *
qwen_model_kv_dtype(const qwen_model *m)
{
	return qwen_dtype_name(layer_part(m)->kv_dtype);
}
