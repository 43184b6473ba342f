/*
 * main.c
 *	  qwen-engine COMMAND ...: picks the command.
 */
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "protocol.h"

static const struct
{
	const char *name;
	int (*run)(int argc, char **argv);
	const char *help;
} commands[] = {
	{"generate", qwen_cmd_generate, "answer prompts, many at a time"},
	{"bench", qwen_cmd_bench, "measure prefill, decode and batched decode"},
	{"plan", qwen_cmd_plan, "tell what each device would hold, or why a model does not fit"},
	{"probe", qwen_cmd_probe, "show what this machine gives"},
	{"tokenize", qwen_cmd_tokenize, "text to token ids"},
	{"detokenize", qwen_cmd_detokenize, "token ids to text"},
	{"render", qwen_cmd_render, "apply the chat template"},
	{"logits", qwen_cmd_logits, "write the logits of a token sequence"},
	{"serve", qwen_cmd_serve, "used by the PostgreSQL worker"},
};

static void
usage(FILE *out)
{
	fprintf(out, "qwen-engine: runs Qwen models\n\nusage: qwen-engine COMMAND -m MODEL [options]\n\n");
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		fprintf(out, "  %-12s %s\n", commands[i].name, commands[i].help);
	fprintf(out, "\nqwen-engine COMMAND --help shows a command's options.\n");
}

int
main(int argc, char **argv)
{
	if (argc < 2)
	{
		usage(stderr);
		return 2;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))
	{
		usage(stdout);
		return 0;
	}
	if (!strcmp(argv[1], "--version"))
	{
		printf("qwen-engine %s\n", QWEN_VERSION);
		return 0;
	}
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (!strcmp(argv[1], commands[i].name))
			return commands[i].run(argc - 1, argv + 1);
	fprintf(stderr, "qwen-engine: unknown command \"%s\"\n", argv[1]);
	usage(stderr);
	return 2;
}
