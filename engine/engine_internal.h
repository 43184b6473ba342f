/*
 * engine_internal.h
 *	  What engine.c, prepare.c and scheduler.c share.
 */
#ifndef QWEN_ENGINE_INTERNAL_H
#define QWEN_ENGINE_INTERNAL_H

#include "engine.h"
#include "scheduler.h"
#include "sequence.h"

struct qwen_engine
{
	/* constant after loading; any thread reads them */
	qwen_model *model;
	qwen_tokenizer *tokenizer; /* NULL: the folder has none */
	qwen_chat_format chat_format;
	qwen_error chat_error;         /* why the folder's chat template cannot be applied; status QWEN_OK: it can */
	bool *allowed;                 /* [vocab_size] ids that have a token; NULL: all */
	int32_t eos[QWEN_MAX_EOS + 1]; /* the union of all sources */
	int32_t n_eos;
	bool prefix_cache;
	uint64_t kv_key[2]; /* of the names of cached blocks */

	/* of the stepping thread */
	qwen_events events;
	qwen_sampler **samplers; /* [n_samplers] one for each thread that draws */
	int32_t n_samplers;
	qwen_sequence **drawing; /* [max_sequences] whose next token the step draws: a row of logits each */
	int32_t *drawn;          /* [max_sequences] what it is */
	qwen_scheduler scheduler;
	float *logits; /* [max_sequences, vocab_size] */
	uint64_t steps;
};

#endif
