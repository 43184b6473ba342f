/*
 * cli.c
 *	  What the commands of qwen-engine share: options, lines, errors.
 *
 * Options are named as the settings are, so that a DBA finds them again.  The
 * ones that every loading command takes stand in one table here.
 */
#include "cli.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plan.h"

#define MAX_OPTIONS 40

/* Text of the numeric model options until they are checked. */
typedef struct model_numbers
{
	const char *threads;
	const char *tensor_parallel;
	const char *max_model_len;
	const char *max_sequences;
	const char *kv_memory;
	const char *prefix_cache;
} model_numbers;

/* All options of one command, common ones first. */
typedef struct option_list
{
	qwen_cli_option items[MAX_OPTIONS];
	int n;
} option_list;

static void
add_options(option_list *list, const qwen_cli_option *options)
{
	for (; options && options->name && list->n < MAX_OPTIONS; options++)
		list->items[list->n++] = *options;
}

static void
add_model_options(option_list *list, qwen_model_options *model, model_numbers *numbers)
{
	const qwen_cli_option common[] = {
		{"device-map", 0, "MAP", "auto, balanced, balanced_low_0, sequential, a device, or a JSON map",
		 &model->device_map, NULL},
		{"max-memory", 0, "LIST", "limits of devices, e.g. cpu:0=20GiB,cpu:1=20GiB", &model->max_memory, NULL},
		{"tensor-parallel", 0, "N", "devices that share each layer (default: 1)", &numbers->tensor_parallel, NULL},
		{"offload", 0, "WHERE", "off, cpu: where layers may go that the GPUs cannot hold", &model->offload, NULL},
		{"dtype", 0, "TYPE", "auto (the checkpoint's), bfloat16, float16, float32", &model->dtype, NULL},
		{"quantization", 0, "TYPE", "none, int8, int4: the matrices are quantised while they are read",
		 &model->quantization, NULL},
		{"kv-dtype", 0, "TYPE", "of the KV cache: auto (as dtype), bfloat16, float16, float32, int8", &model->kv_dtype,
		 NULL},
		{"kernels", 0, "SET", "auto, ref, portable, avx2, avx512, avx512bf16, amx", &model->kernels, NULL},
		{"kv-memory", 0, "SIZE", "memory for the KV cache, e.g. 2GiB (default: auto)", &numbers->kv_memory, NULL},
		{"max-model-len", 0, "N", "tokens of one sequence (default: the model's)", &numbers->max_model_len, NULL},
		{"max-sequences", 0, "N", "sequences decoded at once (default: 256)", &numbers->max_sequences, NULL},
		{"prefix-cache", 0, "on|off", "share the cache of equal beginnings (default: on)", &numbers->prefix_cache,
		 NULL},
		{"threads", 0, "N", "threads (default: the cores this process may use)", &numbers->threads, NULL},
		{NULL},
	};

	add_options(list, common);
}

static void
print_help(const char *command, const char *usage, const option_list *list, bool takes_file)
{
	printf("usage: qwen-engine %s -m MODEL [options]%s\n\n%s\n\n", command, takes_file ? " [FILE]" : "", usage);
	for (int i = 0; i < list->n; i++)
	{
		const qwen_cli_option *o = &list->items[i];
		char left[64];

		snprintf(left, sizeof(left), "%s%c%s--%s%s%s", o->letter ? "-" : "  ", o->letter ? o->letter : ' ',
				 o->letter ? ", " : " ", o->name, o->arg ? " " : "", o->arg ? o->arg : "");
		printf("  %-28s %s\n", left, o->help);
	}
	printf("  %-28s %s\n", "    --help", "show this help");
}

/* The index of the option that getopt found, or -1. */
static int
find_option(const option_list *list, int found, int long_index)
{
	if (found >= 256)
		return long_index;
	for (int i = 0; i < list->n; i++)
		if (list->items[i].letter == found)
			return i;
	return -1;
}

/* Runs getopt_long over argv; -1 to go on, else the exit status. */
static int
scan_options(int argc, char **argv, const option_list *list, bool *help)
{
	struct option longs[MAX_OPTIONS + 2] = {0};
	char shorts[2 * MAX_OPTIONS + 2] = "";
	int found, index = 0;

	for (int i = 0; i < list->n; i++)
	{
		const qwen_cli_option *o = &list->items[i];
		size_t n = strlen(shorts);

		longs[i] = (struct option){o->name, o->text ? required_argument : no_argument, NULL, 256 + i};
		if (o->letter)
			snprintf(shorts + n, sizeof(shorts) - n, "%c%s", o->letter, o->text ? ":" : "");
	}
	longs[list->n] = (struct option){"help", no_argument, NULL, 255};

	while ((found = getopt_long(argc, argv, shorts, longs, &index)) != -1)
	{
		int i;

		if (found == '?')
			return 2;
		if (found == 255)
		{
			*help = true;
			return -1;
		}
		i = find_option(list, found, found - 256);
		if (i < 0)
			return 2;
		if (list->items[i].text)
			*list->items[i].text = optarg;
		else
			*list->items[i].flag = true;
	}
	return -1;
}

bool
qwen_cli_int(const char *option, const char *text, long min, long max, int *out)
{
	char *end;
	long value;

	errno = 0;
	value = strtol(text, &end, 10);
	if (errno || end == text || *end || value < min || value > max)
	{
		fprintf(stderr, "qwen-engine: --%s must be a whole number from %ld to %ld, not \"%s\"\n", option, min, max,
				text);
		return false;
	}
	*out = (int) value;
	return true;
}

static bool
parse_size(const char *option, const char *text, size_t *out)
{
	uint64_t bytes;

	if (qwen_parse_size(text, strlen(text), &bytes))
	{
		*out = (size_t) bytes;
		return true;
	}
	fprintf(stderr, "qwen-engine: --%s must be a size such as 512MB or 2GiB, not \"%s\"\n", option, text);
	return false;
}

static bool
parse_switch(const char *option, const char *text, bool *off)
{
	*off = !strcmp(text, "off");
	if (*off || !strcmp(text, "on"))
		return true;
	fprintf(stderr, "qwen-engine: --%s must be on or off, not \"%s\"\n", option, text);
	return false;
}

static bool
check_numbers(const model_numbers *numbers, qwen_model_options *model)
{
	return (!numbers->threads || qwen_cli_int("threads", numbers->threads, 0, 1024, &model->threads)) &&
		   (!numbers->tensor_parallel || qwen_cli_int("tensor-parallel", numbers->tensor_parallel, 1,
													  QWEN_PLAN_MAX_DEVICES, &model->tensor_parallel)) &&
		   (!numbers->max_model_len ||
			qwen_cli_int("max-model-len", numbers->max_model_len, 0, 1 << 24, &model->max_model_len)) &&
		   (!numbers->max_sequences ||
			qwen_cli_int("max-sequences", numbers->max_sequences, 1, 1 << 16, &model->max_sequences)) &&
		   (!numbers->kv_memory || !strcmp(numbers->kv_memory, "auto") ||
			parse_size("kv-memory", numbers->kv_memory, &model->kv_memory)) &&
		   (!numbers->prefix_cache || parse_switch("prefix-cache", numbers->prefix_cache, &model->no_prefix_cache));
}

/* What the engine has to say beside results and errors. */
static void
log_line(const char *line)
{
	fprintf(stderr, "qwen-engine: %s\n", line);
}

int
qwen_cli_parse(int argc, char **argv, const char *usage, const qwen_cli_option *options, qwen_model_options *model,
			   bool weights, const char **file)
{
	option_list list = {0};
	model_numbers numbers = {0};
	bool help = false;
	const qwen_cli_option path[] = {{"model", 'm', "MODEL", "model folder", &model->path, NULL}, {NULL}};
	int rc;

	*model = (qwen_model_options){.device_map = "auto",
								  .kernels = "auto",
								  .dtype = "auto",
								  .quantization = "none",
								  .kv_dtype = "auto",
								  .max_sequences = 256,
								  .step_tokens = 512,
								  .log = log_line};
	add_options(&list, path);
	if (weights)
		add_model_options(&list, model, &numbers);
	add_options(&list, options);

	optind = 1;
	rc = scan_options(argc, argv, &list, &help);
	if (rc >= 0)
		return rc;
	if (help)
	{
		print_help(argv[0], usage, &list, file != NULL);
		return 0;
	}
	if (!check_numbers(&numbers, model))
		return 2;
	if (file)
		*file = optind < argc ? argv[optind++] : NULL;
	if (optind < argc)
	{
		fprintf(stderr, "qwen-engine: unexpected argument \"%s\"\n", argv[optind]);
		return 2;
	}
	return -1;
}

int
qwen_cli_fail(const qwen_error *err)
{
	fprintf(stderr, "qwen-engine: %s\n", err->message);
	if (err->detail[0])
		fprintf(stderr, "detail: %s\n", err->detail);
	if (err->hint[0])
		fprintf(stderr, "hint: %s\n", err->hint);
	return 1;
}

json_t *
qwen_cli_error_object(const qwen_error *err)
{
	return json_pack("{s:s, s:s}", "error", err->message, "code", qwen_sqlstate(err->status));
}

/*
 * U+0085, U+2028 and U+2029 end a line for many readers of text, so inside a
 * line they are written as escapes. Returns the bytes that the one at p takes.
 */
static size_t
line_separator(const char *p, const char **escape)
{
	if (!strncmp(p, "\xc2\x85", 2))
		return *escape = "\\u0085", 2;
	if (!strncmp(p, "\xe2\x80\xa8", 3))
		return *escape = "\\u2028", 3;
	if (!strncmp(p, "\xe2\x80\xa9", 3))
		return *escape = "\\u2029", 3;
	return 0;
}

void
qwen_cli_print(const json_t *value)
{
	char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_PRESERVE_ORDER);
	const char *begin = text, *escape;

	for (const char *p = text; p && *p;)
	{
		size_t n = line_separator(p, &escape);

		if (n == 0)
		{
			p++;
			continue;
		}
		fwrite(begin, 1, (size_t) (p - begin), stdout);
		fputs(escape, stdout);
		begin = p += n;
	}
	puts(text ? begin : "{\"error\": \"out of memory\", \"code\": \"53200\"}");
	fflush(stdout);
	free(text);
}

/* One line: parse, work, print. */
static void
run_line(const char *line, size_t len, qwen_cli_line_fn fn, void *arg)
{
	qwen_error err = {0};
	json_error_t where;
	json_t *in = json_loadb(line, len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &where);
	json_t *out = NULL;

	if (!in)
		qwen_fail(&err, QWEN_INVALID, "line is not valid JSON: %.200s", where.text);
	else
		out = fn(arg, in, &err);
	if (!out)
		out = qwen_cli_error_object(&err);
	qwen_cli_print(out);
	json_decref(out);
	json_decref(in);
}

int
qwen_cli_lines(const char *file, qwen_cli_line_fn fn, void *arg)
{
	FILE *in = file ? fopen(file, "r") : stdin;
	char *line = NULL;
	size_t cap = 0;
	ssize_t len;

	if (!in)
	{
		fprintf(stderr, "qwen-engine: could not open \"%s\": %s\n", file, strerror(errno));
		return 1;
	}
	while ((len = getline(&line, &cap, in)) >= 0)
		if (line[strspn(line, " \t\r\n")])
			run_line(line, (size_t) len, fn, arg);
	free(line);
	if (file)
		fclose(in);
	return 0;
}

void
qwen_cli_progress(void *arg, const qwen_model *model, uint64_t done, uint64_t total)
{
	static int shown = -1;
	int percent = total ? (int) (100.0 * (double) done / (double) total) : 100;

	if (!isatty(STDERR_FILENO) || percent == shown)
		return;
	shown = percent;
	fprintf(stderr, "\rloading %3d %%%s", percent, done == total ? "\n" : "");
}
