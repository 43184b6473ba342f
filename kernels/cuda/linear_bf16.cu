/*
 * linear_bf16.cu
 *	  Products of few rows of bfloat16 activations.  A file of its own, so that
 *	  the two types are compiled side by side.
 */
#include "kernels/cuda/linear_mma.h"

void
cuda_linear_bf16(qwen_device *dev, const cuda_product *p)
{
	linear_few<__nv_bfloat16>(dev, p, QWEN_BF16);
}
