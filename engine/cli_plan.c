/*
 * cli_plan.c
 *	  qwen-engine plan: what each device would hold, or why the model does not
 *	  fit and what would help.
 *
 * Reads config.json and nothing else.  A refusal is an answer like any other:
 * the exit status is 0.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "machine.h"
#include "memory.h"
#include "plan.h"

/* The options that are not settings, and those that are numbers, as texts. */
typedef struct plan_options
{
	qwen_plan_settings settings;
	const char *devices;
	const char *tensor_parallel;
	const char *kv_memory;
	const char *max_model_len;
	const char *max_sequences;
	const char *threads;
	bool json;
} plan_options;

/* ---- input ---- */

/* Whole numbers within [min, max]; texts that are not given or empty leave *out alone. */
static qwen_status
parse_number(const char *setting, const char *text, long min, long max, int *out, qwen_error *err)
{
	char *end;
	long value;

	if (!text || !*text)
		return QWEN_OK;
	errno = 0;
	value = strtol(text, &end, 10);
	if (!errno && end != text && !*end && value >= min && value <= max)
	{
		*out = (int) value;
		return QWEN_OK;
	}
	qwen_fail(err, QWEN_INVALID, "invalid value for qwen.%s: \"%.40s\"", setting, text);
	return qwen_fail_hint(err, "It must be a whole number from %ld to %ld.", min, max);
}

static qwen_status
parse_numbers(plan_options *o, qwen_error *err)
{
	qwen_plan_settings *s = &o->settings;
	qwen_status rc;

	if ((rc = parse_number("tensor_parallel", o->tensor_parallel, 1, QWEN_PLAN_MAX_DEVICES, &s->tensor_parallel,
						   err)) != QWEN_OK ||
		(rc = parse_number("max_model_len", o->max_model_len, 0, 1 << 24, &s->max_model_len, err)) != QWEN_OK ||
		(rc = parse_number("max_sequences", o->max_sequences, 1, 1 << 16, &s->max_sequences, err)) != QWEN_OK ||
		(rc = parse_number("threads", o->threads, 0, 1024, &s->threads, err)) != QWEN_OK)
		return rc;
	if (s->threads == 0)
		s->threads = qwen_cpu_count();
	if (!o->kv_memory || !*o->kv_memory || !strcmp(o->kv_memory, "auto") ||
		qwen_parse_size(o->kv_memory, strlen(o->kv_memory), &s->kv_memory))
		return QWEN_OK;
	qwen_fail(err, QWEN_INVALID, "invalid value for qwen.kv_memory: \"%.40s\"", o->kv_memory);
	return qwen_fail_hint(err, "It must be auto or a size such as 512MB or 2GiB.");
}

/* -1 to go on, else the exit status. */
static int
parse_options(int argc, char **argv, plan_options *o, const char **model)
{
	static const char usage[] =
		"Tells what each device would hold and how many tokens fit, or which device lacks how many bytes and which\n"
		"settings would do. Reads config.json alone; MODEL may be a model folder or a config.json.";
	const qwen_cli_option options[] = {
		{"devices", 0, "LIST", "devices to plan for, e.g. 4x22GiB (default: this machine's)", &o->devices, NULL},
		{"device-map", 0, "MAP", "auto, balanced, balanced_low_0, sequential, a device, or a JSON map",
		 &o->settings.device_map, NULL},
		{"max-memory", 0, "LIST", "limits, e.g. cuda:0=20GiB,cpu=64GiB", &o->settings.max_memory, NULL},
		{"tensor-parallel", 0, "N", "devices that share each layer (default: 1)", &o->tensor_parallel, NULL},
		{"dtype", 0, "TYPE", "auto (the checkpoint's), bfloat16, float16, float32", &o->settings.dtype, NULL},
		{"quantization", 0, "TYPE", "none, int8, int4", &o->settings.quantization, NULL},
		{"kv-dtype", 0, "TYPE", "auto, bfloat16, float16, float32, int8", &o->settings.kv_dtype, NULL},
		{"kv-memory", 0, "SIZE", "memory for the KV cache of all devices, e.g. 2GiB (default: auto)", &o->kv_memory,
		 NULL},
		{"max-model-len", 0, "N", "tokens of one sequence (default: the model's)", &o->max_model_len, NULL},
		{"max-sequences", 0, "N", "sequences decoded at once (default: 256)", &o->max_sequences, NULL},
		{"threads", 0, "N", "threads of the engine (default: the cores this process may use)", &o->threads, NULL},
		{"offload", 0, "WHERE", "off, cpu: where layers may go that the GPUs cannot hold", &o->settings.offload, NULL},
		{"json", 0, NULL, "print one JSON object", NULL, &o->json},
		{NULL},
	};
	qwen_model_options parsed;
	int rc = qwen_cli_parse(argc, argv, usage, options, &parsed, false, NULL);

	if (rc >= 0)
		return rc;
	*model = parsed.path;
	if (*model && **model)
		return -1;
	fprintf(stderr, "qwen-engine: plan needs a model: -m MODEL\n");
	return 2;
}

static qwen_status
make_plan(const plan_options *o, const char *model, qwen_geometry *geometry, qwen_plan *plan, qwen_error *err)
{
	qwen_plan_device devices[QWEN_PLAN_MAX_DEVICES];
	char why[256];
	int n;
	qwen_status rc = qwen_geometry_read(model, geometry, err);

	if (rc != QWEN_OK)
		return rc;
	if (!o->devices)
		rc = qwen_machine_devices(&o->settings, devices, &n, why, sizeof(why), err);
	else if ((rc = qwen_plan_describe(o->devices, devices, &n, err)) == QWEN_OK)
		rc = qwen_plan_divide(&o->settings, devices, &n, err);
	if (rc != QWEN_OK)
		return rc;
	if (!o->devices && why[0] && !o->json)
		fprintf(stderr, "qwen-engine: no GPU, or not all: %s\n", why);
	return qwen_plan_make(geometry, &o->settings, devices, n, plan, err);
}

/* ---- names ---- */

/* "cuda:0", or "cuda:0+cuda:1" of a stage of two. */
static void
stage_name(const qwen_plan *plan, int stage, char *out, size_t size)
{
	size_t used = 0;

	out[0] = '\0';
	for (int i = 0; i < plan->tensor_parallel && used < size; i++)
		used += (size_t) snprintf(out + used, size - used, "%s%s", i ? "+" : "",
								  plan->devices[plan->stages[stage][i]].device.name);
}

static bool
in_stage(const qwen_plan *plan, int stage, int device)
{
	return memchr(plan->stages[stage], device, (size_t) plan->tensor_parallel) != NULL;
}

/* "embed, 0-9, head": what a device holds, in ranges. */
static void
holdings(const qwen_plan *plan, int device, char *out, size_t size)
{
	const qwen_plan_share *share = &plan->devices[device];
	size_t used = (size_t) snprintf(out, size, "%s", share->embed ? "embed" : "");

	for (int i = 0, end; i < plan->n_layers && used < size; i = end)
	{
		for (end = i; end < plan->n_layers && in_stage(plan, plan->layer_stage[end], device); end++)
			;
		if (end == i)
			end++;
		else if (end == i + 1)
			used += (size_t) snprintf(out + used, size - used, "%s%d", used ? ", " : "", i);
		else
			used += (size_t) snprintf(out + used, size - used, "%s%d-%d", used ? ", " : "", i, end - 1);
	}
	if (share->head && used < size)
		snprintf(out + used, size - used, "%s%s", used ? ", " : "", "head");
}

static const char *
quantization_name(const qwen_plan *plan)
{
	return plan->layer_dtype == plan->dtype ? "none" : qwen_dtype_name(plan->layer_dtype);
}

/* What is left of a budget. */
static uint64_t
bytes_free(const qwen_plan_share *share)
{
	uint64_t used = qwen_plan_total(&share->usage);

	return used < share->budget ? share->budget - used : 0;
}

/* ---- JSON ---- */

static json_t *
number(uint64_t n)
{
	return json_integer((json_int_t) n);
}

/* The sums of engine-cli.md 2 first, then their parts. */
static json_t *
device_object(const qwen_plan *plan, int device)
{
	const qwen_plan_share *share = &plan->devices[device];
	const qwen_plan_usage *u = &share->usage;
	char held[256];
	json_t *limit = share->limit == UINT64_MAX ? json_null() : number(share->limit);

	holdings(plan, device, held, sizeof(held));
	return json_pack("{s:s, s:s, s:o, s:o, s:o, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, "
					 "s:o}",
					 "name", share->device.name, "kind", share->device.kind == QWEN_DEVICE_CPU ? "cpu" : "cuda",
					 "total", number(share->device.total), "limit", limit, "budget", number(share->budget), "holds",
					 held, "weights", number(qwen_plan_weights(u)), "kv", number(u->kv), "state", number(u->state),
					 "workspace", number(qwen_plan_workspace(u)), "overhead", number(u->overhead), "margin",
					 number(u->margin), "free", number(bytes_free(share)), "embed", number(u->embed), "layers",
					 number(u->layers), "head", number(u->head), "activations", number(u->activations), "logits",
					 number(u->logits), "scratch", number(u->scratch), "rope", number(u->rope));
}

static json_t *
layer_list(const qwen_plan *plan)
{
	json_t *list = json_array();
	char name[256];

	for (int i = 0; i < plan->n_layers; i++)
	{
		stage_name(plan, plan->layer_stage[i], name, sizeof(name));
		json_array_append_new(list, json_string(name));
	}
	return list;
}

static json_t *
remedy_list(const qwen_plan *plan)
{
	json_t *list = json_array();

	for (int i = 0; i < plan->n_remedies; i++)
	{
		const qwen_plan_remedy *r = &plan->remedies[i];
		json_t *settings = json_object();

		for (int j = 0; j < r->n; j++)
			json_object_set_new(settings, r->changes[j].name, json_string(r->changes[j].value));
		json_array_append_new(list, json_pack("{s:o, s:s}", "settings", settings, "text", r->text));
	}
	return list;
}

/* Adds what a refusal has to say. */
static void
add_refusal(const qwen_plan *plan, json_t *out)
{
	qwen_error err;

	qwen_plan_refusal(plan, &err);
	json_object_set_new(out, "missing",
						json_pack("{s:s, s:o}", "device", plan->devices[plan->missing_device].device.name, "bytes",
								  number(plan->missing_bytes)));
	json_object_set_new(out, "message", json_string(err.message));
	json_object_set_new(out, "detail", json_string(err.detail));
	json_object_set_new(out, "hint", json_string(err.hint));
}

static void
print_json(const qwen_geometry *geometry, const qwen_plan *plan)
{
	json_t *devices = json_array(), *out;
	char embed[256], head[256];

	for (int i = 0; i < plan->n_devices; i++)
		json_array_append_new(devices, device_object(plan, i));
	stage_name(plan, plan->embed_stage, embed, sizeof(embed));
	stage_name(plan, plan->head_stage, head, sizeof(head));
	out = json_pack("{s:b, s:s, s:o, s:s, s:s, s:s, s:i, s:i, s:o, s:o, s:s, s:s, s:o, s:i, s:i}", "fits", plan->fits,
					"architecture", qwen_family_name(geometry->family), "parameters",
					number(qwen_geometry_parameters(geometry)), "dtype", qwen_dtype_name(plan->dtype), "quantization",
					quantization_name(plan), "kv_dtype", qwen_dtype_name(plan->kv_dtype), "tensor_parallel",
					plan->tensor_parallel, "max_model_len", plan->max_model_len, "devices", devices, "layers",
					layer_list(plan), "embed", embed, "head", head, "max_tokens_total", number(plan->max_tokens_total),
					"max_sequences", plan->max_sequences, "state_slots", plan->state_slots);
	if (!plan->fits)
		add_refusal(plan, out);
	json_object_set_new(out, "remedies", remedy_list(plan));
	qwen_cli_print(out);
	json_decref(out);
}

/* ---- the table ---- */

static void
print_device(const qwen_plan *plan, int device)
{
	const qwen_plan_share *share = &plan->devices[device];
	const qwen_plan_usage *u = &share->usage;
	const uint64_t columns[] = {share->budget,          qwen_plan_weights(u), u->kv + u->state,
								qwen_plan_workspace(u), u->overhead,          u->margin,
								bytes_free(share)};
	char held[256], text[32];

	holdings(plan, device, held, sizeof(held));
	printf("%-8s", share->device.name);
	for (size_t i = 0; i < sizeof(columns) / sizeof(columns[0]); i++)
		printf(" %11s", columns[i] ? qwen_memory_text(text, sizeof(text), columns[i]) : "-");
	printf("  %s\n", held[0] ? held : "-");
}

static void
print_table(const qwen_geometry *geometry, const qwen_plan *plan)
{
	printf("%s, %" PRIu64 " parameters, %s, quantization %s, cache %s, sequences of %d tokens\n\n",
		   qwen_family_name(geometry->family), qwen_geometry_parameters(geometry), qwen_dtype_name(plan->dtype),
		   quantization_name(plan), qwen_dtype_name(plan->kv_dtype), plan->max_model_len);
	printf("%-8s %11s %11s %11s %11s %11s %11s %11s  %s\n", "device", "available", "weights", "cache", "workspace",
		   "overhead", "margin", "free", "holds");
	for (int i = 0; i < plan->n_devices; i++)
		print_device(plan, i);
	if (plan->fits)
		printf("\nfits: %" PRIu64 " tokens in the cache, %d %s of full length\n", plan->max_tokens_total,
			   plan->max_sequences, plan->max_sequences == 1 ? "sequence" : "sequences");
}

static void
print_refusal(const qwen_plan *plan)
{
	qwen_error err;

	qwen_plan_refusal(plan, &err);
	printf("\n%s\n%s\n", err.message, err.detail);
	printf(plan->n_remedies ? "\nEach of these would do:\n" : "\nNo setting would make it fit.\n");
	for (int i = 0; i < plan->n_remedies; i++)
		printf("  %s\n", plan->remedies[i].text);
}

/* With --json an error is the result, so that a program need not read two streams. Returns the exit status. */
static int
fail(const plan_options *o, const qwen_error *err, int status)
{
	json_t *object;

	if (!o->json)
	{
		qwen_cli_fail(err);
		return status;
	}
	object = json_pack("{s:s, s:s, s:s, s:s}", "error", err->message, "code", qwen_sqlstate(err->status), "detail",
					   err->detail, "hint", err->hint);
	qwen_cli_print(object);
	json_decref(object);
	return status;
}

int
qwen_cmd_plan(int argc, char **argv)
{
	plan_options o = {0};
	const char *model = NULL;
	qwen_geometry geometry;
	qwen_plan plan;
	qwen_error err;
	int rc = parse_options(argc, argv, &o, &model);

	if (rc >= 0)
		return rc;
	if (parse_numbers(&o, &err) != QWEN_OK)
		return fail(&o, &err, 2);
	if (make_plan(&o, model, &geometry, &plan, &err) != QWEN_OK)
		return fail(&o, &err, 1);
	if (o.json)
	{
		print_json(&geometry, &plan);
		return 0;
	}
	print_table(&geometry, &plan);
	if (!plan.fits)
		print_refusal(&plan);
	return 0;
}
