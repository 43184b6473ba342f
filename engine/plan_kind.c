/*
 * plan_kind.c
 *	  How each kind of device stores things.
 *
 * The one place where processors and GPUs differ for the planner.  What
 * a processor stores is what kernels/cpu does with it, and a GPU kernels/cuda.
 */
#include "../kernels/cpu/cpu_layout.h"
#include "../kernels/cuda/cuda_scratch.h"
#include "plan_internal.h"

#define KIB ((uint64_t) 1 << 10)
#define MIB ((uint64_t) 1 << 20)

/* ---- processors: float activations, matrices in strips ---- */

static uint64_t
cpu_matrix_bytes(qwen_dtype dtype, int64_t n, int64_t k)
{
	return packed_bytes(dtype, n, k);
}

/* Activations of a product, narrowed to bfloat16 or to int8 with scale and sum of each group: what is longer. */
static uint64_t
cpu_product_scratch(int64_t rows, int64_t k)
{
	int64_t halfs = narrow_stride(QWEN_BF16, k) * 2;
	int64_t bytes = narrow_stride(QWEN_INT8, k) + padded_k(QWEN_INT8, k) / QWEN_GROUP * 8;

	return k == 0 ? 0 : (uint64_t) rows * (uint64_t) (halfs > bytes ? halfs : bytes);
}

static uint64_t
cpu_scratch_bytes(const qwen_needs *needs)
{
	uint64_t layer = cpu_product_scratch(needs->rows, needs->k);
	uint64_t head = cpu_product_scratch(needs->logit_rows, needs->head_k);

	return layer > head ? layer : head;
}

/*
 * What the engine itself holds.  Of each token of the vocabulary up to 100 bytes of the tokenizer's tables, whose lengths
 * are powers of two (vocab.h, bpe.h), and a byte that says whether it may be drawn; for each thread that draws 16 more,
 * which are the sampler's.  Of a thread 512 KiB of the staging buffers (weights.c), which stay with the heap when they
 * are free, and what was ever used of its stack.  Of a sequence its struct and the buffers of its answer.  4 MiB for all
 * else: libraries, frames, a few thousand requests that wait.  Held against what was measured by test/bench/memory.py.
 */
static uint64_t
cpu_engine_bytes(int64_t vocab, int threads, int sequences)
{
	int drawing = threads < sequences ? threads : sequences;

	return (uint64_t) vocab * (uint64_t) (101 + 16 * drawing) + (uint64_t) threads * 704 * KIB +
		   (uint64_t) sequences * 4 * KIB + 4 * MIB;
}

/* Of a block its place in the pool (kv_pool.h), its tokens, its part of a sequence's lists and of its text. */
#define CPU_BLOCK_BYTES 384

/* ---- GPUs: activations of the model's type, row-major matrices, scales behind the elements ---- */

static uint64_t
cuda_matrix_bytes(qwen_dtype dtype, int64_t n, int64_t k)
{
	int64_t groups = round_up(k, QWEN_GROUP) / QWEN_GROUP;
	int64_t elements, per_group;

	switch (dtype)
	{
		case QWEN_INT8: /* a bfloat16 scale a group */
			elements = n * groups * QWEN_GROUP;
			per_group = 2;
			break;
		case QWEN_INT4: /* scale and minimum */
			elements = n * groups * QWEN_GROUP / 2;
			per_group = 4;
			break;
		default:
			elements = n * k * (int64_t) qwen_dtype_bytes(dtype);
			per_group = 0;
	}
	return (uint64_t) (round_up(elements, CUDA_ALIGN) + round_up(n * groups * per_group, CUDA_ALIGN));
}

static uint64_t
cuda_scratch_bytes(const qwen_needs *needs)
{
	return cuda_scratch_of(needs).bytes;
}

/* It stands in the memory of the host. */
static uint64_t
cuda_engine_bytes(int64_t vocab, int threads, int sequences)
{
	return 0;
}

/*
 * Margins: of a processor, the ends of pages and the allocator's own needs; of a GPU, the granularity of allocations (2
 * MiB each) and what other programs take meanwhile.  An automatic cache leaves a processor's memory to the server that
 * shares it.
 *
 * A GPU's context stands for what a driver takes on data-centre parts, 0.3 to 0.6 GiB (qwen-models.md 14), where a
 * device is only described; on a present one it is made when free memory is asked for, and so measured.  Overhead is
 * 64 MiB for the graphs of decoding; group_overhead is for NCCL's channels.
 */
static const qwen_plan_kind kinds[] = {
	[QWEN_DEVICE_CPU] = {.act_bytes = 4,
						 .resid_bytes = 4,
						 .align = 64,
						 .matrix_bytes = cpu_matrix_bytes,
						 .scratch_bytes = cpu_scratch_bytes,
						 .engine_bytes = cpu_engine_bytes,
						 .block_bytes = CPU_BLOCK_BYTES,
						 .margin = 4 * MIB,
						 .kv_share = 4},
	[QWEN_DEVICE_CUDA] = {.act_bytes = 0,
						  .resid_bytes = 4,
						  .align = CUDA_ALIGN,
						  .matrix_bytes = cuda_matrix_bytes,
						  .scratch_bytes = cuda_scratch_bytes,
						  .engine_bytes = cuda_engine_bytes,
						  .context = 512 * MIB,
						  .overhead = 64 * MIB,
						  .group_overhead = 128 * MIB,
						  .margin = 256 * MIB,
						  .kv_share = 1},
};

const qwen_plan_kind *
qwen_plan_kind_of(qwen_device_kind kind)
{
	return &kinds[kind];
}
