/*
 * output.c
 *	  The way of an answer from token ids to the caller.
 *
 *	  token -> bytes -> (thinking dropped) -> held -> ready -> DATA
 *
 * `held` keeps the longest suffix that could still become a stop string, so
 * that no byte of a stop string is ever sent.  `ready` is sent in pieces as
 * far as the caller's window allows.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sequence.h"

static bool hold(qwen_output *out, const char *data, size_t len, bool *stopped);
static bool release(qwen_output *out, size_t n);

bool
qwen_output_push(qwen_output *out, const qwen_tokenizer *tok, int32_t id, bool *stopped)
{
	qwen_bytes text = {0}, answer = {0};
	bool ok = qwen_detokenizer_push(&out->decoder, tok, id, true, &text);

	*stopped = false;
	if (ok && out->filter_thinking)
		ok = qwen_think_filter_push(&out->think, text.data, text.len, &answer) &&
			 hold(out, answer.data, answer.len, stopped);
	else if (ok)
		ok = hold(out, text.data, text.len, stopped);
	qwen_bytes_free(&text);
	qwen_bytes_free(&answer);
	return ok;
}

bool
qwen_output_finish(qwen_output *out)
{
	qwen_bytes text = {0}, answer = {0};
	bool stopped;
	bool ok = qwen_detokenizer_finish(&out->decoder, &text);

	if (ok && out->filter_thinking)
		ok = qwen_think_filter_push(&out->think, text.data, text.len, &answer) &&
			 qwen_think_filter_finish(&out->think, &answer) && hold(out, answer.data, answer.len, &stopped);
	else if (ok)
		ok = hold(out, text.data, text.len, &stopped);
	qwen_bytes_free(&text);
	qwen_bytes_free(&answer);
	return ok && release(out, out->held.len);
}

/* The place and length of the first complete stop string in held. */
static bool
find_stop(const qwen_output *out, size_t *where)
{
	bool found = false;

	for (size_t i = 0; i < out->n_stop; i++)
	{
		const char *hit = memmem(out->held.data, out->held.len, out->stop[i], out->stop_len[i]);

		if (hit && (!found || (size_t) (hit - out->held.data) < *where))
		{
			*where = (size_t) (hit - out->held.data);
			found = true;
		}
	}
	return found;
}

/* Length of the longest suffix of held that is a proper prefix of a stop string. */
static size_t
undecided(const qwen_output *out)
{
	size_t longest = 0;

	for (size_t i = 0; i < out->n_stop; i++)
	{
		size_t n = out->stop_len[i] - 1 < out->held.len ? out->stop_len[i] - 1 : out->held.len;

		for (; n > longest; n--)
			if (!memcmp(out->held.data + out->held.len - n, out->stop[i], n))
				longest = n;
	}
	return longest;
}

static bool
hold(qwen_output *out, const char *data, size_t len, bool *stopped)
{
	size_t where = 0;

	*stopped = false;
	if (len == 0)
		return true;
	if (!qwen_bytes_append(&out->held, data, len))
		return false;
	if (find_stop(out, &where))
	{
		*stopped = true;
		out->held.len = where;
		return release(out, where);
	}
	return release(out, out->held.len - undecided(out));
}

/* Moves the first n held bytes to ready. */
static bool
release(qwen_output *out, size_t n)
{
	if (!qwen_output_append(out, out->held.data, n))
		return false;
	if (n)
		memmove(out->held.data, out->held.data + n, out->held.len - n);
	out->held.len -= n;
	return true;
}

/* A text column cannot hold U+0000, so a text answer never carries one. */
static size_t
without_nul(char *p, size_t n)
{
	size_t kept = 0;

	for (size_t i = 0; i < n; i++)
		if (p[i])
			p[kept++] = p[i];
	return kept;
}

bool
qwen_output_append(qwen_output *out, const void *data, size_t len)
{
	size_t old = out->ready.len;
	uint64_t n;

	if (!qwen_bytes_append(&out->ready, data, len))
		return false;
	if (!out->raw)
		out->ready.len = old + without_nul(out->ready.data + old, len);
	n = out->ready.len - old;
	if (out->skip < n)
		n = out->skip;
	if (n)
	{
		memmove(out->ready.data + old, out->ready.data + old + n, out->ready.len - old - n);
		out->ready.len -= n;
		out->skip -= n;
	}
	return true;
}

/* The most bytes, up to n, that end a piece at a character's border. */
static size_t
whole_characters(const char *p, size_t n, size_t available)
{
	if (n == available)
		return n;
	for (size_t back = 0; back < 4 && back < n; back++)
		if (((unsigned char) p[n - back] & 0xC0) != 0x80)
			return n - back;
	return n;
}

bool
qwen_output_flush(qwen_output *out, uint64_t id, const qwen_events *events)
{
	while (out->sent < out->ready.len)
	{
		const char *p = out->ready.data + out->sent;
		size_t left = out->ready.len - out->sent;
		size_t n = left < QWEN_DATA_MAX ? left : QWEN_DATA_MAX;
		uint64_t cost;

		if (!out->raw)
			n = whole_characters(p, n, left);
		cost = sizeof(qwen_record) + n;
		if (events->window && out->sent_records + cost - out->credited > events->window)
			return false;
		events->data(events->arg, id, p, n);
		out->sent += n;
		out->sent_records += cost;
	}
	out->sent = out->ready.len = 0;
	return true;
}

void
qwen_output_free(qwen_output *out)
{
	for (size_t i = 0; i < out->n_stop; i++)
		free(out->stop[i]);
	free(out->stop);
	free(out->stop_len);
	qwen_think_filter_free(&out->think);
	qwen_bytes_free(&out->held);
	qwen_bytes_free(&out->ready);
}

uint64_t
qwen_now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t) ts.tv_sec * 1000000 + (uint64_t) ts.tv_nsec / 1000;
}
