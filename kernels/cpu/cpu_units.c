/*
 * cpu_units.c
 *	  How fast the units are that the sets multiply with.
 *
 * Each instruction runs in a loop of its own on registers alone, with twelve
 * sums that do not wait for each other: more than its latency on any
 * processor that has it.  Written in assembler, so that this file needs no
 * instruction set and the compiler leaves the loops as they are; a set that is
 * open is one that the processor can run.
 *
 * Tiles are not among them: their loop has never been run on a processor that
 * has them, and the products of the set itself have to do as the scale there.
 */
#include "cpu_units.h"

#include <string.h>
#include <time.h>

#define SUMS 12
#define TURNS 20000 /* of a loop in one piece of work: about 0.1 ms */
#define PIECES 16   /* for each thread */
#define RUNS 5

/* Pairs of bfloat16 near 1, which are floats near 1 and bytes other than zero as well. */
static const uint32_t ones = 0x3f803f80;

#define EACH_SUM(step)                                                                                                 \
	step("0") step("1") step("2") step("3") step("4") step("5") step("6") step("7") step("8") step("9") step("10")     \
		step("11")

#define CLEAR(n) "vpxor %%xmm" n ", %%xmm" n ", %%xmm" n "\n\t"

#define UNIT(name, reg, step)                                                                                          \
	static void name(void *arg, int64_t begin, int64_t end)                                                            \
	{                                                                                                                  \
		int64_t n = (end - begin) * TURNS;                                                                             \
                                                                                                                       \
		__asm__ volatile("vpbroadcastd %1, %%" reg "14\n\t"                                                            \
						 "vpbroadcastd %1, %%" reg "15\n\t" EACH_SUM(CLEAR) "1:\n\t" EACH_SUM(step) "dec %0\n\t"       \
																									"jnz 1b\n\t"       \
																									"vzeroupper"       \
						 : "+r"(n)                                                                                     \
						 : "m"(ones)                                                                                   \
						 : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",       \
						   "xmm10", "xmm11", "xmm12", "xmm14", "xmm15");                                               \
	}

#define FMA_256(n) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" n "\n\t"
#define FMA_512(n) "vfmadd231ps %%zmm14, %%zmm15, %%zmm" n "\n\t"
#define BF16_512(n) "vdpbf16ps %%zmm14, %%zmm15, %%zmm" n "\n\t"
#define BYTES_512(n) "vpdpbusd %%zmm14, %%zmm15, %%zmm" n "\n\t"
/* Without VNNI products of bytes need a second instruction to be summed. */
#define BYTES_256(n)                                                                                                   \
	"vpmaddubsw %%ymm14, %%ymm15, %%ymm12\n\t"                                                                         \
	"vpaddw %%ymm12, %%ymm" n ", %%ymm" n "\n\t"

UNIT(fma_256, "ymm", FMA_256)
UNIT(fma_512, "zmm", FMA_512)
UNIT(bf16_512, "zmm", BF16_512)
UNIT(bytes_512, "zmm", BYTES_512)
UNIT(bytes_256, "ymm", BYTES_256)

typedef struct unit
{
	const char *set;
	unsigned types; /* 1 << qwen_dtype of each that the set multiplies with it */
	qwen_loop_fn loop;
	int operations; /* of one step for one sum */
} unit;

#define WIDE (1u << QWEN_F32 | 1u << QWEN_F16)
#define BF16 (1u << QWEN_BF16)
#define NARROW (1u << QWEN_INT8 | 1u << QWEN_INT4)

static const unit units[] = {
	{"amx", WIDE, fma_512, 32},           {"avx512bf16", WIDE, fma_512, 32},
	{"avx512bf16", BF16, bf16_512, 64},   {"avx512bf16", NARROW, bytes_512, 128},
	{"avx512", WIDE | BF16, fma_512, 32}, {"avx512", NARROW, bytes_512, 128},
	{"avx2", WIDE | BF16, fma_256, 16},   {"avx2", NARROW, bytes_256, 64},
};

static double
seconds_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double) ts.tv_sec + 1e-9 * (double) ts.tv_nsec;
}

/* The best of a few runs: other load can only slow one down. */
static double
time_unit(qwen_device *dev, const unit *u)
{
	int64_t pieces = (int64_t) dev->n_threads * PIECES;
	double operations = (double) pieces * TURNS * SUMS * u->operations;
	double best = 0;

	for (int run = 0; run < RUNS; run++)
	{
		double begin = seconds_now();
		double rate;

		dev->ops->loop(dev, pieces, 1, u->loop, NULL);
		rate = operations / (seconds_now() - begin);
		best = rate > best ? rate : best;
	}
	return best;
}

double
qwen_unit_rate(qwen_device *dev, qwen_dtype dtype)
{
	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
		if (!strcmp(units[i].set, dev->ops->name) && (units[i].types >> dtype & 1))
			return time_unit(dev, &units[i]);
	return 0;
}
