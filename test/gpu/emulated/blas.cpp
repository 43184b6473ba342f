/*
 * blas.cpp
 *	  Products of many rows, in the place of blas.cu, whose library has no
 *	  model here.
 *
 * A sum has 16 parts, which are added in order at its end: the compiler may
 * then use vectors, and a row's bits do not depend on other rows.
 */
#include "kernels/cuda/cuda_device.h"

#include <vector>

#define PARTS 16

typedef struct product
{
	void *out;
	qwen_dtype out_type;
	int64_t out_stride;
	const void *w;
	const void *x;
	qwen_dtype type;
	const float *bias;
	int64_t rows, n, k;
} product;

/* There is nothing to keep from one product to the next. */
struct cuda_blas
{
};

cuda_blas *
cuda_blas_new(void)
{
	return new cuda_blas();
}

void
cuda_blas_free(cuda_blas *blas)
{
	delete blas;
}

template <typename T>
static void
widen(float *out, const void *in, int64_t row, int64_t k)
{
	const T *from = static_cast<const T *>(in) + row * k;

	for (int64_t i = 0; i < k; i++)
		out[i] = to_float(from[i]);
}

static void
widen_row(float *out, const void *in, qwen_dtype type, int64_t row, int64_t k)
{
	if (type == QWEN_F32)
		widen<float>(out, in, row, k);
	else if (type == QWEN_F16)
		widen<__half>(out, in, row, k);
	else
		widen<__nv_bfloat16>(out, in, row, k);
}

static float
dot(const float *a, const float *b, int64_t k)
{
	float parts[PARTS] = {0}, sum = 0;
	int64_t i = 0;

	for (; i + PARTS <= k; i += PARTS)
		for (int j = 0; j < PARTS; j++)
			parts[j] += a[i + j] * b[i + j];
	for (int j = 0; j < PARTS; j++)
		sum += parts[j];
	for (; i < k; i++)
		sum += a[i] * b[i];
	return sum;
}

static void
put(const product &p, int64_t row, int64_t column, float x)
{
	int64_t at = row * p.out_stride + column;

	if (p.out_type == QWEN_F32)
		static_cast<float *>(p.out)[at] = x;
	else if (p.out_type == QWEN_F16)
		static_cast<__half *>(p.out)[at] = from_float<__half>(x);
	else
		static_cast<__nv_bfloat16 *>(p.out)[at] = from_float<__nv_bfloat16>(x);
}

static void
multiply(const product &p)
{
	std::vector<float> x((size_t) (p.rows * p.k)), w((size_t) p.k);

	for (int64_t t = 0; t < p.rows; t++)
		widen_row(&x[(size_t) (t * p.k)], p.x, p.type, t, p.k);
	for (int64_t i = 0; i < p.n; i++)
	{
		widen_row(w.data(), p.w, p.type, i, p.k);
		for (int64_t t = 0; t < p.rows; t++)
			put(p, t, i, dot(&x[(size_t) (t * p.k)], w.data(), p.k) + (p.bias ? p.bias[i] : 0));
	}
}

void
cuda_blas_product(qwen_device *dev, void *out, qwen_dtype out_type, int64_t out_stride, const void *w, const void *x,
				  qwen_dtype type, const float *bias, int64_t rows, int64_t n, int64_t k)
{
	product p = {out, out_type, out_stride, w, x, type, bias, rows, n, k};
	emulated_lock lock(emulated_everything);

	if (cuda_ready(dev))
		(void) cuda_check(dev, emulated_queue(cuda_of(dev)->stream, [p] { multiply(p); }), "a product");
}
