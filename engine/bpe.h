/*
 * bpe.h
 *	  Merges of a byte-level BPE and their application to one piece.
 */
#ifndef QWEN_BPE_H
#define QWEN_BPE_H

#include "buffer.h"
#include "error.h"
#include "vocab.h"

typedef struct qwen_merge_slot
{
	int32_t left; /* ids of the pair; left is -1 in a free slot */
	int32_t right;
	int32_t rank; /* its line among the merges: the lowest is merged first */
} qwen_merge_slot;

typedef struct qwen_bpe
{
	int32_t byte_ids[256];  /* the token of each single byte */
	qwen_merge_slot *slots; /* [n_slots] by hash of the pair; n_slots is a power of two */
	uint32_t n_slots;
	int32_t *merged; /* [n_merges] by rank: the token that the pair becomes */
	int32_t n_merges;
	int32_t cap;
} qwen_bpe;

/* Makes room for n merges and looks the single bytes up in the vocabulary, which must have all of them. */
qwen_status qwen_bpe_open(qwen_bpe *bpe, const qwen_vocab *vocab, size_t n, qwen_error *err);

/* Adds the next merge, given by the symbols of its halves. */
qwen_status qwen_bpe_add_merge(qwen_bpe *bpe, const qwen_vocab *vocab, const char *left, size_t left_len,
							   const char *right, size_t right_len, qwen_error *err);
void qwen_bpe_free(qwen_bpe *bpe);

/* Work space of one call of the tokenizer, reused from piece to piece. A zeroed struct is empty. */
typedef struct qwen_bpe_work
{
	struct qwen_bpe_node *nodes; /* [cap] */
	uint64_t *heap;              /* [2 * cap] */
	size_t cap;
} qwen_bpe_work;

void qwen_bpe_work_free(qwen_bpe_work *work);

/* Appends the tokens of one piece to out. */
qwen_status qwen_bpe_piece(const qwen_bpe *bpe, qwen_bpe_work *work, const char *piece, size_t len, qwen_ids *out,
						   qwen_error *err);

#endif
