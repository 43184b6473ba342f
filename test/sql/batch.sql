-- Calls of many rows under way at a time: which plans get QwenBatch, that rows and answers are those of plain plans, and
-- how many sequences are run for them.
SET qwen.batch_scan = on;
SET qwen.max_tokens = 8;
SET enable_hashjoin = off;
CREATE TABLE docs (id int PRIMARY KEY, body text, kind int);
INSERT INTO docs SELECT i, 'What is ' || i || ' + 1?', i % 3 FROM generate_series(1, 20) i;
INSERT INTO docs VALUES (21, NULL, 0);
CREATE TABLE notes (doc int, note text);
INSERT INTO notes SELECT i, 'note ' || i FROM generate_series(1, 20) i;
ANALYZE docs, notes;

-- whether a query has the same rows with batching and without
CREATE FUNCTION same(query text, OUT nodes int, OUT rows bigint, OUT same boolean) LANGUAGE plpgsql AS $$
DECLARE
	line text;
	batched text;
	plain text;
BEGIN
	nodes := 0;
	FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) ' || query LOOP
		nodes := nodes + (line LIKE '%QwenBatch%')::int;
	END LOOP;
	EXECUTE 'SELECT count(*), string_agg(q::text, ''|'') FROM (' || query || ') q' INTO rows, batched;
	SET LOCAL qwen.batch_scan = off;
	EXECUTE 'SELECT string_agg(q::text, ''|'') FROM (' || query || ') q' INTO plain;
	SET LOCAL qwen.batch_scan = on;
	same := batched IS NOT DISTINCT FROM plain;
END
$$;

-- what EXPLAIN ANALYZE counts, for each node
CREATE FUNCTION counted(query text, OUT node int, OUT input_rows int, OUT requests int, OUT is_distinct int, OUT sequences int)
RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
	plan jsonb;
BEGIN
	EXECUTE 'EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, FORMAT JSON) ' || query INTO plan;
	RETURN QUERY SELECT ordinality::int, (n ->> 'Input Rows')::int, (n ->> 'Requests')::int,
		(n ->> 'Distinct Requests')::int, (n ->> 'Sequences Run')::int
	FROM jsonb_path_query(plan, 'strict $.** ? (@."Custom Plan Provider" == "QwenBatch")') WITH ORDINALITY AS t (n);
END
$$;

-- ---- lists ----

EXPLAIN (COSTS OFF) SELECT id, qwen_generate(body) FROM docs;
SELECT id, qwen_generate(body) FROM docs WHERE id IN (1, 2, 21) ORDER BY id;
SELECT * FROM same('SELECT id, qwen_generate(body) FROM docs');
SELECT * FROM same('SELECT id + 1, upper(qwen_generate(body)) || id, length(qwen_complete(body, max_tokens => 3)) FROM docs');
SELECT * FROM same('SELECT kind, ctid, docs, tableoid::regclass, qwen_generate(body) FROM docs');
SELECT * FROM same('SELECT (qwen_try_generate(body)).value FROM docs');
SELECT * FROM same($q$SELECT qwen_chat(jsonb_build_array(jsonb_build_object('role', 'user', 'content', body))) ->> 'content' FROM docs WHERE body IS NOT NULL$q$);
-- nested: one node feeds the other
EXPLAIN (COSTS OFF) SELECT length(qwen_generate('Say: ' || qwen_generate(body))) FROM docs;
SELECT * FROM same($q$SELECT length(qwen_generate('Say: ' || qwen_generate(body))) FROM docs$q$);
-- rows keep their order, whatever their answers take
SET qwen.batch_rows = 4;
SELECT * FROM same('SELECT id, qwen_generate(body, max_tokens => 1 + id % 7) FROM docs');
SET qwen.batch_rows = 1;
SELECT * FROM same('SELECT id, qwen_generate(body, max_tokens => 1 + id % 7) FROM docs');
RESET qwen.batch_rows;
-- answers that are drawn with a seed of their own
SELECT * FROM same('SELECT id, qwen_generate(body, temperature => 2.0, seed => id) FROM docs');

-- ---- conditions ----

EXPLAIN (COSTS OFF) SELECT id FROM docs WHERE kind = 0 AND qwen_generate(body, max_tokens => 20) LIKE '%1%' AND qwen_complete(body) <> '';
SELECT * FROM same($q$SELECT id FROM docs WHERE kind = 0 AND qwen_generate(body, max_tokens => 20) LIKE '%1%' AND qwen_complete(body) <> ''$q$);
SELECT * FROM same($q$SELECT id, qwen_generate('again ' || body) FROM docs WHERE NOT qwen_generate(body, max_tokens => 20) LIKE '%1%'$q$);
-- what one condition turns down is not asked for the next, nor for the list
SELECT * FROM counted($q$SELECT qwen_generate('list ' || body) FROM docs WHERE kind = 0 AND qwen_generate(body) IS NULL AND qwen_complete(body || '?') IS NULL$q$);
-- and the list is not computed for it
SELECT 1 / (id - 1) AS ratio FROM docs WHERE qwen_generate(body) IS NOT NULL AND id < 3 AND id <> 1 ORDER BY id;
SELECT 1 / (id - 1) AS ratio FROM docs WHERE id < 3 AND (qwen_generate(body) IS NULL) ORDER BY id;

-- ---- joins, grouping, windows, set operations ----

EXPLAIN (COSTS OFF) SELECT d.id, n.note, qwen_generate(d.body || n.note) FROM docs d LEFT JOIN notes n ON n.doc = d.id + 1 WHERE d.kind = 1;
SELECT * FROM same('SELECT d.id, n.note, qwen_generate(d.body || n.note) FROM docs d LEFT JOIN notes n ON n.doc = d.id + 1 WHERE d.kind = 1 ORDER BY d.id');
EXPLAIN (COSTS OFF) SELECT kind, qwen_generate(max(body)) FROM docs GROUP BY kind HAVING count(*) > 1;
SELECT * FROM same($q$SELECT kind, qwen_generate(string_agg(body, ' ' ORDER BY id)) FROM docs GROUP BY kind HAVING count(*) > 1 ORDER BY kind$q$);
EXPLAIN (COSTS OFF) SELECT qwen_generate(body), count(*) FROM docs GROUP BY 1;
SELECT * FROM same('SELECT qwen_generate(body), count(*) FROM docs GROUP BY 1 ORDER BY 1, 2');
SELECT * FROM same('SELECT DISTINCT qwen_generate(body, max_tokens => 1) FROM docs ORDER BY 1');
SELECT * FROM same('SELECT id FROM docs ORDER BY qwen_generate(body), id');
SELECT * FROM same('SELECT id, rank() OVER (PARTITION BY kind ORDER BY id), qwen_generate(body) FROM docs ORDER BY id');
SELECT * FROM same($q$SELECT qwen_generate(body) FROM docs WHERE kind = 0 UNION ALL SELECT qwen_generate(note) FROM notes WHERE doc < 4$q$);
SELECT * FROM same($q$SELECT qwen_generate(v) FROM (VALUES ('What is 1 + 1?'), ('What is 2 + 2?'), (NULL)) AS t (v)$q$);
SELECT * FROM same($q$SELECT qwen_generate('What is ' || i || ' + 2?') FROM generate_series(1, 5) i$q$);

-- ---- arguments of aggregates ----

EXPLAIN (COSTS OFF) SELECT kind, sum(length(qwen_generate(body))) FROM docs GROUP BY kind;
SELECT * FROM same('SELECT kind, sum(length(qwen_generate(body))), max(qwen_generate(body)) FROM docs GROUP BY kind ORDER BY kind');
SELECT * FROM same($q$SELECT count(*) FILTER (WHERE qwen_generate(body, max_tokens => 20) LIKE '%1%'), count(*) FROM docs$q$);
SELECT * FROM same($q$SELECT string_agg(DISTINCT qwen_generate(body), ',' ORDER BY qwen_generate(body)) FROM docs$q$);
SELECT * FROM same($q$SELECT kind FROM docs GROUP BY kind HAVING max(length(qwen_generate(body))) > 2 ORDER BY kind$q$);
SELECT * FROM same($q$SELECT sum(length(qwen_generate('Say: ' || qwen_generate(body)))) FROM docs$q$);
-- an argument is asked for where the filter holds
SELECT * FROM counted('SELECT count(qwen_generate(body)) FILTER (WHERE kind = 1) FROM docs');
SELECT * FROM counted('SELECT count(qwen_generate(body)) FROM docs');
SELECT * FROM same('SELECT count(qwen_generate(body)) FILTER (WHERE kind = 1) FROM docs');
SELECT * FROM same($q$SELECT max(qwen_generate(body || '!')) FILTER (WHERE qwen_generate(body) LIKE '%1%') FROM docs$q$);
-- grouping sets evaluate arguments themselves
SELECT * FROM same('SELECT kind, max(qwen_generate(body)) FROM docs GROUP BY ROLLUP (kind) ORDER BY kind');

-- ---- parallel plans ----

SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
EXPLAIN (COSTS OFF) SELECT id, qwen_generate(body) FROM docs;
SELECT * FROM same('SELECT id, qwen_generate(body) FROM docs ORDER BY id');
SELECT * FROM same('SELECT max(qwen_generate(body)) FROM docs');
RESET parallel_setup_cost;
RESET parallel_tuple_cost;
RESET min_parallel_table_scan_size;

-- ---- sub-queries ----

EXPLAIN (COSTS OFF) WITH w AS MATERIALIZED (SELECT id, qwen_generate(body) AS g FROM docs) SELECT count(g) FROM w;
SELECT * FROM same('WITH w AS MATERIALIZED (SELECT id, qwen_generate(body) AS g FROM docs) SELECT * FROM w WHERE id > 3 ORDER BY id');
SELECT * FROM same('SELECT id, g || id FROM (SELECT id, qwen_generate(body) AS g FROM docs OFFSET 0) s WHERE length(g) > 1 ORDER BY id');
SELECT * FROM same('SELECT id, (SELECT max(qwen_generate(note)) FROM notes WHERE doc < docs.id) FROM docs WHERE id < 5 ORDER BY id');
EXPLAIN (COSTS OFF) SELECT d.id, g FROM docs d, LATERAL (SELECT qwen_generate(d.body || note) AS g FROM notes WHERE doc < d.kind + 2 OFFSET 0) l;
SELECT * FROM same('SELECT d.id, g FROM docs d, LATERAL (SELECT qwen_generate(d.body || note) AS g FROM notes WHERE doc < d.kind + 2 OFFSET 0) l ORDER BY 1, 2');
SELECT * FROM same('SELECT id FROM docs d WHERE EXISTS (SELECT FROM notes n WHERE n.doc >= d.id AND length(qwen_generate(note)) > 0) ORDER BY id');
CREATE FUNCTION ask(t text) RETURNS text LANGUAGE sql AS $$ SELECT qwen_generate(t, max_tokens => 5) $$;
SELECT * FROM same('SELECT id, ask(body) FROM docs');

-- ---- shapes of all kinds ----

SELECT * FROM same($q$WITH RECURSIVE r AS (SELECT 1 AS i, qwen_generate('What is 1 + 1?') AS g UNION ALL SELECT i + 1, qwen_generate('What is ' || g || ' + 1?') FROM r WHERE i < 4) SELECT * FROM r$q$);
SELECT * FROM same($q$SELECT DISTINCT ON (kind) kind, id, qwen_generate(body) FROM docs ORDER BY kind, id$q$);
SELECT * FROM same($q$SELECT qwen_generate(body) FROM docs EXCEPT SELECT qwen_generate(body) FROM docs WHERE id > 3 ORDER BY 1$q$);
SELECT * FROM same($q$SELECT a.id, b.doc, qwen_generate(coalesce(a.body, b.note)) FROM docs a FULL JOIN notes b ON a.id = b.doc + 3 ORDER BY 1, 2$q$);
SELECT * FROM same($q$SELECT id, ARRAY(SELECT qwen_generate(note) FROM notes WHERE doc < docs.kind + 2 ORDER BY doc) FROM docs ORDER BY id$q$);
SELECT * FROM same($q$SELECT s.id FROM (SELECT id, body FROM docs OFFSET 0) s WHERE qwen_generate(s.body) LIKE '%1%'$q$);
SELECT * FROM same($q$SELECT id, id IN (SELECT length(qwen_generate(body)) FROM docs) FROM docs ORDER BY id$q$);
SELECT * FROM same($q$SELECT id, id = ANY (SELECT length(qwen_generate(body)) + d.kind FROM docs) FROM docs d ORDER BY id$q$);
SELECT * FROM same($q$SELECT d.id, qwen_generate(d.body || (SELECT max(note) FROM notes WHERE doc = d.id)) FROM docs d ORDER BY id$q$);
SELECT * FROM same($q$SELECT sum(length(qwen_generate(body))) OVER (ORDER BY id), id FROM docs ORDER BY id$q$);
SELECT * FROM same($q$SELECT kind, count(*), qwen_generate(kind || min(body)), grouping(kind) FROM docs GROUP BY ROLLUP (kind) ORDER BY kind$q$);
SELECT * FROM same($q$SELECT (docs).body, qwen_generate((docs).body) FROM docs ORDER BY id$q$);
SELECT * FROM same($q$SELECT ROW(id, qwen_generate(body))::text, ARRAY[qwen_generate(body), body] FROM docs ORDER BY id$q$);
SELECT * FROM same($q$SELECT id, qwen_generate(body) IS NULL, NOT (qwen_generate(body) = '4'), qwen_generate(body) IN ('3', '4') FROM docs ORDER BY id$q$);
SELECT * FROM same($q$SELECT id FROM docs TABLESAMPLE SYSTEM (100) WHERE qwen_generate(body) = '5'$q$);
SELECT * FROM same($q$SELECT ctid FROM docs WHERE ctid > '(0,3)' AND qwen_generate(body) IS NOT NULL$q$);
SELECT * FROM same($q$SELECT x.g FROM docs LEFT JOIN LATERAL (SELECT qwen_generate(docs.body) AS g WHERE docs.id > 5) x ON true ORDER BY docs.id$q$);
SELECT * FROM same($q$SELECT qwen_generate(body) AS a, (SELECT count(*) FROM notes WHERE note < qwen_generate(docs.body)) FROM docs ORDER BY id$q$);
SELECT * FROM same($q$SELECT max(g) FROM (SELECT qwen_generate(body) g, kind FROM docs) s GROUP BY kind ORDER BY kind$q$);
SELECT * FROM same($q$SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY qwen_generate(body)) FROM docs$q$);
SELECT * FROM same($q$SELECT kind, json_object_agg(id, qwen_generate(body) ORDER BY id) FILTER (WHERE id < 7) FROM docs GROUP BY kind ORDER BY kind$q$);
SELECT * FROM same($q$SELECT FROM docs WHERE qwen_generate(body) <> '4'$q$);
SELECT * FROM same($q$SELECT count(*) FROM docs WHERE qwen_generate(body) <> '4'$q$);
SELECT * FROM same($q$SELECT count(*) FROM docs a JOIN docs b ON a.id = b.id AND qwen_generate(a.body) = qwen_generate(b.body)$q$);
SELECT * FROM same($q$SELECT qwen_generate(body) FROM docs WHERE id < 5 OFFSET 2$q$);
SELECT * FROM same($q$SELECT string_agg(qwen_generate(body), ',' ORDER BY id) FROM docs WHERE false$q$);
SELECT * FROM same($q$SELECT n, count(qwen_generate(body)) FROM docs, generate_series(1, 2) n GROUP BY n ORDER BY n$q$);
SELECT * FROM same($q$SELECT id, lag(qwen_generate(body)) OVER w FROM docs WINDOW w AS (ORDER BY id)$q$);
SELECT * FROM same($q$SELECT * FROM (SELECT id, row_number() OVER (ORDER BY id) AS r, qwen_generate(body) FROM docs) s WHERE r < 4$q$);
SELECT * FROM same($q$SELECT id, qwen_generate(body, max_tokens => CASE WHEN id < 5 THEN 1 ELSE 3 END) FROM docs ORDER BY id DESC$q$);

-- ---- partitions ----

CREATE TABLE parts (id int, body text) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (30);
INSERT INTO parts SELECT id, body FROM docs;
EXPLAIN (COSTS OFF) SELECT id, qwen_generate(body) FROM parts;
SELECT * FROM same('SELECT id, qwen_generate(body) FROM parts ORDER BY id');

-- ---- statements that write ----

CREATE TABLE answers AS SELECT id, body, qwen_generate(body) AS answer FROM docs;
EXPLAIN (COSTS OFF) CREATE TABLE answers_too AS SELECT id, qwen_generate(body) FROM docs;
EXPLAIN (COSTS OFF) INSERT INTO answers SELECT id + 100, body, qwen_generate(body) FROM docs;
INSERT INTO answers SELECT id + 100, body, qwen_generate(body) FROM docs;
EXPLAIN (COSTS OFF) UPDATE answers SET answer = qwen_generate(body) || '!' WHERE id > 100;
UPDATE answers SET answer = qwen_generate(body) || '!' WHERE id > 100;
SELECT count(*), count(*) FILTER (WHERE b.answer = a.answer || '!'), count(b.answer)
FROM answers a JOIN answers b ON b.id = a.id + 100;
DELETE FROM answers WHERE qwen_generate(body) IS NULL OR id > 103;
DELETE FROM answers WHERE qwen_generate(body) = answer AND id > 2;
SELECT id, answer FROM answers ORDER BY id;
COPY (SELECT id, qwen_generate(body) FROM docs WHERE id < 4 ORDER BY id) TO STDOUT;
MERGE INTO answers a USING (SELECT id, qwen_generate(body) AS g FROM docs WHERE id < 3) d ON a.id = d.id
WHEN MATCHED THEN UPDATE SET answer = d.g || '?';
SELECT id, answer FROM answers WHERE id < 3 ORDER BY id;

-- ---- prepared statements and cursors ----

PREPARE ask_kind AS SELECT id, qwen_generate(body || $2) FROM docs WHERE kind = $1 AND id < 8 ORDER BY id;
SET plan_cache_mode = force_generic_plan;
EXPLAIN (COSTS OFF) EXECUTE ask_kind(1, '');
EXECUTE ask_kind(1, '');
EXECUTE ask_kind(2, '');
RESET plan_cache_mode;
DEALLOCATE ask_kind;

BEGIN;
DECLARE c CURSOR FOR SELECT id, qwen_generate(body) FROM docs WHERE id < 10 ORDER BY id;
FETCH 2 FROM c;
FETCH 1 FROM c;
SAVEPOINT s;
SELECT qwen_generate(body) FROM docs WHERE id = 5;
ROLLBACK TO s;
FETCH 2 FROM c;
FETCH ALL FROM c;
CLOSE c;
-- a cursor that goes back
DECLARE s SCROLL CURSOR FOR SELECT id, qwen_generate(body) FROM docs WHERE id < 10;
FETCH 3 FROM s;
FETCH BACKWARD 1 FROM s;
FETCH BACKWARD 1 FROM s;
FETCH FORWARD 2 FROM s;
FETCH ABSOLUTE 2 FROM s;
FETCH LAST FROM s;
CLOSE s;
EXPLAIN (COSTS OFF, VERBOSE) DECLARE s SCROLL CURSOR FOR SELECT id, qwen_generate(body) FROM docs;
-- a cursor that updates
DECLARE u CURSOR FOR SELECT id, qwen_generate(body) FROM answers WHERE id < 5 FOR UPDATE;
FETCH 2 FROM u;
UPDATE answers SET answer = 'updated' WHERE CURRENT OF u;
SELECT id, answer FROM answers WHERE answer = 'updated';
CLOSE u;
-- nobody waits for what is under way when a cursor is closed
DECLARE c CURSOR FOR SELECT qwen_generate(body, max_tokens => 400, temperature => 100, seed => 1) FROM docs, generate_series(1, 5);
MOVE 3 FROM c;
CLOSE c;
COMMIT;

-- ---- how many ----

-- equal greedy requests are run once, also in several calls and nodes
CREATE VIEW many AS SELECT i, 'What is ' || i % 10 || ' + 3?' AS body FROM generate_series(1, 200) i;
SELECT * FROM counted('SELECT qwen_generate(body) FROM many');
SELECT * FROM counted('SELECT qwen_generate(body), qwen_generate(body) FROM many');
SELECT * FROM counted('SELECT qwen_generate(body, temperature => 1) FROM many LIMIT 20');
SELECT * FROM counted($q$SELECT qwen_generate(body, options => '{"cache": false}') FROM many LIMIT 20$q$);
SET qwen.cache = off;
SELECT * FROM counted('SELECT qwen_generate(body) FROM many LIMIT 20');
RESET qwen.cache;
SELECT sum(requests), sum(sequences) FROM counted('SELECT qwen_generate(body) FROM many UNION ALL SELECT qwen_generate(body) FROM many');
SELECT input_rows, requests, sequences FROM counted('SELECT (SELECT count(qwen_generate(body)) FROM many WHERE i <= docs.id) FROM docs');

-- a row that is not wanted is asked for only as far as the look-ahead goes
SELECT * FROM counted('SELECT qwen_generate(''n'' || i, max_tokens => 2) FROM generate_series(1, 1000) i LIMIT 5');
SELECT * FROM counted('SELECT qwen_generate(''n'' || i, max_tokens => 2) FROM generate_series(1, 1000) i LIMIT 5 OFFSET 2');
SELECT sequences <= 16 AS few FROM counted('SELECT i FROM generate_series(1, 1000000) i WHERE qwen_generate(''n'' || i, max_tokens => 2) IS NOT NULL LIMIT 5');
SELECT sequences <= 16 AS few FROM counted('SELECT qwen_generate(g) FROM (SELECT ''n'' || i AS g FROM generate_series(1, 1000) i OFFSET 0) s LIMIT (SELECT 5)');
SELECT sequences FROM counted('SELECT 1 WHERE EXISTS (SELECT FROM generate_series(1, 1000) i WHERE qwen_generate(''n'' || i, max_tokens => 2) IS NOT NULL)');

-- ---- what stays as it is ----

-- conditional calls, joins, VALUES, RETURNING; a single row
EXPLAIN (COSTS OFF) SELECT CASE WHEN kind = 0 THEN qwen_generate(body) END, coalesce(body, qwen_generate('x')) FROM docs;
SELECT * FROM same('SELECT CASE WHEN kind = 0 THEN qwen_generate(body) END FROM docs');
SELECT * FROM same($q$SELECT id FROM docs WHERE kind = 0 OR qwen_generate(body) LIKE '%1%'$q$);
SELECT * FROM same($q$SELECT regexp_split_to_table(qwen_generate(body), ' ') FROM docs WHERE id < 4$q$);
SELECT * FROM same($q$SELECT 1 WHERE qwen_generate('What is 1 + 1?') <> ''$q$);
INSERT INTO answers VALUES (1000, 'What is 1 + 1?') RETURNING qwen_generate(body);
-- the inner side of a merge join is read again from a mark
CREATE INDEX docs_kind ON docs (kind, id);
SET enable_nestloop = off;
SET enable_sort = off;
SET enable_material = off;
EXPLAIN (COSTS OFF) SELECT a.id, b.id FROM docs a JOIN docs b ON a.kind = b.kind WHERE qwen_generate(a.body) <> '4' AND qwen_generate(b.body) <> '5';
SELECT * FROM same($q$SELECT a.id, b.id FROM docs a JOIN docs b ON a.kind = b.kind WHERE qwen_generate(a.body) <> '4' AND qwen_generate(b.body) <> '5'$q$);
RESET enable_nestloop;
RESET enable_sort;
RESET enable_material;
DROP INDEX docs_kind;
-- rows beyond a LIMIT must not be noticed
CREATE SEQUENCE drawn;
EXPLAIN (COSTS OFF) SELECT qwen_generate(body || nextval('drawn')) FROM docs LIMIT 3;
EXPLAIN (COSTS OFF) SELECT nextval('drawn'), qwen_generate(body) FROM docs LIMIT 3;
SELECT nextval('drawn'), qwen_generate(body) FROM docs LIMIT 3;
SELECT nextval('drawn');
BEGIN;
DECLARE c CURSOR FOR SELECT qwen_generate(body || nextval('drawn')) IS NULL FROM docs;
FETCH 3 FROM c;
COMMIT;
SELECT nextval('drawn');

-- ---- settings and errors ----

SET qwen.debug_require_batch = on;
SELECT count(qwen_generate(body)) FROM docs;
SELECT qwen_generate('What is 1 + 1?');
SELECT CASE WHEN kind = 0 THEN qwen_generate(body) END FROM docs;
SET qwen.batch_scan = off;
SELECT qwen_generate(body) FROM docs;
RESET qwen.debug_require_batch;
EXPLAIN (COSTS OFF) SELECT qwen_generate(body) FROM docs;
SET qwen.batch_scan = on;
SET qwen.batch_rows = 0;

-- errors of rows are those of plain calls
SELECT count(qwen_generate(body, max_tokens => 0)) FROM docs;
SELECT count(qwen_generate(repeat('word ', 5000))) FROM docs;
SELECT count(qwen_generate(repeat('word ', 5000), on_error => 'null')), count(*) FROM docs;
SELECT count(qwen_generate(body, 5, NULL, NULL, NULL, NULL, NULL, NULL, '{}')) FROM docs;
SELECT qwen_generate(body) FROM docs WHERE 1 / (id - 15) IS NOT NULL ORDER BY id;

-- who may not call may not batch
CREATE ROLE regress_qwen_nobody;
GRANT SELECT ON docs TO regress_qwen_nobody;
SET ROLE regress_qwen_nobody;
SELECT qwen_generate(body) FROM docs;
RESET ROLE;
DROP OWNED BY regress_qwen_nobody;
DROP ROLE regress_qwen_nobody;

-- row security comes first
CREATE ROLE regress_qwen_reader;
SELECT qwen_grant_usage('regress_qwen_reader');
GRANT SELECT ON docs TO regress_qwen_reader;
ALTER TABLE docs ENABLE ROW LEVEL SECURITY;
CREATE POLICY even ON docs TO regress_qwen_reader USING (qwen_generate(body) IN ('2', '4'));
CREATE FUNCTION peek(t text) RETURNS boolean LANGUAGE plpgsql COST 0.01 AS $$ BEGIN RAISE NOTICE 'saw %', t; RETURN true; END $$;
SET ROLE regress_qwen_reader;
EXPLAIN (COSTS OFF) SELECT id FROM docs WHERE peek(body);
SELECT id FROM docs WHERE peek(body);
RESET ROLE;
DROP POLICY even ON docs;
ALTER TABLE docs DISABLE ROW LEVEL SECURITY;
DROP OWNED BY regress_qwen_reader;
DROP ROLE regress_qwen_reader;

-- in every format of EXPLAIN
CREATE FUNCTION explained(format text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
	plan text;
BEGIN
	EXECUTE format('EXPLAIN (COSTS OFF, FORMAT %s) SELECT qwen_generate(body, max_tokens => 3, system => ''Brief.'') FROM docs', format)
		INTO plan;
	RETURN QUERY SELECT line FROM regexp_split_to_table(plan, '\n') AS line WHERE line ~ 'QwenBatch|Calls|qwen_generate';
END
$$;
SELECT explained('json');
SELECT explained('yaml');
SELECT explained('xml');
CREATE FUNCTION analyzed(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
	line text;
BEGIN
	FOR line IN EXECUTE 'EXPLAIN (ANALYZE, BUFFERS OFF, COSTS OFF, TIMING OFF, SUMMARY OFF) ' || query LOOP
		RETURN NEXT regexp_replace(regexp_replace(line, '(Tokens|Batch): [0-9.]+', '\1: N'), 'rows=(\d+)[.0]*', 'rows=\1');
	END LOOP;
END
$$;
CREATE FUNCTION timed(query text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	plan jsonb;
BEGIN
	EXECUTE 'EXPLAIN (ANALYZE, FORMAT JSON) ' || query INTO plan;
	RETURN plan -> 0 -> 'Plan';
END
$$;
SELECT * FROM analyzed('SELECT qwen_generate(body) FROM docs WHERE id <= 3');
SELECT (n ->> 'Prompt Tokens')::int > 0 AS prompt, (n ->> 'Cached Tokens')::int >= 0 AS cached, (n ->> 'Output Tokens')::int > 0 AS output,
	(n ->> 'Mean Batch')::float8 > 1 AS batch, (n ->> 'Queue Time')::float8 > 0 AS queue, (n ->> 'Run Time')::float8 > 0 AS run
FROM timed('SELECT qwen_generate(body) FROM docs') AS n;
EXPLAIN SELECT qwen_generate(body, max_tokens => 3) FROM docs;

DROP VIEW many;
DROP FUNCTION same, counted, explained, analyzed, timed, ask, peek;
DROP SEQUENCE drawn;
DROP TABLE answers, parts, notes, docs;
