/*
 * linear.cu
 *	  Products of activations and weights: which kernel does them.
 *
 * Up to 16 rows are done by own kernels, which read the weights once and are
 * bound by nothing else.  More rows go to cuBLASLt.  It knows no weights with
 * scales, and none of another type than the activations': those are widened
 * in tiles of rows that fit into the second-level cache, one after the other,
 * each followed by its product, which fills its columns of the result.
 *
 * Weights of int8 and int4 are multiplied by activations as they are: what
 * quant.h says of quantised activations is for processors without fast
 * products of 16 bits.
 */
#include "kernels/cuda/linear.h"

/* Rows of a tile are a multiple of this, where there are as many: whole tiles of the library's kernels. */
#define TILE_BORDER 128

static void
few_rows(qwen_device *dev, const cuda_product *p)
{
	switch (dev->act)
	{
		case QWEN_F16:
			cuda_linear_f16(dev, p);
			break;
		case QWEN_BF16:
			cuda_linear_bf16(dev, p);
			break;
		default:
			cuda_linear_f32(dev, p);
	}
}

/* Weights that have to be widened first, in tiles that fit into their part of scratch memory. */
static void
many_rows_widened(qwen_device *dev, const cuda_product *p, const qwen_matrix *w)
{
	void *tile = cuda_scratch_at(dev, cuda_scratch_of(&dev->needs).tile);
	qwen_dtype out_type = p->as_float ? QWEN_F32 : dev->act;
	size_t out_bytes = p->as_float ? sizeof(float) : dev->act_bytes;
	int64_t fit = (int64_t) (CUDA_TILE_BYTES / ((size_t) w->k * dev->act_bytes));

	/* scratch memory has one row at least */
	fit = fit < 1 ? 1 : fit < TILE_BORDER ? fit : fit / TILE_BORDER * TILE_BORDER;
	for (int64_t row = 0; row < w->n; row += fit)
	{
		int64_t n = w->n - row < fit ? w->n - row : fit;

		cuda_widen_rows(dev, tile, w, row, n);
		cuda_blas_product(dev, (char *) p->out + (size_t) row * out_bytes, out_type, w->n, tile, p->x, dev->act,
						  p->bias ? p->bias + row : NULL, p->rows, n, w->k);
	}
}

static void
product(qwen_device *dev, const cuda_product *p, const qwen_matrix *w)
{
	if (p->rows <= LINEAR_FEW)
		few_rows(dev, p);
	else if (w->dtype == dev->act)
		cuda_blas_product(dev, p->out, p->as_float ? QWEN_F32 : dev->act, w->n, w->data, p->x, dev->act, p->bias,
						  p->rows, w->n, w->k);
	else
		many_rows_widened(dev, p, w);
}

void
cuda_linear(qwen_device *dev, void *d_out, const qwen_matrix *w, const float *d_bias, const void *d_x, int32_t rows)
{
	cuda_product p;

	if (!cuda_ready(dev) || rows < 1)
		return;
	p.out = d_out;
	p.as_float = dev->act == QWEN_F32;
	p.dtype = w->dtype;
	p.w = cuda_weights_of(w);
	p.bias = d_bias;
	p.x = d_x;
	p.rows = cuda_rows(dev, rows);
	product(dev, &p, w);
}

bool
cuda_logits(qwen_device *dev, float *out, const qwen_matrix *head, const void *d_x, int32_t rows)
{
	cuda_product p;

	if (!cuda_ready(dev))
		return false;
	p.out = dev->d_logits;
	p.as_float = true;
	p.dtype = head->dtype;
	p.w = cuda_weights_of(head);
	p.bias = NULL;
	p.x = d_x;
	p.rows = rows;
	if (rows > 0)
		product(dev, &p, head);
	return cuda_download(dev, out, dev->d_logits, (size_t) rows * (size_t) head->n * sizeof(float)) &&
		   cuda_synchronize(dev);
}
