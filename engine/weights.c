/*
 * weights.c
 *	  Reading the planned tensors onto the device.
 *
 * Tensors are cut into units of some hundred rows, in the order of the files.
 * The device's threads take runs of them, read each into a buffer of their
 * own and have the device convert, quantise and pack it from there:
 * the buffer is small enough to stay in the core's cache, and host memory
 * beside the weights stays bounded whatever the size of a tensor.  Which
 * thread takes which unit is a matter of chance, the result is not: units
 * share nothing.
 */
#include "weights_internal.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Of the checkpoint in one unit: in a core's second-level cache there is room for it and for what becomes of it. */
#define UNIT_BYTES ((size_t) 512 << 10)
/* The most that a unit may have when rows are so long that UNIT_ROWS of them do not fit UNIT_BYTES. */
#define UNIT_MAX_BYTES ((size_t) 4 << 20)
/*
 * Units that a thread takes at a time.  Neighbours share huge pages of the destination, and two threads that touch one
 * for the first time at once both clear it, one for nothing: that must happen seldom.
 */
#define RUN_UNITS 16
/* Rows that devices like to get together: units begin and end at multiples of it where they can. */
#define UNIT_ROWS 16

/* Rows [row, row + n) of a slot's tensor. */
typedef struct unit
{
	const qwen_slot *slot;
	int64_t row;
	int64_t n;
} unit;

/* What loading carries along. */
typedef struct loader
{
	const qwen_weight_plan *plan;
	const qwen_checkpoint *checkpoint;
	qwen_device *dev;
	unit *units; /* [n_units] */
	int64_t n_units;
	size_t staging_bytes; /* of the largest unit */
	char *staging;        /* [n_threads, staging_bytes] */

	atomic_llong next;    /* unit that nobody has taken */
	atomic_bool failed;   /* nobody takes another one */
	pthread_mutex_t lock; /* of what follows */
	uint64_t done;        /* bytes read so far */
	qwen_progress_fn progress;
	void *arg;
	qwen_status status; /* of the first failure, which err tells of */
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

/* ---- cutting ---- */

static size_t
row_bytes(const qwen_slot *slot)
{
	return (size_t) slot->cols * qwen_dtype_bytes(slot->source);
}

/* Rows of a slot's units, but for the first and the last one. A row fits UNIT_MAX_BYTES: the configuration bounds it. */
static int64_t
unit_rows(const qwen_slot *slot)
{
	int64_t rows = (int64_t) (UNIT_BYTES / row_bytes(slot));

	if (rows >= UNIT_ROWS)
		return rows - rows % UNIT_ROWS;
	rows = (int64_t) (UNIT_MAX_BYTES / row_bytes(slot));
	return rows < 1 ? 1 : rows < UNIT_ROWS ? rows : UNIT_ROWS;
}

/* Rows of the unit that begins at `row`: up to a multiple of UNIT_ROWS in the matrix. A vector is one unit. */
static int64_t
rows_from(const qwen_slot *slot, int64_t row)
{
	int64_t rows = slot->matrix ? unit_rows(slot) : slot->rows;

	if (slot->matrix && rows >= UNIT_ROWS)
		rows -= (slot->offset + row) % UNIT_ROWS;
	return row + rows < slot->rows ? rows : slot->rows - row;
}

/* Counts the units of all slots, and lists them when there is room for that. */
static int64_t
cut(loader *l)
{
	int64_t n = 0;

	for (size_t i = 0; i < l->plan->n; i++)
	{
		const qwen_slot *slot = &l->plan->slots[i];

		for (int64_t row = 0, rows; row < slot->rows; row += rows, n++)
		{
			rows = rows_from(slot, row);
			if (l->units)
				l->units[n] = (unit){slot, row, rows};
			if ((size_t) rows * row_bytes(slot) > l->staging_bytes)
				l->staging_bytes = (size_t) rows * row_bytes(slot);
		}
	}
	return n;
}

/* ---- reading ---- */

/* A value that the stored type cannot hold is the user's choice of type; anything else is ours. */
static qwen_status
fail_upload(const loader *l, const qwen_slot *slot, qwen_error *err)
{
	if (slot->matrix && slot->matrix->dtype == QWEN_F16 && slot->source != QWEN_F16)
	{
		qwen_fail(err, QWEN_INVALID, "tensor \"%s\" does not fit the type float16", slot->tensor->name);
		return qwen_fail_hint(err, "Set qwen.dtype to auto, bfloat16 or float32.");
	}
	return qwen_fail(err, QWEN_INTERNAL, "tensor \"%s\" could not be stored on %s", slot->tensor->name, l->dev->name);
}

/* Reads a unit into the buffer and stores it. */
static qwen_status
load_unit(const loader *l, const unit *u, char *staging, qwen_error *err)
{
	const qwen_slot *slot = u->slot;
	const qwen_ops *ops = l->dev->ops;
	size_t bytes = row_bytes(slot);
	qwen_status rc = qwen_checkpoint_read(l->checkpoint, slot->tensor, (uint64_t) u->row * bytes, staging,
										  (size_t) u->n * bytes, err);
	bool stored;

	if (rc != QWEN_OK)
		return rc;
	if (slot->matrix)
		stored = ops->matrix_upload(l->dev, slot->matrix, slot->offset + u->row, u->n, staging, slot->source);
	else
		stored = ops->vector_upload(l->dev, *slot->vector + slot->offset, staging, slot->source, u->n);
	return stored ? QWEN_OK : fail_upload(l, slot, err);
}

/* Counts what was read and tells the caller; of several failures the first one counts. */
static void
account(loader *l, const unit *u, qwen_status rc, const qwen_error *err)
{
	pthread_mutex_lock(&l->lock);
	if (rc == QWEN_OK)
	{
		l->done += (uint64_t) u->n * row_bytes(u->slot);
		if (l->progress && l->status == QWEN_OK)
			l->progress(l->arg, l->done, l->plan->source_bytes);
	}
	else if (l->status == QWEN_OK)
	{
		l->status = rc;
		*l->err = *err;
		atomic_store(&l->failed, true);
	}
	pthread_mutex_unlock(&l->lock);
}

/* A qwen_loop_fn: one item a thread, which is the number of its buffer. It takes runs of units until there are none. */
static void
load_units(void *arg, int64_t begin, int64_t end)
{
	loader *l = arg;

	for (int64_t i = begin; i < end; i++)
	{
		char *staging = l->staging + (size_t) i * l->staging_bytes;
		long long at;

		while ((at = atomic_fetch_add(&l->next, RUN_UNITS)) < l->n_units)
			for (int k = 0; k < RUN_UNITS && at + k < l->n_units && !atomic_load(&l->failed); k++)
			{
				const unit *u = &l->units[at + k];
				qwen_error err;

				account(l, u, load_unit(l, u, staging, &err), &err);
			}
	}
}

/* Memory for all that will be stored, then the units. */
static qwen_status
load_slots(loader *l)
{
	qwen_weights *w = l->plan->weights;

	for (size_t i = 0; i < l->plan->n; i++)
		if (allocate_slot(l, &l->plan->slots[i]) != QWEN_OK)
			return l->err->status;
	if (!w->head.data) /* tied */
		w->head = w->embed;
	l->dev->ops->loop(l->dev, l->dev->n_threads, 1, load_units, l);
	return l->status != QWEN_OK ? l->status : qwen_checkpoint_verify(l->checkpoint, l->err);
}

qwen_status
qwen_weights_load(const qwen_weight_plan *plan, const qwen_checkpoint *checkpoint, qwen_device *dev,
				  qwen_progress_fn progress, void *arg, qwen_error *err)
{
	loader l = {.plan = plan, .checkpoint = checkpoint, .dev = dev, .progress = progress, .arg = arg, .err = err};
	qwen_status rc;
	size_t staging;

	l.n_units = cut(&l);
	staging = (size_t) dev->n_threads * l.staging_bytes;
	plan->weights->memory = calloc(plan->n, sizeof(qwen_allocation));
	l.units = calloc((size_t) l.n_units, sizeof(unit));
	l.staging = malloc(staging);
	if (l.units && l.staging && plan->weights->memory)
	{
		cut(&l);
		pthread_mutex_init(&l.lock, NULL);
		rc = load_slots(&l);
		pthread_mutex_destroy(&l.lock);
	}
	else
		rc = qwen_fail_memory(err, staging);
	free(l.units);
	free(l.staging);
	return rc;
}
