/*
 * fuzz_safetensors.c
 *	  A safetensors header from hostile hands.
 *
 * Input: four bytes, the size of the data area, then the header.  What is
 * accepted must be what the loader builds on: names in order and unique, every
 * tensor inside the data area, sizes that are products of the shapes.
 */
#include <stdlib.h>
#include <string.h>

#include "engine/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
require(int condition)
{
	if (!condition)
		abort();
}

static void
check_accepted(const qwen_tensor_list *list, uint64_t data_bytes)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < list->n; i++)
	{
		const qwen_tensor *t = &list->items[i];
		uint64_t bits = (uint64_t) t->bits;

		require(i == 0 || strcmp(t[-1].name, t->name) < 0);
		require(t->begin <= t->end && t->end <= data_bytes);
		require(t->rank >= 0 && t->rank <= QWEN_TENSOR_MAX_RANK && t->dtype != NULL);
		for (int d = 0; d < t->rank; d++)
			bits *= t->shape[d];
		require(bits == (t->end - t->begin) * 8);
		sum += t->end - t->begin;
	}
	require(sum == data_bytes);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	qwen_tensor_list list = {0};
	qwen_error err;
	uint32_t data_bytes;

	if (size < sizeof(data_bytes))
		return 0;
	memcpy(&data_bytes, data, sizeof(data_bytes));
	if (qwen_safetensors_parse("file", (const char *) data + sizeof(data_bytes), size - sizeof(data_bytes), data_bytes,
							   &list, &err) == QWEN_OK)
		check_accepted(&list, data_bytes);
	else
		require(err.status != QWEN_OK && err.message[0] != '\0');
	qwen_tensor_list_free(&list);
	return 0;
}
