/*
 * sequence.h
 *	  One request inside the engine: its tokens, its cache blocks and its
 *	  answer on the way out.  Private to the engine; callers see engine.h.
 *
 *	  WAITING --started--> RUNNING --last token--> FLUSHING --all sent--> gone
 *			 <-preempted--
 *
 * A request that needs no model (tokenise, count, detokenise) is born
 * FLUSHING with its answer complete.
 */
#ifndef QWEN_SEQUENCE_H
#define QWEN_SEQUENCE_H

#include "engine.h"
#include "sampler.h"

typedef enum qwen_sequence_state
{
	QWEN_SEQ_WAITING,
	QWEN_SEQ_RUNNING,
	QWEN_SEQ_FLUSHING
} qwen_sequence_state;

/* The way from token ids to the bytes that the caller gets: decode, drop thinking, watch for stop strings, hold back. */
typedef struct qwen_output
{
	qwen_detokenizer decoder;
	qwen_think_filter think;
	bool filter_thinking;
	bool in_thinking; /* the prompt left a think block open (CHAT) */
	bool may_think;   /* the model may open one itself (CHAT) */
	bool raw;         /* bytes that are not text: NULs stay */
	char **stop;      /* [n_stop] */
	size_t *stop_len;
	size_t n_stop;
	qwen_bytes held;  /* may be the beginning of a stop string */
	qwen_bytes ready; /* to be sent; [0, sent) has been sent */
	size_t sent;
	uint64_t skip;         /* bytes still to be left out: the caller has them */
	uint64_t sent_records; /* bytes of DATA records sent and credited, for the window */
	uint64_t credited;
} qwen_output;

struct qwen_sequence
{
	uint64_t id;
	uint32_t kind; /* qwen_request_kind */
	uint32_t flags;
	int32_t priority;
	qwen_sequence_state state;
	qwen_sampling sampling;

	qwen_ids tokens; /* prompt and output; room for all of them is reserved when the request is prepared */
	int32_t n_prompt;
	int32_t max_tokens;
	int32_t n_computed; /* tokens whose keys and values are in the cache */
	int32_t *blocks;    /* [n_blocks] of the KV cache; room for all that the sequence can ever need */
	int32_t n_blocks;
	uint64_t *names; /* [n_names] of its full blocks for the prefix cache; NULL: neither read nor filled */
	int32_t n_names;
	int32_t n_published; /* full blocks that others may share */
	int32_t session;     /* requests with the same number share a turn */
	int32_t session_at;  /* its place among the scheduler's sessions */

	qwen_output out;
	uint64_t message_skip; /* CHAT: what to leave out of the message, which is made at the end */
	qwen_done done;
	uint64_t arrived_us;
	uint64_t started_us;

	qwen_sequence *next; /* in the scheduler's list of its state */
};

/* A streaming sequence whose reader is behind does not go on. */
static inline bool
qwen_sequence_is_stalled(const qwen_sequence *seq)
{
	return (seq->flags & QWEN_FLAG_STREAM) && seq->out.sent < seq->out.ready.len;
}

/* Interactive requests 0, normal ones 1, batch 2. */
static inline int32_t
qwen_rank_of(int32_t priority)
{
	return priority > 0 ? 0 : priority == 0 ? 1 : 2;
}

/* Tokens that are not computed yet. */
static inline int32_t
qwen_sequence_pending(const qwen_sequence *seq)
{
	return (int32_t) seq->tokens.len - seq->n_computed;
}

/*
 * Decodes a token into out->ready.  Sets *stopped when a stop string was completed (it is not part of the answer).
 * False: memory is short.
 */
bool qwen_output_push(qwen_output *out, const qwen_tokenizer *tok, int32_t id, bool *stopped);

/* Releases what was held back. */
bool qwen_output_finish(qwen_output *out);

/* Adds finished bytes without decoding. */
bool qwen_output_append(qwen_output *out, const void *data, size_t len);

/* Sends what the window allows; true when nothing is left. */
bool qwen_output_flush(qwen_output *out, uint64_t id, const qwen_events *events);

void qwen_output_free(qwen_output *out);

uint64_t qwen_now_us(void);

#endif
