/*
 * added.c
 *	  Added tokens: literal strings that are tokens wherever they are allowed.
 *
 * The tokens are sorted by their bytes, so that those with a common beginning
 * are neighbours.  A search walks the text byte by byte and narrows the range
 * of candidates with each, which is a trie without its nodes: hundreds of
 * tokens that all begin with "<|" cost a few comparisons where the text has a
 * "<" and nothing elsewhere.
 */
#include "added.h"

#include <stdlib.h>
#include <string.h>

/* Bounds the work at one position of the text; the longest in real files have about 40 bytes. */
#define MAX_ADDED_BYTES 512

static int
compare(const void *a, const void *b)
{
	const qwen_added_token *x = a, *y = b;
	int order = memcmp(x->text, y->text, x->len < y->len ? x->len : y->len);

	return order ? order : (x->len > y->len) - (x->len < y->len);
}

qwen_status
qwen_added_add(qwen_added_set *set, const char *text, size_t len, int32_t id, qwen_error *err)
{
	char *copy;

	if (len == 0 || len > MAX_ADDED_BYTES)
		return qwen_fail(err, QWEN_CORRUPT, "added token %d has %zu bytes", id, len);
	if (set->n == set->cap)
	{
		size_t cap = set->cap ? 2 * set->cap : 32;
		qwen_added_token *p = realloc(set->tokens, cap * sizeof(*p));

		if (!p)
			return qwen_fail_memory(err, cap * sizeof(*p));
		set->tokens = p;
		set->cap = cap;
	}
	copy = malloc(len + 1);
	if (!copy)
		return qwen_fail_memory(err, len + 1);
	memcpy(copy, text, len);
	copy[len] = '\0';
	set->tokens[set->n++] = (qwen_added_token){copy, len, id};
	set->first[(unsigned char) text[0]] = true;
	return QWEN_OK;
}

qwen_status
qwen_added_finish(qwen_added_set *set, qwen_error *err)
{
	if (set->n)
		qsort(set->tokens, set->n, sizeof(*set->tokens), compare);
	for (size_t i = 1; i < set->n; i++)
		if (!compare(&set->tokens[i - 1], &set->tokens[i]))
			return qwen_fail(err, QWEN_CORRUPT, "added tokens %d and %d have the same text", set->tokens[i - 1].id,
							 set->tokens[i].id);
	return QWEN_OK;
}

void
qwen_added_free(qwen_added_set *set)
{
	for (size_t i = 0; i < set->n; i++)
		free(set->tokens[i].text);
	free(set->tokens);
	memset(set, 0, sizeof(*set));
}

int32_t
qwen_added_find(const qwen_added_set *set, const char *text, size_t len)
{
	/* Not written through, the key only borrows the text. */
	const qwen_added_token key = {(char *) text, len, 0};
	const qwen_added_token *hit = set->n ? bsearch(&key, set->tokens, set->n, sizeof(key), compare) : NULL;

	return hit ? hit->id : -1;
}

/* The first index in [low, high) whose byte at `depth` is at least `byte`; all of them agree before `depth`. */
static size_t
lower(const qwen_added_set *set, size_t low, size_t high, size_t depth, int byte)
{
	while (low < high)
	{
		size_t mid = (low + high) / 2;
		const qwen_added_token *t = &set->tokens[mid];

		if (t->len <= depth || (unsigned char) t->text[depth] < byte)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/* The longest token at text[0..len), or -1. */
static int64_t
longest_here(const qwen_added_set *set, const char *text, size_t len)
{
	size_t low = 0, high = set->n;
	int64_t best = -1;

	for (size_t depth = 0; depth < len; depth++)
	{
		int byte = (unsigned char) text[depth];

		low = lower(set, low, high, depth, byte);
		high = lower(set, low, high, depth, byte + 1);
		if (low == high)
			break;
		if (set->tokens[low].len == depth + 1) /* the shortest of a range stands first */
			best = (int64_t) low;
	}
	return best;
}

int64_t
qwen_added_search(const qwen_added_set *set, const char *text, size_t begin, size_t end, size_t *at)
{
	if (set->n == 0)
		return -1;
	for (; begin < end; begin++)
	{
		int64_t hit;

		if (!set->first[(unsigned char) text[begin]])
			continue;
		hit = longest_here(set, text + begin, end - begin);
		if (hit >= 0)
		{
			*at = begin;
			return hit;
		}
	}
	return -1;
}
