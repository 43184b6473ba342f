/*
 * ref_ops.c
 *	  The oracle's table.
 */
#include "ref.h"

#include "../host.h"
#include "../sets.h"

const qwen_ops qwen_ops_ref = {
	.name = "ref",
	.close = qwen_host_close,
	.alloc = qwen_host_alloc,
	.free = qwen_host_free,
	.upload = qwen_host_upload,
	.download = qwen_host_download,
	.synchronize = qwen_host_synchronize,
	.join = qwen_host_join,
	.sum = qwen_host_sum,
	.sum_resid = qwen_host_sum_resid,
	.copy = qwen_host_copy,
	.loop = qwen_host_loop,
	.matrix_dtype = qwen_ref_matrix_dtype,
	.matrix_bytes = qwen_ref_matrix_bytes,
	.matrix_upload = qwen_ref_matrix_upload,
	.vector_upload = qwen_host_vector_upload,
	.kv_dtype = qwen_ref_kv_dtype,
	.kv_block_bytes = qwen_ref_kv_block_bytes,
	.scratch_bytes = qwen_host_no_scratch,
	.step = qwen_host_step,
	.segment_begin = qwen_host_segment_begin,
	.segment_end = qwen_host_segment_end,
	.embed = qwen_ref_embed,
	.add_rmsnorm = qwen_ref_add_rmsnorm,
	.add = qwen_host_add,
	.linear = qwen_ref_linear,
	.qk_rope_store = qwen_ref_qk_rope_store,
	.attention = qwen_ref_attention,
	.swiglu = qwen_ref_swiglu,
	.gather = qwen_ref_gather,
	.logits = qwen_ref_logits,
};
