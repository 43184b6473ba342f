/*
 * pretokenize.c
 *	  The checkpoint's split pattern, by PCRE2.
 *
 * The pattern is the checkpoint's own text, written for the reference's regex
 * engine.  For the constructs in use both engines agree, except in their
 * tables of characters: PCRE2 10.42 knows Unicode 14, the reference Unicode
 * 16, and PCRE2's \s contains U+180E, which has lost the White_Space property
 * long ago.  Rewriting patterns to make up for that would mean parsing them.
 * Instead the match runs over a copy of the text in which each character that
 * PCRE2 would put into the wrong class stands replaced by one of the right
 * class and of the same length in bytes; the pieces are cut from the original.
 * Such characters are so rare that the copy is hardly ever made.
 *
 * A hostile pattern is held by match, heap and depth limits, which grow with
 * the text where an honest pattern needs it: \s*[\r\n]+ tries every space of a
 * long run once.
 */
#include "pretokenize.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <pcre2.h>

#include "utf8.h"

#define MAX_PATTERN 4096
#define MAX_NESTING 50
#define BASE_MATCH_LIMIT 1000000u
#define HEAP_LIMIT_KIB 65536
#define JIT_STACK_START (32 * 1024)
#define JIT_STACK_MAX (8 * 1024 * 1024)

const char qwen_default_pattern[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
									" ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

struct qwen_splitter
{
	pcre2_code *code;
};

struct qwen_split_state
{
	pcre2_match_context *context;
	pcre2_match_data *match;
	pcre2_jit_stack *stack; /* NULL until a match has asked for more than the machine's */
};

/* ---- characters that PCRE2 would put into the wrong class ---- */

typedef enum char_class
{
	CLASS_LETTER,
	CLASS_NUMBER,
	CLASS_MARK,
	CLASS_OTHER
} char_class;

/* A range of code points, all of the same length in UTF-8, and the class that they have in Unicode 16. */
typedef struct class_range
{
	int32_t first;
	int32_t last;
	char_class class;
} class_range;

/* What Unicode 15, 15.1 and 16 have added to L, N and M, and U+180E; sorted. */
static const class_range reclassified[] = {
	{0x0897, 0x0897, CLASS_MARK},     {0x0CF3, 0x0CF3, CLASS_MARK},     {0x0ECE, 0x0ECE, CLASS_MARK},
	{0x180E, 0x180E, CLASS_OTHER},    {0x1C89, 0x1C8A, CLASS_LETTER},   {0xA7CB, 0xA7CD, CLASS_LETTER},
	{0xA7DA, 0xA7DC, CLASS_LETTER},   {0x105C0, 0x105F3, CLASS_LETTER}, {0x10D40, 0x10D49, CLASS_NUMBER},
	{0x10D4A, 0x10D65, CLASS_LETTER}, {0x10D69, 0x10D6D, CLASS_MARK},   {0x10D6F, 0x10D85, CLASS_LETTER},
	{0x10EC2, 0x10EC4, CLASS_LETTER}, {0x10EFC, 0x10EFF, CLASS_MARK},   {0x1123F, 0x11240, CLASS_LETTER},
	{0x11241, 0x11241, CLASS_MARK},   {0x11380, 0x11389, CLASS_LETTER}, {0x1138B, 0x1138B, CLASS_LETTER},
	{0x1138E, 0x1138E, CLASS_LETTER}, {0x11390, 0x113B5, CLASS_LETTER}, {0x113B7, 0x113B7, CLASS_LETTER},
	{0x113B8, 0x113C0, CLASS_MARK},   {0x113C2, 0x113C2, CLASS_MARK},   {0x113C5, 0x113C5, CLASS_MARK},
	{0x113C7, 0x113CA, CLASS_MARK},   {0x113CC, 0x113D0, CLASS_MARK},   {0x113D1, 0x113D1, CLASS_LETTER},
	{0x113D2, 0x113D2, CLASS_MARK},   {0x113D3, 0x113D3, CLASS_LETTER}, {0x113E1, 0x113E2, CLASS_MARK},
	{0x116D0, 0x116E3, CLASS_NUMBER}, {0x11BC0, 0x11BE0, CLASS_LETTER}, {0x11BF0, 0x11BF9, CLASS_NUMBER},
	{0x11F00, 0x11F01, CLASS_MARK},   {0x11F02, 0x11F02, CLASS_LETTER}, {0x11F03, 0x11F03, CLASS_MARK},
	{0x11F04, 0x11F10, CLASS_LETTER}, {0x11F12, 0x11F33, CLASS_LETTER}, {0x11F34, 0x11F3A, CLASS_MARK},
	{0x11F3E, 0x11F42, CLASS_MARK},   {0x11F50, 0x11F59, CLASS_NUMBER}, {0x11F5A, 0x11F5A, CLASS_MARK},
	{0x1342F, 0x1342F, CLASS_LETTER}, {0x13440, 0x13440, CLASS_MARK},   {0x13441, 0x13446, CLASS_LETTER},
	{0x13447, 0x13455, CLASS_MARK},   {0x13460, 0x143FA, CLASS_LETTER}, {0x16100, 0x1611D, CLASS_LETTER},
	{0x1611E, 0x1612F, CLASS_MARK},   {0x16130, 0x16139, CLASS_NUMBER}, {0x16D40, 0x16D6C, CLASS_LETTER},
	{0x16D70, 0x16D79, CLASS_NUMBER}, {0x18CFF, 0x18CFF, CLASS_LETTER}, {0x1B132, 0x1B132, CLASS_LETTER},
	{0x1B155, 0x1B155, CLASS_LETTER}, {0x1CCF0, 0x1CCF9, CLASS_NUMBER}, {0x1D2C0, 0x1D2D3, CLASS_NUMBER},
	{0x1DF25, 0x1DF2A, CLASS_LETTER}, {0x1E030, 0x1E06D, CLASS_LETTER}, {0x1E08F, 0x1E08F, CLASS_MARK},
	{0x1E4D0, 0x1E4EB, CLASS_LETTER}, {0x1E4EC, 0x1E4EF, CLASS_MARK},   {0x1E4F0, 0x1E4F9, CLASS_NUMBER},
	{0x1E5D0, 0x1E5ED, CLASS_LETTER}, {0x1E5EE, 0x1E5EF, CLASS_MARK},   {0x1E5F0, 0x1E5F0, CLASS_LETTER},
	{0x1E5F1, 0x1E5FA, CLASS_NUMBER}, {0x2B739, 0x2B739, CLASS_LETTER}, {0x2EBF0, 0x2EE5D, CLASS_LETTER},
	{0x31350, 0x323AF, CLASS_LETTER},
};

/* Of each class one character of three bytes and one of four, older than any PCRE2 in use. */
static const char stand_ins[][2][5] = {
	[CLASS_LETTER] = {"\u4E00", "\U00020000"},
	[CLASS_NUMBER] = {"\u2160", "\U0001D7CE"},
	[CLASS_MARK] = {"\u0900", "\U0001D167"},
	[CLASS_OTHER] = {"\u2060", "\U000E0001"},
};

/* The stand-in of a code point, or NULL when it needs none. */
static const char *
find_stand_in(int32_t cp)
{
	size_t low = 0, high = sizeof(reclassified) / sizeof(reclassified[0]);

	while (low < high)
	{
		size_t mid = (low + high) / 2;
		const class_range *r = &reclassified[mid];

		if (cp > r->last)
			low = mid + 1;
		else if (cp < r->first)
			high = mid;
		else
			return stand_ins[r->class][cp >= 0x10000];
	}
	return NULL;
}

/*
 * The text to match: the text itself, or a copy with stand-ins in *copy (to be freed by the caller).  NULL: memory is
 * short.
 */
static const char *
matchable(const char *text, size_t len, char **copy)
{
	const unsigned char *p = (const unsigned char *) text;
	size_t used;

	*copy = NULL;
	for (size_t at = 0; at < len; at += used)
	{
		const char *instead;

		used = 1;
		if (p[at] < 0xE0) /* two-byte characters need none, their bytes can be passed one by one */
			continue;
		instead = find_stand_in(qwen_utf8_decode(p + at, &used));
		if (!instead)
			continue;
		if (!*copy)
		{
			*copy = malloc(len);
			if (!*copy)
				return NULL;
			memcpy(*copy, text, len);
		}
		memcpy(*copy + at, instead, used);
	}
	return *copy ? *copy : text;
}

/* ---- opening ---- */

static qwen_status
fail_pattern(int code, size_t offset, qwen_error *err)
{
	PCRE2_UCHAR message[128] = "";

	pcre2_get_error_message(code, message, sizeof(message));
	qwen_fail(err, QWEN_UNSUPPORTED, "the tokenizer's split pattern could not be compiled");
	return qwen_fail_detail(err, "At offset %zu: %s.", offset, (const char *) message);
}

qwen_status
qwen_splitter_open(const char *pattern, size_t len, qwen_splitter **out, qwen_error *err)
{
	pcre2_compile_context *context;
	pcre2_code *code;
	int error;
	PCRE2_SIZE offset;

	*out = NULL;
	if (len > MAX_PATTERN)
		return qwen_fail(err, QWEN_UNSUPPORTED, "the tokenizer's split pattern is longer than %d bytes", MAX_PATTERN);
	context = pcre2_compile_context_create(NULL);
	if (!context)
		return qwen_fail_memory(err, sizeof(**out));
	pcre2_set_parens_nest_limit(context, MAX_NESTING);
	code = pcre2_compile((PCRE2_SPTR) pattern, len, PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
						 context);
	pcre2_compile_context_free(context);
	if (!code)
		return fail_pattern(error, offset, err);
	*out = malloc(sizeof(**out));
	if (!*out)
	{
		pcre2_code_free(code);
		return qwen_fail_memory(err, sizeof(**out));
	}
	(*out)->code = code;
	/* Where the machine forbids generated code the pattern is interpreted: slower, with the same answers. */
	(void) pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
	return QWEN_OK;
}

void
qwen_splitter_close(qwen_splitter *splitter)
{
	if (!splitter)
		return;
	pcre2_code_free(splitter->code);
	free(splitter);
}

qwen_split_state *
qwen_split_state_open(const qwen_splitter *splitter)
{
	qwen_split_state *state = calloc(1, sizeof(*state));

	if (!state)
		return NULL;
	state->context = pcre2_match_context_create(NULL);
	state->match = pcre2_match_data_create(1, NULL);
	if (!state->context || !state->match)
	{
		qwen_split_state_close(state);
		return NULL;
	}
	pcre2_set_heap_limit(state->context, HEAP_LIMIT_KIB);
	return state;
}

void
qwen_split_state_close(qwen_split_state *state)
{
	if (!state)
		return;
	pcre2_match_data_free(state->match);
	pcre2_match_context_free(state->context);
	pcre2_jit_stack_free(state->stack);
	free(state);
}

/* ---- splitting ---- */

/* A limit was reached: the text is too long for this pattern, or the pattern is hostile. */
static qwen_status
fail_match(int code, size_t offset, qwen_error *err)
{
	PCRE2_UCHAR message[128] = "";

	if (code == PCRE2_ERROR_NOMEMORY)
		return qwen_fail_memory(err, JIT_STACK_MAX);
	pcre2_get_error_message(code, message, sizeof(message));
	qwen_fail(err, QWEN_TOO_LONG, "the text could not be split by the tokenizer's pattern");
	return qwen_fail_detail(err, "At byte %zu: %s.", offset, (const char *) message);
}

/* One match from `at` on; retried with a stack of our own when the machine's was too small for the generated code. */
static int
match_at(const qwen_splitter *splitter, qwen_split_state *state, const char *text, size_t len, size_t at)
{
	int rc = pcre2_match(splitter->code, (PCRE2_SPTR) text, len, at, PCRE2_NO_UTF_CHECK, state->match, state->context);

	if (rc != PCRE2_ERROR_JIT_STACKLIMIT || state->stack)
		return rc;
	state->stack = pcre2_jit_stack_create(JIT_STACK_START, JIT_STACK_MAX, NULL);
	if (!state->stack)
		return PCRE2_ERROR_NOMEMORY;
	pcre2_jit_stack_assign(state->context, NULL, state->stack);
	return pcre2_match(splitter->code, (PCRE2_SPTR) text, len, at, PCRE2_NO_UTF_CHECK, state->match, state->context);
}

/* The loop of qwen_split over the text as it is matched; pieces are cut from the original at the same offsets. */
static qwen_status
split_matches(const qwen_splitter *splitter, qwen_split_state *state, const char *subject, const char *text, size_t len,
			  qwen_piece_fn fn, void *arg, qwen_error *err)
{
	const PCRE2_SIZE *found = pcre2_get_ovector_pointer(state->match);
	size_t done = 0, at = 0; /* [done, at) was passed over by empty matches */

	while (at < len)
	{
		int rc = match_at(splitter, state, subject, len, at);
		size_t begin, end;

		if (rc == PCRE2_ERROR_NOMATCH)
			break;
		if (rc < 0)
			return fail_match(rc, at, err);
		begin = found[0];
		end = found[1];
		if (end <= begin) /* empty, or \K has turned it round: step over one character */
		{
			at = end > at ? end : at;
			at += at < len ? 1 : 0;
			while (at < len && ((unsigned char) text[at] & 0xC0) == 0x80)
				at++;
			continue;
		}
		if (begin > done && fn(arg, text + done, begin - done, err) != QWEN_OK)
			return err->status;
		if (fn(arg, text + begin, end - begin, err) != QWEN_OK)
			return err->status;
		done = at = end;
	}
	return done < len ? fn(arg, text + done, len - done, err) : QWEN_OK;
}

qwen_status
qwen_split(const qwen_splitter *splitter, qwen_split_state *state, const char *text, size_t len, qwen_piece_fn fn,
		   void *arg, qwen_error *err)
{
	char *copy;
	const char *subject = matchable(text, len, &copy);
	uint64_t limit = BASE_MATCH_LIMIT + 8 * (uint64_t) len;
	qwen_status status;

	if (!subject)
		return qwen_fail_memory(err, len);
	pcre2_set_match_limit(state->context, limit < UINT32_MAX ? (uint32_t) limit : UINT32_MAX);
	pcre2_set_depth_limit(state->context, limit < UINT32_MAX ? (uint32_t) limit : UINT32_MAX);
	status = split_matches(splitter, state, subject, text, len, fn, arg, err);
	free(copy);
	return status;
}
