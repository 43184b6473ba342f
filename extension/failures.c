/*-------------------------------------------------------------------------
 *
 * failures.c
 *	  One warning a statement for the rows that became NULL.
 *
 * With on_error = 'null' a row that fails gives NULL, and the statement says
 * once, at its end, how many did.  A function does not know which statement
 * it runs in, but its expression lives in a memory context that ends with
 * the statement: the query's context.  So failures are counted in a struct
 * in that context (all calls of a query share it), and a reset callback moves
 * the count to `ended` when the context goes.  The callback itself must not
 * report: it also runs while a transaction aborts, and sending to the client
 * can fail.  The report comes from an ExecutorEnd hook, right after the
 * executor has freed its context.
 *
 *	  failing call -> QwenFailures in fn_mcxt -> (reset) -> ended -> WARNING
 *
 * Expressions outside of any query (PL/pgSQL's x := qwen_generate(..)) live
 * in a context of the transaction or of a DO block; what they counted is
 * reported before the transaction commits, or with a statement that ends
 * after the block.  Whatever belongs to an aborted transaction is forgotten,
 * as its error says enough.
 *
 * The hook is set at the first failure of a process: until then this costs
 * nobody anything.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "lib/ilist.h"

#include "answer.h"

typedef struct FailureCount
{
	uint64 n;
	qwen_wire_error first;
} FailureCount;

/* Failures under one memory context, and allocated in it. */
typedef struct QwenFailures
{
	dlist_node link; /* in `counting` */
	MemoryContext context;
	MemoryContextCallback callback;
	FailureCount count;
} QwenFailures;

static dlist_head counting = DLIST_STATIC_INIT(counting);

/* what contexts that are gone left behind, not yet reported */
static FailureCount ended;

static ExecutorEnd_hook_type previous_executor_end = NULL;

static QwenFailures *failures_of(MemoryContext context);
static void install_hooks(void);
static void close_failures(void *arg);
static void add_failures(FailureCount *sum, const FailureCount *count);
static void executor_end(QueryDesc *query);
static void at_transaction_end(XactEvent event, void *arg);
static void report_ended(void);

void
qwen_fail_row(FunctionCallInfo fcinfo, QwenOnError on_error, const qwen_wire_error *error)
{
	FailureCount one = {.n = 1};

	if (on_error == QWEN_ON_ERROR_RAISE)
		qwen_raise(error);
	one.first = *error;
	add_failures(&failures_of(fcinfo->flinfo->fn_mcxt)->count, &one);
}

static QwenFailures *
failures_of(MemoryContext context)
{
	QwenFailures *failures;
	dlist_iter iter;

	dlist_foreach(iter, &counting)
	{
		failures = dlist_container(QwenFailures, link, iter.cur);
		if (failures->context == context)
			return failures;
	}

	install_hooks();
	failures = MemoryContextAllocZero(context, sizeof(QwenFailures));
	failures->context = context;
	failures->callback.func = close_failures;
	failures->callback.arg = failures;
	MemoryContextRegisterResetCallback(context, &failures->callback);
	dlist_push_head(&counting, &failures->link);
	return failures;
}

static void
install_hooks(void)
{
	static bool installed = false;

	if (installed)
		return;
	previous_executor_end = ExecutorEnd_hook;
	ExecutorEnd_hook = executor_end;
	RegisterXactCallback(at_transaction_end, NULL);
	installed = true;
}

/* The context is going. In an aborted transaction nobody wants to know. */
static void
close_failures(void *arg)
{
	QwenFailures *failures = arg;

	dlist_delete(&failures->link);
	if (IsTransactionState())
		add_failures(&ended, &failures->count);
}

static void
add_failures(FailureCount *sum, const FailureCount *count)
{
	if (sum->n == 0)
		sum->first = count->first;
	sum->n += count->n;
}

static void
executor_end(QueryDesc *query)
{
	if (previous_executor_end)
		previous_executor_end(query);
	else
		standard_ExecutorEnd(query);
	report_ended();
}

static void
at_transaction_end(XactEvent event, void *arg)
{
	dlist_iter iter;
	bool commits = event == XACT_EVENT_PRE_COMMIT || event == XACT_EVENT_PRE_PREPARE;

	if (!commits && event != XACT_EVENT_ABORT)
		return;
	dlist_foreach(iter, &counting)
	{
		QwenFailures *failures = dlist_container(QwenFailures, link, iter.cur);

		add_failures(&ended, &failures->count);
		failures->count.n = 0;
	}
	if (commits)
		report_ended();
	else
		ended.n = 0;
}

static void
report_ended(void)
{
	uint64 n = ended.n;

	if (n == 0)
		return;
	ended.n = 0; /* first, in case the report fails */
	ereport(WARNING, (errmsg_plural("%llu call of the model failed and gave NULL",
									"%llu calls of the model failed and gave NULL", n, (unsigned long long) n),
					  errdetail("The first failure: %s (SQLSTATE %s).", qwen_message_text(ended.first.message),
								ended.first.sqlstate),
					  errhint("qwen_try_generate() returns the error of each row.")));
}
