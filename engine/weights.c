/*
 * weights.c
 *	  Reading the planned tensors onto their devices.
 *
 * Tensors are cut into units of some hundred rows, in the order of the files.
 * The processor's threads take runs of them, read each into a buffer of their
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
	qwen_device *host; /* whose threads load */
	unit *units;       /* [n_units] */
	int64_t n_units;
	size_t staging_bytes; /* of the largest unit */
	size_t thread_bytes;  /* that, and as much for columns that are taken out of it, where shards need it */
	char *staging;        /* [n_threads, thread_bytes] */

	atomic_llong next;    /* unit that nobody has taken */
	atomic_bool failed;   /* nobody takes another one */
	pthread_mutex_t lock; /* of what follows */
	uint64_t done;        /* bytes read so far */
	qwen_load_fn progress;
	void *arg;
	qwen_status status; /* of the first failure, which err tells of */
	qwen_error *err;
} loader;

/* ---- memory ---- */

/* Memory for the matrix or vector that a target is part of, unless another target has brought it. */
static qwen_status
allocate_target(loader *l, const qwen_target *t)
{
	qwen_weights *w = t->part;
	size_t bytes = t->matrix ? t->matrix->bytes : (size_t) t->vector->n * sizeof(float);
	void *p;

	if (t->matrix ? t->matrix->data != NULL : t->vector->data != NULL)
		return QWEN_OK;
	p = w->dev->ops->alloc(w->dev, bytes);
	if (!p)
		return qwen_fail_memory(l->err, bytes);
	w->memory[w->n_memory++] = (qwen_allocation){p, bytes};
	if (t->matrix)
		t->matrix->data = p;
	else
		t->vector->data = p;
	return QWEN_OK;
}

/* Lists of allocations, of as many as there can be, then the memory itself. */
static qwen_status
allocate_parts(loader *l)
{
	const qwen_weight_plan *plan = l->plan;
	qwen_status rc;

	for (qwen_weights *p = plan->parts; p < plan->parts + plan->n_parts; p++)
		if (!(p->memory = calloc(plan->n_targets, sizeof(qwen_allocation))))
			return qwen_fail_memory(l->err, plan->n_targets * sizeof(qwen_allocation));
	for (size_t i = 0; i < plan->n_targets; i++)
		if ((rc = allocate_target(l, &plan->targets[i])) != QWEN_OK)
			return rc;
	for (qwen_weights *p = plan->parts; p < plan->parts + plan->n_parts; p++)
		if (p->has_head && !p->head.data) /* tied */
			p->head = p->embed;
	return QWEN_OK;
}

void
qwen_weights_free(qwen_weights *w)
{
	for (size_t i = 0; i < w->n_memory; i++)
		w->dev->ops->free(w->dev, w->memory[i].data, w->memory[i].bytes);
	free(w->memory);
	free(w->layers);
	w->memory = NULL;
	w->layers = NULL;
	w->n_memory = 0;
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

/* Rows of the unit that begins at `row`: up to a multiple of UNIT_ROWS in the first matrix. A vector is one unit. */
static int64_t
rows_from(const qwen_weight_plan *plan, const qwen_slot *slot, int64_t row)
{
	int64_t rows = slot->matrix ? unit_rows(slot) : slot->rows;

	if (slot->matrix && rows >= UNIT_ROWS)
		rows -= (plan->targets[slot->first].offset + row) % UNIT_ROWS;
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
			rows = rows_from(l->plan, slot, row);
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
fail_upload(const qwen_slot *slot, const qwen_target *t, qwen_error *err)
{
	if (t->matrix && t->matrix->dtype == QWEN_F16 && slot->source != QWEN_F16)
	{
		qwen_fail(err, QWEN_INVALID, "tensor \"%s\" does not fit the type float16", slot->tensor->name);
		return qwen_fail_hint(err, "Set qwen.dtype to auto, bfloat16 or float32.");
	}
	return qwen_fail(err, QWEN_INTERNAL, "tensor \"%s\" could not be stored on %s", slot->tensor->name,
					 t->part->dev->name);
}

/* The target's columns of n rows, which begin at `rows`; in `cut` when they are not all of them. */
static const char *
take_columns(const qwen_slot *slot, const qwen_target *t, const char *rows, int64_t n, char *cut)
{
	size_t element = qwen_dtype_bytes(slot->source), width = (size_t) t->n_cols * element;

	if (t->n_cols == slot->cols)
		return rows;
	for (int64_t i = 0; i < n; i++)
		memcpy(cut + (size_t) i * width, rows + (size_t) i * row_bytes(slot) + (size_t) t->col * element, width);
	return cut;
}

/* Stores what a target wants of a unit's rows. */
static bool
store_rows(const unit *u, const qwen_target *t, const char *staging, char *cut)
{
	qwen_device *dev = t->part->dev;
	int64_t from = u->row > t->row ? u->row : t->row;
	int64_t unit_end = u->row + u->n, target_end = t->row + t->n_rows;
	int64_t n = (unit_end < target_end ? unit_end : target_end) - from, at = t->offset + from - t->row;
	const char *src;

	if (n <= 0)
		return true;
	src = take_columns(u->slot, t, staging + (size_t) (from - u->row) * row_bytes(u->slot), n, cut);
	if (t->matrix)
		return dev->ops->matrix_upload(dev, t->matrix, at, n, src, u->slot->source);
	return dev->ops->vector_upload(dev, t->vector->data + at, src, u->slot->source, n);
}

/* Reads a unit into the buffer and stores it wherever it belongs. */
static qwen_status
load_unit(const loader *l, const unit *u, char *staging, qwen_error *err)
{
	const qwen_slot *slot = u->slot;
	const qwen_target *targets = l->plan->targets + slot->first;
	size_t bytes = row_bytes(slot);
	qwen_status rc = qwen_checkpoint_read(l->checkpoint, slot->tensor, (uint64_t) u->row * bytes, staging,
										  (size_t) u->n * bytes, err);

	if (rc != QWEN_OK)
		return rc;
	for (const qwen_target *t = targets; t < targets + slot->n; t++)
		if (!store_rows(u, t, staging, staging + l->staging_bytes))
			return fail_upload(slot, t, err);
	return QWEN_OK;
}

/* Counts a stored unit for the devices that it went to, in bytes as they hold it. The lock is held. */
static void
account_parts(const loader *l, const unit *u)
{
	const qwen_target *targets = l->plan->targets + u->slot->first;

	for (const qwen_target *t = targets; t < targets + u->slot->n; t++)
	{
		int64_t begin = u->row > t->row ? u->row : t->row, end = u->row + u->n;
		int64_t rows = (end < t->row + t->n_rows ? end : t->row + t->n_rows) - begin;
		size_t row = t->matrix ? t->matrix->bytes / (size_t) t->matrix->n : sizeof(float);

		if (rows > 0)
			t->part->loaded += (uint64_t) rows * row;
	}
}

/* Counts what was read and tells the caller; of several failures the first one counts. */
static void
account(loader *l, const unit *u, qwen_status rc, const qwen_error *err)
{
	pthread_mutex_lock(&l->lock);
	if (rc == QWEN_OK)
	{
		l->done += (uint64_t) u->n * row_bytes(u->slot);
		account_parts(l, u);
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
		char *staging = l->staging + (size_t) i * l->thread_bytes;
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
	const qwen_weight_plan *plan = l->plan;

	if (allocate_parts(l) != QWEN_OK)
		return l->err->status;
	l->host->ops->loop(l->host, l->host->n_threads, 1, load_units, l);
	if (l->status != QWEN_OK)
		return l->status;
	for (qwen_weights *p = plan->parts; p < plan->parts + plan->n_parts; p++)
		p->loaded = p->bytes; /* with what is padding */
	return qwen_checkpoint_verify(l->checkpoint, l->err);
}

qwen_status
qwen_weights_load(const qwen_weight_plan *plan, const qwen_checkpoint *checkpoint, qwen_device *host,
				  qwen_load_fn progress, void *arg, qwen_error *err)
{
	loader l = {.plan = plan, .checkpoint = checkpoint, .host = host, .progress = progress, .arg = arg, .err = err};
	qwen_status rc;

	l.n_units = cut(&l);
	l.thread_bytes = plan->parts[0].n_shards > 1 ? 2 * l.staging_bytes : l.staging_bytes;
	l.units = calloc((size_t) l.n_units, sizeof(unit));
	l.staging = malloc((size_t) l.host->n_threads * l.thread_bytes);
	if (l.units && l.staging)
	{
		cut(&l);
		pthread_mutex_init(&l.lock, NULL);
		rc = load_slots(&l);
		pthread_mutex_destroy(&l.lock);
	}
	else
		rc = qwen_fail_memory(err, (size_t) l.host->n_threads * l.thread_bytes);
	free(l.units);
	free(l.staging);
	return rc;
}
