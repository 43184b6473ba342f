/*
 * gpu.c
 *	  GPUs, through the CUDA plug-in that stands beside this program.
 *
 * The plug-in is a library of its own, so that one program serves machines
 * with and without GPUs.  It is opened when somebody asks for GPUs and stays
 * open: it makes contexts that last as long as the process, and opening it
 * again gives the same library.
 */
#include "gpu.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PLUGIN_NAME "qwen_cuda.so"

typedef int (*abi_fn)(void);
typedef int (*devices_fn)(qwen_cuda_device *devices, int max, char *why, size_t why_size);
typedef qwen_device *(*open_fn)(int index, const char *name, qwen_dtype act, char *err, size_t errlen);

/* In this program's folder. */
static void
plugin_path(char *path, size_t size)
{
	ssize_t len = readlink("/proc/self/exe", path, size - sizeof(PLUGIN_NAME));
	char *slash;

	path[len > 0 ? len : 0] = '\0';
	slash = strrchr(path, '/');
	memcpy(slash ? slash + 1 : path, PLUGIN_NAME, sizeof(PLUGIN_NAME));
}

bool
qwen_gpu_installed(void)
{
	char path[4096];

	plugin_path(path, sizeof(path));
	return access(path, F_OK) == 0;
}

/* NULL with the reason when it cannot be loaded, or is made for another version of this program. */
static void *
open_plugin(char *why, size_t why_size)
{
	char path[4096];
	void *plugin;
	abi_fn abi;

	plugin_path(path, sizeof(path));
	plugin = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!plugin)
	{
		snprintf(why, why_size, "%s", dlerror());
		return NULL;
	}
	abi = (abi_fn) (uintptr_t) dlsym(plugin, "qwen_cuda_abi");
	if (abi && abi() == QWEN_CUDA_ABI)
		return plugin;
	snprintf(why, why_size, "%s is of another version than this program", path);
	dlclose(plugin);
	return NULL;
}

int
qwen_gpu_list(qwen_cuda_device *gpus, int max, char *why, size_t why_size)
{
	void *plugin = open_plugin(why, why_size);
	devices_fn list;
	int n;

	if (!plugin)
		return 0;
	list = (devices_fn) (uintptr_t) dlsym(plugin, "qwen_cuda_devices");
	n = list(gpus, max, why, why_size);
	return n < max ? n : max;
}

int
qwen_gpu_index(const char *name)
{
	return (int) strtol(name + strlen("cuda:"), NULL, 10);
}

qwen_device *
qwen_gpu_open(const char *name, qwen_dtype act, char *err, size_t errlen)
{
	void *plugin = open_plugin(err, errlen);
	open_fn open;

	if (!plugin)
		return NULL;
	open = (open_fn) (uintptr_t) dlsym(plugin, "qwen_cuda_open");
	return open(qwen_gpu_index(name), name, act, err, errlen);
}
