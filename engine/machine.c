/*
 * machine.c
 *	  The devices of this machine, with the memory that they have now.
 *
 * Looking for GPUs takes a context on each of them, so they are left alone
 * when the map keeps to processors.  A machine that has none, or whose driver
 * does not answer, is one with a processor alone, unless the settings name a
 * GPU: what is asked for by name is never replaced silently.
 */
#include "machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu.h"
#include "memory.h"

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

static bool
mentions(const char *setting, const char *device)
{
	return setting && strstr(setting, device);
}

static int
list_gpus(qwen_plan_device *devices, int max, char *why, size_t why_size)
{
	qwen_cuda_device gpus[QWEN_PLAN_MAX_DEVICES];
	int n = qwen_gpu_list(gpus, max, why, why_size);

	for (int i = 0; i < n; i++)
	{
		devices[i] = (qwen_plan_device){
			.kind = QWEN_DEVICE_CUDA, .total = gpus[i].total, .free = gpus[i].free, .has_context = true};
		snprintf(devices[i].name, sizeof(devices[i].name), "cuda:%d", gpus[i].index);
	}
	return n;
}

/* What hides GPUs from the driver is shown, as it is easily forgotten. */
static qwen_status
refuse_gpus(const char *why, qwen_error *err)
{
	const char *visible = getenv("CUDA_VISIBLE_DEVICES");

	qwen_fail(err, QWEN_UNSUPPORTED, "there are no CUDA devices that could be used");
	if (visible)
		qwen_fail_detail(err, "The reason: %.200s; CUDA_VISIBLE_DEVICES is \"%.40s\".", why, visible);
	else
		qwen_fail_detail(err, "The reason: %.200s.", why);
	return qwen_fail_hint(err, "Set qwen.device_map to auto or to devices of the processor: cpu, cpu:0, cpu:1.");
}

qwen_status
qwen_machine_devices(const qwen_plan_settings *settings, qwen_plan_device devices[QWEN_PLAN_MAX_DEVICES], int *n,
					 char *why, size_t why_size, qwen_error *err)
{
	bool named = mentions(settings->device_map, "cuda") || mentions(settings->max_memory, "cuda");

	*n = 0;
	why[0] = '\0';
	if (named || (!mentions(settings->device_map, "cpu") && qwen_gpu_installed()))
		*n = list_gpus(devices, QWEN_PLAN_MAX_DEVICES - 1, why, why_size);
	if (named && *n == 0)
		return refuse_gpus(why, err);
	devices[(*n)++] = qwen_machine_processor();
	return qwen_plan_divide(settings, devices, n, err);
}
