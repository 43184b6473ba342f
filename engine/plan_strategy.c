/*
 * plan_strategy.c
 *	  Which items go to which stage.
 *
 * Every strategy but the explicit map cuts the row of items (embedding,
 * layers, head) into one piece a stage, in the order of the devices; a piece
 * may be empty.  What a piece costs never falls when it grows, and both
 * sequential filling and the search for the best cuts build on that.
 */
#include <stdlib.h>
#include <string.h>

#include "plan_internal.h"

/* Costs of pieces that do not fit stand above those of all that do, and still tell bad from worse. */
#define OVERFULL 1e9

typedef qwen_device_kind device_kind;

/* ---- devices and stages ---- */

int
qwen_plan_find_device(const qwen_plan_device *devices, int n, const char *name, size_t len)
{
	for (int i = 0; i < n; i++)
		if (strlen(devices[i].name) == len && !memcmp(devices[i].name, name, len))
			return i;
	return -1;
}

/* GPUs when there are any. */
static device_kind
best_kind(const qwen_plan_problem *p)
{
	for (int i = 0; i < p->n; i++)
		if (p->devices[i].kind == QWEN_DEVICE_CUDA)
			return QWEN_DEVICE_CUDA;
	return QWEN_DEVICE_CPU;
}

static device_kind
stage_kind(const qwen_plan_problem *p, const qwen_plan_layout *layout, int stage)
{
	return p->devices[layout->stages[stage][0]].kind;
}

uint64_t
qwen_plan_stage_budget(const qwen_plan_problem *p, const qwen_plan_layout *layout, int stage)
{
	uint64_t least = UINT64_MAX;

	for (int i = 0; i < p->tensor_parallel; i++)
		if (p->budget[layout->stages[stage][i]] < least)
			least = p->budget[layout->stages[stage][i]];
	return least;
}

/* One stage after the other from the devices of a kind, tensor_parallel to each; what is left over stays idle. */
static void
group_devices(const qwen_plan_problem *p, device_kind kind, qwen_plan_layout *layout)
{
	int members = 0;

	for (int i = 0; i < p->n; i++)
		if (p->devices[i].kind == kind)
		{
			layout->stages[layout->n_stages][members++] = (uint8_t) i;
			if (members < p->tensor_parallel)
				continue;
			layout->n_stages++;
			members = 0;
		}
}

qwen_plan_items
qwen_plan_stage_items(const qwen_plan_problem *p, const qwen_plan_layout *layout, int stage)
{
	qwen_plan_items items = {.embed = layout->item_stage[0] == stage,
							 .head = layout->item_stage[p->n_items - 1] == stage};

	for (int i = 1; i + 1 < p->n_items; i++)
		if (layout->item_stage[i] == stage)
			items.layers[p->geometry->kinds[i - 1]]++;
	return items;
}

uint64_t
qwen_plan_shortfall(const qwen_plan_problem *p, const qwen_plan_layout *layout, int *stage)
{
	uint64_t worst = 0;

	*stage = 0;
	for (int s = 0; s < layout->n_stages; s++)
	{
		qwen_plan_items items = qwen_plan_stage_items(p, layout, s);
		uint64_t budget = qwen_plan_stage_budget(p, layout, s), total;
		qwen_plan_usage usage;

		qwen_plan_tally(p, stage_kind(p, layout, s), &items, p->least_blocks, 1, &usage);
		total = qwen_plan_total(&usage);
		if (total <= budget || total - budget <= worst)
			continue;
		worst = total - budget;
		*stage = s;
	}
	return worst;
}

static bool
layout_fits(const qwen_plan_problem *p, const qwen_plan_layout *layout)
{
	int stage;

	return qwen_plan_shortfall(p, layout, &stage) == 0;
}

/* ---- pieces ---- */

static void
assign(qwen_plan_layout *layout, int first, int end, int stage)
{
	for (int i = first; i < end; i++)
		layout->item_stage[i] = (uint8_t) stage;
}

static bool
piece_fits(const qwen_plan_problem *p, const qwen_plan_layout *layout, int stage, int first, int end)
{
	qwen_plan_items items = qwen_plan_range(p, first, end);
	qwen_plan_usage usage;

	qwen_plan_tally(p, stage_kind(p, layout, stage), &items, p->least_blocks, 1, &usage);
	return qwen_plan_total(&usage) <= qwen_plan_stage_budget(p, layout, stage);
}

/* Each stage takes what it can hold; the last one what is left, even if it cannot. */
static void
fill_sequentially(const qwen_plan_problem *p, qwen_plan_layout *layout)
{
	int first = 0;

	for (int s = 0; s < layout->n_stages; s++)
	{
		int low = first, high = p->n_items; /* [first, low) fits, [first, high + 1) is not known to */

		while (low < high)
		{
			int middle = (low + high + 1) / 2;

			if (piece_fits(p, layout, s, first, middle))
				low = middle;
			else
				high = middle - 1;
		}
		if (s == layout->n_stages - 1)
			low = p->n_items;
		assign(layout, first, low, s);
		first = low;
	}
}

/* ---- the best cuts ---- */

/* A search for the cuts of items [first, end) over stages [first_stage, n_stages). */
typedef struct search
{
	const qwen_plan_problem *p;
	const qwen_plan_layout *layout;
	int first;
	int first_stage;
	double scale;    /* of the time a piece takes, 0: time does not count */
	double *best;    /* [stages][items + 1] the least cost of the dearest piece, when stages 0 .. s hold [first, i) */
	uint16_t *start; /* [stages][items + 1] where the last of those pieces begins then */
} search;

/* Bytes a second that all devices of a stage read, 0: unknown. */
static double
stage_bandwidth(const qwen_plan_problem *p, const qwen_plan_layout *layout, int stage)
{
	double least = p->devices[layout->stages[stage][0]].bandwidth;

	for (int i = 1; i < p->tensor_parallel; i++)
		if (p->devices[layout->stages[stage][i]].bandwidth < least)
			least = p->devices[layout->stages[stage][i]].bandwidth;
	return least;
}

/*
 * Bytes and time in one scale: the share of the stage's budget that a piece fills, and the time its weights take to be
 * read, such that weights spread in proportion to budgets and weights spread in proportion to bandwidths cost the same.
 * Without unequal known bandwidths only bytes count.
 */
static double
time_scale(const qwen_plan_problem *p, const qwen_plan_layout *layout, int first_stage)
{
	qwen_plan_items all = qwen_plan_range(p, 0, p->n_items);
	double budgets = 0, bandwidths = 0, first = stage_bandwidth(p, layout, first_stage);
	bool equal = true;
	qwen_plan_usage usage;

	for (int s = first_stage; s < layout->n_stages; s++)
	{
		double bandwidth = stage_bandwidth(p, layout, s);

		if (bandwidth <= 0)
			return 0;
		equal &= bandwidth == first;
		budgets += (double) qwen_plan_stage_budget(p, layout, s);
		bandwidths += bandwidth;
	}
	if (equal || budgets <= 0)
		return 0;
	qwen_plan_tally(p, stage_kind(p, layout, first_stage), &all, p->weighed_blocks, 1, &usage);
	return (double) qwen_plan_total(&usage) / budgets * bandwidths / (double) (usage.layers + usage.head);
}

/* Of items [first, end) on a stage. */
static double
piece_cost(const search *s, int stage, int first, int end)
{
	qwen_plan_items items = qwen_plan_range(s->p, first, end);
	uint64_t budget = qwen_plan_stage_budget(s->p, s->layout, stage), total;
	double fill, time;
	qwen_plan_usage usage;

	qwen_plan_tally(s->p, stage_kind(s->p, s->layout, stage), &items, s->p->weighed_blocks, 1, &usage);
	total = qwen_plan_total(&usage);
	if (total == 0)
		return 0;
	fill = (double) total / (double) (budget ? budget : 1);
	if (total > budget)
		return OVERFULL * (1 + fill);
	time = s->scale > 0 ? s->scale * (double) (usage.layers + usage.head) / stage_bandwidth(s->p, s->layout, stage) : 0;
	return fill > time ? fill : time;
}

/*
 * The best beginning of the last piece when it ends at `end`: what is before it costs more the later it begins, the
 * piece itself less, so the best is where the two meet.
 */
static int
best_start(const search *s, const double *before, int stage, int end, double *cost)
{
	int low = s->first, high = end; /* the first place where what is before costs no less lies in [low, high] */
	double at;

	while (low < high)
	{
		int middle = (low + high) / 2;

		if (before[middle] >= piece_cost(s, stage, middle, end))
			high = middle;
		else
			low = middle + 1;
	}
	at = piece_cost(s, stage, low, end);
	*cost = before[low] > at ? before[low] : at;
	if (low > s->first)
	{
		double earlier = piece_cost(s, stage, low - 1, end);

		if (before[low - 1] > earlier)
			earlier = before[low - 1];
		if (earlier < *cost)
		{
			*cost = earlier;
			return low - 1;
		}
	}
	return low;
}

/* Fills the tables stage by stage, then goes back along the best cuts. */
static void
run_search(const search *s, qwen_plan_layout *layout)
{
	int n = s->p->n_items, width = n + 1, stages = layout->n_stages - s->first_stage, end = n;

	for (int i = s->first; i <= n; i++)
	{
		s->best[i] = piece_cost(s, s->first_stage, s->first, i);
		s->start[i] = (uint16_t) s->first;
	}
	for (int k = 1; k < stages; k++)
		for (int i = s->first; i <= n; i++)
			s->start[k * width + i] =
				(uint16_t) best_start(s, s->best + (k - 1) * width, s->first_stage + k, i, &s->best[k * width + i]);
	for (int k = stages - 1; k >= 0; k--)
	{
		int start = s->start[k * width + end];

		assign(layout, start, end, s->first_stage + k);
		end = start;
	}
}

/*
 * Cuts items [first, end of the row) over the stages from first_stage on such that the dearest piece is as cheap as can
 * be: dynamic programming, exact for pieces in this order.
 */
static qwen_status
balance(const qwen_plan_problem *p, qwen_plan_layout *layout, int first, int first_stage, qwen_error *err)
{
	size_t cells = (size_t) (layout->n_stages - first_stage) * (size_t) (p->n_items + 1);
	search s = {.p = p, .layout = layout, .first = first, .first_stage = first_stage};

	s.best = malloc(cells * sizeof(*s.best));
	s.start = malloc(cells * sizeof(*s.start));
	if (!s.best || !s.start)
	{
		free(s.best);
		free(s.start);
		return qwen_fail_memory(err, cells * sizeof(*s.best));
	}
	s.scale = time_scale(p, layout, first_stage);
	run_search(&s, layout);
	free(s.best);
	free(s.start);
	return QWEN_OK;
}

/* ---- strategies ---- */

/* Whether all stages but the first hold what they were given. */
static bool
others_fit(const qwen_plan_problem *p, const qwen_plan_layout *layout, int first)
{
	for (int s = 1, end; s < layout->n_stages; s++, first = end)
	{
		for (end = first; end < p->n_items && layout->item_stage[end] == s; end++)
			;
		if (!piece_fits(p, layout, s, first, end))
			return false;
	}
	return true;
}

/*
 * The first stage takes as few items as let the others hold the rest, at least `least` and never the head; the others
 * balance the rest.
 */
static qwen_status
spare_first(const qwen_plan_problem *p, qwen_plan_layout *layout, int least, qwen_error *err)
{
	int low = least, high = p->n_items - 1;
	qwen_status rc;

	while (low < high)
	{
		int middle = (low + high) / 2;

		if ((rc = balance(p, layout, middle, 1, err)) != QWEN_OK)
			return rc;
		if (others_fit(p, layout, middle))
			high = middle;
		else
			low = middle + 1;
	}
	assign(layout, 0, low, 0);
	return balance(p, layout, low, 1, err);
}

/*
 * The first of the stages that holds everything, or if none does, the balance of all.  Reduces the layout to the one
 * stage then.
 */
static qwen_status
place_automatically(const qwen_plan_problem *p, qwen_plan_layout *layout, qwen_error *err)
{
	for (int s = 0; s < layout->n_stages; s++)
		if (piece_fits(p, layout, s, 0, p->n_items))
		{
			memmove(layout->stages[0], layout->stages[s], sizeof(layout->stages[0]));
			layout->n_stages = 1;
			assign(layout, 0, p->n_items, 0);
			return QWEN_OK;
		}
	return balance(p, layout, 0, 0, err);
}

/*
 * The processor holds the embedding and the first layers, as few as let the GPUs hold the rest.  The embedding costs
 * nothing there, as only rows of it are read.
 */
static qwen_status
place_with_offload(const qwen_plan_problem *p, qwen_plan_layout *layout, qwen_error *err)
{
	int cpu = 0;

	while (cpu < p->n && p->devices[cpu].kind != QWEN_DEVICE_CPU)
		cpu++;
	if (cpu == p->n || best_kind(p) == QWEN_DEVICE_CPU)
		return QWEN_OK;
	memset(layout, 0, sizeof(*layout));
	layout->stages[0][0] = (uint8_t) cpu;
	layout->n_stages = 1;
	group_devices(p, QWEN_DEVICE_CUDA, layout);
	return spare_first(p, layout, 1, err);
}

/* Everything on one device that the map names. */
static qwen_status
place_on_device(const qwen_plan_problem *p, const char *name, qwen_plan_layout *layout, qwen_error *err)
{
	int device = qwen_plan_find_device(p->devices, p->n, name, strlen(name));

	if (device < 0)
		return qwen_plan_unknown_device(p->devices, p->n, "qwen.device_map", name, strlen(name), err);
	if (p->tensor_parallel > 1)
	{
		qwen_fail(err, QWEN_INVALID, "qwen.device_map names one device, but qwen.tensor_parallel is %d",
				  p->tensor_parallel);
		return qwen_fail_hint(err, "Set qwen.device_map to auto, or qwen.tensor_parallel to 1.");
	}
	layout->stages[0][0] = (uint8_t) device;
	layout->n_stages = 1;
	assign(layout, 0, p->n_items, 0);
	return QWEN_OK;
}

/* Stages of all devices of the best kind. */
static qwen_status
group_best(const qwen_plan_problem *p, qwen_plan_layout *layout, qwen_error *err)
{
	device_kind kind = best_kind(p);
	int n = 0;

	group_devices(p, kind, layout);
	if (layout->n_stages > 0)
		return QWEN_OK;
	for (int i = 0; i < p->n; i++)
		n += p->devices[i].kind == kind;
	qwen_fail(err, QWEN_INVALID, "qwen.tensor_parallel is larger than the number of devices");
	qwen_fail_detail(err, "It is %d; there %s %d of the kind %s.", p->tensor_parallel, n == 1 ? "is" : "are", n,
					 kind == QWEN_DEVICE_CUDA ? "cuda" : "cpu");
	if (kind == QWEN_DEVICE_CPU)
		return qwen_fail_hint(err, "Divide the processor with qwen.max_memory, such as cpu:0=8GiB,cpu:1=8GiB.");
	return qwen_fail_hint(err, "Lower qwen.tensor_parallel.");
}

qwen_status
qwen_plan_place(const qwen_plan_problem *p, qwen_plan_layout *layout, qwen_error *err)
{
	const char *map = p->settings->device_map && *p->settings->device_map ? p->settings->device_map : "auto";
	qwen_status rc;

	memset(layout, 0, sizeof(*layout));
	if (map[strspn(map, " \t\r\n")] == '{')
		return qwen_plan_place_by_map(p, map, layout, err);
	if (strcmp(map, "auto") != 0 && strcmp(map, "balanced") != 0 && strcmp(map, "balanced_low_0") != 0 &&
		strcmp(map, "sequential") != 0)
		return place_on_device(p, map, layout, err);
	if ((rc = group_best(p, layout, err)) != QWEN_OK)
		return rc;
	if (!strcmp(map, "auto"))
		rc = place_automatically(p, layout, err);
	else if (!strcmp(map, "balanced"))
		rc = balance(p, layout, 0, 0, err);
	else if (!strcmp(map, "balanced_low_0"))
		rc = layout->n_stages > 1 ? spare_first(p, layout, 0, err) : balance(p, layout, 0, 0, err);
	else
		fill_sequentially(p, layout);
	if (rc == QWEN_OK && p->offload && !layout_fits(p, layout))
		rc = place_with_offload(p, layout, err);
	return rc;
}
