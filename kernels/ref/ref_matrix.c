/*
 * ref_matrix.c
 *	  Storing of matrices for the oracle: floats, row-major, whatever the
 *	  checkpoint holds.
 *
 * Where int8 or int4 is wanted, the floats are what the quantised elements
 * stand for: other sets can then be told apart from the loss that the type
 * itself brings.
 */
#include "ref.h"

#include "../host.h"
#include "../quant.h"

qwen_dtype
qwen_ref_matrix_dtype(const qwen_device *dev, qwen_dtype wanted)
{
	return wanted == QWEN_INT8 || wanted == QWEN_INT4 ? wanted : QWEN_F32;
}

size_t
qwen_ref_matrix_bytes(const qwen_device *dev, qwen_dtype dtype, int64_t n, int64_t k)
{
	return (size_t) n * (size_t) k * sizeof(float);
}

/* w[n] of one group as its quantised elements stand for it. */
static void
requantize(float *w, int n, qwen_dtype dtype)
{
	int8_t q8[QWEN_GROUP];
	uint8_t q4[QWEN_GROUP];
	uint16_t d, m = 0;

	d = dtype == QWEN_INT8 ? qwen_quantize_int8(w, n, q8) : qwen_quantize_int4(w, n, q4, &m);
	for (int i = 0; i < n; i++)
		w[i] = (float) (dtype == QWEN_INT8 ? q8[i] : q4[i]) * qwen_bf16_float(d) + qwen_bf16_float(m);
}

bool
qwen_ref_matrix_upload(qwen_device *dev, qwen_matrix *m, int64_t row, int64_t n_rows, const void *src,
					   qwen_dtype source)
{
	float *dst = (float *) m->data + row * m->k;

	qwen_widen(dst, src, source, n_rows * m->k);
	if (m->dtype == QWEN_F32)
		return true;
	for (int64_t i = 0; i < n_rows; i++)
		for (int64_t g = 0; g < m->k; g += QWEN_GROUP)
			requantize(dst + i * m->k + g, (int) (m->k - g < QWEN_GROUP ? m->k - g : QWEN_GROUP), m->dtype);
	return true;
}
