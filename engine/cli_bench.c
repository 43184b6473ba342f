/*
 * cli_bench.c
 *	  qwen-engine bench: prefill, decode and batched decode in tokens a second.
 *
 * Drives the forward pass directly with random ids, so that neither
 * tokenizer nor sampler is in the figures.  Three tests, as llama-bench has
 * them: a prompt of P tokens, N tokens decoded from an empty context, and S
 * sequences with a prompt of their own decoded together.  Each figure stands
 * beside its ceiling, what the rates measured on this machine in the same run
 * would allow: see roofline.h.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "measure.h"
#include "roofline.h"

#define MAX_BATCHES 16
#define MAX_REPETITIONS 100

typedef struct bench_settings
{
	int prompt;
	int generate;
	int batches[MAX_BATCHES];
	int n_batches;
	int batch_prompt;
	int batch_generate;
	int repetitions;
	bool json;
} bench_settings;

typedef struct bench_row
{
	char test[16];
	int sequences;
	int prompt;
	int generated;
	double rate;         /* tokens a second; of a batch, decode alone */
	double prefill_rate; /* 0: not part of the test */
	double deviation;    /* of rate */
	double ceiling;      /* of rate */
	qwen_work work;      /* of one repetition, of the part that rate is of */
} bench_row;

typedef struct bench
{
	bench_settings set;
	qwen_model *model;
	int max_sequences;
	int32_t *tokens;    /* [step] */
	int32_t *positions; /* [step] */
	int32_t *rows;      /* [max_sequences] */
	int32_t *blocks;    /* [max_sequences, seq_blocks] */
	int seq_blocks;
	qwen_batch_seq *seqs; /* [max_sequences] */
	float *logits;        /* [max_sequences, vocab] */
	uint32_t random;
	qwen_work work; /* since the last part of a test began */
	qwen_rates rates;
	double load_seconds;
	bench_row out[MAX_BATCHES + 2];
	int n_out;
	qwen_error *err;
} bench;

/* ---- settings ---- */

/* "1,4,8"; false after a message. */
static bool
parse_batches(const char *text, bench_settings *set)
{
	char *copy = strdup(text);
	char *rest = copy;
	const char *item;
	bool ok = copy != NULL;

	set->n_batches = 0;
	while (ok && (item = strsep(&rest, ",")) != NULL)
	{
		ok = set->n_batches < MAX_BATCHES && qwen_cli_int("batch", item, 0, 4096, &set->batches[set->n_batches]);
		if (ok && set->batches[set->n_batches] > 0) /* 0: no such test */
			set->n_batches++;
	}
	free(copy);
	return ok;
}

/* llama-bench's -pb and -nb have two letters behind one dash, which getopt would read as -p b. */
static void
spell_out(int argc, char **argv)
{
	static char pb[] = "--pb", nb[] = "--nb";

	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], "-pb"))
			argv[i] = pb;
		else if (!strcmp(argv[i], "-nb"))
			argv[i] = nb;
}

static int
parse_settings(int argc, char **argv, bench_settings *set, qwen_model_options *options)
{
	static const char usage[] = "Measures tokens a second: prefill of one prompt, decode of one sequence, and decode "
								"of several sequences at once.";
	const char *p = "512", *n = "128", *b = "1,4,8,16,32", *pb = "128", *nb = "64", *r = "5";
	const qwen_cli_option own[] = {
		{"prompt", 'p', "N", "tokens of the prompt (512; 0: leave out)", &p, NULL},
		{"generate", 'n', "N", "tokens decoded (128; 0: leave out)", &n, NULL},
		{"batch", 'b', "N,N", "numbers of sequences (1,4,8,16,32; 0: leave out)", &b, NULL},
		{"pb", 0, "N", "prompt of each sequence (128)", &pb, NULL},
		{"nb", 0, "N", "tokens decoded of each sequence (64)", &nb, NULL},
		{"repetitions", 'r', "N", "repetitions (5)", &r, NULL},
		{"json", 0, NULL, "one JSON object instead of a table", NULL, &set->json},
		{NULL},
	};
	int rc;

	spell_out(argc, argv);
	rc = qwen_cli_parse(argc, argv, usage, own, options, true, NULL);
	if (rc >= 0)
		return rc;
	if (!qwen_cli_int("prompt", p, 0, 1 << 20, &set->prompt) ||
		!qwen_cli_int("generate", n, 0, 1 << 20, &set->generate) || !parse_batches(b, set) ||
		!qwen_cli_int("pb", pb, 1, 1 << 20, &set->batch_prompt) ||
		!qwen_cli_int("nb", nb, 1, 1 << 20, &set->batch_generate) ||
		!qwen_cli_int("repetitions", r, 1, MAX_REPETITIONS, &set->repetitions))
		return 2;
	return -1;
}

/* The model is loaded for exactly what the tests need. */
static void
size_model(bench *b, qwen_model_options *options)
{
	int batch_len = b->set.n_batches ? b->set.batch_prompt + b->set.batch_generate : 1;
	int len = b->set.prompt > b->set.generate ? b->set.prompt : b->set.generate;

	b->max_sequences = 1;
	for (int i = 0; i < b->set.n_batches; i++)
		if (b->set.batches[i] > b->max_sequences)
			b->max_sequences = b->set.batches[i];
	options->max_sequences = b->max_sequences;
	options->max_model_len = len > batch_len ? len : batch_len;
	if (options->step_tokens < b->max_sequences)
		options->step_tokens = b->max_sequences;
	b->seq_blocks = (options->max_model_len + QWEN_KV_BLOCK - 1) / QWEN_KV_BLOCK;
}

/* ---- running ---- */

/* Random ids, the same in every run; what they are does not change the work. */
static int32_t
random_id(bench *b)
{
	b->random = b->random * 1664525u + 1013904223u;
	return (int32_t) ((b->random >> 8) % (uint32_t) qwen_model_config(b->model)->vocab_size);
}

/* One step: n tokens of each of n_seqs sequences from position `first` on; logits of each sequence's last token. */
static bool
step(bench *b, int n_seqs, int first, int n)
{
	qwen_batch batch = {.n_tokens = n_seqs * n,
						.tokens = b->tokens,
						.positions = b->positions,
						.n_seqs = n_seqs,
						.seqs = b->seqs,
						.n_logits = n_seqs,
						.logit_rows = b->rows};

	for (int s = 0; s < n_seqs; s++)
	{
		b->seqs[s] = (qwen_batch_seq){s * n, n, first + n, b->blocks + (size_t) s * (size_t) b->seq_blocks};
		b->rows[s] = s * n + n - 1;
		for (int i = 0; i < n; i++)
		{
			b->tokens[s * n + i] = random_id(b);
			b->positions[s * n + i] = first + i;
		}
	}
	qwen_work_add(&b->work, b->model, n_seqs, first, n);
	return qwen_model_forward(b->model, &batch, b->logits, b->err) == QWEN_OK;
}

/* Prompts of n_seqs sequences, as many tokens a step as fit; seconds, or a negative number after an error. */
static double
prefill(bench *b, int n_seqs, int n)
{
	int most = qwen_model_step_tokens(b->model) / n_seqs;
	double begin = qwen_seconds();

	b->work = (qwen_work){0};
	for (int first = 0; first < n; first += most)
		if (!step(b, n_seqs, first, first + most < n ? most : n - first))
			return -1;
	return qwen_seconds() - begin;
}

/* n tokens of n_seqs sequences, one after the other. */
static double
decode(bench *b, int n_seqs, int context, int n)
{
	double begin = qwen_seconds();

	b->work = (qwen_work){0};
	for (int i = 0; i < n; i++)
		if (!step(b, n_seqs, context + i, 1))
			return -1;
	return qwen_seconds() - begin;
}

static double
mean(const double *x, int n)
{
	double sum = 0;

	for (int i = 0; i < n; i++)
		sum += x[i];
	return sum / n;
}

static double
deviation(const double *x, int n)
{
	double m = mean(x, n), sum = 0;

	for (int i = 0; i < n; i++)
		sum += (x[i] - m) * (x[i] - m);
	return n > 1 ? sqrt(sum / (n - 1)) : 0;
}

/* One test; of the two parts, prompt and generated, either may be 0. */
static bool
run_test(bench *b, const char *name, int n_seqs, int prompt, int generated)
{
	double decode_rate[MAX_REPETITIONS], prefill_rate[MAX_REPETITIONS];
	bench_row *row = &b->out[b->n_out];
	const double *main_rate = generated ? decode_rate : prefill_rate;
	int n = b->set.repetitions;
	double seconds;

	for (int i = 0; i < n; i++)
	{
		double p = prompt ? prefill(b, n_seqs, prompt) : 0;
		double d = p >= 0 && generated ? decode(b, n_seqs, prompt, generated) : 0;

		if (p < 0 || d < 0)
			return false;
		prefill_rate[i] = n_seqs * prompt / (prompt ? p : 1);
		decode_rate[i] = n_seqs * generated / (generated ? d : 1);
	}
	snprintf(row->test, sizeof(row->test), "%s", name);
	row->sequences = n_seqs;
	row->prompt = prompt;
	row->generated = generated;
	row->rate = mean(main_rate, n);
	row->deviation = deviation(main_rate, n);
	row->prefill_rate = prompt ? mean(prefill_rate, n) : 0;
	row->work = b->work;
	seconds = qwen_work_seconds(&row->work, &b->rates);
	row->ceiling = seconds > 0 ? n_seqs * (generated ? generated : prompt) / seconds : 0;
	b->n_out++;
	return true;
}

/* All tests in the order of the table; false after an error. */
static bool
run_tests(bench *b)
{
	char name[16];

	if (!step(b, 1, 0, 1)) /* touches the weights once: not part of any figure */
		return false;
	snprintf(name, sizeof(name), "pp%d", b->set.prompt);
	if (b->set.prompt && !run_test(b, name, 1, b->set.prompt, 0))
		return false;
	snprintf(name, sizeof(name), "tg%d", b->set.generate);
	if (b->set.generate && !run_test(b, name, 1, 0, b->set.generate))
		return false;
	for (int i = 0; i < b->set.n_batches; i++)
		if (!run_test(b, "batch", b->set.batches[i], b->set.batch_prompt, b->set.batch_generate))
			return false;
	return true;
}

/* ---- output ---- */

static void
print_table(const bench *b, const qwen_model_options *options)
{
	printf("model %s, %s, quantization %s, %.1f MB of weights, cache %s; loaded in %.2f s\n", options->path,
		   qwen_model_dtype(b->model), qwen_model_quantization(b->model),
		   (double) qwen_model_weight_bytes(b->model) / 1e6, qwen_model_kv_dtype(b->model), b->load_seconds);
	printf("kernels %s, %d threads", qwen_model_kernels(b->model), qwen_model_threads(b->model));
	if (b->rates.bandwidth > 0)
		printf("; measured %.1f GB/s, %.0f Gop/s in products, %.0f Gop/s in attention", b->rates.bandwidth / 1e9,
			   b->rates.linear / 1e9, b->rates.attention / 1e9);
	printf("\n\n");
	printf("| test     | sequences | prompt | generated |   prefill t/s |             t/s |    ceiling |   %% | held "
		   "by   |\n");
	printf("|----------|----------:|-------:|----------:|--------------:|----------------:|-----------:|----:|---------"
		   "--|\n");
	for (int i = 0; i < b->n_out; i++)
	{
		const bench_row *r = &b->out[i];

		printf("| %-8s | %9d | %6d | %9d | %13.1f | %8.1f ± %4.1f | %10.1f | %3.0f | %-9s |\n", r->test, r->sequences,
			   r->prompt, r->generated, r->prefill_rate, r->rate, r->deviation, r->ceiling,
			   r->ceiling > 0 ? 100 * r->rate / r->ceiling : 0,
			   r->ceiling <= 0                        ? "-"
			   : qwen_work_moves(&r->work, &b->rates) ? "bandwidth"
													  : "products");
	}
}

static json_t *
row_object(const bench_row *r)
{
	return json_pack("{s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "test", r->test, "sequences",
					 r->sequences, "prompt", r->prompt, "generated", r->generated, "tokens_per_second", r->rate,
					 "prefill_tokens_per_second", r->prefill_rate, "deviation", r->deviation, "ceiling", r->ceiling,
					 "bytes", r->work.bytes, "linear_operations", r->work.linear, "attention_operations",
					 r->work.attention);
}

static void
print_json(const bench *b, const qwen_model_options *options)
{
	json_t *rows = json_array();
	json_t *all;

	for (int i = 0; i < b->n_out; i++)
		json_array_append_new(rows, row_object(&b->out[i]));
	all = json_pack("{s:s, s:s, s:i, s:I, s:s, s:s, s:s, s:f, s:f, s:f, s:f, s:o}", "model", options->path, "kernels",
					qwen_model_kernels(b->model), "threads", qwen_model_threads(b->model), "weights_bytes",
					(json_int_t) qwen_model_weight_bytes(b->model), "dtype", qwen_model_dtype(b->model), "quantization",
					qwen_model_quantization(b->model), "kv_dtype", qwen_model_kv_dtype(b->model), "load_seconds",
					b->load_seconds, "bandwidth", b->rates.bandwidth, "linear_rate", b->rates.linear, "attention_rate",
					b->rates.attention, "rows", rows);
	qwen_cli_print(all);
	json_decref(all);
}

/* ---- the command ---- */

/* Buffers; sequence s has blocks s, s + S, s + 2 S, ...: scattered, as a server's are. */
static qwen_status
prepare(bench *b)
{
	size_t tokens = (size_t) qwen_model_step_tokens(b->model);
	size_t seqs = (size_t) b->max_sequences;
	size_t vocab = (size_t) qwen_model_config(b->model)->vocab_size;

	if ((int64_t) b->max_sequences * b->seq_blocks > qwen_model_kv_blocks(b->model))
	{
		qwen_fail(b->err, QWEN_NO_MEMORY, "the KV cache cannot hold %d sequences", b->max_sequences);
		return qwen_fail_hint(b->err, "Use fewer or shorter sequences, or raise --kv-memory.");
	}
	b->tokens = calloc(tokens, sizeof(int32_t));
	b->positions = calloc(tokens, sizeof(int32_t));
	b->rows = calloc(seqs, sizeof(int32_t));
	b->seqs = calloc(seqs, sizeof(*b->seqs));
	b->blocks = calloc(seqs * (size_t) b->seq_blocks, sizeof(int32_t));
	b->logits = calloc(seqs * vocab, sizeof(float));
	if (!b->tokens || !b->positions || !b->rows || !b->seqs || !b->blocks || !b->logits)
		return qwen_fail_memory(b->err, seqs * vocab * sizeof(float));
	for (size_t s = 0; s < seqs; s++)
		for (int i = 0; i < b->seq_blocks; i++)
			b->blocks[s * (size_t) b->seq_blocks + (size_t) i] = (int32_t) (s + (size_t) i * seqs);
	qwen_rates_measure(&b->rates, b->model);
	return QWEN_OK;
}

/* The model between opening and the tests. */
static qwen_status
open_model(bench *b, const qwen_model_options *options)
{
	double begin = qwen_seconds();
	qwen_status rc = qwen_model_open(options, qwen_cli_progress, NULL, &b->model, b->err);

	b->load_seconds = qwen_seconds() - begin;
	return rc == QWEN_OK ? prepare(b) : rc;
}

static void
release(bench *b)
{
	free(b->tokens);
	free(b->positions);
	free(b->rows);
	free(b->seqs);
	free(b->blocks);
	free(b->logits);
	qwen_model_close(b->model);
}

int
qwen_cmd_bench(int argc, char **argv)
{
	qwen_error err;
	bench b = {.err = &err, .random = 1};
	qwen_model_options options;
	int rc = parse_settings(argc, argv, &b.set, &options);

	if (rc >= 0)
		return rc;
	size_model(&b, &options);
	rc = 0;
	if (open_model(&b, &options) != QWEN_OK || !run_tests(&b))
		rc = qwen_cli_fail(&err);
	else if (b.set.json)
		print_json(&b, &options);
	else
		print_table(&b, &options);
	release(&b);
	return rc;
}
