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
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpu/pool.h"
#include "sets.h"

/* An instruction group, by its CPUID bit. */
typedef struct cpu_feature
{
	const char *name;
	unsigned leaf;
	unsigned subleaf;
	unsigned reg; /* 0 = eax .. 3 = edx */
	unsigned bit;
} cpu_feature;

/* In an order in which every set needs the first so many of them. */
static const cpu_feature features[] = {
	{"osxsave", 1, 0, 2, 27},     {"avx2", 7, 0, 1, 5},        {"fma", 1, 0, 2, 12},      {"f16c", 1, 0, 2, 29},
	{"avx512f", 7, 0, 1, 16},     {"avx512dq", 7, 0, 1, 17},   {"avx512bw", 7, 0, 1, 30}, {"avx512vl", 7, 0, 1, 31},
	{"avx512_vnni", 7, 0, 2, 11}, {"avx512_bf16", 7, 1, 0, 5}, {"amx_tile", 7, 0, 3, 24}, {"amx_bf16", 7, 0, 3, 22},
	{"amx_int8", 7, 0, 3, 25},
};
#define NEEDS_AVX2 4
#define NEEDS_AVX512 9
#define NEEDS_AVX512BF16 10
#define NEEDS_AMX 13

/* State that the operating system must save: XMM and YMM; with AVX-512 also the mask and both ZMM parts; the tiles. */
#define XCR0_AVX 0x06u
#define XCR0_AVX512 0xe6u
#define XCR0_TILES (XCR0_AVX512 | 1u << 17 | 1u << 18)

typedef struct kernel_set
{
	const char *name;
	const qwen_ops *ops;
	int needs;     /* of the features above */
	unsigned xcr0; /* bits that must be set */
	bool threaded;
	bool tiles;     /* the process must ask for their state */
	bool amd_alone; /* "auto" takes the set on processors of AMD alone */
} kernel_set;

/*
 * Best first; "auto" takes the first usable one.  avx512bf16 multiplies bfloat16 with vdpbf16ps, which on Zen 4 does
 * twice the products of an FMA in the same time and on Sapphire Rapids half of them (both measured).
 *
 * Where tiles are emulated (cpu/cpu_tile.h), the set called amx has neither tiles nor their state to ask for.
 */
static const kernel_set sets[] = {
#ifdef QWEN_EMULATE_TILES
	{"amx", &qwen_ops_amx, NEEDS_AVX512BF16, XCR0_AVX512, .threaded = true},
#else
	{"amx", &qwen_ops_amx, NEEDS_AMX, XCR0_TILES, .threaded = true, .tiles = true},
#endif
	{"avx512bf16", &qwen_ops_avx512bf16, NEEDS_AVX512BF16, XCR0_AVX512, .threaded = true, .amd_alone = true},
	{"avx512", &qwen_ops_avx512, NEEDS_AVX512, XCR0_AVX512, .threaded = true},
	{"avx2", &qwen_ops_avx2, NEEDS_AVX2, XCR0_AVX, .threaded = true},
	{"portable", &qwen_ops_portable, 0, 0, .threaded = true},
	{"ref", &qwen_ops_ref, 0, 0},
};
#define N_SETS (sizeof(sets) / sizeof(sets[0]))

static bool
has_feature(const cpu_feature *f)
{
	unsigned r[4] = {0};

	return __get_cpuid_count(f->leaf, f->subleaf, &r[0], &r[1], &r[2], &r[3]) && (r[f->reg] >> f->bit & 1);
}

static unsigned
read_xcr0(void)
{
	unsigned eax, edx;

	__asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
	return eax;
}

/*
 * Linux keeps the 8 KiB of tiles only for processes that have asked.  The answer holds for all threads; asking again is
 * harmless.  0 or what errno said: EINVAL from kernels before 5.16, ENOSPC when an alternate signal stack is too small.
 */
static int
ask_for_tiles(void)
{
	enum
	{
		REQ_XCOMP_PERM = 0x1023, /* ARCH_REQ_XCOMP_PERM of asm/prctl.h, which older headers lack */
		XTILEDATA = 18
	};

	return syscall(SYS_arch_prctl, REQ_XCOMP_PERM, XTILEDATA) == 0 ? 0 : errno;
}

static bool
set_usable(const kernel_set *set, char *why, size_t whylen)
{
	int refusal;

	for (const cpu_feature *f = features; f < features + set->needs; f++)
		if (!has_feature(f))
		{
			snprintf(why, whylen, "kernels \"%s\" need %s, which this processor lacks", set->name, f->name);
			return false;
		}
	/* xgetbv exists: a set that needs state needs osxsave too */
	if (set->xcr0 && (read_xcr0() & set->xcr0) != set->xcr0)
	{
		snprintf(why, whylen, "kernels \"%s\" need registers that the operating system does not save", set->name);
		return false;
	}
	if (set->tiles && (refusal = ask_for_tiles()) != 0)
	{
		snprintf(why, whylen, "kernels \"%s\" need tiles, which the operating system does not grant (%s)", set->name,
				 strerror(refusal));
		return false;
	}
	return true;
}

static const kernel_set *
find_set(const char *name, char *why, size_t whylen)
{
	bool any = !strcmp(name, "auto");

	for (const kernel_set *set = sets; set < sets + N_SETS; set++)
		if (any ? (!set->amd_alone || __builtin_cpu_is("amd")) && set_usable(set, why, whylen)
				: !strcmp(name, set->name))
			return set;
	snprintf(why, whylen,
			 "there are no kernels \"%.32s\"; known are auto, amx, avx512bf16, avx512, avx2, portable and ref", name);
	return NULL;
}

const char *const *
qwen_kernel_sets(void)
{
	static const char *const names[] = {"amx", "avx512bf16", "avx512", "avx2", "portable", "ref", NULL};

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

/* "cpu", or "cpu:N" of one that is divided. */
static bool
is_processor(const char *name, char *err, size_t errlen)
{
	if (!strcmp(name, "cpu") || (!strncmp(name, "cpu:", 4) && name[4] && !name[4 + strspn(name + 4, "0123456789")]))
		return true;
	snprintf(err, errlen, "\"%.32s\" is no processor; known are cpu and cpu:0, cpu:1, ...", name);
	return false;
}

qwen_device *
qwen_device_open(const char *name, const char *kernels, int n_threads, char *err, size_t errlen)
{
	const kernel_set *set = find_set(kernels, err, errlen);
	qwen_device *dev;

	if (!set || !set_usable(set, err, errlen))
		return NULL;
	if (!is_processor(name, err, errlen))
		return NULL;
	dev = calloc(1, sizeof(*dev));
	if (!dev)
	{
		snprintf(err, errlen, "out of memory");
		return NULL;
	}
	snprintf(dev->name, sizeof(dev->name), "%s", name);
	dev->ops = set->ops;
	dev->host = true;
	dev->act = QWEN_F32;
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

qwen_device *
qwen_device_open_beside(const qwen_device *dev, const char *name, char *err, size_t errlen)
{
	qwen_device *other;

	if (!is_processor(name, err, errlen))
		return NULL;
	other = malloc(sizeof(*other));
	if (!other)
	{
		snprintf(err, errlen, "out of memory");
		return NULL;
	}
	*other = *dev;
	snprintf(other->name, sizeof(other->name), "%s", name);
	other->scratch = NULL;
	other->needs = (qwen_needs){0};
	other->beside = true;
	return other;
}

void
qwen_device_close(qwen_device *dev)
{
	if (dev)
		dev->ops->close(dev);
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
