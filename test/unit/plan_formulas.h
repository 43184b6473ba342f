/*
 * plan_formulas.h
 *	  The specification's formulas for what a device holds, in terms of the
 *	  published figures of a model alone.
 */
#ifndef QWEN_PLAN_FORMULAS_H
#define QWEN_PLAN_FORMULAS_H

#include "engine/plan.h"
#include "plan_models.h"

#define GIB ((uint64_t) 1 << 30)
#define MIB ((uint64_t) 1 << 20)

/* What a case asks for, in numbers. */
typedef struct figures
{
	const released *m;
	bool cpu;
	uint64_t tp;
	const char *type; /* of the layers' matrices: "none" (16 bits), "int8", "int4" */
	bool narrow_kv;   /* int8 cache */
	uint64_t rows;    /* max_sequences */
	uint64_t length;
} figures;

static inline uint64_t
up(uint64_t n, uint64_t unit)
{
	return (n + unit - 1) / unit * unit;
}

static inline uint64_t
most(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* Of W[n, k]: 16, 8.25 or 4.5 bits an element; GPUs align elements and scales, processors pack strips of 16 rows. */
static inline uint64_t
matrix(const figures *f, const char *type, uint64_t n, uint64_t k)
{
	uint64_t groups = up(k, 64) / 64;
	bool wide = !strcmp(type, "none"), eight = !strcmp(type, "int8");
	uint64_t strip = wide ? up(k, 32) * 32 : groups * (eight ? 16 * 66 : 16 * 36);

	if (f->cpu)
		return up(n, 16) / 16 * up(strip, 64);
	if (wide)
		return up(n * k * 2, 256);
	return up(n * groups * (eight ? 64 : 32), 256) + up(n * groups * (eight ? 2 : 4), 256);
}

static inline uint64_t
layer_weights(const figures *f, int layer)
{
	const released *m = f->m;
	uint64_t h = (uint64_t) m->h, d = (uint64_t) m->dim, q = (uint64_t) m->heads / f->tp * d;
	uint64_t kv = most(1, (uint64_t) m->kv_heads / f->tp) * d, sum = 2 * h * 4;

	if (is_full(m, layer))
	{
		uint64_t qkv = (is_hybrid(m) ? 2 : 1) * q + 2 * kv;

		sum += matrix(f, f->type, qkv, h) + matrix(f, f->type, h, q) + (has_qkv_bias(m) ? qkv : 2 * d) * 4;
	}
	else
	{
		uint64_t heads = (uint64_t) m->value_heads / f->tp, key = 16 / f->tp * 128, value = heads * 128;

		sum += matrix(f, f->type, 2 * key + 2 * value, h) + matrix(f, "none", 2 * heads, h) +
			   matrix(f, f->type, h, value) + ((2 * key + value) * 4 + 2 * heads + 128) * 4;
	}
	if (m->experts)
	{
		uint64_t width = (uint64_t) m->expert_size / f->tp, shared = (uint64_t) m->shared / f->tp;

		sum += matrix(f, "none", (uint64_t) m->experts, h) +
			   (uint64_t) m->experts * (matrix(f, f->type, 2 * width, h) + matrix(f, f->type, h, width));
		if (shared)
			sum += matrix(f, f->type, 2 * shared, h) + matrix(f, f->type, h, shared) + h * 4;
		return sum;
	}
	return sum + matrix(f, f->type, 2 * (uint64_t) m->f / f->tp, h) + matrix(f, f->type, h, (uint64_t) m->f / f->tp);
}

static inline uint64_t
edge_weights(const figures *f)
{
	return matrix(f, !strcmp(f->type, "none") ? "none" : "int8", (uint64_t) f->m->vocab / f->tp, (uint64_t) f->m->h);
}

/* Keys and values of a token in one layer. */
static inline uint64_t
token_bytes(const figures *f)
{
	uint64_t heads = most(1, (uint64_t) f->m->kv_heads / f->tp), d = (uint64_t) f->m->dim;

	return 2 * heads * (f->narrow_kv ? d + 4 : 2 * d);
}

/* A step of 512 tokens in one layer: the larger of its two phases. */
static inline uint64_t
layer_activations(const figures *f, int layer)
{
	const released *m = f->m;
	uint64_t b = f->cpu ? 4 : 2, unit = f->cpu ? 64 : 256, t = 512, h = (uint64_t) m->h, d = (uint64_t) m->dim;
	uint64_t q = (uint64_t) m->heads / f->tp * d, kv = most(1, (uint64_t) m->kv_heads / f->tp) * d;
	uint64_t heads = (uint64_t) m->value_heads / f->tp, key = 16 / f->tp * 128, value = heads * 128, mixer, ffn;
	uint64_t width = (uint64_t) (m->experts ? m->shared : m->f) / f->tp;

	if (is_full(m, layer))
		mixer = up(t * ((is_hybrid(m) ? 2 : 1) * q + 2 * kv) * b, unit) + t * q * b;
	else
		mixer = up(t * (2 * key + 2 * value + 2 * heads) * b, unit) + up(t * value * b, unit) +
				t / 64 * heads * 64 * 64 * 4 * 3;
	ffn = up(t * 2 * width * b, unit) + t * width * b;
	if (m->experts)
		ffn += up(t * (uint64_t) m->used * (h + 3 * (uint64_t) m->expert_size / f->tp) * b, unit) +
			   up(t * (uint64_t) m->experts * 4, unit) + 2 * t * (uint64_t) m->used * 4;
	return most(mixer, ffn);
}

/* Elements of the longest row that a product of the layer takes. */
static inline uint64_t
layer_row(const figures *f, int layer)
{
	const released *m = f->m;
	uint64_t mixer = is_full(m, layer) ? (uint64_t) (m->heads * m->dim) : (uint64_t) m->value_heads * 128;
	uint64_t ffn = (uint64_t) (m->experts ? (m->shared > m->expert_size ? m->shared : m->expert_size) : m->f);

	return most((uint64_t) m->h, most(mixer, ffn) / f->tp);
}

/* A processor narrows rows: whole groups, 2 bytes an element. row: the longest, 0 without layers. */
static inline uint64_t
cpu_scratch(const figures *f, uint64_t row, bool head)
{
	return most(512 * 2 * up(row, 64), head ? f->rows * 2 * up((uint64_t) f->m->h, 64) : 0);
}

/*
 * A GPU has 32 MiB for cuBLAS and 32 MiB for widened weights, partial sums of decoding in 32 splits at most, and the
 * step's batch: 7 numbers a token, 9 a sequence, its logit rows, and all blocks of all sequences.
 */
static inline uint64_t
gpu_scratch(const figures *f, uint64_t row, bool head)
{
	const released *m = f->m;
	uint64_t tokens = most(512, head ? f->rows : 0), logit_rows = head ? f->rows : 0;
	uint64_t partials = row ? f->rows * ((uint64_t) m->heads / f->tp) * 32 * ((uint64_t) m->dim + 2) * 4 : 0;
	uint64_t batch = 7 * tokens + 9 * f->rows + logit_rows + f->rows * (up(f->length, 16) / 16);

	return 64 * MIB + up(partials, 256) + up(4 * batch, 256);
}

/* Of the engine beside its model, shared by the shards of the head: 16 threads, of which as many draw as have rows. */
static inline uint64_t
engine_bytes(const figures *f, uint64_t blocks)
{
	uint64_t vocab = (uint64_t) f->m->vocab, drawing = f->rows < 16 ? f->rows : 16;
	uint64_t whole = vocab * 101 + drawing * vocab * 16 + 16 * 704 * 1024 + f->rows * 4096 + 4 * MIB;

	return (whole + f->tp - 1) / f->tp + blocks * (384 / f->tp);
}

/* All of a device, from the layers that the plan puts there and the size of the plan's cache. */
static inline qwen_plan_usage
expected_usage(const figures *f, const qwen_plan *plan, int device)
{
	const released *m = f->m;
	uint64_t b = f->cpu ? 4 : 2, unit = f->cpu ? 64 : 256, h = (uint64_t) m->h, phase = 0, row = 0;
	qwen_plan_usage u = {0};
	int full = 0, linear = 0;
	bool embed = false, head = false, used;

	for (int i = 0; i < plan->tensor_parallel; i++)
	{
		embed |= plan->stages[plan->embed_stage][i] == device;
		head |= plan->stages[plan->head_stage][i] == device;
		for (int layer = 0; layer < m->layers; layer++)
			if (plan->stages[plan->layer_stage[layer]][i] == device)
			{
				u.layers += layer_weights(f, layer);
				phase = most(phase, layer_activations(f, layer));
				row = most(row, layer_row(f, layer));
				full += is_full(m, layer);
				linear += !is_full(m, layer);
			}
	}
	used = embed || head || full + linear > 0;
	u.embed = embed ? edge_weights(f) : 0;
	u.head = head ? h * 4 + (m->tied && embed ? 0 : edge_weights(f)) : 0;
	u.kv = plan->kv_blocks * 16 * (uint64_t) full * token_bytes(f);
	u.state = (uint64_t) plan->state_slots * (uint64_t) linear *
			  ((uint64_t) m->value_heads / f->tp * 128 * 128 * 4 +
			   (2 * 16 / f->tp * 128 + (uint64_t) m->value_heads / f->tp * 128) * 3 * b);
	if (!used)
		return u;
	u.activations = up(512 * h * 4, unit) + 2 * up(512 * h * b, unit) + phase + (head ? up(f->rows * h * b, unit) : 0);
	u.scratch = f->cpu ? cpu_scratch(f, row, head) : gpu_scratch(f, row, head);
	u.logits = head ? f->rows * ((uint64_t) m->vocab / f->tp) * 4 : 0;
	u.rope = full ? f->length * (uint64_t) (is_hybrid(m) ? 64 : m->dim) * 4 : 0;
	u.overhead = f->cpu ? (head ? engine_bytes(f, plan->kv_blocks) : 0) : (512 + 64 + (f->tp > 1 ? 128 : 0)) * MIB;
	u.margin = (f->cpu ? 4 : 256) * MIB;
	return u;
}

#endif
