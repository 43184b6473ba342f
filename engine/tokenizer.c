/*
 * tokenizer.c
 *	  Text to token ids and back.
 *
 *	  text --added tokens, literal--> pieces --form C--> --added tokens,
 *	  normalised--> runs --split pattern--> words --merges--> ids
 *
 * Added tokens are looked for only inside the allowed spans.  A span's edge
 * does not cut a run: what lies between two recognised tokens is split and
 * merged as one text, whoever wrote it, as the reference does.
 */
#include <stdlib.h>
#include <string.h>

#include "normalize.h"
#include "tokenizer_internal.h"
#include "utf8.h"

/* Positions inside a text are 32 bits wide further down. */
#define MAX_TEXT ((size_t) 1 << 30)

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

/* A text, the part of it in question, and where added tokens are allowed in it. */
typedef struct view
{
	const char *text;
	size_t begin;
	size_t end;
	const qwen_span *spans; /* [n_spans] in the text's own offsets; those before begin or behind end do not matter */
	size_t n_spans;
} view;

/* One call of qwen_tokenize. */
typedef struct call
{
	const qwen_tokenizer *tok;
	qwen_split_state *split;
	qwen_bpe_work work;
	qwen_bytes form_c; /* of one piece */
	qwen_span *mapped; /* [cap_mapped] spans of a piece in the offsets of form_c */
	size_t cap_mapped;
	qwen_ids *out;
	qwen_error *err;
} call;

/* What is done with the text between recognised tokens; the view's spans reach at least to its end. */
typedef qwen_status (*run_fn)(call *c, const view *run);

static qwen_status scan(call *c, const qwen_added_set *set, const view *v, run_fn fn);
static qwen_status piece(call *c, const view *p);
static qwen_status ordinary(call *c, const view *run);

/*
 * UTF-8 is checked once, here: everything further down, PCRE2 included, reads the text without looking again.  Wrong
 * spans can only come from our own code.
 */
static qwen_status
check_input(const char *text, size_t len, const qwen_span *spans, size_t n_spans, qwen_error *err)
{
	size_t valid, done = 0;

	if (len > MAX_TEXT)
	{
		qwen_fail(err, QWEN_TOO_LONG, "the text is too long to be tokenised");
		return qwen_fail_detail(err, "It has %zu bytes, at most %zu are possible.", len, MAX_TEXT);
	}
	valid = qwen_utf8_valid_length(text, len);
	if (valid < len)
	{
		qwen_fail(err, QWEN_INVALID, "text is not valid UTF-8");
		return qwen_fail_detail(err, "The first invalid byte is at offset %zu.", valid);
	}
	for (size_t i = 0; i < n_spans; i++)
	{
		if (spans[i].begin < done || spans[i].end < spans[i].begin || spans[i].end > len)
			return qwen_fail(err, QWEN_INTERNAL, "spans of a text must be sorted, disjoint and inside it");
		done = spans[i].end;
	}
	return QWEN_OK;
}

qwen_status
qwen_tokenize(const qwen_tokenizer *tok, const char *text, size_t len, const qwen_span *spans, size_t n_spans,
			  qwen_ids *out, qwen_error *err)
{
	const view whole = {text, 0, len, spans, n_spans};
	call c = {.tok = tok, .out = out, .err = err};
	qwen_status rc;

	if (check_input(text, len, spans, n_spans, err) != QWEN_OK)
		return err->status;
	c.split = qwen_split_state_open(tok->splitter);
	if (!c.split)
		return qwen_fail_memory(err, sizeof(c));
	rc = scan(&c, &tok->literal, &whole, piece);
	qwen_split_state_close(c.split);
	qwen_bpe_work_free(&c.work);
	qwen_bytes_free(&c.form_c);
	free(c.mapped);
	return rc;
}

/* Drops the spans that end at or before an offset. */
static void
skip_spans(view *v, size_t offset)
{
	while (v->n_spans > 0 && v->spans->end <= offset)
	{
		v->spans++;
		v->n_spans--;
	}
}

/*
 * Recognises the tokens of a set and gives fn what lies before, between and behind them.  Each span is searched once
 * and each byte lies in one run, so the work grows with the text, however many spans and tokens there are.
 */
static qwen_status
scan(call *c, const qwen_added_set *set, const view *v, run_fn fn)
{
	view run = *v, ahead = *v; /* ahead: the spans not yet searched; run: those of the text not yet given to fn */

	while (ahead.n_spans > 0 && ahead.spans->begin < v->end)
	{
		size_t begin = ahead.spans->begin > run.begin ? ahead.spans->begin : run.begin;
		size_t end = ahead.spans->end < v->end ? ahead.spans->end : v->end;
		int64_t hit = begin < end ? qwen_added_search(set, v->text, begin, end, &run.end) : -1;

		if (hit < 0)
		{
			ahead.spans++;
			ahead.n_spans--;
			continue;
		}
		skip_spans(&run, run.begin);
		if (fn(c, &run) != QWEN_OK)
			return c->err->status;
		if (!qwen_ids_push(c->out, set->tokens[hit].id))
			return qwen_fail_memory(c->err, (c->out->len + 1) * sizeof(int32_t));
		run.begin = run.end + set->tokens[hit].len;
	}
	run.end = v->end;
	skip_spans(&run, run.begin);
	return fn(c, &run);
}

/* Appends form C of text[begin..end) to c->form_c. */
static qwen_status
append_form_c(call *c, const char *text, size_t begin, size_t end)
{
	return qwen_nfc_append(text + begin, end - begin, &c->form_c, c->err);
}

/* Whether nothing at or behind an offset of a piece could join what stands before it. Inside a character: no. */
static bool
is_boundary(const view *p, size_t at)
{
	return at >= p->end ||
		   (((unsigned char) p->text[at] & 0xC0) != 0x80 && qwen_nfc_is_boundary(p->text + at, p->end - at));
}

/* Shrinks a span of a piece to boundaries, so that its inside has the same form C alone as in the whole. */
static qwen_span
shrink_to_boundaries(const view *p, qwen_span s)
{
	s.begin = s.begin > p->begin ? s.begin : p->begin;
	s.end = s.end < p->end ? s.end : p->end;
	while (s.begin < s.end && !is_boundary(p, s.begin))
		s.begin++;
	while (s.end > s.begin && !is_boundary(p, s.end))
		s.end--;
	return s;
}

/* Makes room for the n-th mapped span, counted from 0. */
static qwen_status
reserve_mapped(call *c, size_t n)
{
	size_t cap = n ? 2 * n : 16;
	qwen_span *mapped;

	if (n < c->cap_mapped)
		return QWEN_OK;
	mapped = realloc(c->mapped, cap * sizeof(*mapped));
	if (!mapped)
		return qwen_fail_memory(c->err, cap * sizeof(*mapped));
	c->mapped = mapped;
	c->cap_mapped = cap;
	return QWEN_OK;
}

/*
 * Brings a piece into form C, in c->form_c, and its spans into the offsets there.  The text is normalised in parts
 * that end where spans do, at boundaries, so the parts joined are form C of the whole and each span's new place is
 * known.
 */
static qwen_status
normalize_piece(call *c, const view *p, view *out)
{
	size_t done = p->begin, n = 0;

	c->form_c.len = 0;
	/* Without tokens of that kind nobody asks for spans. */
	for (size_t i = 0; i < p->n_spans && p->spans[i].begin < p->end && c->tok->normalized.n > 0; i++)
	{
		qwen_span s = shrink_to_boundaries(p, p->spans[i]);

		if (s.begin >= s.end)
			continue;
		if (reserve_mapped(c, n) || append_form_c(c, p->text, done, s.begin))
			return c->err->status;
		c->mapped[n].begin = c->form_c.len;
		if (append_form_c(c, p->text, s.begin, s.end) != QWEN_OK)
			return c->err->status;
		c->mapped[n++].end = c->form_c.len;
		done = s.end;
	}
	if (append_form_c(c, p->text, done, p->end) != QWEN_OK)
		return c->err->status;
	*out = (view){c->form_c.data, 0, c->form_c.len, c->mapped, n};
	return QWEN_OK;
}

/* What lies between two literal tokens. */
static qwen_status
piece(call *c, const view *p)
{
	view normalized;

	if (p->begin == p->end)
		return QWEN_OK;
	if (!c->tok->nfc || qwen_nfc_is_plain(p->text + p->begin, p->end - p->begin))
		return scan(c, &c->tok->normalized, p, ordinary);
	if (normalize_piece(c, p, &normalized) != QWEN_OK)
		return c->err->status;
	return scan(c, &c->tok->normalized, &normalized, ordinary);
}

/* One piece of the split pattern: merges do not cross its edges. */
static qwen_status
word(void *arg, const char *text, size_t len, qwen_error *err)
{
	call *c = arg;

	return qwen_bpe_piece(&c->tok->bpe, &c->work, text, len, c->out, err);
}

/* Text without added tokens. */
static qwen_status
ordinary(call *c, const view *run)
{
	return qwen_split(c->tok->splitter, c->split, run->text + run->begin, run->end - run->begin, word, c, c->err);
}

/* ---- ids to text ---- */

/*
 * Appends the whole characters among bytes[0..n) to out, U+FFFD for what can never become one; keeps a cut tail in d.
 */
static bool
decode_bytes(qwen_detokenizer *d, const unsigned char *bytes, size_t n, qwen_bytes *out)
{
	size_t at = 0, used;

	d->n_held = 0;
	while (at < n)
	{
		/* A token is nearly always whole characters: append them together. */
		size_t good = qwen_utf8_valid_length((const char *) bytes + at, n - at);

		if (!qwen_bytes_append(out, bytes + at, good))
			return false;
		at += good;
		if (at == n)
			break;
		if (qwen_utf8_step(bytes + at, n - at, &used) == QWEN_UTF8_CUT)
		{
			memcpy(d->held, bytes + at, used);
			d->n_held = (int) used;
			break;
		}
		if (!qwen_bytes_append_str(out, replacement))
			return false;
		at += used;
	}
	return true;
}

/* An id that is not defined stands for nothing; the scheduler never draws one. */
bool
qwen_detokenizer_push(qwen_detokenizer *d, const qwen_tokenizer *tok, int32_t id, bool skip_special, qwen_bytes *out)
{
	size_t len;
	const char *bytes = qwen_vocab_bytes(&tok->vocab, id, &len);
	qwen_bytes joined = {0};
	bool ok;

	if (!bytes || len == 0 || (skip_special && qwen_tokenizer_is_special(tok, id)))
		return true;
	if (d->n_held == 0)
		return decode_bytes(d, (const unsigned char *) bytes, len, out);
	ok = qwen_bytes_append(&joined, d->held, (size_t) d->n_held) && qwen_bytes_append(&joined, bytes, len) &&
		 decode_bytes(d, (const unsigned char *) joined.data, joined.len, out);
	qwen_bytes_free(&joined);
	return ok;
}

bool
qwen_detokenizer_finish(qwen_detokenizer *d, qwen_bytes *out)
{
	bool held = d->n_held > 0;

	d->n_held = 0;
	return !held || qwen_bytes_append_str(out, replacement);
}

/* The same decoder as for streams, fed with everything: both agree because they are one. */
qwen_status
qwen_detokenize(const qwen_tokenizer *tok, const int32_t *ids, size_t n, bool skip_special, qwen_bytes *out,
				qwen_error *err)
{
	qwen_detokenizer d = {0};
	size_t len;

	for (size_t i = 0; i < n; i++)
	{
		if (!qwen_vocab_bytes(&tok->vocab, ids[i], &len))
		{
			qwen_fail(err, QWEN_INVALID, "token id %d is not defined", ids[i]);
			return qwen_fail_detail(err, "The tokenizer's ids go from 0 to %d.", tok->vocab.size - 1);
		}
		if (!qwen_detokenizer_push(&d, tok, ids[i], skip_special, out))
			return qwen_fail_memory(err, out->len + len);
	}
	return qwen_detokenizer_finish(&d, out) ? QWEN_OK : qwen_fail_memory(err, out->len + sizeof(replacement));
}

/* ---- looking things up ---- */

int32_t
qwen_tokenizer_size(const qwen_tokenizer *tok)
{
	return tok->vocab.size;
}

const char *
qwen_tokenizer_token(const qwen_tokenizer *tok, int32_t id, size_t *len)
{
	return qwen_vocab_bytes(&tok->vocab, id, len);
}

bool
qwen_tokenizer_is_special(const qwen_tokenizer *tok, int32_t id)
{
	return id >= 0 && id < tok->vocab.size && tok->vocab.entries[id].special;
}

int32_t
qwen_tokenizer_find(const qwen_tokenizer *tok, const char *content)
{
	int32_t id = qwen_added_find(&tok->literal, content, strlen(content));

	return id >= 0 ? id : qwen_added_find(&tok->normalized, content, strlen(content));
}

int32_t
qwen_tokenizer_eos(const qwen_tokenizer *tok)
{
	return tok->eos;
}
