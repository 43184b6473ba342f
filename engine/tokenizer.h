/*
 * tokenizer.h
 *	  Byte-level BPE as the checkpoint's own files define it.
 *
 * A tokenizer is immutable after qwen_tokenizer_open and may be used by many
 * threads at once.
 */
#ifndef QWEN_TOKENIZER_H
#define QWEN_TOKENIZER_H

#include "buffer.h"
#include "error.h"

typedef struct qwen_tokenizer qwen_tokenizer;

/* A half-open byte range [begin, end) of a text. */
typedef struct qwen_span
{
	size_t begin;
	size_t end;
} qwen_span;

/* Reads tokenizer.json, or vocab.json + merges.txt (+ added_tokens of tokenizer_config.json), of a model folder. */
qwen_status qwen_tokenizer_open(const char *model_dir, qwen_tokenizer **out, qwen_error *err);

/* The texts of a tokenizer's files; data is NULL where there is none. */
typedef struct qwen_tokenizer_text
{
	const char *data;
	size_t len;
} qwen_tokenizer_text;

typedef struct qwen_tokenizer_files
{
	qwen_tokenizer_text tokenizer; /* tokenizer.json; when it is there, vocab and merges are not looked at */
	qwen_tokenizer_text vocab;     /* vocab.json */
	qwen_tokenizer_text merges;    /* merges.txt */
	qwen_tokenizer_text config;    /* tokenizer_config.json */
} qwen_tokenizer_files;

/* The same from texts in memory, which are not needed afterwards. What the fuzz target drives. */
qwen_status qwen_tokenizer_parse(const qwen_tokenizer_files *files, qwen_tokenizer **out, qwen_error *err);
void qwen_tokenizer_close(qwen_tokenizer *tok);

/* One more than the largest defined id. Ids in between may be undefined: qwen_tokenizer_token then gives NULL. */
int32_t qwen_tokenizer_size(const qwen_tokenizer *tok);

/* The bytes that a token stands for, owned by the tokenizer; NULL when the id is not defined. */
const char *qwen_tokenizer_token(const qwen_tokenizer *tok, int32_t id, size_t *len);

/* Whether the id is an added token flagged "special" (removed from answers). */
bool qwen_tokenizer_is_special(const qwen_tokenizer *tok, int32_t id);

/* The id of the added token with that content, or -1. */
int32_t qwen_tokenizer_find(const qwen_tokenizer *tok, const char *content);

/* The id of eos_token in tokenizer_config.json, or -1. */
int32_t qwen_tokenizer_eos(const qwen_tokenizer *tok);

/*
 * Appends the ids of text[0..len) to *out.  Added tokens are recognised only
 * where they lie wholly inside one of the spans (sorted, disjoint); everything
 * else is ordinary text, one continuous run between recognised tokens.  No
 * spans: none is recognised.  One span over everything: the reference's
 * behaviour.  The text must be valid UTF-8, else QWEN_INVALID.
 */
qwen_status qwen_tokenize(const qwen_tokenizer *tok, const char *text, size_t len, const qwen_span *spans,
						  size_t n_spans, qwen_ids *out, qwen_error *err);

/*
 * Appends the bytes of all ids, invalid UTF-8 replaced by U+FFFD as the reference does. QWEN_INVALID for undefined
 * ids.
 */
qwen_status qwen_detokenize(const qwen_tokenizer *tok, const int32_t *ids, size_t n, bool skip_special, qwen_bytes *out,
							qwen_error *err);

/*
 * Incremental decoding of one sequence.  Never emits half a character: an
 * incomplete but so far valid tail of at most 3 bytes is held back until the
 * next token or the end.  A zeroed struct is the starting state.
 */
typedef struct qwen_detokenizer
{
	unsigned char held[4];
	int n_held;
} qwen_detokenizer;

bool qwen_detokenizer_push(qwen_detokenizer *d, const qwen_tokenizer *tok, int32_t id, bool skip_special,
						   qwen_bytes *out);
bool qwen_detokenizer_finish(qwen_detokenizer *d, qwen_bytes *out);

#endif
