/*
 * device.cu
 *	  A device's memory, its copies and its errors.
 *
 * Copies from and to the host pass through two pinned buffers of CUDA_STAGING
 * bytes, because only pinned memory is copied behind the caller's back and at
 * the full rate of the bus: while one buffer is on its way, the next piece of
 * the file is read into the other one.  Each has a mutex, as the threads that
 * load a model store different parts of it on one device at once.
 *
 *	  thread A   fill 0 | queue 0 |          fill 0 (waits until 0 was sent) ...
 *	  thread B           fill 1 | queue 1 |           fill 1 ...
 *	  stream                      ==== 0 ====== 1 ====
 *
 * All copies of a device are queued on its one stream, where its operations
 * are too, so nothing waits for an upload but what comes after it.
 */
#include "kernels/cuda/cuda_device.h"

#include <mutex>
#include <stdio.h>
#include <string.h>

/* Downloads are consumed as they arrive, in pieces small enough that the first one is there soon. */
#define DOWNLOAD_PIECE (CUDA_STAGING / 8)

/* Copies in either direction use the halves under their locks. */
typedef struct staging_half
{
	std::mutex lock;
	char *bytes;      /* [CUDA_STAGING] pinned */
	cudaEvent_t done; /* of the last copy from or to it */
} staging_half;

struct cuda_staging
{
	staging_half half[2];
	std::atomic<unsigned> next; /* whose turn it is, modulo 2 */
};

/* ---- errors ---- */

static void
note(qwen_device *dev, cudaError_t error, const char *what, const char *why)
{
	cudaError_t none = cudaSuccess;

	if (cuda_of(dev)->failed.compare_exchange_strong(none, error))
		fprintf(stderr, "qwen-engine: %s: %s: %s\n", dev->name, what, why);
}

bool
cuda_ready(qwen_device *dev)
{
	if (cuda_of(dev)->failed.load(std::memory_order_relaxed) != cudaSuccess)
		return false;
	return cuda_check(dev, cudaSetDevice(cuda_of(dev)->index), "the GPU cannot be used");
}

bool
cuda_check(qwen_device *dev, cudaError_t error, const char *what)
{
	if (error == cudaSuccess)
		return true;
	note(dev, error, what, cudaGetErrorString(error));
	/* otherwise the next launch would find it again, of whatever device */
	(void) cudaGetLastError();
	return false;
}

void
cuda_fail(qwen_device *dev, const char *what, const char *why)
{
	note(dev, cudaErrorUnknown, what, why);
}

void
cuda_launched(qwen_device *dev, const char *kernel)
{
	cuda_check(dev, cudaGetLastError(), kernel);
}

/* ---- memory ---- */

/* No room is an answer and not a failure of the device. */
void *
cuda_alloc(qwen_device *dev, size_t bytes)
{
	cudaStream_t stream = cuda_of(dev)->stream;
	cudaError_t error;
	void *p = NULL;

	if (!cuda_ready(dev))
		return NULL;
	error = cudaMalloc(&p, bytes ? bytes : 1);
	if (error == cudaErrorMemoryAllocation)
	{
		(void) cudaGetLastError();
		return NULL;
	}
	if (!cuda_check(dev, error, "allocating memory"))
		return NULL;
	if (cuda_check(dev, cudaMemsetAsync(p, 0, bytes, stream), "clearing memory") &&
		cuda_check(dev, cudaStreamSynchronize(stream), "clearing memory"))
		return p;
	(void) cudaFree(p);
	return NULL;
}

/* Also of a device that has failed, which then answers with its first error again. */
void
cuda_free(qwen_device *dev, void *p, size_t /* bytes */)
{
	if (p == NULL || cudaSetDevice(cuda_of(dev)->index) != cudaSuccess || cudaFree(p) != cudaSuccess)
		(void) cudaGetLastError();
}

/* ---- copies from and to the host ---- */

cuda_staging *
cuda_staging_new(void)
{
	cuda_staging *staging = new cuda_staging();

	for (staging_half &half : staging->half)
		if (cudaMallocHost((void **) &half.bytes, CUDA_STAGING) != cudaSuccess ||
			cudaEventCreateWithFlags(&half.done, cudaEventDisableTiming) != cudaSuccess)
		{
			cuda_staging_free(staging);
			return NULL;
		}
	return staging;
}

void
cuda_staging_free(cuda_staging *staging)
{
	if (staging == NULL)
		return;
	for (staging_half &half : staging->half)
	{
		if (half.done)
			(void) cudaEventDestroy(half.done);
		if (half.bytes)
			(void) cudaFreeHost(half.bytes);
	}
	delete staging;
}

/* Queues a copy of n <= CUDA_STAGING bytes through a half that the caller has locked. */
static bool
queue_upload(qwen_device *dev, staging_half *half, char *d_dst, const char *src, size_t n)
{
	cudaStream_t stream = cuda_of(dev)->stream;

	if (!cuda_ready(dev) || !cuda_check(dev, cudaEventSynchronize(half->done), "copying to the GPU"))
		return false;
	memcpy(half->bytes, src, n);
	return cuda_check(dev, cudaMemcpyAsync(d_dst, half->bytes, n, cudaMemcpyHostToDevice, stream),
					  "copying to the GPU") &&
		   cuda_check(dev, cudaEventRecord(half->done, stream), "copying to the GPU");
}

/* src may be overwritten as soon as this returns. */
bool
cuda_upload(qwen_device *dev, void *d_dst, const void *src, size_t bytes)
{
	cuda_staging *staging = cuda_of(dev)->staging;

	for (size_t at = 0; at < bytes; at += CUDA_STAGING)
	{
		staging_half *half = &staging->half[staging->next++ % 2];
		std::lock_guard<std::mutex> guard(half->lock);

		if (!queue_upload(dev, half, (char *) d_dst + at, (const char *) src + at,
						  bytes - at < CUDA_STAGING ? bytes - at : CUDA_STAGING))
			return false;
	}
	return cuda_ready(dev);
}

/* Into a half that the caller has locked; what it was last used for is done or comes before on the same stream. */
static bool
queue_download(qwen_device *dev, staging_half *half, const char *d_src, size_t n)
{
	cudaStream_t stream = cuda_of(dev)->stream;

	return cuda_check(dev, cudaMemcpyAsync(half->bytes, d_src, n, cudaMemcpyDeviceToHost, stream),
					  "copying from the GPU") &&
		   cuda_check(dev, cudaEventRecord(half->done, stream), "copying from the GPU");
}

static size_t
piece_at(size_t at, size_t bytes)
{
	return bytes - at < DOWNLOAD_PIECE ? bytes - at : DOWNLOAD_PIECE;
}

/* Waits for what is queued; while a piece is taken out of one half, the next one arrives in the other. */
bool
cuda_download(qwen_device *dev, void *dst, const void *d_src, size_t bytes)
{
	staging_half *half = cuda_of(dev)->staging->half;
	std::scoped_lock guard(half[0].lock, half[1].lock);
	const char *src = (const char *) d_src;
	int turn = 0;

	if (!cuda_ready(dev) || (bytes > 0 && !queue_download(dev, &half[0], src, piece_at(0, bytes))))
		return false;
	for (size_t at = 0, next; at < bytes; at = next, turn = 1 - turn)
	{
		next = at + piece_at(at, bytes);
		if (next < bytes && !queue_download(dev, &half[1 - turn], src + next, piece_at(next, bytes)))
			return false;
		if (!cuda_check(dev, cudaEventSynchronize(half[turn].done), "copying from the GPU"))
			return false;
		memcpy((char *) dst + at, half[turn].bytes, next - at);
	}
	return true;
}

/* The step ends here: the engine's batch is read no more. */
bool
cuda_synchronize(qwen_device *dev)
{
	cuda_of(dev)->batch.engine = NULL;
	return cuda_ready(dev) && cuda_check(dev, cudaStreamSynchronize(cuda_of(dev)->stream), "a step");
}

/* ---- between devices ---- */

bool
cuda_wait_for(qwen_device *dev, qwen_device *other)
{
	cudaEvent_t event = cuda_of(other)->event;

	if (dev == other)
		return cuda_ready(dev);
	return cuda_ready(other) &&
		   cuda_check(other, cudaEventRecord(event, cuda_of(other)->stream), "marking the queue") && cuda_ready(dev) &&
		   cuda_check(dev, cudaStreamWaitEvent(cuda_of(dev)->stream, event, 0), "waiting for another device");
}

/* Whether the thread's current GPU reads and writes the memory of another one by itself from now on. */
static bool
reach(int index, int other)
{
	int able = 0;
	cudaError_t error = cudaDeviceCanAccessPeer(&able, index, other);

	if (error == cudaSuccess && able)
		error = cudaDeviceEnablePeerAccess(other, 0);
	(void) cudaGetLastError(); /* enabled already, by another device on the same GPU */
	return able && (error == cudaSuccess || error == cudaErrorPeerAccessAlreadyEnabled);
}

/* Once for each pair, before its first copy.  Without a direct way the runtime's copies pass through the host. */
static void
settle_peer(qwen_device *dev, qwen_device *from)
{
	cuda_device *to = cuda_of(dev);
	int other = cuda_of(from)->index;
	uint64_t bit = other < 64 ? (uint64_t) 1 << other : 0;

	if (to->peers & bit)
		return;
	to->peers |= bit;
	if (!reach(to->index, other))
		fprintf(stderr, "qwen-engine: %s: no direct way to the memory of GPU %d: copies pass through the host\n",
				dev->name, other);
}

/* The source goes on only when its memory has been read: the next layer may write there. */
bool
cuda_copy(qwen_device *dev, void *d_dst, qwen_device *from, const void *d_src, size_t bytes)
{
	cuda_device *to = cuda_of(dev);
	cudaError_t error;
	int source;

	if (from->host)
		return cuda_upload(dev, d_dst, d_src, bytes);
	if (!cuda_wait_for(dev, from))
		return false;
	source = cuda_of(from)->index;
	if (source == to->index)
		error = cudaMemcpyAsync(d_dst, d_src, bytes, cudaMemcpyDeviceToDevice, to->stream);
	else
	{
		settle_peer(dev, from);
		error = cudaMemcpyPeerAsync(d_dst, to->index, d_src, source, bytes, to->stream);
	}
	return cuda_check(dev, error, "copying from another device") && cuda_wait_for(from, dev);
}

/* ---- host loops ---- */

/* On the calling thread: the device has none of its own. */
void
cuda_loop(qwen_device * /* dev */, int64_t n, int64_t grain, qwen_loop_fn fn, void *arg)
{
	for (int64_t begin = 0; begin < n; begin += grain)
		fn(arg, begin, n - begin < grain ? n : begin + grain);
}
