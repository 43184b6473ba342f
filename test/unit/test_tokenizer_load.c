/*
 * test_tokenizer_load.c
 *	  The files of a tokenizer: both forms give the same, and what is broken,
 *	  hostile or of another kind is refused with its reason.
 */
#include "unit.h"

#include "golden_text.h"
#include "scratch.h"

#include "engine/utf8.h"

/* ---- small tokenizers, made here ---- */

/* The symbol of a byte, as UTF-8. */
static const char *
symbol(int byte, char *out)
{
	int32_t cp = byte;
	size_t n;

	if (byte <= 0x20)
		cp = 0x100 + byte;
	else if (byte >= 0x7F && byte <= 0xA0)
		cp = 0x121 + byte - 0x7F;
	else if (byte == 0xAD)
		cp = 0x143;
	n = qwen_utf8_encode(cp, (unsigned char *) out);
	out[n] = '\0';
	return out;
}

/* The parts of a tokenizer.json that the pipeline uses: 256 bytes, "ab" as 256, "<x>" as 257. */
static json_t *
small_tokenizer(void)
{
	json_t *vocab = json_object();
	json_t *root;
	char s[8];

	for (int b = 0; b < 256; b++)
		json_object_set_new(vocab, symbol(b, s), json_integer(b));
	json_object_set_new(vocab, "ab", json_integer(256));
	root = json_pack("{s:{s:s}, s:{s:s, s:[{s:s, s:{s:s}, s:s, s:b}, {s:s, s:b, s:b}]}, s:{s:s},"
					 " s:{s:s, s:o, s:[s]}, s:[{s:i, s:s, s:b, s:b}]}",
					 "normalizer", "type", "NFC", "pre_tokenizer", "type", "Sequence", "pretokenizers", "type", "Split",
					 "pattern", "Regex", "\\s+|\\S+", "behavior", "Isolated", "invert", 0, "type", "ByteLevel",
					 "add_prefix_space", 0, "use_regex", 0, "decoder", "type", "ByteLevel", "model", "type", "BPE",
					 "vocab", vocab, "merges", "a b", "added_tokens", "id", 257, "content", "<x>", "special", 1,
					 "normalized", 0);
	assert_non_null(root);
	return root;
}

static qwen_status
parse(const json_t *root, qwen_tokenizer **out, qwen_error *err)
{
	char *text = json_dumps(root, JSON_COMPACT);
	qwen_tokenizer_files files = {.tokenizer = {text, strlen(text)}};
	qwen_status rc = qwen_tokenizer_parse(&files, out, err);

	free(text);
	return rc;
}

/* Follows a path of keys and indexes ("model.vocab", "added_tokens.0.id") to the last but one, and gives that key. */
static json_t *
walk(json_t *at, const char *path, char *key)
{
	const char *dot;

	while ((dot = strchr(path, '.')) != NULL)
	{
		snprintf(key, 64, "%.*s", (int) (dot - path), path);
		at = json_is_array(at) ? json_array_get(at, (size_t) atoi(key)) : json_object_get(at, key);
		path = dot + 1;
	}
	snprintf(key, 64, "%s", path);
	assert_non_null(at);
	return at;
}

/* The small tokenizer with one value replaced, or removed when value is NULL. */
static json_t *
changed(const char *path, const char *value)
{
	json_t *root = small_tokenizer(), *at;
	char key[64];

	at = walk(root, path, key);
	if (!value)
		json_object_del(at, key);
	else if (json_is_array(at))
		assert_int_equal(json_array_set_new(at, (size_t) atoi(key), json_loads(value, JSON_DECODE_ANY, NULL)), 0);
	else
		assert_int_equal(json_object_set_new(at, key, json_loads(value, JSON_DECODE_ANY, NULL)), 0);
	return root;
}

/* ---- what is accepted ---- */

static void
assert_tokenizes(const qwen_tokenizer *tok, const char *text, const int32_t *want, size_t n)
{
	const qwen_span whole = {0, strlen(text)};
	qwen_ids ids = {0};
	qwen_error err;

	assert_ok(qwen_tokenize(tok, text, strlen(text), &whole, 1, &ids, &err), err);
	assert_int_equal(ids.len, n);
	assert_memory_equal(ids.data, want, n * sizeof(int32_t));
	qwen_ids_free(&ids);
}

static void
a_small_tokenizer_works(void **state)
{
	json_t *root = small_tokenizer();
	qwen_tokenizer *tok;
	qwen_error err;
	const int32_t want[] = {256, 'b', ' ', 257, 0xC3, 0x84};

	assert_ok(parse(root, &tok, &err), err);
	assert_tokenizes(tok, "abb <x>A\u0308", want, 6);
	assert_int_equal(qwen_tokenizer_size(tok), 258);
	assert_int_equal(qwen_tokenizer_eos(tok), -1);
	qwen_tokenizer_close(tok);
	json_decref(root);
}

/* What Python writes for "no limit" is no number of 64 bits, and must not keep the file from being read. */
static void
the_eos_token_is_found(void **state)
{
	static const char *const configs[] = {
		"{\"model_max_length\": 1000000000000000019884624838656, \"eos_token\": \"<x>\"}",
		"{\"eos_token\": {\"content\": \"<x>\", \"lstrip\": false}}",
	};
	json_t *root = small_tokenizer();
	char *text = json_dumps(root, JSON_COMPACT);
	qwen_error err;

	for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++)
	{
		qwen_tokenizer_files files = {.tokenizer = {text, strlen(text)}, .config = {configs[i], strlen(configs[i])}};
		qwen_tokenizer *tok;

		assert_ok(qwen_tokenizer_parse(&files, &tok, &err), err);
		assert_int_equal(qwen_tokenizer_eos(tok), 257);
		qwen_tokenizer_close(tok);
	}
	free(text);
	json_decref(root);
}

static void
other_spellings_are_accepted(void **state)
{
	static const char *const same[][2] = {
		{"model.merges", "[[\"a\", \"b\"]]"},
		{"model.merges", "[\"a b\", [\"a\", \"b\"]]"},
		{"model.unk_token", "null"},
		{"model.continuing_subword_prefix", "\"\""},
		{"model.byte_fallback", "false"},
		{"model.ignore_merges", "false"},
		{"model.dropout", "0.0"},
		{"added_tokens.0.lstrip", "false"},
		{"decoder", "null"},
		{"post_processor", "{\"type\": \"TemplateProcessing\"}"},
		{"truncation", "{\"max_length\": 3}"},
	};
	const int32_t want[] = {256, 257};

	for (size_t i = 0; i < sizeof(same) / sizeof(same[0]); i++)
	{
		json_t *root = changed(same[i][0], same[i][1]);
		qwen_tokenizer *tok;
		qwen_error err;

		assert_ok(parse(root, &tok, &err), err);
		assert_tokenizes(tok, "ab<x>", want, 2);
		qwen_tokenizer_close(tok);
		json_decref(root);
	}
}

static void
without_a_normalizer_text_stays(void **state)
{
	json_t *root = changed("normalizer", "null");
	qwen_tokenizer *tok;
	qwen_error err;
	const int32_t want[] = {'A', 0xCC, 0x88};

	assert_ok(parse(root, &tok, &err), err);
	assert_tokenizes(tok, "A\u0308", want, 3);
	qwen_tokenizer_close(tok);
	json_decref(root);
}

/* ---- what is refused ---- */

typedef struct refusal
{
	const char *path;
	const char *value;
	qwen_status status;
	const char *message; /* a part of it */
} refusal;

static const refusal refusals[] = {
	/* of another kind */
	{"normalizer", "{\"type\": \"Lowercase\"}", QWEN_UNSUPPORTED, "normalizer \"Lowercase\""},
	{"pre_tokenizer", "{\"type\": \"Whitespace\"}", QWEN_UNSUPPORTED, "pre-tokenizer \"Whitespace\""},
	{"pre_tokenizer", NULL, QWEN_UNSUPPORTED, "pre-tokenizer"},
	{"pre_tokenizer.pretokenizers", "[]", QWEN_UNSUPPORTED, "pre-tokenizer"},
	{"pre_tokenizer.pretokenizers.0.behavior", "\"Removed\"", QWEN_UNSUPPORTED, "split behavior \"Removed\""},
	{"pre_tokenizer.pretokenizers.0.invert", "true", QWEN_UNSUPPORTED, "\"invert\""},
	{"pre_tokenizer.pretokenizers.0.pattern", "{\"String\": \" \"}", QWEN_UNSUPPORTED, "Split"},
	{"pre_tokenizer.pretokenizers.0.pattern.Regex", "\"(\"", QWEN_UNSUPPORTED, "split pattern"},
	{"pre_tokenizer.pretokenizers.0.type", "\"Metaspace\"", QWEN_UNSUPPORTED, "\"Metaspace\""},
	{"pre_tokenizer.pretokenizers.1.use_regex", NULL, QWEN_UNSUPPORTED, "\"use_regex\""},
	{"pre_tokenizer.pretokenizers.1.add_prefix_space", "true", QWEN_UNSUPPORTED, "\"add_prefix_space\""},
	{"decoder.type", "\"WordPiece\"", QWEN_UNSUPPORTED, "decoder \"WordPiece\""},
	{"model.type", "\"Unigram\"", QWEN_UNSUPPORTED, "model \"Unigram\""},
	{"model.byte_fallback", "true", QWEN_UNSUPPORTED, "\"byte_fallback\""},
	{"model.ignore_merges", "true", QWEN_UNSUPPORTED, "\"ignore_merges\""},
	{"model.unk_token", "\"<unk>\"", QWEN_UNSUPPORTED, "\"unk_token\""},
	{"model.dropout", "0.1", QWEN_UNSUPPORTED, "\"dropout\""},
	{"model.end_of_word_suffix", "\"</w>\"", QWEN_UNSUPPORTED, "\"end_of_word_suffix\""},
	{"added_tokens.0.lstrip", "true", QWEN_UNSUPPORTED, "\"lstrip\""},
	{"added_tokens.0.single_word", "true", QWEN_UNSUPPORTED, "\"single_word\""},
	{"model.vocab.a", NULL, QWEN_UNSUPPORTED, "byte 0x61"},
	/* broken or hostile */
	{"model.vocab.ab", "2097152", QWEN_CORRUPT, "id 2097152 is out of range"},
	{"model.vocab.ab", "9007199254740993", QWEN_CORRUPT, "out of range"},
	{"model.vocab.ab", "-1", QWEN_CORRUPT, "id -1 is out of range"},
	{"model.vocab.ab", "97", QWEN_CORRUPT, "id 97 is defined twice"},
	{"model.vocab.ab", "2.5", QWEN_CORRUPT, "whole numbers"},
	{"model.vocab.ab", "\"256\"", QWEN_CORRUPT, "whole numbers"},
	{"model.vocab", "[]", QWEN_CORRUPT, "\"vocab\""},
	{"model.merges", "{}", QWEN_CORRUPT, "\"merges\""},
	{"model.merges", "[\"a b\", \"a c\"]", QWEN_CORRUPT, "merge 1 uses a symbol"},
	{"model.merges", "[\"xy b\"]", QWEN_CORRUPT, "merge 0 uses a symbol"},
	{"model.merges", "[\"ab\"]", QWEN_CORRUPT, "merge 0 is not two symbols"},
	{"model.merges", "[\" ab\"]", QWEN_CORRUPT, "merge 0 is not two symbols"},
	{"model.merges", "[\"a b c\"]", QWEN_CORRUPT, "merge 0 is not two symbols"},
	{"model.merges", "[[\"a\", \"b\", \"c\"]]", QWEN_CORRUPT, "merge 0 is not a pair"},
	{"model.merges", "[7]", QWEN_CORRUPT, "merge 0 is not a pair"},
	{"model", "3", QWEN_CORRUPT, "\"model\""},
	{"added_tokens.0.id", "97", QWEN_CORRUPT, "id 97 is defined twice"},
	{"added_tokens.0.id", "1000000000", QWEN_CORRUPT, "out of range"},
	{"added_tokens.0.id", "\"257\"", QWEN_CORRUPT, "\"id\""},
	{"added_tokens.0.content", "\"\"", QWEN_CORRUPT, "added token 257 has 0 bytes"},
	{"added_tokens.0.content", "null", QWEN_CORRUPT, "\"content\""},
	{"added_tokens", "{}", QWEN_CORRUPT, "\"added_tokens\""},
	{"added_tokens",
	 "[{\"id\": 257, \"content\": \"<x>\", \"special\": true}, {\"id\": 258, \"content\": \"<x>\", \"special\": true}]",
	 QWEN_CORRUPT, "have the same text"},
};

static void
broken_files_are_refused_with_their_reason(void **state)
{
	for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++)
	{
		const refusal *r = &refusals[i];
		json_t *root = changed(r->path, r->value);
		qwen_tokenizer *tok;
		qwen_error err;

		if (parse(root, &tok, &err) != r->status || !strstr(err.message, r->message))
			fail_msg("%s = %s: %d, %s", r->path, r->value, err.status, err.message);
		assert_null(tok);
		json_decref(root);
	}
}

static qwen_status
parse_texts(const char *tokenizer, const char *vocab, const char *merges, const char *config, qwen_error *err)
{
	qwen_tokenizer_files files = {{tokenizer, tokenizer ? strlen(tokenizer) : 0},
								  {vocab, vocab ? strlen(vocab) : 0},
								  {merges, merges ? strlen(merges) : 0},
								  {config, config ? strlen(config) : 0}};
	qwen_tokenizer *tok;
	qwen_status rc = qwen_tokenizer_parse(&files, &tok, err);

	qwen_tokenizer_close(tok);
	return rc;
}

static void
texts_that_are_no_tokenizer_are_refused(void **state)
{
	qwen_error err;

	assert_int_equal(parse_texts(NULL, NULL, NULL, "{}", &err), QWEN_NOT_FOUND);
	assert_int_equal(parse_texts(NULL, "{}", NULL, NULL, &err), QWEN_NOT_FOUND);
	assert_int_equal(parse_texts("", NULL, NULL, NULL, &err), QWEN_CORRUPT);
	assert_int_equal(parse_texts("[]", NULL, NULL, NULL, &err), QWEN_CORRUPT);
	assert_int_equal(parse_texts("{\"a\": 1, \"a\": 2}", NULL, NULL, NULL, &err), QWEN_CORRUPT);
	assert_int_equal(parse_texts("{\"model\": {\"vocab\": {\"\\ud800\": 1}}}", NULL, NULL, NULL, &err), QWEN_CORRUPT);
	assert_non_null(strstr(err.detail, "Line 1"));
	assert_int_equal(parse_texts(NULL, "{}", "a b", NULL, &err), QWEN_UNSUPPORTED);
	assert_int_equal(parse_texts(NULL, "{}", "a \xFF", NULL, &err), QWEN_CORRUPT);
}

/* ---- vocab.json and merges.txt ---- */

static void
write_json(const scratch *s, const char *name, const json_t *value)
{
	char *text = json_dumps(value, JSON_COMPACT);

	scratch_write(s, name, text, strlen(text));
	free(text);
}

/* merges.txt of the demo tokenizer, with the version line that such files have. */
static void
write_merges(const scratch *s, const json_t *merges)
{
	qwen_bytes text = {0};
	const json_t *pair;
	size_t i;

	qwen_bytes_append_str(&text, "#version: 0.2\n");
	json_array_foreach(merges, i, pair)
	{
		qwen_bytes_append_str(&text, json_string_value(json_array_get(pair, 0)));
		qwen_bytes_append_str(&text, " ");
		qwen_bytes_append_str(&text, json_string_value(json_array_get(pair, 1)));
		qwen_bytes_append_str(&text, i % 2 ? "\n" : "\r\n");
	}
	scratch_write(s, "merges.txt", text.data, text.len);
	qwen_bytes_free(&text);
}

/* Moves the added tokens of tokenizer.json into "added_tokens_decoder" of tokenizer_config.json. */
static void
write_config(const scratch *s, const json_t *added)
{
	json_t *config = json_load_file(DEMO_MODEL "/tokenizer_config.json", 0, NULL), *decoder = json_object(), *token;
	char id[16];
	size_t i;

	json_array_foreach(added, i, token)
	{
		snprintf(id, sizeof(id), "%d", (int) json_integer_value(json_object_get(token, "id")));
		json_object_set(decoder, id, token);
	}
	json_object_set_new(config, "added_tokens_decoder", decoder);
	json_object_set_new(config, "eos_token", json_pack("{s:s}", "content", "<|im_end|>"));
	write_json(s, "tokenizer_config.json", config);
	json_decref(config);
}

static void
vocab_and_merges_give_the_same_ids(void **state)
{
	static const char *const texts[] = {
		"",
		"What is the capital of Kenya?",
		"SELECT count(*) FROM orders;\n\n",
		"<|im_start|>user\ncafe\u0301<|im_end|>\n<think>\n\n</think>",
		"\U0001F642 你好 don't 1234",
	};
	json_t *root = json_load_file(DEMO_MODEL "/tokenizer.json", 0, NULL), *model = json_object_get(root, "model");
	qwen_tokenizer *whole, *parts;
	qwen_error err;
	scratch s;

	assert_non_null(root);
	scratch_open(&s);
	write_json(&s, "vocab.json", json_object_get(model, "vocab"));
	write_merges(&s, json_object_get(model, "merges"));
	write_config(&s, json_object_get(root, "added_tokens"));
	assert_ok(qwen_tokenizer_open(DEMO_MODEL, &whole, &err), err);
	assert_ok(qwen_tokenizer_open(s.dir, &parts, &err), err);
	assert_int_equal(qwen_tokenizer_size(parts), qwen_tokenizer_size(whole));
	assert_int_equal(qwen_tokenizer_eos(parts), 4098);
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
	{
		const qwen_span all = {0, strlen(texts[i])};
		qwen_ids want = {0};

		assert_ok(qwen_tokenize(whole, texts[i], strlen(texts[i]), &all, 1, &want, &err), err);
		if (want.len > 0)
			assert_tokenizes(parts, texts[i], want.data, want.len);
		qwen_ids_free(&want);
	}
	qwen_tokenizer_close(whole);
	qwen_tokenizer_close(parts);
	scratch_close(&s);
	json_decref(root);
}

static void
a_folder_without_files_has_no_tokenizer(void **state)
{
	qwen_tokenizer *tok;
	qwen_error err;
	scratch s;

	scratch_open(&s);
	assert_int_equal(qwen_tokenizer_open(s.dir, &tok, &err), QWEN_NOT_FOUND);
	assert_int_equal(qwen_tokenizer_open("/nonexistent", &tok, &err), QWEN_NOT_FOUND);
	scratch_close(&s);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_small_tokenizer_works),
		cmocka_unit_test(the_eos_token_is_found),
		cmocka_unit_test(other_spellings_are_accepted),
		cmocka_unit_test(without_a_normalizer_text_stays),
		cmocka_unit_test(broken_files_are_refused_with_their_reason),
		cmocka_unit_test(texts_that_are_no_tokenizer_are_refused),
		cmocka_unit_test(vocab_and_merges_give_the_same_ids),
		cmocka_unit_test(a_folder_without_files_has_no_tokenizer),
	};

	return cmocka_run_group_tests_name("tokenizer files", tests, NULL, NULL);
}
