/*
 * machine.c
 *	  The devices of this machine, with the memory that they have now.
 *
 * GPUs are asked through the plug-in, which is a library of its own so that
 * one program serves machines with and without them; a machine that has none,
 * or whose driver does not answer, is one with a processor alone.
 */
#include "machine.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../kernels/cuda/plugin.h"
#include "memory.h"

typedef int (*abi_fn)(void);
typedef int (*devices_fn)(qwen_cuda_device *devices, int max, char *why, size_t why_size);

qwen_plan_device
qwen_machine_processor(void)
{
	qwen_plan_device d = {.name = "cpu", .kind = QWEN_DEVICE_CPU};

	d.total = (uint64_t) sysconf(_SC_PHYS_PAGES) * (uint64_t) sysconf(_SC_PAGESIZE);
	d.free = qwen_memory_available();
	if (d.free > d.total)
		d.free = d.total;
	return d;
}

/* The plug-in stands in this program's folder. */
static void *
open_plugin(void)
{
	static const char name[] = "qwen_cuda.so";
	char path[4096];
	ssize_t len = readlink("/proc/self/exe", path, sizeof(path) - sizeof(name));
	char *slash;

	if (len <= 0)
		return NULL;
	path[len] = '\0';
	slash = strrchr(path, '/');
	memcpy(slash ? slash + 1 : path, name, sizeof(name));
	return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

/* The plug-in stays open: it has made contexts that last as long as the process. */
static int
list_gpus(qwen_cuda_device *gpus, int max)
{
	void *plugin = open_plugin();
	abi_fn abi = plugin ? (abi_fn) (uintptr_t) dlsym(plugin, "qwen_cuda_abi") : NULL;
	devices_fn list = plugin ? (devices_fn) (uintptr_t) dlsym(plugin, "qwen_cuda_devices") : NULL;
	char why[256];
	int n;

	if (!abi || !list || abi() != QWEN_CUDA_ABI)
		return 0;
	n = list(gpus, max, why, sizeof(why));
	return n < max ? n : max;
}

int
qwen_machine_devices(qwen_plan_device devices[QWEN_PLAN_MAX_DEVICES])
{
	qwen_cuda_device gpus[QWEN_PLAN_MAX_DEVICES - 1];
	int n = list_gpus(gpus, QWEN_PLAN_MAX_DEVICES - 1);

	for (int i = 0; i < n; i++)
	{
		devices[i] = (qwen_plan_device){.kind = QWEN_DEVICE_CUDA, .total = gpus[i].total, .free = gpus[i].free};
		snprintf(devices[i].name, sizeof(devices[i].name), "cuda:%d", gpus[i].index);
	}
	devices[n] = qwen_machine_processor();
	return n + 1;
}
