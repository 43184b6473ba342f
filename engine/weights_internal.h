/*
 * weights_internal.h
 *	  What planning and loading of weights share.
 */
#ifndef QWEN_WEIGHTS_INTERNAL_H
#define QWEN_WEIGHTS_INTERNAL_H

#include "weights.h"

/* Where rows [row, row + n_rows), columns [col, col + n_cols) of a tensor go. One of matrix and vector is set. */
typedef struct qwen_target
{
	qwen_weights *part;
	qwen_matrix *matrix;
	qwen_vector *vector;
	int64_t row;
	int64_t n_rows;
	int64_t col;
	int64_t n_cols;
	int64_t offset; /* first row of the matrix, or element of the vector, that they fill */
} qwen_target;

/* One tensor of the checkpoint and its places: one, or as many as there are shards and copies of it. */
typedef struct qwen_slot
{
	char name[96]; /* normalised: without "model." */
	int64_t rows;  /* shape [rows, cols], or [rows] for a vector */
	int64_t cols;
	bool matrix;
	const qwen_tensor *tensor; /* NULL until found */
	qwen_dtype source;
	size_t first; /* of its targets */
	size_t n;
} qwen_slot;

struct qwen_weight_plan
{
	qwen_weights *parts; /* [n_parts] the caller's */
	int n_parts;
	qwen_slot *slots; /* [n], in the order of the files when loading */
	size_t n;
	qwen_target *targets; /* [n_targets] */
	size_t n_targets;
	uint64_t source_bytes; /* to be read in all */
};

#endif
