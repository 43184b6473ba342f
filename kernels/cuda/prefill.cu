/*
 * prefill.cu
 *	  Attention of sequences of several rows, on the matrix units.
 *
 * A block has 64 rows of one query head, a warp 16 of them.  Keys and values
 * pass by in steps of 64 tokens (32 for long heads), gathered from the paged
 * cache, in which the rows' own are already: two stages, one on its way while
 * the other is used.  Rows of queries stay in registers, scores and weights
 * never leave them.  Steps end with the last token that the tile may see; of
 * these, a warp leaves out those that its own rows may not.
 *
 * Query heads that share a kv head are neighbours in the grid, so what one of
 * them reads the others find in the L2 cache.
 *
 * The floor is 4 dim operations for each pair of a row and a cell that it
 * sees, half of them in each product.  A step of 32 KiB, for heads of 128
 * elements, serves 64 rows: 64 operations for a byte from L2, a quarter of that
 * for one from shared memory, which each of the four warps reads.  Products of
 * the layers' weights are twelve times as many operations, in the 8B model at
 * 4096 tokens.
 */
#include "kernels/cuda/cuda_tiles.h"

#define WARPS (CUDA_TILE_ROWS / QUERY_ROWS)
#define THREADS (WARPS * WARP)

/*
 * Shared memory of a block: queries, two stages and, for int8, room to widen one. 87 KiB for 128 elements of 16 bits.
 */
template <typename T, typename C, int DIM> struct prefill_shape : step_shape<T, C, DIM, (DIM > 128 ? 32 : 64)>
{
	static constexpr int keys = DIM > 128 ? 32 : 64;
	typedef step_shape<T, C, DIM, keys> step;
	static constexpr int stage = 2 * step::side;
	static constexpr int queries = CUDA_TILE_ROWS * step::stride * (int) sizeof(T);
	static constexpr int bytes = queries + 2 * stage + (step::narrow ? 2 * step::tile : 0);

	/* what every GPU from sm_80 on has for a block */
	static_assert(bytes <= 99 * 1024, "shared memory");
};

/* What a block of the launch works on: rows [row, row + n) of the step, of which the first has that position. */
typedef struct prefill_item
{
	const int32_t *list; /* the sequence's blocks */
	int32_t head;
	int32_t row, n;
	int32_t position;
} prefill_item;

/* The tile's rows are the last but so many of its sequence: its first one stands at context - n_rows. */
static __device__ __forceinline__ prefill_item
find_item(const attention_job &job)
{
	cuda_tile tile = job.tiles[blockIdx.y];
	cuda_seq seq = job.seqs[tile.seq];

	return {job.blocks + seq.blocks, (int32_t) blockIdx.x, seq.first_row + tile.first, tile.n,
			seq.context - seq.n_rows + tile.first};
}

/* The tile's rows of queries [CUDA_TILE_ROWS][DIM + 8] to shared memory, zeros beyond its end. */
template <typename T, int DIM>
static __device__ __forceinline__ void
load_queries(T *rows, const attention_job &job, const prefill_item &item)
{
	const T *qkv = static_cast<const T *>(job.qkv);

	for (int i = (int) threadIdx.x; i < CUDA_TILE_ROWS * (DIM / 8); i += THREADS)
	{
		int row = i / (DIM / 8);

		load_query<T, DIM>(rows, row, row < item.n ? qkv + query_at(job, item.row + row, item.head) : NULL, job.dim,
						   i % (DIM / 8));
	}
}

/* Cells that a row of the tile sees; rows beyond the tile's end are as its last one. */
static __device__ __forceinline__ int32_t
cells_seen(const prefill_item &item, int32_t row)
{
	return item.position + (row < item.n ? row : item.n - 1) + 1;
}

/*
 * The warp's part of a step that has arrived: keys and values as T, the stage as it came from the cache.  Nothing to do
 * where the tile has no rows for the warp, or where its last row sees none of the step.
 */
template <typename T, typename C, int DIM>
static __device__ __forceinline__ void
attend_rows(query_sums<DIM> &sums, query_tile<T, DIM> &queries, const unsigned char *stage, const unsigned char *keys,
			const unsigned char *values, const attention_job &job, const prefill_item &item, int32_t first)
{
	typedef prefill_shape<T, C, DIM> shape;
	int warp = (int) threadIdx.x / WARP, row = warp * QUERY_ROWS + (int) threadIdx.x % WARP / 4;
	int32_t seen[2] = {cells_seen(item, row) - first, cells_seen(item, row + 8) - first};

	if (warp * QUERY_ROWS >= item.n || cells_seen(item, warp * QUERY_ROWS + QUERY_ROWS - 1) <= first)
		return;
	attend_step<T, C, DIM, shape::keys>(
		sums, queries, reinterpret_cast<const T *>(keys), reinterpret_cast<const T *>(values),
		reinterpret_cast<const float *>(stage + shape::scales),
		reinterpret_cast<const float *>(stage + shape::side + shape::scales), seen, job.scale, job.dim);
}

/* All steps of a tile; the first of them is on its way to the first stage. */
template <typename T, typename C, int DIM>
static __device__ __forceinline__ void
attend_steps(query_sums<DIM> &sums, query_tile<T, DIM> &queries, unsigned char *memory, const attention_job &job,
			 const prefill_item &item)
{
	typedef prefill_shape<T, C, DIM> shape;
	int thread = (int) threadIdx.x, turn = 0;
	int32_t end = cells_seen(item, item.n);

	for (int32_t first = 0; first < end; first += shape::keys, turn ^= 1)
	{
		unsigned char *stage = memory + turn * shape::stage, *keys = stage, *values = stage + shape::side;

		if (first + shape::keys < end)
		{
			fetch_step<T, C, DIM, shape::keys>(memory + (turn ^ 1) * shape::stage, job, item.list,
											   item.head / job.group, first + shape::keys, end, thread, THREADS);
			copy_async_wait<1>();
		}
		else
			copy_async_wait<0>();
		__syncthreads();
		if constexpr (shape::narrow)
		{
			keys = memory + 2 * shape::stage;
			values = keys + shape::tile;
			widen_side<T, DIM, shape::keys>(reinterpret_cast<T *>(keys), stage, job.dim, thread, THREADS);
			widen_side<T, DIM, shape::keys>(reinterpret_cast<T *>(values), stage + shape::side, job.dim, thread,
											THREADS);
			__syncthreads();
		}
		attend_rows<T, C, DIM>(sums, queries, stage, keys, values, job, item, first);
		__syncthreads();
	}
}

/* A warp's rows of the result, two elements at a time; the four lanes of a row write 16 bytes beside each other. */
template <typename T, int DIM>
static __device__ __forceinline__ void
store_rows(const query_sums<DIM> &sums, const attention_job &job, const prefill_item &item)
{
	int lane = (int) threadIdx.x % WARP, warp = (int) threadIdx.x / WARP;

#pragma unroll
	for (int half = 0; half < 2; half++)
	{
		int32_t row = warp * QUERY_ROWS + lane / 4 + 8 * half;
		int64_t at = ((int64_t) (item.row + row) * job.n_q + item.head) * job.dim + lane % 4 * 2;
		float total = row_sum(sums.sum[half]);
		T *out = static_cast<T *>(job.out) + at;

		if (row >= item.n)
			continue;
#pragma unroll
		for (int i = 0; i < DIM / 8; i++)
			if (i * 8 < job.dim)
				*reinterpret_cast<uint32_t *>(out + i * 8) =
					pack_pair<T>(sums.out[i][2 * half] / total, sums.out[i][2 * half + 1] / total);
	}
}

/* Blocks: query head, tile; tiles with the longest contexts come first. */
template <typename T, typename C, int DIM>
static __global__ void
__launch_bounds__(THREADS) prefill_tiles(attention_job job)
{
	typedef prefill_shape<T, C, DIM> shape;
	CUDA_SHARED(unsigned char, shared);
	unsigned char *memory = shared + shape::queries;
	prefill_item item = find_item(job);
	query_tile<T, DIM> queries;
	query_sums<DIM> sums;

	fetch_step<T, C, DIM, shape::keys>(memory, job, item.list, item.head / job.group, 0, cells_seen(item, item.n),
									   (int) threadIdx.x, THREADS);
	load_queries<T, DIM>(reinterpret_cast<T *>(shared), job, item);
	__syncthreads();
	queries.begin(reinterpret_cast<const T *>(shared) + (int) threadIdx.x / WARP * QUERY_ROWS * shape::stride, job.dim);
	sums.begin();
	attend_steps<T, C, DIM>(sums, queries, memory, job, item);
	store_rows<T, DIM>(sums, job, item);
}

template <typename T, typename C, int DIM>
static void
launch(qwen_device *dev, const attention_job *job)
{
	typedef prefill_shape<T, C, DIM> shape;
	auto kernel = prefill_tiles<T, C, DIM>;

	if (!cuda_check(
			dev, cudaFuncSetAttribute((const void *) kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape::bytes),
			"shared memory of prefill_tiles"))
		return;
	CUDA_LAUNCH(kernel, dim3((unsigned) job->n_q, (unsigned) cuda_of(dev)->batch.n_tiles), THREADS, shape::bytes,
				cuda_of(dev)->stream, *job);
	cuda_launched(dev, "prefill_tiles");
}

/* As in decode.cu. */
template <typename T, typename C>
static void
launch_for_dim(qwen_device *dev, const attention_job *job)
{
	if (job->dim <= 64)
		launch<T, C, 64>(dev, job);
	else if (job->dim <= 128)
		launch<T, C, 128>(dev, job);
	else
		launch<T, C, 256>(dev, job);
}

void
attention_prefill_tiled(qwen_device *dev, const attention_job *job, qwen_dtype cache)
{
	if (dev->act == QWEN_F16)
		cache == QWEN_INT8 ? launch_for_dim<__half, signed char>(dev, job) : launch_for_dim<__half, __half>(dev, job);
	else
		cache == QWEN_INT8 ? launch_for_dim<__nv_bfloat16, signed char>(dev, job)
						   : launch_for_dim<__nv_bfloat16, __nv_bfloat16>(dev, job);
}
