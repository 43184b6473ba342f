/*
 * emulated_math.h
 *	  What cuda_math.h has as instructions of the GPU, for the emulated CUDA.
 */
#ifndef EMULATED_MATH_H
#define EMULATED_MATH_H

#include <tuple>
#include <type_traits>

#include "emulator.h"

/* Poisoned before each block; beyond its end lies memory that nobody may touch. */
void *emulated_shared(void);

#define CUDA_SHARED(type, name) type *name = static_cast<type *>(emulated_shared())

#define CUDA_LAUNCH(kernel, grid, block, shared, stream, ...)                                                          \
	emulated_launch(#kernel, kernel, dim3(grid), dim3(block), (size_t) (shared), stream, ##__VA_ARGS__)

/* Queues a kernel; errors of the launch are found with cudaGetLastError. stream.cpp */
void emulated_start(const emulated_kernel &kernel, cudaStream_t stream, emulated_work call);

/* Keeps the arguments from being deduced: they are converted to the parameters' types, as in any call. */
template <typename T> struct emulated_parameter
{
	typedef T type;
};

template <typename... P>
static inline void
emulated_launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
				typename emulated_parameter<P>::type... args)
{
	static_assert((std::is_trivially_copyable_v<P> && ...), "arguments are copied byte by byte");
	static_assert((sizeof(P) + ... + 0) <= 4096, "arguments have 4 KiB");
	std::tuple<P...> values{args...};

	emulated_start({name, reinterpret_cast<const void *>(kernel), grid, block, shared}, stream,
				   [kernel, values] { std::apply(kernel, values); });
}

/*
 * Copies behind the thread's back: the bytes are poison from the call on and arrive at the wait, so that both a wait
 * that is missing and a buffer that is still read show.  block.cpp
 */
void copy_async_16(void *shared, const void *global, int valid = 16);
void copy_async_commit(void);
void emulated_copy_wait(int pending);

template <int pending>
static inline void
copy_async_wait(void)
{
	emulated_copy_wait(pending);
}

/* matrix.cpp */
void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], int line = __builtin_LINE());
void mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2], int line = __builtin_LINE());
void load_matrices(uint32_t r[4], const void *row, int line = __builtin_LINE());
void load_matrices_transposed(uint32_t r[4], const void *row, int line = __builtin_LINE());

static inline uint4
load_streaming(const void *p)
{
	return *static_cast<const uint4 *>(p);
}

#endif
