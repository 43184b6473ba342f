/*-------------------------------------------------------------------------
 *
 * admin.c
 *	  qwen_reload, qwen_grant_usage, qwen_revoke_usage.
 *
 * The functions that grant run as the owner of the extension's objects
 * (SECURITY DEFINER), so that the grants have one grantor whoever calls, and
 * whoever may call can also take back what another has granted.  What they
 * grant is named here: a function that is added to the extension belongs to
 * nobody until it is added to a list.  Among objects of these names only
 * members of the extension count, so nobody can slip in one of his own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/dependency.h"
#include "catalog/pg_proc.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "answer.h"

/* What usage means. */
#define USAGE_FUNCTIONS                                                                                                \
	"'{qwen_generate,qwen_complete,qwen_chat,qwen_stream,qwen_try_generate,"                                           \
	"qwen_token_count,qwen_tokenize,qwen_detokenize,qwen_status,qwen_requests,qwen_devices,qwen_device_map,"           \
	"qwen_stat,qwen_stat_engine}'::name[]"
#define USAGE_VIEWS "'{qwen_requests,qwen_devices,qwen_device_map,qwen_stat,qwen_stat_engine}'::name[]"

static void change_usage(FunctionCallInfo fcinfo, const char *verb, const char *preposition);
static char *usage_objects(Oid extension, const char *query);
static void notice_schema(Oid function, Oid role);

PG_FUNCTION_INFO_V1(qwen_reload);
PG_FUNCTION_INFO_V1(qwen_grant_usage);
PG_FUNCTION_INFO_V1(qwen_revoke_usage);

Datum
qwen_reload(PG_FUNCTION_ARGS)
{
	qwen_request_reload();
	PG_RETURN_VOID();
}

Datum
qwen_grant_usage(PG_FUNCTION_ARGS)
{
	change_usage(fcinfo, "GRANT", "TO");
	notice_schema(fcinfo->flinfo->fn_oid, PG_GETARG_OID(0));
	PG_RETURN_VOID();
}

Datum
qwen_revoke_usage(PG_FUNCTION_ARGS)
{
	change_usage(fcinfo, "REVOKE", "FROM");
	PG_RETURN_VOID();
}

/* The search path is that of the SQL function, pg_catalog alone, so all names come out qualified. */
static void
change_usage(FunctionCallInfo fcinfo, const char *verb, const char *preposition)
{
	Oid extension = getExtensionOfObject(ProcedureRelationId, fcinfo->flinfo->fn_oid);
	const char *role = quote_identifier(GetUserNameFromId(PG_GETARG_OID(0), false));
	char *functions;
	char *views;
	StringInfoData command;

	if (!OidIsValid(extension))
		elog(ERROR, "function %u does not belong to an extension", fcinfo->flinfo->fn_oid);

	SPI_connect();
	functions = usage_objects(extension,
							  "SELECT string_agg(p.oid::regprocedure::text, ', ' ORDER BY p.oid)"
							  " FROM pg_depend d JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid"
							  " WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = $1 AND d.deptype = 'e'"
							  " AND p.proname = ANY (" USAGE_FUNCTIONS ")");
	views = usage_objects(extension,
						  "SELECT string_agg(c.oid::regclass::text, ', ' ORDER BY c.oid)"
						  " FROM pg_depend d JOIN pg_class c ON d.classid = 'pg_class'::regclass AND d.objid = c.oid"
						  " WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = $1 AND d.deptype = 'e'"
						  " AND c.relkind = 'v' AND c.relname = ANY (" USAGE_VIEWS ")");

	initStringInfo(&command);
	appendStringInfo(&command, "%s EXECUTE ON FUNCTION %s %s %s", verb, functions, preposition, role);
	if (SPI_execute(command.data, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not execute \"%s\"", command.data);
	resetStringInfo(&command);
	appendStringInfo(&command, "%s SELECT ON TABLE %s %s %s", verb, views, preposition, role);
	if (SPI_execute(command.data, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not execute \"%s\"", command.data);
	SPI_finish();
}

/* The names that a query finds for the extension, as one list. */
static char *
usage_objects(Oid extension, const char *query)
{
	Oid types[1] = {OIDOID};
	Datum values[1] = {ObjectIdGetDatum(extension)};
	char *names = NULL;

	if (SPI_execute_with_args(query, 1, types, values, NULL, true, 1) == SPI_OK_SELECT && SPI_processed == 1)
		names = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (names == NULL)
		elog(ERROR, "could not find the objects of extension %u", extension);
	return names;
}

/* The schema is not the extension's to give away, so the most that can be done is to say that it is in the way. */
static void
notice_schema(Oid function, Oid role)
{
	Oid schema = get_func_namespace(function);

	if (!DatumGetBool(DirectFunctionCall3(has_schema_privilege_id_id, ObjectIdGetDatum(role), ObjectIdGetDatum(schema),
										  CStringGetTextDatum("USAGE"))))
		ereport(NOTICE, (errmsg("role \"%s\" cannot use schema \"%s\" yet", GetUserNameFromId(role, false),
								get_namespace_name(schema)),
						 errhint("GRANT USAGE ON SCHEMA %s TO %s lets it use the functions there.",
								 quote_identifier(get_namespace_name(schema)),
								 quote_identifier(GetUserNameFromId(role, false)))));
}
