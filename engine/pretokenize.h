/*
 * pretokenize.h
 *	  The checkpoint's split pattern: text -> pieces that merges never cross.
 */
#ifndef QWEN_PRETOKENIZE_H
#define QWEN_PRETOKENIZE_H

#include "error.h"

#include <stddef.h>

typedef struct qwen_splitter qwen_splitter;

/* The pattern of all checkpoints from Qwen1.5 to Qwen3, for those that bring only vocab.json and merges.txt. */
extern const char qwen_default_pattern[];

/* Compiles a pattern; it then belongs to the caller and may be used by many threads. */
qwen_status qwen_splitter_open(const char *pattern, size_t len, qwen_splitter **out, qwen_error *err);
void qwen_splitter_close(qwen_splitter *splitter);

/* Receives one piece; a status other than QWEN_OK ends the split. */
typedef qwen_status (*qwen_piece_fn)(void *arg, const char *piece, size_t len, qwen_error *err);

/* The state of one call of the tokenizer: match data, and a stack when the pattern needs one. */
typedef struct qwen_split_state qwen_split_state;

qwen_split_state *qwen_split_state_open(const qwen_splitter *splitter);
void qwen_split_state_close(qwen_split_state *state);

/* Calls fn for the pieces of text[0..len), valid UTF-8, in order; they cover the text. */
qwen_status qwen_split(const qwen_splitter *splitter, qwen_split_state *state, const char *text, size_t len,
					   qwen_piece_fn fn, void *arg, qwen_error *err);

#endif
