-- What is going on.
SELECT qwen_generate('capital of Germany');
SELECT state, model LIKE '%demo-model' AS demo_model, architecture, parameters, dtype, quantization, kv_dtype, context,
	   max_sequences, engine_pid > 0 AS engine, uptime > '0' AS uptime, restarts >= 0 AS restarts, load_progress,
	   running >= 0 AS running, waiting >= 0 AS waiting
FROM qwen_status();
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';

-- nothing can be found out about prompts
SELECT attname FROM pg_attribute WHERE attrelid = 'qwen_requests'::regclass AND attnum > 0 ORDER BY attnum;

-- every object of the extension has a comment
SELECT pg_describe_object(classid, objid, objsubid) FROM pg_depend
WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
	  AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'qwen')
	  AND (classid <> 'pg_type'::regclass OR (SELECT typtype FROM pg_type t WHERE t.oid = objid) <> 'b')
	  AND CASE WHEN classid = 'pg_type'::regclass AND EXISTS (SELECT FROM pg_class c WHERE c.reltype = objid AND c.relkind = 'v')
			   THEN false ELSE obj_description(objid, classid::regclass::name) IS NULL END;

-- none of the functions may be called while planning, none in a parallel worker
SELECT proname, provolatile, proparallel, procost FROM pg_proc
WHERE proname LIKE 'qwen\_%' AND prosrc LIKE 'qwen\_%'
ORDER BY oid;
