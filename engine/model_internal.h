/*
 * model_internal.h
 *	  The parts of a loaded model. Callers see model.h.
 */
#ifndef QWEN_MODEL_INTERNAL_H
#define QWEN_MODEL_INTERNAL_H

#include "model.h"
#include "weights.h"

/*
 * Activations of one step, device memory.  T = step_tokens, R = max_sequences, h, d, Hq, Hkv, f as in weights.h.  What
 * attention and what the feed-forward part need never lives at the same time, so both use one stretch of memory.
 */
typedef struct qwen_workspace
{
	void *resid;   /* [T, h] */
	void *norm;    /* [T, h] */
	void *delta;   /* [T, h] what a part adds to the residual stream */
	void *rows;    /* [R, h] rows whose logits are wanted */
	void *qkv;     /* [T, (Hq + 2 Hkv) d]  attention */
	void *attn;    /* [T, Hq d] */
	void *gate_up; /* [T, 2 f]             feed-forward */
	void *act;     /* [T, f] */
} qwen_workspace;

struct qwen_model
{
	qwen_config config;
	qwen_device *dev;
	qwen_weights weights;
	qwen_heads heads;
	qwen_kv_layer *kv;     /* [n_layers] */
	qwen_dtype kv_dtype;
	size_t kv_block_bytes; /* of the keys of one layer in one block; the values take the same */
	int kv_blocks;
	qwen_workspace ws;
	void *arena; /* the memory of ws */
	size_t arena_bytes;
	size_t scratch_bytes; /* of dev->scratch */
	float *rope; /* [max_len, d] device */
	size_t rope_bytes;
	int max_len;
	int max_sequences;
	int step_tokens;
};

/* model_plan.c: sizes. */

/* Bytes of the step's activations; when base is given, the pointers of ws are laid out there. */
size_t qwen_workspace_layout(const qwen_model *model, qwen_workspace *ws, char *base);

/* Bytes of the keys of one layer; the values take the same. */
size_t qwen_model_kv_layer_bytes(const qwen_model *model);

/*
 * Decides max_len, the type of the cache and the number of its blocks, and refuses what the memory cannot hold.  The
 * weights are planned already; nothing is allocated yet.
 */
qwen_status qwen_model_plan(qwen_model *model, const qwen_model_options *options, qwen_error *err);

#endif
