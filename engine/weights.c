/*
 * weights.c
 *	  Reading the planned tensors onto the device.
 *
 * Each tensor is read once, in the order of the files, by ranges of rows
 * through one staging buffer: host memory beside the weights stays bounded
 * whatever the size of a tensor.
 */
#include "weights_internal.h"

#include <stdlib.h>
#include <string.h>

/* What loading carries along. */
typedef struct loader
{
	const qwen_weight_plan *plan;
	const qwen_checkpoint *checkpoint;
	qwen_device *dev;
	char *staging; /* [QWEN_STAGING_BYTES] */
	uint64_t done; /* bytes read so far */
	qwen_progress_fn progress;
	void *arg;
	qwen_error *err;
} loader;

/* ---- memory ---- */

/* Memory for the matrix or vector that a slot is part of, unless another of its slots has brought it. */
static qwen_status
allocate_slot(loader *l, const qwen_slot *slot)
{
	qwen_weights *w = l->plan->weights;
	size_t bytes = slot->matrix ? slot->matrix->bytes : (size_t) slot->total * sizeof(float);
	void *p;

	if (slot->matrix ? slot->matrix->data != NULL : *slot->vector != NULL)
		return QWEN_OK;
	p = l->dev->ops->alloc(l->dev, bytes);
	if (!p)
		return qwen_fail_memory(l->err, bytes);
	w->memory[w->n_memory++] = (qwen_allocation){p, bytes};
	if (slot->matrix)
		slot->matrix->data = p;
	else
		*slot->vector = p;
	return QWEN_OK;
}

void
qwen_weights_free(qwen_weights *weights, qwen_device *dev)
{
	for (size_t i = 0; i < weights->n_memory; i++)
		dev->ops->free(dev, weights->memory[i].data, weights->memory[i].bytes);
	free(weights->memory);
	free(weights->layers);
	memset(weights, 0, sizeof(*weights));
}

/* ---- reading ---- */

/* A value that the stored type cannot hold is the user's choice of type; anything else is ours. */
static qwen_status
fail_upload(loader *l, const qwen_slot *slot)
{
	if (slot->matrix && slot->matrix->dtype == QWEN_F16 && slot->source != QWEN_F16)
	{
		qwen_fail(l->err, QWEN_INVALID, "tensor \"%s\" does not fit the type float16", slot->tensor->name);
		return qwen_fail_hint(l->err, "Set qwen.dtype to auto, bfloat16 or float32.");
	}
	return qwen_fail(l->err, QWEN_INTERNAL, "tensor \"%s\" could not be stored on %s", slot->tensor->name,
					 l->dev->name);
}

/* Counts what was read and tells the caller. */
static void
advance(loader *l, size_t bytes)
{
	l->done += bytes;
	if (l->progress)
		l->progress(l->arg, l->done, l->plan->source_bytes);
}

/* A row fits the buffer: the configuration bounds its length. */
static qwen_status
load_matrix(loader *l, const qwen_slot *slot)
{
	size_t row_bytes = (size_t) slot->cols * qwen_dtype_bytes(slot->source);
	int64_t step = (int64_t) (QWEN_STAGING_BYTES / row_bytes);

	for (int64_t row = 0; row < slot->rows; row += step)
	{
		int64_t n = row + step < slot->rows ? step : slot->rows - row;
		size_t bytes = (size_t) n * row_bytes;
		qwen_status rc =
			qwen_checkpoint_read(l->checkpoint, slot->tensor, (uint64_t) row * row_bytes, l->staging, bytes, l->err);

		if (rc != QWEN_OK)
			return rc;
		if (!l->dev->ops->matrix_upload(l->dev, slot->matrix, slot->offset + row, n, l->staging, slot->source))
			return fail_upload(l, slot);
		advance(l, bytes);
	}
	return QWEN_OK;
}

/* Norms and biases: short enough for the buffer, since the configuration bounds them. */
static qwen_status
load_vector(loader *l, const qwen_slot *slot)
{
	size_t bytes = (size_t) slot->rows * qwen_dtype_bytes(slot->source);
	qwen_status rc = qwen_checkpoint_read(l->checkpoint, slot->tensor, 0, l->staging, bytes, l->err);

	if (rc != QWEN_OK)
		return rc;
	if (!l->dev->ops->vector_upload(l->dev, *slot->vector + slot->offset, l->staging, slot->source, slot->rows))
		return fail_upload(l, slot);
	advance(l, bytes);
	return QWEN_OK;
}

/* Allocates each matrix when its first part comes, and fills it. */
static qwen_status
load_slots(loader *l)
{
	qwen_weights *w = l->plan->weights;

	for (size_t i = 0; i < l->plan->n; i++)
	{
		const qwen_slot *slot = &l->plan->slots[i];
		qwen_status rc = allocate_slot(l, slot);

		if (rc == QWEN_OK)
			rc = slot->matrix ? load_matrix(l, slot) : load_vector(l, slot);
		if (rc != QWEN_OK)
			return rc;
	}
	if (!w->head.data) /* tied */
		w->head = w->embed;
	return qwen_checkpoint_verify(l->checkpoint, l->err);
}

qwen_status
qwen_weights_load(const qwen_weight_plan *plan, const qwen_checkpoint *checkpoint, qwen_device *dev,
				  qwen_progress_fn progress, void *arg, qwen_error *err)
{
	loader l = {.plan = plan, .checkpoint = checkpoint, .dev = dev, .progress = progress, .arg = arg, .err = err};
	qwen_status rc;

	plan->weights->memory = calloc(plan->n, sizeof(qwen_allocation));
	l.staging = malloc(QWEN_STAGING_BYTES);
	if (l.staging && plan->weights->memory)
		rc = load_slots(&l);
	else
		rc = qwen_fail_memory(err, QWEN_STAGING_BYTES);
	free(l.staging);
	return rc;
}
