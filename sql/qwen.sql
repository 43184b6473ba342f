/* qwen: the objects of the extension, in full. Upgrades stand in files of their own beside this one. */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION qwen" to load this file. \quit

-- ---- generation ----

CREATE FUNCTION qwen_support(internal)
RETURNS internal
AS 'MODULE_PATHNAME', 'qwen_support'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION qwen_support(internal) IS 'planner support: cost and rows of calls by their tokens';

-- All take the same named options behind their subject; NULL means: use the setting. They are not STRICT for that
-- reason, and give NULL for a NULL subject all the same. VOLATILE, so that planning never calls the model. RESTRICTED,
-- so that a request and its cancellation belong to the session itself.

CREATE FUNCTION qwen_generate(
	prompt text,
	max_tokens int DEFAULT NULL,
	temperature float8 DEFAULT NULL,
	top_p float8 DEFAULT NULL,
	top_k int DEFAULT NULL,
	seed bigint DEFAULT NULL,
	stop text[] DEFAULT NULL,
	system text DEFAULT NULL,
	schema jsonb DEFAULT NULL,
	thinking boolean DEFAULT NULL,
	on_error text DEFAULT NULL,
	options jsonb DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME', 'qwen_generate'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED COST 100000
SUPPORT qwen_support;

COMMENT ON FUNCTION qwen_generate(text, int, float8, float8, int, bigint, text[], text, jsonb, boolean, text, jsonb)
	IS 'the model''s answer to a prompt';

CREATE FUNCTION qwen_generate(
	prompts text[],
	max_tokens int DEFAULT NULL,
	temperature float8 DEFAULT NULL,
	top_p float8 DEFAULT NULL,
	top_k int DEFAULT NULL,
	seed bigint DEFAULT NULL,
	stop text[] DEFAULT NULL,
	system text DEFAULT NULL,
	schema jsonb DEFAULT NULL,
	thinking boolean DEFAULT NULL,
	on_error text DEFAULT NULL,
	options jsonb DEFAULT NULL)
RETURNS text[]
AS 'MODULE_PATHNAME', 'qwen_generate_array'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED COST 100000
SUPPORT qwen_support;

COMMENT ON FUNCTION qwen_generate(text[], int, float8, float8, int, bigint, text[], text, jsonb, boolean, text, jsonb)
	IS 'the model''s answers to an array of prompts, in the same order';

CREATE FUNCTION qwen_complete(
	prompt text,
	max_tokens int DEFAULT NULL,
	temperature float8 DEFAULT NULL,
	top_p float8 DEFAULT NULL,
	top_k int DEFAULT NULL,
	seed bigint DEFAULT NULL,
	stop text[] DEFAULT NULL,
	system text DEFAULT NULL,
	schema jsonb DEFAULT NULL,
	thinking boolean DEFAULT NULL,
	on_error text DEFAULT NULL,
	options jsonb DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME', 'qwen_complete'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED COST 100000
SUPPORT qwen_support;

COMMENT ON FUNCTION qwen_complete(text, int, float8, float8, int, bigint, text[], text, jsonb, boolean, text, jsonb)
	IS 'the model''s continuation of a raw text, without the chat template';

CREATE FUNCTION qwen_chat(
	messages jsonb,
	max_tokens int DEFAULT NULL,
	temperature float8 DEFAULT NULL,
	top_p float8 DEFAULT NULL,
	top_k int DEFAULT NULL,
	seed bigint DEFAULT NULL,
	stop text[] DEFAULT NULL,
	system text DEFAULT NULL,
	schema jsonb DEFAULT NULL,
	thinking boolean DEFAULT NULL,
	on_error text DEFAULT NULL,
	options jsonb DEFAULT NULL,
	tools jsonb DEFAULT NULL)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'qwen_chat'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED COST 100000
SUPPORT qwen_support;

COMMENT ON FUNCTION qwen_chat(jsonb, int, float8, float8, int, bigint, text[], text, jsonb, boolean, text, jsonb, jsonb)
	IS 'the assistant''s next message in a conversation';

CREATE FUNCTION qwen_stream(
	prompt text,
	max_tokens int DEFAULT NULL,
	temperature float8 DEFAULT NULL,
	top_p float8 DEFAULT NULL,
	top_k int DEFAULT NULL,
	seed bigint DEFAULT NULL,
	stop text[] DEFAULT NULL,
	system text DEFAULT NULL,
	schema jsonb DEFAULT NULL,
	thinking boolean DEFAULT NULL,
	on_error text DEFAULT NULL,
	options jsonb DEFAULT NULL,
	OUT seq int,
	OUT piece text,
	OUT done boolean)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'qwen_stream'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED COST 100000 ROWS 100
SUPPORT qwen_support;

COMMENT ON FUNCTION qwen_stream(text, int, float8, float8, int, bigint, text[], text, jsonb, boolean, text, jsonb)
	IS 'the model''s answer to a prompt, piece by piece as it is decoded';

CREATE TYPE qwen_result AS (
	value text,
	error text,
	sqlstate text,
	finish_reason text,
	prompt_tokens int,
	cached_tokens int,
	output_tokens int,
	queue_ms float8,
	run_ms float8);

COMMENT ON TYPE qwen_result IS 'an answer or why there is none, and what it took';

CREATE FUNCTION qwen_try_generate(
	prompt text,
	max_tokens int DEFAULT NULL,
	temperature float8 DEFAULT NULL,
	top_p float8 DEFAULT NULL,
	top_k int DEFAULT NULL,
	seed bigint DEFAULT NULL,
	stop text[] DEFAULT NULL,
	system text DEFAULT NULL,
	schema jsonb DEFAULT NULL,
	thinking boolean DEFAULT NULL,
	on_error text DEFAULT NULL,
	options jsonb DEFAULT NULL)
RETURNS qwen_result
AS 'MODULE_PATHNAME', 'qwen_try_generate'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED COST 100000
SUPPORT qwen_support;

COMMENT ON FUNCTION qwen_try_generate(text, int, float8, float8, int, bigint, text[], text, jsonb, boolean, text, jsonb)
	IS 'the model''s answer to a prompt, or the error of this row, with token counts and times';

-- ---- tokens ----

CREATE FUNCTION qwen_token_count(input text)
RETURNS int
AS 'MODULE_PATHNAME', 'qwen_token_count'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 1000;

COMMENT ON FUNCTION qwen_token_count(text) IS 'number of the model''s tokens in a text';

CREATE FUNCTION qwen_tokenize(input text)
RETURNS int[]
AS 'MODULE_PATHNAME', 'qwen_tokenize'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 1000;

COMMENT ON FUNCTION qwen_tokenize(text) IS 'the model''s tokens of a text';

CREATE FUNCTION qwen_detokenize(ids int[])
RETURNS text
AS 'MODULE_PATHNAME', 'qwen_detokenize'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 1000;

COMMENT ON FUNCTION qwen_detokenize(int[]) IS 'the text of an array of the model''s tokens';

-- ---- what is going on ----

CREATE FUNCTION qwen_status(
	OUT state text,
	OUT model text,
	OUT architecture text,
	OUT parameters bigint,
	OUT dtype text,
	OUT quantization text,
	OUT kv_dtype text,
	OUT context int,
	OUT max_sequences int,
	OUT device text,
	OUT kernels text,
	OUT engine_pid int,
	OUT uptime interval,
	OUT restarts bigint,
	OUT load_progress float8,
	OUT running int,
	OUT waiting int,
	OUT last_error text)
AS 'MODULE_PATHNAME', 'qwen_status'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;

COMMENT ON FUNCTION qwen_status() IS 'state of the engine and its model';

CREATE FUNCTION qwen_requests(
	OUT pid int,
	OUT userid oid,
	OUT databaseid oid,
	OUT kind text,
	OUT state text,
	OUT queue_position int,
	OUT priority text,
	OUT prompt_tokens int,
	OUT output_tokens int,
	OUT engine_deaths int,
	OUT submitted timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'qwen_requests'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;

COMMENT ON FUNCTION qwen_requests() IS 'requests in the queue and under way; those of others only for pg_read_all_stats';

CREATE VIEW qwen_requests AS
	SELECT r.pid,
		   u.rolname AS usename,
		   d.datname,
		   r.kind,
		   r.state,
		   r.queue_position,
		   r.priority,
		   r.prompt_tokens,
		   r.output_tokens,
		   r.engine_deaths,
		   pg_catalog.clock_timestamp() - r.submitted AS age
	FROM qwen_requests() r
		 LEFT JOIN pg_catalog.pg_roles u ON u.oid = r.userid
		 LEFT JOIN pg_catalog.pg_database d ON d.oid = r.databaseid;

COMMENT ON VIEW qwen_requests IS 'requests in the queue and under way; those of others only for pg_read_all_stats';

-- What the engine has on its devices, and where each part of the model is. Live while it loads.

CREATE FUNCTION qwen_devices(
	OUT device text,
	OUT kind text,
	OUT layers int,
	OUT planned_bytes bigint,
	OUT weights_bytes bigint,
	OUT loaded_bytes bigint,
	OUT kv_bytes bigint,
	OUT workspace_bytes bigint,
	OUT used_bytes bigint,
	OUT peak_bytes bigint,
	OUT free_bytes bigint,
	OUT budget_bytes bigint,
	OUT total_bytes bigint)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'qwen_devices_rows'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;

COMMENT ON FUNCTION qwen_devices() IS 'memory of the devices that the model is on';

CREATE VIEW qwen_devices AS
	SELECT * FROM qwen_devices();

COMMENT ON VIEW qwen_devices IS 'memory of the devices that the model is on, also while it is loaded';
COMMENT ON COLUMN qwen_devices.planned_bytes IS 'all that the plan counts: weights, cache, workspace, overhead and a margin';
COMMENT ON COLUMN qwen_devices.weights_bytes IS 'of the plan';
COMMENT ON COLUMN qwen_devices.loaded_bytes IS 'of the weights, so far';
COMMENT ON COLUMN qwen_devices.kv_bytes IS 'of the plan: keys and values of running sequences';
COMMENT ON COLUMN qwen_devices.workspace_bytes IS 'of the plan: activations, logits and tables';
COMMENT ON COLUMN qwen_devices.used_bytes IS 'reserved for cache and workspace, and weights so far; a processor''s pages are resident only once they are written';
COMMENT ON COLUMN qwen_devices.peak_bytes IS 'the most that used_bytes has been: reserved, not resident';
COMMENT ON COLUMN qwen_devices.free_bytes IS 'of the budget, as far as others have left it';
COMMENT ON COLUMN qwen_devices.budget_bytes IS 'what the plan could use: what was free, or qwen.max_memory';

CREATE FUNCTION qwen_device_map(
	OUT ordinal int,
	OUT item text,
	OUT layer int,
	OUT device text,
	OUT weights_bytes bigint,
	OUT kv_bytes bigint)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'qwen_device_map_rows'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;

COMMENT ON FUNCTION qwen_device_map() IS 'device of each part of the model';

CREATE VIEW qwen_device_map AS
	SELECT * FROM qwen_device_map();

COMMENT ON VIEW qwen_device_map IS 'device of the embedding, each layer and the head; several with qwen.tensor_parallel';

-- The counters are exact: each request is added to the set of its role when it ends, before its answer is returned.
CREATE FUNCTION qwen_stat(
	OUT userid oid,
	OUT requests bigint,
	OUT prompt_tokens bigint,
	OUT cached_tokens bigint,
	OUT output_tokens bigint,
	OUT errors_invalid bigint,
	OUT errors_too_long bigint,
	OUT errors_resources bigint,
	OUT errors_not_ready bigint,
	OUT errors_cancelled bigint,
	OUT errors_engine bigint,
	OUT errors_other bigint,
	OUT queue_ms float8,
	OUT run_ms float8,
	OUT first_token_ms float8,
	OUT answers bigint,
	OUT steps bigint,
	OUT batched_tokens bigint,
	OUT stats_reset timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'qwen_stat'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;

COMMENT ON FUNCTION qwen_stat() IS 'sums over the requests of each role; those of others only for pg_read_all_stats';

CREATE VIEW qwen_stat AS
	SELECT s.userid,
		   u.rolname AS usename,
		   s.requests,
		   s.answers,
		   s.prompt_tokens,
		   s.cached_tokens,
		   s.output_tokens,
		   s.errors_invalid + s.errors_too_long + s.errors_resources + s.errors_not_ready + s.errors_cancelled
			   + s.errors_engine + s.errors_other AS errors,
		   s.errors_invalid,
		   s.errors_too_long,
		   s.errors_resources,
		   s.errors_not_ready,
		   s.errors_cancelled,
		   s.errors_engine,
		   s.errors_other,
		   s.queue_ms,
		   s.run_ms,
		   s.first_token_ms,
		   s.first_token_ms / nullif(s.answers, 0) AS mean_first_token_ms,
		   1000 * s.output_tokens / nullif(s.run_ms, 0) AS tokens_per_s,
		   s.steps,
		   s.batched_tokens::float8 / nullif(s.steps, 0) AS mean_batch,
		   s.stats_reset
	FROM qwen_stat() s
		 LEFT JOIN pg_catalog.pg_roles u ON u.oid = s.userid;

COMMENT ON VIEW qwen_stat
	IS 'sums over the requests of each role since stats_reset; those of others only for pg_read_all_stats';
COMMENT ON COLUMN qwen_stat.usename
	IS 'NULL with a userid: the role was dropped; without: all roles after the first 256';
COMMENT ON COLUMN qwen_stat.requests IS 'requests that have ended, also those that only count or make tokens';
COMMENT ON COLUMN qwen_stat.answers IS 'answers of the model, to which tokens and times belong';
COMMENT ON COLUMN qwen_stat.cached_tokens IS 'the part of prompt_tokens that was not computed again';
COMMENT ON COLUMN qwen_stat.errors_invalid IS 'SQLSTATE class 22; refused by the engine, hence without wrong options';
COMMENT ON COLUMN qwen_stat.errors_too_long IS 'SQLSTATE class 54';
COMMENT ON COLUMN qwen_stat.errors_resources IS 'SQLSTATE class 53';
COMMENT ON COLUMN qwen_stat.errors_not_ready IS 'SQLSTATE class 55';
COMMENT ON COLUMN qwen_stat.errors_cancelled IS 'SQLSTATE class 57, and requests whose answer was not waited for';
COMMENT ON COLUMN qwen_stat.errors_engine IS 'SQLSTATE class 58';
COMMENT ON COLUMN qwen_stat.queue_ms IS 'time that requests waited in the engine for their turn';
COMMENT ON COLUMN qwen_stat.run_ms IS 'time from the first step of a request to its end';
COMMENT ON COLUMN qwen_stat.first_token_ms IS 'time from the arrival of a request to the first token of its answer';
COMMENT ON COLUMN qwen_stat.tokens_per_s IS 'output tokens of one request in a second of its run time';
COMMENT ON COLUMN qwen_stat.steps IS 'steps of the engine in which requests took part, each counted for each of them';
COMMENT ON COLUMN qwen_stat.mean_batch IS 'tokens in one of those steps, of this and all other requests';

CREATE FUNCTION qwen_stat_reset()
RETURNS void
AS 'MODULE_PATHNAME', 'qwen_stat_reset'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION qwen_stat_reset() IS 'begin the sums of qwen_stat anew, for all roles';

CREATE FUNCTION qwen_stat_engine(
	OUT steps bigint,
	OUT batched_tokens bigint,
	OUT cached_tokens bigint,
	OUT preemptions bigint,
	OUT running int,
	OUT waiting int,
	OUT kv_blocks_used int,
	OUT kv_blocks int,
	OUT since timestamptz)
AS 'MODULE_PATHNAME', 'qwen_stat_engine'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;

COMMENT ON FUNCTION qwen_stat_engine() IS 'the engine''s own counters since its start, at most a second old';

CREATE VIEW qwen_stat_engine AS
	SELECT e.steps,
		   e.batched_tokens,
		   e.batched_tokens::float8 / nullif(e.steps, 0) AS mean_batch,
		   e.cached_tokens,
		   e.preemptions,
		   e.running,
		   e.waiting,
		   e.kv_blocks_used,
		   e.kv_blocks,
		   e.since
	FROM qwen_stat_engine() e;

COMMENT ON VIEW qwen_stat_engine IS 'the engine''s own counters since its start, at most a second old';
COMMENT ON COLUMN qwen_stat_engine.mean_batch IS 'tokens computed in one step';
COMMENT ON COLUMN qwen_stat_engine.cached_tokens IS 'tokens taken from the prefix cache instead of being computed';
COMMENT ON COLUMN qwen_stat_engine.preemptions IS 'sequences that had to give their cache back and start again';

-- ---- administration ----

CREATE FUNCTION qwen_reload()
RETURNS void
AS 'MODULE_PATHNAME', 'qwen_reload'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION qwen_reload() IS 're-read the settings and start the engine anew; running requests finish first';

-- These run as the owner of the objects that they grant.
CREATE FUNCTION qwen_grant_usage(role regrole)
RETURNS void
AS 'MODULE_PATHNAME', 'qwen_grant_usage'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
SECURITY DEFINER SET search_path = pg_catalog, pg_temp;

COMMENT ON FUNCTION qwen_grant_usage(regrole) IS 'let a role use the model';

CREATE FUNCTION qwen_revoke_usage(role regrole)
RETURNS void
AS 'MODULE_PATHNAME', 'qwen_revoke_usage'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
SECURITY DEFINER SET search_path = pg_catalog, pg_temp;

COMMENT ON FUNCTION qwen_revoke_usage(regrole) IS 'take back what qwen_grant_usage gave';

-- ---- planning ----
--
-- What each device would hold, before anything is loaded: asked of the engine's program, which reads config.json alone.
-- NULL means: what the server is set to, or with devices that are only described, the defaults.

CREATE FUNCTION qwen_plan_json(
	model text DEFAULT NULL,
	device_map text DEFAULT NULL,
	max_memory text DEFAULT NULL,
	devices text DEFAULT NULL,
	tensor_parallel int DEFAULT NULL,
	dtype text DEFAULT NULL,
	quantization text DEFAULT NULL,
	kv_dtype text DEFAULT NULL,
	kv_memory text DEFAULT NULL,
	max_model_len int DEFAULT NULL,
	max_sequences int DEFAULT NULL,
	offload text DEFAULT NULL)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'qwen_plan_json'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED COST 100000;

COMMENT ON FUNCTION qwen_plan_json(text, text, text, text, int, text, text, text, text, int, int, text)
	IS 'what qwen-engine plan --json says: where a model would be placed, or why it does not fit';

-- A row for each device, and a last one, total, that has the verdict: what fits, or what is missing and what would help.
CREATE FUNCTION qwen_plan(
	model text DEFAULT NULL,
	device_map text DEFAULT NULL,
	max_memory text DEFAULT NULL,
	devices text DEFAULT NULL,
	tensor_parallel int DEFAULT NULL,
	dtype text DEFAULT NULL,
	quantization text DEFAULT NULL,
	kv_dtype text DEFAULT NULL,
	kv_memory text DEFAULT NULL,
	max_model_len int DEFAULT NULL,
	max_sequences int DEFAULT NULL,
	offload text DEFAULT NULL,
	OUT device text,
	OUT holds text,
	OUT fits boolean,
	OUT available_bytes bigint,
	OUT weights_bytes bigint,
	OUT kv_bytes bigint,
	OUT state_bytes bigint,
	OUT workspace_bytes bigint,
	OUT overhead_bytes bigint,
	OUT margin_bytes bigint,
	OUT free_bytes bigint,
	OUT missing_bytes bigint,
	OUT max_tokens bigint,
	OUT full_sequences int,
	OUT detail text,
	OUT remedies text[])
RETURNS SETOF record
LANGUAGE SQL VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED
BEGIN ATOMIC
	WITH plan AS MATERIALIZED (
		SELECT qwen_plan_json(model, device_map, max_memory, devices, tensor_parallel, dtype, quantization, kv_dtype,
							  kv_memory, max_model_len, max_sequences, offload) AS p
	), device AS (
		SELECT d.value->>'name' AS name,
			   d.value->>'holds' AS holds,
			   (d.value->>'budget')::bigint AS available,
			   (d.value->>'weights')::bigint AS weights,
			   (d.value->>'kv')::bigint AS kv,
			   (d.value->>'state')::bigint AS state,
			   (d.value->>'workspace')::bigint AS workspace,
			   (d.value->>'overhead')::bigint AS overhead,
			   (d.value->>'margin')::bigint AS margin,
			   (d.value->>'free')::bigint AS free,
			   d.ordinality AS n
		FROM plan, pg_catalog.jsonb_array_elements(p->'devices') WITH ORDINALITY AS d
	), shortage AS (
		SELECT name, holds, available, weights, kv, state, workspace, overhead, margin, free, n,
			   greatest(weights + kv + state + workspace + overhead + margin - available, 0) AS missing
		FROM device
	), line AS (
		SELECT name, holds, missing = 0 AS fits, available, weights, kv, state, workspace, overhead, margin, free,
			   missing, NULL::bigint AS tokens, NULL::int AS sequences, NULL::text AS detail, NULL::text[] AS remedies, n
		FROM shortage
		UNION ALL
		SELECT 'total', NULL, (p->>'fits')::boolean, t.available, t.weights, t.kv, t.state, t.workspace, t.overhead,
			   t.margin, t.free, t.missing, CASE WHEN (p->>'fits')::boolean THEN (p->>'max_tokens_total')::bigint END,
			   CASE WHEN (p->>'fits')::boolean THEN (p->>'max_sequences')::int END,
			   (p->>'message') || '. ' || (p->>'detail'),
			   ARRAY(SELECT r.value->>'text'
					 FROM pg_catalog.jsonb_array_elements(p->'remedies') WITH ORDINALITY AS r
					 ORDER BY r.ordinality),
			   NULL
		FROM plan,
			 (SELECT sum(available)::bigint AS available, sum(weights)::bigint AS weights, sum(kv)::bigint AS kv,
					 sum(state)::bigint AS state, sum(workspace)::bigint AS workspace,
					 sum(overhead)::bigint AS overhead, sum(margin)::bigint AS margin, sum(free)::bigint AS free,
					 sum(missing)::bigint AS missing
			  FROM shortage) AS t
	)
	SELECT name, holds, fits, available, weights, kv, state, workspace, overhead, margin, free, missing, tokens,
		   sequences, detail, remedies
	FROM line
	ORDER BY n NULLS LAST;
END;

COMMENT ON FUNCTION qwen_plan(text, text, text, text, int, text, text, text, text, int, int, text)
	IS 'where a model would be placed and what each device would hold, or why it does not fit; loads nothing';

-- ---- privileges ----
--
-- Nothing for PUBLIC: the model's time is not free, and prompts may be expensive. qwen_grant_usage() is the way in. Who
-- created the extension may administer it, also where the objects belong to somebody else; but qwen_plan reads files of
-- the server, and is left to their owner like pg_read_file.

REVOKE ALL ON FUNCTION
	qwen_support(internal),
	qwen_generate(text, int, float8, float8, int, bigint, text[], text, jsonb, boolean, text, jsonb),
	qwen_generate(text[], int, float8, float8, int, bigint, text[], text, jsonb, boolean, text, jsonb),
	qwen_complete(text, int, float8, float8, int, bigint, text[], text, jsonb, boolean, text, jsonb),
	qwen_chat(jsonb, int, float8, float8, int, bigint, text[], text, jsonb, boolean, text, jsonb, jsonb),
	qwen_stream(text, int, float8, float8, int, bigint, text[], text, jsonb, boolean, text, jsonb),
	qwen_try_generate(text, int, float8, float8, int, bigint, text[], text, jsonb, boolean, text, jsonb),
	qwen_token_count(text),
	qwen_tokenize(text),
	qwen_detokenize(int[]),
	qwen_status(),
	qwen_requests(),
	qwen_devices(),
	qwen_device_map(),
	qwen_stat(),
	qwen_stat_engine(),
	qwen_stat_reset(),
	qwen_reload(),
	qwen_plan_json(text, text, text, text, int, text, text, text, text, int, int, text),
	qwen_plan(text, text, text, text, int, text, text, text, text, int, int, text),
	qwen_grant_usage(regrole),
	qwen_revoke_usage(regrole)
FROM PUBLIC;

GRANT EXECUTE ON FUNCTION
	qwen_stat_reset(),
	qwen_reload(),
	qwen_grant_usage(regrole),
	qwen_revoke_usage(regrole)
TO @extowner@;
