/*
 * tokenizer_load.c
 *	  From the files of a checkpoint to a tokenizer.
 *
 *	  tokenizer.json                            model, added tokens, pattern
 *	  vocab.json + merges.txt                   model; the pattern is Qwen's
 *	      + tokenizer_config.json               added tokens
 *	  tokenizer_config.json (in both cases)     eos token
 *
 * Only what the pipeline does is accepted: a normaliser, pre-tokeniser, model
 * or flag of another kind would silently give other ids, so it is refused by
 * its name.  The post-processor is not looked at: prompts get no extra tokens.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "config_json.h"
#include "normalize.h"
#include "textfile.h"
#include "tokenizer_internal.h"
#include "utf8.h"

/* Twenty times the largest real file. */
#define MAX_FILE (256u << 20)

static qwen_status load_tokenizer_json(qwen_tokenizer *tok, const qwen_tokenizer_text *text, qwen_error *err);
static qwen_status load_vocab_and_merges(qwen_tokenizer *tok, const qwen_tokenizer_files *files, qwen_error *err);
static qwen_status load_config(qwen_tokenizer *tok, const qwen_tokenizer_text *text, bool added, qwen_error *err);

/* ---- entry points ---- */

/* Reads a file that may be missing; *view is empty then. */
static qwen_status
read_optional(const char *dir, const char *name, qwen_bytes *buffer, qwen_tokenizer_text *view, qwen_error *err)
{
	if (qwen_read_text_file(dir, name, MAX_FILE, buffer, err) == QWEN_OK)
		*view = (qwen_tokenizer_text){buffer->data, buffer->len};
	else if (err->status != QWEN_NOT_FOUND)
		return err->status;
	return QWEN_OK;
}

qwen_status
qwen_tokenizer_open(const char *model_dir, qwen_tokenizer **out, qwen_error *err)
{
	qwen_bytes buffers[4] = {0};
	qwen_tokenizer_files files = {0};
	qwen_status rc;

	*out = NULL;
	rc = read_optional(model_dir, "tokenizer.json", &buffers[0], &files.tokenizer, err);
	if (rc == QWEN_OK && !files.tokenizer.data)
	{
		rc = read_optional(model_dir, "vocab.json", &buffers[1], &files.vocab, err);
		if (rc == QWEN_OK)
			rc = read_optional(model_dir, "merges.txt", &buffers[2], &files.merges, err);
	}
	if (rc == QWEN_OK)
		rc = read_optional(model_dir, "tokenizer_config.json", &buffers[3], &files.config, err);
	if (rc == QWEN_OK)
		rc = qwen_tokenizer_parse(&files, out, err);
	if (rc == QWEN_NOT_FOUND)
	{
		qwen_fail(err, QWEN_NOT_FOUND, "no tokenizer in \"%s\"", model_dir);
		qwen_fail_detail(err, "Neither tokenizer.json nor vocab.json with merges.txt is there.");
	}
	for (int i = 0; i < 4; i++)
		qwen_bytes_free(&buffers[i]);
	return rc;
}

qwen_status
qwen_tokenizer_parse(const qwen_tokenizer_files *files, qwen_tokenizer **out, qwen_error *err)
{
	qwen_tokenizer *tok;
	qwen_status rc;

	*out = NULL;
	if (!files->tokenizer.data && !(files->vocab.data && files->merges.data))
		return qwen_fail(err, QWEN_NOT_FOUND, "the model has no tokenizer");
	tok = calloc(1, sizeof(*tok));
	if (!tok)
		return qwen_fail_memory(err, sizeof(*tok));
	tok->eos = -1;
	rc = files->tokenizer.data ? load_tokenizer_json(tok, &files->tokenizer, err)
							   : load_vocab_and_merges(tok, files, err);
	if (rc == QWEN_OK)
		rc = load_config(tok, &files->config, !files->tokenizer.data, err);
	if (rc == QWEN_OK)
		*out = tok;
	else
		qwen_tokenizer_close(tok);
	return rc;
}

void
qwen_tokenizer_close(qwen_tokenizer *tok)
{
	if (!tok)
		return;
	qwen_vocab_free(&tok->vocab);
	qwen_bpe_free(&tok->bpe);
	qwen_splitter_close(tok->splitter);
	qwen_added_free(&tok->literal);
	qwen_added_free(&tok->normalized);
	free(tok);
}

/* ---- refusing ---- */

/* QWEN_UNSUPPORTED, naming what the file asks for. */
static qwen_status
refuse(const char *what, const char *name, qwen_error *err)
{
	char shown[80];

	qwen_config_printable(shown, sizeof(shown), name);
	return qwen_fail(err, QWEN_UNSUPPORTED, "the tokenizer's %s \"%s\" is not supported", what, shown);
}

static qwen_status
fail_shape(const char *what, const char *want, qwen_error *err)
{
	return qwen_fail(err, QWEN_CORRUPT, "\"%s\" of the tokenizer must be %s", what, want);
}

/* The "type" of an object, "" when it has none. */
static const char *
type_of(const json_t *object)
{
	const char *type = json_string_value(json_object_get(object, "type"));

	return type ? type : "";
}

/* Refuses a flag of an object that is set: true, a non-empty string or a number other than 0. */
static qwen_status
refuse_flag(const json_t *object, const char *key, qwen_error *err)
{
	const json_t *v = json_object_get(object, key);

	if (!v || json_is_null(v) || json_is_false(v) || (json_is_string(v) && json_string_length(v) == 0) ||
		(json_is_number(v) && json_number_value(v) == 0))
		return QWEN_OK;
	return refuse("option", key, err);
}

/* ---- the parts of tokenizer.json ---- */

/* null or NFC. Other forms, and changes of case or accents, would need other tables. */
static qwen_status
load_normalizer(qwen_tokenizer *tok, const json_t *n, qwen_error *err)
{
	if (!n || json_is_null(n))
		return QWEN_OK;
	if (strcmp(type_of(n), "NFC") != 0)
		return refuse("normalizer", type_of(n), err);
	tok->nfc = true;
	return QWEN_OK;
}

/* {"type": "Split", "pattern": {"Regex": …}, "behavior": "Isolated", "invert": false} */
static qwen_status
load_split(qwen_tokenizer *tok, const json_t *split, qwen_error *err)
{
	const json_t *regex = json_object_get(json_object_get(split, "pattern"), "Regex");
	const char *behavior = json_string_value(json_object_get(split, "behavior"));

	if (!json_is_string(regex))
		return refuse("pre-tokenizer", "Split without a Regex pattern", err);
	if (!behavior || strcmp(behavior, "Isolated") != 0)
		return refuse("split behavior", behavior ? behavior : "", err);
	if (tok->splitter)
		return refuse("pre-tokenizer", "more than one Split", err);
	return refuse_flag(split, "invert", err)
			   ? err->status
			   : qwen_splitter_open(json_string_value(regex), json_string_length(regex), &tok->splitter, err);
}

/* {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}; use_regex would be a second pattern. */
static qwen_status
check_byte_level(const json_t *b, qwen_error *err)
{
	const json_t *own = json_object_get(b, "use_regex");

	if (!own || json_is_true(own)) /* absent means true */
		return refuse("option", "use_regex", err);
	return refuse_flag(b, "add_prefix_space", err);
}

/* A Sequence of one Split and ByteLevel, in this order: what all Qwen checkpoints have. */
static qwen_status
load_pre_tokenizer(qwen_tokenizer *tok, const json_t *p, qwen_error *err)
{
	const json_t *steps = json_object_get(p, "pretokenizers"), *step;
	bool byte_level = false;
	size_t i;

	if (strcmp(type_of(p), "Sequence") != 0)
		return refuse("pre-tokenizer", type_of(p), err);
	if (!json_is_array(steps))
		return fail_shape("pretokenizers", "an array", err);
	json_array_foreach(steps, i, step)
	{
		if (!strcmp(type_of(step), "Split") && !byte_level)
		{
			if (load_split(tok, step, err) != QWEN_OK)
				return err->status;
		}
		else if (!strcmp(type_of(step), "ByteLevel"))
		{
			if (check_byte_level(step, err) != QWEN_OK)
				return err->status;
			byte_level = true;
		}
		else
			return refuse("pre-tokenizer", type_of(step), err);
	}
	if (!tok->splitter || !byte_level)
		return refuse("pre-tokenizer", tok->splitter ? "Split without ByteLevel" : "ByteLevel without Split", err);
	return QWEN_OK;
}

/* Decoding is the inverse of the byte map and nothing else. */
static qwen_status
check_decoder(const json_t *d, qwen_error *err)
{
	if (!d || json_is_null(d) || !strcmp(type_of(d), "ByteLevel"))
		return QWEN_OK;
	return refuse("decoder", type_of(d), err);
}

/*
 * {"symbol": id, ...}. The first pass over the symbols only adds up their bytes, so that nothing grows in the second.
 */
static qwen_status
load_vocab(qwen_tokenizer *tok, json_t *vocab, qwen_error *err)
{
	const char *symbol;
	json_t *id;
	size_t bytes = 0;

	if (!json_is_object(vocab))
		return fail_shape("vocab", "an object", err);
	json_object_foreach(vocab, symbol, id) bytes += strlen(symbol);
	if (qwen_vocab_reserve(&tok->vocab, json_object_size(vocab), bytes, err) != QWEN_OK)
		return err->status;
	json_object_foreach(vocab, symbol, id)
	{
		if (!json_is_integer(id))
			return fail_shape("vocab", "a map from symbols to whole numbers", err);
		if (qwen_vocab_add_symbol(&tok->vocab, symbol, strlen(symbol), json_integer_value(id), err) != QWEN_OK)
			return err->status;
	}
	return QWEN_OK;
}

/* A merge written as "left right". Symbols contain no space: the byte map has given it another character. */
static qwen_status
add_merge_text(qwen_tokenizer *tok, const char *text, size_t len, qwen_error *err)
{
	const char *space = memchr(text, ' ', len);
	size_t left = space ? (size_t) (space - text) : 0;

	if (left == 0 || left + 1 == len || memchr(space + 1, ' ', len - left - 1))
		return qwen_fail(err, QWEN_CORRUPT, "merge %d is not two symbols with a space between them", tok->bpe.n_merges);
	return qwen_bpe_add_merge(&tok->bpe, &tok->vocab, text, left, space + 1, len - left - 1, err);
}

/* "left right" in older files, ["left", "right"] in newer ones; a file may mix them. */
static qwen_status
add_merge(qwen_tokenizer *tok, const json_t *merge, qwen_error *err)
{
	const json_t *left = json_array_get(merge, 0), *right = json_array_get(merge, 1);

	if (json_is_string(merge))
		return add_merge_text(tok, json_string_value(merge), json_string_length(merge), err);
	if (json_array_size(merge) != 2 || !json_is_string(left) || !json_is_string(right))
		return qwen_fail(err, QWEN_CORRUPT, "merge %d is not a pair of symbols", tok->bpe.n_merges);
	return qwen_bpe_add_merge(&tok->bpe, &tok->vocab, json_string_value(left), json_string_length(left),
							  json_string_value(right), json_string_length(right), err);
}

/*
 * The flags are those of the reference's BPE that change ids; fuse_unk and the like mean nothing without an unk token.
 */
static qwen_status
load_model(qwen_tokenizer *tok, const json_t *model, qwen_error *err)
{
	static const char *const flags[] = {
		"dropout",       "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback",
		"ignore_merges", NULL};
	const json_t *merges = json_object_get(model, "merges"), *merge;
	size_t i;

	if (!json_is_object(model))
		return fail_shape("model", "an object", err);
	if (strcmp(type_of(model), "BPE") != 0)
		return refuse("model", type_of(model), err);
	for (const char *const *flag = flags; *flag; flag++)
		if (refuse_flag(model, *flag, err) != QWEN_OK)
			return err->status;
	if (!json_is_array(merges))
		return fail_shape("merges", "an array", err);
	if (load_vocab(tok, json_object_get(model, "vocab"), err) ||
		qwen_bpe_open(&tok->bpe, &tok->vocab, json_array_size(merges), err))
		return err->status;
	json_array_foreach(merges, i, merge)
	{
		if (add_merge(tok, merge, err) != QWEN_OK)
			return err->status;
	}
	return QWEN_OK;
}

/* ---- added tokens ---- */

/*
 * Defines one added token: {"content", "special", "normalized", "lstrip", "rstrip", "single_word"}.  "normalized" says
 * whether it is looked for after normalisation or before; absent, it means after, except for special tokens.
 */
static qwen_status
add_token(qwen_tokenizer *tok, int64_t id, const json_t *t, qwen_error *err)
{
	const json_t *content = json_object_get(t, "content"), *normalized = json_object_get(t, "normalized");
	bool special = json_is_true(json_object_get(t, "special"));
	const char *text = json_string_value(content);
	qwen_bytes form_c = {0};
	qwen_status rc;

	if (!text)
		return fail_shape("content", "a string in every added token", err);
	if (refuse_flag(t, "lstrip", err) || refuse_flag(t, "rstrip", err) || refuse_flag(t, "single_word", err) ||
		qwen_vocab_add_token(&tok->vocab, text, json_string_length(content), id, special, err))
		return err->status;
	if (normalized ? !json_is_true(normalized) : special)
		return qwen_added_add(&tok->literal, text, json_string_length(content), (int32_t) id, err);
	/* The text that it is compared with is in form C, so it is brought into that form too. */
	rc = tok->nfc
			 ? qwen_nfc_append(text, json_string_length(content), &form_c, err)
			 : (qwen_bytes_append(&form_c, text, json_string_length(content)) ? QWEN_OK : qwen_fail_memory(err, 1));
	if (rc == QWEN_OK)
		rc = qwen_added_add(&tok->normalized, form_c.data, form_c.len, (int32_t) id, err);
	qwen_bytes_free(&form_c);
	return rc;
}

/* The array "added_tokens" of tokenizer.json. */
static qwen_status
load_added_array(qwen_tokenizer *tok, const json_t *tokens, qwen_error *err)
{
	const json_t *t;
	size_t i;

	if (!tokens || json_is_null(tokens))
		return QWEN_OK;
	if (!json_is_array(tokens))
		return fail_shape("added_tokens", "an array", err);
	json_array_foreach(tokens, i, t)
	{
		const json_t *id = json_object_get(t, "id");

		if (!json_is_integer(id))
			return fail_shape("id", "a whole number in every added token", err);
		if (add_token(tok, json_integer_value(id), t, err) != QWEN_OK)
			return err->status;
	}
	return QWEN_OK;
}

/* The object "added_tokens_decoder" of tokenizer_config.json: ids as keys. */
static qwen_status
load_added_object(qwen_tokenizer *tok, json_t *tokens, qwen_error *err)
{
	const char *key;
	json_t *t;

	if (!tokens || json_is_null(tokens))
		return QWEN_OK;
	if (!json_is_object(tokens))
		return fail_shape("added_tokens_decoder", "an object", err);
	json_object_foreach(tokens, key, t)
	{
		char *end;
		long long id;

		errno = 0;
		id = strtoll(key, &end, 10);
		if (errno || end == key || *end)
			return fail_shape("added_tokens_decoder", "a map from ids to tokens", err);
		if (add_token(tok, id, t, err) != QWEN_OK)
			return err->status;
	}
	return QWEN_OK;
}

static qwen_status
finish_added(qwen_tokenizer *tok, qwen_error *err)
{
	if (qwen_added_finish(&tok->literal, err) != QWEN_OK)
		return err->status;
	return qwen_added_finish(&tok->normalized, err);
}

/* ---- whole files ---- */

static qwen_status
load_tokenizer_json(qwen_tokenizer *tok, const qwen_tokenizer_text *text, qwen_error *err)
{
	json_t *root;
	bool failed;

	if (qwen_parse_json_object("tokenizer.json", text->data, text->len, &root, err) != QWEN_OK)
		return err->status;
	failed = load_normalizer(tok, json_object_get(root, "normalizer"), err) ||
			 load_pre_tokenizer(tok, json_object_get(root, "pre_tokenizer"), err) ||
			 check_decoder(json_object_get(root, "decoder"), err) ||
			 load_model(tok, json_object_get(root, "model"), err) ||
			 load_added_array(tok, json_object_get(root, "added_tokens"), err) || finish_added(tok, err);
	json_decref(root);
	return failed ? err->status : QWEN_OK;
}

/* merges.txt: one "left right" a line, the first may be a #version comment. */
static qwen_status
load_merges_text(qwen_tokenizer *tok, const qwen_tokenizer_text *text, qwen_error *err)
{
	const char *p = text->data, *end = text->data + text->len;
	size_t lines = 1;

	for (size_t i = 0; i < text->len; i++)
		lines += text->data[i] == '\n';
	if (qwen_bpe_open(&tok->bpe, &tok->vocab, lines, err) != QWEN_OK)
		return err->status;
	while (p < end)
	{
		const char *newline = memchr(p, '\n', (size_t) (end - p));
		size_t len = newline ? (size_t) (newline - p) : (size_t) (end - p);

		if (len > 0 && p[len - 1] == '\r')
			len--;
		if (len > 0 && !(p == text->data && len >= 8 && !memcmp(p, "#version", 8)) &&
			add_merge_text(tok, p, len, err) != QWEN_OK)
			return err->status;
		p = newline ? newline + 1 : end;
	}
	return QWEN_OK;
}

/* These files do not say what comes before the merges: it is what all checkpoints that have only them use. */
static qwen_status
load_vocab_and_merges(qwen_tokenizer *tok, const qwen_tokenizer_files *files, qwen_error *err)
{
	json_t *vocab;
	bool failed;

	tok->nfc = true;
	if (qwen_utf8_valid_length(files->merges.data, files->merges.len) < files->merges.len)
		return qwen_fail(err, QWEN_CORRUPT, "merges.txt is not valid UTF-8");
	if (qwen_splitter_open(qwen_default_pattern, strlen(qwen_default_pattern), &tok->splitter, err) ||
		qwen_parse_json_object("vocab.json", files->vocab.data, files->vocab.len, &vocab, err))
		return err->status;
	failed = load_vocab(tok, vocab, err) || load_merges_text(tok, &files->merges, err);
	json_decref(vocab);
	return failed ? err->status : QWEN_OK;
}

/* "eos_token" is the token's text or an object with its "content". */
static void
find_eos(qwen_tokenizer *tok, const json_t *root)
{
	const json_t *eos = json_object_get(root, "eos_token");
	const char *text = json_string_value(json_is_object(eos) ? json_object_get(eos, "content") : eos);

	if (text)
		tok->eos = qwen_tokenizer_find(tok, text);
}

/* tokenizer_config.json, which need not be there; added: take the added tokens from it. */
static qwen_status
load_config(qwen_tokenizer *tok, const qwen_tokenizer_text *text, bool added, qwen_error *err)
{
	json_t *root;
	bool failed;

	if (!text->data)
		return QWEN_OK;
	if (qwen_parse_json_object("tokenizer_config.json", text->data, text->len, &root, err) != QWEN_OK)
		return err->status;
	failed =
		added && (load_added_object(tok, json_object_get(root, "added_tokens_decoder"), err) || finish_added(tok, err));
	if (!failed)
		find_eos(tok, root);
	json_decref(root);
	return failed ? err->status : QWEN_OK;
}
