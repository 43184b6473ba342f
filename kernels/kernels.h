/*
 * kernels.h
 *	  The one table of operations between the engine and the processors.
 *
 * A device is a processor with a memory budget and a table of functions.  The
 * layer loop of engine/forward.c is written once against this table; kernels/
 * knows nothing of models, sequences or files.
 *
 * Conventions.  Matrices are row-major.  The residual stream (d_resid, and
 * what embed gives) is float on every device; all other activations are of
 * the device's own type, dev->act: float on every processor, on a GPU as the
 * checkpoint.  The engine treats them as opaque.  Pointers named d_* point to
 * device memory got from alloc.  No operation allocates, so none can fail
 * once the model is loaded; only open, alloc, join and uploads report failure.
 *
 * A device may run behind its caller: operations are queued in order, a device
 * that fails says so in synchronize and from then on for good.
 *
 * Determinism.  The order of every reduction depends on the shape of the
 * weight, and in attention on the length of the sequence itself, never on how
 * many rows or sequences stand in the batch: a row has the same bits alone
 * and among 64 others.
 */
#ifndef QWEN_KERNELS_H
#define QWEN_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The first three are the types of checkpoints; the other two are made from them while a matrix is stored, in groups of
 * QWEN_GROUP elements along k (quant.h has the definition).  A cache can be of the first three and int8.
 */
typedef enum qwen_dtype
{
	QWEN_F32,
	QWEN_F16,
	QWEN_BF16,
	QWEN_INT8,
	QWEN_INT4
} qwen_dtype;

/* Stretches of operations that a device may record. */
#define QWEN_MAX_SEGMENTS 64

/* Elements that share a scale. */
#define QWEN_GROUP 64

/* Tokens in one block of the paged KV cache. */
#define QWEN_KV_BLOCK 16

/* Bounds that attention kernels size their tiles by; configurations beyond them are refused. */
#define QWEN_MAX_HEAD_DIM 512
#define QWEN_MAX_GROUP 64 /* query heads that share one kv head */

/* A weight matrix W[n, k] as the device keeps it; `data` may be packed in the device's own layout. */
typedef struct qwen_matrix
{
	qwen_dtype dtype; /* of the stored elements */
	int64_t n;        /* output features, rows */
	int64_t k;        /* input features, columns */
	void *data;       /* device memory */
	size_t bytes;
} qwen_matrix;

/* One sequence's part of a batch. Its tokens are the n_tokens rows from first_token on. */
typedef struct qwen_batch_seq
{
	int32_t first_token;
	int32_t n_tokens;
	int32_t context;       /* tokens in the cache after this step = position of the last row + 1 */
	const int32_t *blocks; /* [ceil(context / QWEN_KV_BLOCK)] block numbers */
} qwen_batch_seq;

/* A step's work: a flat list of tokens. Host memory, owned by the caller, constant during the step. */
typedef struct qwen_batch
{
	int32_t n_tokens;
	const int32_t *tokens;    /* [n_tokens] ids */
	const int32_t *positions; /* [n_tokens] */
	int32_t n_seqs;
	const qwen_batch_seq *seqs; /* [n_seqs], in order of first_token, covering all tokens */
	int32_t n_logits;
	const int32_t *logit_rows; /* [n_logits] rows of the batch whose logits are wanted, ascending */
} qwen_batch;

/* The heads of an attention layer. */
typedef struct qwen_heads
{
	int32_t n_q;    /* query heads */
	int32_t n_kv;   /* key/value heads; query head j reads kv head j / (n_q / n_kv) */
	int32_t dim;    /* elements of a head */
	int32_t rotary; /* leading elements of a head that RoPE turns, even, <= dim */
	float eps;      /* of the q/k norms */
} qwen_heads;

/* One layer's cache: n_blocks blocks of kv_block_bytes each for keys and for values, laid out as the device likes. */
typedef struct qwen_kv_layer
{
	qwen_dtype dtype; /* as kv_dtype of the device said */
	void *k;
	void *v;
	int64_t n_blocks;
} qwen_kv_layer;

/* The most that a step can ask of a device: what its scratch memory is sized by. 0 where the device has no such part. */
typedef struct qwen_needs
{
	int32_t rows;       /* tokens of a batch, and so of a product of a layer */
	int64_t k;          /* elements of a row of such a product, at most */
	int32_t logit_rows; /* rows whose logits are wanted */
	int64_t head_k;     /* elements of such a row */
	int64_t vocab;      /* rows of the head */
	int32_t sequences;  /* of a batch */
	int64_t blocks;     /* in the block lists of a batch, all in all */
	int32_t n_q, dim;   /* as in qwen_heads */
} qwen_needs;

/* Items [begin, end) of a loop that the device's threads share. */
typedef void (*qwen_loop_fn)(void *arg, int64_t begin, int64_t end);

typedef struct qwen_device qwen_device;

typedef struct qwen_ops
{
	const char *name; /* "ref", "portable", "avx2", ... */

	/* Ends the device; what was allocated has been freed before. */
	void (*close)(qwen_device *dev);

	/* ---- memory: bytes of device memory, zeroed; NULL when there is none ---- */
	void *(*alloc)(qwen_device *dev, size_t bytes);
	void (*free)(qwen_device *dev, void *p, size_t bytes);
	bool (*upload)(qwen_device *dev, void *d_dst, const void *src, size_t bytes);
	bool (*download)(qwen_device *dev, void *dst, const void *d_src, size_t bytes);
	bool (*synchronize)(qwen_device *dev); /* false: the device has failed for good */

	/* ---- between devices ---- */
	/* Once, at load, the devices of one stage, in the order of their shards: they will sum. */
	bool (*join)(qwen_device *const *devs, int n);
	/* d_x[i][count] of each device, activations, become their sum, on each of them. Of the ops of devs[0]. */
	bool (*sum)(qwen_device *const *devs, void *const *d_x, int n, int64_t count);
	/* The same of float rows of the residual stream. */
	bool (*sum_resid)(qwen_device *const *devs, float *const *d_x, int n, int64_t count);
	/* Copies to this device from another one (of any kind), after what is queued there. */
	bool (*copy)(qwen_device *dev, void *d_dst, qwen_device *from, const void *d_src, size_t bytes);

	/* ---- host loops ---- */
	/*
	 * Calls fn for [0, n) in pieces of at most `grain`, on the threads that the device's own operations use, and returns
	 * when all are done.  For work of the engine between two operations: sampling of many rows.  Not while an operation
	 * runs.
	 */
	void (*loop)(qwen_device *dev, int64_t n, int64_t grain, qwen_loop_fn fn, void *arg);

	/* ---- weights ---- */
	/* The type in which the device stores a matrix that is wanted as `wanted`, and the bytes it takes. */
	qwen_dtype (*matrix_dtype)(const qwen_device *dev, qwen_dtype wanted);
	size_t (*matrix_bytes)(const qwen_device *dev, qwen_dtype dtype, int64_t n, int64_t k);
	/*
	 * Stores rows [row, row + n_rows) of *m from host memory src[n_rows, k] of type source, one of the first three; m->data
	 * was zero before.  False when a value does not fit m->dtype (float16 alone can be too narrow) or the device has
	 * failed.  Several threads may store different rows of one matrix at once.
	 */
	bool (*matrix_upload)(qwen_device *dev, qwen_matrix *m, int64_t row, int64_t n_rows, const void *src,
						  qwen_dtype source);
	/* Stores a vector (norm weight, bias) of n elements as float: d_dst[n]. */
	bool (*vector_upload)(qwen_device *dev, float *d_dst, const void *src, qwen_dtype source, int64_t n);

	/* The type in which the device keeps keys and values that are wanted as `wanted`. */
	qwen_dtype (*kv_dtype)(const qwen_device *dev, qwen_dtype wanted);
	/* Bytes of one block of QWEN_KV_BLOCK tokens of one layer: of its keys; the values take the same. */
	size_t (*kv_block_bytes)(const qwen_device *dev, qwen_dtype dtype, const qwen_heads *heads);

	/*
	 * Device memory that the operations need beside their arguments.  The engine allocates it for the largest step, and sets
	 * dev->scratch and dev->needs before the first operation.
	 */
	size_t (*scratch_bytes)(const qwen_device *dev, const qwen_needs *needs);

	/* ---- a step ---- */
	/* Announces the batch whose operations follow, until synchronize; what a device must copy of it, it copies here. */
	bool (*step)(qwen_device *dev, const qwen_batch *batch);
	/*
	 * Brackets a stretch of operations that is the same in each step: layers that follow each other on the device.  `id`
	 * names the stretch, below QWEN_MAX_SEGMENTS.  False: the device has repeated it from what it has recorded, and the
	 * operations are to be left out, segment_end too.
	 */
	bool (*segment_begin)(qwen_device *dev, int id);
	void (*segment_end)(qwen_device *dev);

	/* ---- operations ---- */
	/* out[t, :] = row ids[t] of E, t < n, zeros where the id is -1; ids are checked by the caller. */
	void (*embed)(qwen_device *dev, float *d_out, const qwen_matrix *e, const int32_t *ids, int32_t n);
	/* resid[t, :] += delta[t, :] when delta is given; out[t, :] = resid * rsqrt(mean(resid^2) + eps) * w. [n, h] */
	void (*add_rmsnorm)(qwen_device *dev, void *d_out, float *d_resid, const void *d_delta, const float *d_w, int32_t n,
						int64_t h, float eps);
	/* resid[t, :] += delta[t, :], as add_rmsnorm does it. [n, h] */
	void (*add)(qwen_device *dev, float *d_resid, const void *d_delta, int32_t n, int64_t h);
	/* out[t, n] = W x[t, k] + bias (bias may be NULL), t < rows. */
	void (*linear)(qwen_device *dev, void *d_out, const qwen_matrix *w, const float *d_bias, const void *d_x,
				   int32_t rows);
	/*
	 * qkv[t, (n_q + 2 n_kv) * dim] in place: RMS norm of each q and k head (when the norm weights are given), RoPE with
	 * d_rope[max_positions, rotary] = cos (rotary / 2) | sin (rotary / 2) per position, then k and v rows are written to
	 * their cache cells.
	 */
	void (*qk_rope_store)(qwen_device *dev, void *d_qkv, const float *d_q_norm, const float *d_k_norm,
						  const float *d_rope, const qwen_heads *heads, const qwen_kv_layer *kv,
						  const qwen_batch *batch);
	/* out[t, n_q * dim] = softmax(q k^T / sqrt(dim), causal) v, over the cells of the token's own sequence. */
	void (*attention)(qwen_device *dev, void *d_out, const void *d_qkv, const qwen_heads *heads,
					  const qwen_kv_layer *kv, const qwen_batch *batch);
	/* out[t, f] = silu(x[t, 0..f)) * x[t, f..2f) */
	void (*swiglu)(qwen_device *dev, void *d_out, const void *d_x, int32_t n, int64_t f);
	/* out[i, :] = x[rows[i], :], i < n */
	void (*gather)(qwen_device *dev, void *d_out, const void *d_x, const int32_t *rows, int32_t n, int64_t h);
	/* logits[rows, n] as host floats = W x[rows, k]; the last operation of a step, synchronous. */
	bool (*logits)(qwen_device *dev, float *out, const qwen_matrix *head, const void *d_x, int32_t rows);
} qwen_ops;

struct qwen_device
{
	char name[16]; /* "cpu", "cpu:1", "cuda:0" */
	const qwen_ops *ops;
	bool host;        /* its memory is the process's own */
	qwen_dtype act;   /* of activations */
	size_t act_bytes; /* of one of them */
	int n_threads;
	void *scratch; /* device memory as scratch_bytes says of needs, the engine's */
	qwen_needs needs;
	float *d_logits; /* [needs.logit_rows, needs.vocab] device memory, the engine's; of devices that are not host */
	void *priv;      /* the implementation's own state */
	bool beside;     /* priv is another device's */
};

/*
 * Opens a device.  kernels: "auto", "ref", "portable", "avx2", "avx512", ...: a set that this processor or build lacks
 * is an error that names what is missing.  n_threads 0: as many as the cores the process may use.  On failure NULL, and
 * err holds one sentence fragment.
 */
qwen_device *qwen_device_open(const char *name, const char *kernels, int n_threads, char *err, size_t errlen);
/* Another device on the same processor, which uses the threads of `dev`: one of them works at a time. Closed before. */
qwen_device *qwen_device_open_beside(const qwen_device *dev, const char *name, char *err, size_t errlen);
void qwen_device_close(qwen_device *dev);

/* The sets compiled into this build, NULL-terminated, best first, and whether this processor can run one. */
const char *const *qwen_kernel_sets(void);
bool qwen_kernel_set_usable(const char *name, char *why, size_t whylen);

/* Cores that this process may use, at least 1. */
int qwen_cpu_count(void);

/* Bytes of an element; of the first three alone, the others have no elements of their own. */
size_t qwen_dtype_bytes(qwen_dtype dtype);
const char *qwen_dtype_name(qwen_dtype dtype);

#endif
