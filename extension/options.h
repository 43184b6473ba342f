/*-------------------------------------------------------------------------
 *
 * options.h
 *	  The options that every generating function takes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef QWEN_OPTIONS_H
#define QWEN_OPTIONS_H

#include "qwen.h"

#include "fmgr.h"

/*
 * Everything that can be said about a request.  The first ones are also named arguments, in this order, behind the
 * subject; all are keys of the argument "options".
 */
typedef enum QwenOption
{
	QWEN_OPTION_MAX_TOKENS,
	QWEN_OPTION_TEMPERATURE,
	QWEN_OPTION_TOP_P,
	QWEN_OPTION_TOP_K,
	QWEN_OPTION_SEED,
	QWEN_OPTION_STOP,
	QWEN_OPTION_SYSTEM,
	QWEN_OPTION_SCHEMA,
	QWEN_OPTION_THINKING,
	QWEN_OPTION_ON_ERROR,
	QWEN_OPTION_MIN_P,
	QWEN_OPTION_PRESENCE_PENALTY,
	QWEN_OPTION_FREQUENCY_PENALTY,
	QWEN_OPTION_REPETITION_PENALTY,
	QWEN_OPTION_PRIORITY,
	QWEN_OPTION_CACHE,
	QWEN_OPTION_TRUNCATE,
	QWEN_OPTION_CONTROL_TOKENS,
	QWEN_OPTION_REGEX,
	QWEN_OPTION_GRAMMAR,
	QWEN_OPTION_DEADLINE_MS
} QwenOption;

#define QWEN_N_OPTIONS (QWEN_OPTION_DEADLINE_MS + 1)
#define QWEN_N_NAMED_OPTIONS (QWEN_OPTION_ON_ERROR + 1)

/* Positions of a generating function's arguments. */
#define QWEN_ARG_SUBJECT 0
#define QWEN_ARG_OPTION(option) (1 + (option))
#define QWEN_ARG_OPTIONS (1 + QWEN_N_NAMED_OPTIONS)
#define QWEN_ARG_TOOLS (QWEN_ARG_OPTIONS + 1)

/* A set of options. */
#define QWEN_OPTION_BIT(option) (UINT32_C(1) << (option))

/*
 * Merges named arguments, the argument "options" and the session's settings for a request of `kind`, and checks all of
 * it.  `refused`: the set of options that mean nothing to the calling function; giving one is an error, because nothing
 * that was said is ever ignored.  Strings live in the current memory context or in the arguments.
 */
extern void qwen_read_options(FunctionCallInfo fcinfo, qwen_request_kind kind, uint32 refused, QwenOptions *options);

#endif /* QWEN_OPTIONS_H */
