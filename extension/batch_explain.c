/*-------------------------------------------------------------------------
 *
 * batch_explain.c
 *	  The lines of QwenBatch in EXPLAIN.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "nodes/makefuncs.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"
#include "funcapi.h"

#include "batch.h"
#include "options.h"

static void explain_calls(QwenBatchState *state, List *ancestors, ExplainState *es);
static FuncExpr *short_form(FuncExpr *call);
static void explain_estimates(QwenBatchState *state, ExplainState *es);
static void explain_counters(const QwenBatchCounters *counters, ExplainState *es);

void
qwen_explain_batch(CustomScanState *node, List *ancestors, ExplainState *es)
{
	QwenBatchState *state = (QwenBatchState *) node;

	explain_calls(state, ancestors, es);
	if (es->costs)
		explain_estimates(state, es);
	if (es->analyze)
		explain_counters(&state->counters, es);
}

static void
explain_calls(QwenBatchState *state, List *ancestors, ExplainState *es)
{
	List *context = set_deparse_context_plan(es->deparse_cxt, state->css.ss.ps.plan, ancestors);
	bool with_prefix = qwen_explain_tables(es) > 1 || es->verbose;
	List *calls = NIL;

	for (int i = 0; i < state->n_calls; i++)
		calls = lappend(
			calls, deparse_expression((Node *) short_form(state->calls[i].expression), context, with_prefix, false));
	ExplainPropertyList("Calls", calls, es);
}

/* A call as its author has written it: options that were not given are left out, others are named. */
static FuncExpr *
short_form(FuncExpr *call)
{
	FuncExpr *result = copyObject(call);
	char **names;
	Oid *types;
	char *modes;
	HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(call->funcid));
	int n = HeapTupleIsValid(tuple) ? get_func_arg_info(tuple, &types, &names, &modes) : 0;

	if (!HeapTupleIsValid(tuple))
		return result;
	result->args = NIL;
	for (int i = 0; i < Min(n, list_length(call->args)); i++)
	{
		Expr *arg = list_nth(call->args, i);
		NamedArgExpr *named;

		if (i == QWEN_ARG_SUBJECT)
		{
			result->args = lappend(result->args, arg);
			continue;
		}
		if (IsA(arg, Const) && ((Const *) arg)->constisnull)
			continue;
		named = makeNode(NamedArgExpr);
		named->arg = arg;
		named->name = names[i];
		named->argnumber = i;
		named->location = -1;
		result->args = lappend(result->args, named);
	}
	ReleaseSysCache(tuple);
	return result;
}

/* Of the prompts by the width of their columns, of the answers the most that they may have. */
static void
explain_estimates(QwenBatchState *state, ExplainState *es)
{
	double rows = outerPlan(state->css.ss.ps.plan)->plan_rows;
	double prompt = 0;
	double output = 0;

	for (int i = 0; i < state->n_calls; i++)
	{
		prompt += list_nth_int(state->plan.tokens, i);
		output += qwen_output_tokens(state->calls[i].expression);
	}
	ExplainPropertyFloat("Estimated Prompt Tokens", NULL, prompt * rows, 0, es);
	ExplainPropertyFloat("Estimated Output Tokens", NULL, output * rows, 0, es);
}

static void
explain_counters(const QwenBatchCounters *counters, ExplainState *es)
{
	ExplainPropertyUInteger("Input Rows", NULL, counters->rows, es);
	ExplainPropertyUInteger("Requests", NULL, counters->requests, es);
	ExplainPropertyUInteger("Distinct Requests", NULL, counters->distinct, es);
	ExplainPropertyUInteger("Sequences Run", NULL, counters->sequences, es);
	ExplainPropertyUInteger("Prompt Tokens", NULL, counters->prompt_tokens, es);
	ExplainPropertyUInteger("Cached Tokens", NULL, counters->cached_tokens, es);
	ExplainPropertyUInteger("Output Tokens", NULL, counters->output_tokens, es);
	ExplainPropertyFloat("Mean Batch", NULL, counters->waits > 0 ? (double) counters->in_flight / counters->waits : 0,
						 1, es);
	if (es->timing)
	{
		ExplainPropertyFloat("Queue Time", "ms", counters->queue_us / 1000.0, 3, es);
		ExplainPropertyFloat("Run Time", "ms", counters->run_us / 1000.0, 3, es);
	}
}
