/*
 * plan.h
 *	  What each device will hold, before anything is loaded.
 *
 * A plan is a pure function of settings, the model's geometry and the devices
 * that there are (or that somebody described): it opens nothing, remembers
 * nothing and prints nothing.  It either places every tensor, the cache and
 * the buffers, or refuses with the device, the bytes that are missing and the
 * settings that would do.  Nothing is ever made smaller silently.
 *
 * The model is a row of items: the embedding, the layers, the head with the
 * last norm.  Items go to stages; a stage is one device, or as many as
 * qwen.tensor_parallel says, which then hold equal shards of its items.
 */
#ifndef QWEN_PLAN_H
#define QWEN_PLAN_H

#include "../kernels/kernels.h"
#include "geometry.h"

#define QWEN_PLAN_MAX_DEVICES 64
#define QWEN_PLAN_MAX_REMEDIES 8
#define QWEN_PLAN_MAX_CHANGES 4

typedef enum qwen_device_kind
{
	QWEN_DEVICE_CPU,
	QWEN_DEVICE_CUDA
} qwen_device_kind;

/* A device as the machine, or a description, has it. */
typedef struct qwen_plan_device
{
	char name[16]; /* "cpu", "cpu:1", "cuda:0", "cuda:0.1" */
	qwen_device_kind kind;
	uint64_t total;   /* bytes */
	uint64_t free;    /* bytes that we may use now */
	double bandwidth; /* bytes a second that it reads, 0: unknown */
	bool has_context; /* our context on this GPU is made already, and not part of `free` */
} qwen_plan_device;

/* The settings of the same names, NULL or 0: their defaults. */
typedef struct qwen_plan_settings
{
	const char *device_map;   /* a strategy, a device, or a JSON map */
	const char *max_memory;   /* "cuda:0=20GiB,cpu=64GiB" */
	const char *dtype;        /* of what is not quantised; auto: the checkpoint's */
	const char *quantization; /* none, int8, int4 */
	const char *kv_dtype;     /* auto: as dtype */
	const char *offload;      /* off, cpu */
	int tensor_parallel;
	uint64_t kv_memory; /* of all devices together; 0: auto */
	int max_model_len;
	int max_sequences;
	int step_tokens; /* most tokens of one forward call */
	int threads;     /* of the engine */
} qwen_plan_settings;

#define QWEN_PLAN_MAX_SEQUENCES 256
#define QWEN_PLAN_STEP_TOKENS 512
#define QWEN_PLAN_THREADS 16

/* Bytes on one device, by what they are for. */
typedef struct qwen_plan_usage
{
	uint64_t embed; /* weights */
	uint64_t layers;
	uint64_t head;        /* and the last norm; nothing for a tied head beside its embedding */
	uint64_t kv;          /* keys and values */
	uint64_t state;       /* of DeltaNet layers */
	uint64_t activations; /* of a step: the residual stream and the larger of its phases */
	uint64_t logits;
	uint64_t scratch; /* of the operations */
	uint64_t rope;
	uint64_t
		overhead; /* of a GPU its context, where it is still to come, and graphs; of a processor what the engine keeps */
	uint64_t margin;
} qwen_plan_usage;

/* What one device gets. */
typedef struct qwen_plan_share
{
	qwen_plan_device device;
	uint64_t limit;  /* of qwen.max_memory, or UINT64_MAX */
	uint64_t budget; /* bytes that may be planned: the least of free, total and limit */
	qwen_plan_usage usage;
	int n_layers;
	bool embed;
	bool head;
} qwen_plan_share;

/* Settings that would make a refused model fit. */
typedef struct qwen_plan_remedy
{
	int n;
	struct
	{
		char name[24]; /* without "qwen." */
		char value[24];
	} changes[QWEN_PLAN_MAX_CHANGES];
	char text[512]; /* ready to paste into SQL, figures in a comment */
} qwen_plan_remedy;

typedef struct qwen_plan
{
	bool fits;

	int n_devices;
	qwen_plan_share devices[QWEN_PLAN_MAX_DEVICES]; /* in the order given */
	int tensor_parallel;                            /* devices of a stage */

	/* Of each item, its stage; of each stage, its devices (indexes of `devices`), tensor_parallel of them. */
	int n_layers;
	int n_stages;
	uint8_t embed_stage;
	uint8_t head_stage;
	uint8_t layer_stage[QWEN_MAX_LAYERS];
	uint8_t stages[QWEN_PLAN_MAX_DEVICES][QWEN_PLAN_MAX_DEVICES];

	/* types as stored */
	qwen_dtype dtype;
	qwen_dtype layer_dtype; /* dtype, or what it is quantised to */
	qwen_dtype edge_dtype;  /* of embedding and head */
	qwen_dtype kv_dtype;

	int max_model_len;
	int step_tokens;
	uint64_t kv_blocks; /* of QWEN_KV_BLOCK tokens, on every device for the layers that it has */
	uint64_t max_tokens_total;
	int max_sequences; /* of full length that fit, at most as many as the setting says */
	int state_slots;   /* sequences whose recurrent state is kept; of models that have none, 0 */

	/* of a refusal */
	int missing_device;
	uint64_t missing_bytes;
	int n_remedies;
	qwen_plan_remedy remedies[QWEN_PLAN_MAX_REMEDIES];
} qwen_plan;

/*
 * Makes a plan, or a refusal (plan->fits is false then, and all the rest says what was tried).  An error is about the
 * settings: a map with gaps, a device that is not there, a model that does not divide.
 */
qwen_status qwen_plan_make(const qwen_geometry *geometry, const qwen_plan_settings *settings,
						   const qwen_plan_device *devices, int n_devices, qwen_plan *plan, qwen_error *err);

/* The refusal as an error: QWEN_NO_MEMORY with device and bytes, the first remedies as its hint. */
qwen_status qwen_plan_refusal(const qwen_plan *plan, qwen_error *err);

/* Sums over the terms: weights; workspace (activations, logits, scratch, rope); everything. */
uint64_t qwen_plan_weights(const qwen_plan_usage *usage);
uint64_t qwen_plan_workspace(const qwen_plan_usage *usage);
uint64_t qwen_plan_total(const qwen_plan_usage *usage);

/* ---- plan_text.c: the texts that describe memory and devices ---- */

/* "512MB", "2GiB", "1.5 GB" or plain bytes; units are powers of 1024 with and without the i, as the server's are. */
bool qwen_parse_size(const char *text, size_t len, uint64_t *out);

/*
 * "4x22GiB", "2x80GiB,1x24GiB", "cuda:0=22GiB,cpu=64GiB": devices without a name are CUDA devices.  A size may be
 * followed by the bandwidth in GB/s: "80GiB@3350".
 */
qwen_status qwen_plan_describe(const char *text, qwen_plan_device *devices, int *n, qwen_error *err);

/*
 * Puts the devices "cpu:0", "cpu:1" ... that settings name in the place of "cpu", and "cuda:0.0", "cuda:0.1" ...
 * in the place of "cuda:0": several devices may share one processor or GPU, each with its own budget; what has no limit
 * gets an equal part of the rest.
 */
qwen_status qwen_plan_divide(const qwen_plan_settings *settings, qwen_plan_device *devices, int *n, qwen_error *err);

#endif
