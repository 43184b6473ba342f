-- What the planner is told about calls: cost and rows by their tokens.
SET qwen.batch_scan = off;
SET qwen.max_tokens = 500;
CREATE TABLE docs (id int, body text, kind int);
INSERT INTO docs SELECT i, repeat('word ', 20), i % 3 FROM generate_series(1, 10) i;
CREATE TABLE kinds (kind int, name text);
INSERT INTO kinds SELECT i, 'kind ' || i FROM generate_series(0, 2) i;
ANALYZE docs, kinds;

CREATE FUNCTION plan_of(query text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	plan jsonb;
BEGIN
	EXECUTE 'EXPLAIN (FORMAT JSON) ' || query INTO plan;
	RETURN plan -> 0 -> 'Plan';
END
$$;
-- in calls of operators, and for one row
CREATE FUNCTION cost_of(call text) RETURNS numeric LANGUAGE sql AS $$
	SELECT round((plan_of('SELECT ' || call) ->> 'Total Cost')::numeric / current_setting('cpu_operator_cost')::numeric, -2) $$;
-- the conditions of a scan, by what they ask for, in the order in which they are looked at
CREATE FUNCTION order_of(query text) RETURNS text[] LANGUAGE sql AS $$
	SELECT array_agg(coalesce(m[1], 'cheap')) FROM unnest(string_to_array(plan_of(query) ->> 'Filter', ' AND ')) c,
		   LATERAL (SELECT regexp_match(c, '"?qwen_\w+\(\w+, (\w+)')) AS t (m) $$;

-- a hundred tokens of the answer cost as much as the call, and so do a thousand of the prompt
SELECT call, cost_of(call) FROM unnest(ARRAY[
	$q$qwen_generate('x', max_tokens => 1)$q$, $q$qwen_generate('x', max_tokens => 100)$q$, $q$qwen_generate('x', 100)$q$,
	$q$qwen_generate('x')$q$, $q$qwen_generate('x', max_tokens => NULL)$q$, $q$qwen_generate('x', max_tokens => 50 * 2)$q$,
	$q$qwen_generate('x', max_tokens => (random() * 9)::int)$q$, $q$qwen_complete('x', max_tokens => 100)$q$,
	$q$qwen_chat('[]', max_tokens => 100)$q$, $q$qwen_try_generate('x', max_tokens => 100)$q$,
	$q$qwen_generate('{x,y,z}'::text[], max_tokens => 100)$q$, $q$qwen_generate(NULL::text, max_tokens => 100)$q$,
	$q$qwen_generate('x', max_tokens => -5)$q$]) AS call;
SELECT cost_of(format('qwen_generate(%L, max_tokens => 1)', repeat('word ', 4000))) - cost_of($q$qwen_generate('x', max_tokens => 1)$q$) AS long_prompt;
SET qwen.max_tokens = 50;
SELECT cost_of($q$qwen_generate('x')$q$);
RESET qwen.max_tokens;
SELECT cost_of($q$qwen_generate('x')$q$);
SET qwen.max_tokens = 500;
-- of a column the average length counts
SELECT round((a.cost - b.cost) / 10 / 250 * 1000) AS tokens
FROM (SELECT (plan_of('SELECT qwen_generate(repeat(body, 1) || body, max_tokens => 1) FROM docs') ->> 'Total Cost')::numeric AS cost) a,
	 (SELECT (plan_of('SELECT qwen_generate(body, max_tokens => 1) FROM docs') ->> 'Total Cost')::numeric AS cost) b;

-- cheap conditions first, then short answers, then long ones
SELECT order_of($q$SELECT FROM docs WHERE qwen_generate(body) = 'a' AND qwen_generate(body, 5) = 'b' AND length(body) > 1 AND qwen_complete(body, 100) = 'c'$q$);
SET qwen.max_tokens = 50;
SELECT order_of($q$SELECT FROM docs WHERE qwen_generate(body) = 'a' AND qwen_generate(body, 5) = 'b' AND length(body) > 1 AND qwen_complete(body, 100) = 'c'$q$);
SET qwen.max_tokens = 500;
EXPLAIN (COSTS OFF) SELECT d.id FROM docs d JOIN kinds k USING (kind)
WHERE qwen_generate(d.body, max_tokens => 5) = 'yes' AND d.id > 3 AND k.name LIKE 'kind%' AND length(d.body) > length(k.name);
SET qwen.batch_scan = on;
EXPLAIN (COSTS OFF) SELECT d.id FROM docs d JOIN kinds k USING (kind)
WHERE qwen_generate(d.body || k.name, max_tokens => 5) = 'yes' AND d.id > 3 AND length(d.body) > length(k.name);
-- rows of a stream: a piece for a token
SELECT query, plan_of(query) ->> 'Plan Rows' AS rows FROM unnest(ARRAY[
	$q$SELECT * FROM qwen_stream('x', max_tokens => 7)$q$, $q$SELECT * FROM qwen_stream('x')$q$,
	$q$SELECT qwen_stream('x', max_tokens => 7)$q$, $q$SELECT qwen_stream(body, max_tokens => 7) FROM docs$q$]) AS query;

-- that calls cost much is no reason to compile the expressions around them
CREATE FUNCTION compiles(query text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	line text;
BEGIN
	FOR line IN EXECUTE 'EXPLAIN ' || query LOOP
		IF line LIKE '%JIT:%' THEN
			RETURN true;
		END IF;
	END LOOP;
	RETURN false;
END
$$;
SET jit = on;
SET jit_above_cost = 0;
SELECT query FROM unnest(ARRAY[
	$q$SELECT id + 1, qwen_generate(body) FROM docs$q$, $q$SELECT id + 1, qwen_generate(ARRAY[body]) FROM docs$q$,
	$q$SELECT id + 1, qwen_stream(body) FROM docs$q$, $q$SELECT id + 1, s.seq FROM docs, qwen_stream(body) s$q$,
	$q$SELECT id + 1 FROM docs LEFT JOIN kinds k ON k.kind = id AND qwen_generate(body || name) = ''$q$,
	$q$SELECT id + 1 FROM docs WHERE kind = 0 OR qwen_generate(body) = ''$q$]) AS query WHERE compiles(query);
SELECT compiles('SELECT id + 1 FROM docs') = pg_jit_available() AS others_as_always;
RESET jit_above_cost;
RESET jit;

-- COST is the administrator's to set
BEGIN;
ALTER FUNCTION qwen_generate(text, int, float8, float8, int, bigint, text[], text, jsonb, boolean, text, jsonb) COST 200000;
SELECT cost_of($q$qwen_generate('x', max_tokens => 100)$q$);
ROLLBACK;
SELECT p.oid::regprocedure::text ~ '^qwen_(generate|complete|chat|stream|try_generate)' AS generates, procost, prosupport, count(*)
FROM pg_proc p WHERE proname LIKE 'qwen\_%' AND procost >= 1000 GROUP BY 1, 2, 3 ORDER BY 1;

DROP FUNCTION cost_of, order_of, plan_of, compiles;
DROP TABLE docs, kinds;
