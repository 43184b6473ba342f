/*-------------------------------------------------------------------------
 *
 * batch_cache.c
 *	  Requests and answers of a statement.
 *
 * All QwenBatch nodes of a statement share one table, so that a prompt that
 * occurs in several partitions, or again in the next rescan, is sent once.
 * Only requests whose answer is the same each time are shared: greedy ones,
 * unless the caller asked for no reuse (qwen.cache, the option "cache").
 *
 *	  begin --> under way --> answered, held --> idle --> forgotten
 *				  |  ^ equal ones join		 \_____/ equal ones come back
 *				  +--> cancelled, when nobody holds it any more
 *
 * A request is known by the SHA-256 of its bytes: prompts are long, and the
 * digests of all that were seen must fit into memory.  Answers that nobody
 * holds may take work_mem; beyond that the oldest are forgotten, and asked
 * for again if their prompt comes back.
 *
 * Statements are found by the memory context of their execution, whose end
 * is theirs.  By then calls that were under way have been given back: by the
 * nodes, or after an error by the resource owner (client.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/cryptohash.h"
#include "common/sha2.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "batch.h"

struct QwenStatement
{
	dlist_node link; /* in `statements` */
	MemoryContext query_context;
	MemoryContextCallback at_end;
	MemoryContext context; /* of everything here */
	bool partial;
	HTAB *shared; /* of SharedEntry; NULL: none yet */
	dlist_head in_flight;
	int n_in_flight;
	dlist_head idle; /* answered, and held by nobody; the oldest first */
	Size idle_bytes;
};

struct QwenEntry
{
	dlist_node link; /* in `in_flight` or `idle` */
	QwenStatement *statement;
	QwenBatchCounters *counters; /* of the node that submitted it */
	int holders;
	bool is_shared;
	uint8 digest[PG_SHA256_DIGEST_LENGTH];
	QwenCall *call; /* NULL: answered */

	/* the answer */
	char *data;
	int length;
	qwen_done done;
	qwen_wire_error *error; /* NULL: none */
};

typedef struct SharedEntry
{
	uint8 digest[PG_SHA256_DIGEST_LENGTH];
	QwenEntry *entry;
} SharedEntry;

/* those that are being executed in this process */
static dlist_head statements = DLIST_STATIC_INIT(statements);

static ExecutorRun_hook_type previous_executor_run = NULL;

static void executor_run(QWEN_RUN_PARAMETERS);
static QwenStatement *find_statement(MemoryContext query_context);
static void end_statement(void *arg);
static bool is_repeatable(const StringInfo request);
static void make_digest(const StringInfo request, uint8 *digest);
static QwenEntry *find_shared(QwenStatement *statement, const uint8 *digest);
static void share(QwenEntry *entry, const uint8 *digest);
static QwenEntry *create_entry(QwenStatement *statement);
static QwenCall *submit(QwenStatement *statement, const StringInfo request, bool may_wait, qwen_wire_error *error);
static bool receive_ready(QwenStatement *statement);
static void receive(QwenEntry *entry);
static void set_failed(QwenEntry *entry, const qwen_wire_error *error);
static Size size_of(const QwenEntry *entry);
static void trim_idle(QwenStatement *statement);
static void forget(QwenEntry *entry);

/* ---- statements ---- */

void
qwen_install_run_hook(void)
{
	previous_executor_run = ExecutorRun_hook;
	ExecutorRun_hook = executor_run;
}

/* Tells a statement how much of it is wanted. Other statements cost a look at an empty list. */
static void
executor_run(QWEN_RUN_PARAMETERS)
{
	if (!dlist_is_empty(&statements) && query->estate != NULL)
	{
		QwenStatement *statement = find_statement(query->estate->es_query_cxt);

		if (statement != NULL)
			statement->partial = count != 0;
	}
	if (previous_executor_run)
		previous_executor_run(QWEN_RUN_ARGUMENTS);
	else
		standard_ExecutorRun(QWEN_RUN_ARGUMENTS);
}

QwenStatement *
qwen_statement_of(EState *estate)
{
	QwenStatement *statement = find_statement(estate->es_query_cxt);

	if (statement != NULL)
		return statement;

	statement = MemoryContextAllocZero(estate->es_query_cxt, sizeof(QwenStatement));
	statement->query_context = estate->es_query_cxt;
	statement->context = AllocSetContextCreate(estate->es_query_cxt, "qwen answers", ALLOCSET_DEFAULT_SIZES);
	dlist_init(&statement->in_flight);
	dlist_init(&statement->idle);
	statement->at_end.func = end_statement;
	statement->at_end.arg = statement;
	MemoryContextRegisterResetCallback(estate->es_query_cxt, &statement->at_end);
	dlist_push_head(&statements, &statement->link);
	return statement;
}

static QwenStatement *
find_statement(MemoryContext query_context)
{
	dlist_iter iter;

	dlist_foreach(iter, &statements)
	{
		QwenStatement *statement = dlist_container(QwenStatement, link, iter.cur);

		if (statement->query_context == query_context)
			return statement;
	}
	return NULL;
}

static void
end_statement(void *arg)
{
	QwenStatement *statement = arg;

	dlist_delete(&statement->link);
}

bool
qwen_statement_is_partial(const QwenStatement *statement)
{
	return statement->partial;
}

/* ---- asking ---- */

QwenEntry *
qwen_entry_begin(QwenStatement *statement, const StringInfo request, bool may_wait, QwenBatchCounters *counters)
{
	bool repeatable = is_repeatable(request);
	uint8 digest[PG_SHA256_DIGEST_LENGTH];
	QwenEntry *entry = NULL;
	QwenCall *call;
	qwen_wire_error error;

	if (repeatable)
	{
		make_digest(request, digest);
		entry = find_shared(statement, digest);
	}
	if (entry != NULL)
	{
		counters->requests++;
		return entry;
	}

	call = submit(statement, request, may_wait, &error);
	if (call == NULL && error.message[0] == '\0')
		return NULL;

	counters->requests++;
	counters->distinct++;
	if (call == NULL)
		return qwen_entry_failed(statement, &error);

	counters->sequences++;
	entry = create_entry(statement);
	entry->call = call;
	entry->counters = counters;
	dlist_push_tail(&statement->in_flight, &entry->link);
	statement->n_in_flight++;
	if (repeatable)
		share(entry, digest);
	return entry;
}

QwenEntry *
qwen_entry_failed(QwenStatement *statement, const qwen_wire_error *error)
{
	QwenEntry *entry = create_entry(statement);

	set_failed(entry, error);
	return entry;
}

static bool
is_repeatable(const StringInfo request)
{
	qwen_request_header head;

	memcpy(&head, request->data, sizeof(head));
	return head.temperature == 0 && (head.flags & QWEN_FLAG_NO_CACHE) == 0;
}

static void
make_digest(const StringInfo request, uint8 *digest)
{
	pg_cryptohash_ctx *ctx = pg_cryptohash_create(PG_SHA256);

	if (pg_cryptohash_init(ctx) < 0 || pg_cryptohash_update(ctx, (uint8 *) request->data, request->len) < 0 ||
		pg_cryptohash_final(ctx, digest, PG_SHA256_DIGEST_LENGTH) < 0)
		elog(ERROR, "could not compute the digest of a request: %s", pg_cryptohash_error(ctx));
	pg_cryptohash_free(ctx);
}

/* An equal request that is under way or answered; the caller holds it now. */
static QwenEntry *
find_shared(QwenStatement *statement, const uint8 *digest)
{
	SharedEntry *found;
	QwenEntry *entry;

	if (statement->shared == NULL)
		return NULL;
	found = hash_search(statement->shared, digest, HASH_FIND, NULL);
	if (found == NULL)
		return NULL;

	entry = found->entry;
	if (entry->holders == 0)
	{
		dlist_delete(&entry->link);
		statement->idle_bytes -= size_of(entry);
	}
	entry->holders++;
	return entry;
}

static void
share(QwenEntry *entry, const uint8 *digest)
{
	QwenStatement *statement = entry->statement;
	SharedEntry *place;

	if (statement->shared == NULL)
	{
		HASHCTL ctl = {
			.keysize = PG_SHA256_DIGEST_LENGTH, .entrysize = sizeof(SharedEntry), .hcxt = statement->context};

		statement->shared = hash_create("qwen requests", 256, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	place = hash_search(statement->shared, digest, HASH_ENTER, NULL);
	place->entry = entry;
	memcpy(entry->digest, digest, PG_SHA256_DIGEST_LENGTH);
	entry->is_shared = true;
}

static QwenEntry *
create_entry(QwenStatement *statement)
{
	QwenEntry *entry = MemoryContextAllocZero(statement->context, sizeof(QwenEntry));

	entry->statement = statement;
	entry->holders = 1;
	return entry;
}

/* When the queue is full, what has been answered already makes room first. */
static QwenCall *
submit(QwenStatement *statement, const StringInfo request, bool may_wait, qwen_wire_error *error)
{
	QwenCall *call = qwen_submit(request, !may_wait, error);

	if (call == NULL && error->message[0] == '\0' && receive_ready(statement))
		call = qwen_submit(request, !may_wait, error);
	return call;
}

static bool
receive_ready(QwenStatement *statement)
{
	dlist_mutable_iter iter;
	bool any = false;

	dlist_foreach_modify(iter, &statement->in_flight)
	{
		QwenEntry *entry = dlist_container(QwenEntry, link, iter.cur);

		if (!qwen_call_ready(entry->call))
			continue;
		receive(entry);
		any = true;
	}
	return any;
}

/* ---- answers ---- */

void
qwen_entry_finish(QwenEntry *entry, QwenBatchCounters *counters, QwenAnswer *answer)
{
	if (entry->call != NULL)
	{
		counters->waits++;
		counters->in_flight += entry->statement->n_in_flight;
		receive(entry);
	}

	memset(answer, 0, sizeof(*answer));
	answer->failed = entry->error != NULL;
	if (answer->failed)
		answer->error = *entry->error;
	answer->done = entry->done;
	answer->data.data = entry->data;
	answer->data.len = entry->length;
}

/* Moves the answer into the entry, in the space that it needs. */
static void
receive(QwenEntry *entry)
{
	QwenStatement *statement = entry->statement;
	QwenAnswer answer;

	qwen_collect(entry->call, &answer);
	entry->call = NULL;
	dlist_delete(&entry->link);
	statement->n_in_flight--;

	if (answer.failed)
		set_failed(entry, &answer.error);
	else
	{
		entry->data = MemoryContextAllocHuge(statement->context, (Size) answer.data.len + 1);
		memcpy(entry->data, answer.data.data, answer.data.len);
		entry->length = answer.data.len;
		entry->done = answer.done;
		entry->counters->prompt_tokens += answer.done.prompt_tokens;
		entry->counters->cached_tokens += answer.done.cached_tokens;
		entry->counters->output_tokens += answer.done.output_tokens;
		entry->counters->queue_us += answer.done.queue_us;
		entry->counters->run_us += answer.done.run_us;
	}
	qwen_answer_free(&answer);
}

static void
set_failed(QwenEntry *entry, const qwen_wire_error *error)
{
	entry->error = MemoryContextAlloc(entry->statement->context, sizeof(*error));
	*entry->error = *error;
}

void
qwen_entry_release(QwenEntry *entry)
{
	QwenStatement *statement = entry->statement;

	Assert(entry->holders > 0);
	if (--entry->holders > 0)
		return;

	if (entry->call != NULL)
	{
		qwen_call_release(entry->call);
		dlist_delete(&entry->link);
		statement->n_in_flight--;
		forget(entry);
	}
	else if (entry->is_shared)
	{
		dlist_push_tail(&statement->idle, &entry->link);
		statement->idle_bytes += size_of(entry);
		trim_idle(statement);
	}
	else
		forget(entry);
}

static Size
size_of(const QwenEntry *entry)
{
	return sizeof(QwenEntry) + sizeof(SharedEntry) + entry->length + (entry->error != NULL ? sizeof(*entry->error) : 0);
}

static void
trim_idle(QwenStatement *statement)
{
	while (statement->idle_bytes > (Size) work_mem * 1024 && !dlist_is_empty(&statement->idle))
	{
		QwenEntry *entry = dlist_container(QwenEntry, link, dlist_pop_head_node(&statement->idle));

		statement->idle_bytes -= size_of(entry);
		forget(entry);
	}
}

static void
forget(QwenEntry *entry)
{
	if (entry->is_shared)
		(void) hash_search(entry->statement->shared, entry->digest, HASH_REMOVE, NULL);
	if (entry->error != NULL)
		pfree(entry->error);
	if (entry->data != NULL)
		pfree(entry->data);
	pfree(entry);
}
