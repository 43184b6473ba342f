/*
 * bpe.c
 *	  Merges of a byte-level BPE and their application to one piece.
 *
 * A piece is a doubly linked list of symbols, at first its single bytes.  A
 * heap holds (rank, position) of the pairs that can be merged; the smallest is
 * taken, leftmost first among equals, until none is left:
 *
 *	  h e l l o		heap: (he) (ll) ...
 *	  he l l o		(he, 0) taken; the pairs on both sides of it are new
 *	  he ll o
 *	  ...
 *
 * An entry whose pair has changed in the meantime is recognised by the rank
 * that its node now has, and dropped.  A merge takes one entry and adds at most
 * two, so that the heap never holds more than two entries a byte, and a piece
 * of n bytes costs O(n log n) whatever it contains.
 */
#include "bpe.h"

#include <stdlib.h>
#include <string.h>

#define NO_RANK INT32_MAX
#define NO_NODE UINT32_MAX
/* Positions are 32 bits wide, and a piece of this size is no text. */
#define MAX_PIECE (UINT32_C(1) << 30)

typedef struct qwen_bpe_node
{
	int32_t id;    /* -1 once it has been merged into its left neighbour */
	int32_t rank;  /* of the pair that it forms with its right neighbour, or NO_RANK */
	uint32_t prev; /* neighbours, or NO_NODE */
	uint32_t next;
} qwen_bpe_node;

/* ---- the table of merges ---- */

/*
 * Fibonacci hashing: the multiplier is 2^64 divided by the golden ratio, the upper half of the product is well mixed.
 */
static uint32_t
hash_pair(int32_t left, int32_t right)
{
	uint64_t h = ((uint64_t) (uint32_t) left << 32 | (uint32_t) right) * UINT64_C(0x9E3779B97F4A7C15);

	return (uint32_t) (h >> 32);
}

/* The slot of a pair, or the free one where it belongs; at most half of the slots are used. */
static qwen_merge_slot *
find_pair(const qwen_bpe *bpe, int32_t left, int32_t right)
{
	uint32_t i = hash_pair(left, right) & (bpe->n_slots - 1);

	while (bpe->slots[i].left >= 0 && (bpe->slots[i].left != left || bpe->slots[i].right != right))
		i = (i + 1) & (bpe->n_slots - 1);
	return &bpe->slots[i];
}

static int32_t
pair_rank(const qwen_bpe *bpe, int32_t left, int32_t right)
{
	const qwen_merge_slot *slot = find_pair(bpe, left, right);

	return slot->left < 0 ? NO_RANK : slot->rank;
}

/* Every text is made of bytes, so every byte needs a token: there is no unknown. */
static qwen_status
find_bytes(qwen_bpe *bpe, const qwen_vocab *vocab, qwen_error *err)
{
	for (int b = 0; b < 256; b++)
	{
		char byte = (char) b;

		bpe->byte_ids[b] = qwen_vocab_find(vocab, &byte, 1);
		if (bpe->byte_ids[b] < 0)
		{
			qwen_fail(err, QWEN_UNSUPPORTED, "the vocabulary has no token for byte 0x%02X", (unsigned) b);
			return qwen_fail_detail(err, "Only byte-level vocabularies are supported.");
		}
	}
	return QWEN_OK;
}

qwen_status
qwen_bpe_open(qwen_bpe *bpe, const qwen_vocab *vocab, size_t n, qwen_error *err)
{
	uint32_t slots = 64;

	if (n > QWEN_MAX_TOKEN_ID)
		return qwen_fail(err, QWEN_CORRUPT, "the tokenizer has more than %d merges", QWEN_MAX_TOKEN_ID);
	while (slots < 2 * n)
		slots *= 2;
	bpe->slots = malloc(slots * sizeof(*bpe->slots));
	bpe->merged = malloc((n ? n : 1) * sizeof(*bpe->merged));
	if (!bpe->slots || !bpe->merged)
		return qwen_fail_memory(err, slots * sizeof(*bpe->slots));
	memset(bpe->slots, -1, slots * sizeof(*bpe->slots));
	bpe->n_slots = slots;
	bpe->cap = (int32_t) n;
	return find_bytes(bpe, vocab, err);
}

qwen_status
qwen_bpe_add_merge(qwen_bpe *bpe, const qwen_vocab *vocab, const char *left, size_t left_len, const char *right,
				   size_t right_len, qwen_error *err)
{
	char joined[1024];
	size_t n_left, n_right;
	int32_t ids[3];
	qwen_merge_slot *slot;

	if (bpe->n_merges == bpe->cap)
		return qwen_fail(err, QWEN_INTERNAL, "more merges than announced");
	if (left_len > sizeof(joined) || right_len > sizeof(joined) - left_len)
		return qwen_fail(err, QWEN_CORRUPT, "merge %d is longer than %zu bytes", bpe->n_merges, sizeof(joined));
	n_left = qwen_symbol_bytes(left, left_len, joined);
	n_right = qwen_symbol_bytes(right, right_len, joined + n_left);
	ids[0] = qwen_vocab_find(vocab, joined, n_left);
	ids[1] = qwen_vocab_find(vocab, joined + n_left, n_right);
	ids[2] = qwen_vocab_find(vocab, joined, n_left + n_right);
	if (ids[0] < 0 || ids[1] < 0 || ids[2] < 0)
	{
		qwen_fail(err, QWEN_CORRUPT, "merge %d uses a symbol that is not in the vocabulary", bpe->n_merges);
		return qwen_fail_detail(err, "Merges are counted from 0.");
	}
	/* A pair that is listed twice has its later rank, as in the reference. */
	slot = find_pair(bpe, ids[0], ids[1]);
	*slot = (qwen_merge_slot){ids[0], ids[1], bpe->n_merges};
	bpe->merged[bpe->n_merges++] = ids[2];
	return QWEN_OK;
}

void
qwen_bpe_free(qwen_bpe *bpe)
{
	free(bpe->slots);
	free(bpe->merged);
	memset(bpe, 0, sizeof(*bpe));
}

/* ---- the heap: (rank << 32 | position), four children a node, smallest first ---- */

static void
heap_push(uint64_t *heap, size_t n, uint64_t key)
{
	size_t i = n;

	while (i > 0 && heap[(i - 1) / 4] > key)
	{
		heap[i] = heap[(i - 1) / 4];
		i = (i - 1) / 4;
	}
	heap[i] = key;
}

/* Removes the smallest of n entries; the others are then heap[0 .. n-1). */
static void
heap_pop(uint64_t *heap, size_t n)
{
	uint64_t key = heap[--n];
	size_t i = 0;

	for (;;)
	{
		size_t first = 4 * i + 1, end = first + 4 < n ? first + 4 : n, best = first;

		if (first >= n)
			break;
		for (size_t c = first + 1; c < end; c++)
			if (heap[c] < heap[best])
				best = c;
		if (heap[best] >= key)
			break;
		heap[i] = heap[best];
		i = best;
	}
	heap[i] = key;
}

/* ---- one piece ---- */

void
qwen_bpe_work_free(qwen_bpe_work *work)
{
	free(work->nodes);
	free(work->heap);
	memset(work, 0, sizeof(*work));
}

/* The content need not survive growing: each piece starts anew. */
static qwen_status
reserve(qwen_bpe_work *work, size_t n, qwen_error *err)
{
	size_t cap = work->cap ? work->cap : 256;

	if (n <= work->cap)
		return QWEN_OK;
	while (cap < n)
		cap *= 2;
	free(work->nodes);
	free(work->heap);
	work->nodes = malloc(cap * sizeof(*work->nodes));
	work->heap = malloc(2 * cap * sizeof(*work->heap));
	work->cap = work->nodes && work->heap ? cap : 0;
	return work->cap ? QWEN_OK : qwen_fail_memory(err, cap * sizeof(*work->nodes));
}

/* Looks up the pair that begins at node i, notes its rank and pushes it; returns the number of heap entries then. */
static size_t
enter_pair(const qwen_bpe *bpe, qwen_bpe_work *work, uint32_t i, size_t n_heap)
{
	qwen_bpe_node *node = &work->nodes[i];

	node->rank = node->next == NO_NODE ? NO_RANK : pair_rank(bpe, node->id, work->nodes[node->next].id);
	if (node->rank == NO_RANK)
		return n_heap;
	heap_push(work->heap, n_heap, (uint64_t) node->rank << 32 | i);
	return n_heap + 1;
}

/*
 * Merges until no pair has a rank.  A merged node keeps the position of its left half, so node 0 always stays the
 * first and the order of positions stays the order of the text.
 */
static void
merge_all(const qwen_bpe *bpe, qwen_bpe_work *work, size_t n_heap)
{
	qwen_bpe_node *nodes = work->nodes;

	while (n_heap > 0)
	{
		uint32_t i = (uint32_t) work->heap[0];
		int32_t rank = (int32_t) (work->heap[0] >> 32);
		uint32_t gone;

		heap_pop(work->heap, n_heap--);
		if (nodes[i].id < 0 || nodes[i].rank != rank)
			continue;
		gone = nodes[i].next;
		nodes[i].id = bpe->merged[rank];
		nodes[i].next = nodes[gone].next;
		nodes[gone].id = -1;
		if (nodes[i].next != NO_NODE)
			nodes[nodes[i].next].prev = i;
		if (nodes[i].prev != NO_NODE)
			n_heap = enter_pair(bpe, work, nodes[i].prev, n_heap);
		n_heap = enter_pair(bpe, work, i, n_heap);
	}
}

qwen_status
qwen_bpe_piece(const qwen_bpe *bpe, qwen_bpe_work *work, const char *piece, size_t len, qwen_ids *out, qwen_error *err)
{
	size_t n_heap = 0;

	if (len > MAX_PIECE)
		return qwen_fail(err, QWEN_TOO_LONG, "the text is too long to be tokenised");
	if (len == 0)
		return QWEN_OK;
	if (reserve(work, len, err) != QWEN_OK)
		return err->status;
	for (uint32_t i = 0; i < len; i++)
		work->nodes[i] = (qwen_bpe_node){bpe->byte_ids[(unsigned char) piece[i]], NO_RANK, i ? i - 1 : NO_NODE,
										 i + 1 < len ? i + 1 : NO_NODE};
	for (uint32_t i = 0; i < len; i++)
		n_heap = enter_pair(bpe, work, i, n_heap);
	merge_all(bpe, work, n_heap);
	for (uint32_t i = 0; i != NO_NODE; i = work->nodes[i].next)
		if (!qwen_ids_push(out, work->nodes[i].id))
			return qwen_fail_memory(err, (out->len + 1) * sizeof(int32_t));
	return QWEN_OK;
}
