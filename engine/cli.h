/*
 * cli.h
 *	  What the commands of qwen-engine share: options, lines, errors.
 *
 * The command line is the only part of the engine that prints.  Standard
 * output holds results, standard error everything else; exit status 0 done,
 * 1 failed, 2 wrong usage.
 */
#ifndef QWEN_CLI_H
#define QWEN_CLI_H

#include <jansson.h>

#include "error.h"
#include "model.h"

/* One option of a command. Exactly one of text and flag is set. */
typedef struct qwen_cli_option
{
	const char *name; /* "plain" for --plain */
	char letter;      /* 'p' for -p, or 0 */
	const char *arg;  /* name of the argument in the help text, NULL for a flag */
	const char *help;
	const char **text; /* receives the argument */
	bool *flag;        /* becomes true */
} qwen_cli_option;

/*
 * Parses a command's arguments.  usage: one paragraph on what the command reads and writes.  options ends with a NULL
 * name.  model: receives -m and, when weights is true, the loading options.  file: receives one positional argument,
 * or NULL when the command takes none.  Returns -1 to go on, else the exit status to return at once (--help, mistakes).
 */
int qwen_cli_parse(int argc, char **argv, const char *usage, const qwen_cli_option *options, qwen_model_options *model,
				   bool weights, const char **file);

/* Parses a whole number within [min, max]; false after a message on standard error. */
bool qwen_cli_int(const char *option, const char *text, long min, long max, int *out);

/* Prints an error as engine-cli.md 1 wants it and returns 1. */
int qwen_cli_fail(const qwen_error *err);

/* Turns one line's value into the value to print (a new reference), or NULL with err filled. */
typedef json_t *(*qwen_cli_line_fn)(void *arg, const json_t *line, qwen_error *err);

/*
 * Runs fn over every line of the file (NULL: standard input), printing one value a line, flushed; a line that fails
 * prints {"error", "code"} and the next one follows.  Returns the exit status.
 */
int qwen_cli_lines(const char *file, qwen_cli_line_fn fn, void *arg);

/* The object that stands for an error in line output; a new reference. */
json_t *qwen_cli_error_object(const qwen_error *err);

/* Prints a value and a newline, flushed. Does not take the reference. */
void qwen_cli_print(const json_t *value);

/* A progress bar for loading, on standard error when that is a terminal. A qwen_progress_fn. */
void qwen_cli_progress(void *arg, const qwen_model *model, uint64_t done, uint64_t total);

int qwen_cmd_tokenize(int argc, char **argv);
int qwen_cmd_detokenize(int argc, char **argv);
int qwen_cmd_render(int argc, char **argv);
int qwen_cmd_logits(int argc, char **argv);
int qwen_cmd_generate(int argc, char **argv);
int qwen_cmd_bench(int argc, char **argv);
int qwen_cmd_probe(int argc, char **argv);
int qwen_cmd_plan(int argc, char **argv);
int qwen_cmd_serve(int argc, char **argv);

#endif
