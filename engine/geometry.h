/*
 * geometry.h
 *	  The shapes of every Qwen family, from config.json alone.
 *
 * What the planner computes with: which tensors a layer has and how large
 * they are, whole or as one of several tensor-parallel shards.  It knows more
 * families than the loader does, so that a plan can be made for any of them.
 * The facts are in qwen-models.md: keys in 2 and 8.1, tensors in 6 and 8, sums
 * in 7 and 14.
 */
#ifndef QWEN_GEOMETRY_H
#define QWEN_GEOMETRY_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

typedef enum qwen_family
{
	QWEN_FAMILY_QWEN2,
	QWEN_FAMILY_QWEN3,
	QWEN_FAMILY_QWEN2_MOE,
	QWEN_FAMILY_QWEN3_MOE,
	QWEN_FAMILY_QWEN3_NEXT,
	QWEN_FAMILY_QWEN3_5,
	QWEN_FAMILY_QWEN3_5_MOE
} qwen_family;

#define QWEN_MAX_LAYERS 1024

/* Layers differ in two ways, so there are at most four kinds of them. */
#define QWEN_LAYER_LINEAR 1 /* Gated DeltaNet instead of full attention */
#define QWEN_LAYER_SPARSE 2 /* experts instead of one feed-forward network */
#define QWEN_LAYER_KINDS 4

typedef struct qwen_geometry
{
	qwen_family family;
	char dtype[16]; /* as written, or empty */
	int32_t vocab_size;
	int32_t hidden_size;
	int32_t n_layers;
	int32_t intermediate_size; /* of dense layers */
	int32_t n_heads;
	int32_t n_kv_heads;
	int32_t head_dim;
	int32_t rotary;      /* elements of a head that RoPE turns */
	bool gated;          /* q_proj brings a gate beside each query */
	bool attention_bias; /* q, k, v */
	bool output_bias;
	bool qk_norm;
	bool tied;

	/* sparse layers */
	int32_t n_experts;
	int32_t n_experts_used;
	int32_t expert_size;
	int32_t shared_size; /* of the shared expert, 0: none */

	/* DeltaNet layers */
	int32_t conv_kernel;
	int32_t n_key_heads;
	int32_t n_value_heads;
	int32_t key_dim; /* of a head */
	int32_t value_dim;

	int32_t max_positions; /* max_position_embeddings */
	int32_t length_limit;  /* the same, or what YaRN makes of it */

	uint8_t kinds[QWEN_MAX_LAYERS]; /* of each layer: QWEN_LAYER_ bits */
} qwen_geometry;

/* `path`: a model folder, or a config.json itself. */
qwen_status qwen_geometry_read(const char *path, qwen_geometry *out, qwen_error *err);
/* The same from text in memory. */
qwen_status qwen_geometry_parse(const char *config, size_t len, qwen_geometry *out, qwen_error *err);

const char *qwen_family_name(qwen_family family);

/* A tensor as the engine keeps it: q, k and v are one matrix, gate and up too. */
typedef struct qwen_shape
{
	int64_t n;     /* rows, or the elements of a vector */
	int64_t k;     /* columns; 0: a vector, which is always kept as float32 */
	int64_t count; /* how many of them: experts */
	bool exact;    /* small and sensitive (routers, decay inputs): never quantised */
} qwen_shape;

/* More than any kind of layer has. */
#define QWEN_MAX_SHAPES 16

/*
 * The tensors that one of `shards` tensor-parallel devices holds of a layer of that kind; 1 shard is the whole layer.
 * qwen_geometry_splits must have agreed to the number.  Returns how many there are.
 */
int qwen_layer_shapes(const qwen_geometry *g, int kind, int shards, qwen_shape out[QWEN_MAX_SHAPES]);

/* Key and value heads that each of the shards holds: at least one, so some are held more than once. */
int32_t qwen_geometry_kv_heads(const qwen_geometry *g, int shards);

/* Whether heads, widths and vocabulary can be divided among so many devices; if not, err says what is in the way. */
qwen_status qwen_geometry_splits(const qwen_geometry *g, int shards, qwen_error *err);

/* In all, a shared embedding counted once. */
uint64_t qwen_geometry_parameters(const qwen_geometry *g);

#endif
