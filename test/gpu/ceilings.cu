/*
 * ceilings.cu
 *	  What a GPU gives at most: the scale that test/bench/gpu.py measures the
 *	  engine by.  One JSON object on standard output.
 *
 *	  ceilings [INDEX]
 *
 * read    bytes a second of device memory, read once by a kernel that does
 *	   nothing else: 16 bytes a load, eight under way per thread, a buffer
 *	   far larger than the caches
 * matrix  operations a second (a product and a sum count two) of bfloat16
 *	   products with float sums, 8192 each way, by the fastest of the
 *	   algorithms that cuBLASLt proposes
 * upload  bytes a second from pinned memory to the device
 *
 * Each is the median of several runs after one that does not count, timed with
 * the device's own events, on random data: zeros are faster than anything that
 * a model holds.
 */
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define RUNS 9
#define THREADS 512
#define LOADS 8 /* of 16 bytes, under way per thread */
#define MATRIX 8192
#define ALGORITHMS 8
#define WORKSPACE ((size_t) 64 << 20)
#define UPLOAD ((size_t) 256 << 20)

static void
must(bool ok, const char *what, const char *why)
{
	if (ok)
		return;
	fprintf(stderr, "ceilings: %s: %s\n", what, why);
	exit(1);
}

static void
check(cudaError_t error, const char *what)
{
	must(error == cudaSuccess, what, cudaGetErrorString(error));
}

static void
check_blas(cublasStatus_t status, const char *what)
{
	must(status == CUBLAS_STATUS_SUCCESS, what, cublasLtGetStatusString(status));
}

static void *
device_memory(size_t bytes)
{
	void *p = NULL;

	check(cudaMalloc(&p, bytes), "memory");
	return p;
}

/* Median seconds of RUNS runs of f. */
template <typename F>
static double
seconds_of(F f)
{
	cudaEvent_t begin, end;
	float ms[RUNS];

	check(cudaEventCreate(&begin), "event");
	check(cudaEventCreate(&end), "event");
	f();
	for (int i = 0; i < RUNS; i++)
	{
		check(cudaEventRecord(begin), "event");
		f();
		check(cudaEventRecord(end), "event");
		check(cudaEventSynchronize(end), "run");
		check(cudaEventElapsedTime(&ms[i], begin, end), "event");
	}
	check(cudaEventDestroy(begin), "event");
	check(cudaEventDestroy(end), "event");
	std::sort(ms, ms + RUNS);
	return ms[RUNS / 2] / 1e3;
}

/* ---- data ---- */

/* Words of two bfloat16 between 0.5 and 1, of random sign and mantissa. */
static __global__ void
fill(uint32_t *x, size_t n)
{
	for (size_t i = (size_t) blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t) gridDim.x * blockDim.x)
	{
		uint32_t r = (uint32_t) i * 2654435761u;

		r = (r ^ (r >> 15)) * 2246822519u;
		x[i] = (r & 0x807f807fu) | 0x3f003f00u;
	}
}

static void *
random_memory(size_t bytes)
{
	void *p = device_memory(bytes);

	fill<<<4096, 256>>>(static_cast<uint32_t *>(p), bytes / sizeof(uint32_t));
	check(cudaGetLastError(), "fill");
	check(cudaDeviceSynchronize(), "fill");
	return p;
}

/* ---- reading ---- */

/* n vectors; the sums would be stored if they were what they never are, so that no load can be left out. */
static __global__ void
__launch_bounds__(THREADS) read_all(const uint4 *x, size_t n, uint32_t *out)
{
	const size_t stride = (size_t) gridDim.x * THREADS;
	uint32_t sum = 0;

	for (size_t i = (size_t) blockIdx.x * THREADS + threadIdx.x; i + (LOADS - 1) * stride < n; i += LOADS * stride)
	{
		uint4 v[LOADS];

#pragma unroll
		for (int j = 0; j < LOADS; j++)
			v[j] = __ldcs(x + i + j * stride);
#pragma unroll
		for (int j = 0; j < LOADS; j++)
			sum |= v[j].x & v[j].y & v[j].z & v[j].w;
	}
	if (sum & 0x40000000u) /* no element is 2 or more */
		*out = sum;
}

static double
read_rate(int n_sms, size_t free_bytes)
{
	size_t round = (size_t) n_sms * 4 * THREADS * LOADS, n = std::min(free_bytes / 4, (size_t) 8 << 30) / sizeof(uint4);
	uint4 *x;
	uint32_t *out = static_cast<uint32_t *>(device_memory(sizeof(uint32_t)));
	double seconds;

	n = n / round * round;
	x = static_cast<uint4 *>(random_memory(n * sizeof(uint4)));
	seconds = seconds_of([=] { read_all<<<n_sms * 4, THREADS>>>(x, n, out); });
	check(cudaGetLastError(), "read");
	check(cudaFree(x), "memory");
	check(cudaFree(out), "memory");
	return (double) (n * sizeof(uint4)) / seconds;
}

/* ---- products ---- */

static double
matrix_rate(void)
{
	const size_t bytes = (size_t) MATRIX * MATRIX * sizeof(__nv_bfloat16);
	void *a = random_memory(bytes), *b = random_memory(bytes), *c = device_memory(bytes);
	void *workspace = device_memory(WORKSPACE);
	size_t limit = WORKSPACE;
	cublasLtHandle_t handle;
	cublasLtMatmulDesc_t product;
	cublasLtMatrixLayout_t layout;
	cublasLtMatmulPreference_t preference;
	cublasLtMatmulHeuristicResult_t found[ALGORITHMS];
	cublasOperation_t transposed = CUBLAS_OP_T;
	const float one = 1, zero = 0;
	double best = 0;
	int n = 0;

	check_blas(cublasLtCreate(&handle), "cuBLASLt");
	check_blas(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F), "product");
	check_blas(cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)),
			   "product");
	check_blas(cublasLtMatrixLayoutCreate(&layout, CUDA_R_16BF, MATRIX, MATRIX, MATRIX), "layout");
	check_blas(cublasLtMatmulPreferenceCreate(&preference), "preference");
	check_blas(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &limit,
													sizeof(limit)),
			   "preference");
	check_blas(cublasLtMatmulAlgoGetHeuristic(handle, product, layout, layout, layout, layout, preference, ALGORITHMS,
											  found, &n),
			   "algorithms");
	for (int i = 0; i < n; i++)
	{
		double seconds = seconds_of(
			[&]
			{
				check_blas(cublasLtMatmul(handle, product, &one, a, layout, b, layout, &zero, c, layout, c, layout,
										  &found[i].algo, workspace, WORKSPACE, 0),
						   "product");
			});

		best = std::max(best, 2.0 * MATRIX * MATRIX * MATRIX / seconds);
	}
	check_blas(cublasLtMatmulPreferenceDestroy(preference), "preference");
	check_blas(cublasLtMatrixLayoutDestroy(layout), "layout");
	check_blas(cublasLtMatmulDescDestroy(product), "product");
	check_blas(cublasLtDestroy(handle), "cuBLASLt");
	for (void *p : {a, b, c, workspace})
		check(cudaFree(p), "memory");
	return best;
}

/* ---- uploads ---- */

static double
upload_rate(void)
{
	void *pinned = NULL, *d = device_memory(UPLOAD);
	double seconds;

	check(cudaMallocHost(&pinned, UPLOAD), "pinned memory");
	for (size_t i = 0; i < UPLOAD / sizeof(uint32_t); i++)
		static_cast<uint32_t *>(pinned)[i] = (uint32_t) i * 2654435761u;
	seconds = seconds_of([=] { check(cudaMemcpyAsync(d, pinned, UPLOAD, cudaMemcpyHostToDevice), "upload"); });
	check(cudaFreeHost(pinned), "pinned memory");
	check(cudaFree(d), "memory");
	return (double) UPLOAD / seconds;
}

int
main(int argc, char **argv)
{
	int index = argc > 1 ? atoi(argv[1]) : 0;
	cudaDeviceProp properties;
	size_t free_bytes, total_bytes;
	int driver = 0;

	check(cudaSetDevice(index), "device");
	check(cudaGetDeviceProperties(&properties, index), "device");
	check(cudaMemGetInfo(&free_bytes, &total_bytes), "device");
	check(cudaDriverGetVersion(&driver), "driver");
	printf(
		"{\"gpu\": \"%s\", \"capability\": %d, \"multiprocessors\": %d, \"bytes\": %zu, \"free\": %zu, \"cuda\": %d, "
		"\"read\": %.4g, \"matrix\": %.4g, \"upload\": %.4g}\n",
		properties.name, properties.major * 10 + properties.minor, properties.multiProcessorCount, total_bytes,
		free_bytes, driver, read_rate(properties.multiProcessorCount, free_bytes), matrix_rate(), upload_rate());
	return 0;
}
