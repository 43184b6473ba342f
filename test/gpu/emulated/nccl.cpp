/*
 * nccl.cpp
 *	  Sums over emulated devices.
 *
 * The calls of a group are put together at its end: each stream waits for
 * what the others have queued before, and the first one that is worked off
 * does the sum for all.  A sum is rounded after each device, as NCCL's are.
 *
 * QWEN_EMULATED_NCCL=off: communicators cannot be made.
 */
#include <nccl.h>

#include "emulator.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <memory>
#include <stdlib.h>
#include <vector>

struct emulated_rank
{
	int device;
	int n; /* ranks of its communicator */
};

/* One rank's part of a sum. */
typedef struct part
{
	const void *src;
	void *dst;
	size_t count;
	ncclDataType_t type;
	int device;
	int n;
	cudaStream_t stream;
} part;

static std::vector<part> group;
static int depth; /* of groups that are open */

ncclResult_t
ncclCommInitAll(ncclComm_t *comms, int n, const int *devices)
{
	emulated_lock lock(emulated_everything);
	const char *setting = getenv("QWEN_EMULATED_NCCL");

	if (setting && strcmp(setting, "off") == 0)
		return ncclSystemError;
	for (int i = 0; i < n; i++)
		for (int j = 0; j < i; j++)
			if (devices[i] == devices[j])
				return ncclInvalidUsage;
	for (int i = 0; i < n; i++)
		comms[i] = new emulated_rank{devices[i], n};
	return ncclSuccess;
}

ncclResult_t
ncclCommDestroy(ncclComm_t comm)
{
	delete comm;
	return ncclSuccess;
}

ncclResult_t
ncclGroupStart(void)
{
	emulated_lock lock(emulated_everything);

	depth++;
	return ncclSuccess;
}

ncclResult_t
ncclAllReduce(const void *src, void *dst, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,
			  cudaStream_t stream)
{
	emulated_lock lock(emulated_everything);

	if (depth == 0 || op != ncclSum)
		return ncclInvalidUsage;
	group.push_back({src, dst, count, type, comm->device, comm->n, stream});
	return ncclSuccess;
}

static float
load(const part &p, const void *from, size_t i)
{
	if (p.type == ncclFloat)
		return static_cast<const float *>(from)[i];
	if (p.type == ncclHalf)
		return __half2float(static_cast<const __half *>(from)[i]);
	return __bfloat162float(static_cast<const __nv_bfloat16 *>(from)[i]);
}

static void
store(const part &p, size_t i, float x)
{
	if (p.type == ncclFloat)
		static_cast<float *>(p.dst)[i] = x;
	else if (p.type == ncclHalf)
		static_cast<__half *>(p.dst)[i] = __float2half(x);
	else
		static_cast<__nv_bfloat16 *>(p.dst)[i] = __float2bfloat16(x);
}

static void
sum(const std::vector<part> &parts)
{
	const part &first = parts[0];

	for (size_t i = 0; i < first.count; i++)
	{
		store(first, i, load(first, first.src, i));
		for (size_t j = 1; j < parts.size(); j++)
			store(first, i, load(first, first.dst, i) + load(parts[j], parts[j].src, i));
		for (size_t j = 1; j < parts.size(); j++)
			store(parts[j], i, load(first, first.dst, i));
	}
}

/* All ranks, each with as much of the same. */
static bool
is_complete(const std::vector<part> &parts)
{
	for (const part &p : parts)
		if ((size_t) p.n != parts.size() || p.count != parts[0].count || p.type != parts[0].type)
			return false;
	return true;
}

/* Queues the sum on all streams. */
static ncclResult_t
queue_sum(const std::vector<part> &parts)
{
	std::vector<cudaEvent_t> before(parts.size());
	auto done = std::make_shared<bool>(false);
	int device = emulated_device();
	cudaError_t error = cudaSuccess;

	for (size_t i = 0; i < parts.size() && error == cudaSuccess; i++)
	{
		(void) cudaSetDevice(parts[i].device);
		(void) cudaEventCreateWithFlags(&before[i], cudaEventDisableTiming);
		error = cudaEventRecord(before[i], parts[i].stream);
	}
	for (size_t i = 0; i < parts.size() && error == cudaSuccess; i++)
	{
		(void) cudaSetDevice(parts[i].device);
		for (cudaEvent_t event : before)
			(void) cudaStreamWaitEvent(parts[i].stream, event);
		error = emulated_queue(parts[i].stream,
							   [parts, done]
							   {
								   if (!*done)
									   sum(parts);
								   *done = true;
							   });
	}
	for (cudaEvent_t event : before)
		if (event)
			(void) cudaEventDestroy(event);
	(void) cudaSetDevice(device);
	return error == cudaSuccess ? ncclSuccess : ncclInvalidUsage;
}

ncclResult_t
ncclGroupEnd(void)
{
	emulated_lock lock(emulated_everything);
	std::vector<part> parts;

	if (depth == 0)
		return ncclInvalidUsage;
	if (--depth > 0)
		return ncclSuccess;
	parts.swap(group);
	if (parts.empty())
		return ncclSuccess;
	return is_complete(parts) ? queue_sum(parts) : ncclInvalidArgument;
}

const char *
ncclGetErrorString(ncclResult_t result)
{
	switch (result)
	{
		case ncclSuccess:
			return "no error";
		case ncclSystemError:
			return "unhandled system error";
		case ncclInvalidArgument:
			return "invalid argument";
		case ncclInvalidUsage:
			return "invalid usage";
	}
	return "unknown result code";
}
