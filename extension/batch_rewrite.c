/*-------------------------------------------------------------------------
 *
 * batch_rewrite.c
 *	  Puts QwenBatch nodes into a finished plan.
 *
 * Above a node N (a scan, a join, ...) with calls in its list or conditions:
 *
 *		before						after
 *
 *		N						C	[the list of N, by INDEX_VAR]
 *		 [upper(f(a)), b]		 |	 scan tuple: a, b, f(OUTER a)
 *		 where c, f(b) = 'x'	C	[a, b]
 *								 |	 where f(b) = 'x'
 *								N	[a, b]
 *									 where c
 *
 * The topmost C has N's list exactly (numbers, types, names, junk), so that
 * N's parent is as right as before.  N keeps what only N can compute, the
 * leaves: columns, aggregates, window functions.  There is a node for each
 * condition with calls, so that what a condition turns down is not asked for
 * the next, and one for each level of nested calls.  The first condition with
 * a call moves up with all that come after it, which keeps their order: the
 * planner has put cheap ones first, and those of row security before others.
 *
 * Below an aggregation, for calls in arguments of aggregates, nodes only add
 * columns to the input:
 *
 *		Agg [sum(length(f(a)))]		Agg [sum(length($3))]
 *		 |							 |
 *		N [b, a]					C	[b, a, f(a)]
 *									 |
 *									N	[b, a]
 *
 * A call is moved only if it is made whenever its expression is evaluated.
 * Whether that is so is known for the kinds of expressions listed in
 * is_transparent(); all others (CASE, COALESCE, AND, OR, ...) are left alone,
 * with the calls in them.  An argument of an aggregate with FILTER is asked
 * for only where the filter holds.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_proc.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "utils/lsyscache.h"

#include "batch.h"

/* Nodes that are being put on top of each other. */
typedef struct Layers
{
	Plan *top;
	QwenPlacement *placement;
	List *calls;      /* of the next node: FuncExpr by INDEX_VAR */
	List *conditions; /* of these calls, by INDEX_VAR */
	Expr *condition;  /* of calls that are being collected; NULL: none */
} Layers;

/* How the parts of an Agg are rewritten. */
typedef struct AggregateRewrite
{
	Layers *layers;
	List *before; /* Aggrefs as they were, and */
	List *after;  /* as they are now */
	bool collect_arguments;
} AggregateRewrite;

static bool calls_any_walker(Node *node, void *context);
static bool calls_always_walker(Node *node, void *context);
static bool side_effects_walker(Node *node, void *context);
static bool shows(Oid function, void *context);
static const QwenFunction *function_of(Node *node);
static bool is_transparent(Node *node);
static Node *leaves_mutator(Node *node, void *context);
static bool is_leaf(Node *node);
static AttrNumber leaf_number(List **leaves, Node *leaf);
static void add_layers(Layers *layers, List *conditions, List *list);
static Node *collect_calls(Layers *layers, Node *node);
static Node *collect_mutator(Node *node, void *context);
static void add_layer(Layers *layers, List *conditions);
static CustomScan *make_node(Plan *child, QwenPlacement *placement);
static List *scan_tuple(Plan *child, List *calls);
static List *pass_through(Plan *child, List *scan_tuple);
static List *private_list(const QwenBatchPlan *plan);
static Node *vars_mutator(Node *node, void *context);
static Node *with_varno(Node *node, int varno);
static bool aggregates_walker(Node *node, void *context);
static bool has_calls(Aggref *aggref);
static bool guards(Expr *filter);
static Node *aggregates_mutator(Node *node, void *context);
static Node *rewrite_aggref(Aggref *aggref, AggregateRewrite *rewrite);

/* ---- what is in an expression ---- */

bool
qwen_calls_any(Node *node)
{
	return calls_any_walker(node, NULL);
}

static bool
calls_any_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (function_of(node) != NULL)
		return true;
	return expression_tree_walker(node, calls_any_walker, context);
}

bool
qwen_calls_always(Node *node)
{
	return calls_always_walker(node, NULL);
}

static bool
calls_always_walker(Node *node, void *context)
{
	if (node == NULL || !is_transparent(node))
		return false;
	if (function_of(node) != NULL)
		return true;
	return expression_tree_walker(node, calls_always_walker, context);
}

bool
qwen_has_side_effects(Node *node)
{
	return side_effects_walker(node, NULL);
}

static bool
side_effects_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, NextValueExpr) || check_functions_in_node(node, shows, context))
		return true;
	return expression_tree_walker(node, side_effects_walker, context);
}

static bool
shows(Oid function, void *context)
{
	return func_volatile(function) == PROVOLATILE_VOLATILE && qwen_function_by_oid(function) == NULL;
}

static const QwenFunction *
function_of(Node *node)
{
	return IsA(node, FuncExpr) ? qwen_function_by_oid(((FuncExpr *) node)->funcid) : NULL;
}

/* Whether all below an expression is evaluated whenever it is. */
static bool
is_transparent(Node *node)
{
	switch (nodeTag(node))
	{
		case T_List:
		case T_TargetEntry:
		case T_OpExpr:
		case T_DistinctExpr:
		case T_ScalarArrayOpExpr:
		case T_RelabelType:
		case T_CoerceViaIO:
		case T_ConvertRowtypeExpr:
		case T_CoerceToDomain:
		case T_ArrayExpr:
		case T_RowExpr:
		case T_FieldSelect:
		case T_NullTest:
		case T_BooleanTest:
			return true;
		case T_FuncExpr:
			return !((FuncExpr *) node)->funcretset;
		case T_BoolExpr:
			return ((BoolExpr *) node)->boolop == NOT_EXPR;
		default:
			return false;
	}
}

/* ---- above a node ---- */

Plan *
qwen_batch_above(Plan *plan, QwenPlacement *placement)
{
	Layers layers = {.top = plan, .placement = placement};
	List *init_plans = plan->initPlan;
	List *kept = NIL;
	List *moved = NIL;
	List *leaves = NIL;
	List *list;
	ListCell *lc;

	foreach (lc, plan->qual)
	{
		if (moved != NIL || qwen_calls_always(lfirst(lc)))
			moved = lappend(moved, lfirst(lc));
		else
			kept = lappend(kept, lfirst(lc));
	}
	list = (List *) leaves_mutator((Node *) plan->targetlist, &leaves);
	moved = (List *) leaves_mutator((Node *) moved, &leaves);

	plan->targetlist = leaves;
	plan->qual = kept;
	plan->initPlan = NIL;
	/* Only an Append asks for rows asynchronously. */
	plan->async_capable = false;

	add_layers(&layers, moved, list);
	layers.top->initPlan = init_plans;
	return layers.top;
}

/* A leaf becomes a column of the scan tuple. The context is the list of leaves, of TargetEntry. */
static Node *
leaves_mutator(Node *node, void *context)
{
	List **leaves = context;

	if (node == NULL)
		return NULL;
	if (is_leaf(node))
		return (Node *) makeVar(INDEX_VAR, leaf_number(leaves, node), exprType(node), exprTypmod(node),
								exprCollation(node), 0);
	return expression_tree_mutator(node, leaves_mutator, context);
}

static bool
is_leaf(Node *node)
{
	return IsA(node, Var) || IsA(node, Aggref) || IsA(node, GroupingFunc) || IsA(node, WindowFunc);
}

/* Equal leaves share a column, unless each evaluation counts. */
static AttrNumber
leaf_number(List **leaves, Node *leaf)
{
	ListCell *lc;

	foreach (lc, *leaves)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);

		if (equal(tle->expr, leaf) && !contain_volatile_functions(leaf))
			return tle->resno;
	}
	*leaves = lappend(*leaves, makeTargetEntry((Expr *) leaf, list_length(*leaves) + 1, NULL, false));
	return list_length(*leaves);
}

/* Nodes for the conditions, one after the other, then for the list, which the last one has. */
static void
add_layers(Layers *layers, List *conditions, List *list)
{
	int bound = layers->placement->plan.bound;

	while (conditions != NIL || qwen_calls_always((Node *) list))
	{
		List *ready = NIL;

		if (conditions != NIL)
			linitial(conditions) = collect_calls(layers, linitial(conditions));
		else
			list = (List *) collect_calls(layers, (Node *) list);

		/* This condition, unless it waits for an outer call of nested ones; then those that need no call. */
		while (conditions != NIL && !qwen_calls_always(linitial(conditions)))
		{
			ready = lappend(ready, linitial(conditions));
			conditions = list_delete_first(conditions);
		}

		/* A bound of the output is one of the input only where nothing is filtered. */
		layers->placement->plan.bound = ready == NIL && conditions == NIL ? bound : 0;
		add_layer(layers, ready);
	}
	layers->top->targetlist = list;
}

/* Replaces the innermost calls by columns of the next node. */
static Node *
collect_calls(Layers *layers, Node *node)
{
	return collect_mutator(node, layers);
}

static Node *
collect_mutator(Node *node, void *context)
{
	Layers *layers = context;

	if (node == NULL || !is_transparent(node))
		return node;
	if (function_of(node) != NULL && !qwen_calls_always((Node *) ((FuncExpr *) node)->args))
	{
		layers->calls = lappend(layers->calls, node);
		layers->conditions =
			lappend(layers->conditions, layers->condition ? layers->condition : (Expr *) makeBoolConst(true, false));
		return (Node *) makeVar(INDEX_VAR, list_length(layers->top->targetlist) + list_length(layers->calls),
								exprType(node), exprTypmod(node), exprCollation(node), 0);
	}
	return expression_tree_mutator(node, collect_mutator, context);
}

/* A node for the calls that have been collected. It gives out its whole scan tuple. */
static void
add_layer(Layers *layers, List *conditions)
{
	Plan *child = layers->top;
	QwenPlacement *placement = layers->placement;
	CustomScan *scan;
	ListCell *lc;

	placement->plan.tokens = NIL;
	foreach (lc, layers->calls)
	{
		lfirst(lc) = with_varno(lfirst(lc), OUTER_VAR);
		placement->plan.tokens = lappend_int(
			placement->plan.tokens, (int) Min(qwen_prompt_tokens(lfirst(lc), child, placement->rtable), PG_INT32_MAX));
	}

	scan = make_node(child, placement);
	scan->custom_scan_tlist = scan_tuple(child, layers->calls);
	scan->custom_exprs = (List *) with_varno((Node *) layers->conditions, OUTER_VAR);
	scan->scan.plan.targetlist = pass_through(child, scan->custom_scan_tlist);
	scan->scan.plan.qual = conditions;

	layers->top = &scan->scan.plan;
	layers->calls = NIL;
	layers->conditions = NIL;
}

/* A node with its child's estimates, parameters and place in parallel plans. */
static CustomScan *
make_node(Plan *child, QwenPlacement *placement)
{
	CustomScan *scan = makeNode(CustomScan);

	scan->scan.plan = *child;
	scan->scan.plan.type = T_CustomScan;
	scan->scan.plan.extParam = bms_copy(child->extParam);
	scan->scan.plan.allParam = bms_copy(child->allParam);
	scan->scan.plan.parallel_aware = false;
	scan->scan.plan.async_capable = false;
	scan->scan.plan.plan_node_id = ++*placement->last_node_id;
	scan->scan.plan.lefttree = child;
	scan->scan.plan.righttree = NULL;
	scan->scan.plan.initPlan = NIL;
	scan->scan.scanrelid = 0;
	scan->custom_private = private_list(&placement->plan);
	scan->methods = &qwen_batch_scan_methods;
	return scan;
}

/* The child's columns and the calls. */
static List *
scan_tuple(Plan *child, List *calls)
{
	List *tuple = NIL;
	ListCell *lc;

	foreach (lc, child->targetlist)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);
		Var *var = makeVarFromTargetEntry(OUTER_VAR, tle);

		tuple = lappend(tuple, makeTargetEntry((Expr *) var, tle->resno, NULL, false));
	}
	foreach (lc, calls)
		tuple = lappend(tuple, makeTargetEntry(lfirst(lc), list_length(tuple) + 1, NULL, false));
	return tuple;
}

/* The child's list by INDEX_VAR, and the calls as further columns. */
static List *
pass_through(Plan *child, List *scan_tuple)
{
	List *list = NIL;
	int n = list_length(child->targetlist);
	ListCell *lc;

	foreach (lc, scan_tuple)
	{
		TargetEntry *column = lfirst_node(TargetEntry, lc);
		TargetEntry *tle =
			makeTargetEntry((Expr *) makeVarFromTargetEntry(INDEX_VAR, column), column->resno, NULL, true);

		if (tle->resno <= n)
		{
			TargetEntry *original = list_nth_node(TargetEntry, child->targetlist, tle->resno - 1);

			tle->resname = original->resname;
			tle->ressortgroupref = original->ressortgroupref;
			tle->resjunk = original->resjunk;
		}
		list = lappend(list, tle);
	}
	return list;
}

/* As custom_private's enum has it. */
static List *
private_list(const QwenBatchPlan *plan)
{
	return list_make4(makeInteger(plan->demand), makeInteger(plan->bound), makeBoolean(plan->side_effects),
					  plan->tokens);
}

static Node *
with_varno(Node *node, int varno)
{
	return vars_mutator(node, &varno);
}

/* Columns of the scan tuple by another name: what is OUTER_VAR in one node's calls is INDEX_VAR in its list. */
static Node *
vars_mutator(Node *node, void *context)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, Var))
	{
		Var *var = copyObject((Var *) node);

		var->varno = *(int *) context;
		return (Node *) var;
	}
	return expression_tree_mutator(node, vars_mutator, context);
}

/* ---- below an aggregation ---- */

bool
qwen_aggregates_call(Agg *agg)
{
	return aggregates_walker((Node *) agg->plan.targetlist, NULL) || aggregates_walker((Node *) agg->plan.qual, NULL);
}

static bool
aggregates_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, Aggref))
		return has_calls((Aggref *) node);
	return expression_tree_walker(node, aggregates_walker, context);
}

/* An argument is evaluated where the filter holds, the filter always. */
static bool
has_calls(Aggref *aggref)
{
	if (qwen_calls_always((Node *) aggref->aggfilter))
		return true;
	return guards(aggref->aggfilter) && qwen_calls_always((Node *) aggref->args);
}

/* Whether a filter can be asked once more than it would be. */
static bool
guards(Expr *filter)
{
	return filter == NULL || !contain_volatile_functions((Node *) filter);
}

void
qwen_batch_below(Agg *agg, QwenPlacement *placement)
{
	Layers layers = {.top = agg->plan.lefttree, .placement = placement};

	while (qwen_aggregates_call(agg))
	{
		AggregateRewrite rewrite = {.layers = &layers};

		agg->plan.targetlist = (List *) aggregates_mutator((Node *) agg->plan.targetlist, &rewrite);
		agg->plan.qual = (List *) aggregates_mutator((Node *) agg->plan.qual, &rewrite);
		add_layer(&layers, NIL);
	}
	agg->plan.lefttree = layers.top;
}

static Node *
aggregates_mutator(Node *node, void *context)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, Aggref))
		return rewrite_aggref((Aggref *) node, context);
	return expression_tree_mutator(node, aggregates_mutator, context);
}

/* The same aggregate in list and HAVING stays the same. */
static Node *
rewrite_aggref(Aggref *aggref, AggregateRewrite *rewrite)
{
	Layers *layers = rewrite->layers;
	ListCell *before;
	ListCell *after;
	Aggref *copy;

	if (!has_calls(aggref))
		return (Node *) aggref;
	forboth(before, rewrite->before, after, rewrite->after)
	{
		if (equal(lfirst(before), aggref))
			return copyObject(lfirst(after));
	}

	copy = copyObject(aggref);
	if (qwen_calls_always((Node *) copy->aggfilter))
		copy->aggfilter = (Expr *) with_varno(collect_calls(layers, (Node *) copy->aggfilter), OUTER_VAR);
	if (guards(aggref->aggfilter))
	{
		layers->condition = aggref->aggfilter;
		copy->args = (List *) with_varno(collect_calls(layers, (Node *) copy->args), OUTER_VAR);
		layers->condition = NULL;
	}
	rewrite->before = lappend(rewrite->before, aggref);
	rewrite->after = lappend(rewrite->after, copy);
	return (Node *) copy;
}
