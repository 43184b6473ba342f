/*
 * test_emulated.h
 *	  What the tests of the emulated CUDA share.
 */
#ifndef TEST_EMULATED_H
#define TEST_EMULATED_H

#include <stdlib.h>
#include <vector>

#include "emulated_math.h"

#define ALL 0xffffffffu
#define WARP EMULATED_WARP

/* A line of TAP. */
void ok(bool passed, const char *what);

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

/* Simplest of kernels. */
static inline __global__ void
add_kernel(int *x, int by)
{
	*x += by;
}

/* The groups of tests, one a file. */
void test_threads(void);
void test_matrices(void);
void test_runtime(void);
void test_mistakes(void);

#endif
