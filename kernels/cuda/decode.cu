/*
 * decode.cu
 *	  Attention of sequences of one row, on the matrix units.
 *
 * What it costs is reading the cache: 2 context n_kv dim elements a sequence.
 * All query heads that share a kv head are the rows of one product, so keys
 * and values are read once; the matrix units are there to make the arithmetic
 * vanish beside the reading, not because there is much of it.
 *
 * A block works for one kv head on one split of the sequence.  Its warps take
 * turns at the split's blocks of tokens, each by itself: two stages of keys
 * and values in shared memory, one on its way while the other is used, with no
 * barrier of the whole block until the end.  Heads of 128 elements have 8 KiB
 * on their way for each of 4 warps, and three blocks share a multiprocessor:
 * 96 KiB, several times what the latency of memory asks for.
 *
 * Each warp sums for itself what it has seen; the block puts the warps
 * together in their order, the merge the splits.  Which blocks of tokens a
 * warp sees is a function of the context, so are the result's bits.
 */
#include "kernels/cuda/cuda_tiles.h"

/*
 * Shared memory of a block: queries, then of each warp two stages and, for int8, room to widen them.  At the end each
 * warp's part has its sums.  74 KiB for 128 elements of 16 bits, three blocks to a multiprocessor; long heads have half
 * the warps, so that a block stays within what every GPU from sm_80 on gives it.
 */
template <typename T, typename C, int DIM> struct decode_shape : step_shape<T, C, DIM, QWEN_KV_BLOCK>
{
	typedef step_shape<T, C, DIM, QWEN_KV_BLOCK> step;
	static constexpr int warps = DIM > 128 ? 2 : 4;
	static constexpr int stage = 2 * step::side;
	static constexpr int queries = QUERY_ROWS * step::stride * (int) sizeof(T);
	static constexpr int warp = 2 * stage + (step::narrow ? 2 * step::tile : 0); /* of one */
	static constexpr int bytes = queries + warps * warp;

	static_assert(bytes <= 98 * 1024, "shared memory");
	static_assert(warp >= QUERY_ROWS * DIM * (int) sizeof(float), "room for a warp's sums");
};

/* What a block of the launch works on. */
typedef struct decode_item
{
	cuda_seq seq;
	const int32_t *list; /* the sequence's blocks */
	int32_t g;           /* kv head */
	int32_t head, n;     /* query heads [head, head + n) */
	int32_t split;
	int32_t begin, end; /* of the split, in blocks */
} decode_item;

/* False: nothing to do, for a row of the padding or a split that this sequence does not have. */
static __device__ __forceinline__ bool
find_item(decode_item &item, const attention_job &job)
{
	int32_t chunks = (job.group + QUERY_ROWS - 1) / QUERY_ROWS, s = job.decode[blockIdx.y];
	int32_t first = (int32_t) blockIdx.x % chunks * QUERY_ROWS, each;

	if (s < 0)
		return false;
	item.seq = job.seqs[s];
	item.list = job.blocks + item.seq.blocks;
	item.g = (int32_t) blockIdx.x / chunks;
	item.head = item.g * job.group + first;
	item.n = job.group - first < QUERY_ROWS ? job.group - first : QUERY_ROWS;
	item.split = (int32_t) blockIdx.z;
	each = split_blocks(item.seq.context);
	item.begin = item.split * each;
	item.end =
		item.begin + each < context_blocks(item.seq.context) ? item.begin + each : context_blocks(item.seq.context);
	return item.begin < item.end;
}

/*
 * Query heads to rows [QUERY_ROWS][DIM + 8] of shared memory; rows without a head are zeros, and nobody asks for them.
 */
template <typename T, int DIM>
static __device__ __forceinline__ void
load_queries(T *rows, const attention_job &job, const decode_item &item)
{
	const T *qkv = static_cast<const T *>(job.qkv);

	for (int i = (int) threadIdx.x; i < QUERY_ROWS * (DIM / 8); i += (int) blockDim.x)
	{
		int row = i / (DIM / 8);

		load_query<T, DIM>(rows, row, row < item.n ? qkv + query_at(job, item.seq.first_row, item.head + row) : NULL,
						   job.dim, i % (DIM / 8));
	}
}

/* One warp's blocks of the split; the first of them is on its way to the first stage. */
template <typename T, typename C, int DIM>
static __device__ __forceinline__ void
attend_blocks(query_sums<DIM> &sums, query_tile<T, DIM> &queries, unsigned char *memory, const attention_job &job,
			  const decode_item &item)
{
	typedef decode_shape<T, C, DIM> shape;
	int warp = (int) threadIdx.x / WARP, lane = (int) threadIdx.x % WARP, turn = 0;

	for (int32_t block = item.begin + warp; block < item.end; block += shape::warps, turn ^= 1)
	{
		unsigned char *stage = memory + turn * shape::stage, *keys = stage, *values = stage + shape::side;
		int32_t left = item.seq.context - block * QWEN_KV_BLOCK, seen[2] = {left, left};

		if (block + shape::warps < item.end)
		{
			fetch_step<T, C, DIM, QWEN_KV_BLOCK>(memory + (turn ^ 1) * shape::stage, job, item.list, item.g,
												 (block + shape::warps) * QWEN_KV_BLOCK, item.seq.context, lane, WARP);
			copy_async_wait<1>();
		}
		else
			copy_async_wait<0>();
		__syncwarp();
		if constexpr (shape::narrow)
		{
			keys = memory + 2 * shape::stage;
			values = keys + shape::tile;
			widen_side<T, DIM, QWEN_KV_BLOCK>(reinterpret_cast<T *>(keys), stage, job.dim, lane, WARP);
			widen_side<T, DIM, QWEN_KV_BLOCK>(reinterpret_cast<T *>(values), stage + shape::side, job.dim, lane, WARP);
			__syncwarp();
		}
		attend_step<T, C, DIM, QWEN_KV_BLOCK>(
			sums, queries, reinterpret_cast<const T *>(keys), reinterpret_cast<const T *>(values),
			reinterpret_cast<const float *>(stage + shape::scales),
			reinterpret_cast<const float *>(stage + shape::side + shape::scales), seen, job.scale, job.dim);
		__syncwarp();
	}
}

/* A warp's sums to its part of shared memory, out [16][DIM], and to maxima and totals [16]. */
template <int DIM>
static __device__ __forceinline__ void
leave_sums(const query_sums<DIM> &sums, float *out, float *maxima, float *totals)
{
	int lane = (int) threadIdx.x % WARP;

#pragma unroll
	for (int half = 0; half < 2; half++)
	{
		int row = lane / 4 + 8 * half;
		float total = row_sum(sums.sum[half]);

		if (lane % 4 == 0)
		{
			maxima[row] = sums.max[half];
			totals[row] = total;
		}
#pragma unroll
		for (int i = 0; i < DIM / 8; i++)
			for (int e = 0; e < 2; e++)
				out[row * DIM + i * 8 + lane % 4 * 2 + e] = sums.out[i][2 * half + e];
	}
}

/* An element of a head's result: to its place, or to the split's partials where there are several. */
template <typename T>
static __device__ __forceinline__ void
give(const attention_job &job, const decode_item &item, int row, int i, float max, float total, float x)
{
	int32_t head = item.head + row;

	if (split_count(item.seq.context) > 1)
	{
		float *partial = partial_at(job, (int32_t) blockIdx.y, head, item.split);

		partial[2 + i] = x;
		if (i == 0)
		{
			partial[0] = max;
			partial[1] = total;
		}
	}
	else
		static_cast<T *>(job.out)[((int64_t) item.seq.first_row * job.n_q + head) * job.dim + i] =
			from_float<T>(x / total);
}

/* The warps' sums, in their order. A warp that had no block has the maximum -inf and counts nothing. */
template <typename T, typename C, int DIM>
static __device__ __forceinline__ void
join_warps(const attention_job &job, const decode_item &item, const unsigned char *memory,
		   const float (*maxima)[QUERY_ROWS], const float (*totals)[QUERY_ROWS])
{
	typedef decode_shape<T, C, DIM> shape;

	for (int at = (int) threadIdx.x; at < item.n * job.dim; at += (int) blockDim.x)
	{
		int row = at / job.dim, i = at % job.dim;
		float max = -INFINITY, total = 0, x = 0;

		for (int w = 0; w < shape::warps; w++)
			max = fmaxf(max, maxima[w][row]);
		for (int w = 0; w < shape::warps; w++)
		{
			float part = exp2f(maxima[w][row] - max);

			total = fmaf(part, totals[w][row], total);
			x = fmaf(part, reinterpret_cast<const float *>(memory + w * shape::warp)[row * DIM + i], x);
		}
		give<T>(job, item, row, i, max, total, x);
	}
}

/*
 * Blocks: kv head and piece of its query heads, sequence, split.  The first keys are asked for before anything else is
 * done.  At least three blocks to a multiprocessor, which leaves a thread 168 registers.
 */
template <typename T, typename C, int DIM>
static __global__ void
__launch_bounds__(decode_shape<T, C, DIM>::warps *WARP, 3) decode_rows(attention_job job)
{
	typedef decode_shape<T, C, DIM> shape;
	CUDA_SHARED(unsigned char, shared);
	__shared__ float maxima[shape::warps][QUERY_ROWS], totals[shape::warps][QUERY_ROWS];
	int warp = (int) threadIdx.x / WARP;
	unsigned char *memory = shared + shape::queries + warp * shape::warp;
	decode_item item;
	query_tile<T, DIM> queries;
	query_sums<DIM> sums;

	if (!find_item(item, job))
		return;
	if (item.begin + warp < item.end)
		fetch_step<T, C, DIM, QWEN_KV_BLOCK>(memory, job, item.list, item.g, (item.begin + warp) * QWEN_KV_BLOCK,
											 item.seq.context, (int) threadIdx.x % WARP, WARP);
	load_queries<T, DIM>(reinterpret_cast<T *>(shared), job, item);
	__syncthreads();
	queries.begin(reinterpret_cast<const T *>(shared), job.dim);
	sums.begin();
	attend_blocks<T, C, DIM>(sums, queries, memory, job, item);
	leave_sums<DIM>(sums, reinterpret_cast<float *>(memory), maxima[warp], totals[warp]);
	__syncthreads();
	join_warps<T, C, DIM>(job, item, shared + shape::queries, maxima, totals);
}

/* ---- splits ---- */

#define MERGE_WARPS 4

/*
 * One warp for each query head of a sequence that has several splits: CUDA_MAX_SPLITS of them, a lane for each.  With M
 * the greatest of the splits' m, out = (sum of 2^(m - M) o) / (sum of 2^(m - M) l), added in the order of the splits.
 */
template <typename T>
static __global__ void
__launch_bounds__(MERGE_WARPS *WARP) merge_splits(attention_job job)
{
	__shared__ float shares[MERGE_WARPS][CUDA_MAX_SPLITS];
	int warp = (int) threadIdx.x / WARP, lane = (int) threadIdx.x % WARP;
	int32_t head = (int32_t) blockIdx.x * MERGE_WARPS + warp, s = job.decode[blockIdx.y], n;
	int32_t context = s < 0 ? 0 : job.seqs[s].context;
	const float *partial;
	float max, total;
	T *out;

	if (context == 0 || head >= job.n_q || (n = split_count(context)) < 2)
		return;
	partial = partial_at(job, (int32_t) blockIdx.y, head, 0);
	out = static_cast<T *>(job.out) + ((int64_t) job.seqs[s].first_row * job.n_q + head) * job.dim;
	max = warp_max(lane < n ? partial[(int64_t) lane * (2 + job.dim)] : -INFINITY);
	shares[warp][lane] = lane < n ? exp2f(partial[(int64_t) lane * (2 + job.dim)] - max) : 0;
	total = warp_sum(lane < n ? shares[warp][lane] * partial[(int64_t) lane * (2 + job.dim) + 1] : 0);
	__syncwarp();
	for (int i = lane; i < job.dim; i += WARP)
	{
		float x = 0;

		for (int split = 0; split < n; split++)
			x = fmaf(shares[warp][split], partial[(int64_t) split * (2 + job.dim) + 2 + i], x);
		out[i] = from_float<T>(x / total);
	}
}

/* Sequences with one split have their results already, and others of the step do not change them. */
void
attention_merge(qwen_device *dev, const attention_job *job)
{
	const cuda_batch *b = &cuda_of(dev)->batch;
	auto kernel = dev->act == QWEN_F32   ? merge_splits<float>
				  : dev->act == QWEN_F16 ? merge_splits<__half>
										 : merge_splits<__nv_bfloat16>;
	static_assert(CUDA_MAX_SPLITS == WARP, "a lane for each split");

	CUDA_LAUNCH(kernel, dim3((unsigned) (job->n_q + MERGE_WARPS - 1) / MERGE_WARPS, (unsigned) b->n_decode),
				MERGE_WARPS * WARP, 0, cuda_of(dev)->stream, *job);
	cuda_launched(dev, "merge_splits");
}

/* ---- launches ---- */

/* Grids are as large as the step's bucket: blocks for rows and splits that are not there leave at once. */
template <typename T, typename C, int DIM>
static void
launch(qwen_device *dev, const attention_job *job)
{
	typedef decode_shape<T, C, DIM> shape;
	const cuda_batch *b = &cuda_of(dev)->batch;
	unsigned chunks = (unsigned) (job->group + QUERY_ROWS - 1) / QUERY_ROWS;
	auto kernel = decode_rows<T, C, DIM>;

	if (!cuda_check(
			dev, cudaFuncSetAttribute((const void *) kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape::bytes),
			"shared memory of decode_rows"))
		return;
	CUDA_LAUNCH(kernel, dim3((unsigned) job->n_kv * chunks, (unsigned) b->n_decode, (unsigned) b->n_splits),
				shape::warps * WARP, shape::bytes, cuda_of(dev)->stream, *job);
	cuda_launched(dev, "decode_rows");
}

/* Three lengths of heads are compiled; others take the next longer one and leave tiles out. */
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
attention_decode_tiled(qwen_device *dev, const attention_job *job, qwen_dtype cache)
{
	if (dev->act == QWEN_F16)
		cache == QWEN_INT8 ? launch_for_dim<__half, signed char>(dev, job) : launch_for_dim<__half, __half>(dev, job);
	else
		cache == QWEN_INT8 ? launch_for_dim<__nv_bfloat16, signed char>(dev, job)
						   : launch_for_dim<__nv_bfloat16, __nv_bfloat16>(dev, job);
}
