/*
 * vocab.h
 *	  Token ids and the bytes that they stand for.
 *
 * Built once, then only read.  Tokens of the vocabulary proper and added
 * tokens live in one table by id; the reverse map, from bytes to id, knows the
 * vocabulary proper alone, which is what merges are written in.
 */
#ifndef QWEN_VOCAB_H
#define QWEN_VOCAB_H

#include <stdint.h>

#include "buffer.h"
#include "error.h"

/* Ids from here on are refused: eight times the largest vocabulary there is, and the tables stay below 32 MB. */
#define QWEN_MAX_TOKEN_ID (1 << 21)

typedef struct qwen_vocab_entry
{
	uint32_t offset;   /* of its bytes in the arena */
	uint32_t len : 30; /* bytes */
	uint32_t defined : 1;
	uint32_t special : 1; /* added token that is removed from answers */
} qwen_vocab_entry;

typedef struct qwen_vocab
{
	qwen_vocab_entry *entries; /* [size] by id */
	int32_t size;              /* one more than the largest defined id */
	int32_t cap;
	qwen_bytes arena; /* the bytes of all tokens, end to end */
	int32_t *slots;   /* [n_slots] ids by hash of their bytes, -1 free; n_slots is a power of two */
	uint32_t n_slots;
	uint32_t n_used;
} qwen_vocab;

/* Makes room for n tokens of the vocabulary proper with `bytes` bytes in all. */
qwen_status qwen_vocab_reserve(qwen_vocab *v, size_t n, size_t bytes, qwen_error *err);

/* Defines a token of the vocabulary proper by its symbol: text in the byte map of qwen_symbol_bytes. */
qwen_status qwen_vocab_add_symbol(qwen_vocab *v, const char *symbol, size_t len, int64_t id, qwen_error *err);

/*
 * Defines an added token.  An id that the vocabulary proper has given to the very same text is the same token.
 */
qwen_status qwen_vocab_add_token(qwen_vocab *v, const char *text, size_t len, int64_t id, bool special,
								 qwen_error *err);

/* The id of a token of the vocabulary proper by its bytes, or -1. */
int32_t qwen_vocab_find(const qwen_vocab *v, const char *bytes, size_t len);

/* The bytes of a token, or NULL when the id is not defined. */
const char *qwen_vocab_bytes(const qwen_vocab *v, int32_t id, size_t *len);

void qwen_vocab_free(qwen_vocab *v);

/*
 * Writes the bytes that a symbol stands for to out (at most len) and returns their number.  Bytes 0x21-0x7E, 0xA1-0xAC
 * and 0xAE-0xFF are written as the code point of the same value, the other 68, in ascending order, as U+0100 and
 * following.  A symbol with any other character stands for its own UTF-8 bytes.
 */
size_t qwen_symbol_bytes(const char *symbol, size_t len, char *out);

#endif
