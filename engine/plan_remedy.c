/*
 * plan_remedy.c
 *	  What would make a refused model fit.
 *
 * Every candidate is planned like any other settings, so a remedy that is
 * listed is one that works.  Single changes come first, those that cost
 * nothing before those that cost accuracy or length; several at a time are
 * tried when there are few of those.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "plan_internal.h"

/* Shorter sequences than these are no remedy. */
#define LEAST_LEN 512
/* Remedies of one change, so that none of several is needed. */
#define ENOUGH 3

/* Everything a trial needs. */
typedef struct trials
{
	const qwen_geometry *geometry;
	const qwen_plan_settings *original;
	const qwen_plan_device *devices;
	int n_devices;
	qwen_plan *trial; /* scratch */
	qwen_plan *plan;  /* where remedies go */
} trials;

/* The settings that remedies change. */
typedef enum change
{
	NONE,
	DEVICE_MAP,
	TENSOR_PARALLEL,
	MAX_MEMORY,
	KV_MEMORY,
	MAX_SEQUENCES,
	KV_DTYPE,
	QUANTIZATION,
	MAX_MODEL_LEN,
	OFFLOAD
} change;

static const char *const change_names[] = {
	[DEVICE_MAP] = "device_map",     [TENSOR_PARALLEL] = "tensor_parallel", [MAX_MEMORY] = "max_memory",
	[KV_MEMORY] = "kv_memory",       [MAX_SEQUENCES] = "max_sequences",     [KV_DTYPE] = "kv_dtype",
	[QUANTIZATION] = "quantization", [MAX_MODEL_LEN] = "max_model_len",     [OFFLOAD] = "offload",
};

/* A change and its value: a text, or a number for those settings that are numbers. */
typedef struct step
{
	change what;
	const char *text;
	int number;
} step;

/* ---- trying ---- */

static void
apply(qwen_plan_settings *settings, const step *s)
{
	switch (s->what)
	{
		case DEVICE_MAP:
			settings->device_map = s->text;
			break;
		case TENSOR_PARALLEL:
			settings->tensor_parallel = s->number;
			break;
		case MAX_MEMORY:
			settings->max_memory = s->text;
			break;
		case KV_MEMORY:
			settings->kv_memory = 0;
			break;
		case MAX_SEQUENCES:
			settings->max_sequences = s->number;
			break;
		case KV_DTYPE:
			settings->kv_dtype = s->text;
			break;
		case QUANTIZATION:
			settings->quantization = s->text;
			break;
		case MAX_MODEL_LEN:
			settings->max_model_len = s->number;
			break;
		case OFFLOAD:
			settings->offload = s->text;
			break;
		case NONE:
			break;
	}
}

/* Whether the original settings with these changes fit; t->trial is the plan then. */
static bool
fits(trials *t, const step *steps, int n)
{
	qwen_plan_settings settings = *t->original;
	qwen_error err;

	for (int i = 0; i < n; i++)
		apply(&settings, &steps[i]);
	return qwen_plan_solve(t->geometry, &settings, t->devices, t->n_devices, t->trial, &err) == QWEN_OK &&
		   t->trial->fits;
}

/* ---- writing down ---- */

static uint64_t
all_weights(const qwen_plan *plan)
{
	uint64_t sum = 0;

	for (int i = 0; i < plan->n_devices; i++)
		sum += qwen_plan_weights(&plan->devices[i].usage);
	return sum;
}

/* The statements, and what they lead to. */
static void
write_text(const qwen_plan *trial, qwen_plan_remedy *r)
{
	char text[sizeof(r->text)], weights[32];
	size_t used = 0;

	for (int i = 0; i < r->n; i++)
		used += (size_t) snprintf(text + used, sizeof(text) - used, "ALTER SYSTEM SET qwen.%s = '%s'; ",
								  r->changes[i].name, r->changes[i].value);
	snprintf(text + used, sizeof(text) - used, "-- weights %s, %d %s of %d tokens",
			 qwen_memory_text(weights, sizeof(weights), all_weights(trial)), trial->max_sequences,
			 trial->max_sequences == 1 ? "sequence" : "sequences", trial->max_model_len);
	memcpy(r->text, text, sizeof(text));
}

/* t->trial is the plan that the steps give. */
static void
note(trials *t, const step *steps, int n)
{
	qwen_plan_remedy *r;

	if (t->plan->n_remedies == QWEN_PLAN_MAX_REMEDIES)
		return;
	r = &t->plan->remedies[t->plan->n_remedies++];
	r->n = n;
	for (int i = 0; i < n; i++)
	{
		snprintf(r->changes[i].name, sizeof(r->changes[i].name), "%s", change_names[steps[i].what]);
		if (steps[i].text)
			snprintf(r->changes[i].value, sizeof(r->changes[i].value), "%s", steps[i].text);
		else
			snprintf(r->changes[i].value, sizeof(r->changes[i].value), "%d", steps[i].number);
	}
	write_text(t->trial, r);
}

static bool
offer(trials *t, const step *steps, int n)
{
	bool fit = fits(t, steps, n);

	if (fit)
		note(t, steps, n);
	return fit;
}

/* ---- candidates ---- */

/* Whether a step says something else than the settings do. */
static bool
is_new(const qwen_plan_settings *s, const step *candidate)
{
	const char *text = candidate->what == QUANTIZATION ? s->quantization : s->kv_dtype;

	if (candidate->what == OFFLOAD)
		return !s->offload || strcmp(s->offload, candidate->text) != 0;
	/* from int4 to int8 is no remedy */
	return !text || (strcmp(text, candidate->text) != 0 && strcmp(text, "int4") != 0);
}

/*
 * The largest of the lengths that fit, rounded down to 256 tokens, on top of the first n steps; false when it is too
 * short to be of use.
 */
static bool
largest_length(trials *t, step *steps, int n)
{
	int low = 0, high = (t->plan->max_model_len - 1) / 256;

	while (low < high)
	{
		int middle = (low + high + 1) / 2;

		steps[n] = (step){MAX_MODEL_LEN, NULL, middle * 256};
		if (fits(t, steps, n + 1))
			low = middle;
		else
			high = middle - 1;
	}
	steps[n] = (step){MAX_MODEL_LEN, NULL, low * 256};
	return low * 256 >= LEAST_LEN && fits(t, steps, n + 1);
}

static void
offer_length(trials *t, const step *first, int n)
{
	step steps[QWEN_PLAN_MAX_CHANGES];

	for (int i = 0; i < n; i++)
		steps[i] = first[i];
	if (largest_length(t, steps, n))
		note(t, steps, n + 1);
}

/* Other ways to use the devices that there are: nothing is lost. */
static void
offer_placement(trials *t)
{
	const qwen_plan_settings *s = t->original;
	bool automatic = !s->device_map || !strcmp(s->device_map, "auto") || !strcmp(s->device_map, "balanced");

	if (s->kv_memory > 0)
		offer(t, &(step){KV_MEMORY, "auto", 0}, 1);
	if (s->max_memory && *s->max_memory)
		offer(t, &(step){MAX_MEMORY, "", 0}, 1);
	if (!automatic && offer(t, &(step){DEVICE_MAP, "auto", 0}, 1))
		return;
	for (int tp = 2; tp <= t->n_devices && s->tensor_parallel <= 1; tp *= 2)
	{
		const step steps[] = {{TENSOR_PARALLEL, NULL, tp}, {DEVICE_MAP, "auto", 0}};

		if (offer(t, steps, automatic ? 1 : 2))
			return;
	}
}

/* Fewer sequences at once: logits, and the recurrent state of hybrids. */
static void
offer_sequences(trials *t)
{
	int asked = t->original->max_sequences ? t->original->max_sequences : QWEN_PLAN_MAX_SEQUENCES;
	int n = 1;

	while (n * 2 < asked)
		n *= 2;
	for (; n >= 1 && n < asked; n /= 2)
		if (offer(t, &(step){MAX_SEQUENCES, NULL, n}, 1))
			return;
}

/* One change alone. */
static void
offer_single(trials *t)
{
	static const step narrower[] = {{QUANTIZATION, "int8", 0}, {QUANTIZATION, "int4", 0}, {KV_DTYPE, "int8", 0}};

	offer_placement(t);
	for (size_t i = 0; i < sizeof(narrower) / sizeof(narrower[0]); i++)
		if (is_new(t->original, &narrower[i]))
			offer(t, &narrower[i], 1);
	offer_length(t, NULL, 0);
	offer_sequences(t);
	if (is_new(t->original, &(step){OFFLOAD, "cpu", 0}))
		offer(t, &(step){OFFLOAD, "cpu", 0}, 1);
}

/* What narrower weights and a narrower cache do together, and if that is not enough, with shorter sequences. */
static void
offer_together(trials *t)
{
	static const step pairs[][2] = {
		{{QUANTIZATION, "int8", 0}, {KV_DTYPE, "int8", 0}},
		{{QUANTIZATION, "int4", 0}, {KV_DTYPE, "int8", 0}},
	};

	for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++)
	{
		if (!is_new(t->original, &pairs[i][0]) || fits(t, pairs[i], 1)) /* enough alone */
			continue;
		offer_length(t, pairs[i], 1);
		if (is_new(t->original, &pairs[i][1]) && !offer(t, pairs[i], 2))
			offer_length(t, pairs[i], 2);
	}
}

/* The same with all devices, when the map uses fewer; and with the processor's memory. */
static void
offer_more_devices(trials *t)
{
	static const step wider[][2] = {
		{{QUANTIZATION, "int8", 0}, {DEVICE_MAP, "auto", 0}},
		{{QUANTIZATION, "int4", 0}, {DEVICE_MAP, "auto", 0}},
		{{QUANTIZATION, "int8", 0}, {OFFLOAD, "cpu", 0}},
		{{QUANTIZATION, "int4", 0}, {OFFLOAD, "cpu", 0}},
	};

	for (size_t i = 0; i < sizeof(wider) / sizeof(wider[0]); i++)
		if (is_new(t->original, &wider[i][0]))
			offer(t, wider[i], 2);
}

qwen_status
qwen_plan_find_remedies(const qwen_geometry *geometry, const qwen_plan_settings *settings,
						const qwen_plan_device *devices, int n_devices, qwen_plan *plan, qwen_error *err)
{
	trials t = {.geometry = geometry, .original = settings, .devices = devices, .n_devices = n_devices, .plan = plan};

	t.trial = malloc(sizeof(*t.trial));
	if (!t.trial)
		return qwen_fail_memory(err, sizeof(*t.trial));
	offer_single(&t);
	if (plan->n_remedies < ENOUGH)
		offer_together(&t);
	if (plan->n_remedies == 0)
		offer_more_devices(&t);
	free(t.trial);
	return QWEN_OK;
}
