/*
 * admission.c
 *	  Who of the waiting sequences starts, who of the running ones has to
 *	  stop, and which blocks of the cache they share.
 *
 * A sequence that starts takes over every ready block that the prefix cache
 * has for the beginning of its tokens.  If the next block is just being
 * computed by another sequence, it waits for that: of a thousand rows with
 * one template, one computes the template and the others find it.  Its own
 * further blocks it names at once, so that those behind it see them coming.
 *
 * Of its waiting sequences a session starts the one first of whose beginning
 * the most is in the cache or coming: of rows with several templates in turn,
 * those with one template follow each other, so that each template is
 * computed once for many rows even if the cache does not hold them all.  The
 * look ahead is short, and the first in line is passed over a bounded number
 * of times.
 */
#include "admission.h"

#include <stdlib.h>
#include <string.h>

/* How far a session looks ahead among its waiting sequences, and how often its first one may be passed over. */
#define LOOK_AHEAD 64
#define MOST_PASSES 64

/* ---- lists ---- */

void
qwen_list_push(qwen_sequence_list *list, qwen_sequence *seq)
{
	seq->next = NULL;
	if (list->tail)
		list->tail->next = seq;
	else
		list->head = seq;
	list->tail = seq;
	list->n++;
}

void
qwen_list_push_front(qwen_sequence_list *list, qwen_sequence *seq)
{
	seq->next = list->head;
	list->head = seq;
	if (!list->tail)
		list->tail = seq;
	list->n++;
}

qwen_sequence *
qwen_list_pop(qwen_sequence_list *list)
{
	qwen_sequence *seq = list->head;

	list->head = seq->next;
	if (!list->head)
		list->tail = NULL;
	list->n--;
	return seq;
}

void
qwen_list_unlink(qwen_sequence_list *list, const qwen_sequence *seq)
{
	qwen_sequence *before = NULL;

	for (qwen_sequence *at = list->head; at; before = at, at = at->next)
	{
		if (at != seq)
			continue;
		if (before)
			before->next = at->next;
		else
			list->head = at->next;
		if (list->tail == at)
			list->tail = before;
		list->n--;
		return;
	}
}

/* ---- sessions ---- */

static bool
is_unused(const qwen_session *session)
{
	return session->n_running == 0 && session->waiting.n == 0;
}

/* The entry of a session, made if need be; -1 when memory is short. */
static int32_t
session_entry(qwen_scheduler *s, int32_t id, int32_t rank)
{
	int32_t at = s->n_sessions;
	qwen_session *more;

	for (int32_t i = 0; i < s->n_sessions; i++)
	{
		if (is_unused(&s->sessions[i]))
			at = i;
		else if (s->sessions[i].id == id && s->sessions[i].rank == rank)
			return i;
	}
	if (at == s->n_sessions)
	{
		more = realloc(s->sessions, (size_t) (at + 1) * sizeof(*more));
		if (!more)
			return -1;
		s->sessions = more;
		s->n_sessions++;
	}
	s->sessions[at] = (qwen_session){.id = id, .rank = rank};
	return at;
}

bool
qwen_admission_enqueue(qwen_scheduler *s, qwen_sequence *seq)
{
	seq->session_at = session_entry(s, seq->session, qwen_rank_of(seq->priority));
	if (seq->session_at < 0)
		return false;
	qwen_list_push(&s->sessions[seq->session_at].waiting, seq);
	return true;
}

/* ---- start ---- */

/* The first of a session's waiting sequences that would go on; NULL: none. */
static qwen_sequence *
first_ready(const qwen_session *session)
{
	qwen_sequence *seq = session->waiting.head;

	while (seq && qwen_sequence_is_stalled(seq))
		seq = seq->next;
	return seq;
}

/* The session whose turn it is: the best priority, then the fewest running, then who asked first. NULL: none. */
static qwen_session *
next_session(qwen_scheduler *s)
{
	qwen_session *best = NULL;

	for (int32_t i = 0; i < s->n_sessions; i++)
	{
		qwen_session *c = &s->sessions[i];

		if (c->held || !first_ready(c))
			continue;
		if (!best || c->rank < best->rank ||
			(c->rank == best->rank &&
			 (c->n_running < best->n_running ||
			  (c->n_running == best->n_running && first_ready(c)->arrived_us < first_ready(best)->arrived_us))))
			best = c;
	}
	return best;
}

/* Blocks for all tokens so far, and the one that the next token needs. */
static int32_t
blocks_needed(const qwen_sequence *seq)
{
	return (int32_t) (seq->tokens.len / QWEN_KV_BLOCK) + 1;
}

/*
 * Ready blocks that the cache has for the sequence's beginning.  At least one token is left to compute, or there would
 * be no logits.  *coming: the block after them is being computed by another sequence.
 */
static int32_t
cached_blocks(const qwen_scheduler *s, const qwen_sequence *seq, bool *coming)
{
	int32_t n = 0;

	*coming = false;
	while (seq->names && n < seq->n_names && (size_t) (n + 1) * QWEN_KV_BLOCK < seq->tokens.len)
	{
		int32_t block = qwen_kv_pool_find(&s->pool, seq->names[n]);

		if (block == QWEN_NO_BLOCK)
			break;
		if (!s->pool.blocks[block].ready)
		{
			*coming = true;
			break;
		}
		n++;
	}
	return n;
}

/* Whether the cache has the sequence's block number n, or is about to have it. */
static bool
has_block(const qwen_scheduler *s, const qwen_sequence *seq, int32_t n)
{
	return seq->names && n < seq->n_names && qwen_kv_pool_find(&s->pool, seq->names[n]) != QWEN_NO_BLOCK;
}

/*
 * The sequence that the session starts next: of the first ones that would go on, the one with the most blocks in the
 * cache or coming, and of these the first.  To have more than the best so far, it must have the next block after them.
 */
static qwen_sequence *
next_sequence(const qwen_scheduler *s, const qwen_session *session)
{
	qwen_sequence *first = first_ready(session), *best = first;
	int32_t n_best = 0, looked_at = 0;

	if (session->passed_over >= MOST_PASSES)
		return first;
	for (qwen_sequence *seq = first; seq && looked_at < LOOK_AHEAD; seq = seq->next)
	{
		if (qwen_sequence_is_stalled(seq))
			continue;
		looked_at++;
		if (!has_block(s, seq, n_best))
			continue;
		while (has_block(s, seq, n_best))
			n_best++;
		best = seq;
	}
	return best;
}

/* Blocks in the free list that are not among the first n_cached of the sequence. */
static int32_t
blocks_left(const qwen_scheduler *s, const qwen_sequence *seq, int32_t n_cached)
{
	int32_t left = s->pool.n_free;

	for (int32_t i = 0; i < n_cached; i++)
		left -= s->pool.blocks[qwen_kv_pool_find(&s->pool, seq->names[i])].users == 0;
	return left;
}

/* Gives the sequence its blocks, shared ones first, and a place among the running ones. */
static void
start(qwen_scheduler *s, qwen_session *session, qwen_sequence *seq, int32_t n_cached)
{
	int32_t needed = blocks_needed(seq);

	session->passed_over = seq == first_ready(session) ? 0 : session->passed_over + 1;
	qwen_list_unlink(&session->waiting, seq);
	for (int32_t i = 0; i < n_cached; i++)
	{
		seq->blocks[i] = qwen_kv_pool_find(&s->pool, seq->names[i]);
		qwen_kv_pool_share(&s->pool, seq->blocks[i]);
	}
	for (int32_t i = n_cached; i < needed; i++)
	{
		seq->blocks[i] = qwen_kv_pool_take(&s->pool);
		if (i < seq->n_names)
			qwen_kv_pool_name(&s->pool, seq->blocks[i], seq->names[i]);
	}
	seq->n_blocks = needed;
	seq->n_computed = n_cached * QWEN_KV_BLOCK;
	seq->n_published = n_cached;
	seq->state = QWEN_SEQ_RUNNING;
	if (seq->started_us == 0)
	{
		seq->started_us = qwen_now_us();
		seq->done.cached_tokens = seq->n_computed;
		s->cached_tokens += (uint64_t) seq->n_computed;
	}
	session->n_running++;
	s->running[s->n_running++] = seq;
}

/* Blocks to be kept for the growth of those who run, so that nobody is started only to be thrown out. */
static int32_t
blocks_kept(const qwen_scheduler *s)
{
	int32_t most = s->pool.n_blocks / 16;

	return s->n_running < most ? s->n_running : most;
}

/* The running sequence with a reader that is behind that started last, of no better priority; NULL: none. */
static qwen_sequence *
last_stalled(const qwen_scheduler *s, int32_t rank)
{
	for (int32_t i = s->n_running - 1; i >= 0; i--)
		if (qwen_sequence_is_stalled(s->running[i]) && qwen_rank_of(s->running[i]->priority) >= rank)
			return s->running[i];
	return NULL;
}

/* Of the sessions that have more than their share as this one sees it, the lowest in priority with the most running. */
static const qwen_session *
richest_session(const qwen_scheduler *s, const qwen_session *session)
{
	const qwen_session *richest = NULL;

	for (int32_t i = 0; i < s->n_sessions; i++)
	{
		const qwen_session *c = &s->sessions[i];
		bool gives = c->rank > session->rank ? c->n_running > 0
											 : c->rank == session->rank && c->n_running > session->n_running + 1;

		if (gives &&
			(!richest || c->rank > richest->rank || (c->rank == richest->rank && c->n_running > richest->n_running)))
			richest = c;
	}
	return richest;
}

/*
 * Makes room for a session: first at the cost of a sequence that does not go on anyway, then, if it has at least two
 * running sequences less than another one of its priority or that is of a lower priority, at the cost of that one's
 * sequence that started last.  False: it has to wait.
 */
static bool
make_room(qwen_scheduler *s, const qwen_session *session)
{
	qwen_sequence *victim = last_stalled(s, session->rank);
	const qwen_session *richest = victim ? NULL : richest_session(s, session);

	for (int32_t i = s->n_running - 1; richest && !victim && i >= 0; i--)
		if (&s->sessions[s->running[i]->session_at] == richest)
			victim = s->running[i];
	if (victim)
		qwen_admission_preempt(s, victim);
	return victim != NULL;
}

/* Whether those who run fill the step already. */
static bool
is_filled(const qwen_scheduler *s)
{
	int32_t left = qwen_scheduler_budget(s);

	for (int32_t i = 0; i < s->n_running && left > 0; i++)
		if (!qwen_sequence_is_stalled(s->running[i]))
			left -= qwen_sequence_pending(s->running[i]);
	return left <= 0;
}

/* A session always has one sequence running if it can; more of them only while there is work for them. */
void
qwen_admission_start(qwen_scheduler *s)
{
	qwen_session *session;

	for (int32_t i = 0; i < s->n_sessions; i++)
		s->sessions[i].held = false;
	while ((session = next_session(s)) != NULL)
	{
		qwen_sequence *seq;
		int32_t n_cached, missing;
		bool coming;

		if (session->n_running > 0 && is_filled(s))
		{
			session->held = true;
			continue;
		}
		seq = next_sequence(s, session);
		n_cached = cached_blocks(s, seq, &coming);
		missing = blocks_needed(seq) - n_cached + blocks_kept(s) - blocks_left(s, seq, n_cached);
		if (coming)
			session->held = true;
		else if (s->n_running < s->max_sequences && missing <= 0)
			start(s, session, seq, n_cached);
		else if (!make_room(s, session))
			return;
	}
}

/* ---- stop ---- */

static void
give_blocks(qwen_scheduler *s, qwen_sequence *seq)
{
	/* From the end: of a text, the beginning is the most likely to be wanted again. */
	while (seq->n_blocks > 0)
		qwen_kv_pool_give(&s->pool, seq->blocks[--seq->n_blocks]);
}

void
qwen_admission_stop(qwen_scheduler *s, qwen_sequence *seq)
{
	int32_t i = 0;

	while (s->running[i] != seq)
		i++;
	s->n_running--;
	memmove(&s->running[i], &s->running[i + 1], (size_t) (s->n_running - i) * sizeof(*s->running));
	s->sessions[seq->session_at].n_running--;
	give_blocks(s, seq);
}

int32_t
qwen_admission_victim(const qwen_scheduler *s)
{
	int32_t victim = s->n_running - 1;

	for (int32_t i = victim - 1; i >= 0; i--)
	{
		const qwen_sequence *a = s->running[i], *b = s->running[victim];

		if (qwen_sequence_is_stalled(a) != qwen_sequence_is_stalled(b)
				? qwen_sequence_is_stalled(a)
				: qwen_rank_of(a->priority) > qwen_rank_of(b->priority))
			victim = i;
	}
	return victim;
}

void
qwen_admission_preempt(qwen_scheduler *s, qwen_sequence *seq)
{
	qwen_admission_stop(s, seq);
	seq->state = QWEN_SEQ_WAITING;
	seq->n_computed = 0;
	qwen_list_push_front(&s->sessions[seq->session_at].waiting, seq);
	s->preemptions++;
}

/* ---- sharing ---- */

void
qwen_admission_publish(qwen_scheduler *s, qwen_sequence *seq)
{
	int32_t n_full = seq->n_computed / QWEN_KV_BLOCK;

	if (!seq->names)
		return;
	for (int32_t i = seq->n_published; i < n_full; i++)
	{
		if (i == seq->n_names)
		{
			seq->names[i] =
				qwen_kv_name(s->pool.key, i ? seq->names[i - 1] : 0, seq->tokens.data + (size_t) i * QWEN_KV_BLOCK);
			seq->n_names++;
			qwen_kv_pool_name(&s->pool, seq->blocks[i], seq->names[i]);
		}
		/* Without a name it holds the same as another block, which came first. */
		if (s->pool.blocks[seq->blocks[i]].name != 0)
			qwen_kv_pool_mark_ready(&s->pool, seq->blocks[i]);
	}
	seq->n_published = n_full;
}
