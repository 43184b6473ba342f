/*
 * weights.h
 *	  The tensors of a model on its device.
 *
 * q, k and v stand as rows of one matrix, gate and up too: one product instead
 * of three or two, and the checkpoint's rows are copied as they are.
 */
#ifndef QWEN_WEIGHTS_H
#define QWEN_WEIGHTS_H

#include "../kernels/kernels.h"
#include "config.h"
#include "model.h"
#include "safetensors.h"

/* h = hidden_size, d = head_dim, Hq, Hkv = heads, f = intermediate_size, V = vocab_size; vectors are device floats. */
typedef struct qwen_layer_weights
{
	float *attn_norm;    /* [h] */
	qwen_matrix qkv;     /* [(Hq + 2 Hkv) d, h] */
	float *qkv_bias;     /* [(Hq + 2 Hkv) d] or NULL */
	float *q_norm;       /* [d] or NULL */
	float *k_norm;       /* [d] or NULL */
	qwen_matrix out;     /* [h, Hq d] */
	float *out_bias;     /* [h] or NULL */
	float *ffn_norm;     /* [h] */
	qwen_matrix gate_up; /* [2 f, h] */
	qwen_matrix down;    /* [h, f] */
} qwen_layer_weights;

typedef struct qwen_allocation
{
	void *data;
	size_t bytes;
} qwen_allocation;

typedef struct qwen_weights
{
	qwen_layer_weights *layers; /* [n_layers] */
	int n_layers;
	qwen_matrix embed;       /* [V, h] */
	qwen_matrix head;        /* [V, h]; the same memory as embed when tied */
	float *norm;             /* [h] */
	qwen_dtype dtype;        /* of the layers' matrices, were they not quantised */
	uint64_t bytes;          /* on the device */
	qwen_allocation *memory; /* [n_memory] what was allocated there */
	size_t n_memory;
} qwen_weights;

/* Which checkpoint tensor goes where: made before anything is allocated. */
typedef struct qwen_weight_plan qwen_weight_plan;

/*
 * Finds every tensor that the configuration asks for, checks shapes and types, and fills *weights but for its pointers.
 * Everything that is missing, unexpected or of another shape is reported at once.  options: dtype and quantization say
 * how matrices are stored.  weights->bytes is what qwen_weights_load will allocate.
 */
qwen_status qwen_weights_plan(const qwen_config *config, const qwen_checkpoint *checkpoint, const qwen_device *dev,
							  const qwen_model_options *options, qwen_weights *weights, qwen_weight_plan **out, qwen_error *err);
void qwen_weight_plan_free(qwen_weight_plan *plan);

/*
 * Allocates and reads, on all threads of the device; each tensor is read once, through bounded buffers.  *weights is to
 * be freed in every case.
 */
qwen_status qwen_weights_load(const qwen_weight_plan *plan, const qwen_checkpoint *checkpoint, qwen_device *dev,
							  qwen_progress_fn progress, void *arg, qwen_error *err);
void qwen_weights_free(qwen_weights *weights, qwen_device *dev);

#endif
