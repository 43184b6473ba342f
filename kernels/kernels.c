/*
 * kernels.c
 *	  Which sets of kernels there are, which of them this processor can run,
 *	  and opening a device with one.
 *
 * A set is usable when the processor has every instruction group that the
 * set's files are compiled for and the operating system saves the registers
 * they use (XCR0).  The choice is made once, when the device is opened.
 */
#include "kernels.h"

#include <cpuid.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/pool.h"
#include "sets.h"

/* An instruction group, by its CPUID bit. */
typedef struct cpu_feature
{
	const char *name;
	unsigned leaf;
	unsigned reg; /* 0 = eax .. 3 = edx */
	unsigned bit;
} cpu_feature;

static const cpu_feature avx2_features[] = {
	{"osxsave", 1, 2, 27}, {"avx2", 7, 1, 5}, {"fma", 1, 2, 12}, {"f16c", 1, 2, 29}, {NULL},
};
static const cpu_feature avx512_features[] = {
	{"osxsave", 1, 2, 27},  {"avx2", 7, 1, 5},      {"fma", 1, 2, 12},
	{"f16c", 1, 2, 29},     {"avx512f", 7, 1, 16},  {"avx512dq", 7, 1, 17},
	{"avx512bw", 7, 1, 30}, {"avx512vl", 7, 1, 31}, {NULL},
};

/* State that the operating system must save: XMM and YMM; with AVX-512 also the mask and both ZMM parts. */
#define XCR0_AVX 0x06u
#define XCR0_AVX512 0xe6u

typedef struct kernel_set
{
	const char *name;
	const qwen_ops *ops;
	const cpu_feature *features; /* NULL: runs anywhere */
	unsigned xcr0;               /* bits that must be set */
	bool threaded;
} kernel_set;

/* Best first; "auto" takes the first usable one. */
static const kernel_set sets[] = {
	{"avx512", &qwen_ops_avx512, avx512_features, XCR0_AVX512, true},
	{"avx2", &qwen_ops_avx2, avx2_features, XCR0_AVX, true},
	{"portable", &qwen_ops_portable, NULL, 0, true},
	{"ref", &qwen_ops_ref, NULL, 0, false},
};
#define N_SETS (sizeof(sets) / sizeof(sets[0]))

static bool
has_feature(const cpu_feature *f)
{
	unsigned r[4] = {0};

	return __get_cpuid_count(f->leaf, 0, &r[0], &r[1], &r[2], &r[3]) && (r[f->reg] >> f->bit & 1);
}

static unsigned
read_xcr0(void)
{
	unsigned eax, edx;

	__asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
	return eax;
}

static bool
set_usable(const kernel_set *set, char *why, size_t whylen)
{
	for (const cpu_feature *f = set->features; f && f->name; f++)
		if (!has_feature(f))
		{
			snprintf(why, whylen, "kernels \"%s\" need %s, which this processor lacks", set->name, f->name);
			return false;
		}
	/* xgetbv exists: every list that asks for state begins with osxsave */
	if (set->xcr0 && (read_xcr0() & set->xcr0) != set->xcr0)
	{
		snprintf(why, whylen, "kernels \"%s\" need registers that the operating system does not save", set->name);
		return false;
	}
	return true;
}

static const kernel_set *
find_set(const char *name, char *why, size_t whylen)
{
	for (size_t i = 0; i < N_SETS; i++)
		if (!strcmp(name, "auto") ? set_usable(&sets[i], why, whylen) : !strcmp(name, sets[i].name))
			return &sets[i];
	if (!strcmp(name, "amx"))
		snprintf(why, whylen, "kernels \"amx\" are not in this build");
	else
		snprintf(why, whylen, "there are no kernels \"%.32s\"; known are auto, avx512, avx2, portable and ref", name);
	return NULL;
}

const char *const *
qwen_kernel_sets(void)
{
	static const char *const names[] = {"avx512", "avx2", "portable", "ref", NULL};

	return names;
}

bool
qwen_kernel_set_usable(const char *name, char *why, size_t whylen)
{
	const kernel_set *set = find_set(name, why, whylen);

	return set && set_usable(set, why, whylen);
}

int
qwen_cpu_count(void)
{
	cpu_set_t cpus;

	if (sched_getaffinity(0, sizeof(cpus), &cpus) != 0 || CPU_COUNT(&cpus) < 1)
		return 1;
	return CPU_COUNT(&cpus);
}

qwen_device *
qwen_device_open(const char *name, const char *kernels, int n_threads, char *err, size_t errlen)
{
	const kernel_set *set = find_set(kernels, err, errlen);
	qwen_device *dev;

	if (!set || !set_usable(set, err, errlen))
		return NULL;
	if (strcmp(name, "cpu") != 0)
	{
		snprintf(err, errlen, "there is no device \"%.32s\" in this build; known is cpu", name);
		return NULL;
	}
	dev = calloc(1, sizeof(*dev));
	if (!dev)
	{
		snprintf(err, errlen, "out of memory");
		return NULL;
	}
	snprintf(dev->name, sizeof(dev->name), "%s", name);
	dev->ops = set->ops;
	dev->act_bytes = sizeof(float);
	dev->n_threads = !set->threaded ? 1 : n_threads > 0 ? n_threads : qwen_cpu_count();
	if (set->threaded && !(dev->priv = qwen_pool_new(dev->n_threads)))
	{
		snprintf(err, errlen, "%d threads could not be started", dev->n_threads);
		free(dev);
		return NULL;
	}
	return dev;
}

void
qwen_device_close(qwen_device *dev)
{
	if (!dev)
		return;
	qwen_pool_free(dev->priv);
	free(dev);
}

size_t
qwen_dtype_bytes(qwen_dtype dtype)
{
	return dtype == QWEN_F32 ? 4 : 2;
}

const char *
qwen_dtype_name(qwen_dtype dtype)
{
	static const char *const names[] = {[QWEN_F32] = "float32",
										[QWEN_F16] = "float16",
										[QWEN_BF16] = "bfloat16",
										[QWEN_INT8] = "int8",
										[QWEN_INT4] = "int4"};

	return names[dtype];
}
