/*
 * plugin.cu
 *	  The entry points of qwen_cuda.so: which devices there are.
 *
 * Nothing here prints or exits: a machine without a driver is an ordinary
 * answer (no devices, and why), because the plug-in may well be installed on
 * machines that have no GPU.
 */
#include "kernels/cuda/plugin.h"

#include <cuda_runtime.h>
#include <stdio.h>

/* Hidden is the default of the build; these two are what it is for. */
#define EXPORTED extern "C" __attribute__((visibility("default")))

static void
explain(char *why, size_t why_size, const char *what, cudaError_t error)
{
	snprintf(why, why_size, "%s: %s", what, cudaGetErrorString(error));
	/* The error would otherwise be reported again by the next call. */
	(void) cudaGetLastError();
}

/* The runtime calls a missing driver an old one. */
static void
explain_none(char *why, size_t why_size, cudaError_t error)
{
	int driver = 0;

	if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0)
		snprintf(why, why_size, "no CUDA devices: no NVIDIA driver is loaded");
	else
		explain(why, why_size, "no CUDA devices", error);
}

static bool
describe(int index, qwen_cuda_device *device, char *why, size_t why_size)
{
	cudaDeviceProp properties;
	size_t free_bytes;
	size_t total_bytes;
	cudaError_t error = cudaGetDeviceProperties(&properties, index);

	if (error == cudaSuccess)
		error = cudaSetDevice(index);
	if (error == cudaSuccess)
		error = cudaMemGetInfo(&free_bytes, &total_bytes);
	if (error != cudaSuccess)
	{
		char what[32];

		snprintf(what, sizeof(what), "device %d", index);
		explain(why, why_size, what, error);
		return false;
	}
	snprintf(device->name, sizeof(device->name), "%s", properties.name);
	device->index = index;
	device->capability = properties.major * 10 + properties.minor;
	device->total = total_bytes;
	device->free = free_bytes;
	return true;
}

EXPORTED int
qwen_cuda_abi(void)
{
	return QWEN_CUDA_ABI;
}

EXPORTED int
qwen_cuda_devices(qwen_cuda_device *devices, int max, char *why, size_t why_size)
{
	int visible = 0;
	int filled = 0;
	int silent = 0;
	cudaError_t error = cudaGetDeviceCount(&visible);

	if (why_size > 0)
		why[0] = '\0';
	if (error != cudaSuccess)
	{
		explain_none(why, why_size, error);
		return 0;
	}
	if (visible == 0)
		snprintf(why, why_size, "no CUDA devices: none is visible");
	for (int i = 0; i < visible; i++)
	{
		if (filled == max)
			break;
		if (describe(i, &devices[filled], why, why_size))
			filled++;
		else
			silent++;
	}
	return visible - silent;
}
