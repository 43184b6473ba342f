/*
 * test_runtime.cpp
 *	  Memory, streams, graphs and devices, and that work is done late.
 */
#include "test_emulated.h"

#include <nccl.h>

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

void
test_runtime(void)
{
	test_late_copies_to_shared();
	test_poison();
	test_late_copies();
	test_capacity();
	test_streams();
	test_graphs();
	test_devices();
	test_sum();
}
