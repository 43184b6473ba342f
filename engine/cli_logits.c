/*
 * cli_logits.c
 *	  qwen-engine logits: the logits of every position of a token sequence.
 *
 * The sequence runs in steps as a prompt would; each step's logits are
 * written out at once, so memory does not grow with the sequence.  The file
 * is written beside its final name and renamed when it is complete.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "buffer.h"
#include "cli.h"

typedef struct logits_command
{
	qwen_model *model;
	const char *path;   /* of the output */
	bool done;          /* a line was answered */
	int32_t *blocks;    /* [kv_blocks] 0, 1, 2, ...: the sequence has the cache for itself */
	int32_t *positions; /* [step_tokens] */
	int32_t *rows;      /* [step_tokens] 0, 1, 2, ... */
	float *logits;      /* [step_tokens, vocab] */
} logits_command;

static qwen_status
fail_write(const char *path, qwen_error *err)
{
	return qwen_fail(err, QWEN_IO, "could not write \"%s\": %s", path, strerror(errno));
}

/* The header of a file with one tensor, padded so that the data are aligned. */
static qwen_status
write_header(FILE *out, const char *path, size_t tokens, size_t vocab, qwen_error *err)
{
	char text[256];
	unsigned char length[8];
	int n =
		snprintf(text, sizeof(text), "{\"logits\":{\"dtype\":\"F32\",\"shape\":[%zu,%zu],\"data_offsets\":[0,%zu]}}",
				 tokens, vocab, tokens * vocab * sizeof(float));

	while (n % 8 != 0)
		text[n++] = ' ';
	for (int i = 0; i < 8; i++)
		length[i] = (unsigned char) ((uint64_t) n >> (8 * i));
	if (fwrite(length, sizeof(length), 1, out) != 1 || fwrite(text, (size_t) n, 1, out) != 1)
		return fail_write(path, err);
	return QWEN_OK;
}

/* Runs tokens [first, first + n) and writes their logits. */
static qwen_status
run_step(logits_command *c, const qwen_ids *ids, int32_t first, int32_t n, FILE *out, qwen_error *err)
{
	const qwen_batch_seq seq = {0, n, first + n, c->blocks};
	const qwen_batch batch = {
		.n_tokens = n,
		.tokens = ids->data + first,
		.positions = c->positions,
		.n_seqs = 1,
		.seqs = &seq,
		.n_logits = n,
		.logit_rows = c->rows,
	};
	size_t vocab = (size_t) qwen_model_config(c->model)->vocab_size;
	qwen_status rc;

	for (int32_t i = 0; i < n; i++)
		c->positions[i] = first + i;
	rc = qwen_model_forward(c->model, &batch, c->logits, err);
	if (rc == QWEN_OK && fwrite(c->logits, vocab * sizeof(float), (size_t) n, out) != (size_t) n)
		rc = fail_write(c->path, err);
	return rc;
}

/* The whole file, under the name of its unfinished form. */
static qwen_status
write_logits(logits_command *c, const qwen_ids *ids, const char *path, qwen_error *err)
{
	FILE *out = fopen(path, "we");
	int32_t step = qwen_model_step_tokens(c->model);
	int32_t total = (int32_t) ids->len;
	qwen_status rc;

	if (!out)
		return fail_write(path, err);
	rc = write_header(out, path, ids->len, (size_t) qwen_model_config(c->model)->vocab_size, err);
	for (int32_t first = 0; first < total && rc == QWEN_OK; first += step)
		rc = run_step(c, ids, first, first + step < total ? step : total - first, out, err);
	if (fclose(out) != 0 && rc == QWEN_OK)
		rc = fail_write(path, err);
	return rc;
}

/* The ids of a line, checked against the vocabulary and the context. */
static qwen_status
read_ids(const logits_command *c, const json_t *line, qwen_ids *ids, qwen_error *err)
{
	const json_t *list = json_object_get(line, "ids");
	int vocab = qwen_model_config(c->model)->vocab_size;
	int max = qwen_model_max_len(c->model);

	if (!json_is_array(list) || json_array_size(list) == 0)
		return qwen_fail(err, QWEN_INVALID, "the line has no list of ids");
	if (json_array_size(list) > (size_t) max)
		return qwen_fail(err, QWEN_TOO_LONG, "%zu tokens are more than the %d that the model is loaded for",
						 json_array_size(list), max);
	for (size_t i = 0; i < json_array_size(list); i++)
	{
		const json_t *id = json_array_get(list, i);

		if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= vocab)
			return qwen_fail(err, QWEN_INVALID, "id %zu is not a token of the vocabulary", i);
		if (!qwen_ids_push(ids, (int32_t) json_integer_value(id)))
			return qwen_fail_memory(err, json_array_size(list) * sizeof(int32_t));
	}
	return QWEN_OK;
}

/* A qwen_cli_line_fn. */
static json_t *
run_line(void *arg, const json_t *line, qwen_error *err)
{
	logits_command *c = arg;
	qwen_ids ids = {0};
	char part[4096];
	json_t *answer = NULL;
	qwen_status rc;

	if (c->done)
	{
		qwen_fail(err, QWEN_INVALID, "logits takes one line only");
		return NULL;
	}
	snprintf(part, sizeof(part), "%s.part", c->path);
	rc = read_ids(c, line, &ids, err);
	if (rc == QWEN_OK && (rc = write_logits(c, &ids, part, err)) != QWEN_OK)
		remove(part);
	if (rc == QWEN_OK && rename(part, c->path) != 0)
		rc = fail_write(c->path, err);
	c->done = rc == QWEN_OK;
	if (c->done)
		answer =
			json_pack("{s:I, s:i}", "tokens", (json_int_t) ids.len, "vocab", qwen_model_config(c->model)->vocab_size);
	qwen_ids_free(&ids);
	return answer;
}

/* Buffers for one step. */
static qwen_status
prepare(logits_command *c, qwen_error *err)
{
	size_t step = (size_t) qwen_model_step_tokens(c->model);
	size_t blocks = (size_t) qwen_model_kv_blocks(c->model);
	size_t vocab = (size_t) qwen_model_config(c->model)->vocab_size;

	c->blocks = calloc(blocks, sizeof(int32_t));
	c->positions = calloc(step, sizeof(int32_t));
	c->rows = calloc(step, sizeof(int32_t));
	c->logits = calloc(step * vocab, sizeof(float));
	if (!c->blocks || !c->positions || !c->rows || !c->logits)
		return qwen_fail_memory(err, step * vocab * sizeof(float));
	for (size_t i = 0; i < blocks; i++)
		c->blocks[i] = (int32_t) i;
	for (size_t i = 0; i < step; i++)
		c->rows[i] = (int32_t) i;
	return QWEN_OK;
}

int
qwen_cmd_logits(int argc, char **argv)
{
	static const char usage[] = "Reads one line {\"ids\": [...]} and writes the logits of every position to a "
								"safetensors file: tensor \"logits\",\n"
								"[tokens, vocabulary], float32. Prints {\"tokens\": T, \"vocab\": V}.";
	logits_command c = {0};
	qwen_model_options options;
	const char *file = NULL;
	const qwen_cli_option own[] = {{"output", 'o', "FILE", "where to write the logits (required)", &c.path, NULL},
								   {NULL}};
	qwen_error err;
	int rc = qwen_cli_parse(argc, argv, usage, own, &options, true, &file);

	if (rc >= 0)
		return rc;
	if (!c.path)
	{
		fprintf(stderr, "qwen-engine: logits needs -o FILE\n");
		return 2;
	}
	options.max_sequences = options.step_tokens; /* every token of a step wants its logits */
	if (qwen_model_open(&options, qwen_cli_progress, NULL, &c.model, &err) != QWEN_OK || prepare(&c, &err) != QWEN_OK)
		rc = qwen_cli_fail(&err);
	else
		rc = qwen_cli_lines(file, run_line, &c);
	free(c.blocks);
	free(c.positions);
	free(c.rows);
	free(c.logits);
	qwen_model_close(c.model);
	return rc;
}
