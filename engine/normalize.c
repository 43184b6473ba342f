/*
 * normalize.c
 *	  Unicode normalisation form C, on the tables of utf8proc.
 *
 *	  text -> code points, decomposed -> marks in canonical order -> composed
 *
 * utf8proc decomposes a character and composes a string in linear time, but
 * its own ordering of marks is an insertion sort, which a megabyte of
 * alternating marks would keep busy for minutes.  So the ordering is here: a
 * counting sort over the combining class of each run of marks.
 */
#include "normalize.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "utf8.h"

#define N_CLASSES 256 /* combining classes are bytes */
/* Runs up to this length are sorted by insertion: a counting sort's table is not worth it. */
#define SHORT_RUN 32
/* The longest canonical decomposition has 4 code points. */
#define MAX_DECOMPOSED 8

/* Work space of one call. */
typedef struct nfc
{
	utf8proc_int32_t *cps; /* [n] */
	size_t n;
	size_t cap;
	utf8proc_int32_t *sorted; /* [sorted_cap] of one run */
	size_t sorted_cap;
} nfc;

/*
 * May decompose, change places or join the character before it.  Only says yes too often, never too rarely: the second
 * halves of compositions are marks by category, Hangul letters, or in the scripts beyond U+11000.
 */
static bool
is_active(int32_t cp)
{
	const utf8proc_property_t *p;

	if (cp < 0x300 || (cp >= 0x3400 && cp <= 0x9FFF) || (cp >= 0xAC00 && cp <= 0xD7A3) ||
		(cp >= 0x1F000 && cp < 0x2F800))
		return false;
	if ((cp >= 0x1100 && cp <= 0x11FF) || cp >= 0x11000)
		return true;
	p = utf8proc_get_property(cp);
	return p->combining_class != 0 || p->decomp_seqindex != UINT16_MAX || p->category == UTF8PROC_CATEGORY_MN ||
		   p->category == UTF8PROC_CATEGORY_MC || p->category == UTF8PROC_CATEGORY_ME;
}

bool
qwen_nfc_is_plain(const char *text, size_t len)
{
	const unsigned char *p = (const unsigned char *) text;

	for (size_t at = 0, used; at < len; at += used)
	{
		if (p[at] < 0xCC) /* below U+0300 */
			used = p[at] < 0x80 ? 1 : 2;
		else if (is_active(qwen_utf8_decode(p + at, &used)))
			return false;
	}
	return true;
}

bool
qwen_nfc_is_boundary(const char *text, size_t len)
{
	size_t used;

	/* A character below U+0300 or otherwise inactive never joins what stands before it. */
	return len == 0 || !is_active(qwen_utf8_decode((const unsigned char *) text, &used));
}

/* Stable insertion sort of a short run of marks. */
static void
sort_short(utf8proc_int32_t *run, size_t n)
{
	for (size_t i = 1; i < n; i++)
	{
		utf8proc_int32_t cp = run[i];
		int class = utf8proc_get_property(cp)->combining_class;
		size_t j = i;

		for (; j > 0 && utf8proc_get_property(run[j - 1])->combining_class > class; j--)
			run[j] = run[j - 1];
		run[j] = cp;
	}
}

/* Stable counting sort of a long run; false when memory is short. */
static bool
sort_long(nfc *w, utf8proc_int32_t *run, size_t n)
{
	size_t start[N_CLASSES + 1] = {0};

	if (w->sorted_cap < n)
	{
		utf8proc_int32_t *p = realloc(w->sorted, n * sizeof(*p));

		if (!p)
			return false;
		w->sorted = p;
		w->sorted_cap = n;
	}
	for (size_t i = 0; i < n; i++)
		start[utf8proc_get_property(run[i])->combining_class % N_CLASSES + 1]++;
	for (int c = 0; c < N_CLASSES; c++)
		start[c + 1] += start[c];
	for (size_t i = 0; i < n; i++)
		w->sorted[start[utf8proc_get_property(run[i])->combining_class % N_CLASSES]++] = run[i];
	memcpy(run, w->sorted, n * sizeof(*run));
	return true;
}

/* Puts each run of marks (combining class not 0) into canonical order. */
static bool
order_marks(nfc *w)
{
	for (size_t i = 0, end; i < w->n; i = end + 1)
	{
		for (end = i; end < w->n && utf8proc_get_property(w->cps[end])->combining_class != 0;)
			end++;
		if (end - i > SHORT_RUN)
		{
			if (!sort_long(w, w->cps + i, end - i))
				return false;
		}
		else if (end - i > 1)
			sort_short(w->cps + i, end - i);
	}
	return true;
}

/* Fills w->cps with the canonical decomposition of the text. */
static bool
decompose(nfc *w, const unsigned char *p, size_t len)
{
	for (size_t at = 0, used; at < len; at += used)
	{
		int32_t cp = qwen_utf8_decode(p + at, &used);
		utf8proc_ssize_t got;
		int boundary = 0;

		if (w->cap - w->n < MAX_DECOMPOSED)
		{
			size_t cap = w->cap ? w->cap * 2 : len + MAX_DECOMPOSED;
			utf8proc_int32_t *cps = cap <= SIZE_MAX / sizeof(*cps) ? realloc(w->cps, cap * sizeof(*cps)) : NULL;

			if (!cps)
				return false;
			w->cps = cps;
			w->cap = cap;
		}
		got =
			utf8proc_decompose_char(cp, w->cps + w->n, MAX_DECOMPOSED, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, &boundary);
		if (got < 0 || got > MAX_DECOMPOSED) /* cannot be with these options; the character then stays as it is */
		{
			w->cps[w->n] = cp;
			got = 1;
		}
		w->n += (size_t) got;
	}
	return true;
}

/* Composes w->cps and appends them as UTF-8. */
static bool
compose(nfc *w, qwen_bytes *out)
{
	utf8proc_ssize_t n = utf8proc_normalize_utf32(w->cps, (utf8proc_ssize_t) w->n, UTF8PROC_STABLE | UTF8PROC_COMPOSE);

	if (!qwen_bytes_reserve(out, (size_t) n * 4))
		return false;
	for (utf8proc_ssize_t i = 0; i < n; i++)
		out->len += qwen_utf8_encode(w->cps[i], (unsigned char *) out->data + out->len);
	out->data[out->len] = '\0';
	return true;
}

qwen_status
qwen_nfc_append(const char *text, size_t len, qwen_bytes *out, qwen_error *err)
{
	nfc w = {0};
	bool ok = true;

	if (qwen_nfc_is_plain(text, len))
		ok = qwen_bytes_append(out, text, len);
	else
		ok = decompose(&w, (const unsigned char *) text, len) && order_marks(&w) && compose(&w, out);
	free(w.cps);
	free(w.sorted);
	return ok ? QWEN_OK : qwen_fail_memory(err, len * sizeof(utf8proc_int32_t));
}
