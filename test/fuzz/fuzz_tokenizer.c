/*
 * fuzz_tokenizer.c
 *	  A tokenizer.json, or a text, from hostile hands.
 *
 * Input: one byte that chooses, then
 *	'J'		the text of a tokenizer.json; what is accepted must tokenise
 *	'V'		vocab.json, a NUL byte, merges.txt, a NUL byte, tokenizer_config.json
 *	other	a text for the bundled tokenizer, with the byte's bits as spans
 * What is tokenised must come back: bytes for bytes where the text is already
 * in form C, and decoding in pieces must give what decoding at once gives.
 */
#include <stdlib.h>
#include <string.h>

#include "engine/normalize.h"
#include "engine/tokenizer.h"
#include "engine/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAX_SPANS 8

static void
require(bool condition)
{
	if (!condition)
		abort();
}

/* The bundled tokenizer, opened once; a target that cannot run must not look like one that found nothing. */
static const qwen_tokenizer *
bundled(void)
{
	static qwen_tokenizer *tok;
	qwen_error err;

	if (!tok && qwen_tokenizer_open("test/data/demo-model", &tok, &err) != QWEN_OK)
		abort();
	return tok;
}

/* Decoding piece by piece must give the same as decoding at once. */
static void
check_decoding(const qwen_tokenizer *tok, const qwen_ids *ids, const qwen_bytes *whole)
{
	qwen_detokenizer d = {0};
	qwen_bytes pieces = {0};

	for (size_t i = 0; i < ids->len; i++)
	{
		require(qwen_detokenizer_push(&d, tok, ids->data[i], false, &pieces));
		require(qwen_utf8_valid_length(pieces.data, pieces.len) == pieces.len);
	}
	require(qwen_detokenizer_finish(&d, &pieces));
	require(pieces.len == whole->len && (whole->len == 0 || !memcmp(pieces.data, whole->data, whole->len)));
	qwen_bytes_free(&pieces);
}

static void
check_text(const qwen_tokenizer *tok, const char *text, size_t len, const qwen_span *spans, size_t n_spans)
{
	qwen_ids ids = {0};
	qwen_bytes back = {0};
	qwen_error err;

	if (qwen_tokenize(tok, text, len, spans, n_spans, &ids, &err) == QWEN_OK)
	{
		require(qwen_detokenize(tok, ids.data, ids.len, false, &back, &err) == QWEN_OK);
		if (qwen_nfc_is_plain(text, len))
			require(back.len == len && (len == 0 || !memcmp(back.data, text, len)));
		check_decoding(tok, &ids, &back);
	}
	else
		require(qwen_utf8_valid_length(text, len) < len || err.status == QWEN_TOO_LONG);
	qwen_ids_free(&ids);
	qwen_bytes_free(&back);
}

/* A file of its own: if it is accepted, it is used. */
static void
check_files(const qwen_tokenizer_files *files)
{
	static const char text[] = "ab <x>  \n\n1 e\xCC\x81 \xE4\xBD\xA0<|im_end|>";
	const qwen_span whole = {0, sizeof(text) - 1};
	qwen_tokenizer *tok;
	qwen_ids ids = {0};
	qwen_error err;

	if (qwen_tokenizer_parse(files, &tok, &err) == QWEN_OK)
	{
		if (qwen_tokenize(tok, text, whole.end, &whole, 1, &ids, &err) == QWEN_OK)
			for (size_t i = 0; i < ids.len; i++)
				require(ids.data[i] >= 0 && ids.data[i] < qwen_tokenizer_size(tok));
		qwen_ids_free(&ids);
		qwen_tokenizer_close(tok);
	}
	else
		require(err.status != QWEN_OK && err.message[0] != '\0' && tok == NULL);
}

/* Cuts off the part of *rest before the next NUL byte. */
static qwen_tokenizer_text
cut(qwen_tokenizer_text *rest)
{
	const char *nul = rest->data && rest->len ? memchr(rest->data, '\0', rest->len) : NULL;
	qwen_tokenizer_text part = *rest;

	if (nul)
	{
		part.len = (size_t) (nul - rest->data);
		*rest = (qwen_tokenizer_text){nul + 1, rest->len - part.len - 1};
	}
	else
		*rest = (qwen_tokenizer_text){NULL, 0};
	return part;
}

/* Eight equal parts of the text, of which those with a set bit are spans. */
static size_t
make_spans(uint8_t bits, size_t len, qwen_span *spans)
{
	size_t n = 0;

	for (size_t i = 0; i < MAX_SPANS; i++)
		if (bits >> i & 1)
			spans[n++] = (qwen_span){len * i / MAX_SPANS, len * (i + 1) / MAX_SPANS};
	return n;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	qwen_tokenizer_text rest;
	qwen_tokenizer_files files = {0};
	qwen_span spans[MAX_SPANS];

	if (size == 0)
		return 0;
	rest = (qwen_tokenizer_text){(const char *) data + 1, size - 1};
	if (data[0] == 'J')
	{
		files.tokenizer = rest;
		check_files(&files);
	}
	else if (data[0] == 'V')
	{
		files.vocab = cut(&rest);
		files.merges = cut(&rest);
		files.config = cut(&rest);
		check_files(&files);
	}
	else
		check_text(bundled(), rest.data, rest.len, spans, make_spans(data[0], rest.len, spans));
	return 0;
}
