/*
 * cli_probe.c
 *	  qwen-engine probe: what this machine gives.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../kernels/cpu/cpu_units.h"
#include "cli.h"
#include "gpu.h"
#include "measure.h"
#include "memory.h"

/* Every set of this build, and why one cannot be used here. */
static void
print_sets(const char *chosen)
{
	for (const char *const *set = qwen_kernel_sets(); *set; set++)
	{
		char why[128] = "";
		bool usable = qwen_kernel_set_usable(*set, why, sizeof(why));

		printf("kernels    %-10s %s%s%s\n", *set, usable ? "usable" : "skipped: ", why,
			   !strcmp(*set, chosen) ? ", chosen" : "");
	}
}

/* Measured, not looked up: what this machine gives now, other load included. */
static void
print_rates(qwen_device *dev)
{
	static const qwen_dtype types[] = {QWEN_F32, QWEN_F16, QWEN_BF16, QWEN_INT8, QWEN_INT4};

	printf("bandwidth  %.1f GB/s read, %d threads\n", qwen_measure_bandwidth(dev->n_threads) / 1e9, dev->n_threads);
	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
	{
		double unit = qwen_unit_rate(dev, types[i]);

		printf("matrix     %.0f Gop/s", qwen_measure_matrix(dev, types[i]) / 1e9);
		if (unit > 0)
			printf(" of the unit's %.0f", unit / 1e9);
		printf(", weights %s, %s kernels\n", qwen_dtype_name(types[i]), dev->ops->name);
	}
}

/* CUDA devices with what they have and what is free now, or why there are none. */
static void
print_gpus(void)
{
	const char *visible = getenv("CUDA_VISIBLE_DEVICES");
	qwen_cuda_device gpus[QWEN_PLAN_MAX_DEVICES];
	char why[256], total[32], free_now[32];
	int n = qwen_gpu_list(gpus, QWEN_PLAN_MAX_DEVICES, why, sizeof(why));

	for (const qwen_cuda_device *g = gpus; g < gpus + n; g++)
		printf("cuda       cuda:%d, %s, sm_%d, %s, %s free\n", g->index, g->name, g->capability,
			   qwen_memory_text(total, sizeof(total), g->total), qwen_memory_text(free_now, sizeof(free_now), g->free));
	if (why[0])
		printf("cuda       %s%s\n", n ? "not usable: " : "none: ", why);
	if (visible)
		printf("cuda       CUDA_VISIBLE_DEVICES is \"%s\"\n", visible);
}

int
qwen_cmd_probe(int argc, char **argv)
{
	static const char usage[] =
		"Prints what the machine gives: instruction sets found and chosen, cores, memory, measured read bandwidth and\n"
		"measured matrix rates, CUDA devices. Takes no model.";
	qwen_model_options options;
	char why[128], text[32];
	qwen_device *dev;
	int rc = qwen_cli_parse(argc, argv, usage, NULL, &options, true, NULL);

	if (rc >= 0)
		return rc;
	dev = qwen_device_open("cpu", options.kernels, options.threads, why, sizeof(why));
	if (!dev)
	{
		fprintf(stderr, "qwen-engine: %s\n", why);
		return 1;
	}
	print_sets(dev->ops->name);
	printf("cores      %d usable\n", qwen_cpu_count());
	printf("memory     %s available\n", qwen_memory_text(text, sizeof(text), qwen_memory_available()));
	print_rates(dev);
	print_gpus();
	qwen_device_close(dev);
	return 0;
}
