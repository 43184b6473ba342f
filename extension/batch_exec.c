/*-------------------------------------------------------------------------
 *
 * batch_exec.c
 *	  QwenBatch at run time.
 *
 *	  child --> read a row, submit its calls --> rows under way, in order
 *				--> wait for the first one --> condition, target list --> parent
 *
 * A window of rows slides over the child's output: whenever a row is handed
 * out, others are read, so the engine always has as many requests as the
 * window allows, and a slow answer delays the rows behind it but not the work
 * on them.  The window starts with one row and doubles when as many rows have
 * been handed out as it had, up to qwen.batch_rows, so that a parent that
 * stops after a few rows has caused less than twice the calls; with a parent
 * that will read everything it starts at its full size.  It is further
 * bounded by work_mem, for the rows and requests that are held.
 *
 * A row is copied, because the child may overwrite it.  The arguments of the
 * calls are computed before that, on the child's own slot.
 *
 * This is not ExecScan(): that would look for EvalPlanQual's tuples in this
 * node, while they come from the scans below it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/objectaccess.h"
#include "catalog/pg_proc.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "batch.h"

/* A call for a row. */
typedef struct Flight
{
	QwenEntry *entry;       /* NULL: not submitted yet, or not asked */
	StringInfoData request; /* to be submitted; data is NULL otherwise */
	QwenOnError on_error;
} Flight;

struct QwenRow
{
	dlist_node link; /* in QwenBatchState.rows */
	MinimalTuple tuple;
	Size bytes; /* of it all */
	Flight flights[FLEXIBLE_ARRAY_MEMBER];
};

static void begin_batch(CustomScanState *node, EState *estate, int eflags);
static void init_call(QwenBatchState *state, QwenBatchCall *call, FuncExpr *expression, Expr *condition);
static TupleTableSlot *exec_batch(CustomScanState *node);
static void set_window(QwenBatchState *state);
static void read_ahead(QwenBatchState *state);
static bool wants_more(const QwenBatchState *state);
static bool read_row(QwenBatchState *state);
static void prepare_call(QwenBatchState *state, QwenBatchCall *call, Flight *flight);
static void keep_request(QwenBatchState *state, Flight *flight);
static bool submit_row(QwenBatchState *state, QwenRow *row, bool may_wait);
static void take_first_row(QwenBatchState *state);
static void fill_scan_slot(QwenBatchState *state, QwenRow *row);
static void grow_window(QwenBatchState *state);
static void free_row(QwenBatchState *state, QwenRow *row);
static void drop_rows(QwenBatchState *state);
static void end_batch(CustomScanState *node);
static void rescan_batch(CustomScanState *node);
static void shutdown_batch(CustomScanState *node);

const CustomExecMethods qwen_batch_exec_methods = {.CustomName = "QwenBatch",
												   .BeginCustomScan = begin_batch,
												   .ExecCustomScan = exec_batch,
												   .EndCustomScan = end_batch,
												   .ReScanCustomScan = rescan_batch,
												   .ShutdownCustomScan = shutdown_batch,
												   .ExplainCustomScan = qwen_explain_batch};

/* ---- start ---- */

Node *
qwen_create_batch_state(CustomScan *scan)
{
	QwenBatchState *state = (QwenBatchState *) newNode(sizeof(QwenBatchState), T_CustomScanState);

	state->css.methods = &qwen_batch_exec_methods;
	state->plan.demand = intVal(list_nth(scan->custom_private, QWEN_PRIVATE_DEMAND));
	state->plan.bound = intVal(list_nth(scan->custom_private, QWEN_PRIVATE_BOUND));
	state->plan.side_effects = boolVal(list_nth(scan->custom_private, QWEN_PRIVATE_SIDE_EFFECTS));
	state->plan.tokens = list_nth(scan->custom_private, QWEN_PRIVATE_TOKENS);
	dlist_init(&state->rows);
	return (Node *) state;
}

/* The executor has made the scan tuple's slot, the target list and the condition already. */
static void
begin_batch(CustomScanState *node, EState *estate, int eflags)
{
	QwenBatchState *state = (QwenBatchState *) node;
	CustomScan *scan = castNode(CustomScan, node->ss.ps.plan);
	ListCell *lc;
	int i = 0;

	outerPlanState(node) = ExecInitNode(outerPlan(scan), estate, eflags & ~(EXEC_FLAG_BACKWARD | EXEC_FLAG_MARK));

	state->n_calls = list_length(scan->custom_exprs);
	state->n_columns = list_length(scan->custom_scan_tlist) - state->n_calls;
	state->calls = palloc0(state->n_calls * sizeof(QwenBatchCall));
	foreach (lc, scan->custom_exprs)
	{
		TargetEntry *tle = list_nth_node(TargetEntry, scan->custom_scan_tlist, state->n_columns + i);

		init_call(state, &state->calls[i], castNode(FuncExpr, tle->expr), lfirst(lc));
		i++;
	}
	if (eflags & EXEC_FLAG_EXPLAIN_ONLY)
		return;

	state->slot = ExecInitExtraTupleSlot(estate, ExecGetResultType(outerPlanState(node)), &TTSOpsMinimalTuple);
	state->rows_context = AllocSetContextCreate(CurrentMemoryContext, "qwen rows", ALLOCSET_DEFAULT_SIZES);
	state->scratch = AllocSetContextCreate(CurrentMemoryContext, "qwen row", ALLOCSET_DEFAULT_SIZES);
	state->statement = qwen_statement_of(estate);
}

/* As ExecInitFunc() does it, including the privileges. */
static void
init_call(QwenBatchState *state, QwenBatchCall *call, FuncExpr *expression, Expr *condition)
{
	int n = list_length(expression->args);
	AclResult acl = qwen_function_aclcheck(expression->funcid, GetUserId());
	PlanState *parent = &state->css.ss.ps;
	ListCell *lc;

	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_FUNCTION, get_func_name(expression->funcid));
	InvokeFunctionExecuteHook(expression->funcid);

	call->function = qwen_function_by_oid(expression->funcid);
	if (call->function == NULL)
		elog(ERROR, "function %u does not generate text", expression->funcid);
	call->expression = expression;
	if (!IsA(condition, Const))
		call->condition = ExecInitQual(list_make1(condition), parent);
	foreach (lc, expression->args)
		call->arguments = lappend(call->arguments, ExecInitExpr(lfirst(lc), parent));

	fmgr_info(expression->funcid, &call->flinfo);
	fmgr_info_set_expr((Node *) expression, &call->flinfo);
	call->fcinfo = palloc0(SizeForFunctionCallInfo(n));
	InitFunctionCallInfoData(*call->fcinfo, &call->flinfo, n, expression->inputcollid, NULL, NULL);
}

/* ---- rows ---- */

static TupleTableSlot *
exec_batch(CustomScanState *node)
{
	QwenBatchState *state = (QwenBatchState *) node;
	ExprContext *econtext = node->ss.ps.ps_ExprContext;
	ProjectionInfo *projection = node->ss.ps.ps_ProjInfo;

	if (state->shut_down)
		elog(ERROR, "rows are wanted of a QwenBatch that has been shut down");
	if (state->window == 0)
		set_window(state);
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		ResetExprContext(econtext);
		if (state->current != NULL)
			free_row(state, state->current);
		state->current = NULL;

		read_ahead(state);
		if (state->n_rows == 0)
			return ExecClearTuple(projection ? projection->pi_state.resultslot : node->ss.ss_ScanTupleSlot);
		take_first_row(state);
		grow_window(state);

		econtext->ecxt_scantuple = node->ss.ss_ScanTupleSlot;
		if (!ExecQual(node->ss.ps.qual, econtext))
		{
			InstrCountFiltered1(node, 1);
			continue;
		}
		return projection ? ExecProject(projection) : node->ss.ss_ScanTupleSlot;
	}
}

/* The window of a new scan. EvalPlanQual looks at a single row. */
static void
set_window(QwenBatchState *state)
{
	bool single = state->css.ss.ps.state->es_epq_active != NULL;
	bool all = state->plan.demand == QWEN_DEMAND_ALL ||
			   (state->plan.demand == QWEN_DEMAND_RUN && !qwen_statement_is_partial(state->statement));

	state->window = all && !single ? qwen_batch_rows : 1;
	state->handed_out = 0;
}

/*
 * A window that has been used up was too small.  It stays at one row when reading ahead would be noticed: then the node
 * does exactly what the plain plan does.
 */
static void
grow_window(QwenBatchState *state)
{
	EState *estate = state->css.ss.ps.state;

	if (++state->handed_out < state->window || estate->es_epq_active != NULL)
		return;
	if (state->plan.side_effects && state->plan.demand != QWEN_DEMAND_ALL)
		return;
	state->handed_out = 0;
	state->window = Min(2 * state->window, qwen_batch_rows);
}

/* Reads and submits as far as the window reaches and the queue has room. */
static void
read_ahead(QwenBatchState *state)
{
	/* The last row's calls may not all have found a place. */
	if (state->n_rows > 0 && !submit_row(state, dlist_tail_element(QwenRow, link, &state->rows), false))
		return;

	while (wants_more(state))
	{
		if (!read_row(state))
			return;
		if (!submit_row(state, dlist_tail_element(QwenRow, link, &state->rows), false))
			return;
	}
}

static bool
wants_more(const QwenBatchState *state)
{
	if (state->child_done || (state->plan.bound > 0 && state->n_read >= state->plan.bound))
		return false;
	if (state->n_rows == 0)
		return true;
	return state->n_rows < state->window && state->bytes < (Size) work_mem * 1024;
}

/* False at the end of the child's rows. */
static bool
read_row(QwenBatchState *state)
{
	TupleTableSlot *slot = ExecProcNode(outerPlanState(state));
	QwenRow *row;
	Size size = offsetof(QwenRow, flights) + state->n_calls * sizeof(Flight);
	MemoryContext old;

	if (TupIsNull(slot))
	{
		state->child_done = true;
		return false;
	}
	state->n_read++;
	state->counters.rows++;

	/* Whatever of the last row's is still wanted has been moved out of it. */
	MemoryContextReset(state->scratch);
	row = MemoryContextAllocZero(state->rows_context, size);
	state->css.ss.ps.ps_ExprContext->ecxt_outertuple = slot;
	old = MemoryContextSwitchTo(state->scratch);
	for (int i = 0; i < state->n_calls; i++)
		prepare_call(state, &state->calls[i], &row->flights[i]);
	MemoryContextSwitchTo(state->rows_context);
	row->tuple = ExecCopySlotMinimalTuple(slot);
	MemoryContextSwitchTo(old);

	row->bytes = size + row->tuple->t_len;
	for (int i = 0; i < state->n_calls; i++)
		row->bytes += row->flights[i].request.data != NULL ? row->flights[i].request.len : 0;
	state->bytes += row->bytes;
	state->n_rows++;
	dlist_push_tail(&state->rows, &row->link);
	return true;
}

/* Computes the arguments and makes the request; the current memory context is `scratch`. */
static void
prepare_call(QwenBatchState *state, QwenBatchCall *call, Flight *flight)
{
	ExprContext *econtext = state->css.ss.ps.ps_ExprContext;
	FunctionCallInfo fcinfo = call->fcinfo;
	QwenAsk ask;
	ListCell *lc;
	int i = 0;

	if (call->condition != NULL && !ExecQual(call->condition, econtext))
		return;

	foreach (lc, call->arguments)
	{
		fcinfo->args[i].value = ExecEvalExpr(lfirst(lc), econtext, &fcinfo->args[i].isnull);
		i++;
	}
	if (!call->function->prepare(fcinfo, &ask))
		return;

	flight->on_error = ask.on_error;
	if (ask.request.data != NULL)
		flight->request = ask.request;
	else
		flight->entry = qwen_entry_failed(state->statement, &ask.error);
}

/* Submits what is not yet; false when there is no place in the queue for all of it. */
static bool
submit_row(QwenBatchState *state, QwenRow *row, bool may_wait)
{
	for (int i = 0; i < state->n_calls; i++)
	{
		Flight *flight = &row->flights[i];

		if (flight->request.data == NULL)
			continue;
		flight->entry = qwen_entry_begin(state->statement, &flight->request, may_wait, &state->counters);
		if (flight->entry == NULL)
		{
			for (; i < state->n_calls; i++)
				keep_request(state, &row->flights[i]);
			return false;
		}
		if (GetMemoryChunkContext(flight->request.data) == state->rows_context)
			pfree(flight->request.data);
		flight->request.data = NULL;
	}
	return true;
}

/* Moves a request that cannot be submitted now out of `scratch`. */
static void
keep_request(QwenBatchState *state, Flight *flight)
{
	char *copy;

	if (flight->request.data == NULL || GetMemoryChunkContext(flight->request.data) == state->rows_context)
		return;
	copy = MemoryContextAlloc(state->rows_context, flight->request.len + 1);
	memcpy(copy, flight->request.data, flight->request.len + 1);
	flight->request.data = copy;
	flight->request.maxlen = flight->request.len + 1;
}

/* Waits for the first row and makes it the scan tuple. */
static void
take_first_row(QwenBatchState *state)
{
	QwenRow *row = dlist_head_element(QwenRow, link, &state->rows);

	/* A first row that lacks a place is the only one, hence may wait for it. */
	(void) submit_row(state, row, true);
	fill_scan_slot(state, row);

	dlist_delete(&row->link);
	state->n_rows--;
	state->current = row;
}

/* The answers become values in the memory of the expression context, which lasts as long as the row is in use. */
static void
fill_scan_slot(QwenBatchState *state, QwenRow *row)
{
	TupleTableSlot *scan = state->css.ss.ss_ScanTupleSlot;
	MemoryContext old = MemoryContextSwitchTo(state->css.ss.ps.ps_ExprContext->ecxt_per_tuple_memory);

	ExecClearTuple(scan);
	ExecStoreMinimalTuple(row->tuple, state->slot, false);
	slot_getallattrs(state->slot);
	memcpy(scan->tts_values, state->slot->tts_values, state->n_columns * sizeof(Datum));
	memcpy(scan->tts_isnull, state->slot->tts_isnull, state->n_columns * sizeof(bool));

	for (int i = 0; i < state->n_calls; i++)
	{
		QwenBatchCall *call = &state->calls[i];
		Flight *flight = &row->flights[i];
		Datum value = (Datum) 0;
		bool is_null = true;

		if (flight->entry != NULL)
		{
			QwenAnswer answer;

			qwen_entry_finish(flight->entry, &state->counters, &answer);
			call->fcinfo->isnull = false;
			value = call->function->finish(call->fcinfo, flight->on_error, &answer);
			is_null = call->fcinfo->isnull;
			qwen_entry_release(flight->entry);
			flight->entry = NULL;
		}
		scan->tts_values[state->n_columns + i] = value;
		scan->tts_isnull[state->n_columns + i] = is_null;
	}
	ExecStoreVirtualTuple(scan);
	MemoryContextSwitchTo(old);
}

/* ---- end ---- */

static void
free_row(QwenBatchState *state, QwenRow *row)
{
	for (int i = 0; i < state->n_calls; i++)
		if (row->flights[i].entry != NULL)
			qwen_entry_release(row->flights[i].entry);
	state->bytes -= row->bytes;
	heap_free_minimal_tuple(row->tuple);
	pfree(row);
}

/* Cancels what is under way for rows that nobody will take. */
static void
drop_rows(QwenBatchState *state)
{
	dlist_mutable_iter iter;

	if (state->statement == NULL)
		return;

	ExecClearTuple(state->css.ss.ss_ScanTupleSlot);
	ExecClearTuple(state->slot);
	if (state->css.ss.ps.ps_ProjInfo != NULL)
		ExecClearTuple(state->css.ss.ps.ps_ProjInfo->pi_state.resultslot);
	dlist_foreach_modify(iter, &state->rows) free_row(state, dlist_container(QwenRow, link, iter.cur));
	dlist_init(&state->rows);
	state->n_rows = 0;
	state->bytes = 0;
	state->current = NULL;
	MemoryContextReset(state->scratch);
	MemoryContextReset(state->rows_context);
}

static void
end_batch(CustomScanState *node)
{
	drop_rows((QwenBatchState *) node);
	ExecEndNode(outerPlanState(node));
}

static void
rescan_batch(CustomScanState *node)
{
	QwenBatchState *state = (QwenBatchState *) node;

	drop_rows(state);
	state->window = 0;
	state->n_read = 0;
	state->child_done = false;
	state->shut_down = false;

	/* With a changed parameter the child starts over by itself when its first row is wanted. */
	if (outerPlanState(node)->chgParam == NULL)
		ExecReScan(outerPlanState(node));
}

/*
 * The executor shuts a plan down whenever it stops, also between two FETCHes.  Then the rows under way will be wanted;
 * but after a run to the end they are left over from a LIMIT.
 */
static void
shutdown_batch(CustomScanState *node)
{
	QwenBatchState *state = (QwenBatchState *) node;

	if (state->statement == NULL || qwen_statement_is_partial(state->statement))
		return;
	state->shut_down = state->n_rows > 0;
	drop_rows(state);
}
