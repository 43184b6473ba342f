/*
 * test_emulated.cpp
 *	  Does the model of CUDA do what CUDA does, and does it find what it is
 *	  there to find?  TAP.
 */
#include "emulated_math.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#define ALL 0xffffffffu
#define WARP EMULATED_WARP

static int n_tests;
static int n_failed;

static void
ok(bool passed, const char *what)
{
	printf("%sok %d - %s\n", passed ? "" : "not ", ++n_tests, what);
	n_failed += !passed;
}

/* Device memory, with the host's copy of what kernels left in it. */
template <typename T> struct device_array
{
	T *d;
	size_t n;

	explicit device_array(size_t n_) : d(nullptr), n(n_)
	{
		if (cudaMalloc(&d, n * sizeof(T)) != cudaSuccess)
			abort();
	}
	~device_array()
	{
		(void) cudaFree(d);
	}
	std::vector<T>
	host() const
	{
		std::vector<T> h(n);

		(void) cudaMemcpy(h.data(), d, n * sizeof(T), cudaMemcpyDeviceToHost);
		return h;
	}
	void
	fill(const std::vector<T> &from)
	{
		(void) cudaMemcpy(d, from.data(), n * sizeof(T), cudaMemcpyHostToDevice);
	}
};

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

int
main(void)
{
	test_shuffles();
	test_barriers(dim3(64));
	test_barriers(dim3(32, 30));
	test_barriers(dim3(1024));
	printf("1..%d\n", n_tests);
	return n_failed > 0;
}
