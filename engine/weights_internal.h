/*
 * weights_internal.h
 *	  What planning and loading of weights share.
 */
#ifndef QWEN_WEIGHTS_INTERNAL_H
#define QWEN_WEIGHTS_INTERNAL_H

#include "weights.h"

/* One tensor of the checkpoint and its place. Exactly one of matrix and vector is set. */
typedef struct qwen_slot
{
	char name[96]; /* normalised: without "model." */
	int64_t rows;  /* shape [rows, cols], or [rows] for a vector */
	int64_t cols;
	qwen_matrix *matrix;
	float **vector;
	int64_t offset;            /* first row of the matrix, or element of the vector, that this tensor fills */
	int64_t total;             /* elements of the whole vector */
	const qwen_tensor *tensor; /* NULL until found */
	qwen_dtype source;
} qwen_slot;

struct qwen_weight_plan
{
	qwen_weights *weights;
	qwen_slot *slots; /* [n], in the order of the files when loading */
	size_t n;
	uint64_t source_bytes; /* to be read in all */
};

#endif
