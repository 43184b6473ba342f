/*
 * serve_devices.c
 *	  What `qwen-engine serve` tells of its devices.
 *
 * Noted while loading and when it is done, by the thread that loads; sent by
 * that thread and with each heartbeat.  What changes after loading is only
 * the memory that others leave free, which is asked for each time.
 */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "gpu.h"
#include "memory.h"
#include "serve.h"

_Static_assert(QWEN_MAX_WIRE_DEVICES >= QWEN_PLAN_MAX_DEVICES && QWEN_MAX_WIRE_LAYERS >= QWEN_MAX_LAYERS,
			   "a frame has room for every plan");

/* The stage that a device belongs to, or -1. */
static int
stage_of(const qwen_plan *plan, int device)
{
	for (int s = 0; s < plan->n_stages; s++)
		if (memchr(plan->stages[s], device, (size_t) plan->tensor_parallel))
			return s;
	return -1;
}

/* Layers are all alike in the families that are run, so their parts of a sum are equal. */
static void
describe_device(const qwen_plan *plan, int device, qwen_device_state *out)
{
	const qwen_plan_share *share = &plan->devices[device];
	const qwen_plan_usage *u = &share->usage;
	uint64_t n = share->n_layers > 0 ? (uint64_t) share->n_layers : 1;

	*out = (qwen_device_state){
		.stage = stage_of(plan, device),
		.n_layers = share->n_layers,
		.total_bytes = share->device.total,
		.budget_bytes = share->budget,
		.planned_bytes = qwen_plan_total(u),
		.weights_bytes = qwen_plan_weights(u),
		.kv_bytes = u->kv + u->state,
		.workspace_bytes = qwen_plan_workspace(u),
		.embed_bytes = u->embed,
		.head_bytes = u->head,
		.layer_bytes = u->layers / n,
		.layer_kv_bytes = (u->kv + u->state) / n,
	};
	snprintf(out->name, sizeof(out->name), "%s", share->device.name);
	snprintf(out->kind, sizeof(out->kind), "%s", share->device.kind == QWEN_DEVICE_CUDA ? "cuda" : "cpu");
}

void
qwen_server_note_devices(qwen_server *s, const qwen_model *model)
{
	const qwen_plan *plan = qwen_model_plan(model);
	qwen_devices *out = &s->devices;

	pthread_mutex_lock(&s->lock);
	out->n_devices = plan->n_devices;
	out->n_layers = plan->n_layers;
	out->embed_stage = plan->embed_stage;
	out->head_stage = plan->head_stage;
	memcpy(out->layer_stage, plan->layer_stage, (size_t) plan->n_layers);
	for (int i = 0; i < plan->n_devices; i++)
	{
		qwen_device_state *d = &out->devices[i];
		uint64_t peak = d->peak_bytes;

		describe_device(plan, i, d);
		d->loaded_bytes = qwen_model_loaded(model, i);
		d->used_bytes = qwen_model_used(model, i);
		d->peak_bytes = d->used_bytes > peak ? d->used_bytes : peak;
	}
	pthread_mutex_unlock(&s->lock);
}

/* What is free on each device: GPUs are only asked where the model is on one, as asking makes contexts. */
static void
find_free(qwen_devices *now)
{
	qwen_cuda_device gpus[QWEN_PLAN_MAX_DEVICES];
	uint64_t available = qwen_memory_available();
	char why[256];
	int n = -1;

	for (qwen_device_state *d = now->devices; d < now->devices + now->n_devices; d++)
	{
		bool gpu = strcmp(d->kind, "cpu") != 0;
		uint64_t left = d->budget_bytes > d->used_bytes ? d->budget_bytes - d->used_bytes : 0;
		uint64_t there = gpu ? 0 : available;

		if (gpu && n < 0)
			n = qwen_gpu_list(gpus, QWEN_PLAN_MAX_DEVICES, why, sizeof(why));
		for (int i = 0; gpu && i < n; i++)
			if (gpus[i].index == qwen_gpu_index(d->name))
				there = gpus[i].free;
		d->free_bytes = left < there ? left : there;
	}
}

void
qwen_server_send_devices(qwen_server *s)
{
	qwen_devices now;

	pthread_mutex_lock(&s->lock);
	now = s->devices;
	pthread_mutex_unlock(&s->lock);
	if (now.n_devices == 0)
		return;
	find_free(&now);
	qwen_server_send(s, QWEN_FRAME_DEVICES, 0, &now,
					 offsetof(qwen_devices, devices) + (size_t) now.n_devices * sizeof(now.devices[0]));
}
