/*
 * cpu_kv.h
 *	  The paged cache of the threaded sets: its layout, and how keys and values
 *	  get there, with head norms and RoPE on the way. Included by
 *	  cpu_kernels.h.
 *
 * A block holds 16 tokens, kv head after kv head; a head is contiguous.  In it
 * the elements stand as packed weights do (cpu_layout.h): steps of 16 lanes,
 * and in each lane the neighbours that one instruction multiplies.  For keys a
 * lane is a token and the steps run over the head's elements; for values a
 * lane is one of 16 elements and the steps run over the tokens:
 *
 *				keys				values
 *	  float32	[dim][16]			[dim' / 16][16][16]
 *	  float16	[dim][16]			[dim' / 16][16][16]
 *	  bfloat16	[dim / 2][16][2]	[dim' / 16][8][16][2]
 *	  int8		[dim / 4][16][4]	[dim' / 16][4][16][4]
 *
 * dim' is dim rounded up to 16; both sides take 16 dim' elements.  So the
 * scores of 16 tokens, and 16 elements of the output, come from whole vectors
 * and broadcast factors, with no sum across a vector.  The four neighbours of
 * int8 stand in the order 0, 2, 1, 3: two shifts of 16-bit lanes then make the
 * pairs 0, 1 and 2, 3 of it.  Behind the elements of an int8 head are the
 * scales of its 16 tokens, as float.
 *
 * Attention reads whole blocks and multiplies what lies behind a sequence's
 * end by zero, so that must be a number: who writes the first token of a block
 * and does not fill it clears its values.  Blocks are the items of the loop
 * over threads, for two tokens share words of a block.
 */
#include "cpu_layout.h"

/* Bytes of the 16 scales of an int8 head. */
#define KV_SCALE_BYTES ((size_t) QWEN_KV_BLOCK * sizeof(float))

/* Neighbours in a lane. */
INLINE int
kv_depth(qwen_dtype dtype)
{
	return dtype == QWEN_INT8 ? 4 : dtype == QWEN_BF16 ? 2 : 1;
}

INLINE size_t
kv_element_bytes(qwen_dtype dtype)
{
	return dtype == QWEN_INT8 ? 1 : dtype == QWEN_F32 ? 4 : 2;
}

/* Bytes of a step of 16 lanes. */
INLINE size_t
kv_step_bytes(qwen_dtype dtype)
{
	return (size_t) (STRIP * kv_depth(dtype)) * kv_element_bytes(dtype);
}

/* Bytes of the elements of a head in a block. */
INLINE size_t
kv_elements_bytes(qwen_dtype dtype, int32_t dim)
{
	return (size_t) round_up(dim, STRIP) * QWEN_KV_BLOCK * kv_element_bytes(dtype);
}

INLINE size_t
kv_head_bytes(qwen_dtype dtype, int32_t dim)
{
	return kv_elements_bytes(dtype, dim) + (dtype == QWEN_INT8 ? KV_SCALE_BYTES : 0);
}

static size_t
cpu_kv_block_bytes(const qwen_device *dev, qwen_dtype dtype, const qwen_heads *heads)
{
	return (size_t) heads->n_kv * kv_head_bytes(dtype, heads->dim);
}

/* Kv head g of a block of keys or values. */
INLINE char *
kv_head(void *cache, qwen_dtype dtype, const qwen_heads *heads, int32_t block, int32_t g)
{
	return (char *) cache + ((size_t) block * (size_t) heads->n_kv + (size_t) g) * kv_head_bytes(dtype, heads->dim);
}

/* Elements of a row of d_qkv. */
INLINE int64_t
qkv_width(const qwen_heads *heads)
{
	return (int64_t) (heads->n_q + 2 * heads->n_kv) * heads->dim;
}

/* The position of the first token of the step. */
INLINE int32_t
first_position(const qwen_batch_seq *seq)
{
	return seq->context - seq->n_tokens;
}

/* ---- narrowing ---- */

/* The bits of float16. Held to the range: one infinite key would spoil its whole sequence. */
INLINE vi
vf_f16_bits(vf v)
{
	v = vf_min(vf_max(v, vf_set(-65504.0f)), vf_set(65504.0f));
#if VL == 16
	return (vi) _mm512_cvtepu16_epi32(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif VL == 8
	return (vi) _mm256_cvtepu16_epi32(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
	return (vi){qwen_float_f16(v[0]), qwen_float_f16(v[1]), qwen_float_f16(v[2]), qwen_float_f16(v[3])};
#endif
}

/* As qwen_float_bf16. */
INLINE vi
vf_bf16_bits(vf v)
{
	vi u = (vi) v;
	vi nan = (u & 0x7fffffff) > 0x7f800000;
	vi rounded = u + 0x7fff + ((u >> 16) & 1);

	return (((rounded & ~nan) | ((u | 0x400000) & nan)) >> 16) & 0xffff;
}

/* x[dim] at i, zero beyond the end. */
INLINE vf
row_load(const float *x, int32_t i, int32_t dim)
{
	return i + VL <= dim ? vf_load(x + i) : i < dim ? vf_load_tail(x, i, dim - i, QWEN_F32) : (vf){0};
}

/* The scale of an int8 row, and what to multiply its elements by: as qwen_quantize_row. */
INLINE float
row_scale(const float *x, int32_t dim, float *inverse)
{
	vf largest = {0};
	float max;

	for (int32_t i = 0; i < dim; i += VL)
		largest = vf_max(vf_abs(row_load(x, i, dim)), largest);
	max = vf_reduce_max(largest);
	*inverse = max > 0 ? 127.0f / max : 0;
	return max / 127.0f;
}

/* bits[dim'] = x[dim] in the cache's type, an element to a word. */
INLINE void
narrow_row(uint32_t *bits, const float *x, int32_t dim, qwen_dtype dtype, float inverse)
{
	for (int32_t i = 0; i < round_up(dim, STRIP); i += VL)
	{
		vf v = row_load(x, i, dim);
		vi narrow = (vi) v;

		if (dtype == QWEN_F16)
			narrow = vf_f16_bits(v);
		else if (dtype == QWEN_BF16)
			narrow = vf_bf16_bits(v);
		else if (dtype == QWEN_INT8)
			narrow = vf_round(vf_min(vf_max(v * inverse, vf_set(-127)), vf_set(127))) & 0xff;
		memcpy(bits + i, &narrow, sizeof(narrow));
	}
}

/* ---- into the block ---- */

/* Token t's key: a word or, with float16, half a word of each step. */
INLINE void
put_key(char *head, int t, const uint32_t *bits, int32_t dim, qwen_dtype dtype)
{
	uint32_t *words = (uint32_t *) head + t;

	for (int32_t d = 0; d < dim; d += kv_depth(dtype), words += STRIP)
		if (dtype == QWEN_F32)
			*words = bits[d];
		else if (dtype == QWEN_F16)
			((uint16_t *) head)[d * STRIP + t] = (uint16_t) bits[d];
		else if (dtype == QWEN_BF16)
			*words = bits[d] | bits[d + 1] << 16;
		else
			*words = bits[d] | bits[d + 2] << 8 | bits[d + 1] << 16 | bits[d + 3] << 24;
}

/* Token t's value: in each word of its steps its own bits. */
INLINE void
put_value(char *head, int t, const uint32_t *bits, int32_t dim, qwen_dtype dtype)
{
	static const int places[] = {0, 16, 8, 24}; /* of int8's four neighbours */
	int depth = kv_depth(dtype);
	int shift = dtype == QWEN_INT8 ? places[t % 4] : dtype == QWEN_BF16 ? t % 2 * 16 : 0;
	vi keep = ~((vi){0} + ((dtype == QWEN_INT8 ? 0xff : 0xffff) << shift));

	for (int32_t d = 0; d < dim; d += STRIP)
		for (int i = 0; i < STRIP; i += VL)
		{
			int64_t lane = (int64_t) (d / STRIP * (QWEN_KV_BLOCK / depth) + t / depth) * STRIP + i;
			vi value = vi_load(bits + d + i), word;

			if (dtype == QWEN_F16)
			{
				vhalf half = __builtin_convertvector(value, vhalf);

				memcpy((uint16_t *) head + lane, &half, sizeof(half));
				continue;
			}
			word = value;
			if (dtype != QWEN_F32)
				word = (vi_load((uint32_t *) head + lane) & keep) | value << shift;
			memcpy((uint32_t *) head + lane, &word, sizeof(word));
		}
}

/* Key and value of one token and kv head. */
INLINE void
put_token(char *k_head, char *v_head, int t, const float *k, const float *v, int32_t dim, qwen_dtype dtype)
{
	_Alignas(64) uint32_t bits[QWEN_MAX_HEAD_DIM];
	float *k_scales = (float *) (k_head + kv_elements_bytes(dtype, dim));
	float *v_scales = (float *) (v_head + kv_elements_bytes(dtype, dim));
	float inverse = 0;

	if (dtype == QWEN_INT8)
		k_scales[t] = row_scale(k, dim, &inverse);
	narrow_row(bits, k, dim, dtype, inverse);
	put_key(k_head, t, bits, dim, dtype);
	if (dtype == QWEN_INT8)
		v_scales[t] = row_scale(v, dim, &inverse);
	narrow_row(bits, v, dim, dtype, inverse);
	put_value(v_head, t, bits, dim, dtype);
}

static void
put_any(char *k_head, char *v_head, int t, const float *k, const float *v, int32_t dim, qwen_dtype dtype)
{
	if (dtype == QWEN_F32)
		put_token(k_head, v_head, t, k, v, dim, QWEN_F32);
	else if (dtype == QWEN_F16)
		put_token(k_head, v_head, t, k, v, dim, QWEN_F16);
	else if (dtype == QWEN_BF16)
		put_token(k_head, v_head, t, k, v, dim, QWEN_BF16);
	else
		put_token(k_head, v_head, t, k, v, dim, QWEN_INT8);
}

/* ---- norm, rotate, store ---- */

typedef struct store_job
{
	float *qkv;          /* [n_tokens, (n_q + 2 n_kv) dim] */
	const float *q_norm; /* [dim] or NULL */
	const float *k_norm; /* [dim] or NULL */
	const float *rope;   /* [max_positions, rotary] */
	const qwen_heads *heads;
	const qwen_kv_layer *kv;
	const qwen_batch *batch;
} store_job;

/* Pairs element i with i + half; table = cos[half] | sin[half]. */
INLINE void
rope_row(float *x, const float *table, int32_t half)
{
	int32_t i = 0;

	for (; i + VL <= half; i += VL)
	{
		vf a = vf_load(x + i), b = vf_load(x + i + half);
		vf c = vf_load(table + i), s = vf_load(table + i + half);

		vf_store(x + i, a * c - b * s);
		vf_store(x + i + half, b * c + a * s);
	}
	for (; i < half; i++)
	{
		float a = x[i], b = x[i + half];

		x[i] = a * table[i] - b * table[i + half];
		x[i + half] = b * table[i] + a * table[i + half];
	}
}

/* Row t of the batch, a token at `position` whose cache block is `block`. */
static void
store_token(const store_job *job, int64_t t, int32_t position, int32_t block)
{
	const qwen_heads *heads = job->heads;
	qwen_dtype dtype = job->kv->dtype;
	int32_t dim = heads->dim;
	float *q = job->qkv + t * qkv_width(heads);
	float *k = q + (int64_t) heads->n_q * dim;
	float *v = k + (int64_t) heads->n_kv * dim;

	for (int32_t j = 0; j < heads->n_q + heads->n_kv; j++)
	{
		const float *w = j < heads->n_q ? job->q_norm : job->k_norm;
		float *x = q + (int64_t) j * dim;

		if (w)
			norm_row(x, x, w, dim, heads->eps);
		rope_row(x, job->rope + (int64_t) position * heads->rotary, heads->rotary / 2);
	}
	for (int32_t g = 0; g < heads->n_kv; g++)
		put_any(kv_head(job->kv->k, dtype, heads, block, g), kv_head(job->kv->v, dtype, heads, block, g),
				position % QWEN_KV_BLOCK, k + (int64_t) g * dim, v + (int64_t) g * dim, dim, dtype);
}

/* The tokens of the step that fall into the i-th block that the step writes to. */
static void
store_block(const store_job *job, const qwen_batch_seq *seq, int64_t i)
{
	int32_t first = first_position(seq);
	int32_t start = (int32_t) (first / QWEN_KV_BLOCK + i) * QWEN_KV_BLOCK;
	int32_t from = first > start ? first : start;
	int32_t to = seq->context < start + QWEN_KV_BLOCK ? seq->context : start + QWEN_KV_BLOCK;
	int32_t block = seq->blocks[start / QWEN_KV_BLOCK];
	size_t bytes = cpu_kv_block_bytes(NULL, job->kv->dtype, job->heads);

	if (from == start && to < start + QWEN_KV_BLOCK)
		memset((char *) job->kv->v + (size_t) block * bytes, 0, bytes);
	for (int32_t position = from; position < to; position++)
		store_token(job, seq->first_token + position - first, position, block);
}

/* Blocks that the step writes to. */
INLINE int64_t
written_blocks(const qwen_batch_seq *seq)
{
	return (seq->context + QWEN_KV_BLOCK - 1) / QWEN_KV_BLOCK - first_position(seq) / QWEN_KV_BLOCK;
}

/* Items are the blocks that the step writes to, sequence after sequence. */
static void
store_piece(void *arg, int64_t begin, int64_t end)
{
	const store_job *job = arg;
	const qwen_batch_seq *seq = job->batch->seqs;
	int64_t before = 0; /* items of the sequences before seq */

	for (int64_t item = begin; item < end; item++)
	{
		while (item >= before + written_blocks(seq))
			before += written_blocks(seq++);
		store_block(job, seq, item - before);
	}
}

static void
cpu_qk_rope_store(qwen_device *dev, void *d_qkv, const float *d_q_norm, const float *d_k_norm, const float *d_rope,
				  const qwen_heads *heads, const qwen_kv_layer *kv, const qwen_batch *batch)
{
	store_job job = {d_qkv, d_q_norm, d_k_norm, d_rope, heads, kv, batch};
	int64_t items = 0;

	for (int32_t s = 0; s < batch->n_seqs; s++)
		items += written_blocks(&batch->seqs[s]);
	qwen_pool_run(dev->priv, items, 1, store_piece, &job);
}
