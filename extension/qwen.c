/*-------------------------------------------------------------------------
 *
 * qwen.c
 *	  Where the server loads the library.
 *
 * The library must be in shared_preload_libraries to do its work, because
 * shared memory and the worker can be asked for at no other time.  Loaded
 * later it still defines its settings and functions, so that CREATE
 * EXTENSION, pg_dump and pg_upgrade work anywhere; the functions then say
 * what is missing when they are called.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "batch.h"
#include "qwen.h"

QWEN_MODULE_MAGIC("qwen", QWEN_VERSION);

PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	qwen_define_settings();

	/* pg_upgrade starts servers that must do nothing on their own. */
	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;

	qwen_request_shared_memory();
	qwen_register_worker();
	qwen_install_batching();
}
