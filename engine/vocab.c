/*
 * vocab.c
 *	  Token ids and the bytes that they stand for.
 *
 * Symbols are turned into bytes as they are read, so that nothing after
 * loading knows of the byte map.  All bytes lie in one arena and the reverse
 * map is one array of ids: a vocabulary of 151,643 tokens costs three
 * allocations and 3 MB.
 */
#include "vocab.h"

#include <stdlib.h>
#include <string.h>

#include "utf8.h"

/* ---- the byte map ---- */

/*
 * The byte that a code point of a symbol stands for, or -1. The map is GPT-2's, which all byte-level vocabularies use.
 */
static int
symbol_byte(int32_t cp)
{
	/* The 68 bytes without a visible character of their own are 00-20, 7F-A0 and AD, in this order from U+0100 on. */
	if ((cp >= 0x21 && cp <= 0x7E) || (cp >= 0xA1 && cp <= 0xFF && cp != 0xAD))
		return cp;
	if (cp >= 0x100 && cp <= 0x120)
		return cp - 0x100;
	if (cp >= 0x121 && cp <= 0x142)
		return cp - 0x121 + 0x7F;
	return cp == 0x143 ? 0xAD : -1;
}

size_t
qwen_symbol_bytes(const char *symbol, size_t len, char *out)
{
	const unsigned char *p = (const unsigned char *) symbol;
	size_t n = 0;

	for (size_t at = 0, used; at < len; at += used)
	{
		int byte = symbol_byte(qwen_utf8_decode(p + at, &used));

		if (byte < 0)
		{
			memcpy(out, symbol, len);
			return len;
		}
		out[n++] = (char) byte;
	}
	return n;
}

/* ---- the table by id ---- */

qwen_status
qwen_vocab_reserve(qwen_vocab *v, size_t n, size_t bytes, qwen_error *err)
{
	uint32_t slots = 64;

	if (n > QWEN_MAX_TOKEN_ID || bytes > UINT32_MAX / 2)
		return qwen_fail(err, QWEN_CORRUPT, "the tokenizer has more than %d tokens", QWEN_MAX_TOKEN_ID);
	while (slots < 2 * n)
		slots *= 2;
	v->slots = malloc(slots * sizeof(int32_t));
	if (!v->slots)
		return qwen_fail_memory(err, slots * sizeof(int32_t));
	memset(v->slots, -1, slots * sizeof(int32_t));
	v->n_slots = slots;
	return qwen_bytes_reserve(&v->arena, bytes) ? QWEN_OK : qwen_fail_memory(err, bytes);
}

/* Makes room for an id. */
static qwen_status
reserve_id(qwen_vocab *v, int64_t id, qwen_error *err)
{
	int32_t cap = v->cap ? v->cap : 1024;
	qwen_vocab_entry *p;

	if (id < 0 || id >= QWEN_MAX_TOKEN_ID)
	{
		qwen_fail(err, QWEN_CORRUPT, "token id %lld is out of range", (long long) id);
		return qwen_fail_detail(err, "Ids from 0 to %d are possible.", QWEN_MAX_TOKEN_ID - 1);
	}
	if (id < v->cap)
		return QWEN_OK;
	while (cap <= id)
		cap *= 2;
	p = realloc(v->entries, (size_t) cap * sizeof(*p));
	if (!p)
		return qwen_fail_memory(err, (size_t) cap * sizeof(*p));
	memset(p + v->cap, 0, (size_t) (cap - v->cap) * sizeof(*p));
	v->entries = p;
	v->cap = cap;
	return QWEN_OK;
}

/* Enters bytes that already stand at the end of the arena. */
static void
define(qwen_vocab *v, int32_t id, size_t len, bool special)
{
	v->entries[id] = (qwen_vocab_entry){(uint32_t) v->arena.len, (uint32_t) len, 1, special};
	v->arena.len += len;
	if (id >= v->size)
		v->size = id + 1;
}

/* Offsets into the arena have 32 bits, lengths 30; half of that is far beyond any real file. */
static qwen_status
reserve_bytes(qwen_vocab *v, size_t len, qwen_error *err)
{
	if (len > UINT32_MAX / 4 || v->arena.len + len > UINT32_MAX / 2)
		return qwen_fail(err, QWEN_CORRUPT, "the tokenizer's tokens are too long");
	return qwen_bytes_reserve(&v->arena, len) ? QWEN_OK : qwen_fail_memory(err, len);
}

/*
 * FNV-1a with a final mix. Keys come from the checkpoint's own file, so that nothing is gained by forging collisions.
 */
static uint32_t
hash_bytes(const char *bytes, size_t len)
{
	uint64_t h = UINT64_C(0xCBF29CE484222325);

	for (size_t i = 0; i < len; i++)
		h = (h ^ (unsigned char) bytes[i]) * UINT64_C(0x100000001B3);
	return (uint32_t) (h ^ h >> 32);
}

/*
 * The slot that holds these bytes, or the free one where they belong; at most half of them are used, so there is one.
 */
static int32_t *
find_slot(const qwen_vocab *v, const char *bytes, size_t len)
{
	uint32_t i = hash_bytes(bytes, len) & (v->n_slots - 1);

	for (;; i = (i + 1) & (v->n_slots - 1))
	{
		int32_t id = v->slots[i];

		if (id < 0 || (v->entries[id].len == len && !memcmp(v->arena.data + v->entries[id].offset, bytes, len)))
			return &v->slots[i];
	}
}

/* The symbol's bytes are written to the end of the arena at once and stay there only if they turn out to be new. */
qwen_status
qwen_vocab_add_symbol(qwen_vocab *v, const char *symbol, size_t len, int64_t id, qwen_error *err)
{
	size_t n;
	int32_t *slot;

	if (reserve_id(v, id, err) || reserve_bytes(v, len, err))
		return err->status;
	if (len == 0)
		return qwen_fail(err, QWEN_CORRUPT, "token %lld is empty", (long long) id);
	if (v->entries[id].defined)
		return qwen_fail(err, QWEN_CORRUPT, "token id %lld is defined twice", (long long) id);
	if (v->n_used >= v->n_slots / 2)
		return qwen_fail(err, QWEN_INTERNAL, "more symbols than announced");
	n = qwen_symbol_bytes(symbol, len, v->arena.data + v->arena.len);
	slot = find_slot(v, v->arena.data + v->arena.len, n);
	if (*slot >= 0)
		return qwen_fail(err, QWEN_CORRUPT, "tokens %d and %lld stand for the same bytes", *slot, (long long) id);
	define(v, (int32_t) id, n, false);
	*slot = (int32_t) id;
	v->n_used++;
	return QWEN_OK;
}

qwen_status
qwen_vocab_add_token(qwen_vocab *v, const char *text, size_t len, int64_t id, bool special, qwen_error *err)
{
	const qwen_vocab_entry *e;

	if (reserve_id(v, id, err) || reserve_bytes(v, len, err))
		return err->status;
	e = &v->entries[id];
	if (e->defined && (e->len != len || memcmp(v->arena.data + e->offset, text, len) != 0))
		return qwen_fail(err, QWEN_CORRUPT, "token id %lld is defined twice", (long long) id);
	if (e->defined)
	{
		v->entries[id].special = special;
		return QWEN_OK;
	}
	memcpy(v->arena.data + v->arena.len, text, len);
	define(v, (int32_t) id, len, special);
	return QWEN_OK;
}

int32_t
qwen_vocab_find(const qwen_vocab *v, const char *bytes, size_t len)
{
	return v->n_slots ? *find_slot(v, bytes, len) : -1;
}

const char *
qwen_vocab_bytes(const qwen_vocab *v, int32_t id, size_t *len)
{
	if (id < 0 || id >= v->size || !v->entries[id].defined)
		return NULL;
	*len = v->entries[id].len;
	return v->arena.data + v->entries[id].offset;
}

void
qwen_vocab_free(qwen_vocab *v)
{
	free(v->entries);
	free(v->slots);
	qwen_bytes_free(&v->arena);
	memset(v, 0, sizeof(*v));
}
