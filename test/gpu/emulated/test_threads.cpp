/*
 * test_threads.cpp
 *	  Threads of a block that meet, and what may be launched.
 */
#include "test_emulated.h"

/* ---- threads that meet ---- */

static __global__ void
shuffle_kernel(int *out)
{
	int lane = (int) threadIdx.x, *row = out + lane * 4;

	row[0] = __shfl_xor_sync(ALL, 100 + lane, 5);
	row[1] = __shfl_down_sync(ALL, 100 + lane, 3);
	row[2] = __shfl_sync(ALL, 100 + lane, lane / 8 * 8 + 7);
	row[3] = (int) __ballot_sync(ALL, lane % 3 == 0);
}

static void
test_shuffles(void)
{
	device_array<int> out(4 * WARP);
	bool right[4] = {true, true, true, true};
	unsigned thirds = 0;

	for (int i = 0; i < WARP; i += 3)
		thirds |= 1u << i;
	CUDA_LAUNCH(shuffle_kernel, 1, WARP, 0, nullptr, out.d);
	std::vector<int> h = out.host();
	for (int i = 0; i < WARP; i++)
	{
		right[0] &= h[i * 4] == 100 + (i ^ 5);
		right[1] &= h[i * 4 + 1] == 100 + (i + 3 < WARP ? i + 3 : i);
		right[2] &= h[i * 4 + 2] == 100 + i / 8 * 8 + 7;
		right[3] &= (unsigned) h[i * 4 + 3] == thirds;
	}
	ok(right[0], "__shfl_xor_sync");
	ok(right[1], "__shfl_down_sync");
	ok(right[2], "__shfl_sync");
	ok(right[3], "__ballot_sync");
}

/* Threads of the block's first half end early; the others meet often. */
static __global__ void
barrier_kernel(int *out)
{
	__shared__ int turn[2][1024];
	int n = (int) (blockDim.x * blockDim.y), i = (int) (threadIdx.y * blockDim.x + threadIdx.x), half = n / 2, sum = i;

	if (i < half)
		return;
	for (int step = 0; step < 10; step++)
	{
		turn[step % 2][i] = sum;
		__syncthreads();
		sum += turn[step % 2][i + 1 < n ? i + 1 : half];
	}
	out[(int) blockIdx.x * n + i] = sum;
}

static void
test_barriers(dim3 threads)
{
	const int blocks = 3, n = (int) (threads.x * threads.y), half = n / 2;
	device_array<int> out((size_t) (blocks * n));
	std::vector<int> expected((size_t) n), before;
	bool right = true;

	for (int i = 0; i < n; i++)
		expected[(size_t) i] = i;
	for (int step = 0; step < 10; step++)
	{
		before = expected;
		for (int i = half; i < n; i++)
			expected[(size_t) i] += before[(size_t) (i + 1 < n ? i + 1 : half)];
	}
	CUDA_LAUNCH(barrier_kernel, blocks, threads, 0, nullptr, out.d);
	std::vector<int> h = out.host();
	for (int b = 0; b < blocks; b++)
		for (int i = half; i < n; i++)
			right &= h[(size_t) (b * n + i)] == expected[(size_t) i];
	ok(right, "barriers of the threads that are left");
}

/* Sums over warps that meet at different times, each as often as its number says. */
static __global__ void
uneven_kernel(int *out)
{
	int warp = (int) threadIdx.x / WARP, sum = (int) threadIdx.x % WARP;

	for (int step = 0; step <= warp; step++)
		for (int by = WARP / 2; by > 0; by /= 2)
			sum += __shfl_xor_sync(ALL, sum, by);
	out[threadIdx.x] = sum;
}

static void
test_uneven_warps(void)
{
	const int n = 5 * WARP;
	device_array<int> out(n);
	bool right = true;
	int expected = WARP * (WARP - 1) / 2;

	CUDA_LAUNCH(uneven_kernel, 1, n, 0, nullptr, out.d);
	std::vector<int> h = out.host();
	for (int i = 0; i < n; i++)
	{
		if (i > 0 && i % WARP == 0)
			expected *= WARP;
		right &= h[(size_t) i] == expected;
	}
	ok(right, "warps that meet more often than others");
}

static __global__ void
order_kernel(int *out, int *next)
{
	out[blockIdx.x * blockDim.x + threadIdx.x] = (*next)++;
}

static void
test_order(void)
{
	const char *setting = getenv("QWEN_EMULATED_ORDER");
	bool last_first = setting && strcmp(setting, "reverse") == 0, right = true;
	device_array<int> out(2 * 70), next(1);

	next.fill({0});
	CUDA_LAUNCH(order_kernel, 2, 70, 0, nullptr, out.d, next.d);
	std::vector<int> h = out.host();
	/* within a warp at least: the last warp has six lanes */
	right &= last_first ? h[139] == 0 && h[134] == 5 && h[0] == 139 : h[0] == 0 && h[31] == 31 && h[139] == 139;
	ok(right, last_first ? "the last thread runs first" : "the first thread runs first");
}

/* ---- launches ---- */

static cudaError_t
error_of_launch(dim3 grid, dim3 block, size_t shared)
{
	device_array<int> d(1);

	CUDA_LAUNCH(add_kernel, grid, block, shared, nullptr, d.d, 1);
	return cudaGetLastError();
}

static void
test_launches(void)
{
	ok(error_of_launch(1, 1024, 0) == cudaSuccess, "1024 threads");
	ok(error_of_launch(1, 1025, 0) == cudaErrorInvalidConfiguration, "1025 threads");
	ok(error_of_launch(dim3(1, 65536), 1, 0) == cudaErrorInvalidConfiguration, "65536 blocks in y");
	ok(error_of_launch(0, 1, 0) == cudaErrorInvalidConfiguration, "no blocks");
	ok(error_of_launch(1, 1, (48 << 10) + 1) == cudaErrorInvalidValue, "more shared memory than usual, unasked");
	ok(cudaFuncSetAttribute(add_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 << 10) == cudaSuccess &&
		   error_of_launch(1, 1, 227 << 10) == cudaSuccess,
	   "the same, asked for");
	ok(cudaFuncSetAttribute(add_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (227 << 10) + 1) ==
		   cudaErrorInvalidValue,
	   "more than there is");
	(void) cudaGetLastError();
}

void
test_threads(void)
{
	test_shuffles();
	test_barriers(dim3(64));
	test_barriers(dim3(32, 30));
	test_barriers(dim3(1024));
	test_uneven_warps();
	test_order();
	test_launches();
}
