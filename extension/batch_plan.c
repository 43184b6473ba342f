/*-------------------------------------------------------------------------
 *
 * batch_plan.c
 *	  Which nodes of a finished plan get a QwenBatch.
 *
 * The planner has done all its work when we look at the plan, so nothing
 * that it decides depends on us, and all kinds of statements come by here:
 * there is no other place that sees WHERE clauses, lists that were pushed
 * into scans of partitions, sources of UPDATE, and sub-plans alike.  A plan
 * without calls of generating functions is left as it is, after one walk
 * through its expressions.
 *
 * Going down the tree we carry what the nodes above mean for a node: whether
 * they will read all its rows, how many they want at most, whether they may
 * ask it to go back.  On the way up nodes are wrapped (batch_rewrite.c).  Each
 * reason to leave one alone is an early return.  Calls that are left alone are
 * made one at a time, with the same answers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/executor.h"
#include "jit/jit.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/planner.h"
#include "utils/lsyscache.h"

#include "batch.h"

/* What is the same for all nodes of a statement. */
typedef struct Walk
{
	PlannedStmt *stmt;
	int last_node_id;
} Walk;

/* What the nodes above mean for a node. */
typedef struct Position
{
	QwenDemand demand;
	int bound;      /* rows that are wanted at most; 0: not known */
	bool is_marked; /* a merge join may return to an earlier row */
} Position;

typedef bool (*PlanCheck)(Plan *plan, void *context);

static PlannedStmt *plan_statement(Query *parse, const char *query_string, int cursor_options, ParamListInfo params);
static bool statement_matches(PlannedStmt *stmt, PlanCheck check, void *context);
static bool tree_matches(Plan *plan, PlanCheck check, void *context);
static bool list_matches(List *plans, PlanCheck check, void *context);
static bool has_calls(Plan *plan, void *context);
static bool has_priced_calls(Plan *plan, void *context);
static bool priced_walker(Node *node, void *context);
static bool max_node_id(Plan *plan, void *context);
static void batch_statement(PlannedStmt *stmt, int cursor_options);
static Plan *batch_tree(Walk *walk, Plan *plan, Position position);
static void batch_children(Walk *walk, Plan *plan, Position position);
static void batch_list(Walk *walk, List *plans, Position position);
static Position below_left(Plan *plan, Position position);
static Position below_right(Plan *plan, Position position);
static int limit_bound(Limit *limit);
static Plan *batch_node(Walk *walk, Plan *plan, Position position);
static Plan *batch_aggregation(Walk *walk, Agg *agg, Position position);
static bool may_wrap(Plan *plan);
static bool is_join(Plan *plan);
static void free_join_calls(Plan *plan);
static bool reads_ahead_visibly(Plan *plan);
static bool computes_ahead(Node *node, void *context);
static bool conditions_of_join_show(Plan *plan);
static bool input_shows(Plan *plan);
static QwenPlacement place(Walk *walk, Position position, bool side_effects);
static Plan *materialize(Walk *walk, Plan *plan);
static bool require_batch(Plan *plan, void *context);

const CustomScanMethods qwen_batch_scan_methods = {"QwenBatch", qwen_create_batch_state};

static planner_hook_type previous_planner = NULL;

/* ---- the hook ---- */

void
qwen_install_batching(void)
{
	RegisterCustomScanMethods(&qwen_batch_scan_methods);
	previous_planner = planner_hook;
	planner_hook = plan_statement;
	qwen_install_run_hook();
}

static PlannedStmt *
plan_statement(Query *parse, const char *query_string, int cursor_options, ParamListInfo params)
{
	PlannedStmt *stmt = previous_planner ? previous_planner(parse, query_string, cursor_options, params)
										 : standard_planner(parse, query_string, cursor_options, params);

	/* The cost of our calls says nothing about the server's own work on the expressions around them. */
	if (stmt->jitFlags != PGJIT_NONE && statement_matches(stmt, has_priced_calls, NULL))
		stmt->jitFlags = PGJIT_NONE;
	if (!statement_matches(stmt, has_calls, NULL))
		return stmt;
	if (qwen_batch_scan)
		batch_statement(stmt, cursor_options);
	if (qwen_debug_require_batch)
		(void) statement_matches(stmt, require_batch, NULL);
	return stmt;
}

/* ---- looking through plans ---- */

/* Whether the check says so of any node. */
static bool
statement_matches(PlannedStmt *stmt, PlanCheck check, void *context)
{
	return tree_matches(stmt->planTree, check, context) || list_matches(stmt->subplans, check, context);
}

static bool
tree_matches(Plan *plan, PlanCheck check, void *context)
{
	if (plan == NULL)
		return false;
	check_stack_depth();

	if (check(plan, context) || tree_matches(plan->lefttree, check, context) ||
		tree_matches(plan->righttree, check, context))
		return true;
	switch (nodeTag(plan))
	{
		case T_Append:
			return list_matches(((Append *) plan)->appendplans, check, context);
		case T_MergeAppend:
			return list_matches(((MergeAppend *) plan)->mergeplans, check, context);
		case T_SubqueryScan:
			return tree_matches(((SubqueryScan *) plan)->subplan, check, context);
		case T_CustomScan:
			return list_matches(((CustomScan *) plan)->custom_plans, check, context);
		default:
			return false;
	}
}

/* Some sub-plans may be missing: the planner removes those that it found no use for. */
static bool
list_matches(List *plans, PlanCheck check, void *context)
{
	ListCell *lc;

	foreach (lc, plans)
	{
		if (tree_matches(lfirst(lc), check, context))
			return true;
	}
	return false;
}

static bool
has_calls(Plan *plan, void *context)
{
	return qwen_calls_any((Node *) plan->targetlist) || qwen_calls_any((Node *) plan->qual) ||
		   (is_join(plan) && qwen_calls_any((Node *) ((Join *) plan)->joinqual));
}

/* More than has_calls: also those of many rows or many answers, which are never batched. */
static bool
has_priced_calls(Plan *plan, void *context)
{
	return priced_walker((Node *) plan->targetlist, NULL) || priced_walker((Node *) plan->qual, NULL) ||
		   (IsA(plan, FunctionScan) && priced_walker((Node *) ((FunctionScan *) plan)->functions, NULL)) ||
		   (is_join(plan) && priced_walker((Node *) ((Join *) plan)->joinqual, NULL));
}

static bool
priced_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, FuncExpr) && qwen_sets_cost(((FuncExpr *) node)->funcid))
		return true;
	return expression_tree_walker(node, priced_walker, context);
}

static bool
max_node_id(Plan *plan, void *context)
{
	int *max = context;

	*max = Max(*max, plan->plan_node_id);
	return false;
}

/* ---- going down ---- */

static void
batch_statement(PlannedStmt *stmt, int cursor_options)
{
	Walk walk = {.stmt = stmt};
	Position top = {.demand = QWEN_DEMAND_RUN};
	Position sub = {.demand = QWEN_DEMAND_SOME};
	ListCell *lc;

	(void) statement_matches(stmt, max_node_id, &walk.last_node_id);
	stmt->planTree = batch_tree(&walk, stmt->planTree, top);
	foreach (lc, stmt->subplans)
		lfirst(lc) = batch_tree(&walk, lfirst(lc), sub);

	/* The planner has seen to this before, but for another tree. */
	if ((cursor_options & CURSOR_OPT_SCROLL) != 0 && !ExecSupportsBackwardScan(stmt->planTree))
		stmt->planTree = materialize(&walk, stmt->planTree);
}

static Plan *
batch_tree(Walk *walk, Plan *plan, Position position)
{
	if (plan == NULL)
		return NULL;
	check_stack_depth();

	batch_children(walk, plan, position);
	if (IsA(plan, Agg))
		plan = batch_aggregation(walk, (Agg *) plan, position);
	return batch_node(walk, plan, position);
}

static void
batch_children(Walk *walk, Plan *plan, Position position)
{
	Position some = {.demand = QWEN_DEMAND_SOME};

	switch (nodeTag(plan))
	{
		case T_Append:
			batch_list(walk, ((Append *) plan)->appendplans, position);
			break;
		case T_MergeAppend:
			batch_list(walk, ((MergeAppend *) plan)->mergeplans, position);
			break;
		case T_SubqueryScan:
			position.bound = plan->qual == NIL ? position.bound : 0;
			((SubqueryScan *) plan)->subplan = batch_tree(walk, ((SubqueryScan *) plan)->subplan, position);
			break;
		case T_CustomScan:
			batch_list(walk, ((CustomScan *) plan)->custom_plans, some);
			break;
		case T_ForeignScan:
			/* What is below is there for EvalPlanQual, to join a single row. */
			return;
		default:
			break;
	}
	plan->lefttree = batch_tree(walk, plan->lefttree, below_left(plan, position));
	plan->righttree = batch_tree(walk, plan->righttree, below_right(plan, position));
}

static void
batch_list(Walk *walk, List *plans, Position position)
{
	ListCell *lc;

	foreach (lc, plans)
		lfirst(lc) = batch_tree(walk, lfirst(lc), position);
}

static Position
below_left(Plan *plan, Position position)
{
	Position below = {.demand = position.demand};

	switch (nodeTag(plan))
	{
		case T_Limit:
			below.demand = QWEN_DEMAND_SOME;
			below.bound = limit_bound((Limit *) plan);
			break;
		case T_Result:
			below.bound = position.bound;
			below.is_marked = position.is_marked;
			break;
		case T_Sort:
		case T_Hash:
		case T_ModifyTable:
			below.demand = QWEN_DEMAND_ALL;
			break;
		case T_Agg:
			if (((Agg *) plan)->aggstrategy == AGG_PLAIN || ((Agg *) plan)->aggstrategy == AGG_HASHED)
				below.demand = QWEN_DEMAND_ALL;
			break;
		default:
			break;
	}
	return below;
}

/* The inner side of a join. */
static Position
below_right(Plan *plan, Position position)
{
	Position below = {.demand = position.demand};

	if (IsA(plan, MergeJoin))
	{
		below.demand = QWEN_DEMAND_SOME;
		below.is_marked = true;
	}
	if (IsA(plan, NestLoop))
	{
		Join *join = (Join *) plan;

		if (join->inner_unique || join->jointype == JOIN_SEMI || join->jointype == JOIN_ANTI)
			below.demand = QWEN_DEMAND_SOME;
	}
	return below;
}

/* How many rows a LIMIT reads, when it is known and not WITH TIES. */
static int
limit_bound(Limit *limit)
{
	int64 bound = 0;
	Node *parts[2] = {limit->limitCount, limit->limitOffset};

	if (limit->limitOption != LIMIT_OPTION_COUNT || limit->limitCount == NULL)
		return 0;
	for (int i = 0; i < 2; i++)
	{
		int64 part;

		if (parts[i] == NULL)
			continue;
		if (!IsA(parts[i], Const) || ((Const *) parts[i])->constisnull)
			return 0;
		part = DatumGetInt64(((Const *) parts[i])->constvalue);
		if (part < 0 || part > PG_INT32_MAX / 2)
			return 0;
		bound += part;
	}
	return (int) bound;
}

/* ---- wrapping ---- */

static Plan *
batch_node(Walk *walk, Plan *plan, Position position)
{
	bool side_effects;
	QwenPlacement placement;

	/* A node whose list is computed by itself or looked at by its own kind only. */
	if (!may_wrap(plan))
		return plan;

	/* A merge join marks its inner side and goes back there, which we cannot. */
	if (position.is_marked)
		return plan;

	/* In the list or the filter, that is. */
	free_join_calls(plan);
	if (!qwen_calls_always((Node *) plan->targetlist) && !qwen_calls_always((Node *) plan->qual))
		return plan;

	/* What else happens for a row must not happen for rows beyond a LIMIT. */
	side_effects = reads_ahead_visibly(plan);
	if (side_effects && position.demand == QWEN_DEMAND_SOME)
		return plan;

	placement = place(walk, position, side_effects);
	return qwen_batch_above(plan, &placement);
}

/* Calls in arguments of aggregates. */
static Plan *
batch_aggregation(Walk *walk, Agg *agg, Position position)
{
	Position input = below_left(&agg->plan, position);
	QwenPlacement placement;
	bool side_effects;

	if (!qwen_aggregates_call(agg))
		return &agg->plan;

	/* The arguments are aggregated already. */
	if (DO_AGGSPLIT_COMBINE(agg->aggsplit))
		return &agg->plan;

	/* Several sorts of the input, each of which would carry the answers along. */
	if (agg->chain != NIL || agg->groupingSets != NIL)
		return &agg->plan;

	side_effects = input_shows(agg->plan.lefttree);
	if (side_effects && input.demand == QWEN_DEMAND_SOME)
		return &agg->plan;

	placement = place(walk, input, side_effects);
	qwen_batch_below(agg, &placement);
	return &agg->plan;
}

/*
 * Nodes that compute whatever is in their list, and that have no conditions or apply them as a filter, to rows that are
 * complete but for the list.  Not: ModifyTable (RETURNING is computed once a row is written), ProjectSet (its functions
 * return many rows), and those that hand on their input.
 */
static bool
may_wrap(Plan *plan)
{
	switch (nodeTag(plan))
	{
		case T_SeqScan:
		case T_SampleScan:
		case T_IndexScan:
		case T_IndexOnlyScan:
		case T_BitmapHeapScan:
		case T_TidScan:
		case T_TidRangeScan:
		case T_SubqueryScan:
		case T_FunctionScan:
		case T_TableFuncScan:
		case T_ValuesScan:
		case T_CteScan:
		case T_NamedTuplestoreScan:
		case T_WorkTableScan:
		case T_NestLoop:
		case T_MergeJoin:
		case T_HashJoin:
		case T_Agg:
		case T_Group:
		case T_Gather:
		case T_GatherMerge:
			return true;
		case T_ForeignScan:
			/* An UPDATE that the other server does has its new values in the list. */
			return ((ForeignScan *) plan)->operation == CMD_SELECT;
		case T_WindowAgg:
			/* These are computed from the list, by position. */
			return plan->qual == NIL && ((WindowAgg *) plan)->runCondition == NIL;
		case T_Result:
			/* A single row has nothing to be batched with. */
			return plan->lefttree != NULL;
		default:
			return false;
	}
}

static bool
is_join(Plan *plan)
{
	return IsA(plan, NestLoop) || IsA(plan, MergeJoin) || IsA(plan, HashJoin);
}

/*
 * The conditions of an inner join say which of its rows there are, and no more, so they may as well be looked at in its
 * filter: there go those that call, and all that come after them.  Those of other joins also decide about rows that one
 * side has alone.  A join that takes no second row of its inner side for a row of the outer one (inner_unique) keeps
 * what that rests on, which nothing volatile can be.
 */
static void
free_join_calls(Plan *plan)
{
	Join *join = (Join *) plan;
	List *kept = NIL;
	List *moved = NIL;
	ListCell *lc;

	if (!is_join(plan) || join->jointype != JOIN_INNER)
		return;

	foreach (lc, join->joinqual)
	{
		Node *condition = lfirst(lc);

		if (moved == NIL && !qwen_calls_always(condition))
			kept = lappend(kept, condition);
		else if (join->inner_unique && !contain_volatile_functions(condition))
			return;
		else
			moved = lappend(moved, condition);
	}
	join->joinqual = kept;
	plan->qual = list_concat(moved, plan->qual);
}

/* ---- side effects ---- */

/*
 * Whether reading rows ahead would be noticed: something volatile is in the arguments of the calls, in the conditions
 * that stay, or further down.  Other expressions of the node are computed when a row is handed out.
 */
static bool
reads_ahead_visibly(Plan *plan)
{
	ListCell *lc;

	if (computes_ahead((Node *) plan->targetlist, NULL) || computes_ahead((Node *) plan->qual, NULL))
		return true;
	foreach (lc, plan->qual)
	{
		if (qwen_calls_always(lfirst(lc)))
			break;
		if (qwen_has_side_effects(lfirst(lc)))
			return true;
	}
	return conditions_of_join_show(plan) ||
		   (IsA(plan, SubqueryScan) ? input_shows(((SubqueryScan *) plan)->subplan)
									: input_shows(plan->lefttree) || input_shows(plan->righttree));
}

/* Arguments of calls, and what the node itself computes to be asked for by them. */
static bool
computes_ahead(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, FuncExpr) && qwen_function_by_oid(((FuncExpr *) node)->funcid) != NULL)
		return qwen_has_side_effects((Node *) ((FuncExpr *) node)->args);
	if (IsA(node, Aggref) || IsA(node, WindowFunc))
		return qwen_has_side_effects(node);
	return expression_tree_walker(node, computes_ahead, context);
}

static bool
conditions_of_join_show(Plan *plan)
{
	return is_join(plan) && qwen_has_side_effects((Node *) ((Join *) plan)->joinqual);
}

/* Down to the nodes that read all of their input anyway. */
static bool
input_shows(Plan *plan)
{
	ListCell *lc;

	if (plan == NULL)
		return false;
	check_stack_depth();

	if (qwen_has_side_effects((Node *) plan->targetlist) || qwen_has_side_effects((Node *) plan->qual) ||
		conditions_of_join_show(plan))
		return true;
	switch (nodeTag(plan))
	{
		case T_Sort:
		case T_Hash:
		case T_CteScan:
			return false;
		case T_LockRows:
		case T_ModifyTable:
			return true;
		case T_SubqueryScan:
			return input_shows(((SubqueryScan *) plan)->subplan);
		case T_Append:
			foreach (lc, ((Append *) plan)->appendplans)
				if (input_shows(lfirst(lc)))
					return true;
			return false;
		case T_MergeAppend:
			foreach (lc, ((MergeAppend *) plan)->mergeplans)
				if (input_shows(lfirst(lc)))
					return true;
			return false;
		default:
			break;
	}
	return input_shows(plan->lefttree) || input_shows(plan->righttree);
}

static QwenPlacement
place(Walk *walk, Position position, bool side_effects)
{
	return (QwenPlacement){
		.plan = {.demand = position.demand, .bound = position.bound, .side_effects = side_effects},
		.last_node_id = &walk->last_node_id,
		.rtable = walk->stmt->rtable,
	};
}

/* ---- cursors that go back ---- */

/* As materialize_finished_plan(), but references are resolved already, so the node needs a list of its own. */
static Plan *
materialize(Walk *walk, Plan *plan)
{
	Material *material = makeNode(Material);
	ListCell *lc;

	material->plan = *plan;
	material->plan.type = T_Material;
	material->plan.targetlist = NIL;
	foreach (lc, plan->targetlist)
	{
		TargetEntry *tle = flatCopyTargetEntry(lfirst_node(TargetEntry, lc));

		tle->expr = (Expr *) makeVarFromTargetEntry(OUTER_VAR, tle);
		material->plan.targetlist = lappend(material->plan.targetlist, tle);
	}
	material->plan.qual = NIL;
	material->plan.lefttree = plan;
	material->plan.righttree = NULL;
	material->plan.initPlan = NIL;
	material->plan.extParam = bms_copy(plan->extParam);
	material->plan.allParam = bms_copy(plan->allParam);
	material->plan.parallel_aware = false;
	material->plan.async_capable = false;
	material->plan.plan_node_id = ++walk->last_node_id;
	return &material->plan;
}

/* ---- for tests ---- */

/* Raises when a node that sees rows makes calls one at a time. */
static bool
require_batch(Plan *plan, void *context)
{
	bool sees_rows = !IsA(plan, ModifyTable) && !(IsA(plan, Result) && plan->lefttree == NULL);

	if (sees_rows && has_calls(plan, NULL))
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errmsg("a generating function is called row by row"),
						errdetail("qwen.debug_require_batch is on, and this plan has a call outside of QwenBatch.")));
	return false;
}
