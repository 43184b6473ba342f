/*
 * cuda_runtime.h
 *	  A small model of CUDA: the words of the language, and as much of the
 *	  runtime as the plug-in uses.
 *
 * The plug-in's .cu files are compiled with this header by a C++ compiler, so
 * that every kernel runs on machines that have neither a GPU nor NVIDIA's
 * toolkit.  A block's threads are fibers of one thread of the operating
 * system, blocks run one after the other, and one lock stands around
 * everything: `static` is all that shared memory needs.  What is modelled is
 * meaning, not time.  Where CUDA leaves an order open, the model takes the one
 * that shows mistakes: work is done as late as it may, memory is poisoned,
 * and fibers are switched only where threads must meet.
 *
 *	  block.cpp    fibers, barriers, meetings of a warp
 *	  stream.cpp   queues of work, events, graphs
 *	  memory.cpp   device memory and pinned memory, copies
 *	  device.cpp   the devices and their errors
 *	  matrix.cpp   products of a warp
 *	  cublaslt.cpp, nccl.cpp   as much of the libraries
 *
 * Environment: QWEN_EMULATED_GPUS, how many devices (1); QWEN_EMULATED_GPU_BYTES,
 * memory of each (1 GiB); QWEN_EMULATED_GPU_BROKEN=1, the driver does not work;
 * QWEN_EMULATED_GPU_FAULT=N, the N-th kernel from the start kills its device;
 * QWEN_EMULATED_NCCL=off, there is no NCCL; QWEN_EMULATED_ORDER=reverse, threads
 * and blocks run last one first.
 */
#ifndef EMULATED_CUDA_RUNTIME_H
#define EMULATED_CUDA_RUNTIME_H

#include <cmath>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* ---- words of the language ---- */

#define __host__
#define __device__
#define __global__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

#define EMULATED_VECTOR(T, name, bytes, ...)                                                                           \
	struct __align__(bytes) name                                                                                       \
	{                                                                                                                  \
		T __VA_ARGS__;                                                                                                 \
	}

EMULATED_VECTOR(int, int2, 8, x, y);
EMULATED_VECTOR(int, int4, 16, x, y, z, w);
EMULATED_VECTOR(unsigned, uint2, 8, x, y);
EMULATED_VECTOR(unsigned, uint3, 4, x, y, z);
EMULATED_VECTOR(unsigned, uint4, 16, x, y, z, w);
EMULATED_VECTOR(float, float2, 8, x, y);
EMULATED_VECTOR(float, float4, 16, x, y, z, w);

static inline int2
make_int2(int x, int y)
{
	return {x, y};
}

static inline int4
make_int4(int x, int y, int z, int w)
{
	return {x, y, z, w};
}

static inline uint2
make_uint2(unsigned x, unsigned y)
{
	return {x, y};
}

static inline uint4
make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
	return {x, y, z, w};
}

static inline float2
make_float2(float x, float y)
{
	return {x, y};
}

static inline float4
make_float4(float x, float y, float z, float w)
{
	return {x, y, z, w};
}

struct dim3
{
	unsigned x, y, z;

	constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
	{
	}
};

/* Of the thread that runs. */
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

/* ---- threads that meet (block.cpp) ---- */

enum emulated_operation
{
	EMULATED_SYNCWARP,
	EMULATED_SHUFFLE,
	EMULATED_SHUFFLE_XOR,
	EMULATED_SHUFFLE_DOWN,
	EMULATED_BALLOT,
	EMULATED_LOAD_MATRICES,
	EMULATED_MMA
};

#define EMULATED_WARP 32

/* Called by the last lane that comes, with what each lane has brought. */
typedef void (*emulated_finish)(const uint64_t words[EMULATED_WARP]);

/*
 * The lanes of a warp meet; each brings a word and gets the words of all, valid until its next meeting.  Lanes that have
 * ended are not waited for, their words are all ones; with `finish` the warp must be whole.  Lanes that meet at
 * different lines, or in different operations, are a mistake, which ends the process.
 */
const uint64_t *emulated_meet(emulated_operation operation, int line, uint64_t word, emulated_finish finish = nullptr);
/* Of the running thread's warp. */
unsigned emulated_lane(void);
/* Ends the process with a message unless the mask names the whole warp: others are not modelled. */
void emulated_check_mask(unsigned mask);

void __syncthreads(int line = __builtin_LINE());

static inline void
__syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE())
{
	emulated_check_mask(mask);
	(void) emulated_meet(EMULATED_SYNCWARP, line, 0);
}

/* A word of 32 bits as another type, bit by bit. */
template <typename To, typename From>
static inline To
emulated_bits(From from)
{
	static_assert(sizeof(To) == 4 && sizeof(From) == 4, "words of 32 bits");
	To to;

	memcpy(&to, &from, sizeof(to));
	return to;
}

template <typename T>
static inline T
emulated_shuffle(emulated_operation operation, unsigned mask, T x, unsigned from, int line)
{
	const uint64_t *words;

	emulated_check_mask(mask);
	words = emulated_meet(operation, line, emulated_bits<uint32_t>(x));
	return emulated_bits<T>((uint32_t) words[from]);
}

template <typename T>
static inline T
__shfl_sync(unsigned mask, T x, int from, int line = __builtin_LINE())
{
	return emulated_shuffle(EMULATED_SHUFFLE, mask, x, (unsigned) from % EMULATED_WARP, line);
}

template <typename T>
static inline T
__shfl_xor_sync(unsigned mask, T x, int with, int line = __builtin_LINE())
{
	return emulated_shuffle(EMULATED_SHUFFLE_XOR, mask, x, (emulated_lane() ^ (unsigned) with) % EMULATED_WARP, line);
}

/* Lanes that would read beyond the last one keep their own. */
template <typename T>
static inline T
__shfl_down_sync(unsigned mask, T x, unsigned by, int line = __builtin_LINE())
{
	unsigned from = emulated_lane() + by;

	return emulated_shuffle(EMULATED_SHUFFLE_DOWN, mask, x, from < EMULATED_WARP ? from : emulated_lane(), line);
}

unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE());

/* ---- arithmetic ---- */

/* The C library has these names for itself, or may come to have them. */
#define __expf expf
#define rsqrtf emulated_rsqrtf

static inline float
emulated_rsqrtf(float x)
{
	return 1.0f / sqrtf(x);
}

static inline int
__dp4a(int a, int b, int sum)
{
	for (int i = 0; i < 4; i++)
		sum += (int) (int8_t) ((unsigned) a >> 8 * i) * (int) (int8_t) ((unsigned) b >> 8 * i);
	return sum;
}

template <typename T>
static inline T
__ldg(const T *p)
{
	return *p;
}

/* ---- the runtime ---- */

/* With NVIDIA's numbers. */
enum cudaError_t
{
	cudaSuccess = 0,
	cudaErrorInvalidValue = 1,
	cudaErrorMemoryAllocation = 2,
	cudaErrorInvalidConfiguration = 9,
	cudaErrorNoDevice = 100,
	cudaErrorInvalidDevice = 101,
	cudaErrorInvalidResourceHandle = 400,
	cudaErrorIllegalAddress = 700,
	cudaErrorPeerAccessAlreadyEnabled = 704,
	cudaErrorSystemDriverMismatch = 803,
	cudaErrorStreamCaptureUnsupported = 900,
	cudaErrorStreamCaptureInvalidated = 901,
	cudaErrorUnknown = 999
};

enum cudaMemcpyKind
{
	cudaMemcpyHostToDevice = 1,
	cudaMemcpyDeviceToHost,
	cudaMemcpyDeviceToDevice
};

enum cudaDeviceAttr
{
	cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};

enum cudaFuncAttribute
{
	cudaFuncAttributeMaxDynamicSharedMemorySize = 8
};

enum cudaStreamCaptureMode
{
	cudaStreamCaptureModeThreadLocal = 1
};

#define cudaStreamNonBlocking 1u
#define cudaEventDisableTiming 2u

struct cudaDeviceProp
{
	char name[256];
	size_t totalGlobalMem;
	size_t sharedMemPerBlockOptin;
	int major;
	int minor;
	int multiProcessorCount;
	int warpSize;
};

typedef struct emulated_stream *cudaStream_t;
typedef struct emulated_event *cudaEvent_t;
typedef struct emulated_graph *cudaGraph_t;
typedef struct emulated_graph *cudaGraphExec_t;

/* devices and errors: device.cpp */
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer);
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags);
cudaError_t cudaGetLastError(void);
const char *cudaGetErrorString(cudaError_t error);
const char *cudaGetErrorName(cudaError_t error);

/* memory: memory.cpp */
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocHost(void **p, size_t bytes);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);
cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemcpyPeerAsync(void *dst, int dst_device, const void *src, int src_device, size_t bytes,
								cudaStream_t stream);
cudaError_t cudaMemset(void *dst, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t stream);

template <typename T>
static inline cudaError_t
cudaMalloc(T **p, size_t bytes)
{
	return cudaMalloc(reinterpret_cast<void **>(p), bytes);
}

template <typename T>
static inline cudaError_t
cudaMallocHost(T **p, size_t bytes)
{
	return cudaMallocHost(reinterpret_cast<void **>(p), bytes);
}

/* streams, events, graphs: stream.cpp */
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);

/* Allows a kernel more dynamic shared memory than the 48 KiB that every one may have. */
cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value);

template <typename... P>
static inline cudaError_t
cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value)
{
	return cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), attribute, value);
}

#endif
