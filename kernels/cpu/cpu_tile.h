/*
 * cpu_tile.h
 *	  AMX's tiles: eight registers of up to 16 rows of 64 bytes, and the two
 *	  products that the kernels use.
 *
 *	  TILE_LOAD(t, p, stride)		rows of tile t from p, p + stride, ...
 *	  TILE_STORE(t, p, stride)
 *	  TILE_ZERO(t)
 *	  TILE_MULTIPLY_BF16(c, a, b)	c[m][n] += sum over k of a[m][k] b[k][n], float; b as [k / 2][n][2]
 *	  TILE_MULTIPLY_INT8(c, a, b)	the same in int32, int8 by int8; b as [k / 4][n][4]
 *
 * Tiles are numbers, 0 .. 7, known to the compiler.  A thread configures the
 * sizes of its tiles before it uses them and releases them afterwards, so that
 * the operating system has nothing of them to save while it does other work.
 *
 * There are two implementations: the instructions, and a model of them in C,
 * compiled with QWEN_EMULATE_TILES, by which the kernels can be tested where
 * there is no AMX.  The model gives the same bits and faults where the
 * processor does.  Its source are the operation sections of TDPBF16PS,
 * TDPBSSD, TILELOADD and LDTILECFG in Intel's Software Developer's Manual,
 * volume 2.
 */
#ifndef QWEN_CPU_TILE_H
#define QWEN_CPU_TILE_H

#include <stdint.h>
#include <string.h>

#define AMX_ROWS 16
#define AMX_ROW_BYTES 64
#define AMX_TILES 8

/* What LDTILECFG reads. */
typedef struct tile_config
{
	uint8_t palette; /* 1: eight tiles of 1 KiB */
	uint8_t start_row;
	uint8_t reserved[14];
	uint16_t row_bytes[16];
	uint8_t rows[16];
} tile_config;

_Static_assert(sizeof(tile_config) == 64, "LDTILECFG reads 64 bytes");

#ifndef QWEN_EMULATE_TILES

#include <immintrin.h>

/*
 * The compiler's tile intrinsics do not say which memory they read: what was stored before must not be moved behind
 * them.
 */
static inline void
tile_read_fence(const void *p)
{
	__asm__ volatile("" : : "r"(p) : "memory");
}

static inline void
tile_configure(const tile_config *config)
{
	tile_read_fence(config);
	_tile_loadconfig(config);
}

#define tile_release() _tile_release()
#define TILE_LOAD(t, p, stride)                                                                                        \
	do                                                                                                                 \
	{                                                                                                                  \
		tile_read_fence(p);                                                                                            \
		_tile_loadd(t, p, stride);                                                                                     \
	} while (0)
#define TILE_STORE(t, p, stride) _tile_stored(t, p, stride)
#define TILE_ZERO(t) _tile_zero(t)
#define TILE_MULTIPLY_BF16(c, a, b) _tile_dpbf16ps(c, a, b)
#define TILE_MULTIPLY_INT8(c, a, b) _tile_dpbssd(c, a, b)

#else

/* A thread's registers. */
typedef struct tile_state
{
	tile_config config; /* all zero: not configured */
	_Alignas(64) uint32_t tiles[AMX_TILES][AMX_ROWS][AMX_ROW_BYTES / 4];
} tile_state;

static _Thread_local tile_state tile_registers;

/* What the processor raises #UD or #GP for: SIGILL, or SIGTRAP where there is no such instruction. */
static inline void
tile_check(int allowed)
{
	if (!allowed)
		__builtin_trap();
}

static inline void
tile_configure(const tile_config *config)
{
	static const uint8_t zero[sizeof(config->reserved)];

	tile_check(config->palette == 1 && config->start_row == 0 && !memcmp(config->reserved, zero, sizeof(zero)));
	for (int t = 0; t < 16; t++)
		tile_check(config->rows[t] <= AMX_ROWS && config->row_bytes[t] <= AMX_ROW_BYTES &&
				   !config->rows[t] == !config->row_bytes[t] && (t < AMX_TILES || !config->rows[t]));
	tile_registers = (tile_state){.config = *config};
}

static inline void
tile_release(void)
{
	tile_registers = (tile_state){0};
}

static inline void
tile_load(int t, const void *p, int64_t stride)
{
	tile_state *s = &tile_registers;

	tile_check(s->config.rows[t]);
	memset(s->tiles[t], 0, sizeof(s->tiles[t]));
	for (int r = 0; r < s->config.rows[t]; r++)
		memcpy(s->tiles[t][r], (const char *) p + r * stride, s->config.row_bytes[t]);
}

static inline void
tile_store(int t, void *p, int64_t stride)
{
	const tile_state *s = &tile_registers;

	tile_check(s->config.rows[t]);
	for (int r = 0; r < s->config.rows[t]; r++)
		memcpy((char *) p + r * stride, s->tiles[t][r], s->config.row_bytes[t]);
}

static inline void
tile_zero(int t)
{
	tile_check(tile_registers.config.rows[t]);
	memset(tile_registers.tiles[t], 0, sizeof(tile_registers.tiles[t]));
}

/* Sizes that fit each other, and three tiles. */
static inline void
tile_check_product(int c, int a, int b)
{
	const tile_config *g = &tile_registers.config;

	tile_check(c != a && c != b && a != b && g->rows[c] && g->rows[a] && g->rows[b]);
	tile_check(g->rows[c] == g->rows[a] && g->row_bytes[c] == g->row_bytes[b] && g->row_bytes[a] == 4 * g->rows[b]);
	tile_check(g->row_bytes[c] % 4 == 0);
}

/* The float of those bits, with denormals as zero of the same sign. */
static inline float
tile_flush(uint32_t bits)
{
	float f;

	bits = bits & 0x7f800000u ? bits : bits & 0x80000000u;
	memcpy(&f, &bits, sizeof(f));
	return f;
}

static inline uint32_t
tile_bits(float f)
{
	uint32_t bits;

	memcpy(&bits, &f, sizeof(bits));
	return bits;
}

/*
 * A row of the product: the even and the odd elements along k are two chains of fused multiply-adds, whose sum is
 * added to c.  Denormals are zero on the way in and out; the exceptional case of a result that only rounding lifts to
 * the least normal number is not told apart.
 */
static inline void
tile_row_bf16(uint32_t c[16], const uint32_t a[16], const uint32_t (*b)[16], int n_pairs)
{
	float even[16] = {0}, odd[16] = {0};

	for (int k = 0; k < n_pairs; k++)
	{
		float a_even = tile_flush(a[k] << 16), a_odd = tile_flush(a[k] & 0xffff0000u);

		for (int n = 0; n < 16; n++)
		{
			even[n] = tile_flush(tile_bits(__builtin_fmaf(a_even, tile_flush(b[k][n] << 16), even[n])));
			odd[n] = tile_flush(tile_bits(__builtin_fmaf(a_odd, tile_flush(b[k][n] & 0xffff0000u), odd[n])));
		}
	}
	for (int n = 0; n < 16; n++)
		c[n] = tile_bits(tile_flush(tile_bits(tile_flush(c[n]) + tile_flush(tile_bits(even[n] + odd[n])))));
}

/* Byte i of a word, as the signed number it is. */
static inline int32_t
tile_byte(uint32_t word, int i)
{
	return (int32_t) (word << (24 - 8 * i)) >> 24;
}

static inline void
tile_row_int8(uint32_t c[16], const uint32_t a[16], const uint32_t (*b)[16], int n_quads)
{
	for (int k = 0; k < n_quads; k++)
		for (int i = 0; i < 4; i++)
			for (int n = 0; n < 16; n++)
				c[n] += (uint32_t) (tile_byte(a[k], i) * tile_byte(b[k][n], i));
}

/* Columns beyond the tiles' are zero in b and stay zero in c. */
static inline void
tile_multiply_bf16(int c, int a, int b)
{
	tile_state *s = &tile_registers;

	tile_check_product(c, a, b);
	for (int m = 0; m < s->config.rows[c]; m++)
		tile_row_bf16(s->tiles[c][m], s->tiles[a][m], (const uint32_t(*)[16]) s->tiles[b], s->config.rows[b]);
}

static inline void
tile_multiply_int8(int c, int a, int b)
{
	tile_state *s = &tile_registers;

	tile_check_product(c, a, b);
	for (int m = 0; m < s->config.rows[c]; m++)
		tile_row_int8(s->tiles[c][m], s->tiles[a][m], (const uint32_t(*)[16]) s->tiles[b], s->config.rows[b]);
}

#define TILE_LOAD(t, p, stride) tile_load(t, p, stride)
#define TILE_STORE(t, p, stride) tile_store(t, p, stride)
#define TILE_ZERO(t) tile_zero(t)
#define TILE_MULTIPLY_BF16(c, a, b) tile_multiply_bf16(c, a, b)
#define TILE_MULTIPLY_INT8(c, a, b) tile_multiply_int8(c, a, b)

#endif

#endif
