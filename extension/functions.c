/*-------------------------------------------------------------------------
 *
 * functions.c
 *	  The generating functions in two halves, and which they are.
 *
 * A function of the database is recognised by the C function that would run,
 * so it does not matter what it is called, in which schema it is, or whether
 * it came with the extension.  A function that has been given SECURITY
 * DEFINER or settings of its own runs by way of another C function, and is
 * rightly taken for a stranger.
 *
 * Every statement of every database asks here about each function that it
 * calls, hence the cache.  It is emptied whenever anything changes in pg_proc.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/syscache.h"

#include "answer.h"

/* What is known about a function of this database. */
typedef struct KnownFunction
{
	Oid oid;
	const QwenFunction *function; /* NULL: a stranger */
} KnownFunction;

static const QwenFunction *const functions[] = {&qwen_generate_function, &qwen_complete_function, &qwen_chat_function,
												&qwen_try_generate_function};

static HTAB *known = NULL;

/* Whether anything is in `known`. */
static bool filled = false;

static void create_known(void);
static void forget_known(Datum arg, int cache, uint32 hash);
static const QwenFunction *look_up(Oid oid);
static const QwenFunction *by_entry_name(const char *name);

Datum
qwen_run_function(FunctionCallInfo fcinfo, const QwenFunction *function)
{
	QwenAsk ask;
	QwenAnswer answer;
	Datum result;

	if (!function->prepare(fcinfo, &ask))
		PG_RETURN_NULL();

	if (ask.request.data == NULL)
		answer = (QwenAnswer){.failed = true, .error = ask.error};
	else
	{
		qwen_ask(&ask.request, &answer);
		pfree(ask.request.data);
	}
	result = function->finish(fcinfo, ask.on_error, &answer);
	qwen_answer_free(&answer);
	return result;
}

const QwenFunction *
qwen_function_by_oid(Oid oid)
{
	KnownFunction *entry;
	const QwenFunction *function;

	/* Only functions that somebody created can be ours. */
	if (oid < FirstNormalObjectId)
		return NULL;

	if (known == NULL)
		create_known();
	entry = hash_search(known, &oid, HASH_FIND, NULL);
	if (entry != NULL)
		return entry->function;

	/* Looking it up may empty the cache, so it is entered afterwards. */
	function = look_up(oid);
	entry = hash_search(known, &oid, HASH_ENTER, NULL);
	entry->function = function;
	filled = true;
	return function;
}

static void
create_known(void)
{
	HASHCTL ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(KnownFunction)};

	known = hash_create("qwen functions", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	CacheRegisterSyscacheCallback(PROCOID, forget_known, (Datum) 0);
}

/* Changes of functions are rare, so all are forgotten. */
static void
forget_known(Datum arg, int cache, uint32 hash)
{
	HASH_SEQ_STATUS scan;
	KnownFunction *entry;

	if (!filled)
		return;
	hash_seq_init(&scan, known);
	while ((entry = hash_seq_search(&scan)) != NULL)
		(void) hash_search(known, &entry->oid, HASH_REMOVE, NULL);
	filled = false;
}

/* The names first, so that no other library is loaded just to be told from ours. */
static const QwenFunction *
look_up(Oid oid)
{
	HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(oid));
	const QwenFunction *function = NULL;
	FmgrInfo flinfo;

	if (!HeapTupleIsValid(tuple))
		return NULL;
	if (((Form_pg_proc) GETSTRUCT(tuple))->prolang == ClanguageId)
	{
		bool is_null;
		Datum entry = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosrc, &is_null);

		if (!is_null)
			function = by_entry_name(TextDatumGetCString(entry));
	}
	ReleaseSysCache(tuple);

	if (function == NULL)
		return NULL;
	fmgr_info(oid, &flinfo);
	return flinfo.fn_addr == function->entry ? function : NULL;
}

static const QwenFunction *
by_entry_name(const char *name)
{
	for (int i = 0; i < lengthof(functions); i++)
		if (strcmp(functions[i]->name, name) == 0)
			return functions[i];
	return NULL;
}
