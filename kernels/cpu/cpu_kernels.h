/*
 * cpu_kernels.h
 *	  The body of the threaded sets, compiled once for each instruction set.
 *
 * Each cpu_<set>.c is built with its own compiler flags, defines CPU_OPS (the
 * name of its table) and CPU_NAME, and includes this file; the vector width
 * follows from the flags.  Everything is static but the table, so that no
 * function compiled for one instruction set is ever linked into another.
 *
 * Weights have the type that is wanted, activations are float between
 * operations, and the KV cache has the type of the weights: a model keeps the
 * precision it was published in.
 */
#include <math.h>
#include <stdbool.h>

#include "cpu_vec.h"

#include "../host.h"
#include "../quant.h"
#include "../sets.h"
#include "cpu_layout.h"
#include "pool.h"

#include "cpu_quant.h"
#include "cpu_rows.h"
#include "cpu_pack.h"
#include "cpu_narrow.h"
#if defined(CPU_TILES)
#include "cpu_linear_amx.h"
#endif
#include "cpu_linear.h"
#include "cpu_attention.h"

static qwen_dtype
same_dtype(const qwen_device *dev, qwen_dtype source)
{
	return source;
}

/* A device beside another one uses the threads of that one. */
static void
cpu_close(qwen_device *dev)
{
	if (!dev->beside)
		qwen_pool_free(dev->priv);
	qwen_host_close(dev);
}

static void
cpu_loop(qwen_device *dev, int64_t n, int64_t grain, qwen_loop_fn fn, void *arg)
{
	qwen_pool_run(dev->priv, n, grain, fn, arg);
}

const qwen_ops CPU_OPS = {
	.name = CPU_NAME,
	.close = cpu_close,
	.alloc = qwen_host_alloc,
	.free = qwen_host_free,
	.upload = qwen_host_upload,
	.download = qwen_host_download,
	.synchronize = qwen_host_synchronize,
	.join = qwen_host_join,
	.sum = qwen_host_sum,
	.sum_resid = qwen_host_sum_resid,
	.copy = qwen_host_copy,
	.loop = cpu_loop,
	.matrix_dtype = same_dtype,
	.matrix_bytes = cpu_matrix_bytes,
	.matrix_upload = cpu_matrix_upload,
	.vector_upload = qwen_host_vector_upload,
	.kv_dtype = same_dtype,
	.kv_block_bytes = cpu_kv_block_bytes,
	.scratch_bytes = cpu_scratch_bytes,
	.step = qwen_host_step,
	.segment_begin = qwen_host_segment_begin,
	.segment_end = qwen_host_segment_end,
	.embed = cpu_embed,
	.add_rmsnorm = cpu_add_rmsnorm,
	.add = qwen_host_add,
	.linear = cpu_linear,
	.qk_rope_store = cpu_qk_rope_store,
	.attention = cpu_attention,
	.swiglu = cpu_swiglu,
	.gather = cpu_gather,
	.logits = cpu_logits,
};
