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
 *
 * The reference normalises by the tables of Unicode 9, whatever its regex
 * engine knows: a mark that is younger is a character like any other there.
 * Its ids are what the models have seen, so that is done here too.
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

/* A range of code points. */
typedef struct cp_range
{
	int32_t first;
	int32_t last;
} cp_range;

/*
 * What has come after Unicode 9 and has a combining class, decomposes or composes, up to Unicode 17; sorted.  Scripts
 * that came as a whole stand here as a whole.
 */
static const cp_range young[] = {
	{0x07FD, 0x07FD},   {0x0897, 0x089F},   {0x08CA, 0x08D3},   {0x09FE, 0x09FE},   {0x0C3C, 0x0C3C},
	{0x0D3B, 0x0D3C},   {0x0EBA, 0x0EBA},   {0x1715, 0x1715},   {0x1ABF, 0x1AFF},   {0x1DF6, 0x1DFA},
	{0xA82C, 0xA82C},   {0x105C0, 0x105FF}, {0x10D24, 0x10D27}, {0x10D40, 0x10D8F}, {0x10EAB, 0x10EAC},
	{0x10EFA, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B},
	{0x11380, 0x113FF}, {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11930, 0x11938}, {0x1193D, 0x1193E},
	{0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99},
	{0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16100, 0x1613F},
	{0x16D40, 0x16D7F}, {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE},
	{0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}, {0x1E5D0, 0x1E5FF}, {0x1E6C0, 0x1E6FF},
};

/* Work space of one call. */
typedef struct nfc
{
	utf8proc_int32_t *cps; /* [n] */
	size_t n;
	size_t cap;
	utf8proc_int32_t *sorted; /* [sorted_cap] of one run */
	size_t sorted_cap;
} nfc;

static bool
is_young(int32_t cp)
{
	size_t low = 0, high = sizeof(young) / sizeof(young[0]);

	if (cp < young[0].first)
		return false;
	while (low < high)
	{
		size_t mid = (low + high) / 2;

		if (cp > young[mid].last)
			low = mid + 1;
		else if (cp < young[mid].first)
			high = mid;
		else
			return true;
	}
	return false;
}

/* The canonical combining class in Unicode 9. */
static int
class_of(int32_t cp)
{
	int class = utf8proc_get_property(cp)->combining_class % N_CLASSES;

	return class != 0 && is_young(cp) ? 0 : class;
}

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
		int class = class_of(cp);
		size_t j = i;

		for (; j > 0 && class_of(run[j - 1]) > class; j--)
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
		start[class_of(run[i]) + 1]++;
	for (int c = 0; c < N_CLASSES; c++)
		start[c + 1] += start[c];
	for (size_t i = 0; i < n; i++)
		w->sorted[start[class_of(run[i])]++] = run[i];
	memcpy(run, w->sorted, n * sizeof(*run));
	return true;
}

/* Puts each run of marks (combining class not 0) into canonical order. */
static bool
order_marks(nfc *w)
{
	for (size_t i = 0, end; i < w->n; i = end + 1)
	{
		for (end = i; end < w->n && class_of(w->cps[end]) != 0;)
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

/* Writes the canonical decomposition of one character, at most MAX_DECOMPOSED code points, and returns their number. */
static size_t
decompose_one(int32_t cp, utf8proc_int32_t *out)
{
	int boundary = 0;
	utf8proc_ssize_t n = 0;

	if (!is_young(cp))
		n = utf8proc_decompose_char(cp, out, MAX_DECOMPOSED, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, &boundary);
	if (n > 0 && n <= MAX_DECOMPOSED)
		return (size_t) n;
	out[0] = cp; /* young; an error cannot be with these options */
	return 1;
}

/* Fills w->cps with the canonical decomposition of the text. */
static bool
decompose(nfc *w, const unsigned char *p, size_t len)
{
	for (size_t at = 0, used; at < len; at += used)
	{
		int32_t cp = qwen_utf8_decode(p + at, &used);

		if (w->cap - w->n < MAX_DECOMPOSED)
		{
			size_t cap = w->cap ? w->cap * 2 : len + MAX_DECOMPOSED;
			utf8proc_int32_t *cps = cap <= SIZE_MAX / sizeof(*cps) ? realloc(w->cps, cap * sizeof(*cps)) : NULL;

			if (!cps)
				return false;
			w->cps = cps;
			w->cap = cap;
		}
		w->n += decompose_one(cp, w->cps + w->n);
	}
	return true;
}

/* Composes w->cps[begin..end) and appends the result to out, which has room for it. */
static void
compose_part(nfc *w, size_t begin, size_t end, qwen_bytes *out)
{
	utf8proc_int32_t *cps = w->cps + begin;
	utf8proc_ssize_t n =
		utf8proc_normalize_utf32(cps, (utf8proc_ssize_t) (end - begin), UTF8PROC_STABLE | UTF8PROC_COMPOSE);

	for (utf8proc_ssize_t i = 0; i < n; i++)
		out->len += qwen_utf8_encode(cps[i], (unsigned char *) out->data + out->len);
}

/* Composes what lies between young characters, which neither compose nor let others compose across them. */
static bool
compose(nfc *w, qwen_bytes *out)
{
	size_t begin = 0;

	if (!qwen_bytes_reserve(out, w->n * 4))
		return false;
	for (size_t i = 0; i < w->n; i++)
		if (is_young(w->cps[i]))
		{
			compose_part(w, begin, i, out);
			out->len += qwen_utf8_encode(w->cps[i], (unsigned char *) out->data + out->len);
			begin = i + 1;
		}
	compose_part(w, begin, w->n, out);
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
