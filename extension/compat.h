/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Everything that differs between the server versions that we build for.
 *
 * One branch serves PostgreSQL 15 to 18.  A difference is bridged here, with
 * the version that brought it and the reason; no other file asks for
 * PG_VERSION_NUM.
 *
 *-------------------------------------------------------------------------
 */
#ifndef QWEN_COMPAT_H
#define QWEN_COMPAT_H

#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#if PG_VERSION_NUM < 150000
#error "qwen needs PostgreSQL 15 or later: shmem_request_hook and MarkGUCPrefixReserved came with it"
#endif

/*
 * PG 17: extensions may name their wait events (WaitEventExtensionNew), asked for in the process that waits, at its first
 * wait, because the names live in shared memory that does not exist yet in _PG_init.  Before that all extensions share
 * one event.  `cache` is a static of the caller, zero at first.
 */
static inline uint32
qwen_wait_event(const char *name, uint32 *cache)
{
#if PG_VERSION_NUM >= 170000
	if (*cache == 0)
		*cache = WaitEventExtensionNew(name);
	return *cache;
#else
	return PG_WAIT_EXTENSION;
#endif
}

/* PG 17: a process's number left PGPROC for the global MyProcNumber. */
#if PG_VERSION_NUM >= 170000
#define qwen_my_procno() ((int) MyProcNumber)
#else
#define qwen_my_procno() ((int) MyProc->pgprocno)
#endif

/* PG 17: a wait event set belongs to a resource owner instead of a memory context; ours lives as long as its process. */
#if PG_VERSION_NUM >= 170000
#define qwen_create_wait_event_set(n) CreateWaitEventSet(NULL, (n))
#else
#define qwen_create_wait_event_set(n) CreateWaitEventSet(TopMemoryContext, (n))
#endif

/* PG 18: the mark of functions that do not return became a prefix with a new name. */
#if PG_VERSION_NUM < 180000
#define pg_noreturn pg_attribute_noreturn()
#endif

/* PG 17: statistics about the lengths of arrays are looked at, for which the planner's state is needed. */
#if PG_VERSION_NUM >= 170000
#define qwen_estimate_array_length(root, array) estimate_array_length((root), (array))
#else
#define qwen_estimate_array_length(root, array) estimate_array_length(array)
#endif

/* PG 18: a module may say its name and version, which pg_get_loaded_modules() shows. */
#if PG_VERSION_NUM >= 180000
#define QWEN_MODULE_MAGIC(module, release) PG_MODULE_MAGIC_EXT(.name = module, .version = release)
#else
#define QWEN_MODULE_MAGIC(module, release) PG_MODULE_MAGIC
#endif

/* PG 16: one function checks the privileges of all kinds of objects. */
#if PG_VERSION_NUM >= 160000
#define qwen_function_aclcheck(oid, role) object_aclcheck(ProcedureRelationId, (oid), (role), ACL_EXECUTE)
#else
#define qwen_function_aclcheck(oid, role) pg_proc_aclcheck((oid), (role), ACL_EXECUTE)
#endif

/* PG 18: running the executor lost an argument, which nobody looked at. */
#if PG_VERSION_NUM >= 180000
#define QWEN_RUN_PARAMETERS QueryDesc *query, ScanDirection direction, uint64 count
#define QWEN_RUN_ARGUMENTS query, direction, count
#else
#define QWEN_RUN_PARAMETERS QueryDesc *query, ScanDirection direction, uint64 count, bool execute_once
#define QWEN_RUN_ARGUMENTS query, direction, count, execute_once
#endif

/* PG 18: what extensions need to write EXPLAIN lines moved into headers of its own. */
#if PG_VERSION_NUM >= 180000
#include "commands/explain_format.h"
#include "commands/explain_state.h"
#else
#include "commands/explain.h"
#endif

/* PG 18: entries of the range table that are no tables (grouping) are not counted when EXPLAIN decides about prefixes. */
#if PG_VERSION_NUM >= 180000
#define qwen_explain_tables(es) ((es)->rtable_size)
#else
#define qwen_explain_tables(es) list_length((es)->rtable)
#endif

#endif /* QWEN_COMPAT_H */
