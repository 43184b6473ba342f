/*-------------------------------------------------------------------------
 *
 * batch.h
 *	  QwenBatch, the plan node that keeps the calls of many rows under way.
 *
 *	  batch_plan.c		which nodes of a finished plan get one
 *	  batch_rewrite.c	expressions: what is hoisted, what stays
 *	  batch_exec.c		the node at run time
 *	  batch_cache.c		requests and answers of a statement
 *	  batch_explain.c	its lines in EXPLAIN
 *	  cost.c			estimates, for EXPLAIN and for the planner
 *
 * The node sits on top of its child (lefttree) and computes, for each row of
 * the child, some calls of generating functions.  Its scan tuple
 * (custom_scan_tlist) is the child's columns, OUTER_VAR 1 .. n, followed by
 * the calls with their arguments in terms of OUTER_VAR.  Its target list and
 * conditions speak of the scan tuple, INDEX_VAR.  They are computed when a
 * row is handed out, so after and only for rows that came through below, in
 * the order in which a plain plan would have done it; the arguments of the
 * calls, and nothing else, are computed ahead.
 *
 *-------------------------------------------------------------------------
 */
#ifndef QWEN_BATCH_H
#define QWEN_BATCH_H

#include "qwen.h"

#include "lib/ilist.h"
#include "nodes/execnodes.h"
#include "nodes/extensible.h"
#include "nodes/plannodes.h"

#include "answer.h"

/* How much of the node's rows will be asked for, as far as the plan tells. */
typedef enum QwenDemand
{
	QWEN_DEMAND_SOME, /* a parent may stop early: LIMIT, EXISTS */
	QWEN_DEMAND_RUN,  /* all, if the executor is run to the end and not for some rows as by FETCH */
	QWEN_DEMAND_ALL   /* all: Sort, Hash, ... read their input to its end before they return a row */
} QwenDemand;

/* Members of CustomScan.custom_private. */
enum
{
	QWEN_PRIVATE_DEMAND,       /* Integer, QwenDemand */
	QWEN_PRIVATE_BOUND,        /* Integer: rows that are wanted at most, 0: not known */
	QWEN_PRIVATE_SIDE_EFFECTS, /* Boolean: what is below must not run for rows that nobody wants */
	QWEN_PRIVATE_TOKENS        /* IntList: estimated tokens of each call's prompt */
};

/* What the plan says; CustomScan.custom_exprs has a condition for each call, TRUE where there is none. */
typedef struct QwenBatchPlan
{
	QwenDemand demand;
	int bound;
	bool side_effects;
	List *tokens;
} QwenBatchPlan;

/* ---- batch_plan.c ---- */

extern const CustomScanMethods qwen_batch_scan_methods;

extern void qwen_install_batching(void); /* from _PG_init when preloading */

/* ---- batch_rewrite.c ---- */

/* What a node is put into the plan with. */
typedef struct QwenPlacement
{
	QwenBatchPlan plan;
	int *last_node_id; /* plan_node_id that was given last */
	List *rtable;      /* for estimates */
} QwenPlacement;

/* Whether an expression, or a list of them, calls a generating function anywhere. */
extern bool qwen_calls_any(Node *node);

/* Whether it has a call that is made whenever the expression is evaluated. */
extern bool qwen_calls_always(Node *node);

/* Whether evaluating it does something that shows, other than calling the model. */
extern bool qwen_has_side_effects(Node *node);

/* Puts nodes on top of `plan` that compute the calls in its target list and conditions (a filter of its rows). */
extern Plan *qwen_batch_above(Plan *plan, QwenPlacement *placement);

/* Puts nodes between an aggregation and its input that compute the calls in arguments and filters of aggregates. */
extern void qwen_batch_below(Agg *agg, QwenPlacement *placement);

/* Whether qwen_batch_below would do anything. */
extern bool qwen_aggregates_call(Agg *agg);

/* ---- cost.c ---- */

/* Estimates: tokens of a call's prompt, given the plan below it (NULL: none yet), and most tokens of its answer. */
extern double qwen_prompt_tokens(FuncExpr *call, Plan *child, List *rtable);
extern int qwen_output_tokens(FuncExpr *call);

/* Whether the planner asks us what a function costs. */
extern bool qwen_sets_cost(Oid function);

/* ---- batch_cache.c ---- */

extern void qwen_install_run_hook(void); /* from qwen_install_batching */

/* What a node has done; shown by EXPLAIN ANALYZE. */
typedef struct QwenBatchCounters
{
	uint64 rows;      /* read from the child */
	uint64 requests;  /* calls that asked something */
	uint64 distinct;  /* of these, not equal to one whose answer was at hand or under way */
	uint64 sequences; /* sent to the engine */
	uint64 prompt_tokens;
	uint64 cached_tokens;
	uint64 output_tokens;
	uint64 queue_us;
	uint64 run_us;
	uint64 waits;     /* for an answer */
	uint64 in_flight; /* sum over the waits of the requests under way */
} QwenBatchCounters;

/* The requests and answers of one statement. */
typedef struct QwenStatement QwenStatement;

/* A request that is under way or answered; equal ones share it. */
typedef struct QwenEntry QwenEntry;

/* The statement that is executed with `estate`; made at the first call. */
extern QwenStatement *qwen_statement_of(EState *estate);

/* Whether the executor was last run for some rows and not to the end. */
extern bool qwen_statement_is_partial(const QwenStatement *statement);

/* An entry for an ask that failed before it became a request. */
extern QwenEntry *qwen_entry_failed(QwenStatement *statement, const qwen_wire_error *error);

/*
 * An entry for a request, submitted unless an equal one is at hand.  Without may_wait it gives NULL instead of waiting
 * for a place in the queue.
 */
extern QwenEntry *qwen_entry_begin(QwenStatement *statement, const StringInfo request, bool may_wait,
								   QwenBatchCounters *counters);

/* The answer, after waiting for it; valid while the entry is held. */
extern void qwen_entry_finish(QwenEntry *entry, QwenBatchCounters *counters, QwenAnswer *answer);

/* Lets go of an entry; what nobody else holds and still runs is cancelled. */
extern void qwen_entry_release(QwenEntry *entry);

/* ---- batch_exec.c ---- */

/* A call of the node. */
typedef struct QwenBatchCall
{
	const QwenFunction *function;
	FuncExpr *expression;
	ExprState *condition; /* NULL: always */
	List *arguments;      /* of ExprState */
	FmgrInfo flinfo;
	FunctionCallInfo fcinfo;
} QwenBatchCall;

typedef struct QwenRow QwenRow;

typedef struct QwenBatchState
{
	CustomScanState css;
	QwenBatchPlan plan;
	int n_columns; /* of the child */
	int n_calls;
	QwenBatchCall *calls;
	QwenStatement *statement;
	QwenBatchCounters counters;

	/* rows that have been read and not handed out, in order */
	MemoryContext rows_context;
	MemoryContext scratch; /* what is computed for the row that is being read */
	dlist_head rows;
	int n_rows;
	Size bytes;           /* of these rows */
	QwenRow *current;     /* handed out last: its columns are still in use */
	TupleTableSlot *slot; /* for taking a row apart */

	/* look-ahead */
	int window;     /* rows to be held now */
	int handed_out; /* since the window last grew */
	uint64 n_read;  /* since the last rescan */
	bool child_done;
	bool shut_down;
} QwenBatchState;

extern const CustomExecMethods qwen_batch_exec_methods;

extern Node *qwen_create_batch_state(CustomScan *scan);

/* ---- batch_explain.c ---- */

extern void qwen_explain_batch(CustomScanState *node, List *ancestors, ExplainState *es);

#endif /* QWEN_BATCH_H */
