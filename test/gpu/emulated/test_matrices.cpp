/*
 * test_matrices.cpp
 *	  Products of matrices, of a warp and of the library, and the numbers that
 *	  they are made of.
 */
#include "test_emulated.h"

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

/* ---- matrices ---- */

static __nv_bfloat16
narrow(__nv_bfloat16, float x)
{
	return __float2bfloat16(x);
}

static __half
narrow(__half, float x)
{
	return __float2half(x);
}

static void
mma(__nv_bfloat16, float *d, const uint32_t *a, const uint32_t *b)
{
	mma_bf16(d, a, b);
}

static void
mma(__half, float *d, const uint32_t *a, const uint32_t *b)
{
	mma_f16(d, a, b);
}

/* a: [16][16], b: [8 columns][16], d: [16][8], fragments as the instruction's description has them. */
template <typename T>
static __global__ void
mma_kernel(float *d, const T *a, const T *b)
{
	int lane = (int) threadIdx.x, r = lane / 4, c = lane % 4;
	uint32_t fa[4], fb[2];
	float sum[4] = {1000, 2000, 3000, 4000};

	memcpy(&fa[0], a + r * 16 + 2 * c, 4);
	memcpy(&fa[1], a + (r + 8) * 16 + 2 * c, 4);
	memcpy(&fa[2], a + r * 16 + 2 * c + 8, 4);
	memcpy(&fa[3], a + (r + 8) * 16 + 2 * c + 8, 4);
	memcpy(&fb[0], b + r * 16 + 2 * c, 4);
	memcpy(&fb[1], b + r * 16 + 2 * c + 8, 4);
	mma(T(), sum, fa, fb);
	d[r * 8 + 2 * c] = sum[0];
	d[r * 8 + 2 * c + 1] = sum[1];
	d[(r + 8) * 8 + 2 * c] = sum[2];
	d[(r + 8) * 8 + 2 * c + 1] = sum[3];
}

/* The same out of shared memory, where b is [16][8]: the way of attention. */
template <typename T>
static __global__ void
mma_shared_kernel(float *d, const T *a, const T *b)
{
	__shared__ __align__(16) T tile_a[16][16], tile_b[32][8];
	int lane = (int) threadIdx.x, r = lane / 4, c = lane % 4;
	uint32_t fa[4], fb[4];
	float sum[4] = {1000, 2000, 3000, 4000};

	for (int i = lane; i < 256; i += WARP)
		tile_a[i / 16][i % 16] = a[i];
	for (int i = lane; i < 128; i += WARP)
		tile_b[i % 16][i / 16] = b[i];
	__syncwarp();
	load_matrices(fa, &tile_a[lane % 16][lane / 16 * 8]);
	load_matrices_transposed(fb, tile_b[lane]);
	mma(T(), sum, fa, fb);
	d[r * 8 + 2 * c] = sum[0];
	d[r * 8 + 2 * c + 1] = sum[1];
	d[(r + 8) * 8 + 2 * c] = sum[2];
	d[(r + 8) * 8 + 2 * c + 1] = sum[3];
}

/* Small integers, so that every product and sum is exact. */
template <typename T>
static void
test_mma(void (*kernel)(float *, const T *, const T *), const char *what)
{
	device_array<float> d(128);
	device_array<T> a(256), b(128);
	std::vector<T> ha(256), hb(128);
	bool right = true;

	for (int i = 0; i < 256; i++)
		ha[(size_t) i] = narrow(T(), (float) (i * 37 % 251 - 125));
	for (int i = 0; i < 128; i++)
		hb[(size_t) i] = narrow(T(), (float) (i * 29 % 127 - 63));
	a.fill(ha);
	b.fill(hb);
	CUDA_LAUNCH(kernel, 1, WARP, 0, nullptr, d.d, a.d, b.d);
	std::vector<float> h = d.host();
	for (int r = 0; r < 16; r++)
		for (int c = 0; c < 8; c++)
		{
			int sum = 1000 * (1 + c % 2 + r / 8 * 2);

			for (int k = 0; k < 16; k++)
				sum += ((r * 16 + k) * 37 % 251 - 125) * ((c * 16 + k) * 29 % 127 - 63);
			right &= h[(size_t) (r * 8 + c)] == (float) sum;
		}
	ok(right, what);
}

static __global__ void
load_kernel(uint32_t *out, bool transposed)
{
	__shared__ __align__(16) uint16_t rows[32][8];
	int lane = (int) threadIdx.x;
	uint32_t r[4];

	for (int i = 0; i < 8; i++)
		rows[lane][i] = (uint16_t) (lane * 256 + i);
	__syncwarp();
	if (transposed)
		load_matrices_transposed(r, rows[lane]);
	else
		load_matrices(r, rows[lane]);
	/* rows of other lanes, which must have been read */
	for (int i = 0; i < 8; i++)
		rows[lane][i] = 0xffff;
	for (int i = 0; i < 4; i++)
		out[lane * 4 + i] = r[i];
}

static void
test_load_matrices(bool transposed)
{
	device_array<uint32_t> out(4 * WARP);
	bool right = true;

	CUDA_LAUNCH(load_kernel, 1, WARP, 0, nullptr, out.d, transposed);
	std::vector<uint32_t> h = out.host();
	for (uint32_t lane = 0; lane < WARP; lane++)
		for (uint32_t i = 0; i < 4; i++)
		{
			uint32_t r = lane / 4, c = lane % 4 * 2;
			uint32_t lower = transposed ? (8 * i + c) * 256 + r : (8 * i + r) * 256 + c;
			uint32_t upper = transposed ? (8 * i + c + 1) * 256 + r : (8 * i + r) * 256 + c + 1;

			right &= h[lane * 4 + i] == (lower | upper << 16);
		}
	ok(right, transposed ? "load_matrices_transposed" : "load_matrices");
}

/* ---- numbers ---- */

/* A number of so many bits of exponent and mantissa, by its definition. */
static double
value_of(int bits, int exponent_bits, int mantissa_bits)
{
	int mantissa = bits & ((1 << mantissa_bits) - 1), exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
	int bias = (1 << (exponent_bits - 1)) - 1;
	double sign = bits & 0x8000 ? -1 : 1;

	if (exponent == (1 << exponent_bits) - 1)
		return mantissa ? (double) NAN : sign * (double) INFINITY;
	if (exponent == 0)
		return sign * ldexp(mantissa, 1 - bias - mantissa_bits);
	return sign * ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}

typedef struct format
{
	int exponent_bits;
	int mantissa_bits;
	float (*widen)(uint16_t);
	uint16_t (*narrow)(float);
} format;

/* Between two neighbours: below the middle down, above it up, in the middle to the even one. */
static bool
rounds_right(const format &f, int bits)
{
	double low = value_of(bits, f.exponent_bits, f.mantissa_bits);
	double high = value_of(bits + 1, f.exponent_bits, f.mantissa_bits);
	float middle;

	/* beyond the greatest number lies infinity, as if the next one were there */
	if (isinf(high))
		high = low + (low - value_of(bits - 1, f.exponent_bits, f.mantissa_bits));
	middle = (float) ((low + high) / 2);
	return f.narrow(middle) == bits + bits % 2 && f.narrow(nextafterf(middle, (float) low)) == bits &&
		   f.narrow(nextafterf(middle, INFINITY)) == (isinf(high) ? bits : bits + 1);
}

static void
test_conversions(const format &f, const char *what)
{
	bool widened = true, narrowed = true, rounded = true;

	for (int bits = 0; bits < 65536; bits++)
	{
		double value = value_of(bits, f.exponent_bits, f.mantissa_bits);
		float wide = f.widen((uint16_t) bits);

		if (isnan(value))
		{
			widened &= isnan(wide);
			narrowed &= isnan(value_of(f.narrow(wide), f.exponent_bits, f.mantissa_bits));
			continue;
		}
		widened &= (double) wide == value && signbit(wide) == signbit(value);
		narrowed &= f.narrow(wide) == bits;
		if (bits < 0x8000 && !isinf(value))
			rounded &= rounds_right(f, bits);
	}
	ok(widened, what);
	ok(narrowed, "    and back");
	ok(rounded, "    rounded to the nearest, ties to even");
}

static const format half_format = {5, 10, [](uint16_t bits) { return __half2float({bits}); },
								   [](float x) { return __float2half(x).bits; }};
static const format bfloat16_format = {8, 7, [](uint16_t bits) { return __bfloat162float({bits}); },
									   [](float x) { return __float2bfloat16(x).bits; }};

static void
test_arithmetic(void)
{
	ok(__dp4a(0x01ff80fe, (int) 0x7f0203ffu, 10) == 10 + 127 - 2 - 384 + 2, "__dp4a");
	ok(rsqrtf(16.0f) == 0.25f && __expf(0) == 1, "rsqrtf, __expf");
}

/* ---- products ---- */

#define N 5
#define ROWS 3
#define K 37
#define STRIDE 9

/* out[ROWS, STRIDE] as the plug-in has it: out^T = w^T^T x^T in columns. */
static cublasStatus_t
multiply(float *out, const float *w, const float *x, float kept, int64_t rows, cublasLtMatmulAlgo_t *algo, bool ask)
{
	const cublasOperation_t transposed = CUBLAS_OP_T;
	const float one = 1;
	static char *workspace;
	cublasLtHandle_t handle;
	cublasLtMatmulDesc_t desc;
	cublasLtMatrixLayout_t lw, lx, lout;
	cublasLtMatmulPreference_t preference;
	cublasLtMatmulHeuristicResult_t result;
	cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
	int found;

	if (!workspace)
		(void) cudaMalloc(&workspace, 100);
	(void) cublasLtCreate(&handle);
	(void) cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
	(void) cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed));
	(void) cublasLtMatrixLayoutCreate(&lw, CUDA_R_32F, K, N, K);
	(void) cublasLtMatrixLayoutCreate(&lx, CUDA_R_32F, K, (uint64_t) rows, K);
	(void) cublasLtMatrixLayoutCreate(&lout, CUDA_R_32F, N, (uint64_t) rows, STRIDE);
	(void) cublasLtMatmulPreferenceCreate(&preference);
	if (ask)
	{
		status = cublasLtMatmulAlgoGetHeuristic(handle, desc, lw, lx, lout, lout, preference, 1, &result, &found);
		*algo = result.algo;
	}
	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatmul(handle, desc, &one, w, lw, x, lx, &kept, out, lout, out, lout, algo, workspace, 100,
								nullptr);
	(void) cublasLtMatmulPreferenceDestroy(preference);
	(void) cublasLtMatrixLayoutDestroy(lout);
	(void) cublasLtMatrixLayoutDestroy(lx);
	(void) cublasLtMatrixLayoutDestroy(lw);
	(void) cublasLtMatmulDescDestroy(desc);
	(void) cublasLtDestroy(handle);
	return status;
}

static void
test_products(void)
{
	device_array<float> out(ROWS * STRIDE), w(N * K), x(ROWS * K);
	std::vector<float> hw(N * K), hx(ROWS * K), h;
	cublasLtMatmulAlgo_t algo;
	bool right = true;

	for (size_t i = 0; i < N * K; i++)
		hw[i] = (float) (i * 7 % 11) - 5;
	for (size_t i = 0; i < ROWS * K; i++)
		hx[i] = (float) (i * 5 % 13) - 6;
	w.fill(hw);
	x.fill(hx);
	right &= multiply(out.d, w.d, x.d, 0, ROWS, &algo, true) == CUBLAS_STATUS_SUCCESS;
	right &= multiply(out.d, w.d, x.d, 1, ROWS, &algo, false) == CUBLAS_STATUS_SUCCESS;
	h = out.host();
	for (size_t t = 0; t < ROWS; t++)
	{
		for (size_t i = 0; i < N; i++)
		{
			float sum = 0;

			for (size_t j = 0; j < K; j++)
				sum += hw[i * K + j] * hx[t * K + j];
			right &= h[t * STRIDE + i] == 2 * sum;
		}
		right &= isnan(h[t * STRIDE + N]) && isnan(h[t * STRIDE + STRIDE - 1]);
	}
	ok(right, "a product, and a second one added to it");
	ok(multiply(out.d, w.d, x.d, 0, ROWS - 1, &algo, false) == CUBLAS_STATUS_INVALID_VALUE,
	   "an algorithm of another shape is refused");
	ok(multiply(out.d, w.d, x.d + 1, 0, ROWS, &algo, false) == CUBLAS_STATUS_INVALID_VALUE,
	   "an algorithm for memory that is better aligned is refused");
}

void
test_matrices(void)
{
	test_mma(mma_kernel<__nv_bfloat16>, "mma_bf16");
	test_mma(mma_kernel<__half>, "mma_f16");
	test_mma(mma_shared_kernel<__nv_bfloat16>, "mma_bf16 from shared memory");
	test_mma(mma_shared_kernel<__half>, "mma_f16 from shared memory");
	test_load_matrices(false);
	test_load_matrices(true);
	test_conversions(half_format, "float16 widened");
	test_conversions(bfloat16_format, "bfloat16 widened");
	test_arithmetic();
	test_products();
}
