/*
 * roofline.h
 *	  What steps cost at least: bytes that must move and operations that must
 *	  be done, and the time in which a machine of given rates can do both.
 */
#ifndef QWEN_ROOFLINE_H
#define QWEN_ROOFLINE_H

#include "model.h"

/* Work of one or more steps. A product and a sum count as two operations. */
typedef struct qwen_work
{
	double bytes;     /* weights once a step; cache once a step and sequence */
	double linear;    /* operations of the weights' products */
	double attention; /* operations of queries with keys and weights with values */
} qwen_work;

/* What a machine does in a second; 0: not known, and then not counted. */
typedef struct qwen_rates
{
	double bandwidth; /* bytes read */
	double linear;
	double attention;
} qwen_rates;

/*
 * Measures them for the model's processor and the types of its matrices; those of GPUs are not known to this program.
 * Not while a step runs.
 */
void qwen_rates_measure(qwen_rates *rates, const qwen_model *model);

/* Adds a step: n tokens from position `first` on of each of n_seqs sequences, and logits of each one's last token. */
void qwen_work_add(qwen_work *work, const qwen_model *model, int n_seqs, int first, int n);

/* Seconds: moving and computing overlap, so the longer of the two. */
double qwen_work_seconds(const qwen_work *work, const qwen_rates *rates);

/* Whether moving is the longer one. */
bool qwen_work_moves(const qwen_work *work, const qwen_rates *rates);

#endif
