/*
 * model_internal.h
 *	  The parts of a loaded model. Callers see model.h.
 *
 *	  model.c        opening and closing
 *	  model_parts.c  what each device of the plan gets
 *	  forward.c      one step
 *	  exchange.c     what devices give each other in a step
 */
#ifndef QWEN_MODEL_INTERNAL_H
#define QWEN_MODEL_INTERNAL_H

#include "model.h"
#include "plan.h"
#include "weights.h"

/*
 * Activations of one step, device memory.  T = step_tokens, R = max_sequences, h, d, Hq, Hkv, f as in weights.h.  What
 * attention and what the feed-forward part need never lives at the same time, so both use one stretch of memory.
 */
typedef struct qwen_workspace
{
	float *resid;  /* [T, h] */
	void *norm;    /* [T, h] */
	void *delta;   /* [T, h] what a part adds to the residual stream */
	void *rows;    /* [R, h] rows whose logits are wanted, where the head is */
	void *qkv;     /* [T, (Hq + 2 Hkv) d]  attention */
	void *attn;    /* [T, Hq d] */
	void *gate_up; /* [T, 2 f]             feed-forward */
	void *act;     /* [T, f] */
} qwen_workspace;

/* What one device has. */
typedef struct qwen_part
{
	const qwen_plan_share *share; /* what was planned for it */
	qwen_device *dev;
	bool idle;   /* the plan gives it nothing: no memory, and no part in steps */
	bool *holds; /* [n_layers] */
	qwen_weights *weights;
	qwen_kv_layer *kv; /* [n_layers], of the layers that it holds */
	qwen_dtype kv_dtype;
	size_t kv_block_bytes; /* of the keys of one layer in one block; the values take the same */
	size_t kv_bytes;       /* of the keys of one layer in all blocks */
	qwen_workspace ws;
	void *arena;        /* [share->usage.activations] the memory of ws */
	float *rope;        /* [max_len, d] */
	uint64_t allocated; /* bytes of cache, activations, scratch memory, rope table and logits */
} qwen_part;

struct qwen_model
{
	qwen_config config;
	qwen_plan plan;
	qwen_device *host;     /* whose threads load, sample, and serve all parts that are processors */
	int tp;                /* devices of a stage */
	qwen_part *parts;      /* [n_parts]: those of stage s are tp neighbours from s * tp on */
	qwen_weights *weights; /* [n_parts] */
	int n_parts;
	qwen_heads heads;    /* of a shard */
	int32_t *local_ids;  /* [tp, step_tokens] ids within each shard of the vocabulary, where there are shards */
	float *local_logits; /* [vocab_size / tp] and */
	bool *moved;         /* [tp * max_sequences] to put shards of logits in order */
	int max_len;
	int max_sequences;
	int step_tokens;
};

/* ---- model_parts.c ---- */

/* Opens the host's threads and the devices of the plan, and says what of the weights goes where. */
qwen_status qwen_parts_open(qwen_model *model, const qwen_model_options *options, qwen_error *err);

/* How each device keeps the cache that qwen.kv_dtype asks for; m->heads is set. */
qwen_status qwen_parts_choose_cache(qwen_model *model, const char *asked, qwen_error *err);

/* Allocates cache, activations, scratch memory and rope table of every device, as the plan says. */
qwen_status qwen_parts_allocate(qwen_model *model, qwen_error *err);

/* Of a model that was opened half, too. */
void qwen_parts_close(qwen_model *model);

/* The first part of a stage. */
qwen_part *qwen_stage_parts(const qwen_model *model, int stage);

/* ---- exchange.c: between the devices of a stage, and from one stage to the next ---- */

/* devs[tp] of a stage, in the order of the shards. */
void qwen_stage_devices(const qwen_model *model, int stage, qwen_device **devs);

/* Partial sums: delta[n_tokens, h] becomes the sum over the shards, added in their order, on each of them. */
bool qwen_sum_shards(const qwen_model *model, int stage, int32_t n_tokens);

/* The same of resid[n_tokens, h]. */
bool qwen_sum_rows(const qwen_model *model, int stage, int32_t n_tokens);

/* The residual stream goes on to another stage, with delta added when there is one yet: it has none there. */
bool qwen_hand_over(const qwen_model *model, int from, int to, int32_t n_tokens, bool delta);

/* logits come as tp blocks [rows, V / tp] and become [rows, V]. */
void qwen_interleave_logits(qwen_model *model, float *logits, int32_t rows);

#endif
