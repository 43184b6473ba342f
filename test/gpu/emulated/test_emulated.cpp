/*
 * test_emulated.cpp
 *	  Does the model of CUDA do what CUDA does, and does it find what it is
 *	  there to find?  TAP.
 */
#include "emulated_math.h"

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <nccl.h>
#include <signal.h>
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

/* ---- memory ---- */

/* Copies behind the thread's back: out[0..3] before the wait, [4..7] after it, [8..11] of a group that is not waited for. */
static __global__ void
late_kernel(int *out, const int *in)
{
	int *buffer;
	CUDA_SHARED(int, shared);

	buffer = shared;
	for (int i = 0; i < 8; i++)
		buffer[i] = 7;
	copy_async_16(buffer, in, 8);
	copy_async_commit();
	copy_async_16(buffer + 4, in + 4);
	copy_async_commit();
	for (int i = 0; i < 4; i++)
		out[i] = buffer[i];
	copy_async_wait<1>();
	for (int i = 0; i < 8; i++)
		out[4 + i] = buffer[i];
	copy_async_wait<0>();
	for (int i = 0; i < 4; i++)
		out[12 + i] = buffer[4 + i];
}

static bool
all_are(const std::vector<int> &h, size_t from, size_t n, int value)
{
	for (size_t i = from; i < from + n; i++)
		if (h[i] != value)
			return false;
	return true;
}

static void
test_late_copies_to_shared(void)
{
	device_array<int> out(16), in(8);

	in.fill({10, 11, 12, 13, 14, 15, 16, 17});
	CUDA_LAUNCH(late_kernel, 1, 1, 32, nullptr, out.d, in.d);
	std::vector<int> h = out.host();
	ok(all_are(h, 0, 4, -1), "bytes on their way are poison");
	ok(h[4] == 10 && h[5] == 11 && h[6] == 0 && h[7] == 0, "a wait brings them, zeros beyond the valid ones");
	ok(all_are(h, 8, 4, -1), "a wait for one group leaves the next");
	ok(h[12] == 14 && h[15] == 17, "a wait for all brings the rest");
}

static __global__ void
poison_kernel(int *out)
{
	CUDA_SHARED(int, shared);

	out[blockIdx.x] = shared[0] & shared[63];
	shared[0] = shared[63] = 0;
}

static void
test_poison(void)
{
	device_array<int> out(4), fresh(100);
	std::vector<int> h = fresh.host();

	ok(all_are(h, 0, 100, -1), "device memory is poisoned");
	CUDA_LAUNCH(poison_kernel, 4, 1, 256, nullptr, out.d);
	h = out.host();
	ok(all_are(h, 0, 4, -1), "dynamic shared memory is poisoned for each block");
}

static void
test_late_copies(void)
{
	device_array<int> d(4), e(4);
	cudaStream_t stream;
	int *pinned, plain[4] = {1, 1, 1, 1}, back[4] = {0, 0, 0, 0};

	(void) cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
	(void) cudaMallocHost(&pinned, sizeof(plain));
	memcpy(pinned, plain, sizeof(plain));
	(void) cudaMemcpyAsync(d.d, pinned, sizeof(plain), cudaMemcpyHostToDevice, stream);
	(void) cudaMemcpyAsync(e.d, plain, sizeof(plain), cudaMemcpyHostToDevice, stream);
	pinned[0] = plain[0] = 2;
	(void) cudaStreamSynchronize(stream);
	ok(d.host()[0] == 2, "a pinned buffer that is used again too early is seen");
	ok(e.host()[0] == 1, "pageable memory is copied at once");
	(void) cudaMemcpyAsync(pinned, e.d, sizeof(plain), cudaMemcpyDeviceToHost, stream);
	ok(pinned[0] == 2, "a copy to pinned memory is late");
	(void) cudaMemcpyAsync(back, e.d, sizeof(back), cudaMemcpyDeviceToHost, stream);
	ok(back[0] == 1 && pinned[0] == 1, "a copy to pageable memory blocks");
	(void) cudaStreamDestroy(stream);
	(void) cudaFreeHost(pinned);
}

static void
test_capacity(void)
{
	void *p, *q;
	size_t before, during, total;

	(void) cudaMemGetInfo(&before, &total);
	(void) cudaMalloc(&p, 1000);
	(void) cudaMemGetInfo(&during, &total);
	ok(before - during == 1024 && total == (size_t) 1 << 30, "free memory is counted");
	ok(cudaMalloc(&q, before) == cudaErrorMemoryAllocation && q == nullptr, "there is no more memory than there is");
	(void) cudaGetLastError();
	(void) cudaFree(p);
	(void) cudaMemGetInfo(&during, &total);
	ok(during == before, "freed memory is free");
	ok(cudaFree(&total) == cudaErrorInvalidValue, "what was not allocated is not freed");
	(void) cudaGetLastError();
}

/* ---- streams and graphs ---- */

static __global__ void
add_kernel(int *x, int by)
{
	*x += by;
}

static __global__ void
times_kernel(int *x, const int *by)
{
	*x *= *by;
}

static void
test_streams(void)
{
	device_array<int> d(1);
	cudaStream_t one, two;
	cudaEvent_t event;

	(void) cudaStreamCreateWithFlags(&one, cudaStreamNonBlocking);
	(void) cudaStreamCreateWithFlags(&two, cudaStreamNonBlocking);
	(void) cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
	d.fill({1});
	CUDA_LAUNCH(add_kernel, 1, 1, 0, one, d.d, 1);
	ok(*d.d == 1, "a kernel does not run before somebody waits");
	CUDA_LAUNCH(times_kernel, 1, 1, 0, two, d.d, d.d);
	(void) cudaStreamSynchronize(two);
	ok(*d.d == 1, "a stream that is not waited for has not run");
	(void) cudaEventRecord(event, one);
	CUDA_LAUNCH(add_kernel, 1, 1, 0, one, d.d, 100);
	(void) cudaStreamWaitEvent(two, event);
	CUDA_LAUNCH(times_kernel, 1, 1, 0, two, d.d, d.d);
	(void) cudaStreamSynchronize(two);
	ok(*d.d == 4, "an event is waited for, and what follows it is not");
	(void) cudaEventSynchronize(event);
	(void) cudaStreamSynchronize(one);
	ok(*d.d == 104, "the rest runs when it is waited for");
	(void) cudaEventDestroy(event);
	(void) cudaStreamDestroy(one);
	(void) cudaStreamDestroy(two);
}

static void
test_graphs(void)
{
	device_array<int> d(1), by(1);
	cudaStream_t stream;
	cudaGraph_t graph;
	cudaGraphExec_t exec;
	int *pinned;

	(void) cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
	(void) cudaMallocHost(&pinned, sizeof(int));
	d.fill({1});
	by.fill({3});
	(void) cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
	(void) cudaMemcpyAsync(by.d, pinned, sizeof(int), cudaMemcpyHostToDevice, stream);
	CUDA_LAUNCH(times_kernel, 1, 1, 0, stream, d.d, by.d);
	CUDA_LAUNCH(add_kernel, 1, 1, 0, stream, d.d, 1);
	(void) cudaStreamEndCapture(stream, &graph);
	(void) cudaStreamSynchronize(stream);
	ok(*d.d == 1, "recording runs nothing");
	(void) cudaGraphInstantiate(&exec, graph);
	(void) cudaGraphDestroy(graph);
	*pinned = 5;
	(void) cudaGraphLaunch(exec, stream);
	(void) cudaStreamSynchronize(stream);
	ok(*d.d == 6, "a graph runs, with the bytes of now");
	*pinned = 2;
	(void) cudaGraphLaunch(exec, stream);
	(void) cudaGraphLaunch(exec, stream);
	(void) cudaStreamSynchronize(stream);
	ok(*d.d == 27, "a graph runs again");
	(void) cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
	ok(cudaStreamSynchronize(stream) == cudaErrorStreamCaptureUnsupported, "waiting cannot be recorded");
	ok(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated && !graph, "and breaks the recording");
	(void) cudaGetLastError();
	(void) cudaGraphExecDestroy(exec);
	(void) cudaStreamDestroy(stream);
	(void) cudaFreeHost(pinned);
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

/* ---- several devices ---- */

static void
test_sum(void)
{
	const int devices[2] = {0, 1};
	ncclComm_t ranks[2];
	cudaStream_t streams[2];
	int *x[2];
	bool right = ncclCommInitAll(ranks, 2, devices) == ncclSuccess;

	for (int i = 0; i < 2; i++)
	{
		(void) cudaSetDevice(i);
		(void) cudaStreamCreateWithFlags(&streams[i], cudaStreamNonBlocking);
		(void) cudaMalloc(&x[i], sizeof(int));
		(void) cudaMemsetAsync(x[i], 0, sizeof(int), streams[i]);
		/* as integers, the bits of 1.0f and 2.0f */
		CUDA_LAUNCH(add_kernel, 1, 1, 0, streams[i], x[i], i == 0 ? 0x3f800000 : 0x40000000);
	}
	(void) ncclGroupStart();
	for (int i = 0; i < 2; i++)
		right &= ncclAllReduce(x[i], x[i], 1, ncclFloat, ncclSum, ranks[i], streams[i]) == ncclSuccess;
	right &= ncclGroupEnd() == ncclSuccess;
	for (int i = 0; i < 2; i++)
	{
		float sum;

		(void) cudaSetDevice(i);
		(void) cudaMemcpyAsync(&sum, x[i], sizeof(sum), cudaMemcpyDeviceToHost, streams[i]);
		right &= sum == 3;
		(void) cudaFree(x[i]);
		(void) cudaStreamDestroy(streams[i]);
		(void) ncclCommDestroy(ranks[i]);
	}
	(void) cudaSetDevice(0);
	ok(right, "a sum over two devices");
}

static void
test_devices(void)
{
	cudaDeviceProp properties;
	cudaStream_t stream;
	int n, can;
	bool right;

	right = cudaGetDeviceCount(&n) == cudaSuccess && n == 2 && cudaGetDeviceProperties(&properties, 1) == cudaSuccess;
	ok(right && properties.major == 9 && properties.name[0], "two devices");
	ok(cudaSetDevice(2) == cudaErrorInvalidDevice, "and no third");
	ok(cudaDeviceCanAccessPeer(&can, 0, 1) == cudaSuccess && can && cudaDeviceEnablePeerAccess(1, 0) == cudaSuccess &&
		   cudaDeviceEnablePeerAccess(1, 0) == cudaErrorPeerAccessAlreadyEnabled,
	   "which reach each other");
	(void) cudaGetLastError();
	(void) cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
	(void) cudaSetDevice(1);
	CUDA_LAUNCH(add_kernel, 1, 1, 0, stream, nullptr, 1);
	ok(cudaGetLastError() == cudaErrorInvalidResourceHandle, "a stream of another device takes no kernel");
	(void) cudaSetDevice(0);
	(void) cudaStreamDestroy(stream);
	(void) setenv("QWEN_EMULATED_GPU_BROKEN", "1", 1);
	ok(cudaGetDeviceCount(&n) == cudaErrorSystemDriverMismatch && n == 0, "a driver that is broken");
	(void) unsetenv("QWEN_EMULATED_GPU_BROKEN");
	(void) cudaGetLastError();
}

/* ---- mistakes that end the process ---- */

/* What a process of its own says when it does this, and how it ends. */
static void
test_death(void (*mistake)(void), int signal, const char *message, const char *what)
{
	char text[4096];
	size_t n = 0;
	int fds[2], status;
	ssize_t got;
	pid_t child;

	fflush(stdout);
	if (pipe(fds) != 0 || (child = fork()) < 0)
		abort();
	if (child == 0)
	{
		(void) dup2(fds[1], STDERR_FILENO);
		mistake();
		(void) cudaDeviceSynchronize();
		_exit(0);
	}
	(void) close(fds[1]);
	while (n < sizeof(text) - 1 && (got = read(fds[0], text + n, sizeof(text) - 1 - n)) > 0)
		n += (size_t) got;
	text[n] = '\0';
	(void) close(fds[0]);
	(void) waitpid(child, &status, 0);
	ok((signal ? WIFSIGNALED(status) && WTERMSIG(status) == signal : WIFEXITED(status)) && strstr(text, message), what);
}

static __global__ void
half_barrier_kernel(void)
{
	if (threadIdx.x < 16)
		__syncthreads();
	else
		__syncwarp();
}

static __global__ void
two_barriers_kernel(void)
{
	if (threadIdx.x < 32)
		__syncthreads();
	else
		__syncthreads();
}

static __global__ void
two_shuffles_kernel(int *out)
{
	int x = (int) threadIdx.x;

	if (x < 16)
		x = __shfl_xor_sync(ALL, x, 1);
	else
		x = __shfl_xor_sync(ALL, x, 2);
	out[threadIdx.x] = x;
}

static __global__ void
part_of_mma_kernel(void)
{
	uint32_t a[4] = {0}, b[2] = {0};
	float d[4] = {0};

	if (threadIdx.x < 31)
		mma_bf16(d, a, b);
}

static __global__ void
write_kernel(int *x, int at)
{
	x[at] = 0;
}

static __global__ void
overrun_kernel(void)
{
	CUDA_SHARED(int, shared);

	shared[64 + threadIdx.x] = 0;
}

static __global__ void
crooked_kernel(int *x)
{
	__shared__ __align__(16) char buffer[32];

	copy_async_16(buffer + 8, x);
}

static int *
some_memory(void)
{
	int *d;

	(void) cudaMalloc(&d, 100 * sizeof(int));
	return d;
}

static void
test_deaths(void)
{
	test_death([] { CUDA_LAUNCH(half_barrier_kernel, 1, 32, 0, nullptr); }, SIGABRT,
			   "deadlock in kernel half_barrier_kernel", "a deadlock is found");
	test_death([] { CUDA_LAUNCH(two_barriers_kernel, 1, 64, 0, nullptr); }, SIGABRT, "two_barriers_kernel",
			   "two barriers are not one");
	test_death([] { CUDA_LAUNCH(two_shuffles_kernel, 1, 32, 0, nullptr, some_memory()); }, SIGABRT,
			   "two_shuffles_kernel", "two shuffles are not one");
	test_death([] { CUDA_LAUNCH(part_of_mma_kernel, 1, 32, 0, nullptr); }, SIGABRT, "part_of_mma_kernel",
			   "a product needs the whole warp");
	test_death([] { CUDA_LAUNCH(write_kernel, 1, 1, 0, nullptr, some_memory(), 100); }, SIGABRT, "beyond 400 bytes",
			   "a write just beyond device memory is found");
	test_death([] { CUDA_LAUNCH(write_kernel, 1, 1, 0, nullptr, some_memory(), -1); }, SIGABRT, "before 400 bytes",
			   "a write just before it");
	test_death([] { CUDA_LAUNCH(write_kernel, 1, 1, 0, nullptr, some_memory(), 128); }, SIGSEGV, "write_kernel",
			   "a write far beyond");
	test_death([] { CUDA_LAUNCH(overrun_kernel, 1, 1, 256, nullptr); }, SIGSEGV, "overrun_kernel",
			   "a write beyond dynamic shared memory");
	test_death([] { CUDA_LAUNCH(crooked_kernel, 1, 1, 0, nullptr, some_memory()); }, SIGABRT, "crooked_kernel",
			   "a copy to an address that is not a multiple of 16");
}

/* The error of a call, and what the runtime says afterwards, twice. */
static void
tell(cudaError_t error)
{
	cudaError_t last = cudaGetLastError();

	emulated_say("%s, %s, %s", cudaGetErrorName(error), cudaGetErrorName(last), cudaGetErrorName(cudaGetLastError()));
}

#define INVALID "\ncudaErrorInvalidValue, cudaErrorInvalidValue, cudaSuccess\n"

static int host_memory[200];

static void
test_wrong_copies(void)
{
	test_death([] { tell(cudaMemcpy(some_memory(), host_memory, 401, cudaMemcpyHostToDevice)); }, 0,
			   "the target of a copy of 401 bytes is not device memory: byte 0 of 400 bytes of device 0" INVALID,
			   "a copy to more than there is");
	test_death([] { tell(cudaMemcpy(host_memory, some_memory() + 99, 8, cudaMemcpyDeviceToHost)); }, 0,
			   "the source of a copy of 8 bytes is not device memory: byte 396 of 400 bytes of device 0" INVALID,
			   "a copy from beyond");
	test_death([] { tell(cudaMemcpy(host_memory, host_memory + 4, 4, cudaMemcpyHostToDevice)); }, 0,
			   "the target of a copy of 4 bytes is not device memory: far from device memory" INVALID,
			   "a copy the wrong way");
	test_death([] { tell(cudaMemcpyPeerAsync(some_memory(), 0, some_memory(), 1, 4, nullptr)); }, 0,
			   "a copy from device 1 to 0 has memory of devices 0 and 0" INVALID, "a copy of another device's memory");
	test_death([] { tell(cudaMemset(some_memory(), 0, 401)); }, 0,
			   "the target of a copy of 401 bytes is not device memory: byte 0 of 400 bytes of device 0" INVALID,
			   "setting more memory than there is");
}

static void
die_of_second_kernel(void)
{
	int *d = some_memory();

	(void) setenv("QWEN_EMULATED_GPU_FAULT", "2", 1);
	(void) cudaMemset(d, 0, sizeof(int));
	for (int i = 0; i < 3; i++)
	{
		CUDA_LAUNCH(add_kernel, 1, 1, 0, nullptr, d, 1);
		emulated_say("%d: %s", i, cudaGetErrorName(cudaDeviceSynchronize()));
	}
	emulated_say("sum %d", *d);
}

static void
test_dead_device(void)
{
	test_death(die_of_second_kernel, 0,
			   "0: cudaSuccess\n1: cudaErrorIllegalAddress\n2: cudaErrorIllegalAddress\nsum 1\n",
			   "a device that dies stays dead");
}

int
main(void)
{
	(void) setenv("QWEN_EMULATED_GPUS", "2", 1);
	test_shuffles();
	test_barriers(dim3(64));
	test_barriers(dim3(32, 30));
	test_barriers(dim3(1024));
	test_uneven_warps();
	test_order();
	test_mma(mma_kernel<__nv_bfloat16>, "mma_bf16");
	test_mma(mma_kernel<__half>, "mma_f16");
	test_mma(mma_shared_kernel<__nv_bfloat16>, "mma_bf16 from shared memory");
	test_mma(mma_shared_kernel<__half>, "mma_f16 from shared memory");
	test_load_matrices(false);
	test_load_matrices(true);
	test_conversions(half_format, "float16 widened");
	test_conversions(bfloat16_format, "bfloat16 widened");
	test_arithmetic();
	test_late_copies_to_shared();
	test_poison();
	test_late_copies();
	test_wrong_copies();
	test_capacity();
	test_streams();
	test_graphs();
	test_launches();
	test_devices();
	test_sum();
	test_products();
	test_deaths();
	test_dead_device();
	printf("1..%d\n", n_tests);
	return n_failed > 0;
}
