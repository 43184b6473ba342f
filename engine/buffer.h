/*
 * buffer.h
 *	  Growable byte and token-id buffers.
 *
 * Appends return false when memory is short and leave the buffer as it was;
 * the caller turns that into qwen_fail_memory.  A zeroed struct is an empty
 * buffer.
 */
#ifndef QWEN_BUFFER_H
#define QWEN_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct qwen_bytes
{
	char *data; /* NUL-terminated once anything was appended */
	size_t len; /* without the terminator */
	size_t cap;
} qwen_bytes;

typedef struct qwen_ids
{
	int32_t *data;
	size_t len;
	size_t cap;
} qwen_ids;

bool qwen_bytes_reserve(qwen_bytes *b, size_t more);
bool qwen_bytes_append(qwen_bytes *b, const void *data, size_t len);
bool qwen_bytes_append_str(qwen_bytes *b, const char *s);
void qwen_bytes_free(qwen_bytes *b);

bool qwen_ids_reserve(qwen_ids *ids, size_t total);
bool qwen_ids_append(qwen_ids *ids, const int32_t *data, size_t len);
bool qwen_ids_push(qwen_ids *ids, int32_t id);
void qwen_ids_free(qwen_ids *ids);

#endif
