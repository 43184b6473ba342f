/*
 * safetensors.h
 *	  Bounds-checked reading of safetensors checkpoints, single and sharded.
 *
 * Names in a file are data, never paths; offsets are checked against the file
 * before anything is read.  Files are read with pread, not mapped: a file that
 * is truncated meanwhile gives an error instead of a signal.
 */
#ifndef QWEN_SAFETENSORS_H
#define QWEN_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define QWEN_TENSOR_MAX_RANK 8
#define QWEN_TENSOR_MAX_NAME 512

typedef struct qwen_tensor
{
	char *name;        /* owned by the list */
	const char *dtype; /* "BF16": a constant */
	int bits;          /* of one element */
	int rank;
	uint64_t shape[QWEN_TENSOR_MAX_RANK];
	uint64_t begin; /* bytes [begin, end) of the file's data area */
	uint64_t end;
	int file; /* index in the checkpoint */
} qwen_tensor;

typedef struct qwen_tensor_list
{
	qwen_tensor *items; /* sorted by name */
	size_t n;
	size_t cap;
} qwen_tensor_list;

/*
 * Parses a header, the JSON between the length and the data, of a file whose data area has data_bytes bytes.  file: the
 * name to show in errors.  *out must be zeroed; it is to be freed in every case.
 */
qwen_status qwen_safetensors_parse(const char *file, const char *header, size_t len, uint64_t data_bytes,
								   qwen_tensor_list *out, qwen_error *err);
void qwen_tensor_list_free(qwen_tensor_list *list);

typedef struct qwen_checkpoint qwen_checkpoint;

/* Opens model.safetensors, or all files of model.safetensors.index.json, of a folder. */
qwen_status qwen_checkpoint_open(const char *model_dir, qwen_checkpoint **out, qwen_error *err);
void qwen_checkpoint_close(qwen_checkpoint *checkpoint);

/* All tensors, sorted by name. */
const qwen_tensor_list *qwen_checkpoint_tensors(const qwen_checkpoint *checkpoint);

/* Reads bytes [offset, offset + bytes) of a tensor, which must lie inside it. */
qwen_status qwen_checkpoint_read(const qwen_checkpoint *checkpoint, const qwen_tensor *tensor, uint64_t offset,
								 void *dst, size_t bytes, qwen_error *err);

/* Checks that no file has changed its size since it was opened. */
qwen_status qwen_checkpoint_verify(const qwen_checkpoint *checkpoint, qwen_error *err);

#endif
