/*
 * linear_f16.cu
 *	  Products of few rows of float16 activations.  A file of its own, so that
 *	  the two types are compiled side by side.
 */
#include "kernels/cuda/linear_mma.h"

void
cuda_linear_f16(qwen_device *dev, const cuda_product *p)
{
	linear_few<__half>(dev, p, QWEN_F16);
}
