/*
 * plan_map.c
 *	  An explicit device map.
 *
 *	  {"embed": "cuda:0",
 *	   "layers": {"0-19": "cuda:0", "20-39": "cuda:1"},
 *	   "head": "cuda:1"}
 *
 * Every part must be placed, once.  With tensor parallelism the value is a
 * list of so many devices: ["cuda:0", "cuda:1"]; a device then always stands
 * in the same company.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config_json.h"
#include "plan_internal.h"

#define UNPLACED UINT8_MAX

static qwen_status refuse_map(qwen_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* fmt: a sentence on what is wrong. */
static qwen_status
refuse_map(qwen_error *err, const char *fmt, ...)
{
	char detail[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(detail, sizeof(detail), fmt, ap);
	va_end(ap);
	qwen_fail(err, QWEN_INVALID, "invalid device map");
	qwen_fail_detail(err, "%s", detail);
	return qwen_fail_hint(err, "qwen.device_map is a strategy, a device, or a map such as {\"embed\": \"cuda:0\", "
							   "\"layers\": {\"0-19\": \"cuda:0\", \"20-39\": \"cuda:1\"}, \"head\": \"cuda:1\"}.");
}

static bool
same_devices(const qwen_plan_problem *p, const uint8_t *a, const uint8_t *b)
{
	return !memcmp(a, b, (size_t) p->tensor_parallel);
}

/* A device may stand in one stage only, and there once. */
static qwen_status
check_members(const qwen_plan_problem *p, const qwen_plan_layout *layout, const uint8_t *members, qwen_error *err)
{
	for (int i = 0; i < p->tensor_parallel; i++)
	{
		const char *name = p->devices[members[i]].name;

		for (int j = 0; j < i; j++)
			if (members[i] == members[j])
				return refuse_map(err, "Device %s stands twice in one list.", name);
		for (int s = 0; s < layout->n_stages; s++)
			if (memchr(layout->stages[s], members[i], (size_t) p->tensor_parallel))
				return refuse_map(err, "Device %s stands in two different lists.", name);
		if (p->devices[members[i]].kind != p->devices[members[0]].kind)
			return refuse_map(err, "Devices of different kinds cannot share layers.");
	}
	return QWEN_OK;
}

/* The stage of those devices, a new one when they come first. */
static qwen_status
find_stage(const qwen_plan_problem *p, qwen_plan_layout *layout, const uint8_t *members, int *stage, qwen_error *err)
{
	qwen_status rc;

	for (*stage = 0; *stage < layout->n_stages; (*stage)++)
		if (same_devices(p, layout->stages[*stage], members))
			return QWEN_OK;
	if ((rc = check_members(p, layout, members, err)) != QWEN_OK)
		return rc;
	memcpy(layout->stages[layout->n_stages++], members, (size_t) p->tensor_parallel);
	return QWEN_OK;
}

/* value: the name of a device, or a list of names; part: what is placed, for messages. */
static qwen_status
parse_place(const qwen_plan_problem *p, const char *part, const json_t *value, qwen_plan_layout *layout, int *stage,
			qwen_error *err)
{
	size_t n = json_is_array(value) ? json_array_size(value) : 1;
	uint8_t members[QWEN_PLAN_MAX_DEVICES];
	char shown[64];

	qwen_config_printable(shown, sizeof(shown), part);
	if (n != (size_t) p->tensor_parallel)
		return refuse_map(err, "\"%s\" is placed on %zu devices, but qwen.tensor_parallel is %d.", shown, n,
						  p->tensor_parallel);
	for (size_t i = 0; i < n; i++)
	{
		const char *name = json_string_value(json_is_array(value) ? json_array_get(value, i) : value);
		int device = name ? qwen_plan_find_device(p->devices, p->n, name, strlen(name)) : -1;

		if (!name)
			return refuse_map(err, "The place of \"%s\" is not the name of a device.", shown);
		if (device < 0)
			return qwen_plan_unknown_device(p->devices, p->n, "qwen.device_map", name, strlen(name), err);
		members[i] = (uint8_t) device;
	}
	return find_stage(p, layout, members, stage, err);
}

/* "7" or "0-19". */
static bool
parse_range(const char *text, long *first, long *last)
{
	char *end;

	if (text[0] < '0' || text[0] > '9')
		return false;
	*first = *last = strtol(text, &end, 10);
	if (*end == '-' && end[1] >= '0' && end[1] <= '9')
		*last = strtol(end + 1, &end, 10);
	return *end == '\0';
}

static qwen_status
place_range(const qwen_plan_problem *p, const char *range, const json_t *value, qwen_plan_layout *layout,
			qwen_error *err)
{
	int n = p->geometry->n_layers, stage;
	char shown[64];
	long first, last;
	qwen_status rc;

	qwen_config_printable(shown, sizeof(shown), range);
	if (!parse_range(range, &first, &last))
		return refuse_map(err, "\"%s\" is not a range of layers such as 0-19.", shown);
	if (first > last)
		return refuse_map(err, "The range \"%s\" ends before it begins.", shown);
	if (last >= n)
		return refuse_map(err, "The range \"%s\" goes beyond the last layer, which is %d.", shown, n - 1);
	if ((rc = parse_place(p, range, value, layout, &stage, err)) != QWEN_OK)
		return rc;
	for (long i = first; i <= last; i++)
	{
		if (layout->item_stage[i + 1] != UNPLACED)
			return refuse_map(err, "Layer %ld is placed twice.", i);
		layout->item_stage[i + 1] = (uint8_t) stage;
	}
	return QWEN_OK;
}

static qwen_status
place_layers(const qwen_plan_problem *p, json_t *layers, qwen_plan_layout *layout, qwen_error *err)
{
	const char *range;
	json_t *value;
	qwen_status rc;

	if (!json_is_object(layers))
		return refuse_map(err, "\"layers\" is not an object of ranges and devices.");
	json_object_foreach(layers, range, value)
	{
		if ((rc = place_range(p, range, value, layout, err)) != QWEN_OK)
			return rc;
	}
	for (int i = 0; i < p->geometry->n_layers; i++)
		if (layout->item_stage[i + 1] == UNPLACED)
			return refuse_map(err, "Layer %d is not placed; the model has %d layers.", i, p->geometry->n_layers);
	return QWEN_OK;
}

static qwen_status
place_parts(const qwen_plan_problem *p, json_t *root, qwen_plan_layout *layout, qwen_error *err)
{
	const char *part;
	json_t *value;
	int stage;
	qwen_status rc = QWEN_OK;

	memset(layout->item_stage, UNPLACED, sizeof(layout->item_stage));
	json_object_foreach(root, part, value)
	{
		int item = !strcmp(part, "embed") ? 0 : !strcmp(part, "head") ? p->n_items - 1 : -1;
		char shown[64];

		qwen_config_printable(shown, sizeof(shown), part);
		if (!strcmp(part, "layers"))
			rc = place_layers(p, value, layout, err);
		else if (item < 0)
			return refuse_map(err, "\"%s\" is no part of a model.", shown);
		else if ((rc = parse_place(p, part, value, layout, &stage, err)) == QWEN_OK)
			layout->item_stage[item] = (uint8_t) stage;
		if (rc != QWEN_OK)
			return rc;
	}
	if (!json_object_get(root, "layers"))
		return refuse_map(err, "\"layers\" is not placed.");
	if (layout->item_stage[0] == UNPLACED || layout->item_stage[p->n_items - 1] == UNPLACED)
		return refuse_map(err, "\"%s\" is not placed.", layout->item_stage[0] == UNPLACED ? "embed" : "head");
	return QWEN_OK;
}

qwen_status
qwen_plan_place_by_map(const qwen_plan_problem *p, const char *map, qwen_plan_layout *layout, qwen_error *err)
{
	json_error_t where;
	json_t *root = json_loads(map, JSON_REJECT_DUPLICATES, &where);
	char shown[160];
	qwen_status rc;

	if (!root)
	{
		qwen_config_printable(shown, sizeof(shown), where.text);
		return refuse_map(err, "It is not valid JSON: %s.", shown);
	}
	rc = json_is_object(root) ? place_parts(p, root, layout, err) : refuse_map(err, "It is not a JSON object.");
	json_decref(root);
	return rc;
}
