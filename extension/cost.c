/*-------------------------------------------------------------------------
 *
 * cost.c
 *	  What a call of a generating function takes, by estimate: for the
 *	  planner, which asks qwen_support(), and for EXPLAIN.
 *
 * What counts is tokens.  Of the prompt they are guessed from its length: of
 * constants we know it, of columns the server has the average.  Of the answer
 * we take the most that it may have, max_tokens where that is a constant and
 * otherwise the session's setting.
 *
 * A call costs its function's COST for being made, as much again for each
 * hundred tokens of the answer, and for each thousand of the prompt, because
 * a prompt is computed many tokens at a time.  This puts the conditions of a
 * query into a good order: those without a model first, then short answers
 * before long ones.  It is in no proportion to what other nodes cost, which
 * nobody can know who does not know the model; but it need not be, as long as
 * it is large.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "nodes/nodeFuncs.h"
#include "nodes/supportnodes.h"
#include "optimizer/optimizer.h"
#include "parser/parsetree.h"
#include "utils/lsyscache.h"
#include "utils/selfuncs.h"
#include "utils/syscache.h"

#include "batch.h"
#include "options.h"

/* Bytes of text that make a token, roughly. */
#define BYTES_PER_TOKEN 4

/* Tokens that cost as much as the call itself. */
#define PROMPT_TOKENS_PER_COST 1000.0
#define OUTPUT_TOKENS_PER_COST 100.0

/* An array of unknown length has so many elements, as the planner assumes elsewhere. */
#define UNKNOWN_ARRAY_LENGTH 10

typedef struct Width
{
	Plan *child;
	List *rtable;
	double bytes;
} Width;

static bool estimate_cost(SupportRequestCost *request);
static bool is_call(Node *node);
static double answers(PlannerInfo *root, FuncExpr *call);
static double function_cost(Oid function);
static bool width_walker(Node *node, void *context);
static int column_width(Plan *child, Var *var, List *rtable);

PG_FUNCTION_INFO_V1(qwen_support);

/* ---- for the planner ---- */

/* An answer of NULL leaves the planner with COST and ROWS of the function. */
Datum
qwen_support(PG_FUNCTION_ARGS)
{
	Node *request = (Node *) PG_GETARG_POINTER(0);

	if (IsA(request, SupportRequestCost) && estimate_cost((SupportRequestCost *) request))
		PG_RETURN_POINTER(request);
	if (IsA(request, SupportRequestRows) && is_call(((SupportRequestRows *) request)->node))
	{
		SupportRequestRows *rows = (SupportRequestRows *) request;

		/* a piece for a token */
		rows->rows = qwen_output_tokens((FuncExpr *) rows->node);
		PG_RETURN_POINTER(request);
	}
	PG_RETURN_POINTER(NULL);
}

static bool
estimate_cost(SupportRequestCost *request)
{
	List *rtable = request->root != NULL ? request->root->parse->rtable : NIL;
	FuncExpr *call = (FuncExpr *) request->node;
	double n;

	if (!is_call(request->node))
		return false;

	n = answers(request->root, call);
	request->startup = 0;
	request->per_tuple = cpu_operator_cost * function_cost(request->funcid) *
						 (n + qwen_prompt_tokens(call, NULL, rtable) / PROMPT_TOKENS_PER_COST +
						  n * qwen_output_tokens(call) / OUTPUT_TOKENS_PER_COST);
	return true;
}

/* The planner asks about functions whose call it does not know, too. */
static bool
is_call(Node *node)
{
	return node != NULL && IsA(node, FuncExpr) && ((FuncExpr *) node)->args != NIL;
}

/* An array of prompts has an answer for each. */
static double
answers(PlannerInfo *root, FuncExpr *call)
{
	Node *subject = linitial(call->args);

	if (!OidIsValid(get_element_type(exprType(subject))))
		return 1;
	return root != NULL ? qwen_estimate_array_length(root, subject) : UNKNOWN_ARRAY_LENGTH;
}

static double
function_cost(Oid function)
{
	HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	double cost;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	cost = ((Form_pg_proc) GETSTRUCT(tuple))->procost;
	ReleaseSysCache(tuple);
	return cost;
}

/* Whether a function's cost is set here. */
bool
qwen_sets_cost(Oid function)
{
	Oid support = function < FirstNormalObjectId ? InvalidOid : get_func_support(function);
	FmgrInfo flinfo;

	if (!OidIsValid(support))
		return false;
	fmgr_info(support, &flinfo);
	return flinfo.fn_addr == qwen_support;
}

/* ---- tokens ---- */

int
qwen_output_tokens(FuncExpr *call)
{
	int arg = QWEN_ARG_OPTION(QWEN_OPTION_MAX_TOKENS);

	if (arg < list_length(call->args) && IsA(list_nth(call->args, arg), Const))
	{
		Const *constant = list_nth(call->args, arg);

		if (!constant->constisnull && constant->consttype == INT4OID)
			return Max(1, DatumGetInt32(constant->constvalue));
	}
	return qwen_max_tokens;
}

double
qwen_prompt_tokens(FuncExpr *call, Plan *child, List *rtable)
{
	Width width = {.child = child, .rtable = rtable};

	(void) width_walker(linitial(call->args), &width);
	return width.bytes / BYTES_PER_TOKEN + 1;
}

/* What an expression is made of, added up. */
static bool
width_walker(Node *node, void *context)
{
	Width *width = context;

	if (node == NULL)
		return false;
	if (IsA(node, Const))
	{
		Const *constant = (Const *) node;

		if (!constant->constisnull && constant->constlen == -1)
			width->bytes += VARSIZE_ANY_EXHDR(DatumGetPointer(constant->constvalue));
	}
	else if (IsA(node, Var))
		width->bytes += column_width(width->child, (Var *) node, width->rtable);
	else if (IsA(node, Param))
		width->bytes += get_typavgwidth(exprType(node), exprTypmod(node));
	return expression_tree_walker(node, width_walker, context);
}

/* Follows a column down to a table, if it comes from one. */
static int
column_width(Plan *child, Var *var, List *rtable)
{
	while (child != NULL && var->varno == OUTER_VAR && var->varattno > 0 &&
		   var->varattno <= list_length(child->targetlist))
	{
		TargetEntry *tle = list_nth_node(TargetEntry, child->targetlist, var->varattno - 1);

		if (!IsA(tle->expr, Var))
			break;
		var = (Var *) tle->expr;
		child = child->lefttree;
	}
	if (var->varlevelsup == 0 && var->varno > 0 && var->varno <= list_length(rtable) && var->varattno > 0)
	{
		RangeTblEntry *rte = rt_fetch(var->varno, rtable);
		int32 width = rte->rtekind == RTE_RELATION ? get_attavgwidth(rte->relid, var->varattno) : 0;

		if (width > 0)
			return width;
	}
	return get_typavgwidth(var->vartype, var->vartypmod);
}
