/*
 * matrix.cu
 *	  Weights on their way to a GPU, and quantised ones back to 16 bits.
 *
 * A checkpoint's rows are converted on the host, by quant.h itself, and sent
 * as they will lie there: several threads load a model, so that the
 * conversion hides behind the reading, and what would be gained by doing it
 * on the GPU is a second definition of int8 and int4.  Rows of the stored
 * type pass through without being touched.
 */
#include "kernels/cuda/linear_weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/quant.h"

/* Rows are converted in pieces of about so many stored bytes. */
#define PIECE_BYTES ((int64_t) 1 << 20)

qwen_dtype
cuda_matrix_dtype(const qwen_device *dev, qwen_dtype wanted)
{
	(void) dev;
	return wanted;
}

size_t
cuda_matrix_bytes(const qwen_device *dev, qwen_dtype dtype, int64_t n, int64_t k)
{
	size_t scales = (size_t) n * (size_t) cuda_groups(k) * (size_t) cuda_scales_per_group(dtype) * sizeof(uint16_t);

	(void) dev;
	return cuda_align(cuda_element_bytes(dtype, n, k)) + cuda_align(scales);
}

/* ---- to the device ---- */

static size_t
source_bytes(qwen_dtype source)
{
	return source == QWEN_F32 ? 4 : 2;
}

/* out[n] = src[n] of a type that has elements of its own. */
static void
widen(float *out, const void *src, qwen_dtype source, int64_t n)
{
	const uint16_t *halves = (const uint16_t *) src;

	if (source == QWEN_F32)
		memcpy(out, src, (size_t) n * sizeof(float));
	else if (source == QWEN_BF16)
		for (int64_t i = 0; i < n; i++)
			out[i] = qwen_bf16_float(halves[i]);
	else
		for (int64_t i = 0; i < n; i++)
			out[i] = qwen_f16_float(halves[i]);
}

/* out[n] = x[n] as 16 bits or float; false when a finite value becomes infinite. */
static bool
narrow(void *out, const float *x, qwen_dtype dtype, int64_t n)
{
	uint16_t *halves = (uint16_t *) out;
	bool fits = true;

	if (dtype == QWEN_F32)
		memcpy(out, x, (size_t) n * sizeof(float));
	else if (dtype == QWEN_BF16)
		for (int64_t i = 0; i < n; i++)
			halves[i] = qwen_float_bf16(x[i]);
	else
		for (int64_t i = 0; i < n; i++)
		{
			halves[i] = qwen_float_f16(x[i]);
			fits &= (halves[i] & 0x7fff) != 0x7c00 || isinf(x[i]);
		}
	return fits;
}

/* q[QWEN_GROUP] and scale of a group of n floats; q beyond n stays zero. */
static void
store_int8(unsigned char *q, uint16_t *scale, const float *x, int n)
{
	memset(q, 0, QWEN_GROUP);
	*scale = qwen_quantize_int8(x, n, (int8_t *) q);
}

/* The same in half the bytes; scale and minimum. */
static void
store_int4(unsigned char *q, uint16_t *scale, const float *x, int n)
{
	uint8_t wide[QWEN_GROUP] = {0};

	scale[0] = qwen_quantize_int4(x, n, wide, &scale[1]);
	for (int i = 0; i < QWEN_GROUP / 2; i++)
		q[i] = (uint8_t) (wide[i] | wide[i + QWEN_GROUP / 2] << 4);
}

/* Rows on their way: floats of one row, and stored bytes of several. */
typedef struct conversion
{
	float *row;         /* [k] */
	unsigned char *q;   /* [rows] elements */
	uint16_t *scales;   /* [rows] scales of groups */
	int64_t rows;       /* that fit */
	size_t row_bytes;   /* of elements */
	size_t scale_bytes; /* of a row's scales */
} conversion;

/* One allocation; false when there is no memory. Freed by its `row`. */
static bool
conversion_new(conversion *c, const qwen_matrix *m, int64_t n_rows)
{
	size_t floats = (size_t) m->k * sizeof(float);

	c->row_bytes = cuda_element_bytes(m->dtype, 1, m->k);
	c->scale_bytes = (size_t) cuda_groups(m->k) * (size_t) cuda_scales_per_group(m->dtype) * sizeof(uint16_t);
	c->rows = PIECE_BYTES / (int64_t) (c->row_bytes + c->scale_bytes);
	c->rows = c->rows < 1 ? 1 : c->rows > n_rows ? n_rows : c->rows;
	c->row = (float *) malloc(floats + (size_t) c->rows * (c->row_bytes + c->scale_bytes));
	if (!c->row)
		return false;
	/* floats, scales, elements: from the wider to the narrower, so that all are aligned */
	c->scales = (uint16_t *) ((char *) c->row + floats);
	c->q = (unsigned char *) c->scales + (size_t) c->rows * c->scale_bytes;
	return true;
}

/* Row r of the piece from a row of the checkpoint; false when a value does not fit. */
static bool
convert_row(const conversion *c, int64_t r, const qwen_matrix *m, const void *src, qwen_dtype source)
{
	unsigned char *q = c->q + (size_t) r * c->row_bytes;
	int per_group = cuda_scales_per_group(m->dtype);
	int64_t groups = cuda_groups(m->k);

	widen(c->row, src, source, m->k);
	if (per_group == 0)
		return narrow(q, c->row, m->dtype, m->k);
	for (int64_t g = 0; g < groups; g++)
	{
		const float *x = c->row + g * QWEN_GROUP;
		uint16_t *scale = c->scales + (r * groups + g) * per_group;
		int64_t left = m->k - g * QWEN_GROUP;
		int n = (int) (left < QWEN_GROUP ? left : QWEN_GROUP);

		if (m->dtype == QWEN_INT8)
			store_int8(q + g * QWEN_GROUP, scale, x, n);
		else
			store_int4(q + g * (QWEN_GROUP / 2), scale, x, n);
	}
	return true;
}

/* Rows [row, row + n) of the matrix from the conversion. */
static bool
send_rows(qwen_device *dev, const conversion *c, const qwen_matrix *m, int64_t row, int64_t n)
{
	char *elements = (char *) m->data;
	char *scales = elements + cuda_align(cuda_element_bytes(m->dtype, m->n, m->k));

	if (!cuda_upload(dev, elements + (size_t) row * c->row_bytes, c->q, (size_t) n * c->row_bytes))
		return false;
	return c->scale_bytes == 0 ||
		   cuda_upload(dev, scales + (size_t) row * c->scale_bytes, c->scales, (size_t) n * c->scale_bytes);
}

bool
cuda_matrix_upload(qwen_device *dev, qwen_matrix *m, int64_t row, int64_t n_rows, const void *src, qwen_dtype source)
{
	size_t src_row = (size_t) m->k * source_bytes(source);
	bool stored = true;
	conversion c;

	if (m->dtype == source)
		return cuda_upload(dev, (char *) m->data + (size_t) row * src_row, src, (size_t) n_rows * src_row);
	if (!conversion_new(&c, m, n_rows))
		return cuda_check(dev, cudaErrorMemoryAllocation, "conversion of weights");
	for (int64_t first = 0; stored && first < n_rows; first += c.rows)
	{
		int64_t n = n_rows - first < c.rows ? n_rows - first : c.rows;

		for (int64_t r = 0; stored && r < n; r++)
			stored = convert_row(&c, r, m, (const char *) src + (size_t) (first + r) * src_row, source);
		stored = stored && send_rows(dev, &c, m, row + first, n);
	}
	free(c.row);
	return stored;
}

bool
cuda_vector_upload(qwen_device *dev, float *d_dst, const void *src, qwen_dtype source, int64_t n)
{
	float *wide;
	bool sent;

	if (source == QWEN_F32)
		return cuda_upload(dev, d_dst, src, (size_t) n * sizeof(float));
	wide = (float *) malloc((size_t) n * sizeof(float));
	if (!wide)
		return cuda_check(dev, cudaErrorMemoryAllocation, "conversion of a vector");
	widen(wide, src, source, n);
	sent = cuda_upload(dev, d_dst, wide, (size_t) n * sizeof(float));
	free(wide);
	return sent;
}

/* ---- back to the type of activations ---- */

/* Consecutive elements of a row that a thread widens. */
#define WIDEN 8

template <typename W>
static __device__ __forceinline__ void
widen_piece(float v[WIDEN], const cuda_weights &w, int64_t row, int64_t i)
{
	for (int j = 0; j < WIDEN; j++)
		v[j] = i + j < w.k ? weight_at<W>(w, row, i + j) : 0;
}

/* Byte j of eight. */
static __device__ __forceinline__ unsigned
byte_of(uint2 bytes, int j)
{
	return (j < 4 ? bytes.x : bytes.y) >> 8 * (j % 4) & 0xff;
}

template <>
__device__ __forceinline__ void
widen_piece<int8_t>(float v[WIDEN], const cuda_weights &w, int64_t row, int64_t i)
{
	int64_t group = row * w.groups + i / QWEN_GROUP;
	uint2 bytes = *reinterpret_cast<const uint2 *>(w.q + group * QWEN_GROUP + i % QWEN_GROUP);
	float d = bf16_bits(w.scales[group]);

#pragma unroll
	for (int j = 0; j < WIDEN; j++)
		v[j] = static_cast<float>(static_cast<int8_t>(byte_of(bytes, j))) * d;
}

template <>
__device__ __forceinline__ void
widen_piece<cuda_int4>(float v[WIDEN], const cuda_weights &w, int64_t row, int64_t i)
{
	const int half = QWEN_GROUP / 2;
	int64_t group = row * w.groups + i / QWEN_GROUP;
	int at = static_cast<int>(i % QWEN_GROUP), shift = at < half ? 0 : 4;
	uint2 bytes = *reinterpret_cast<const uint2 *>(w.q + group * half + at % half);
	float d = bf16_bits(w.scales[2 * group]), m = bf16_bits(w.scales[2 * group + 1]);

#pragma unroll
	for (int j = 0; j < WIDEN; j++)
		v[j] = fmaf(static_cast<float>(byte_of(bytes, j) >> shift & 15), d, m);
}

/*
 * out[n_rows, k] = rows [row, row + n_rows) of w.  A thread for eight elements: consecutive threads read consecutive
 * bytes and write consecutive ones, the floor is what is read and written (1 + 2 bytes an element of int8).  The tile
 * that is written stays in the second-level cache, where the product finds it.
 */
template <typename W, typename X>
static __global__ void
widen_rows(X *out, cuda_weights w, int64_t row, int64_t n_rows)
{
	int64_t pieces = (w.k + WIDEN - 1) / WIDEN;
	int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
	int64_t r = at / pieces, i = at % pieces * WIDEN;
	float v[WIDEN];

	if (r >= n_rows)
		return;
	widen_piece<W>(v, w, row + r, i);
	if (w.k % WIDEN == 0 && sizeof(X) == 2)
	{
		union
		{
			uint4 bits;
			uint16_t words[WIDEN];
		} narrow;

#pragma unroll
		for (int j = 0; j < WIDEN; j++)
		{
			X x = from_float<X>(v[j]);

			memcpy(&narrow.words[j], &x, sizeof(narrow.words[j]));
		}
		*reinterpret_cast<uint4 *>(out + r * w.k + i) = narrow.bits;
	}
	else
		for (int j = 0; j < WIDEN && i + j < w.k; j++)
			out[r * w.k + i + j] = from_float<X>(v[j]);
}

template <typename W>
static void
widen_as(qwen_device *dev, void *d_out, const qwen_matrix *m, int64_t row, int64_t n_rows)
{
	cuda_weights w = cuda_weights_of(m);
	int64_t pieces = n_rows * ((w.k + WIDEN - 1) / WIDEN);
	unsigned blocks = (unsigned) ((pieces + 255) / 256);
	cudaStream_t stream = cuda_of(dev)->stream;

	switch (dev->act)
	{
		case QWEN_F16:
			CUDA_LAUNCH((widen_rows<W, __half>), blocks, 256, 0, stream, (__half *) d_out, w, row, n_rows);
			break;
		case QWEN_BF16:
			CUDA_LAUNCH((widen_rows<W, __nv_bfloat16>), blocks, 256, 0, stream, (__nv_bfloat16 *) d_out, w, row,
						n_rows);
			break;
		default:
			CUDA_LAUNCH((widen_rows<W, float>), blocks, 256, 0, stream, (float *) d_out, w, row, n_rows);
	}
}

void
cuda_widen_rows(qwen_device *dev, void *d_out, const qwen_matrix *m, int64_t row, int64_t n_rows)
{
	if (!cuda_ready(dev))
		return;
	switch (m->dtype)
	{
		case QWEN_F32:
			widen_as<float>(dev, d_out, m, row, n_rows);
			break;
		case QWEN_F16:
			widen_as<__half>(dev, d_out, m, row, n_rows);
			break;
		case QWEN_BF16:
			widen_as<__nv_bfloat16>(dev, d_out, m, row, n_rows);
			break;
		case QWEN_INT8:
			widen_as<int8_t>(dev, d_out, m, row, n_rows);
			break;
		case QWEN_INT4:
			widen_as<cuda_int4>(dev, d_out, m, row, n_rows);
			break;
	}
	cuda_launched(dev, "widen_rows");
}
