/*
 * batch.cu
 *	  A step's batch on its way to the device: cuda_batch.h says what it is
 *	  made of.
 *
 * The arrays are written one behind the other into pinned memory and sent as
 * one piece, so a step costs one small copy.  Where each array begins follows
 * from the lengths of those before it; in a decode step all of them but the
 * last have as many entries as there are rows after padding, so that a
 * recording made with so many rows finds them where they were.
 *
 *	  tiles | seqs | decode | tokens | positions | row_seq | logit_rows | blocks
 *
 * Two pinned buffers take turns: the host may prepare a step while the one
 * before it is still being sent.
 */
#include "kernels/cuda/cuda_device.h"

#include <algorithm>
#include <stdio.h>
#include <string.h>

#define TILE_WORDS (sizeof(cuda_tile) / sizeof(int32_t))
#define SEQ_WORDS (sizeof(cuda_seq) / sizeof(int32_t))

typedef struct step_buffer
{
	int32_t *words;   /* [steps->words] pinned */
	cudaEvent_t sent; /* the last piece from here */
} step_buffer;

struct cuda_steps
{
	step_buffer buffer[2];
	size_t words; /* of each, as the device's needs say; 0 before the first step */
	unsigned turn;
};

/* Lengths of the arrays. */
typedef struct piece_sizes
{
	size_t seqs;
	size_t tokens; /* and positions and row_seq */
	size_t logit_rows;
	size_t blocks;
	size_t words; /* of all arrays */
} piece_sizes;

/* ---- sizes ---- */

/* 1 2 4 8 12 16 24 32 48 64 96 128 ...: from 8 on, half of a power of two is added at most. */
int32_t
cuda_bucket(int32_t n, int32_t most)
{
	int64_t power = 1;

	while (power < n)
		power *= 2;
	if (power > 8 && power / 4 * 3 >= n)
		power = power / 4 * 3;
	return power < most ? (int32_t) power : most;
}

/* The power of two from n on: a recording's grid may have more splits than any sequence, they leave at once. */
static int32_t
split_bucket(int32_t n)
{
	int32_t power = 1;

	while (power < n)
		power *= 2;
	return power < CUDA_MAX_SPLITS ? power : CUDA_MAX_SPLITS;
}

int32_t
cuda_rows(const qwen_device *dev, int32_t n)
{
	const cuda_batch *b = &cuda_of(dev)->batch;

	return b->engine && n == b->n_tokens ? b->rows : n;
}

static size_t
blocks_of(const qwen_batch_seq *seq)
{
	return ((size_t) seq->context + QWEN_KV_BLOCK - 1) / QWEN_KV_BLOCK;
}

static bool
refuse(qwen_device *dev, const char *what, int64_t have, int64_t most)
{
	char why[96];

	snprintf(why, sizeof(why), "%s: %lld, at most %lld", what, (long long) have, (long long) most);
	cuda_fail(dev, "a step is beyond what its device was prepared for", why);
	return false;
}

/* Counts the work of the layers: decode list, tiles, splits, blocks. False: the batch makes no sense. */
static bool
count_sequences(qwen_device *dev, const qwen_batch *batch, cuda_batch *b, size_t *blocks)
{
	int32_t row = 0;

	for (int32_t s = 0; s < batch->n_seqs; s++)
	{
		const qwen_batch_seq *seq = &batch->seqs[s];

		if (seq->n_tokens < 1 || seq->n_tokens > batch->n_tokens - row || seq->first_token != row)
			return refuse(dev, "rows of a sequence", seq->n_tokens, batch->n_tokens - row);
		if (seq->context < seq->n_tokens)
			return refuse(dev, "rows of a sequence that ends before them", seq->n_tokens, seq->context);
		row += seq->n_tokens;
		*blocks += blocks_of(seq);
		if (seq->n_tokens > 1)
			b->n_tiles += (seq->n_tokens + CUDA_TILE_ROWS - 1) / CUDA_TILE_ROWS;
		else
		{
			b->n_decode++;
			b->n_splits = std::max(b->n_splits, cuda_splits(seq->context));
		}
	}
	return row == batch->n_tokens || refuse(dev, "rows of no sequence", batch->n_tokens - row, 0);
}

/* A step of nothing but sequences of one row is padded to its bucket. */
static void
pad_decode_step(const qwen_needs *needs, cuda_batch *b)
{
	b->decode_step = true;
	b->rows = b->n_seqs = b->n_decode = cuda_bucket(b->n_tokens, needs->rows);
	b->n_splits = split_bucket(b->n_splits);
}

/*
 * What the step asks of this device.  A device without layers has no sequences in its needs, one without the head no rows
 * of logits: neither gets what it has no use for.
 */
static bool
measure(qwen_device *dev, const qwen_batch *batch, cuda_batch *b, piece_sizes *size)
{
	const qwen_needs *needs = &dev->needs;

	if (batch->n_tokens < 1 || batch->n_tokens > needs->rows)
		return refuse(dev, "rows", batch->n_tokens, needs->rows);
	b->engine = batch;
	b->n_tokens = b->rows = batch->n_tokens;
	b->n_splits = 1;
	if (needs->sequences > 0)
	{
		if (batch->n_seqs < 1 || batch->n_seqs > needs->sequences)
			return refuse(dev, "sequences", batch->n_seqs, needs->sequences);
		b->n_seqs = batch->n_seqs;
		if (!count_sequences(dev, batch, b, &size->blocks))
			return false;
		if ((int64_t) size->blocks > needs->blocks)
			return refuse(dev, "blocks", (int64_t) size->blocks, needs->blocks);
		if (b->n_tiles == 0)
			pad_decode_step(needs, b);
	}
	if (needs->logit_rows > 0)
	{
		if (batch->n_logits < 0 || batch->n_logits > needs->logit_rows)
			return refuse(dev, "rows of logits", batch->n_logits, needs->logit_rows);
		size->logit_rows = (size_t) (b->decode_step ? std::max(b->rows, batch->n_logits) : batch->n_logits);
	}
	size->seqs = (size_t) b->n_seqs;
	size->tokens = (size_t) b->rows;
	size->words = TILE_WORDS * (size_t) b->n_tiles + SEQ_WORDS * size->seqs + (size_t) b->n_decode + 3 * size->tokens +
				  size->logit_rows + size->blocks;
	if (size->words > cuda_batch_bytes(needs) / sizeof(int32_t))
		return refuse(dev, "words of a batch", (int64_t) size->words,
					  (int64_t) (cuda_batch_bytes(needs) / sizeof(int32_t)));
	return true;
}

/* ---- contents ---- */

/* The arrays' places from `words` on, in host or device memory. */
static void
place(cuda_batch *b, const piece_sizes *size, int32_t *words)
{
	b->tiles = (cuda_tile *) words;
	b->seqs = (cuda_seq *) (b->tiles + b->n_tiles);
	b->decode = (int32_t *) (b->seqs + size->seqs);
	b->tokens = b->decode + b->n_decode;
	b->positions = b->tokens + size->tokens;
	b->row_seq = b->positions + size->tokens;
	b->logit_rows = b->row_seq + size->tokens;
	b->blocks = b->logit_rows + size->logit_rows;
}

static void
fill_rows(const cuda_batch *b, const qwen_batch *batch)
{
	for (int32_t t = 0; t < b->rows; t++)
	{
		bool real = t < batch->n_tokens;

		b->tokens[t] = real ? batch->tokens[t] : 0;
		b->positions[t] = real ? batch->positions[t] : 0;
		b->row_seq[t] = -1;
	}
}

/* Tiles of a prompt from its last rows on: within a sequence these have the longest context. */
static cuda_tile *
fill_tiles(cuda_tile *tile, int32_t s, int32_t n_rows)
{
	for (int32_t first = (n_rows - 1) / CUDA_TILE_ROWS * CUDA_TILE_ROWS; first >= 0; first -= CUDA_TILE_ROWS)
		*tile++ = {s, first, std::min(n_rows - first, CUDA_TILE_ROWS), 0};
	return tile;
}

/* The longest work first, so that the short pieces fill the gaps at the end. */
static void
sort_tiles(const cuda_batch *b)
{
	const cuda_seq *seqs = b->seqs;
	auto context = [seqs](const cuda_tile &t) { return seqs[t.seq].context - seqs[t.seq].n_rows + t.first + t.n; };

	std::stable_sort(b->tiles, b->tiles + b->n_tiles,
					 [context](const cuda_tile &x, const cuda_tile &y) { return context(x) > context(y); });
}

static void
fill_sequences(const cuda_batch *b, const qwen_batch *batch)
{
	cuda_tile *tile = b->tiles;
	int32_t *decode = b->decode, block = 0;

	for (int32_t s = 0; s < batch->n_seqs; s++)
	{
		const qwen_batch_seq *seq = &batch->seqs[s];
		int32_t n_blocks = (int32_t) blocks_of(seq);

		b->seqs[s] = {seq->first_token, seq->n_tokens, seq->context, block};
		memcpy(b->blocks + block, seq->blocks, (size_t) n_blocks * sizeof(int32_t));
		block += n_blocks;
		std::fill_n(b->row_seq + seq->first_token, seq->n_tokens, s);
		if (seq->n_tokens > 1)
			tile = fill_tiles(tile, s, seq->n_tokens);
		else
			*decode++ = s;
	}
	std::fill(decode, b->decode + b->n_decode, -1);
	std::fill(b->seqs + batch->n_seqs, b->seqs + b->n_seqs, cuda_seq{0, 0, 0, 0});
	sort_tiles(b);
}

static void
fill(const cuda_batch *b, const piece_sizes *size, const qwen_batch *batch)
{
	fill_rows(b, batch);
	if (b->n_seqs > 0)
		fill_sequences(b, batch);
	if (size->logit_rows > 0)
	{
		std::copy_n(batch->logit_rows, batch->n_logits, b->logit_rows);
		std::fill(b->logit_rows + batch->n_logits, b->logit_rows + size->logit_rows, 0);
	}
}

/* ---- sending ---- */

cuda_steps *
cuda_steps_new(void)
{
	return new cuda_steps();
}

void
cuda_steps_free(cuda_steps *steps)
{
	if (steps == NULL)
		return;
	for (step_buffer &buffer : steps->buffer)
	{
		if (buffer.sent)
			(void) cudaEventDestroy(buffer.sent);
		if (buffer.words)
			(void) cudaFreeHost(buffer.words);
	}
	delete steps;
}

/* The needs are known with the first step. */
static bool
prepare_buffers(qwen_device *dev, cuda_steps *steps)
{
	size_t bytes = cuda_batch_bytes(&dev->needs);

	if (steps->words > 0)
		return true;
	for (step_buffer &buffer : steps->buffer)
		if (!cuda_check(dev, cudaMallocHost((void **) &buffer.words, bytes), "pinned memory for batches") ||
			!cuda_check(dev, cudaEventCreateWithFlags(&buffer.sent, cudaEventDisableTiming), "an event of batches"))
			return false;
	steps->words = bytes / sizeof(int32_t);
	return true;
}

/* The buffer whose turn it is, once nothing is being sent from it any more. */
static step_buffer *
next_buffer(qwen_device *dev)
{
	cuda_steps *steps = cuda_of(dev)->steps;
	step_buffer *buffer;

	if (!prepare_buffers(dev, steps))
		return NULL;
	buffer = &steps->buffer[steps->turn++ % 2];
	return cuda_check(dev, cudaEventSynchronize(buffer->sent), "sending a batch") ? buffer : NULL;
}

bool
cuda_step(qwen_device *dev, const qwen_batch *batch)
{
	cuda_device *d = cuda_of(dev);
	void *d_piece = cuda_scratch_at(dev, cuda_scratch_of(&dev->needs).batch);
	cuda_batch b = cuda_batch();
	piece_sizes size = piece_sizes();
	step_buffer *buffer;

	if (!cuda_ready(dev) || !measure(dev, batch, &b, &size) || (buffer = next_buffer(dev)) == NULL)
		return false;
	place(&b, &size, buffer->words);
	fill(&b, &size, batch);
	place(&b, &size, (int32_t *) d_piece);
	d->batch = b;
	return cuda_check(
			   dev,
			   cudaMemcpyAsync(d_piece, buffer->words, size.words * sizeof(int32_t), cudaMemcpyHostToDevice, d->stream),
			   "sending a batch") &&
		   cuda_check(dev, cudaEventRecord(buffer->sent, d->stream), "sending a batch");
}
