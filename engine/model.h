/*
 * model.h
 *	  A loaded model: configuration, weights on their devices, KV cache, and
 *	  the forward pass over a flat batch.
 */
#ifndef QWEN_MODEL_H
#define QWEN_MODEL_H

#include "../kernels/kernels.h"
#include "config.h"
#include "error.h"
#include "plan.h"

typedef struct qwen_model qwen_model;

typedef struct qwen_model_options
{
	const char *path;         /* model folder */
	const char *device_map;   /* a strategy, a device, or a JSON map */
	const char *max_memory;   /* "cuda:0=20GiB,cpu=64GiB" */
	const char *offload;      /* "off", "cpu" */
	int tensor_parallel;      /* devices that share each layer, 0 = 1 */
	const char *kernels;      /* "auto", "ref", ... */
	const char *dtype;        /* of matrices that are not quantised: "auto", "bfloat16", "float16", "float32" */
	const char *quantization; /* "none", "int8", "int4" */
	const char *kv_dtype;     /* "auto", the three of dtype, "int8" */
	int threads;              /* 0 = auto */
	int max_model_len; /* 0 = the configuration's max_position_embeddings (or what memory allows: never silently less) */
	int max_sequences;             /* rows of logits and sequences in one step */
	int step_tokens;               /* most tokens of one forward call */
	size_t kv_memory;              /* bytes for the KV cache, 0 = auto */
	bool no_prefix_cache;          /* of the engine: blocks of the cache are not shared between requests */
	void (*log)(const char *line); /* takes what an administrator should know; or NULL */
} qwen_model_options;

/* Called while loading, from any of the loading threads, but never from two at a time. */
typedef void (*qwen_progress_fn)(void *arg, const qwen_model *model, uint64_t done_bytes, uint64_t total_bytes);

/*
 * Loads a model; everything that the forward pass will ever need is allocated here, and what does not fit is refused
 * with both numbers.  *out is owned by the caller.
 */
qwen_status qwen_model_open(const qwen_model_options *options, qwen_progress_fn progress, void *arg, qwen_model **out,
							qwen_error *err);
void qwen_model_close(qwen_model *model);

const qwen_config *qwen_model_config(const qwen_model *model);
int qwen_model_threads(const qwen_model *model);         /* of the processor */
const char *qwen_model_kernels(const qwen_model *model); /* that compute the first layer: "avx512", "cuda" */
const qwen_plan *qwen_model_plan(const qwen_model *model);
/* Bytes on a device of the plan, also while loading: of weights, and of everything. */
uint64_t qwen_model_loaded(const qwen_model *model, int device);
uint64_t qwen_model_used(const qwen_model *model, int device);
int qwen_model_max_len(const qwen_model *model);             /* tokens of one sequence */
int qwen_model_kv_blocks(const qwen_model *model);           /* blocks of QWEN_KV_BLOCK tokens in the cache */
uint64_t qwen_model_kv_token_bytes(const qwen_model *model); /* of the cache, all layers */
int qwen_model_step_tokens(const qwen_model *model);
int qwen_model_max_sequences(const qwen_model *model);
uint64_t qwen_model_weight_bytes(const qwen_model *model);
const char *qwen_model_dtype(const qwen_model *model);        /* of the matrices, were they not quantised: "bfloat16" */
const char *qwen_model_quantization(const qwen_model *model); /* of the layers' matrices: "none", "int8", "int4" */
const char *qwen_model_kv_dtype(const qwen_model *model);     /* of the cache: "bfloat16" */

/*
 * Runs one step.  Ids, positions and block numbers are checked by the caller (scheduler); at most step_tokens tokens
 * and max_sequences rows of logits.  logits[n_logits, vocab_size], host memory.  Fails only when a device has failed.
 */
qwen_status qwen_model_forward(qwen_model *model, const qwen_batch *batch, float *logits, qwen_error *err);

/*
 * Calls fn for the items [0, n) on the threads of the processor, in pieces of at most grain, and returns when all are
 * done. Not while qwen_model_forward runs.
 */
void qwen_model_loop(qwen_model *model, int64_t n, int64_t grain, qwen_loop_fn fn, void *arg);

#endif
