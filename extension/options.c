/*-------------------------------------------------------------------------
 *
 * options.c
 *	  From named arguments, the argument "options" and the settings to one
 *	  set of options.
 *
 * Named arguments and the keys of "options" are first read into one array of
 * values, each by the rule of its option: type, range, whether this version
 * knows it.  An option that was said in both places is refused instead of
 * choosing one.  What nobody said then comes from the settings.  Everything
 * is checked before a request takes a place in the queue.
 *
 * Unset is a value of its own: top_p, top_k, min_p and the penalties, when
 * neither the caller nor the session says anything, are sent as unset, so
 * that the engine takes the model's generation_config.  A setting at its
 * built-in default says nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>
#include <math.h>

#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"

#include "options.h"

/* As many as the engine takes. */
#define MAX_STOP_STRINGS 64

typedef enum OptionType
{
	OPTION_INT4,
	OPTION_INT8,
	OPTION_FLOAT8,
	OPTION_BOOL,
	OPTION_TEXT,
	OPTION_TEXTS, /* text[]; in JSON also a single string */
	OPTION_LATER  /* reserved; refused by name in this version */
} OptionType;

/* What an option may be; min and max count for numbers. */
typedef struct OptionRule
{
	const char *name;
	OptionType type;
	double min;
	double max;
} OptionRule;

/* The ranges are those of the settings of the same names, and of what the engine takes. */
static const OptionRule rules[QWEN_N_OPTIONS] = {
	[QWEN_OPTION_MAX_TOKENS] = {"max_tokens", OPTION_INT4, 1, 1 << 24},
	[QWEN_OPTION_TEMPERATURE] = {"temperature", OPTION_FLOAT8, 0, 100},
	[QWEN_OPTION_TOP_P] = {"top_p", OPTION_FLOAT8, 0, 1},
	[QWEN_OPTION_TOP_K] = {"top_k", OPTION_INT4, 0, INT_MAX},
	[QWEN_OPTION_SEED] = {"seed", OPTION_INT8},
	[QWEN_OPTION_STOP] = {"stop", OPTION_TEXTS},
	[QWEN_OPTION_SYSTEM] = {"system", OPTION_TEXT},
	[QWEN_OPTION_SCHEMA] = {"schema", OPTION_LATER},
	[QWEN_OPTION_THINKING] = {"thinking", OPTION_BOOL},
	[QWEN_OPTION_ON_ERROR] = {"on_error", OPTION_TEXT},
	[QWEN_OPTION_MIN_P] = {"min_p", OPTION_FLOAT8, 0, 1},
	[QWEN_OPTION_PRESENCE_PENALTY] = {"presence_penalty", OPTION_FLOAT8, -2, 2},
	[QWEN_OPTION_FREQUENCY_PENALTY] = {"frequency_penalty", OPTION_FLOAT8, -2, 2},
	[QWEN_OPTION_REPETITION_PENALTY] = {"repetition_penalty", OPTION_FLOAT8, 0.01, 100},
	[QWEN_OPTION_PRIORITY] = {"priority", OPTION_TEXT},
	[QWEN_OPTION_CACHE] = {"cache", OPTION_BOOL},
	[QWEN_OPTION_TRUNCATE] = {"truncate", OPTION_BOOL},
	[QWEN_OPTION_CONTROL_TOKENS] = {"control_tokens", OPTION_BOOL},
	[QWEN_OPTION_REGEX] = {"regex", OPTION_LATER},
	[QWEN_OPTION_GRAMMAR] = {"grammar", OPTION_LATER},
	[QWEN_OPTION_DEADLINE_MS] = {"deadline_ms", OPTION_LATER},
};

/* A value as it was given; which member counts is for the rule's type to say. */
typedef struct OptionValue
{
	bool given;
	double number; /* INT4, FLOAT8 */
	int64 integer; /* INT4, INT8 */
	bool flag;     /* BOOL */
	char *string;  /* TEXT */
	List *strings; /* TEXTS, of text */
} OptionValue;

static void read_arguments(FunctionCallInfo fcinfo, OptionValue *values);
static void read_argument(FunctionCallInfo fcinfo, QwenOption option, OptionValue *value);
static List *strings_of_array(ArrayType *array, const char *name);
static void read_json(Jsonb *json, OptionValue *values);
static void read_pair(const JsonbValue *key, const JsonbValue *json, OptionValue *values);
static QwenOption option_by_key(const JsonbValue *key);
static char *valid_keys(void);
static void read_json_value(const OptionRule *rule, const JsonbValue *json, OptionValue *value);
static int64 json_integer(const OptionRule *rule, const JsonbValue *json);
static List *json_strings(const OptionRule *rule, const JsonbValue *json);
static void wrong_type(const OptionRule *rule, const char *expected);
static void check_values(FunctionCallInfo fcinfo, uint32 refused, const OptionValue *values);
static void check_stop(const List *strings);
static void resolve(const OptionValue *values, qwen_request_kind kind, QwenOptions *options);
static void resolve_sampling(const OptionValue *values, qwen_request_header *head);
static uint32 resolve_flags(const OptionValue *values, qwen_request_kind kind);
static QwenOnError resolve_on_error(const OptionValue *value);
static int resolve_priority(const OptionValue *value);

void
qwen_read_options(FunctionCallInfo fcinfo, qwen_request_kind kind, uint32 refused, QwenOptions *options)
{
	OptionValue values[QWEN_N_OPTIONS];

	memset(values, 0, sizeof(values));
	read_arguments(fcinfo, values);
	if (!PG_ARGISNULL(QWEN_ARG_OPTIONS))
		read_json(PG_GETARG_JSONB_P(QWEN_ARG_OPTIONS), values);
	check_values(fcinfo, refused, values);
	resolve(values, kind, options);
}

/* ---- named arguments ---- */

static void
read_arguments(FunctionCallInfo fcinfo, OptionValue *values)
{
	for (int option = 0; option < QWEN_N_NAMED_OPTIONS; option++)
	{
		if (PG_ARGISNULL(QWEN_ARG_OPTION(option)))
			continue;
		values[option].given = true;
		read_argument(fcinfo, option, &values[option]);
	}
}

static void
read_argument(FunctionCallInfo fcinfo, QwenOption option, OptionValue *value)
{
	int arg = QWEN_ARG_OPTION(option);

	switch (rules[option].type)
	{
		case OPTION_INT4:
			value->integer = PG_GETARG_INT32(arg);
			value->number = value->integer;
			break;
		case OPTION_INT8:
			value->integer = PG_GETARG_INT64(arg);
			break;
		case OPTION_FLOAT8:
			value->number = PG_GETARG_FLOAT8(arg);
			break;
		case OPTION_BOOL:
			value->flag = PG_GETARG_BOOL(arg);
			break;
		case OPTION_TEXT:
			value->string = text_to_cstring(PG_GETARG_TEXT_PP(arg));
			break;
		case OPTION_TEXTS:
			value->strings = strings_of_array(PG_GETARG_ARRAYTYPE_P(arg), rules[option].name);
			break;
		case OPTION_LATER:
			break;
	}
}

static List *
strings_of_array(ArrayType *array, const char *name)
{
	List *strings = NIL;
	Datum *elements;
	bool *nulls;
	int n;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s must not contain nulls", name)));
		strings = lappend(strings, DatumGetTextPP(elements[i]));
	}
	return strings;
}

/* ---- the argument "options" ---- */

static void
read_json(Jsonb *json, OptionValue *values)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue key;
	JsonbValue value;

	if (!JB_ROOT_IS_OBJECT(json))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("options must be a JSON object")));

	it = JsonbIteratorInit(&json->root);
	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&it, &value, true);
		read_pair(&key, &value, values);
	}
}

static void
read_pair(const JsonbValue *key, const JsonbValue *json, OptionValue *values)
{
	QwenOption option = option_by_key(key);

	/* As an argument that is NULL: nothing said. */
	if (json->type == jbvNull)
		return;

	if (values[option].given)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s is given twice", rules[option].name),
						errdetail("It is both a named argument and a key of options.")));
	values[option].given = true;
	read_json_value(&rules[option], json, &values[option]);
}

static QwenOption
option_by_key(const JsonbValue *key)
{
	for (int option = 0; option < QWEN_N_OPTIONS; option++)
	{
		const char *name = rules[option].name;

		if (key->val.string.len == strlen(name) && memcmp(key->val.string.val, name, key->val.string.len) == 0)
			return option;
	}

	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("unrecognized option \"%s\"", pnstrdup(key->val.string.val, key->val.string.len)),
					errhint("Valid options are %s.", valid_keys())));
}

static char *
valid_keys(void)
{
	StringInfoData names;

	initStringInfo(&names);
	for (int option = 0; option < QWEN_N_OPTIONS; option++)
		if (rules[option].type != OPTION_LATER)
			appendStringInfo(&names, "%s%s", names.len > 0 ? ", " : "", rules[option].name);
	return names.data;
}

static void
read_json_value(const OptionRule *rule, const JsonbValue *json, OptionValue *value)
{
	switch (rule->type)
	{
		case OPTION_INT4:
		case OPTION_INT8:
			value->integer = json_integer(rule, json);
			value->number = value->integer;
			break;
		case OPTION_FLOAT8:
			if (json->type != jbvNumeric)
				wrong_type(rule, "a number");
			value->number =
				DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow, NumericGetDatum(json->val.numeric)));
			break;
		case OPTION_BOOL:
			if (json->type != jbvBool)
				wrong_type(rule, "true or false");
			value->flag = json->val.boolean;
			break;
		case OPTION_TEXT:
			if (json->type != jbvString)
				wrong_type(rule, "a string");
			value->string = pnstrdup(json->val.string.val, json->val.string.len);
			break;
		case OPTION_TEXTS:
			value->strings = json_strings(rule, json);
			break;
		case OPTION_LATER:
			break;
	}
}

/* By way of its text, because numeric has no conversion to bigint that tells "1.5" from "2". */
static int64
json_integer(const OptionRule *rule, const JsonbValue *json)
{
	char *digits;
	char *end;
	int64 integer;

	if (json->type != jbvNumeric)
		wrong_type(rule, "an integer");

	digits = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(json->val.numeric)));
	errno = 0;
	integer = strtoll(digits, &end, 10);
	if (errno != 0 || *end != '\0')
		wrong_type(rule, "an integer");
	return integer;
}

static List *
json_strings(const OptionRule *rule, const JsonbValue *json)
{
	List *strings = NIL;
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue element;

	if (json->type == jbvString)
		return list_make1(cstring_to_text_with_len(json->val.string.val, json->val.string.len));
	if (json->type != jbvBinary || !JsonContainerIsArray(json->val.binary.data))
		wrong_type(rule, "a string or an array of strings");

	it = JsonbIteratorInit(json->val.binary.data);
	while ((token = JsonbIteratorNext(&it, &element, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		if (element.type != jbvString)
			wrong_type(rule, "a string or an array of strings");
		strings = lappend(strings, cstring_to_text_with_len(element.val.string.val, element.val.string.len));
	}
	return strings;
}

static void
wrong_type(const OptionRule *rule, const char *expected)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s must be %s", rule->name, expected)));
}

/* ---- checks ---- */

static void
check_values(FunctionCallInfo fcinfo, uint32 refused, const OptionValue *values)
{
	for (int option = 0; option < QWEN_N_OPTIONS; option++)
	{
		const OptionRule *rule = &rules[option];

		if (!values[option].given)
			continue;
		if (rule->type == OPTION_LATER)
			ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
							errmsg("%s is not supported in this version", rule->name)));
		if (refused & QWEN_OPTION_BIT(option))
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("%s does not apply to %s", rule->name, get_func_name(fcinfo->flinfo->fn_oid))));

		/* Written so that NaN fails. */
		if ((rule->type == OPTION_INT4 || rule->type == OPTION_FLOAT8) &&
			!(values[option].number >= rule->min && values[option].number <= rule->max))
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("%s must be between %.15g and %.15g, not %.15g", rule->name, rule->min, rule->max,
								   values[option].number)));
	}
	check_stop(values[QWEN_OPTION_STOP].strings);
}

static void
check_stop(const List *strings)
{
	ListCell *lc;

	if (list_length(strings) > MAX_STOP_STRINGS)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("stop must not contain more than %d strings", MAX_STOP_STRINGS)));
	foreach (lc, strings)
	{
		if (VARSIZE_ANY_EXHDR(lfirst(lc)) == 0)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("stop must not contain empty strings")));
	}
}

/* ---- precedence ---- */

static void
resolve(const OptionValue *values, qwen_request_kind kind, QwenOptions *options)
{
	const OptionValue *system = &values[QWEN_OPTION_SYSTEM];

	memset(options, 0, sizeof(*options));
	options->head.protocol = QWEN_PROTOCOL;
	options->head.kind = kind;
	options->head.flags = resolve_flags(values, kind);
	options->head.priority = resolve_priority(&values[QWEN_OPTION_PRIORITY]);
	resolve_sampling(values, &options->head);

	options->stop = values[QWEN_OPTION_STOP].strings;
	options->on_error = resolve_on_error(&values[QWEN_OPTION_ON_ERROR]);

	/* A raw continuation has no place for a system message. */
	options->system_given = system->given;
	if (system->given)
		options->system = system->string;
	else if (kind != QWEN_KIND_COMPLETE && qwen_system != NULL && qwen_system[0] != '\0')
		options->system = qwen_system;
}

static float
float_or_unset(const OptionValue *value)
{
	return value->given ? (float) value->number : QWEN_UNSET_FLOAT;
}

static void
resolve_sampling(const OptionValue *values, qwen_request_header *head)
{
	const OptionValue *max_tokens = &values[QWEN_OPTION_MAX_TOKENS];
	const OptionValue *temperature = &values[QWEN_OPTION_TEMPERATURE];
	const OptionValue *top_p = &values[QWEN_OPTION_TOP_P];
	const OptionValue *top_k = &values[QWEN_OPTION_TOP_K];
	const OptionValue *seed = &values[QWEN_OPTION_SEED];

	head->max_tokens = max_tokens->given ? max_tokens->integer : qwen_max_tokens;
	head->temperature = temperature->given ? temperature->number : qwen_temperature;
	head->top_p = float_or_unset(top_p);
	if (!top_p->given && qwen_top_p != 1.0)
		head->top_p = qwen_top_p;
	head->top_k = top_k->given ? top_k->integer : qwen_top_k != 0 ? qwen_top_k : QWEN_UNSET_INT;
	head->min_p = float_or_unset(&values[QWEN_OPTION_MIN_P]);
	head->presence_penalty = float_or_unset(&values[QWEN_OPTION_PRESENCE_PENALTY]);
	head->frequency_penalty = float_or_unset(&values[QWEN_OPTION_FREQUENCY_PENALTY]);
	head->repetition_penalty = float_or_unset(&values[QWEN_OPTION_REPETITION_PENALTY]);

	/*
	 * A fresh seed is made here and not in the engine, so that a request that is sent again after the engine's death gives
	 * the same answer.  As an argument 0 is a seed like any other.
	 */
	if (seed->given)
		head->seed = (uint64) seed->integer;
	else if (qwen_seed != 0)
		head->seed = (uint64) qwen_seed;
	else if (head->temperature > 0)
		head->seed = pg_prng_uint64(&pg_global_prng_state);
}

static bool
is_on(const OptionValue *value)
{
	return value->given && value->flag;
}

static uint32
resolve_flags(const OptionValue *values, qwen_request_kind kind)
{
	const OptionValue *thinking = &values[QWEN_OPTION_THINKING];
	const OptionValue *cache = &values[QWEN_OPTION_CACHE];
	uint32 flags = 0;

	if (kind != QWEN_KIND_COMPLETE && (thinking->given ? thinking->flag : qwen_thinking))
		flags |= QWEN_FLAG_THINKING;
	if (cache->given ? !cache->flag : qwen_cache == QWEN_CACHE_OFF)
		flags |= QWEN_FLAG_NO_CACHE;
	if (values[QWEN_OPTION_MAX_TOKENS].given)
		flags |= QWEN_FLAG_MAX_TOKENS;
	if (is_on(&values[QWEN_OPTION_TRUNCATE]))
		flags |= QWEN_FLAG_TRUNCATE;
	if (is_on(&values[QWEN_OPTION_CONTROL_TOKENS]))
		flags |= QWEN_FLAG_CONTROL_TOKENS;
	return flags;
}

static QwenOnError
resolve_on_error(const OptionValue *value)
{
	if (!value->given)
		return qwen_on_error;
	if (pg_strcasecmp(value->string, "raise") == 0)
		return QWEN_ON_ERROR_RAISE;
	if (pg_strcasecmp(value->string, "null") == 0)
		return QWEN_ON_ERROR_NULL;

	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("on_error must be \"raise\" or \"null\", not \"%s\"", value->string)));
}

/*
 * A request may step back behind the session's priority, never ahead of it: qwen.priority belongs to superusers, who pin
 * it for a role, and an option must not be a way around that.
 */
static int
resolve_priority(const OptionValue *value)
{
	static const char *const names[] = {"batch", "normal", "interactive"}; /* -1, 0, 1 */

	if (!value->given)
		return qwen_priority;

	for (int i = 0; i < lengthof(names); i++)
	{
		if (pg_strcasecmp(value->string, names[i]) != 0)
			continue;
		if (i - 1 > qwen_priority && !superuser())
			ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
							errmsg("permission denied to raise the priority to \"%s\"", names[i]),
							errdetail("The priority of this session is \"%s\".", names[qwen_priority + 1]),
							errhint("A superuser can set qwen.priority for a role.")));
		return i - 1;
	}

	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("priority must be \"interactive\", \"normal\" or \"batch\", not \"%s\"", value->string)));
}
