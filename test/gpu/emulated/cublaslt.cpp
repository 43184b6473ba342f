/*
 * cublaslt.cpp
 *	  Products of matrices, d = alpha a^T b + beta c, column by column, with
 *	  float sums: the one kind that the plug-in asks for.
 *
 * An algorithm is the description of what it has been asked for, and does
 * nothing else: one that is used for another shape, other types or a lesser
 * alignment is refused.
 *
 * A sum has 16 parts, which are added in order at its end: the compiler may
 * then use vectors, and a column's bits do not depend on other columns.
 */
#include <cublasLt.h>

#include "emulator.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector>

#define PARTS 16
/* What the library writes into its workspace, at both ends. */
#define SCRIBBLE ((size_t) 4096)

struct emulated_library
{
};

struct emulated_description
{
	cublasOperation_t a;
};

struct emulated_layout
{
	cudaDataType_t type;
	int64_t rows, columns, stride;
};

struct emulated_preference
{
	uint64_t workspace;
	uint32_t alignment[4]; /* of a, b, c and d, bytes */
};

typedef struct product
{
	emulated_layout a, b, d;
	const void *a_data, *b_data, *c_data;
	void *d_data;
	float alpha, beta;
	char *workspace;
	size_t workspace_bytes;
} product;

/* ---- descriptions ---- */

cublasStatus_t
cublasLtCreate(cublasLtHandle_t *handle)
{
	*handle = new emulated_library();
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t
cublasLtDestroy(cublasLtHandle_t handle)
{
	delete handle;
	return CUBLAS_STATUS_SUCCESS;
}

const char *
cublasLtGetStatusString(cublasStatus_t status)
{
	switch (status)
	{
		case CUBLAS_STATUS_SUCCESS:
			return "CUBLAS_STATUS_SUCCESS";
		case CUBLAS_STATUS_INVALID_VALUE:
			return "CUBLAS_STATUS_INVALID_VALUE";
		case CUBLAS_STATUS_NOT_SUPPORTED:
			return "CUBLAS_STATUS_NOT_SUPPORTED";
	}
	return "unknown status";
}

cublasStatus_t
cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute, cudaDataType_t scale)
{
	if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F)
		return CUBLAS_STATUS_INVALID_VALUE;
	*desc = new emulated_description{CUBLAS_OP_N};
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t
cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc)
{
	delete desc;
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t
cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, const void *value,
							   size_t size)
{
	if (attribute != CUBLASLT_MATMUL_DESC_TRANSA || size != sizeof(desc->a))
		return CUBLAS_STATUS_INVALID_VALUE;
	memcpy(&desc->a, value, size);
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t
cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType_t type, uint64_t rows, uint64_t columns,
						   int64_t stride)
{
	if (rows == 0 || columns == 0 || stride < (int64_t) rows)
		return CUBLAS_STATUS_INVALID_VALUE;
	*layout = new emulated_layout{type, (int64_t) rows, (int64_t) columns, stride};
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t
cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
	delete layout;
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t
cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference)
{
	*preference = new emulated_preference{0, {256, 256, 256, 256}};
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t
cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
	delete preference;
	return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t
take(void *into, size_t wanted, const void *value, size_t size)
{
	if (size != wanted)
		return CUBLAS_STATUS_INVALID_VALUE;
	memcpy(into, value, size);
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t
cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
									 cublasLtMatmulPreferenceAttributes_t attribute, const void *value, size_t size)
{
	uint32_t schemes;

	switch (attribute)
	{
		case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
			return take(&preference->workspace, sizeof(preference->workspace), value, size);
		case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
			return take(&schemes, sizeof(schemes), value, size);
		case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
		case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
		case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
		case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
			return take(&preference->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES],
						sizeof(preference->alignment[0]), value, size);
	}
	return CUBLAS_STATUS_INVALID_VALUE;
}

/* ---- algorithms ---- */

/* All that has to be the same when it is used. */
static cublasLtMatmulAlgo_t
algorithm(const emulated_layout &a, const emulated_layout &b, const emulated_layout &d)
{
	return {{(uint64_t) a.type << 16 | (uint64_t) b.type << 8 | (uint64_t) d.type, (uint64_t) a.rows,
			 (uint64_t) a.columns, (uint64_t) b.columns, (uint64_t) a.stride, (uint64_t) b.stride,
			 (uint64_t) d.stride}};
}

static bool
same_layout(const emulated_layout &a, const emulated_layout &b)
{
	return a.type == b.type && a.rows == b.rows && a.columns == b.columns && a.stride == b.stride;
}

static cublasStatus_t
check_shapes(const emulated_description &desc, const emulated_layout &a, const emulated_layout &b,
			 const emulated_layout &c, const emulated_layout &d)
{
	if (a.rows != b.rows || d.rows != a.columns || d.columns != b.columns || !same_layout(c, d))
		return CUBLAS_STATUS_INVALID_VALUE;
	if (desc.a != CUBLAS_OP_T || a.type != b.type || (d.type != a.type && d.type != CUDA_R_32F))
		return CUBLAS_STATUS_NOT_SUPPORTED;
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t
cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
							   cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
							   cublasLtMatmulPreference_t preference, int wanted,
							   cublasLtMatmulHeuristicResult_t *results, int *found)
{
	cublasStatus_t status = check_shapes(*desc, *a, *b, *c, *d);
	uint64_t least = 256;

	*found = 0;
	if (!handle || wanted < 1)
		return CUBLAS_STATUS_INVALID_VALUE;
	if (status != CUBLAS_STATUS_SUCCESS)
		return status;
	for (uint32_t alignment : preference->alignment)
		least = alignment < least ? alignment : least;
	results[0] = {algorithm(*a, *b, *d), preference->workspace, CUBLAS_STATUS_SUCCESS, 1};
	results[0].algo.data[7] = preference->workspace << 16 | least;
	*found = 1;
	return CUBLAS_STATUS_SUCCESS;
}

/* ---- products ---- */

static size_t
size_of(cudaDataType_t type)
{
	return type == CUDA_R_32F ? 4 : 2;
}

static float
load(const void *p, cudaDataType_t type, int64_t i)
{
	if (type == CUDA_R_32F)
		return static_cast<const float *>(p)[i];
	if (type == CUDA_R_16F)
		return __half2float(static_cast<const __half *>(p)[i]);
	return __bfloat162float(static_cast<const __nv_bfloat16 *>(p)[i]);
}

static void
store(void *p, cudaDataType_t type, int64_t i, float x)
{
	if (type == CUDA_R_32F)
		static_cast<float *>(p)[i] = x;
	else if (type == CUDA_R_16F)
		static_cast<__half *>(p)[i] = __float2half(x);
	else
		static_cast<__nv_bfloat16 *>(p)[i] = __float2bfloat16(x);
}

static void
widen_column(float *out, const void *data, const emulated_layout &m, int64_t column)
{
	for (int64_t i = 0; i < m.rows; i++)
		out[i] = load(data, m.type, column * m.stride + i);
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

/* c is not read when it has no part in the result. */
static void
multiply(const product &p)
{
	int64_t k = p.a.rows;
	std::vector<float> b((size_t) (p.b.columns * k)), a((size_t) k);
	size_t scribble = p.workspace_bytes < SCRIBBLE ? p.workspace_bytes : SCRIBBLE;

	memset(p.workspace, 0xff, scribble);
	memset(p.workspace + p.workspace_bytes - scribble, 0xff, scribble);
	for (int64_t j = 0; j < p.b.columns; j++)
		widen_column(&b[(size_t) (j * k)], p.b_data, p.b, j);
	for (int64_t i = 0; i < p.a.columns; i++)
	{
		widen_column(a.data(), p.a_data, p.a, i);
		for (int64_t j = 0; j < p.b.columns; j++)
		{
			int64_t at = j * p.d.stride + i;
			float x = p.alpha * dot(a.data(), &b[(size_t) (j * k)], k);

			store(p.d_data, p.d.type, at, p.beta != 0 ? x + p.beta * load(p.c_data, p.d.type, at) : x);
		}
	}
}

static bool
is_aligned(const void *p, uint64_t to)
{
	return reinterpret_cast<uintptr_t>(p) % to == 0;
}

static cublasStatus_t
check_product(const product &p, const cublasLtMatmulAlgo_t &algo)
{
	cublasLtMatmulAlgo_t right = algorithm(p.a, p.b, p.d);
	uint64_t alignment = algo.data[7] & 0xffff, workspace = algo.data[7] >> 16;

	if (memcmp(right.data, algo.data, 7 * sizeof(algo.data[0])) != 0 || p.workspace_bytes < workspace)
		return CUBLAS_STATUS_INVALID_VALUE;
	if (!is_aligned(p.a_data, alignment) || !is_aligned(p.b_data, alignment) || !is_aligned(p.c_data, alignment) ||
		!is_aligned(p.d_data, alignment))
		return CUBLAS_STATUS_INVALID_VALUE;
	if (!is_aligned(p.a_data, size_of(p.a.type)) || !is_aligned(p.workspace, 16))
		return CUBLAS_STATUS_INVALID_VALUE;
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t
cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
			   cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout, const void *beta,
			   const void *c, cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout,
			   const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
	emulated_lock lock(emulated_everything);
	cublasStatus_t status = check_shapes(*desc, *a_layout, *b_layout, *c_layout, *d_layout);
	product p = {*a_layout,
				 *b_layout,
				 *d_layout,
				 a,
				 b,
				 c,
				 d,
				 *static_cast<const float *>(alpha),
				 *static_cast<const float *>(beta),
				 static_cast<char *>(workspace),
				 workspace_bytes};

	if (!handle || !algo)
		return CUBLAS_STATUS_INVALID_VALUE;
	if (status == CUBLAS_STATUS_SUCCESS)
		status = check_product(p, *algo);
	if (status == CUBLAS_STATUS_SUCCESS && emulated_queue(stream, [p] { multiply(p); }) != cudaSuccess)
		status = CUBLAS_STATUS_INVALID_VALUE;
	return status;
}
