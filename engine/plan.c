/*
 * plan.c
 *	  From settings to a plan: checks, the cache's size, the result.
 *
 *	  settings -> problem -> layout (plan_strategy.c) -> cache -> plan
 *
 * A layout is judged with the smallest cache that the settings allow, one
 * sequence of full length; what remains then decides how much more there is.
 */
#include "plan.h"

#include <stdio.h>
#include <string.h>

#include "dtype.h"
#include "memory.h"
#include "plan_internal.h"

/* ---- the problem ---- */

/* The checkpoint's own type; files that do not say it are taken for what all released models are. */
static qwen_dtype
checkpoint_dtype(const qwen_geometry *g)
{
	for (qwen_dtype d = QWEN_F32; d <= QWEN_BF16; d++)
		if (!strcmp(g->dtype, qwen_dtype_name(d)))
			return d;
	return QWEN_BF16;
}

/* Embedding and head are quantised to int8 at most, as weights_plan.c does it. */
static qwen_status
choose_types(qwen_plan_problem *p, qwen_error *err)
{
	const qwen_plan_settings *s = p->settings;
	bool chosen;
	qwen_status rc;

	p->dtype = checkpoint_dtype(p->geometry);
	if ((rc = qwen_dtype_parse(&qwen_setting_dtype, s->dtype, &chosen, &p->dtype, err)) != QWEN_OK)
		return rc;
	p->layer_dtype = p->edge_dtype = p->kv_dtype = p->dtype;
	if ((rc = qwen_dtype_parse(&qwen_setting_quantization, s->quantization, &chosen, &p->layer_dtype, err)) != QWEN_OK)
		return rc;
	if (chosen)
		p->edge_dtype = QWEN_INT8;
	return qwen_dtype_parse(&qwen_setting_kv_dtype, s->kv_dtype, &chosen, &p->kv_dtype, err);
}

static qwen_status
check_length(qwen_plan_problem *p, qwen_error *err)
{
	int asked = p->settings->max_model_len;

	p->max_model_len = asked > 0 ? asked : p->geometry->max_positions;
	if (p->max_model_len <= p->geometry->length_limit)
		return QWEN_OK;
	qwen_fail(err, QWEN_INVALID, "qwen.max_model_len is above what the model supports");
	qwen_fail_detail(err, "It is %d tokens; the model's config.json allows %d.", asked, p->geometry->length_limit);
	return qwen_fail_hint(err, "Lower qwen.max_model_len, or add YaRN rope scaling to config.json.");
}

static qwen_status
check_numbers(qwen_plan_problem *p, qwen_error *err)
{
	const qwen_plan_settings *s = p->settings;
	const char *offload = s->offload && *s->offload ? s->offload : "off";

	p->tensor_parallel = s->tensor_parallel ? s->tensor_parallel : 1;
	p->max_sequences = s->max_sequences ? s->max_sequences : QWEN_PLAN_MAX_SEQUENCES;
	p->step_tokens = s->step_tokens ? s->step_tokens : QWEN_PLAN_STEP_TOKENS;
	p->threads = s->threads > 0 ? s->threads : QWEN_PLAN_THREADS;
	p->kv_memory = s->kv_memory;
	if (p->tensor_parallel < 1 || p->tensor_parallel > QWEN_PLAN_MAX_DEVICES)
		return qwen_fail(err, QWEN_INVALID, "qwen.tensor_parallel must be from 1 to %d", QWEN_PLAN_MAX_DEVICES);
	if (p->max_sequences < 1 || p->max_sequences > 1 << 16 || p->step_tokens < 1 || p->step_tokens > 1 << 20)
		return qwen_fail(err, QWEN_INVALID, "a step must have room for a token and a sequence");
	p->offload = !strcmp(offload, "cpu");
	if (!p->offload && strcmp(offload, "off") != 0)
	{
		qwen_fail(err, QWEN_INVALID, "invalid value for qwen.offload: \"%.40s\"", offload);
		return qwen_fail_hint(err, "Known are off and cpu.");
	}
	if (p->offload && p->tensor_parallel > 1)
	{
		qwen_fail(err, QWEN_INVALID, "qwen.offload and qwen.tensor_parallel cannot be combined");
		return qwen_fail_hint(err, "Set qwen.tensor_parallel to 1, or qwen.offload to off.");
	}
	return qwen_geometry_splits(p->geometry, p->tensor_parallel, err);
}

static qwen_status
check_devices(qwen_plan_problem *p, qwen_error *err)
{
	qwen_status rc;

	if (p->n < 1 || p->n > QWEN_PLAN_MAX_DEVICES)
		return qwen_fail(err, QWEN_INVALID, "a plan needs from 1 to %d devices", QWEN_PLAN_MAX_DEVICES);
	if ((rc = qwen_plan_parse_limits(p->settings->max_memory, p->devices, p->n, p->limit, err)) != QWEN_OK)
		return rc;
	for (int i = 0; i < p->n; i++)
	{
		const qwen_plan_device *d = &p->devices[i];

		p->budget[i] = d->free < d->total ? d->free : d->total;
		if (p->limit[i] < p->budget[i])
			p->budget[i] = p->limit[i];
	}
	return QWEN_OK;
}

/* A block of all layers that keep one, on all devices of their stages; the same whatever the layout. */
static uint64_t
block_bytes(const qwen_plan_problem *p)
{
	qwen_plan_items all = qwen_plan_range(p, 0, p->n_items);

	return qwen_plan_full_layers(&all) * p->sizes[0].kv_block * (uint64_t) p->tensor_parallel;
}

/* The blocks that any layout must hold. */
static qwen_status
size_least_cache(qwen_plan_problem *p, qwen_error *err)
{
	uint64_t per_block = block_bytes(p), blocks;
	char asked[32], needed[32];

	p->sequence_blocks = ((uint64_t) p->max_model_len + QWEN_KV_BLOCK - 1) / QWEN_KV_BLOCK;
	p->least_blocks = p->sequence_blocks;
	if (p->kv_memory == 0 || per_block == 0)
		return QWEN_OK;
	blocks = p->kv_memory / per_block;
	p->least_blocks = blocks < INT32_MAX ? blocks : INT32_MAX;
	if (p->least_blocks >= p->sequence_blocks)
		return QWEN_OK;
	qwen_fail(err, QWEN_INVALID, "qwen.kv_memory is too small for one sequence");
	qwen_fail_detail(err, "It is %s; a sequence of %d tokens needs %s.",
					 qwen_memory_text(asked, sizeof(asked), p->kv_memory), p->max_model_len,
					 qwen_memory_text(needed, sizeof(needed), p->sequence_blocks * per_block));
	return qwen_fail_hint(err, "Raise qwen.kv_memory or lower qwen.max_model_len.");
}

static qwen_status
pose(qwen_plan_problem *p, qwen_error *err)
{
	qwen_status rc;

	if ((rc = choose_types(p, err)) != QWEN_OK || (rc = check_length(p, err)) != QWEN_OK ||
		(rc = check_numbers(p, err)) != QWEN_OK || (rc = check_devices(p, err)) != QWEN_OK)
		return rc;
	qwen_plan_measure(p);
	rc = size_least_cache(p, err);
	p->weighed_blocks = p->least_blocks;
	return rc;
}

/* ---- the cache ---- */

/*
 * What an automatic cache may take of a stage: see kv_share; a limit that the administrator has set is meant to be
 * used up.  Never less than the least cache, of so many bytes.
 */
static uint64_t
cache_room(const qwen_plan_problem *p, const qwen_plan_layout *layout, int stage, const qwen_plan_usage *least,
		   uint64_t cache)
{
	uint64_t left = qwen_plan_stage_budget(p, layout, stage) - (qwen_plan_total(least) - cache);
	int device = layout->stages[stage][0];
	uint64_t share = qwen_plan_kind_of(p->devices[device].kind)->kv_share;

	if (p->limit[device] == UINT64_MAX)
		left /= share;
	return left > cache ? left : cache;
}

/*
 * Sequences whose recurrent state one stage can keep: for at most half of the room, so that they have tokens too, of
 * which the least cache takes `tokens` bytes, but one in any case.
 */
static uint64_t
stage_states(uint64_t room, uint64_t tokens, uint64_t state)
{
	uint64_t spare = room - tokens;
	uint64_t half = room / 2 < spare ? room / 2 : spare;
	uint64_t n = half / state;

	return n > 0 ? n : 1;
}

/* Blocks and states that every stage can hold. The layout fits with the least of both. */
static void
size_cache(const qwen_plan_problem *p, const qwen_plan_layout *layout, uint64_t *blocks, uint64_t *states)
{
	uint64_t wanted = p->sequence_blocks * (uint64_t) p->max_sequences;
	uint64_t room[QWEN_PLAN_MAX_DEVICES], state[QWEN_PLAN_MAX_DEVICES], block[QWEN_PLAN_MAX_DEVICES];

	*states = (uint64_t) p->max_sequences;
	*blocks = p->kv_memory || wanted > INT32_MAX ? INT32_MAX : wanted;
	for (int s = 0; s < layout->n_stages; s++)
	{
		qwen_plan_items items = qwen_plan_stage_items(p, layout, s);
		qwen_device_kind kind = p->devices[layout->stages[s][0]].kind;
		qwen_plan_usage least;
		uint64_t tokens;

		qwen_plan_tally(p, kind, &items, p->least_blocks, 1, &least);
		state[s] = least.state;
		block[s] = qwen_plan_block_cost(p, kind, &items);
		tokens = p->least_blocks * block[s];
		room[s] = cache_room(p, layout, s, &least, tokens + least.state);
		if (least.state > 0 && stage_states(room[s], tokens, least.state) < *states)
			*states = stage_states(room[s], tokens, least.state);
	}
	for (int s = 0; s < layout->n_stages; s++)
		if (block[s] > 0)
		{
			uint64_t fit = (room[s] - *states * state[s]) / block[s];

			*blocks = fit < *blocks ? fit : *blocks;
		}
	if (p->kv_memory) /* as it says, not what is there */
		*blocks = p->least_blocks;
}

/* ---- the plan ---- */

static void
describe_stage(const qwen_plan_problem *p, const qwen_plan_layout *layout, int stage, uint64_t blocks, uint64_t states,
			   qwen_plan *plan)
{
	qwen_plan_items items = qwen_plan_stage_items(p, layout, stage);

	for (int i = 0; i < p->tensor_parallel; i++)
	{
		qwen_plan_share *share = &plan->devices[layout->stages[stage][i]];

		qwen_plan_tally(p, share->device.kind, &items, blocks, states, &share->usage);
		share->n_layers = (int) (qwen_plan_full_layers(&items) + qwen_plan_linear_layers(&items));
		share->embed = items.embed;
		share->head = items.head;
	}
}

static void
describe_layout(const qwen_plan_problem *p, const qwen_plan_layout *layout, qwen_plan *plan)
{
	for (int i = 0; i < p->n; i++)
	{
		plan->devices[i].device = p->devices[i];
		plan->devices[i].limit = p->limit[i];
		plan->devices[i].budget = p->budget[i];
	}
	plan->n_devices = p->n;
	plan->tensor_parallel = p->tensor_parallel;
	plan->n_layers = p->geometry->n_layers;
	plan->n_stages = layout->n_stages;
	memcpy(plan->stages, layout->stages, sizeof(plan->stages));
	memcpy(plan->layer_stage, layout->item_stage + 1, (size_t) plan->n_layers);
	plan->embed_stage = layout->item_stage[0];
	plan->head_stage = layout->item_stage[p->n_items - 1];
	plan->dtype = p->dtype;
	plan->layer_dtype = p->layer_dtype;
	plan->edge_dtype = p->edge_dtype;
	plan->kv_dtype = p->kv_dtype;
	plan->max_model_len = p->max_model_len;
	plan->step_tokens = p->step_tokens;
}

/* The device of the stage that has the smallest budget: what is missing is missing there. */
static int
smallest_member(const qwen_plan_problem *p, const qwen_plan_layout *layout, int stage)
{
	int least = layout->stages[stage][0];

	for (int i = 1; i < p->tensor_parallel; i++)
		if (p->budget[layout->stages[stage][i]] < p->budget[least])
			least = layout->stages[stage][i];
	return least;
}

/* How many sequences of full length there is room for. */
static int
full_sequences(const qwen_plan_problem *p, uint64_t blocks, uint64_t states)
{
	uint64_t n = blocks / p->sequence_blocks;

	n = n < states ? n : states;
	return (int) (n < (uint64_t) p->max_sequences ? n : (uint64_t) p->max_sequences);
}

static void
describe(const qwen_plan_problem *p, const qwen_plan_layout *layout, qwen_plan *plan)
{
	uint64_t blocks = p->least_blocks, states = 1;
	qwen_plan_items all = qwen_plan_range(p, 0, p->n_items);
	int stage;

	describe_layout(p, layout, plan);
	plan->missing_bytes = qwen_plan_shortfall(p, layout, &stage);
	plan->fits = plan->missing_bytes == 0;
	plan->missing_device = plan->fits ? -1 : smallest_member(p, layout, stage);
	if (plan->fits)
		size_cache(p, layout, &blocks, &states);
	plan->kv_blocks = blocks;
	plan->max_tokens_total = blocks * QWEN_KV_BLOCK;
	plan->max_sequences = full_sequences(p, blocks, states);
	plan->state_slots = qwen_plan_linear_layers(&all) ? (int) states : 0;
	for (int s = 0; s < layout->n_stages; s++)
		describe_stage(p, layout, s, blocks, states, plan);
}

/*
 * Places again, with pieces weighed with the cache that the last layout had room for, as long as that makes more room:
 * pieces that are even with the least cache are not with all of it.  The layout only changes for a better one.
 */
static qwen_status
improve(qwen_plan_problem *p, qwen_plan_layout *layout, qwen_error *err)
{
	uint64_t blocks, states;
	int stage;
	qwen_status rc = QWEN_OK;

	if (qwen_plan_shortfall(p, layout, &stage) > 0)
		return QWEN_OK;
	size_cache(p, layout, &blocks, &states);
	for (uint64_t before = 0; rc == QWEN_OK && blocks > before;)
	{
		qwen_plan_layout next;
		uint64_t next_blocks = 0;

		p->weighed_blocks = before = blocks;
		rc = qwen_plan_place(p, &next, err);
		if (rc == QWEN_OK && qwen_plan_shortfall(p, &next, &stage) == 0)
			size_cache(p, &next, &next_blocks, &states);
		if (next_blocks <= blocks)
			continue;
		*layout = next;
		blocks = next_blocks;
	}
	return rc;
}

qwen_status
qwen_plan_solve(const qwen_geometry *geometry, const qwen_plan_settings *settings, const qwen_plan_device *devices,
				int n_devices, qwen_plan *plan, qwen_error *err)
{
	qwen_plan_problem p = {.geometry = geometry, .settings = settings, .devices = devices, .n = n_devices};
	qwen_plan_layout layout;
	qwen_status rc;

	memset(plan, 0, sizeof(*plan));
	if ((rc = pose(&p, err)) != QWEN_OK || (rc = qwen_plan_place(&p, &layout, err)) != QWEN_OK ||
		(rc = improve(&p, &layout, err)) != QWEN_OK)
		return rc;
	describe(&p, &layout, plan);
	return QWEN_OK;
}

qwen_status
qwen_plan_make(const qwen_geometry *geometry, const qwen_plan_settings *settings, const qwen_plan_device *devices,
			   int n_devices, qwen_plan *plan, qwen_error *err)
{
	qwen_status rc = qwen_plan_solve(geometry, settings, devices, n_devices, plan, err);

	if (rc != QWEN_OK || plan->fits)
		return rc;
	return qwen_plan_find_remedies(geometry, settings, devices, n_devices, plan, err);
}

qwen_status
qwen_plan_refusal(const qwen_plan *plan, qwen_error *err)
{
	const qwen_plan_share *share = &plan->devices[plan->missing_device];
	const qwen_plan_usage *u = &share->usage;
	char need[32], have[32], missing[32], weights[32], kv[32];

	qwen_fail(err, QWEN_NO_MEMORY, "the model does not fit: device %s lacks %s", share->device.name,
			  qwen_memory_text(missing, sizeof(missing), plan->missing_bytes));
	qwen_fail_detail(err,
					 "It would hold %s (weights %s, KV cache for %llu tokens %s, and buffers); %s are available. "
					 "Exactly %llu bytes are missing.",
					 qwen_memory_text(need, sizeof(need), qwen_plan_total(u)),
					 qwen_memory_text(weights, sizeof(weights), qwen_plan_weights(u)),
					 (unsigned long long) plan->max_tokens_total, qwen_memory_text(kv, sizeof(kv), u->kv),
					 qwen_memory_text(have, sizeof(have), share->budget), (unsigned long long) plan->missing_bytes);
	if (plan->n_remedies == 0)
		return qwen_fail_hint(err, "No setting would make it fit: use a smaller model or more memory.");
	if (plan->n_remedies > 1 &&
		strlen(plan->remedies[0].text) + strlen(plan->remedies[1].text) + 32 < sizeof(err->hint))
		return qwen_fail_hint(err, "One of these would do: %s or: %s", plan->remedies[0].text, plan->remedies[1].text);
	return qwen_fail_hint(err, "This would do: %.200s", plan->remedies[0].text);
}
