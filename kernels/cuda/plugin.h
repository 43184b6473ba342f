/*
 * plugin.h
 *	  What qwen_cuda.so exports.
 *
 * The plug-in is opened with dlopen when a CUDA device is asked for, so that
 * one engine serves machines with and without a GPU.  Its names are C names,
 * and QWEN_CUDA_ABI is raised with every change of this file: an engine that
 * finds another number leaves the plug-in alone.
 */
#ifndef QWEN_CUDA_PLUGIN_H
#define QWEN_CUDA_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#include "../kernels.h"

#define QWEN_CUDA_ABI 2

typedef struct qwen_cuda_device
{
	char name[256];     /* as the driver calls it */
	int32_t index;      /* among the visible devices */
	int32_t capability; /* 90 for sm_90 */
	uint64_t total;     /* bytes */
	uint64_t free;      /* bytes, with this process's own context taken off */
} qwen_cuda_device;

#ifdef __cplusplus
extern "C"
{
#endif

	/* QWEN_CUDA_ABI of the build. */
	int qwen_cuda_abi(void);

	/*
 * Fills up to max entries and returns how many devices are visible, which may be more than max.  When there are none,
 * or one of them does not answer, the text in why (always terminated) says so; otherwise it is empty.  Asking for free
 * memory makes a context on each device, which stays until the process ends.
 */
	int qwen_cuda_devices(qwen_cuda_device *devices, int max, char *why, size_t why_size);

	/*
 * Opens a device on the GPU of that index; one GPU may be opened more than once.  act: the type of activations, one of the
 * first three.  On failure NULL, and err holds one sentence fragment.  Ended by dev->ops->close.
 */
	qwen_device *qwen_cuda_open(int index, const char *name, qwen_dtype act, char *err, size_t errlen);

#ifdef __cplusplus
}
#endif

#endif
