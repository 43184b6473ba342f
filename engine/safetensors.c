/*
 * safetensors.c
 *	  The header of a safetensors file: parsed, checked, sorted.
 *
 * The header may come from anywhere and be 100 MB long, so it is read by a
 * small scanner of its own instead of being built into a tree: memory grows
 * with the number of tensors alone, and nesting is bounded.  Checks, in the
 * order of qwen-models.md 13.1:
 *
 *	  JSON object, valid UTF-8, keys unique
 *	  each entry: known dtype, shape, product without overflow, offsets whose
 *	  difference is the size
 *	  sorted by offset: no hole, no overlap, from 0 to the end of the file
 */
#include "safetensors.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "config_json.h"

/* Nesting of values that are skipped: far more than writers use. */
#define MAX_DEPTH 16

static const struct
{
	const char *name;
	int bits;
} dtypes[] = {
	{"BF16", 16}, {"F16", 16},    {"F32", 32},    {"F64", 64},    {"BOOL", 8},        {"U8", 8},
	{"I8", 8},    {"U16", 16},    {"I16", 16},    {"U32", 32},    {"I32", 32},        {"U64", 64},
	{"I64", 64},  {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8},
	{"C64", 64},  {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},
};

typedef struct scanner
{
	const char *file;
	const char *begin;
	const char *p;
	const char *end;
	qwen_error *err;
} scanner;

/* What an entry has told so far. */
enum
{
	SEEN_DTYPE = 1,
	SEEN_SHAPE = 2,
	SEEN_OFFSETS = 4,
	SEEN_ALL = 7
};

/* What is wrong at the place the scanner has reached. */
static qwen_status
fail_at(scanner *s, const char *what)
{
	qwen_fail(s->err, QWEN_CORRUPT, "\"%s\" is not a valid safetensors file", s->file);
	return qwen_fail_detail(s->err, "Byte %lld of its header: %s.", (long long) (s->p - s->begin), what);
}

/* What is wrong with one tensor; its name may hold anything. */
static qwen_status
fail_tensor(scanner *s, const qwen_tensor *t, const char *what)
{
	char shown[200];

	qwen_config_printable(shown, sizeof(shown), t->name ? t->name : "");
	qwen_fail(s->err, QWEN_CORRUPT, "\"%s\" is not a valid safetensors file", s->file);
	return qwen_fail_detail(s->err, "Tensor \"%s\": %s.", shown, what);
}

/* ---- the scanner ---- */

static void
skip_space(scanner *s)
{
	while (s->p < s->end && (*s->p == ' ' || *s->p == '\t' || *s->p == '\n' || *s->p == '\r'))
		s->p++;
}

/* Whether the next character that is not space is c; takes it if so. */
static bool
accept(scanner *s, char c)
{
	skip_space(s);
	if (s->p >= s->end || *s->p != c)
		return false;
	s->p++;
	return true;
}

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Four hexadecimal digits after \u; -1 when they are not there. */
static int
scan_hex4(scanner *s)
{
	int value = 0;

	for (int i = 0; i < 4; i++, s->p++)
	{
		int digit = s->p < s->end ? hex_digit(*s->p) : -1;

		if (digit < 0)
			return -1;
		value = value * 16 + digit;
	}
	return value;
}

/* The code point of \uXXXX, the digits not yet read; surrogates must come in pairs. -1: not valid. */
static int32_t
scan_unicode_escape(scanner *s)
{
	int high = scan_hex4(s);
	int low;

	if (high < 0xd800 || high > 0xdfff)
		return high;
	if (high > 0xdbff || s->end - s->p < 2 || s->p[0] != '\\' || s->p[1] != 'u')
		return -1;
	s->p += 2;
	low = scan_hex4(s);
	return low < 0xdc00 || low > 0xdfff ? -1 : 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
}

/* One escape, the backslash already read, as UTF-8 into out[4]; its length, or 0 when it is not valid. */
static int
scan_escape(scanner *s, char *out)
{
	static const char plain[] = "\"\\/bfnrt";
	static const char meaning[] = "\"\\/\b\f\n\r\t";
	const char *found;
	int32_t code;

	if (s->p >= s->end)
		return 0;
	if (*s->p == 'u')
	{
		s->p++;
		code = scan_unicode_escape(s);
		return code > 0 ? (int) utf8proc_encode_char(code, (utf8proc_uint8_t *) out) : 0; /* NUL is refused */
	}
	found = strchr(plain, *s->p);
	if (!*s->p || !found)
		return 0;
	s->p++;
	*out = meaning[found - plain];
	return 1;
}

/* One character of a string as UTF-8 into out[4]; its length, or 0 when it is not valid. */
static int
scan_char(scanner *s, char *out)
{
	utf8proc_int32_t code;
	int n;

	if (*s->p == '\\')
	{
		s->p++;
		return scan_escape(s, out);
	}
	if ((unsigned char) *s->p < 0x20)
		return 0;
	n = (int) utf8proc_iterate((const utf8proc_uint8_t *) s->p, s->end - s->p, &code);
	if (n <= 0)
		return 0;
	memcpy(out, s->p, (size_t) n);
	s->p += n;
	return n;
}

/* A string; out[size] receives it, NUL-terminated, or NULL: only checked. */
static qwen_status
scan_string(scanner *s, char *out, size_t size)
{
	size_t len = 0;

	if (!accept(s, '"'))
		return fail_at(s, "a string is missing");
	while (s->p < s->end && *s->p != '"')
	{
		char c[4];
		int n = scan_char(s, c);

		if (n == 0)
			return fail_at(s, "a string holds an invalid character");
		if (out && len + (size_t) n >= size)
			return fail_at(s, "a name is too long");
		if (out)
			memcpy(out + len, c, (size_t) n);
		len += (size_t) n;
	}
	if (out)
		out[len] = '\0';
	return accept(s, '"') ? QWEN_OK : fail_at(s, "a string does not end");
}

/* A whole number that is not negative. */
static qwen_status
scan_number(scanner *s, uint64_t *out)
{
	const char *start;

	skip_space(s);
	start = s->p;
	for (*out = 0; s->p < s->end && *s->p >= '0' && *s->p <= '9'; s->p++)
		if (__builtin_mul_overflow(*out, 10, out) || __builtin_add_overflow(*out, (uint64_t) (*s->p - '0'), out))
			return fail_at(s, "a number is too large");
	if (s->p == start || (*start == '0' && s->p - start > 1))
		return fail_at(s, "a whole number is missing");
	return QWEN_OK;
}

static qwen_status skip_value(scanner *s, int depth);

/* The rest of an object or array, its bracket already read. */
static qwen_status
skip_members(scanner *s, char close, int depth)
{
	qwen_status rc;

	if (depth >= MAX_DEPTH)
		return fail_at(s, "values are nested too deeply");
	if (accept(s, close))
		return QWEN_OK;
	do
	{
		if (close == '}')
		{
			if ((rc = scan_string(s, NULL, 0)) != QWEN_OK)
				return rc;
			if (!accept(s, ':'))
				return fail_at(s, "a colon is missing");
		}
		if ((rc = skip_value(s, depth + 1)) != QWEN_OK)
			return rc;
	} while (accept(s, ','));
	return accept(s, close) ? QWEN_OK : fail_at(s, "a bracket is missing");
}

/* Any value. Numbers and words are only checked for their characters: nothing depends on them. */
static qwen_status
skip_value(scanner *s, int depth)
{
	const char *start;

	skip_space(s);
	start = s->p;
	if (s->p < s->end && *s->p == '"')
		return scan_string(s, NULL, 0);
	if (accept(s, '{'))
		return skip_members(s, '}', depth);
	if (accept(s, '['))
		return skip_members(s, ']', depth);
	while (s->p < s->end && *s->p && strchr("+-.0123456789abcdefghijklmnopqrstuvwxyzE", *s->p))
		s->p++;
	return s->p > start ? QWEN_OK : fail_at(s, "a value is missing");
}

/* ---- entries ---- */

/* All types of the format are known here; which of them can be loaded is for the loader to say. */
static qwen_status
scan_dtype(scanner *s, qwen_tensor *t)
{
	char name[32];
	qwen_status rc = scan_string(s, name, sizeof(name));

	if (rc != QWEN_OK)
		return rc;
	for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++)
		if (!strcmp(name, dtypes[i].name))
		{
			t->dtype = dtypes[i].name;
			t->bits = dtypes[i].bits;
			return QWEN_OK;
		}
	return fail_tensor(s, t, "its dtype is unknown");
}

/* A list of at most max numbers. */
static qwen_status
scan_numbers(scanner *s, uint64_t *out, int max, int *n)
{
	qwen_status rc;

	*n = 0;
	if (!accept(s, '['))
		return fail_at(s, "a list is missing");
	if (accept(s, ']'))
		return QWEN_OK;
	do
	{
		if (*n == max)
			return fail_at(s, "a list is too long");
		if ((rc = scan_number(s, &out[(*n)++])) != QWEN_OK)
			return rc;
	} while (accept(s, ','));
	return accept(s, ']') ? QWEN_OK : fail_at(s, "a list does not end");
}

/* A pair [begin, end) relative to the data area. */
static qwen_status
scan_offsets(scanner *s, qwen_tensor *t)
{
	uint64_t offsets[2];
	int n;
	qwen_status rc = scan_numbers(s, offsets, 2, &n);

	if (rc != QWEN_OK)
		return rc;
	if (n != 2 || offsets[0] > offsets[1])
		return fail_tensor(s, t, "its offsets are not an ascending pair");
	t->begin = offsets[0];
	t->end = offsets[1];
	return QWEN_OK;
}

/* One key of an entry and its value. */
static qwen_status
scan_field(scanner *s, qwen_tensor *t, int *seen)
{
	char key[64];
	int which;
	qwen_status rc = scan_string(s, key, sizeof(key));

	if (rc != QWEN_OK)
		return rc;
	if (!accept(s, ':'))
		return fail_at(s, "a colon is missing");
	which = !strcmp(key, "dtype") ? SEEN_DTYPE : !strcmp(key, "shape") ? SEEN_SHAPE : SEEN_OFFSETS;
	if (which == SEEN_OFFSETS && strcmp(key, "data_offsets") != 0)
		return skip_value(s, 1);
	if (*seen & which)
		return fail_tensor(s, t, "a key occurs twice");
	*seen |= which;
	if (which == SEEN_DTYPE)
		return scan_dtype(s, t);
	return which == SEEN_SHAPE ? scan_numbers(s, t->shape, QWEN_TENSOR_MAX_RANK, &t->rank) : scan_offsets(s, t);
}

/* The size by dtype and shape must be the size by offsets. */
static qwen_status
check_size(scanner *s, const qwen_tensor *t)
{
	uint64_t bits = (uint64_t) t->bits;

	for (int i = 0; i < t->rank; i++)
		if (__builtin_mul_overflow(bits, t->shape[i], &bits))
			return fail_tensor(s, t, "its size overflows");
	if (bits % 8 != 0 || bits / 8 != t->end - t->begin)
		return fail_tensor(s, t, "its offsets do not match its shape and dtype");
	return QWEN_OK;
}

/* The description of one tensor. Keys that are not known are skipped, as the reference does. */
static qwen_status
scan_entry(scanner *s, qwen_tensor *t)
{
	int seen = 0;
	qwen_status rc;

	if (!accept(s, '{'))
		return fail_at(s, "an object is missing");
	if (!accept(s, '}'))
	{
		do
			if ((rc = scan_field(s, t, &seen)) != QWEN_OK)
				return rc;
		while (accept(s, ','));
		if (!accept(s, '}'))
			return fail_at(s, "a bracket is missing");
	}
	if (seen != SEEN_ALL)
		return fail_tensor(s, t, "dtype, shape or data_offsets is missing");
	return check_size(s, t);
}

/* A new zeroed item at the end of the list; NULL when memory is short. */
static qwen_tensor *
add_tensor(qwen_tensor_list *list, const char *name)
{
	qwen_tensor *t;

	if (list->n == list->cap)
	{
		size_t cap = list->cap ? 2 * list->cap : 64;
		qwen_tensor *items = realloc(list->items, cap * sizeof(*items));

		if (!items)
			return NULL;
		list->items = items;
		list->cap = cap;
	}
	t = &list->items[list->n];
	memset(t, 0, sizeof(*t));
	t->name = strdup(name);
	if (!t->name)
		return NULL;
	list->n++;
	return t;
}

/* One member of the header: a tensor, or the metadata, which is skipped. */
static qwen_status
scan_member(scanner *s, qwen_tensor_list *list, bool *metadata)
{
	char name[QWEN_TENSOR_MAX_NAME];
	qwen_tensor *t;
	qwen_status rc = scan_string(s, name, sizeof(name));

	if (rc != QWEN_OK)
		return rc;
	if (!accept(s, ':'))
		return fail_at(s, "a colon is missing");
	if (!strcmp(name, "__metadata__"))
	{
		if (*metadata)
			return fail_at(s, "the metadata occur twice");
		*metadata = true;
		return skip_value(s, 1);
	}
	t = add_tensor(list, name);
	return t ? scan_entry(s, t) : qwen_fail_memory(s->err, sizeof(*t));
}

/* The whole header. Writers pad it with spaces to a multiple of 8. */
static qwen_status
scan_header(scanner *s, qwen_tensor_list *list)
{
	bool metadata = false;
	qwen_status rc;

	if (s->p >= s->end || *s->p != '{')
		return fail_at(s, "it does not begin with a brace");
	s->p++;
	if (!accept(s, '}'))
	{
		do
			if ((rc = scan_member(s, list, &metadata)) != QWEN_OK)
				return rc;
		while (accept(s, ','));
		if (!accept(s, '}'))
			return fail_at(s, "a bracket is missing");
	}
	while (s->p < s->end && *s->p == ' ')
		s->p++;
	return s->p == s->end ? QWEN_OK : fail_at(s, "something follows the header");
}

/* ---- checks over all tensors ---- */

/* Empty tensors come before the one that begins at the same byte. */
static int
by_offset(const void *a, const void *b)
{
	const qwen_tensor *x = a, *y = b;

	if (x->begin != y->begin)
		return x->begin < y->begin ? -1 : 1;
	return (x->end > y->end) - (x->end < y->end);
}

static int
by_name(const void *a, const void *b)
{
	return strcmp(((const qwen_tensor *) a)->name, ((const qwen_tensor *) b)->name);
}

/* Every byte of the data area belongs to exactly one tensor: nothing hides between them. */
static qwen_status
check_layout(scanner *s, qwen_tensor_list *list, uint64_t data_bytes)
{
	uint64_t data = 8 + (uint64_t) (s->end - s->begin), at = 0; /* data: where the tensors begin in the file */

	if (list->n)
		qsort(list->items, list->n, sizeof(*list->items), by_offset);
	for (size_t i = 0; i < list->n; at = list->items[i++].end)
		if (list->items[i].begin != at)
			return fail_tensor(s, &list->items[i],
							   list->items[i].begin > at ? "there is a hole before it" : "it overlaps another");
	if (at != data_bytes)
	{
		qwen_fail(s->err, QWEN_CORRUPT, "\"%s\" is not a valid safetensors file", s->file);
		return qwen_fail_detail(
			s->err,
			"Its tensors need %llu bytes, but %llu bytes follow the header: the file ends at byte %llu, "
			"not at byte %llu.",
			(unsigned long long) at, (unsigned long long) data_bytes, (unsigned long long) (data + data_bytes),
			(unsigned long long) (data + at));
	}
	return QWEN_OK;
}

/* Sorts by name for the lookups to come, which also brings equal names together. */
static qwen_status
check_names(scanner *s, qwen_tensor_list *list)
{
	if (list->n)
		qsort(list->items, list->n, sizeof(*list->items), by_name);
	for (size_t i = 1; i < list->n; i++)
		if (!strcmp(list->items[i - 1].name, list->items[i].name))
			return fail_tensor(s, &list->items[i], "it occurs twice");
	return QWEN_OK;
}

qwen_status
qwen_safetensors_parse(const char *file, const char *header, size_t len, uint64_t data_bytes, qwen_tensor_list *out,
					   qwen_error *err)
{
	scanner s = {file, header, header, header + len, err};
	qwen_status rc;

	if ((rc = scan_header(&s, out)) != QWEN_OK || (rc = check_layout(&s, out, data_bytes)) != QWEN_OK)
		return rc;
	return check_names(&s, out);
}

void
qwen_tensor_list_free(qwen_tensor_list *list)
{
	for (size_t i = 0; i < list->n; i++)
		free(list->items[i].name);
	free(list->items);
	memset(list, 0, sizeof(*list));
}
