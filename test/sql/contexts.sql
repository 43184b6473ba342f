-- Calls in places where they may not be made for every row, or where whole rows or groups hang on them: the rows are those
-- of plain plans, and no call is made that a plain plan would not make.
SET qwen.batch_scan = on;
SET qwen.max_tokens = 3;
CREATE TABLE docs (id int PRIMARY KEY, body text, kind int);
INSERT INTO docs SELECT i, 'What is ' || i || ' + 1?', i % 3 FROM generate_series(1, 20) i;
INSERT INTO docs VALUES (21, NULL, 0);
CREATE TABLE notes (doc int, note text);
INSERT INTO notes SELECT i, 'note ' || i FROM generate_series(1, 20) i;
ANALYZE docs, notes;

-- A call that fails, for where it must not be made.
CREATE VIEW trap AS SELECT repeat('word ', 5000) AS prompt;

-- How many nodes a query gets, and whether it has the same rows with batching and without.
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

-- ---- made for some rows only: stay where they are ----

SELECT * FROM same('SELECT CASE WHEN kind = 0 THEN qwen_generate(body) WHEN kind > 2 THEN qwen_generate(prompt) END FROM docs, trap');
SELECT * FROM same('SELECT CASE qwen_generate(body) WHEN ''4'' THEN 1 ELSE 2 END FROM docs');
SELECT * FROM same('SELECT coalesce(body, qwen_generate(''What is 1 + 1?'')), coalesce(kind::text, qwen_generate(prompt)) FROM docs, trap');
SELECT * FROM same('SELECT greatest(kind::text, qwen_generate(body)), nullif(qwen_generate(body), ''4'') FROM docs');
SELECT * FROM same('SELECT id FROM docs, trap WHERE kind = 0 OR qwen_generate(body) = ''5'' OR (kind > 2 AND qwen_generate(prompt) = '''')');
SELECT * FROM same('SELECT kind > 2 AND qwen_generate(prompt) = '''', kind < 3 OR qwen_generate(prompt) = '''' FROM docs, trap');
SELECT * FROM same('SELECT id FROM docs WHERE CASE WHEN kind = 0 THEN qwen_generate(body) = ''4'' ELSE kind = 1 END');
SELECT * FROM same('SELECT max(CASE WHEN kind = 0 THEN qwen_generate(body) END), count(*) FILTER (WHERE kind = 1 AND (id = 4 OR qwen_generate(body) = ''8'')) FROM docs');
SELECT * FROM same('SELECT id, (ARRAY[body, qwen_generate(body)])[1 + kind % 2] FROM docs');
SELECT * FROM same('SELECT generate_series(1, length(qwen_generate(body))) FROM docs');
SELECT * FROM same('SELECT id FROM docs ORDER BY CASE WHEN kind = 0 THEN qwen_generate(body) END, id');

-- ---- expressions of statements that write ----

CREATE TABLE written (id int PRIMARY KEY, body text, answer text DEFAULT qwen_generate('What is 2 + 2?'),
					  CHECK (qwen_generate('What is 1 + 1?') <> body));
INSERT INTO written VALUES (1, 'What is 3 + 1?', qwen_generate('What is 3 + 1?')), (2, 'What is 4 + 1?', qwen_generate('What is 4 + 1?'));
INSERT INTO written (id, body) VALUES (3, 'What is 5 + 1?') RETURNING id, answer, qwen_generate(body);
INSERT INTO written (id, body) VALUES (4, '2');
INSERT INTO written (id, body) SELECT id, body FROM docs WHERE id BETWEEN 2 AND 4
ON CONFLICT (id) DO UPDATE SET answer = qwen_generate(excluded.body) || '!' WHERE qwen_generate(excluded.body) <> '4';
MERGE INTO written w USING (SELECT 5 AS id UNION ALL SELECT 1) s ON w.id = s.id AND qwen_generate(w.body) = '4'
WHEN MATCHED THEN UPDATE SET answer = qwen_generate('What is 8 + ' || s.id || '?')
WHEN NOT MATCHED THEN INSERT VALUES (s.id, qwen_generate('What is 9 + ' || s.id || '?'));
DELETE FROM written WHERE id = 5 RETURNING qwen_generate('What is ' || body || ' + 1?');
SELECT id, answer FROM written ORDER BY id;
DROP TABLE written;

-- ---- groups ----

EXPLAIN (COSTS OFF) SELECT kind, count(*) FROM docs GROUP BY kind HAVING qwen_generate('What is 1 + ' || kind || '?') <> '2' AND count(*) > 1;
SELECT * FROM same($q$SELECT kind, count(*) FROM docs GROUP BY kind HAVING qwen_generate('What is 1 + ' || kind || '?') <> '2' ORDER BY kind$q$);
SELECT * FROM same($q$SELECT qwen_generate(max(body)) FROM docs GROUP BY kind HAVING length(qwen_generate(min(body))) < 2 AND qwen_generate(max(body)) <> '' ORDER BY kind$q$);
SELECT * FROM same($q$SELECT count(*) FROM docs HAVING qwen_generate(max(body)) = max(qwen_generate(body))$q$);
SELECT * FROM same($q$SELECT count(*) FROM docs HAVING qwen_generate('What is 1 + 1?') = '3'$q$);
SELECT * FROM same($q$SELECT kind, grouping(kind), count(*) FROM docs GROUP BY ROLLUP (kind) HAVING qwen_generate('What is 1 + ' || coalesce(kind, 4) || '?') <> '2' ORDER BY kind$q$);
SELECT * FROM same($q$SELECT kind, id FROM docs GROUP BY GROUPING SETS (kind, id, ()) HAVING qwen_generate('What is 1 + ' || coalesce(kind, id, 0) || '?') <> '2' ORDER BY 1, 2$q$);
SELECT * FROM same($q$SELECT kind FROM docs GROUP BY kind HAVING kind > 5 OR qwen_generate(max(body)) <> ''  ORDER BY kind$q$);
SELECT * FROM same($q$SELECT kind FROM docs, trap GROUP BY kind HAVING count(*) > 99 AND qwen_generate(max(prompt)) <> ''$q$);
SELECT * FROM same($q$SELECT k FROM (SELECT kind AS k FROM docs GROUP BY kind HAVING qwen_generate(max(body)) <> '' OFFSET 0) s JOIN notes n ON n.doc = s.k ORDER BY k$q$);
SET enable_hashagg = off;
SELECT * FROM same($q$SELECT kind FROM docs GROUP BY kind HAVING qwen_generate('What is 1 + ' || kind || '?') <> '2' LIMIT 1$q$);
SELECT * FROM same($q$SELECT id, (SELECT n.doc FROM notes n WHERE n.doc < docs.id GROUP BY n.doc HAVING qwen_generate('What is 1 + ' || n.doc || '?') <> '4' ORDER BY doc DESC LIMIT 1) FROM docs ORDER BY id$q$);
-- what aggregates do for groups beyond a LIMIT would be noticed
CREATE SEQUENCE drawn;
CREATE FUNCTION draws(query text, OUT nodes int, OUT same boolean) LANGUAGE plpgsql AS $$
DECLARE
	line text;
	drawn bigint[];
BEGIN
	nodes := 0;
	FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) ' || query LOOP
		nodes := nodes + (line LIKE '%QwenBatch%')::int;
	END LOOP;
	FOR i IN 1 .. 2 LOOP
		PERFORM set_config('qwen.batch_scan', (i = 1)::text, true), setval('drawn', 1);
		EXECUTE query;
		drawn[i] := nextval('drawn');
	END LOOP;
	PERFORM set_config('qwen.batch_scan', 'on', true);
	same := drawn[1] = drawn[2];
END
$$;
SELECT * FROM draws($q$SELECT kind, qwen_generate(max(body)), max(nextval('drawn')) FROM docs GROUP BY kind LIMIT 1$q$);
SELECT * FROM draws($q$SELECT kind FROM docs GROUP BY kind HAVING max(nextval('drawn')) > 0 AND qwen_generate(max(body)) <> '' LIMIT 1$q$);
SELECT * FROM draws($q$SELECT kind, qwen_generate(max(body)) FROM docs GROUP BY kind LIMIT 1$q$);
RESET enable_hashagg;

-- ---- joins ----

-- an inner join's conditions are a filter of its rows
EXPLAIN (COSTS OFF) SELECT d.id FROM docs d JOIN notes n ON n.doc = d.id AND qwen_generate(d.body || n.note) <> '4' AND d.kind < length(n.note);
CREATE FUNCTION same_joins(query text) RETURNS TABLE (method text, nodes int, rows bigint, same boolean) LANGUAGE plpgsql AS $$
BEGIN
	FOREACH method IN ARRAY '{nestloop,hashjoin,mergejoin}'::text[] LOOP
		PERFORM set_config('enable_' || m, (m = method)::text, true) FROM unnest('{nestloop,hashjoin,mergejoin}'::text[]) m;
		RETURN QUERY SELECT method, s.* FROM same(query) s;
	END LOOP;
END
$$;
SELECT * FROM same_joins($q$SELECT d.id, n.note FROM docs d JOIN notes n ON n.doc = d.id AND length(qwen_generate(d.body || n.note)) > 1 ORDER BY 1$q$);
SELECT * FROM same_joins($q$SELECT d.id, n.note FROM docs d JOIN notes n ON n.doc = d.kind + 1 AND qwen_generate(d.body) <> '8' AND qwen_generate(n.note || d.id) <> '' ORDER BY 1, 2$q$);
SELECT * FROM same_joins($q$SELECT d.id, e.id, qwen_generate(d.body || e.body) FROM docs d JOIN docs e ON e.kind = d.kind AND qwen_generate(d.body) = qwen_generate(e.body) WHERE d.id < 6 ORDER BY 1, 2$q$);
SELECT * FROM same_joins($q$SELECT d.id FROM docs d JOIN notes n ON n.doc = d.id JOIN notes m ON m.doc = n.doc AND qwen_generate(d.body || m.note) <> '' ORDER BY 1$q$);
SELECT * FROM same_joins($q$SELECT d.id FROM docs d JOIN notes n ON n.doc = d.id JOIN trap ON n.doc > 30 AND qwen_generate(prompt || d.id || n.note) <> '' ORDER BY 1$q$);
-- those of others decide about rows that one side has alone; what comes after such a join is a filter again
SELECT * FROM same_joins($q$SELECT d.id, n.note FROM docs d LEFT JOIN notes n ON n.doc = d.id AND length(qwen_generate(d.body || n.note)) > 1 ORDER BY 1$q$);
SELECT * FROM same_joins($q$SELECT d.id, n.note FROM docs d LEFT JOIN notes n ON n.doc = d.id + 3 WHERE length(qwen_generate(d.body || coalesce(n.note, 'none'))) > 1 ORDER BY 1$q$);
SELECT * FROM same_joins($q$SELECT d.id FROM docs d LEFT JOIN notes n ON n.doc = d.id + 3 WHERE qwen_generate(n.note || d.id) IS NULL ORDER BY 1$q$);
SELECT * FROM same_joins($q$SELECT d.id FROM docs d WHERE EXISTS (SELECT FROM notes n WHERE n.doc = d.id AND length(qwen_generate(d.body || n.note)) > 1) ORDER BY 1$q$);
SELECT * FROM same_joins($q$SELECT d.id FROM docs d WHERE NOT EXISTS (SELECT FROM notes n WHERE n.doc = d.id AND length(qwen_generate(d.body || n.note)) > 1) ORDER BY 1$q$);
SELECT * FROM same_joins($q$SELECT d.id, n.doc FROM docs d FULL JOIN notes n ON n.doc = d.id + 3 WHERE length(qwen_generate(coalesce(d.body, n.note))) < 3 ORDER BY 1, 2$q$);
SET qwen.debug_require_batch = on;
SELECT count(*) FROM docs d JOIN notes n ON n.doc = d.id AND qwen_generate(d.body || n.note) <> '4';
SELECT count(*) FROM docs d LEFT JOIN notes n ON n.doc = d.id AND qwen_generate(d.body || n.note) <> '4';
RESET qwen.debug_require_batch;
-- rows beyond a LIMIT are not noticed
SELECT * FROM same_joins($q$SELECT d.id FROM docs d JOIN notes n ON n.doc = d.id AND qwen_generate(d.body || n.note) <> '4' ORDER BY d.id LIMIT 2$q$);
SELECT * FROM draws($q$SELECT qwen_generate(d.body || n.note) FROM docs d JOIN notes n ON d.id < n.doc + nextval('drawn') LIMIT 3$q$);
SELECT * FROM draws($q$SELECT d.id FROM docs d JOIN notes n ON d.id < n.doc + nextval('drawn') AND qwen_generate(d.body || n.note) <> '' LIMIT 3$q$);
SELECT * FROM draws($q$SELECT d.id FROM docs d JOIN notes n ON d.id < n.doc + 3 AND qwen_generate(d.body || n.note) <> '' LIMIT 3$q$);
-- a join that takes one row alone of its inner side, because of the call
BEGIN;
ALTER FUNCTION qwen_generate(text, int, float8, float8, int, bigint, text[], text, jsonb, boolean, text, jsonb) IMMUTABLE;
CREATE TABLE labels AS SELECT DISTINCT qwen_generate(body) AS label FROM docs WHERE body IS NOT NULL;
ALTER TABLE labels ADD UNIQUE (label);
ANALYZE labels;
SET LOCAL enable_indexscan = off;
SET LOCAL enable_indexonlyscan = off;
SET LOCAL enable_bitmapscan = off;
SELECT * FROM same_joins('SELECT d.id, l.label FROM docs d JOIN labels l ON qwen_generate(d.body) = l.label ORDER BY 1');
ROLLBACK;
-- a cursor that updates
BEGIN;
DECLARE u CURSOR FOR SELECT d.id FROM docs d JOIN notes n ON n.doc = d.id AND length(qwen_generate(d.body || n.note)) > 1 FOR UPDATE OF d;
FETCH 2 FROM u;
UPDATE docs SET kind = kind WHERE CURRENT OF u;
COMMIT;

DROP FUNCTION draws, same_joins, same;
DROP SEQUENCE drawn;
DROP VIEW trap;
DROP TABLE docs, notes;
