/*-------------------------------------------------------------------------
 *
 * settings.c
 *	  The settings (GUCs).
 *
 * Three groups.  What decides which code or weights are loaded belongs to the
 * administrator: it is read from the configuration files and takes effect at
 * qwen_reload(), when the worker starts the next engine with it.  What sizes
 * the shared memory is fixed at server start.  What describes a single
 * request is anybody's, except for priority and logging of prompts.
 *
 * Strings are checked here as far as that needs no model, so that a slip in
 * ALTER SYSTEM is reported to its author and not to everybody at the next
 * start of the engine.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "miscadmin.h"

#include "qwen.h"

char *qwen_model = NULL;
char *qwen_device_map = NULL;
char *qwen_max_memory = NULL;
int qwen_tensor_parallel = 1;
int qwen_max_model_len = 0;
int qwen_max_sequences = 256;
char *qwen_kv_memory = NULL;
bool qwen_prefix_cache = true;
int qwen_threads = 0;

/* The engine takes these by name, and nobody else looks at them. */
static int dtype = 0;
static int quantization = 0;
static int kv_dtype = 0;
static int offload = 0;

int qwen_max_requests = 1024;
int qwen_queue_memory = 64 * 1024;

int qwen_heartbeat_timeout = 30;

int qwen_max_tokens = 512;
double qwen_temperature = 0.0;
double qwen_top_p = 1.0;
int qwen_top_k = 0;
int qwen_seed = 0;
char *qwen_system = NULL;
bool qwen_thinking = false;
int qwen_on_error = QWEN_ON_ERROR_RAISE;
int qwen_priority = 0;
int qwen_wait_ready = 60 * 1000;
int qwen_queue_timeout = 60 * 1000;
bool qwen_log_prompts = false;
int qwen_cache = QWEN_CACHE_STATEMENT;

bool qwen_batch_scan = true;
int qwen_batch_rows = 256;
bool qwen_debug_require_batch = false;

static const struct config_enum_entry dtype_options[] = {
	{"auto", 0, false}, {"bfloat16", 1, false}, {"float16", 2, false}, {"float32", 3, false}, {NULL, 0, false}};

static const struct config_enum_entry quantization_options[] = {
	{"none", 0, false}, {"int8", 1, false}, {"int4", 2, false}, {NULL, 0, false}};

static const struct config_enum_entry kv_dtype_options[] = {{"auto", 0, false},    {"bfloat16", 1, false},
															{"float16", 2, false}, {"float32", 3, false},
															{"int8", 4, false},    {NULL, 0, false}};

static const struct config_enum_entry offload_options[] = {{"off", 0, false}, {"cpu", 1, false}, {NULL, 0, false}};

static const struct config_enum_entry on_error_options[] = {
	{"raise", QWEN_ON_ERROR_RAISE, false}, {"null", QWEN_ON_ERROR_NULL, false}, {NULL, 0, false}};

static const struct config_enum_entry cache_options[] = {{"off", QWEN_CACHE_OFF, false},
														 {"statement", QWEN_CACHE_STATEMENT, false},
														 {"shared", QWEN_CACHE_SHARED, false},
														 {NULL, 0, false}};

static const struct config_enum_entry priority_options[] = {
	{"interactive", 1, false}, {"normal", 0, false}, {"batch", -1, false}, {NULL, 0, false}};

static void define_engine_settings(void);
static void define_type_settings(void);
static void define_placement_settings(void);
static void define_memory_settings(void);
static void define_sampling_settings(void);
static void define_request_settings(void);
static void define_waiting_settings(void);
static void define_batch_settings(void);
static bool check_memory(char **value, void **extra, GucSource source);
static bool is_size(const char *text, Size len);

void
qwen_define_settings(void)
{
	define_engine_settings();
	define_type_settings();
	define_placement_settings();
	define_sampling_settings();
	define_request_settings();
	define_waiting_settings();
	define_batch_settings();

	/* The server accepts settings that are fixed at its start only while it starts. */
	if (process_shared_preload_libraries_in_progress)
		define_memory_settings();

	MarkGUCPrefixReserved("qwen");
}

/* One argument a line, as in the server itself: the formatter would fill lines. */
/* clang-format off */
static void
define_engine_settings(void)
{
	DefineCustomStringVariable("qwen.model",
							   "Sets the model that the engine loads.",
							   "A folder with config.json, weights and tokenizer files; a relative path starts in the data "
							   "directory. Empty means the bundled demo model. Takes effect at qwen_reload().",
							   &qwen_model,
							   "",
							   PGC_SIGHUP,
							   0,
							   NULL,
							   NULL,
							   NULL);

	DefineCustomIntVariable("qwen.max_model_len",
							"Sets the longest sequence, prompt and answer together, in tokens.",
							"0 means what the model's configuration allows. Takes effect at qwen_reload().",
							&qwen_max_model_len,
							0,
							0,
							1 << 24,
							PGC_SIGHUP,
							0,
							NULL,
							NULL,
							NULL);

	DefineCustomIntVariable("qwen.max_sequences",
							"Sets the number of sequences that are decoded at once.",
							"Takes effect at qwen_reload().",
							&qwen_max_sequences,
							256,
							1,
							1 << 16,
							PGC_SIGHUP,
							0,
							NULL,
							NULL,
							NULL);

	DefineCustomIntVariable("qwen.threads",
							"Sets the number of threads of the engine.",
							"0 means one for each core that the server may use. Takes effect at qwen_reload().",
							&qwen_threads,
							0,
							0,
							1024,
							PGC_SIGHUP,
							0,
							NULL,
							NULL,
							NULL);

	DefineCustomIntVariable("qwen.heartbeat_timeout",
							"Sets how long the engine may be silent before it is killed and restarted.",
							"0 never kills it.",
							&qwen_heartbeat_timeout,
							30,
							0,
							INT_MAX / 1000,
							PGC_SIGHUP,
							GUC_UNIT_S,
							NULL,
							NULL,
							NULL);
}

/* How the engine keeps numbers. */
static void
define_type_settings(void)
{
	DefineCustomEnumVariable("qwen.dtype",
							 "Sets the type in which weights are kept that are not quantized.",
							 "auto keeps the type of the checkpoint. Takes effect at qwen_reload().",
							 &dtype,
							 0,
							 dtype_options,
							 PGC_SIGHUP,
							 0,
							 NULL,
							 NULL,
							 NULL);

	DefineCustomEnumVariable("qwen.quantization",
							 "Sets whether weights are quantized while they are loaded.",
							 "int8 and int4 take a half and a quarter of bfloat16's memory and time, at some cost in "
							 "quality. Takes effect at qwen_reload().",
							 &quantization,
							 0,
							 quantization_options,
							 PGC_SIGHUP,
							 0,
							 NULL,
							 NULL,
							 NULL);

	DefineCustomEnumVariable("qwen.kv_dtype",
							 "Sets the type in which keys and values of running sequences are kept.",
							 "auto is that of the weights before they are quantized. Takes effect at qwen_reload().",
							 &kv_dtype,
							 0,
							 kv_dtype_options,
							 PGC_SIGHUP,
							 0,
							 NULL,
							 NULL,
							 NULL);
}

/* Where the model goes and how much memory it may take there. */
static void
define_placement_settings(void)
{
	DefineCustomStringVariable("qwen.device_map",
							   "Sets which devices the model is placed on.",
							   "auto, a strategy, a device, or a JSON map. Takes effect at qwen_reload().",
							   &qwen_device_map,
							   "auto",
							   PGC_SIGHUP,
							   0,
							   NULL,
							   NULL,
							   NULL);

	DefineCustomStringVariable("qwen.max_memory",
							   "Sets how much memory the model may take of each device.",
							   "A list such as \"cpu:0=20GiB,cpu:1=20GiB\"; empty is what is free. Takes effect at "
							   "qwen_reload().",
							   &qwen_max_memory,
							   "",
							   PGC_SIGHUP,
							   0,
							   NULL,
							   NULL,
							   NULL);

	DefineCustomIntVariable("qwen.tensor_parallel",
							"Sets the number of devices that share each layer of the model.",
							"Takes effect at qwen_reload().",
							&qwen_tensor_parallel,
							1,
							1,
							64,
							PGC_SIGHUP,
							0,
							NULL,
							NULL,
							NULL);

	DefineCustomEnumVariable("qwen.offload",
							 "Sets where layers may go that the GPUs cannot hold.",
							 "Takes effect at qwen_reload().",
							 &offload,
							 0,
							 offload_options,
							 PGC_SIGHUP,
							 0,
							 NULL,
							 NULL,
							 NULL);

	DefineCustomStringVariable("qwen.kv_memory",
							   "Sets the memory reserved for keys and values of running sequences.",
							   "A size such as \"2GiB\", or auto. Takes effect at qwen_reload().",
							   &qwen_kv_memory,
							   "auto",
							   PGC_SIGHUP,
							   0,
							   check_memory,
							   NULL,
							   NULL);

	DefineCustomBoolVariable("qwen.prefix_cache",
							 "Computes the common beginnings of prompts once.",
							 "Takes effect at qwen_reload().",
							 &qwen_prefix_cache,
							 true,
							 PGC_SIGHUP,
							 0,
							 NULL,
							 NULL,
							 NULL);
}

static void
define_memory_settings(void)
{
	DefineCustomIntVariable("qwen.max_requests",
							"Sets the number of requests that can be queued or running in the whole server.",
							NULL,
							&qwen_max_requests,
							1024,
							1,
							1 << 20,
							PGC_POSTMASTER,
							0,
							NULL,
							NULL,
							NULL);

	DefineCustomIntVariable("qwen.queue_memory",
							"Sets the shared memory for the texts of queued and running requests.",
							NULL,
							&qwen_queue_memory,
							64 * 1024,
							1024,
							MAX_KILOBYTES,
							PGC_POSTMASTER,
							GUC_UNIT_KB,
							NULL,
							NULL,
							NULL);
}

static void
define_sampling_settings(void)
{
	DefineCustomIntVariable("qwen.max_tokens",
							"Sets the default for the longest answer, in tokens.",
							NULL,
							&qwen_max_tokens,
							512,
							1,
							1 << 24,
							PGC_USERSET,
							0,
							NULL,
							NULL,
							NULL);

	DefineCustomRealVariable("qwen.temperature",
							 "Sets the default temperature of sampling.",
							 "0 takes the most likely token each time, which makes answers repeatable.",
							 &qwen_temperature,
							 0.0,
							 0.0,
							 100.0,
							 PGC_USERSET,
							 0,
							 NULL,
							 NULL,
							 NULL);

	DefineCustomRealVariable("qwen.top_p",
							 "Sets the default share of probability that sampling chooses from.",
							 "1 chooses from all tokens.",
							 &qwen_top_p,
							 1.0,
							 0.0,
							 1.0,
							 PGC_USERSET,
							 0,
							 NULL,
							 NULL,
							 NULL);

	DefineCustomIntVariable("qwen.top_k",
							"Sets the default number of most likely tokens that sampling chooses from.",
							"0 chooses from all tokens.",
							&qwen_top_k,
							0,
							0,
							INT_MAX,
							PGC_USERSET,
							0,
							NULL,
							NULL,
							NULL);

	DefineCustomIntVariable("qwen.seed",
							"Sets the default seed of sampling.",
							"0 takes a fresh seed for each request.",
							&qwen_seed,
							0,
							0,
							INT_MAX,
							PGC_USERSET,
							0,
							NULL,
							NULL,
							NULL);
}

static void
define_request_settings(void)
{
	DefineCustomStringVariable("qwen.system",
							   "Sets the default system message.",
							   "Empty means the one of the model's chat template, if any.",
							   &qwen_system,
							   "",
							   PGC_USERSET,
							   0,
							   NULL,
							   NULL,
							   NULL);

	DefineCustomBoolVariable("qwen.thinking",
							 "Lets the model think before it answers.",
							 "The thoughts are never part of the returned text.",
							 &qwen_thinking,
							 false,
							 PGC_USERSET,
							 0,
							 NULL,
							 NULL,
							 NULL);

	DefineCustomEnumVariable("qwen.on_error",
							 "Sets what happens when a single row cannot be answered.",
							 "raise ends the statement, null gives NULL and a warning.",
							 &qwen_on_error,
							 QWEN_ON_ERROR_RAISE,
							 on_error_options,
							 PGC_USERSET,
							 0,
							 NULL,
							 NULL,
							 NULL);

	DefineCustomEnumVariable("qwen.priority",
							 "Sets the priority of requests.",
							 NULL,
							 &qwen_priority,
							 0,
							 priority_options,
							 PGC_SUSET,
							 0,
							 NULL,
							 NULL,
							 NULL);

	DefineCustomBoolVariable("qwen.log_prompts",
							 "Logs the prompts of requests.",
							 "Prompts are data: think of who can read the server log.",
							 &qwen_log_prompts,
							 false,
							 PGC_SUSET,
							 0,
							 NULL,
							 NULL,
							 NULL);
}

static void
define_waiting_settings(void)
{
	DefineCustomIntVariable("qwen.wait_ready",
							"Sets how long a call waits for the model to be loaded.",
							"0 does not wait.",
							&qwen_wait_ready,
							60 * 1000,
							0,
							INT_MAX,
							PGC_USERSET,
							GUC_UNIT_MS,
							NULL,
							NULL,
							NULL);

	DefineCustomIntVariable("qwen.queue_timeout",
							"Sets how long a call waits for a place in the queue.",
							"0 does not wait.",
							&qwen_queue_timeout,
							60 * 1000,
							0,
							INT_MAX,
							PGC_USERSET,
							GUC_UNIT_MS,
							NULL,
							NULL,
							NULL);
}

static void
define_batch_settings(void)
{
	DefineCustomBoolVariable("qwen.batch_scan",
							 "Lets a query keep calls of the model for many rows under way at a time.",
							 "Answers are the same with and without.",
							 &qwen_batch_scan,
							 true,
							 PGC_USERSET,
							 GUC_EXPLAIN,
							 NULL,
							 NULL,
							 NULL);

	DefineCustomIntVariable("qwen.batch_rows",
							"Sets the number of rows for which a plan node keeps calls of the model under way.",
							NULL,
							&qwen_batch_rows,
							256,
							1,
							1 << 16,
							PGC_USERSET,
							0,
							NULL,
							NULL,
							NULL);

	DefineCustomEnumVariable("qwen.cache",
							 "Sets what may be answered from work that was done before.",
							 "off computes every request anew, from its first token. statement runs equal greedy requests "
							 "of a statement once. shared is the same in this version.",
							 &qwen_cache,
							 QWEN_CACHE_STATEMENT,
							 cache_options,
							 PGC_USERSET,
							 0,
							 NULL,
							 NULL,
							 NULL);

	DefineCustomBoolVariable("qwen.debug_require_batch",
							 "Refuses plans that call the model row by row.",
							 NULL,
							 &qwen_debug_require_batch,
							 false,
							 PGC_USERSET,
							 GUC_NOT_IN_SAMPLE,
							 NULL,
							 NULL,
							 NULL);
}

/* clang-format on */

static bool
check_memory(char **value, void **extra, GucSource source)
{
	if (**value == '\0' || strcmp(*value, "auto") == 0 || is_size(*value, strlen(*value)))
		return true;

	GUC_check_errdetail("It must be auto or a size such as 512MB or 2GiB.");
	return false;
}

/* A number and a unit in the forms that the engine reads: 1073741824, 512MB, 1.5GiB. */
static bool
is_size(const char *text, Size len)
{
	Size i = strspn(text, "0123456789");

	if (i == 0 || i > len)
		return false;
	if (i < len && text[i] == '.')
		i += 1 + strspn(text + i + 1, "0123456789");
	if (i < len && text[i] == ' ')
		i++;
	if (i < len && strchr("KMGTkmgt", text[i]) != NULL)
	{
		i++;
		if (i < len && text[i] == 'i')
			i++;
	}
	if (i < len && (text[i] == 'B' || text[i] == 'b'))
		i++;
	return i == len;
}
