/*
 * devices.c
 *	  Opens the CUDA plug-in as the engine does and lists its devices.
 *
 *	  devices [--require] PLUGIN
 *
 * Fails when the plug-in cannot be opened, speaks another ABI or reports
 * nonsense.  That there is no device is said aloud and is a failure only with
 * --require.
 */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "kernels/cuda/plugin.h"

#define MAX_DEVICES 64

static int
fail(const char *what, const char *detail)
{
	fprintf(stderr, "cuda plug-in: %s: %s\n", what, detail);
	return 1;
}

static int
list(const qwen_cuda_device *devices, int n)
{
	for (int i = 0; i < n; i++)
	{
		const qwen_cuda_device *d = &devices[i];

		if (d->name[0] == '\0' || d->total == 0 || d->free > d->total || d->capability < 30)
			return fail("makes no sense", "a device without name, memory or capability");
		printf("cuda:%d  %s  sm_%d  %.1f GiB, %.1f GiB free\n", d->index, d->name, d->capability,
			   (double) d->total / (1 << 30), (double) d->free / (1 << 30));
	}
	return 0;
}

int
main(int argc, char **argv)
{
	bool require = argc == 3 && strcmp(argv[1], "--require") == 0;
	qwen_cuda_device devices[MAX_DEVICES];
	char why[256];
	void *plugin;
	int (*abi)(void);
	int (*enumerate)(qwen_cuda_device *, int, char *, size_t);
	int n;

	if (argc != (require ? 3 : 2))
	{
		fprintf(stderr, "usage: devices [--require] PLUGIN\n");
		return 2;
	}
	plugin = dlopen(argv[argc - 1], RTLD_NOW | RTLD_LOCAL);
	if (plugin == NULL)
		return fail("could not be opened", dlerror());
	abi = (int (*)(void)) dlsym(plugin, "qwen_cuda_abi");
	enumerate = (int (*)(qwen_cuda_device *, int, char *, size_t)) dlsym(plugin, "qwen_cuda_devices");
	if (abi == NULL || enumerate == NULL)
		return fail("lacks a function", dlerror());
	if (abi() != QWEN_CUDA_ABI)
		return fail("speaks another ABI", "build it again");

	n = enumerate(devices, MAX_DEVICES, why, sizeof(why));
	if (list(devices, n < MAX_DEVICES ? n : MAX_DEVICES) != 0)
		return 1;
	if (n == 0)
		printf("NO GPU: the plug-in opens and reports: %s\n", why);
	else if (why[0] != '\0')
		printf("%s\n", why);
	return n == 0 && require ? 1 : 0;
}
