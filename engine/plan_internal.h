/*
 * plan_internal.h
 *	  What the files of the planner share. Callers see plan.h.
 *
 *	  plan.c           settings -> problem; the cache; the finished plan
 *	  plan_kind.c      how each kind of device stores things
 *	  plan_terms.c     bytes of a set of items
 *	  plan_strategy.c  items -> stages
 *	  plan_map.c       the same from an explicit map
 *	  plan_remedy.c    what to do about a refusal
 *	  plan_text.c      sizes, limits and devices as texts
 */
#ifndef QWEN_PLAN_INTERNAL_H
#define QWEN_PLAN_INTERNAL_H

#include "plan.h"

/* ---- plan_kind.c ---- */

/* How a kind of device stores things: all that the terms need to know of it. */
typedef struct qwen_plan_kind
{
	uint64_t act_bytes;   /* of an activation; 0: as the model's type has it */
	uint64_t resid_bytes; /* of an element of the residual stream */
	uint64_t align;       /* of the parts of the activations' arena */
	uint64_t (*matrix_bytes)(qwen_dtype dtype, int64_t n, int64_t k);
	uint64_t (*scratch_bytes)(const qwen_needs *needs);
	uint64_t (*engine_bytes)(int64_t vocab, int threads, int sequences); /* where the head is: the engine's own */
	uint64_t block_bytes;                                                /* and of it, for each block of the cache */
	uint64_t context;        /* what a process takes on such a device before it does anything */
	uint64_t overhead;       /* and what a device that is used at all takes for itself */
	uint64_t group_overhead; /* and one that works with others in tensor parallel */
	uint64_t margin;
	uint64_t kv_share; /* an automatic cache takes 1 of so many parts of what the rest leaves */
} qwen_plan_kind;

const qwen_plan_kind *qwen_plan_kind_of(qwen_device_kind kind);

/* ---- plan_terms.c ---- */

/* A set of items: how many layers of each kind, and the ends. */
typedef struct qwen_plan_items
{
	int layers[QWEN_LAYER_KINDS];
	bool embed;
	bool head;
} qwen_plan_items;

/* Bytes of the items on one device of a kind, computed once. */
typedef struct qwen_plan_sizes
{
	bool tied;
	uint64_t edge; /* embedding, or head */
	uint64_t norm;
	uint64_t layer[QWEN_LAYER_KINDS];
	uint64_t kv_block;                 /* of one layer with full attention, keys and values */
	uint64_t state;                    /* of one DeltaNet layer and sequence */
	uint64_t stream;                   /* activations that are always there */
	uint64_t rows;                     /* of the head */
	uint64_t phase[QWEN_LAYER_KINDS];  /* and those of a layer's phases, which come one after the other */
	int64_t longest[QWEN_LAYER_KINDS]; /* elements of a row of a layer's products, at most */
	qwen_needs needs;                  /* of a device that has layers and head, but for k */
	uint64_t logits;
	uint64_t rope;
	uint64_t (*scratch_bytes)(const qwen_needs *needs);
	uint64_t overhead;
	uint64_t engine;       /* with the head */
	uint64_t engine_block; /* and more of it for each block of the cache */
	uint64_t margin;
} qwen_plan_sizes;

/* What is to be placed, and where it may go. */
typedef struct qwen_plan_problem
{
	const qwen_geometry *geometry;
	const qwen_plan_settings *settings;
	const qwen_plan_device *devices; /* [n] */
	int n;
	uint64_t limit[QWEN_PLAN_MAX_DEVICES];
	uint64_t budget[QWEN_PLAN_MAX_DEVICES];

	qwen_dtype dtype;
	qwen_dtype layer_dtype;
	qwen_dtype edge_dtype;
	qwen_dtype kv_dtype;
	int tensor_parallel;
	int max_model_len;
	int max_sequences;
	int step_tokens;
	int threads;
	uint64_t kv_memory;
	bool offload;

	uint64_t sequence_blocks; /* of one sequence of full length */
	uint64_t least_blocks;    /* the plan must hold: those, or what qwen.kv_memory gives */
	uint64_t weighed_blocks;  /* with which pieces are weighed against each other: as many as there may be in the end */
	qwen_plan_sizes sizes[2]; /* by qwen_device_kind, of one shard */
	int n_items;              /* layers + 2 */
	uint16_t before[QWEN_LAYER_KINDS][QWEN_MAX_LAYERS + 1]; /* layers of each kind before layer i */
} qwen_plan_problem;

/* Fills p->sizes and p->before. */
void qwen_plan_measure(qwen_plan_problem *p);

/* Items [first, end): 0 is the embedding, then the layers, the last one is the head. */
qwen_plan_items qwen_plan_range(const qwen_plan_problem *p, int first, int end);

/* What a device of that kind holds with the items, so many cache blocks and sequences with recurrent state. */
void qwen_plan_tally(const qwen_plan_problem *p, qwen_device_kind kind, const qwen_plan_items *items, uint64_t blocks,
					 uint64_t states, qwen_plan_usage *usage);

/* What one more block of the cache costs a device of that kind with the items. */
uint64_t qwen_plan_block_cost(const qwen_plan_problem *p, qwen_device_kind kind, const qwen_plan_items *items);

/* Layers with a cache, and with recurrent state. */
uint64_t qwen_plan_full_layers(const qwen_plan_items *items);
uint64_t qwen_plan_linear_layers(const qwen_plan_items *items);

/* ---- plan_strategy.c, plan_map.c ---- */

/* Where each item goes. */
typedef struct qwen_plan_layout
{
	int n_stages;
	uint8_t stages[QWEN_PLAN_MAX_DEVICES][QWEN_PLAN_MAX_DEVICES]; /* indexes of devices, tensor_parallel each */
	uint8_t item_stage[QWEN_MAX_LAYERS + 2];
} qwen_plan_layout;

/* Bytes that each device of a stage may hold: those of its smallest. */
uint64_t qwen_plan_stage_budget(const qwen_plan_problem *p, const qwen_plan_layout *layout, int stage);

/* The items of a stage, wherever in the row they are. */
qwen_plan_items qwen_plan_stage_items(const qwen_plan_problem *p, const qwen_plan_layout *layout, int stage);

/* Bytes that are missing on the worst stage (*stage) when the cache is as small as may be; 0: it fits. */
uint64_t qwen_plan_shortfall(const qwen_plan_problem *p, const qwen_plan_layout *layout, int *stage);

/* By the setting's words; a layout that does not fit is the one that fails least. */
qwen_status qwen_plan_place(const qwen_plan_problem *p, qwen_plan_layout *layout, qwen_error *err);

/* By a JSON object: {"embed": "cuda:0", "layers": {"0-19": "cuda:0", "20-39": "cuda:1"}, "head": "cuda:1"}. */
qwen_status qwen_plan_place_by_map(const qwen_plan_problem *p, const char *map, qwen_plan_layout *layout,
								   qwen_error *err);

/* Index of the device of that name, or -1. */
int qwen_plan_find_device(const qwen_plan_device *devices, int n, const char *name, size_t len);

/* "unknown device" with those that there are. */
qwen_status qwen_plan_unknown_device(const qwen_plan_device *devices, int n, const char *setting, const char *name,
									 size_t len, qwen_error *err);

/* ---- plan.c, plan_remedy.c, plan_text.c ---- */

/* A plan without remedies. */
qwen_status qwen_plan_solve(const qwen_geometry *geometry, const qwen_plan_settings *settings,
							const qwen_plan_device *devices, int n_devices, qwen_plan *plan, qwen_error *err);

/* Fills plan->remedies of a refusal. Fails for want of memory alone. */
qwen_status qwen_plan_find_remedies(const qwen_geometry *geometry, const qwen_plan_settings *settings,
									const qwen_plan_device *devices, int n_devices, qwen_plan *plan, qwen_error *err);

/* Limits per device of "cuda:0=20GiB,cpu=64GiB"; UINT64_MAX where there is none. */
qwen_status qwen_plan_parse_limits(const char *text, const qwen_plan_device *devices, int n, uint64_t *limit,
								   qwen_error *err);

#endif
