/*
 * tokenizer_internal.h
 *	  What the tokenizer's loader builds and its calls use.
 */
#ifndef QWEN_TOKENIZER_INTERNAL_H
#define QWEN_TOKENIZER_INTERNAL_H

#include "added.h"
#include "bpe.h"
#include "pretokenize.h"
#include "tokenizer.h"
#include "vocab.h"

/* Constant after loading. */
struct qwen_tokenizer
{
	qwen_vocab vocab;
	qwen_bpe bpe;
	qwen_splitter *splitter;
	qwen_added_set literal;    /* added tokens that are matched in the text as it comes */
	qwen_added_set normalized; /* those that are matched after normalisation */
	bool nfc;                  /* ordinary text is brought into form C */
	int32_t eos;               /* of tokenizer_config.json, or -1 */
};

#endif
