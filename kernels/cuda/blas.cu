/*
 * blas.cu
 *	  Products of many rows, by cuBLASLt.
 *
 * The library's matrices are column-major, so that ours are their transposes
 * without moving anything: out^T[n, rows] = w[n, k] x^T[k, rows], where w in
 * the library's eyes is [k, n] and transposed once more.
 *
 * Which of its kernels does a product is asked once for each shape and kept:
 * the question takes tens of microseconds, as long as many of the products.
 * Kernels that split k are taken only where there is no other one: how they
 * split depends on the number of rows, and with it the order of a row's sum.
 *
 * A bias is put into the result first, which then is a summand of the product:
 * so it is added to the float sum, and rounded once with it.  The library's
 * own bias would have to be of the result's type, on the device.
 */
#include "kernels/cuda/cuda_device.h"

#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

/* Shapes that are remembered: a power of two. A model has some ten matrices, steps have any number of rows. */
#define CACHE_SIZE 512
/* Slots that a shape can be in, from that of its hash on. */
#define CACHE_WAYS 8

/* What the choice of a kernel depends on. Without holes: compared byte by byte. */
typedef struct shape
{
	int64_t rows, n, k, out_stride;
	int32_t type, out_type;
	int32_t align; /* of all operands: a power of two up to 256 */
	int32_t biased;
} shape;

typedef struct choice
{
	shape key; /* rows 0: free */
	cublasLtMatmulAlgo_t algo;
} choice;

struct cuda_blas
{
	cublasLtHandle_t handle;
	unsigned evict; /* which of a shape's slots is given up next */
	choice cache[CACHE_SIZE];
};

/* What the library takes a product by; NULL where not made. */
typedef struct operation
{
	cublasLtMatmulDesc_t desc;
	cublasLtMatrixLayout_t w, x, out;
} operation;

cuda_blas *
cuda_blas_new(void)
{
	cuda_blas *blas = (cuda_blas *) calloc(1, sizeof(*blas));

	if (blas && cublasLtCreate(&blas->handle) != CUBLAS_STATUS_SUCCESS)
	{
		free(blas);
		return NULL;
	}
	return blas;
}

void
cuda_blas_free(cuda_blas *blas)
{
	if (!blas)
		return;
	(void) cublasLtDestroy(blas->handle);
	free(blas);
}

static bool
checked(qwen_device *dev, cublasStatus_t status, const char *what)
{
	if (status == CUBLAS_STATUS_SUCCESS)
		return true;
	cuda_fail(dev, what, cublasLtGetStatusString(status));
	return false;
}

static cudaDataType_t
data_type(int32_t dtype)
{
	return dtype == QWEN_F16 ? CUDA_R_16F : dtype == QWEN_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/* ---- descriptions ---- */

static void
operation_free(operation *op)
{
	if (op->out)
		(void) cublasLtMatrixLayoutDestroy(op->out);
	if (op->x)
		(void) cublasLtMatrixLayoutDestroy(op->x);
	if (op->w)
		(void) cublasLtMatrixLayoutDestroy(op->w);
	if (op->desc)
		(void) cublasLtMatmulDescDestroy(op->desc);
}

/* Sums in float; for floats that means not in TF32. Freed by operation_free in any case. */
static cublasStatus_t
operation_new(operation *op, const shape *s)
{
	cublasOperation_t transposed = CUBLAS_OP_T;
	cudaDataType_t type = data_type(s->type);
	uint64_t rows = (uint64_t) s->rows, n = (uint64_t) s->n, k = (uint64_t) s->k;
	cublasStatus_t status = cublasLtMatmulDescCreate(&op->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);

	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatmulDescSetAttribute(op->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed));
	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatrixLayoutCreate(&op->w, type, k, n, s->k);
	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatrixLayoutCreate(&op->x, type, k, rows, s->k);
	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatrixLayoutCreate(&op->out, data_type(s->out_type), n, rows, s->out_stride);
	return status;
}

/* ---- which kernel ---- */

/* Workspace, alignment, and the ways of adding parts of k that are allowed. */
static cublasStatus_t
set_preference(cublasLtMatmulPreference_t preference, const shape *s, uint32_t schemes)
{
	static const cublasLtMatmulPreferenceAttributes_t operands[] = {
		CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
		CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
	uint64_t workspace = CUDA_BLAS_BYTES;
	uint32_t align = (uint32_t) s->align;
	cublasStatus_t status = cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
																 &workspace, sizeof(workspace));

	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
													  sizeof(schemes));
	for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < 4; i++)
		status = cublasLtMatmulPreferenceSetAttribute(preference, operands[i], &align, sizeof(align));
	return status;
}

static cublasStatus_t
ask(cublasLtHandle_t handle, const operation *op, const shape *s, uint32_t schemes, cublasLtMatmulAlgo_t *algo)
{
	cublasLtMatmulPreference_t preference;
	cublasLtMatmulHeuristicResult_t result;
	int found = 0;
	cublasStatus_t status = cublasLtMatmulPreferenceCreate(&preference);

	if (status != CUBLAS_STATUS_SUCCESS)
		return status;
	status = set_preference(preference, s, schemes);
	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatmulAlgoGetHeuristic(handle, op->desc, op->w, op->x, op->out, op->out, preference, 1,
												&result, &found);
	(void) cublasLtMatmulPreferenceDestroy(preference);
	if (status != CUBLAS_STATUS_SUCCESS)
		return status;
	if (found == 0)
		return CUBLAS_STATUS_NOT_SUPPORTED;
	*algo = result.algo;
	return result.state;
}

/* Undivided sums, then parts that are added from the workspace, in order; never parts that are added as they come. */
static cublasStatus_t
ask_in_order(cublasLtHandle_t handle, const operation *op, const shape *s, cublasLtMatmulAlgo_t *algo)
{
	cublasStatus_t status = ask(handle, op, s, CUBLASLT_REDUCTION_SCHEME_NONE, algo);

	if (status == CUBLAS_STATUS_NOT_SUPPORTED)
		status =
			ask(handle, op, s, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE, algo);
	return status;
}

/* FNV-1a. */
static unsigned
hash(const shape *s)
{
	const unsigned char *bytes = (const unsigned char *) s;
	uint64_t h = 14695981039346656037u;

	for (size_t i = 0; i < sizeof(*s); i++)
		h = (h ^ bytes[i]) * 1099511628211u;
	return (unsigned) (h ^ h >> 32);
}

/* The slot that has the shape, or one to put it into, whose rows are 0 then. */
static choice *
find(cuda_blas *blas, const shape *s)
{
	unsigned first = hash(s);
	choice *vacant = NULL;

	for (unsigned i = 0; i < CACHE_WAYS; i++)
	{
		choice *c = &blas->cache[(first + i) % CACHE_SIZE];

		if (memcmp(&c->key, s, sizeof(*s)) == 0)
			return c;
		if (c->key.rows == 0 && !vacant)
			vacant = c;
	}
	if (!vacant)
		vacant = &blas->cache[(first + blas->evict++ % CACHE_WAYS) % CACHE_SIZE];
	vacant->key.rows = 0;
	return vacant;
}

/* NULL when the library has none; the device has failed then. */
static const cublasLtMatmulAlgo_t *
choose(qwen_device *dev, const operation *op, const shape *s)
{
	cuda_blas *blas = cuda_of(dev)->blas;
	choice *c = find(blas, s);

	if (c->key.rows == 0)
	{
		if (!checked(dev, ask_in_order(blas->handle, op, s, &c->algo), "no kernel for a product"))
			return NULL;
		c->key = *s;
	}
	return &c->algo;
}

/* ---- the product ---- */

/* out[rows, n] = bias[n], rows out_stride apart. */
template <typename T>
static __global__ void
spread_bias(T *out, int64_t out_stride, const float *bias, int64_t rows, int64_t n)
{
	int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;

	if (i < rows * n)
		out[i / n * out_stride + i % n] = from_float<T>(bias[i % n]);
}

/* Floor: the bytes of the result. */
static void
put_bias(qwen_device *dev, void *out, const float *bias, const shape *s)
{
	unsigned blocks = (unsigned) ((s->rows * s->n + 255) / 256);
	cudaStream_t stream = cuda_of(dev)->stream;

	if (s->out_type == QWEN_F16)
		CUDA_LAUNCH(spread_bias<__half>, blocks, 256, 0, stream, (__half *) out, s->out_stride, bias, s->rows, s->n);
	else if (s->out_type == QWEN_BF16)
		CUDA_LAUNCH(spread_bias<__nv_bfloat16>, blocks, 256, 0, stream, (__nv_bfloat16 *) out, s->out_stride, bias,
					s->rows, s->n);
	else
		CUDA_LAUNCH(spread_bias<float>, blocks, 256, 0, stream, (float *) out, s->out_stride, bias, s->rows, s->n);
	cuda_launched(dev, "spread_bias");
}

/* The largest power of two up to 256 that divides all three addresses. */
static int32_t
common_alignment(const void *a, const void *b, const void *c)
{
	uintptr_t bits = (uintptr_t) a | (uintptr_t) b | (uintptr_t) c | CUDA_ALIGN;

	return (int32_t) (bits & (~bits + 1));
}

void
cuda_blas_product(qwen_device *dev, void *out, qwen_dtype out_type, int64_t out_stride, const void *w, const void *x,
				  qwen_dtype type, const float *bias, int64_t rows, int64_t n, int64_t k)
{
	const float one = 1, kept = bias ? 1 : 0;
	const cublasLtMatmulAlgo_t *algo;
	operation op = {};
	shape s;

	if (!cuda_ready(dev))
		return;
	s.rows = rows;
	s.n = n;
	s.k = k;
	s.out_stride = out_stride;
	s.type = type;
	s.out_type = out_type;
	s.align = common_alignment(out, w, x);
	s.biased = bias != NULL;
	if (bias)
		put_bias(dev, out, bias, &s);
	if (checked(dev, operation_new(&op, &s), "description of a product") && (algo = choose(dev, &op, &s)) != NULL)
		checked(dev,
				cublasLtMatmul(cuda_of(dev)->blas->handle, op.desc, &one, w, op.w, x, op.x, &kept, out, op.out, out,
							   op.out, algo, cuda_scratch_at(dev, cuda_scratch_of(&dev->needs).blas), CUDA_BLAS_BYTES,
							   cuda_of(dev)->stream),
				"product");
	operation_free(&op);
}
