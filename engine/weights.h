/*
 * weights.h
 *	  The tensors of a model on its devices.
 *
 * q, k and v stand as rows of one matrix, gate and up too: one product instead
 * of three or two, and the checkpoint's rows are copied as they are.
 *
 * A device holds some of the layers, perhaps the ends, and of those one of
 * n_shards equal shards: rows of the matrices that widen (by heads, by columns
 * of the feed-forward network, by vocabulary) and columns of those that narrow
 * again.  What a shard of the latter gives is a part of a sum.
 */
#ifndef QWEN_WEIGHTS_H
#define QWEN_WEIGHTS_H

#include "../kernels/kernels.h"
#include "config.h"
#include "model.h"
#include "safetensors.h"

/* Device floats. */
typedef struct qwen_vector
{
	float *data; /* NULL: the model has none */
	int64_t n;
} qwen_vector;

/*
 * Of one shard: h = hidden_size, d = head_dim, Hq, Hkv = the shard's heads, f = its part of intermediate_size, V = its
 * part of vocab_size.
 */
typedef struct qwen_layer_weights
{
	qwen_vector attn_norm; /* [h] */
	qwen_matrix qkv;       /* [(Hq + 2 Hkv) d, h] */
	qwen_vector qkv_bias;  /* [(Hq + 2 Hkv) d] */
	qwen_vector q_norm;    /* [d] */
	qwen_vector k_norm;    /* [d] */
	qwen_matrix out;       /* [h, Hq d] */
	qwen_vector out_bias;  /* [h], for the whole sum */
	qwen_vector ffn_norm;  /* [h] */
	qwen_matrix gate_up;   /* [2 f, h] */
	qwen_matrix down;      /* [h, f] */
} qwen_layer_weights;

typedef struct qwen_allocation
{
	void *data;
	size_t bytes;
} qwen_allocation;

/* What one device holds. The first fields are the caller's, who sets them before qwen_weights_plan. */
typedef struct qwen_weights
{
	qwen_device *dev;
	int shard; /* of n_shards */
	int n_shards;
	bool has_embed;
	bool has_head;     /* and the last norm */
	const bool *holds; /* [n_layers] which layers; NULL: all */

	qwen_layer_weights *layers; /* [n_layers]; all zero where not held */
	int n_layers;
	qwen_matrix embed;       /* [V, h] */
	qwen_matrix head;        /* [V, h]; the same memory as embed when tied and both are here */
	qwen_vector norm;        /* [h] */
	qwen_dtype dtype;        /* of the matrices, were they not quantised */
	uint64_t bytes;          /* that loading allocates on the device */
	uint64_t loaded;         /* of those, so far */
	qwen_allocation *memory; /* [n_memory] what was allocated there */
	size_t n_memory;
} qwen_weights;

/* Called while loading, as a qwen_progress_fn is. */
typedef void (*qwen_load_fn)(void *arg, uint64_t done_bytes, uint64_t total_bytes);

/* Which checkpoint tensor goes where: made before anything is allocated. */
typedef struct qwen_weight_plan qwen_weight_plan;

/*
 * Finds every tensor that the configuration asks for, checks shapes and types, and fills parts[n] but for their
 * pointers.  Everything that is missing, unexpected or of another shape is reported at once.  options: dtype and
 * quantization say how matrices are stored.  `bytes` of a part is what qwen_weights_load will allocate there.
 */
qwen_status qwen_weights_plan(const qwen_config *config, const qwen_checkpoint *checkpoint,
							  const qwen_model_options *options, qwen_weights *parts, int n, qwen_weight_plan **out,
							  qwen_error *err);
void qwen_weight_plan_free(qwen_weight_plan *plan);

/*
 * Allocates and reads, on all threads of `host`, for all devices at the same time; each tensor is read once, through
 * bounded buffers.  The parts are to be freed in every case.
 */
qwen_status qwen_weights_load(const qwen_weight_plan *plan, const qwen_checkpoint *checkpoint, qwen_device *host,
							  qwen_load_fn progress, void *arg, qwen_error *err);
void qwen_weights_free(qwen_weights *part);

/*
 * The type that matrices of the checkpoint have: of all of them, or float32 when they differ.  What is stored where no
 * setting says otherwise takes at most that.
 */
qwen_dtype qwen_checkpoint_dtype(const qwen_checkpoint *checkpoint);

#endif
