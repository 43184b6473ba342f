/*
 * buffer.c
 *	  Growable byte and token-id buffers: doubling, with overflow checks.
 */
#include "buffer.h"

#include <stdlib.h>
#include <string.h>

/* Grows *data (elements of `size` bytes) so that `need` elements fit. */
static bool
grow(void **data, size_t *cap, size_t need, size_t size)
{
	size_t n = *cap ? *cap : 64;
	void *p;

	if (need <= *cap)
		return true;
	while (n < need)
	{
		if (n > SIZE_MAX / 2 / size)
			return false;
		n *= 2;
	}
	p = realloc(*data, n * size);
	if (!p)
		return false;
	*data = p;
	*cap = n;
	return true;
}

bool
qwen_bytes_reserve(qwen_bytes *b, size_t more)
{
	void *p = b->data;
	bool ok = more < SIZE_MAX - b->len && grow(&p, &b->cap, b->len + more + 1, 1);

	b->data = p;
	return ok;
}

bool
qwen_bytes_append(qwen_bytes *b, const void *data, size_t len)
{
	if (!qwen_bytes_reserve(b, len))
		return false;
	if (len)
		memcpy(b->data + b->len, data, len);
	b->len += len;
	b->data[b->len] = '\0';
	return true;
}

bool
qwen_bytes_append_str(qwen_bytes *b, const char *s)
{
	return qwen_bytes_append(b, s, strlen(s));
}

void
qwen_bytes_free(qwen_bytes *b)
{
	free(b->data);
	memset(b, 0, sizeof(*b));
}

/* Makes room for `total` ids in all. */
bool
qwen_ids_reserve(qwen_ids *ids, size_t total)
{
	void *p = ids->data;
	bool ok = grow(&p, &ids->cap, total, sizeof(int32_t));

	ids->data = p;
	return ok;
}

bool
qwen_ids_append(qwen_ids *ids, const int32_t *data, size_t len)
{
	if (len > SIZE_MAX - ids->len || !qwen_ids_reserve(ids, ids->len + len))
		return false;
	if (len)
		memcpy(ids->data + ids->len, data, len * sizeof(int32_t));
	ids->len += len;
	return true;
}

bool
qwen_ids_push(qwen_ids *ids, int32_t id)
{
	return qwen_ids_append(ids, &id, 1);
}

void
qwen_ids_free(qwen_ids *ids)
{
	free(ids->data);
	memset(ids, 0, sizeof(*ids));
}
