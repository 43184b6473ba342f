/*
 * model_parts.c
 *	  What each device of the plan gets: opened, allocated, freed.
 *
 * Sizes come from the plan, which was compared with the memory that there is;
 * nothing here decides any.  What the kernels say of their own needs must not
 * be more, and a difference is an error, not a larger allocation.
 */
#include <stdlib.h>
#include <string.h>

#include "config_rope.h"
#include "dtype.h"
#include "gpu.h"
#include "model_internal.h"

/* Positions whose rope rows are made at a time, so that no second table stands on the host. */
#define ROPE_ROWS 1024

/* Activations begin at multiples of it: a line of a processor's cache, two of a GPU's shortest transfers. */
#define ARENA_ALIGN 64

qwen_part *
qwen_stage_parts(const qwen_model *m, int stage)
{
	return m->parts + (ptrdiff_t) stage * m->tp;
}

/* ---- opening ---- */

/* The processor, whatever the plan's devices are: its threads load, sample, and are those of all parts on it. */
static qwen_status
open_host(qwen_model *m, const qwen_model_options *options, qwen_error *err)
{
	char why[128];

	m->host = qwen_device_open("cpu", options->kernels ? options->kernels : "auto", options->threads, why, sizeof(why));
	return m->host ? QWEN_OK : qwen_fail(err, QWEN_INVALID, "%s", why);
}

/* A GPU computes in the type of the model, were it not quantised. */
static qwen_status
open_device(const qwen_model *m, qwen_part *part, qwen_error *err)
{
	const qwen_plan_device *device = &part->share->device;
	char why[256];

	if (device->kind == QWEN_DEVICE_CUDA)
		part->dev = qwen_gpu_open(device->name, m->plan.dtype, why, sizeof(why));
	else
		part->dev = qwen_device_open_beside(m->host, device->name, why, sizeof(why));
	if (part->dev)
		return QWEN_OK;
	qwen_fail(err, QWEN_NOT_READY, "could not open device %s", device->name);
	qwen_fail_detail(err, "The reason: %s.", why);
	return qwen_fail_hint(err, "Set qwen.device_map to devices that work, such as cpu.");
}

/* What is to be loaded into it. */
static qwen_status
describe_part(qwen_model *m, qwen_part *part, int stage, int shard, qwen_error *err)
{
	const qwen_plan *plan = &m->plan;

	part->holds = calloc((size_t) plan->n_layers, sizeof(bool));
	part->kv = calloc((size_t) plan->n_layers, sizeof(*part->kv));
	if (!part->holds || !part->kv)
		return qwen_fail_memory(err, (size_t) plan->n_layers * sizeof(*part->kv));
	for (int i = 0; i < plan->n_layers; i++)
		part->holds[i] = plan->layer_stage[i] == stage;
	part->idle = part->share->n_layers == 0 && plan->embed_stage != stage && plan->head_stage != stage;
	*part->weights = (qwen_weights){
		.dev = part->dev,
		.shard = shard,
		.n_shards = m->tp,
		.has_embed = plan->embed_stage == stage,
		.has_head = plan->head_stage == stage,
		.holds = part->holds,
	};
	return QWEN_OK;
}

/* Devices that share layers are to know each other. */
static qwen_status
join_stages(const qwen_model *m, qwen_error *err)
{
	qwen_device *devs[QWEN_PLAN_MAX_DEVICES];

	for (int stage = 0; m->tp > 1 && stage < m->plan.n_stages; stage++)
	{
		qwen_stage_devices(m, stage, devs);
		if (!devs[0]->ops->join(devs, m->tp))
			return qwen_fail(err, QWEN_INTERNAL, "devices %s to %s could not be joined", devs[0]->name,
							 devs[m->tp - 1]->name);
	}
	return QWEN_OK;
}

qwen_status
qwen_parts_open(qwen_model *m, const qwen_model_options *options, qwen_error *err)
{
	const qwen_plan *plan = &m->plan;
	int n = plan->n_stages * plan->tensor_parallel;
	qwen_status rc = open_host(m, options, err);

	m->tp = plan->tensor_parallel;
	m->parts = calloc((size_t) n, sizeof(*m->parts));
	m->weights = calloc((size_t) n, sizeof(*m->weights));
	if (rc == QWEN_OK && (!m->parts || !m->weights))
		rc = qwen_fail_memory(err, (size_t) n * sizeof(*m->weights));
	for (int i = 0; rc == QWEN_OK && i < n; i++)
	{
		qwen_part *part = &m->parts[i];
		int stage = i / m->tp, shard = i % m->tp;

		part->weights = &m->weights[i];
		part->share = &plan->devices[plan->stages[stage][shard]];
		m->n_parts = i + 1;
		if ((rc = open_device(m, part, err)) == QWEN_OK)
			rc = describe_part(m, part, stage, shard, err);
	}
	return rc == QWEN_OK ? join_stages(m, err) : rc;
}

/* ---- the cache's type ---- */

/* By itself the cache keeps what the model was published in: quantising the weights says nothing about it. */
qwen_status
qwen_parts_choose_cache(qwen_model *m, const char *asked, qwen_error *err)
{
	qwen_dtype wanted = m->plan.dtype;
	bool chosen;
	qwen_status rc = qwen_dtype_parse(&qwen_setting_kv_dtype, asked, &chosen, &wanted, err);

	for (qwen_part *p = m->parts; rc == QWEN_OK && p < m->parts + m->n_parts; p++)
	{
		p->kv_dtype = p->dev->ops->kv_dtype(p->dev, wanted);
		p->kv_block_bytes = p->dev->ops->kv_block_bytes(p->dev, p->kv_dtype, &m->heads);
	}
	return rc;
}

/* ---- allocating ---- */

/* *out = zeroed device memory; none of no bytes. */
static qwen_status
allocate(qwen_part *part, void **out, size_t bytes, qwen_error *err)
{
	if (bytes == 0)
		return QWEN_OK;
	*out = part->dev->ops->alloc(part->dev, bytes);
	if (!*out)
		return qwen_fail_memory(err, bytes);
	part->allocated += bytes;
	return QWEN_OK;
}

/* The next `bytes` of an arena, and where what comes after them begins. */
static void *
take(char **arena, size_t bytes)
{
	char *p = *arena;

	*arena = p + (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
	return p;
}

/* Divides the arena; returns the end of what is used. A part without layers has no phases, one without head no rows. */
static char *
lay_out(const qwen_model *m, qwen_part *part)
{
	size_t a = part->dev->act_bytes, t = (size_t) m->step_tokens, h = (size_t) m->config.hidden_size;
	size_t d = (size_t) m->heads.dim, q = (size_t) m->heads.n_q * d, qkv = q + 2 * (size_t) m->heads.n_kv * d;
	size_t f = (size_t) (m->config.intermediate_size / m->tp);
	qwen_workspace *ws = &part->ws;
	char *at = part->arena, *phase, *end;

	ws->resid = take(&at, t * h * sizeof(float));
	ws->norm = take(&at, t * h * a);
	ws->delta = take(&at, t * h * a);
	if (part->weights->has_head)
		ws->rows = take(&at, (size_t) m->max_sequences * h * a);
	if (part->share->n_layers == 0)
		return at;
	phase = at;
	ws->qkv = take(&at, t * qkv * a);
	ws->attn = at;
	end = at + t * q * a;
	at = phase;
	ws->gate_up = take(&at, t * 2 * f * a);
	ws->act = at;
	return at + t * f * a > end ? at + t * f * a : end;
}

/* The most that a step asks of the device, as the planner counts it. */
static qwen_needs
part_needs(const qwen_model *m, const qwen_part *part)
{
	int64_t h = m->config.hidden_size, q = (int64_t) m->heads.n_q * m->heads.dim;
	int64_t f = m->config.intermediate_size / m->tp, longest = q > f ? q : f;
	qwen_needs needs = {.rows = m->step_tokens,
						.sequences = m->max_sequences,
						.blocks = (int64_t) m->max_sequences * ((m->max_len + QWEN_KV_BLOCK - 1) / QWEN_KV_BLOCK)};

	if (part->share->n_layers > 0)
	{
		needs.k = h > longest ? h : longest;
		needs.n_q = m->heads.n_q;
		needs.dim = m->heads.dim;
	}
	if (part->weights->has_head)
	{
		needs.logit_rows = m->max_sequences;
		needs.head_k = h;
		needs.vocab = m->config.vocab_size / m->tp;
	}
	return needs;
}

static size_t
scratch_bytes(const qwen_part *part)
{
	return part->idle ? 0 : part->dev->ops->scratch_bytes(part->dev, &part->dev->needs);
}

/* Of a device that has the head and whose memory is not the host's, where they go at once. */
static size_t
logits_bytes(const qwen_part *part)
{
	const qwen_needs *needs = &part->dev->needs;

	return part->dev->host ? 0 : (size_t) needs->logit_rows * (size_t) needs->vocab * sizeof(float);
}

/* In pieces, so that the host never holds the whole table a second time. */
static qwen_status
upload_rope(const qwen_model *m, qwen_part *part, qwen_error *err)
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
		ok = part->dev->ops->upload(part->dev, part->rope + (size_t) p * width, rows,
									(size_t) n * width * sizeof(float));
	}
	free(rows);
	return ok ? QWEN_OK : qwen_fail(err, QWEN_INTERNAL, "upload to %s failed", part->dev->name);
}

/* Zeroed memory of the cache costs nothing until tokens are stored in it. */
static qwen_status
allocate_cache(const qwen_model *m, qwen_part *part, qwen_error *err)
{
	part->kv_bytes = (size_t) m->plan.kv_blocks * part->kv_block_bytes;
	for (int i = 0; i < m->config.n_layers; i++)
	{
		qwen_kv_layer *kv = &part->kv[i];
		qwen_status rc;

		if (!part->holds[i])
			continue;
		kv->dtype = part->kv_dtype;
		kv->n_blocks = (int64_t) m->plan.kv_blocks;
		if ((rc = allocate(part, &kv->k, part->kv_bytes, err)) != QWEN_OK ||
			(rc = allocate(part, &kv->v, part->kv_bytes, err)) != QWEN_OK)
			return rc;
	}
	return QWEN_OK;
}

/* The device would hold more than was planned. */
static qwen_status
check_against_plan(const qwen_model *m, const qwen_part *part, qwen_error *err)
{
	const qwen_plan_usage *u = &part->share->usage;
	uint64_t cache = 2 * m->plan.kv_blocks * part->kv_block_bytes * (uint64_t) part->share->n_layers;

	if (part->weights->bytes <= qwen_plan_weights(u) && cache <= u->kv && scratch_bytes(part) <= u->scratch &&
		logits_bytes(part) <= u->logits)
		return QWEN_OK;
	qwen_fail(err, QWEN_INTERNAL, "device %s needs more memory than was planned", part->dev->name);
	return qwen_fail_detail(err, "Weights %llu of %llu bytes, cache %llu of %llu, scratch %llu of %llu.",
							(unsigned long long) part->weights->bytes, (unsigned long long) qwen_plan_weights(u),
							(unsigned long long) cache, (unsigned long long) u->kv,
							(unsigned long long) scratch_bytes(part), (unsigned long long) u->scratch);
}

static qwen_status
allocate_part(const qwen_model *m, qwen_part *part, qwen_error *err)
{
	const qwen_plan_usage *u = &part->share->usage;
	void *rope = NULL, *logits = NULL;
	qwen_status rc;

	part->dev->needs = part_needs(m, part);
	if ((rc = check_against_plan(m, part, err)) != QWEN_OK ||
		(rc = allocate(part, &part->arena, (size_t) u->activations, err)) != QWEN_OK ||
		(rc = allocate(part, &part->dev->scratch, (size_t) u->scratch, err)) != QWEN_OK ||
		(rc = allocate(part, &rope, (size_t) u->rope, err)) != QWEN_OK)
		return rc;
	part->rope = rope;
	if ((rc = allocate(part, &logits, logits_bytes(part), err)) != QWEN_OK)
		return rc;
	part->dev->d_logits = logits;
	if (part->arena && lay_out(m, part) > (char *) part->arena + u->activations)
		return qwen_fail(err, QWEN_INTERNAL, "device %s needs more activations than were planned", part->dev->name);
	if (part->rope && (rc = upload_rope(m, part, err)) != QWEN_OK)
		return rc;
	return allocate_cache(m, part, err);
}

/* What shards of the vocabulary need on the host. */
static qwen_status
allocate_exchange(qwen_model *m, qwen_error *err)
{
	size_t width = (size_t) (m->config.vocab_size / m->tp);

	if (m->tp == 1)
		return QWEN_OK;
	m->local_ids = malloc((size_t) m->tp * (size_t) m->step_tokens * sizeof(int32_t));
	m->local_logits = malloc(width * sizeof(float));
	m->moved = malloc((size_t) m->tp * (size_t) m->max_sequences * sizeof(bool));
	return m->local_ids && m->local_logits && m->moved ? QWEN_OK : qwen_fail_memory(err, width * sizeof(float));
}

qwen_status
qwen_parts_allocate(qwen_model *m, qwen_error *err)
{
	for (int i = 0; i < m->n_parts; i++)
	{
		qwen_status rc = allocate_part(m, &m->parts[i], err);

		if (rc != QWEN_OK)
			return rc;
	}
	return allocate_exchange(m, err);
}

/* ---- closing ---- */

static void
free_part(const qwen_model *m, qwen_part *part)
{
	const qwen_plan_usage *u = &part->share->usage;
	qwen_device *dev = part->dev;

	for (int i = 0; part->kv && i < m->config.n_layers; i++)
	{
		dev->ops->free(dev, part->kv[i].k, part->kv_bytes);
		dev->ops->free(dev, part->kv[i].v, part->kv_bytes);
	}
	dev->ops->free(dev, dev->d_logits, logits_bytes(part));
	dev->ops->free(dev, dev->scratch, (size_t) u->scratch);
	dev->ops->free(dev, part->rope, (size_t) u->rope);
	dev->ops->free(dev, part->arena, (size_t) u->activations);
	qwen_weights_free(part->weights);
}

/* The host, whose threads the others use, is closed last. */
void
qwen_parts_close(qwen_model *m)
{
	for (int i = m->n_parts - 1; i >= 0; i--)
	{
		qwen_part *part = &m->parts[i];

		if (part->dev)
			free_part(m, part);
		free(part->kv);
		free(part->holds);
		qwen_device_close(part->dev);
	}
	qwen_device_close(m->host);
	free(m->parts);
	free(m->weights);
	free(m->local_ids);
	free(m->local_logits);
	free(m->moved);
}
