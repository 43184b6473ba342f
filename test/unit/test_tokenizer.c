/*
 * test_tokenizer.c
 *	  Text to ids and back against the reference's answers, on the real
 *	  vocabularies and on the bundled one; spans, streams, worst cases,
 *	  threads.
 */
#include "unit.h"

#include <pthread.h>

#include "engine/normalize.h"
#include "engine/pretokenize.h"
#include "golden_text.h"
#include "scratch.h"

static qwen_tokenizer *qwen3, *qwen2_5, *demo;

static int
open_all(void **state)
{
	char path[PATH_MAX];
	qwen_error err;

	if (qwen_tokenizer_open(golden_path("qwen3", path), &qwen3, &err) != QWEN_OK ||
		qwen_tokenizer_open(golden_path("qwen2.5", path), &qwen2_5, &err) != QWEN_OK ||
		qwen_tokenizer_open(DEMO_MODEL, &demo, &err) != QWEN_OK)
	{
		fprintf(stderr, "%s (%s)\n", err.message, err.detail);
		return -1;
	}
	return 0;
}

static int
close_all(void **state)
{
	qwen_tokenizer_close(qwen3);
	qwen_tokenizer_close(qwen2_5);
	qwen_tokenizer_close(demo);
	return 0;
}

/* The ids with added tokens recognised everywhere, or nowhere; to be freed. */
static qwen_ids
ids_of(const qwen_tokenizer *tok, const char *text, size_t len, bool added)
{
	const qwen_span whole = {0, len};
	qwen_ids ids = {0};
	qwen_error err;

	assert_ok(qwen_tokenize(tok, text, len, &whole, added ? 1 : 0, &ids, &err), err);
	return ids;
}

static qwen_bytes
text_of(const qwen_tokenizer *tok, const int32_t *ids, size_t n)
{
	qwen_bytes text = {0};
	qwen_error err;

	assert_true(qwen_bytes_reserve(&text, 1));
	assert_ok(qwen_detokenize(tok, ids, n, false, &text, &err), err);
	return text;
}

/* ---- the reference's answers ---- */

static void
check_tokens_row(const json_t *row, void *arg)
{
	const json_t *text = json_object_get(row, "text"), *decoded = json_object_get(row, "decoded");
	qwen_ids ids = ids_of(arg, json_string_value(text), json_string_length(text), true);
	qwen_bytes back;

	assert_ids(&ids, json_object_get(row, "ids"), json_string_value(text));
	back = text_of(arg, ids.data, ids.len);
	assert_int_equal(back.len, json_string_length(decoded));
	assert_memory_equal(back.data, json_string_value(decoded), back.len);
	qwen_bytes_free(&back);
	qwen_ids_free(&ids);
}

static void
golden_files_agree_both_ways(void **state)
{
	assert_int_equal(golden_lines("qwen3", "tokens.jsonl", check_tokens_row, qwen3), 1555);
	assert_int_equal(golden_lines("qwen2.5", "tokens.jsonl", check_tokens_row, qwen2_5), 1555);
}

typedef struct vector
{
	const char *text;
	const char *ids; /* as a JSON array without brackets */
} vector;

/* Of the specification; the same in Qwen2.5 and Qwen3. */
static const vector vectors[] = {
	{"hello", "14990"},
	{" hello", "23811"},
	{"Hello, world!", "9707,11,1879,0"},
	{"yes", "9693"},
	{"no", "2152"},
	{"Yes", "9454"},
	{"No", "2753"},
	{" yes", "9834"},
	{"true", "1866"},
	{"false", "3849"},
	{"1234567890", "16,17,18,19,20,21,22,23,24,15"},
	{"3.14", "18,13,16,19"},
	{"don't", "15007,944"},
	{"DON'T", "84641,17323"},
	{"I'll we've", "40,3278,582,3003"},
	{"'s", "594"},
	{"'S", "13272"},
	{"x's", "87,594"},
	{"你好，世界", "108386,3837,99489"},
	{"こんにちは", "89015"},
	{"Привет мир", "53645,26991,8178,137144"},
	{"مرحبا", "124122,29825,124671"},
	{"हिन्दी", "93948,42311,101,30484,99,43647"},
	{"ไทย", "125451"},
	{"straße", "135786"},
	{"İstanbul", "47780,45116"},
	{"\U0001F642", "145080"},
	{"\U0001F469\u200D\U0001F4BB", "145233,378,235,145851"},
	{"e\u0301 cafe\u0301", "963,51950"},
	{"cafe\u0301", "924,58858"},
	{"\u212B", "144044"},
	{"A\u030A", "144044"},
	{"\u2126", "144572"},
	{"\u1100\u1161", "19969"},
	{"\uAC00", "19969"},
	{"\u0958", "64704,5502,120"},
	{"\u0344", "136,230,53839"},
	{"\uFB01", "144300"},
	{"a\u0300b", "6362,65"},
	{"\u017F", "144815"},
	{"'\u017F x", "6,144815,856"},
	{" ", "220"},
	{"  ", "256"},
	{"   x", "256,856"},
	{"\n", "198"},
	{"\n\n", "271"},
	{" \n", "715"},
	{"\t", "197"},
	{"\r\n", "319"},
	{"a\n\n\nb", "64,1406,65"},
	{"a   b", "64,256,293"},
	{"  if x:\n    return 1\n", "220,421,856,510,262,470,220,16,198"},
	{"\u00A0x", "4102,87"},
	{"\u3000中", "22441,15946"},
	{"SELECT * FROM t WHERE id = 42;", "4858,353,4295,259,5288,877,284,220,19,17,26"},
	{"_x-y=z;", "3212,12034,82570,26"},
	{"!!!???", "12069,33015"},
	{"\u2460\u2461", "48312,254,48312,94"},
	{"½", "26062"},
	{"\u0663", "149,96"},
	{"１２３", "20109,24918,33517"},
	{"<|im_start|>user\nhi<|im_end|>\n", "151644,872,198,6023,151645,198"},
	{"<|im_start|>user\n\nhi<|im_end|>\n", "151644,872,271,6023,151645,198"},
	{"<|im_start", "27,91,318,4906"},
	/* U+180E is no white space, whatever PCRE2 says: the first space stays alone */
	{"  \u180E", "220,86089,254,236"},
};

static void
check_vector(const qwen_tokenizer *tok, const vector *v)
{
	char array[256];
	json_t *want;
	qwen_ids ids = ids_of(tok, v->text, strlen(v->text), true);

	snprintf(array, sizeof(array), "[%s]", v->ids);
	want = json_loads(array, 0, NULL);
	assert_ids(&ids, want, v->text);
	json_decref(want);
	qwen_ids_free(&ids);
}

static void
vectors_of_the_specification_agree(void **state)
{
	const vector only3[] = {
		{"a<think>b", "64,151667,65"},
		{"<|im_start|>assistant\n<think>\n\n</think>\n\n", "151644,77091,198,151667,271,151668,271"}};
	const vector only2_5 = {"a<think>b", "64,13708,766,51407"};
	qwen_ids nul = ids_of(qwen3, "\0", 1, true), fifty;
	const char fifty_a[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

	for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++)
	{
		check_vector(qwen3, &vectors[i]);
		check_vector(qwen2_5, &vectors[i]);
	}
	check_vector(qwen3, &only3[0]);
	check_vector(qwen3, &only3[1]);
	check_vector(qwen2_5, &only2_5);
	assert_int_equal(nul.len, 1);
	assert_int_equal(nul.data[0], 188);
	fifty = ids_of(qwen3, fifty_a, 50, true);
	assert_int_equal(fifty.len, 7);
	for (int i = 0; i < 6; i++)
		assert_int_equal(fifty.data[i], 69440);
	assert_int_equal(fifty.data[6], 5305);
	qwen_ids_free(&nul);
	qwen_ids_free(&fifty);
}

static void
ids_can_be_looked_up(void **state)
{
	size_t len;

	assert_int_equal(qwen_tokenizer_size(qwen3), 151669);
	assert_int_equal(qwen_tokenizer_size(qwen2_5), 151665);
	assert_int_equal(qwen_tokenizer_eos(qwen3), 151645);
	assert_int_equal(qwen_tokenizer_eos(demo), 4098);
	assert_int_equal(qwen_tokenizer_find(qwen3, "</think>"), 151668);
	assert_int_equal(qwen_tokenizer_find(qwen2_5, "</think>"), -1);
	assert_int_equal(qwen_tokenizer_find(demo, "<think>"), 4103);
	assert_true(qwen_tokenizer_is_special(qwen3, 151645));
	assert_false(qwen_tokenizer_is_special(qwen3, 151668));
	assert_false(qwen_tokenizer_is_special(qwen3, -1));
	assert_false(qwen_tokenizer_is_special(qwen3, 1 << 30));
	assert_memory_equal(qwen_tokenizer_token(qwen3, 23811, &len), " hello", 6);
	assert_int_equal(len, 6);
	assert_null(qwen_tokenizer_token(qwen3, 151669, &len));
	assert_null(qwen_tokenizer_token(qwen3, -1, &len));
}

/* ---- characters that the libraries' tables have otherwise than the reference ---- */

typedef struct pieces
{
	int n;
	size_t bytes;
} pieces;

static qwen_status
count_piece(void *arg, const char *piece, size_t len, qwen_error *err)
{
	pieces *p = arg;

	p->n++;
	p->bytes += len;
	return QWEN_OK;
}

/* The number of pieces that the usual pattern makes of a text. */
static int
pieces_of(const char *text)
{
	qwen_splitter *splitter;
	qwen_split_state *state;
	pieces p = {0};
	qwen_error err;

	assert_ok(qwen_splitter_open(qwen_default_pattern, strlen(qwen_default_pattern), &splitter, &err), err);
	state = qwen_split_state_open(splitter);
	assert_non_null(state);
	assert_ok(qwen_split(splitter, state, text, strlen(text), count_piece, &p, &err), err);
	assert_int_equal(p.bytes, strlen(text));
	qwen_split_state_close(state);
	qwen_splitter_close(splitter);
	return p.n;
}

static void
classes_are_those_of_unicode_16(void **state)
{
	assert_int_equal(pieces_of("ab"), 1);
	assert_int_equal(pieces_of("a1"), 2);
	assert_int_equal(pieces_of("a\u1C89"), 1);              /* letter, Unicode 16, three bytes */
	assert_int_equal(pieces_of("a\U00010D4A"), 1);          /* letter, Unicode 16 */
	assert_int_equal(pieces_of("a\U000323AF"), 1);          /* letter, Unicode 15 */
	assert_int_equal(pieces_of("\U0001E4F0\U0001E4F0"), 2); /* numbers, Unicode 15 */
	assert_int_equal(pieces_of("a\u0897"), 2);              /* mark, Unicode 16 */
	assert_int_equal(pieces_of("  \u180E"), 2);
	assert_int_equal(pieces_of("  \u2028"), 1);
}

static void
assert_form_c(const char *text, const char *want)
{
	qwen_bytes out = {0};
	qwen_error err;

	assert_ok(qwen_nfc_append(text, strlen(text), &out, &err), err);
	assert_string_equal(out.data, want);
	qwen_bytes_free(&out);
}

static void
form_c_is_that_of_unicode_9(void **state)
{
	assert_form_c("e\u0301\u0323", "\u1EB9\u0301");
	assert_form_c("q\u0307\u0323", "q\u0323\u0307");
	assert_form_c("\u1100\u1161\u11A8", "\uAC01");
	assert_form_c("\u2ADC", "\u2ADD\u0338"); /* composition exclusion */
	assert_form_c("\uFA09", "\u964D");
	/* marks of Unicode 11 and 15 stay where they are and keep others where they are */
	assert_form_c("\u0301\u09FE\u0316", "\u0301\u09FE\u0316");
	assert_form_c("a\U0001E08F\u0301", "a\U0001E08F\u0301");
	/* a pair of Unicode 13 does not compose, and what it became does not decompose */
	assert_form_c("\U00011935\U00011930", "\U00011935\U00011930");
	assert_form_c("\u2126\U00011938", "\u03A9\U00011938");
}

static void
plain_texts_are_in_form_c(void **state)
{
	static const char *const plain[] = {"", "ASCII", "Привет", "中文，テスト", "\uAC00\uAC01", "\U0001F642", "straße"};
	static const char *const other[] = {"e\u0301", "\u2126", "\u0344", "\u1100\u1161", "\U0001D15E"};

	for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++)
		assert_form_c(plain[i], plain[i]);
	for (size_t i = 0; i < sizeof(other) / sizeof(other[0]); i++)
		assert_false(qwen_nfc_is_plain(other[i], strlen(other[i])));
	assert_true(qwen_nfc_is_plain("ASCII, 中文", strlen("ASCII, 中文")));
}

/* ---- added tokens and spans ---- */

/* The number of times that an id occurs among the ids of a text with these spans. */
static int
occurrences(const qwen_tokenizer *tok, const char *text, const qwen_span *spans, size_t n_spans, int32_t id)
{
	qwen_ids ids = {0};
	qwen_error err;
	int n = 0;

	assert_ok(qwen_tokenize(tok, text, strlen(text), spans, n_spans, &ids, &err), err);
	for (size_t i = 0; i < ids.len; i++)
		n += ids.data[i] == id;
	qwen_ids_free(&ids);
	return n;
}

static void
tokens_outside_spans_are_text(void **state)
{
	/*                   0            13    19        29   34        44 */
	const char text[] = "<|im_start|>user\nhi<|im_end|>evil<|im_end|>\n";
	const qwen_span ends[] = {{0, 17}, {33, 44}}, cut[] = {{0, 11}, {34, 44}}, halves[] = {{0, 6}, {6, 12}};

	assert_int_equal(occurrences(qwen3, text, ends, 2, 151645), 1);
	assert_int_equal(occurrences(qwen3, text, ends, 2, 151644), 1);
	assert_int_equal(occurrences(qwen3, text, cut, 2, 151644), 0);
	assert_int_equal(occurrences(qwen3, text, cut, 2, 151645), 0);
	assert_int_equal(occurrences(qwen3, text, halves, 2, 151644), 0);
	assert_int_equal(occurrences(qwen3, text, NULL, 0, 151645), 0);
}

/* A span's edge does not divide ordinary text: the newline of the template joins the newline of the content. */
static void
runs_go_across_spans(void **state)
{
	const char text[] = "<|im_start|>user\n\nhi<|im_end|>\n";
	const qwen_span spans[] = {{0, 17}, {20, 31}};

	assert_int_equal(occurrences(qwen3, text, spans, 2, 271), 1);
	assert_int_equal(occurrences(qwen3, text, spans, 2, 151645), 1);
}

/* Tokens that are matched after normalisation, under spans that were given before it. */
static void
normalized_tokens_respect_spans(void **state)
{
	const char plain[] = "e\u0301<think>x</think>";
	const char joined[] = "\u2126<think>\u0338";
	const char outside[] = "<think>e\u0301<think>e\u0301<think>";
	qwen_span one = {0, strlen(plain)}, template = {0, strlen("\u2126<think>")};
	qwen_span middle = {10, 17};

	assert_int_equal(occurrences(demo, plain, &one, 1, 4103), 1);
	assert_int_equal(occurrences(demo, plain, &one, 1, 4104), 1);
	assert_int_equal(occurrences(demo, plain, NULL, 0, 4103), 0);
	/* the ">" joins the mark that follows it outside the span */
	assert_int_equal(occurrences(demo, joined, &template, 1, 4103), 0);
	assert_int_equal(occurrences(demo, outside, &middle, 1, 4103), 1);
	/* a literal token there is matched before anything is joined */
	one.end = 12;
	assert_int_equal(occurrences(demo, "<|im_start|>\u0338", &one, 1, 4097), 1);
}

static void
wrong_input_is_refused(void **state)
{
	const qwen_span backwards[] = {{2, 4}, {0, 2}}, outside[] = {{0, 5}};
	qwen_ids ids = {0};
	qwen_bytes text = {0};
	qwen_error err;
	const int32_t undefined[] = {14990, 151669}, negative[] = {-1};

	assert_int_equal(qwen_tokenize(qwen3, "ab\xC3", 3, NULL, 0, &ids, &err), QWEN_INVALID);
	assert_non_null(strstr(err.detail, "offset 2"));
	assert_int_equal(qwen_tokenize(qwen3, "\xED\xA0\x80", 3, NULL, 0, &ids, &err), QWEN_INVALID);
	assert_int_equal(qwen_tokenize(qwen3, "\xF4\x90\x80\x80", 4, NULL, 0, &ids, &err), QWEN_INVALID);
	assert_int_equal(qwen_tokenize(qwen3, "\xC0\x80", 2, NULL, 0, &ids, &err), QWEN_INVALID);
	assert_int_equal(qwen_tokenize(qwen3, "abcd", 4, backwards, 2, &ids, &err), QWEN_INTERNAL);
	assert_int_equal(qwen_tokenize(qwen3, "abcd", 4, outside, 1, &ids, &err), QWEN_INTERNAL);
	assert_int_equal(ids.len, 0);
	assert_int_equal(qwen_detokenize(qwen3, undefined, 2, false, &text, &err), QWEN_INVALID);
	assert_non_null(strstr(err.message, "151669"));
	assert_int_equal(qwen_detokenize(qwen3, negative, 1, false, &text, &err), QWEN_INVALID);
	qwen_ids_free(&ids);
	qwen_bytes_free(&text);
}

/* ---- ids to text ---- */

/* The ids of the single bytes, by looking through the vocabulary. */
static void
byte_ids(int32_t *out)
{
	size_t len;

	for (int32_t id = 0; id < 4096; id++)
	{
		const char *bytes = qwen_tokenizer_token(demo, id, &len);

		if (bytes && len == 1)
			out[(unsigned char) bytes[0]] = id;
	}
}

#define FFFD "\uFFFD"

static void
invalid_bytes_are_replaced_as_in_python(void **state)
{
	/* bytes and what b"…".decode("utf-8", "replace") gives */
	static const vector cases[] = {
		{"a\xFF", "a" FFFD},
		{"\x80\x80", FFFD FFFD},
		{"\xC3", FFFD},
		{"\xC3(", FFFD "("},
		{"\xE2\x82", FFFD},
		{"\xE2\x82x", FFFD "x"},
		{"\xE2(\xA1", FFFD "(" FFFD},
		{"\xF0\x9F\x99", FFFD},
		{"\xF0\x9F\x99\xC3\xA9", FFFD "\u00E9"},
		{"\xF0\x80\x80\x80", FFFD FFFD FFFD FFFD},
		{"\xE0\x80\x80", FFFD FFFD FFFD},
		{"\xED\xA0\x80", FFFD FFFD FFFD},
		{"\xF4\x90\x80\x80", FFFD FFFD FFFD FFFD},
		{"\xF5\x80", FFFD FFFD},
		{"\xC0\xAF", FFFD FFFD},
		{"\xF0\x9F\x99\x82", "\U0001F642"},
		{"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF", FFFD FFFD FFFD FFFD},
	};
	int32_t of[256], ids[16];

	byte_ids(of);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		size_t n = strlen(cases[i].text);
		qwen_bytes text;

		for (size_t k = 0; k < n; k++)
			ids[k] = of[(unsigned char) cases[i].text[k]];
		text = text_of(demo, ids, n);
		assert_string_equal(text.data ? text.data : "", cases[i].ids);
		qwen_bytes_free(&text);
	}
}

/* Never half a character, and in the end the same as decoding all at once. */
static void
streams_decode_like_the_whole(void **state)
{
	uint64_t seed = 1;

	for (int round = 0; round < 300; round++)
	{
		int32_t ids[64];
		qwen_detokenizer d = {0};
		qwen_bytes streamed = {0}, whole;

		for (int i = 0; i < 64; i++)
		{
			seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
			ids[i] = (int32_t) ((seed >> 33) % (round % 2 ? 256 : 4105)); /* odd rounds: mostly bytes beyond ASCII */
		}
		whole = text_of(demo, ids, 64);
		for (int i = 0; i < 64; i++)
		{
			size_t before = streamed.len;
			json_t *valid;

			assert_true(qwen_detokenizer_push(&d, demo, ids[i], false, &streamed));
			valid = json_stringn(streamed.len ? streamed.data + before : "", streamed.len - before);
			assert_non_null(valid); /* jansson takes nothing but UTF-8 */
			json_decref(valid);
		}
		assert_true(qwen_detokenizer_finish(&d, &streamed));
		assert_int_equal(streamed.len, whole.len);
		assert_memory_equal(streamed.data, whole.data, whole.len);
		qwen_bytes_free(&streamed);
		qwen_bytes_free(&whole);
	}
}

static void
special_tokens_can_be_left_out(void **state)
{
	const char text[] = "<|im_start|>a<think>b<|im_end|>";
	qwen_ids ids = ids_of(qwen3, text, strlen(text), true);
	qwen_bytes out = {0};
	qwen_error err;

	assert_ok(qwen_detokenize(qwen3, ids.data, ids.len, true, &out, &err), err);
	assert_string_equal(out.data, "a<think>b");
	qwen_bytes_free(&out);
	qwen_ids_free(&ids);
}

/* ---- the worst a megabyte can be ---- */

#define MEGABYTE ((size_t) 1 << 20)

/* Fills a buffer of a megabyte with repetitions of a word and tokenises it. */
static qwen_ids
ids_of_megabyte(const char *word, char *buffer)
{
	size_t n = strlen(word), len = MEGABYTE / n * n;

	for (size_t i = 0; i < len; i++)
		buffer[i] = word[i % n];
	return ids_of(qwen3, buffer, len, true);
}

static void
a_megabyte_of_anything_is_tokenised(void **state)
{
	/* ids by the reference */
	static const struct
	{
		const char *word;
		size_t n_ids;
	} cases[] = {
		{"a", 131072},  {" ", 8192},     {"\n", 32768},  {"\r\n", 131072},        {"1", 1048576},
		{"ab", 524288}, {"<|", 1048576}, {"中", 349525}, {"<|im_start|>", 87381}, {"\u00A0", 65536},
	};
	char *buffer = malloc(MEGABYTE);

	assert_non_null(buffer);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		qwen_ids ids = ids_of_megabyte(cases[i].word, buffer);

		assert_int_equal(ids.len, cases[i].n_ids);
		qwen_ids_free(&ids);
	}
	free(buffer);
}

/* Marks in the wrong order: half of them have to pass the other half. */
static void
a_megabyte_of_marks_is_ordered(void **state)
{
	char *buffer = malloc(MEGABYTE);
	qwen_bytes out = {0};
	qwen_error err;
	const size_t n = MEGABYTE / 4;

	assert_non_null(buffer);
	for (size_t i = 0; i < n; i++)
		memcpy(buffer + 4 * i, "\u0301\u0316", 4);
	assert_ok(qwen_nfc_append(buffer, 4 * n, &out, &err), err);
	assert_int_equal(out.len, 4 * n);
	for (size_t i = 0; i < 2 * n; i++)
		assert_memory_equal(out.data + 2 * i, i < n ? "\u0316" : "\u0301", 2);
	qwen_bytes_free(&out);
	free(buffer);
}

/* Nested quantifiers that fail only at the end: the pattern's limits stop it, the text is refused, nothing hangs. */
static void
a_hostile_pattern_is_stopped(void **state)
{
	static const char pattern[] = "(a+)+[bc]";
	qwen_splitter *splitter;
	qwen_split_state *split;
	char text[4096];
	pieces p = {0};
	qwen_error err;

	memset(text, 'a', sizeof(text));
	assert_ok(qwen_splitter_open(pattern, strlen(pattern), &splitter, &err), err);
	split = qwen_split_state_open(splitter);
	assert_int_equal(qwen_split(splitter, split, text, sizeof(text), count_piece, &p, &err), QWEN_TOO_LONG);
	qwen_split_state_close(split);
	qwen_splitter_close(splitter);
	assert_int_equal(qwen_splitter_open("(", 1, &splitter, &err), QWEN_UNSUPPORTED);
	assert_non_null(strstr(err.detail, "parenthesis"));
}

/* Text that the pattern does not cover, and empty matches, become pieces too. */
static void
the_pieces_cover_the_text(void **state)
{
	static const char *const patterns[] = {"b", "x*", "\\b", "(?=b)", "a|"};

	for (size_t i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++)
	{
		qwen_splitter *splitter;
		qwen_split_state *split;
		pieces p = {0};
		qwen_error err;
		const char text[] = "aab xx \u4E2D\u00E9b";

		assert_ok(qwen_splitter_open(patterns[i], strlen(patterns[i]), &splitter, &err), err);
		split = qwen_split_state_open(splitter);
		assert_ok(qwen_split(splitter, split, text, strlen(text), count_piece, &p, &err), err);
		assert_int_equal(p.bytes, strlen(text));
		qwen_split_state_close(split);
		qwen_splitter_close(splitter);
	}
}

/* ---- many threads, one tokenizer ---- */

static void *
tokenize_often(void *arg)
{
	const char text[] = "Two threads, one tokenizer: e\u0301 你好 <|im_end|> \u180E 1234 don't";
	qwen_ids first = ids_of(qwen3, text, strlen(text), true);
	bool *same = arg;

	*same = first.len > 0;
	for (int i = 0; i < 500; i++)
	{
		qwen_ids again = ids_of(qwen3, text, strlen(text), true);

		*same = *same && again.len == first.len && !memcmp(again.data, first.data, first.len * sizeof(int32_t));
		qwen_ids_free(&again);
	}
	qwen_ids_free(&first);
	return NULL;
}

static void
threads_share_a_tokenizer(void **state)
{
	pthread_t threads[2];
	bool same[2] = {false, false};

	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, tokenize_often, &same[i]), 0);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_true(same[0] && same[1]);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(golden_files_agree_both_ways),
		cmocka_unit_test(vectors_of_the_specification_agree),
		cmocka_unit_test(ids_can_be_looked_up),
		cmocka_unit_test(classes_are_those_of_unicode_16),
		cmocka_unit_test(form_c_is_that_of_unicode_9),
		cmocka_unit_test(plain_texts_are_in_form_c),
		cmocka_unit_test(tokens_outside_spans_are_text),
		cmocka_unit_test(runs_go_across_spans),
		cmocka_unit_test(normalized_tokens_respect_spans),
		cmocka_unit_test(wrong_input_is_refused),
		cmocka_unit_test(invalid_bytes_are_replaced_as_in_python),
		cmocka_unit_test(streams_decode_like_the_whole),
		cmocka_unit_test(special_tokens_can_be_left_out),
		cmocka_unit_test(a_megabyte_of_anything_is_tokenised),
		cmocka_unit_test(a_megabyte_of_marks_is_ordered),
		cmocka_unit_test(a_hostile_pattern_is_stopped),
		cmocka_unit_test(the_pieces_cover_the_text),
		cmocka_unit_test(threads_share_a_tokenizer),
	};

	return cmocka_run_group_tests_name("tokenizer", tests, open_all, close_all);
}
