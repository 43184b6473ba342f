/*
 * attention.cu
 *	  Attention: which kernel, and the plain one.
 *
 * The kernels on matrix units want 16-bit activations, a cache of the same
 * type or of int8, and heads of whole tiles of 16 elements: what checkpoints
 * have.  Everything else is done by one kernel in plain float arithmetic, for
 * decoding and for prompts: a block works on up to 16 query heads of one kv
 * head, of one token or of several, and passes over the cache one block of
 * tokens at a time.  It converts a block's keys, then its values, into shared
 * memory, where they serve all its queries.
 *
 * Shared memory bounds the heads: 97 KiB for QWEN_MAX_HEAD_DIM elements, which
 * every GPU from sm_80 on has for a block.  Sums are kept there as well, for
 * heads of any length find no registers that are known to the compiler.
 *
 * In a step with prompts and decoding sequences each kernel has its part.
 */
#include "kernels/cuda/cuda_attention.h"

#include <math.h>

#define THREADS 128
/* The longest heads that a block on matrix units has room for. */
#define MAX_TILED_DIM 256

/* ---- the plain kernel ---- */

/* What a block works on: queries [first, first + n) of the rows from `row` on times the group's heads, heads first. */
typedef struct plain_item
{
	const int32_t *list; /* the sequence's blocks */
	int32_t g;           /* kv head */
	int32_t row;         /* of the step */
	int32_t position;    /* of that row */
	int32_t first, n;
	int32_t split;      /* -1: the only one */
	int32_t begin, end; /* blocks of tokens */
} plain_item;

/* Shared memory; stride: of a row of cells, odd where dim is even, so that cells lie in different banks. */
typedef struct plain_memory
{
	float *queries; /* [QUERY_ROWS][dim] */
	float *sums;    /* [QUERY_ROWS][dim] weighted values */
	float *cells;   /* [QWEN_KV_BLOCK][stride] keys, then values of a block */
	float *weights; /* [QUERY_ROWS][QWEN_KV_BLOCK] scores, then weights */
	float *max;     /* [QUERY_ROWS] */
	float *total;   /* [QUERY_ROWS] */
	float *before;  /* [QUERY_ROWS] what the sums so far are multiplied by */
	int32_t stride;
} plain_memory;

/* Floats from cell to cell. */
static __host__ __device__ inline int32_t
plain_stride(int32_t dim)
{
	return dim + 1;
}

/* What divide_memory divides. */
static size_t
plain_bytes(int32_t dim)
{
	int32_t floats = 2 * QUERY_ROWS * dim + QWEN_KV_BLOCK * plain_stride(dim) + QUERY_ROWS * (QWEN_KV_BLOCK + 3);

	return (size_t) floats * sizeof(float);
}

static __device__ __forceinline__ plain_memory
divide_memory(float *p, int32_t dim)
{
	plain_memory m;

	m.stride = plain_stride(dim);
	m.queries = p;
	m.sums = m.queries + QUERY_ROWS * dim;
	m.cells = m.sums + QUERY_ROWS * dim;
	m.weights = m.cells + QWEN_KV_BLOCK * m.stride;
	m.max = m.weights + QUERY_ROWS * QWEN_KV_BLOCK;
	m.total = m.max + QUERY_ROWS;
	m.before = m.total + QUERY_ROWS;
	return m;
}

/* Blocks: kv head and piece of its queries, item of the list, split. False: nothing to do. */
template <bool decode>
static __device__ __forceinline__ bool
find_item(plain_item &item, const attention_job &job)
{
	cuda_tile tile = {decode ? job.decode[blockIdx.y] : 0, 0, 1, 0};
	int32_t most = decode ? job.group : job.group * CUDA_TILE_ROWS, chunks = (most + QUERY_ROWS - 1) / QUERY_ROWS;
	int32_t all, last;
	cuda_seq seq;

	if (!decode)
		tile = job.tiles[blockIdx.y];
	if (tile.seq < 0)
		return false;
	seq = job.seqs[tile.seq];
	item.list = job.blocks + seq.blocks;
	item.g = (int32_t) blockIdx.x / chunks;
	item.row = seq.first_row + tile.first;
	item.position = seq.context - seq.n_rows + tile.first;
	item.first = (int32_t) blockIdx.x % chunks * QUERY_ROWS;
	all = tile.n * job.group;
	if (item.first >= all)
		return false;
	item.n = all - item.first < QUERY_ROWS ? all - item.first : QUERY_ROWS;
	last = item.position + (item.first + item.n - 1) / job.group;
	item.begin = 0;
	item.end = context_blocks(last + 1);
	item.split = -1;
	if (decode && split_count(seq.context) > 1)
	{
		int32_t each = split_blocks(seq.context);

		item.split = (int32_t) blockIdx.z;
		item.begin = item.split * each;
		item.end = item.begin + each < item.end ? item.begin + each : item.end;
	}
	return item.begin < item.end && (item.split >= 0 || blockIdx.z == 0);
}

/* Of a query: its row of the step, and its head among all n_q. */
static __device__ __forceinline__ int64_t
row_of(const attention_job &job, const plain_item &item, int query)
{
	return item.row + (item.first + query) / job.group;
}

static __device__ __forceinline__ int32_t
head_of(const attention_job &job, const plain_item &item, int query)
{
	return item.g * job.group + (item.first + query) % job.group;
}

/* Queries, times the scale, and empty sums. */
template <typename T>
static __device__ __forceinline__ void
begin_queries(const plain_memory &m, const attention_job &job, const plain_item &item)
{
	const T *qkv = static_cast<const T *>(job.qkv);

	for (int at = (int) threadIdx.x; at < item.n * job.dim; at += THREADS)
	{
		int query = at / job.dim, i = at % job.dim;

		m.queries[at] =
			to_float(qkv[query_at(job, row_of(job, item, query), head_of(job, item, query)) + i]) * job.scale;
		m.sums[at] = 0;
	}
	if ((int) threadIdx.x < QUERY_ROWS)
	{
		m.max[threadIdx.x] = -INFINITY;
		m.total[threadIdx.x] = 0;
	}
}

/* Element i of a cell as float, of int8 with its scale. */
template <typename C>
static __device__ __forceinline__ float
cell_element(const cuda_cache &cache, int32_t block, int32_t g, int32_t cell, int i)
{
	if constexpr (sizeof(C) == 1)
		return (float) cache_cell<C>(cache, block, g, cell)[i] * *cache_scale(cache, block, g, cell);
	else
		return to_float(cache_cell<C>(cache, block, g, cell)[i]);
}

/* A block of tokens as floats; what lies beyond the last token that any query sees becomes zero. */
template <typename C>
static __device__ __forceinline__ void
load_cells(const plain_memory &m, const cuda_cache &cache, const plain_item &item, int32_t block, int32_t tokens)
{
	int32_t number = item.list[block];

	for (int at = (int) threadIdx.x; at < QWEN_KV_BLOCK * cache.dim; at += THREADS)
	{
		int cell = at / cache.dim, i = at % cache.dim;

		m.cells[cell * m.stride + i] =
			block * QWEN_KV_BLOCK + cell < tokens ? cell_element<C>(cache, number, item.g, cell, i) : 0;
	}
}

/* weights[query][cell] = q k, in units of log 2; -inf for what a row must not see: cells behind its own position. */
static __device__ __forceinline__ void
score_cells(const plain_memory &m, const attention_job &job, const plain_item &item, int32_t block)
{
	for (int at = (int) threadIdx.x; at < item.n * QWEN_KV_BLOCK; at += THREADS)
	{
		int query = at / QWEN_KV_BLOCK, cell = at % QWEN_KV_BLOCK;
		const float *q = m.queries + query * job.dim, *k = m.cells + cell * m.stride;
		float sum = 0;

		for (int i = 0; i < job.dim; i++)
			sum = fmaf(q[i], k[i], sum);
		if (block * QWEN_KV_BLOCK + cell > item.position + (item.first + query) / job.group)
			sum = -INFINITY;
		m.weights[at] = sum;
	}
}

/* Scores become weights, one thread a query; each sees a token of its first block. */
static __device__ __forceinline__ void
weigh_cells(const plain_memory &m, const plain_item &item)
{
	int query = (int) threadIdx.x;
	float *w = m.weights + query * QWEN_KV_BLOCK;
	float max, sum = 0;

	if (query >= item.n)
		return;
	max = m.max[query];
	for (int cell = 0; cell < QWEN_KV_BLOCK; cell++)
		max = fmaxf(max, w[cell]);
	for (int cell = 0; cell < QWEN_KV_BLOCK; cell++)
	{
		w[cell] = exp2f(w[cell] - max);
		sum += w[cell];
	}
	m.before[query] = exp2f(m.max[query] - max);
	m.total[query] = fmaf(m.total[query], m.before[query], sum);
	m.max[query] = max;
}

/* sums = sums before + weights V, each thread elements of its own. */
static __device__ __forceinline__ void
add_cells(const plain_memory &m, const attention_job &job, const plain_item &item)
{
	for (int at = (int) threadIdx.x; at < item.n * job.dim; at += THREADS)
	{
		int query = at / job.dim, i = at % job.dim;
		float sum = m.sums[at] * m.before[query];

		for (int cell = 0; cell < QWEN_KV_BLOCK; cell++)
			sum = fmaf(m.weights[query * QWEN_KV_BLOCK + cell], m.cells[cell * m.stride + i], sum);
		m.sums[at] = sum;
	}
}

/* To the rows of out, or to the split's partials. */
template <typename T>
static __device__ __forceinline__ void
give_sums(const plain_memory &m, const attention_job &job, const plain_item &item)
{
	for (int at = (int) threadIdx.x; at < item.n * job.dim; at += THREADS)
	{
		int query = at / job.dim, i = at % job.dim;
		int32_t head = head_of(job, item, query);

		if (item.split < 0)
			static_cast<T *>(job.out)[(row_of(job, item, query) * job.n_q + head) * job.dim + i] =
				from_float<T>(m.sums[at] / m.total[query]);
		else
		{
			float *partial = partial_at(job, (int32_t) blockIdx.y, head, item.split);

			partial[0] = m.max[query];
			partial[1] = m.total[query];
			partial[2 + i] = m.sums[at];
		}
	}
}

/* decode: the items are sequences of the decode list, and split; otherwise tiles of prompts. */
template <typename T, typename C, bool decode>
static __global__ void
__launch_bounds__(THREADS) attend_plain(attention_job job)
{
	CUDA_SHARED(float, shared);
	plain_memory m = divide_memory(shared, job.dim);
	plain_item item;
	int32_t tokens;

	if (!find_item<decode>(item, job))
		return;
	tokens = item.position + (item.first + item.n - 1) / job.group + 1;
	begin_queries<T>(m, job, item);
	for (int32_t block = item.begin; block < item.end; block++)
	{
		load_cells<C>(m, job.k, item, block, tokens);
		__syncthreads();
		score_cells(m, job, item, block);
		__syncthreads();
		weigh_cells(m, item);
		load_cells<C>(m, job.v, item, block, tokens);
		__syncthreads();
		add_cells(m, job, item);
		__syncthreads();
	}
	give_sums<T>(m, job, item);
}

/* ---- launches ---- */

/* One kernel for each pair of types and for both lists: 24 small ones. */
template <typename T, typename C, bool decode>
static void
launch(qwen_device *dev, const attention_job *job)
{
	const cuda_batch *b = &cuda_of(dev)->batch;
	int32_t most = decode ? job->group : job->group * CUDA_TILE_ROWS;
	unsigned chunks = (unsigned) (most + QUERY_ROWS - 1) / QUERY_ROWS;
	size_t bytes = plain_bytes(job->dim);
	auto kernel = attend_plain<T, C, decode>;

	if (!cuda_check(
			dev, cudaFuncSetAttribute((const void *) kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int) bytes),
			"shared memory of attend_plain"))
		return;
	CUDA_LAUNCH(kernel,
				dim3((unsigned) job->n_kv * chunks, (unsigned) (decode ? b->n_decode : b->n_tiles),
					 (unsigned) (decode ? b->n_splits : 1)),
				THREADS, bytes, cuda_of(dev)->stream, *job);
	cuda_launched(dev, "attend_plain");
}

template <typename T, bool decode>
static void
plain_for_cache(qwen_device *dev, const attention_job *job, qwen_dtype cache)
{
	if (cache == QWEN_F32)
		launch<T, float, decode>(dev, job);
	else if (cache == QWEN_F16)
		launch<T, __half, decode>(dev, job);
	else if (cache == QWEN_BF16)
		launch<T, __nv_bfloat16, decode>(dev, job);
	else
		launch<T, signed char, decode>(dev, job);
}

template <bool decode>
static void
attention_plain(qwen_device *dev, const attention_job *job, qwen_dtype cache)
{
	if (dev->act == QWEN_F32)
		plain_for_cache<float, decode>(dev, job, cache);
	else if (dev->act == QWEN_F16)
		plain_for_cache<__half, decode>(dev, job, cache);
	else
		plain_for_cache<__nv_bfloat16, decode>(dev, job, cache);
}

/* Whether the kernels on matrix units can do it. */
static bool
is_tiled(const qwen_device *dev, const qwen_heads *heads, qwen_dtype cache)
{
	return dev->act != QWEN_F32 && (cache == dev->act || cache == QWEN_INT8) && heads->dim % 16 == 0 &&
		   heads->dim <= MAX_TILED_DIM;
}

static attention_job
job_of(const qwen_device *dev, void *d_out, const void *d_qkv, const qwen_heads *heads, const qwen_kv_layer *kv)
{
	const cuda_batch *b = &cuda_of(dev)->batch;
	attention_job job;

	job.out = d_out;
	job.qkv = d_qkv;
	job.k = cache_of(kv->k, kv->dtype, heads);
	job.v = cache_of(kv->v, kv->dtype, heads);
	job.tiles = b->tiles;
	job.seqs = b->seqs;
	job.decode = b->decode;
	job.blocks = b->blocks;
	job.partials = static_cast<float *>(cuda_scratch_at(dev, cuda_scratch_of(&dev->needs).partials));
	job.n_q = heads->n_q;
	job.n_kv = heads->n_kv;
	job.dim = heads->dim;
	job.group = heads->n_q / heads->n_kv;
	job.scale = 1.44269504f / sqrtf((float) heads->dim);
	return job;
}

/* The rows' own keys and values are in the cache already: qk_rope_store comes before. */
void
cuda_attention(qwen_device *dev, void *d_out, const void *d_qkv, const qwen_heads *heads, const qwen_kv_layer *kv,
			   const qwen_batch *batch)
{
	const cuda_batch *b = &cuda_of(dev)->batch;
	bool tiled = is_tiled(dev, heads, kv->dtype);
	attention_job job;

	(void) batch;
	if (!cuda_ready(dev))
		return;
	job = job_of(dev, d_out, d_qkv, heads, kv);
	if (b->n_decode > 0)
		tiled ? attention_decode_tiled(dev, &job, kv->dtype) : attention_plain<true>(dev, &job, kv->dtype);
	if (b->n_decode > 0 && b->n_splits > 1)
		attention_merge(dev, &job);
	if (b->n_tiles > 0)
		tiled ? attention_prefill_tiled(dev, &job, kv->dtype) : attention_plain<false>(dev, &job, kv->dtype);
}
