/*
 * model.c
 *	  Opening and closing of a model.
 *
 *	  config.json -> device -> checkpoint headers -> weight plan -> memory plan
 *	  -> cache, workspace, rope table -> weights
 *
 * The plan comes before any large allocation, and the weights, which take the
 * time, come last: a model that does not fit is refused at once.
 */
#include <stdlib.h>
#include <string.h>

#include "config_rope.h"
#include "model_internal.h"

/* Positions whose rope rows are made at a time, so that no second table stands on the host. */
#define ROPE_ROWS 1024

/* ---- opening ---- */

/* One device in this version: the processor. */
static qwen_status
open_device(qwen_model *m, const qwen_model_options *options, qwen_error *err)
{
	char why[128];
	const char *map = options->device_map;

	if (map && strcmp(map, "auto") != 0 && strcmp(map, "cpu") != 0)
	{
		qwen_fail(err, QWEN_UNSUPPORTED, "device map \"%.64s\" is not supported", map);
		return qwen_fail_hint(err, "Known values of qwen.device_map are auto and cpu.");
	}
	m->dev = qwen_device_open("cpu", options->kernels ? options->kernels : "auto", options->threads, why, sizeof(why));
	return m->dev ? QWEN_OK : qwen_fail(err, QWEN_INVALID, "%s", why);
}

/* All layers have the same heads in these families. */
static void
set_heads(qwen_model *m)
{
	m->heads = (qwen_heads){
		.n_q = m->config.n_heads,
		.n_kv = m->config.n_kv_heads,
		.dim = m->config.head_dim,
		.rotary = m->config.head_dim,
		.eps = m->config.rms_norm_eps,
	};
}

/* *out = zeroed device memory. */
static qwen_status
allocate(qwen_model *m, void **out, size_t bytes, qwen_error *err)
{
	*out = m->dev->ops->alloc(m->dev, bytes);
	return *out ? QWEN_OK : qwen_fail_memory(err, bytes);
}

/* Zeroed memory of the cache costs nothing until tokens are stored in it. */
static qwen_status
allocate_cache(qwen_model *m, qwen_error *err)
{
	m->kv = calloc((size_t) m->config.n_layers, sizeof(*m->kv));
	if (!m->kv)
		return qwen_fail_memory(err, (size_t) m->config.n_layers * sizeof(*m->kv));
	for (int i = 0; i < m->config.n_layers; i++)
	{
		qwen_status rc;

		m->kv[i].dtype = m->kv_dtype;
		m->kv[i].n_blocks = m->kv_blocks;
		if ((rc = allocate(m, &m->kv[i].k, qwen_model_kv_layer_bytes(m), err)) != QWEN_OK ||
			(rc = allocate(m, &m->kv[i].v, qwen_model_kv_layer_bytes(m), err)) != QWEN_OK)
			return rc;
	}
	return QWEN_OK;
}

/* In pieces, so that the host never holds the whole table a second time. */
static qwen_status
upload_rope(qwen_model *m, qwen_error *err)
{
	size_t width = (size_t) m->config.head_dim;
	float *rows = malloc(ROPE_ROWS * width * sizeof(float));
	bool ok = true;

	if (!rows)
		return qwen_fail_memory(err, ROPE_ROWS * width * sizeof(float));
	for (int p = 0; p < m->max_len && ok; p += ROPE_ROWS)
	{
		int n = p + ROPE_ROWS < m->max_len ? ROPE_ROWS : m->max_len - p;

		qwen_rope_rows(&m->config, p, n, rows);
		ok = m->dev->ops->upload(m->dev, m->rope + (size_t) p * width, rows, (size_t) n * width * sizeof(float));
	}
	free(rows);
	return ok ? QWEN_OK : qwen_fail(err, QWEN_INTERNAL, "upload to %s failed", m->dev->name);
}

/* Cache, workspace, what the operations need beside it, and rope table. */
static qwen_status
allocate_buffers(qwen_model *m, qwen_error *err)
{
	qwen_status rc;
	void *rope;

	m->arena_bytes = qwen_workspace_layout(m, NULL, NULL);
	if ((rc = allocate(m, &m->arena, m->arena_bytes, err)) != QWEN_OK)
		return rc;
	qwen_workspace_layout(m, &m->ws, m->arena);
	if (m->scratch_bytes && (rc = allocate(m, &m->dev->scratch, m->scratch_bytes, err)) != QWEN_OK)
		return rc;
	if ((rc = allocate(m, &rope, m->rope_bytes, err)) != QWEN_OK)
		return rc;
	m->rope = rope;
	if ((rc = upload_rope(m, err)) != QWEN_OK)
		return rc;
	return allocate_cache(m, err);
}

/* Plans, then allocates, then reads. */
static qwen_status
load(qwen_model *m, const qwen_model_options *options, const qwen_checkpoint *checkpoint, qwen_progress_fn progress,
	 void *arg, qwen_error *err)
{
	qwen_weight_plan *plan;
	qwen_status rc = qwen_weights_plan(&m->config, checkpoint, m->dev, options, &m->weights, &plan, err);

	if (rc != QWEN_OK)
		return rc;
	if ((rc = qwen_model_plan(m, options, err)) == QWEN_OK && (rc = allocate_buffers(m, err)) == QWEN_OK)
		rc = qwen_weights_load(plan, checkpoint, m->dev, progress, arg, err);
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
		(rc = open_device(m, options, err)) != QWEN_OK ||
		(rc = qwen_checkpoint_open(options->path, &checkpoint, err)) != QWEN_OK)
		return rc;
	set_heads(m);
	rc = load(m, options, checkpoint, progress, arg, err);
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

/* Also of a model that was opened half: what is not there is NULL. */
static void
free_buffers(qwen_model *m)
{
	for (int i = 0; m->kv && i < m->config.n_layers; i++)
	{
		m->dev->ops->free(m->dev, m->kv[i].k, qwen_model_kv_layer_bytes(m));
		m->dev->ops->free(m->dev, m->kv[i].v, qwen_model_kv_layer_bytes(m));
	}
	m->dev->ops->free(m->dev, m->dev->scratch, m->scratch_bytes);
	m->dev->ops->free(m->dev, m->rope, m->rope_bytes);
	m->dev->ops->free(m->dev, m->arena, m->arena_bytes);
	qwen_weights_free(&m->weights, m->dev);
}

void
qwen_model_close(qwen_model *m)
{
	if (!m)
		return;
	if (m->dev)
		free_buffers(m);
	free(m->kv);
	qwen_device_close(m->dev);
	free(m);
}

/* ---- what callers may use and know ---- */

void
qwen_model_loop(qwen_model *m, int64_t n, int64_t grain, qwen_loop_fn fn, void *arg)
{
	m->dev->ops->loop(m->dev, n, grain, fn, arg);
}

const qwen_config *
qwen_model_config(const qwen_model *m)
{
	return &m->config;
}

const qwen_device *
qwen_model_device(const qwen_model *m)
{
	return m->dev;
}

int
qwen_model_max_len(const qwen_model *m)
{
	return m->max_len;
}

int
qwen_model_kv_blocks(const qwen_model *m)
{
	return m->kv_blocks;
}

uint64_t
qwen_model_kv_token_bytes(const qwen_model *m)
{
	return 2 * (uint64_t) m->config.n_layers * m->kv_block_bytes / QWEN_KV_BLOCK;
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
	return m->weights.bytes;
}

const char *
qwen_model_dtype(const qwen_model *m)
{
	return qwen_dtype_name(m->weights.dtype);
}

const char *
qwen_model_quantization(const qwen_model *m)
{
	qwen_dtype stored = m->weights.layers[0].qkv.dtype;

	return stored == QWEN_INT8 || stored == QWEN_INT4 ? qwen_dtype_name(stored) : "none";
}

const char *
qwen_model_kv_dtype(const qwen_model *m)
{
	return qwen_dtype_name(m->kv_dtype);
}
