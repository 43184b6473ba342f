-- qwen_stream: pieces of an answer as rows.

-- numbered from 1, the last row says done, together they are the answer
SELECT count(*) > 5 AS several, min(seq) AS first, max(seq) = count(*) AS gapless,
	   string_agg(piece, '' ORDER BY seq) = qwen_generate('Describe these countries: Tunisia, Japan.') AS complete,
	   count(*) FILTER (WHERE done) AS ends, bool_or(done AND seq = n) AS ends_last
FROM (SELECT *, count(*) OVER () AS n FROM qwen_stream('Describe these countries: Tunisia, Japan.')) s;
SELECT * FROM qwen_stream('What is "house" in German?') WHERE done OR seq = 1;

-- in the select list
SELECT string_agg((s).piece, '' ORDER BY (s).seq) FROM (SELECT qwen_stream('Name the capital of France.') AS s) x;
SELECT id, string_agg((s).piece, '' ORDER BY (s).seq) AS answer
FROM (SELECT id, qwen_stream(prompt) AS s
	  FROM (VALUES (1, '29 + 26 ='), (2, NULL), (3, 'capital of Ukraine')) v(id, prompt)) x
GROUP BY id ORDER BY id;

-- an answer that goes on and on, because what was said once becomes likelier; unread it rests when its window is full
\set endless 'qwen_stream(''Write SQL'', max_tokens => 1900, options => ''{"frequency_penalty": -2, "presence_penalty": -2}'')'

SELECT max(seq) > 1000 AS long, string_agg(piece, '' ORDER BY seq) =
	   qwen_generate('Write SQL', max_tokens => 1900, options => '{"frequency_penalty": -2, "presence_penalty": -2}') AS same
FROM :endless;

-- LIMIT lets go of the rest
SELECT (:endless).seq LIMIT 2;
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';

-- a cursor sees pieces while the request is under way, and closing it ends the request
BEGIN;
DECLARE c CURSOR FOR SELECT (s).seq, (s).done FROM (SELECT :endless AS s) x;
FETCH 2 FROM c;
SELECT kind, state, pid = pg_backend_pid() AS own, usename = current_user AS user, datname = current_database() AS database,
	   priority, engine_deaths, age >= '0' AS age
FROM qwen_requests WHERE state <> 'cancelled';
SELECT qwen_generate('capital of Germany');
FETCH 1 FROM c;
CLOSE c;
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';
COMMIT;

-- so does the end of the transaction
BEGIN;
DECLARE c CURSOR FOR SELECT (:endless).seq;
FETCH 1 FROM c;
COMMIT;
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';
BEGIN;
DECLARE c CURSOR FOR SELECT (:endless).seq;
FETCH 1 FROM c;
ROLLBACK;
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';

-- a sub-transaction ends what was begun in it and nothing else
BEGIN;
DECLARE outside CURSOR FOR SELECT (:endless).seq;
FETCH 1 FROM outside;
SAVEPOINT s;
DECLARE inside CURSOR FOR SELECT (:endless).seq;
FETCH 1 FROM inside;
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';
ROLLBACK TO s;
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';
FETCH 1 FROM outside;
SELECT 1 / 0;
ROLLBACK;
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';

-- a cursor that is held is read to its end first
BEGIN;
DECLARE c CURSOR WITH HOLD FOR SELECT (s).seq = 1 AS first, (s).done FROM (SELECT qwen_stream('capital of Germany') AS s) x;
COMMIT;
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';
FETCH 1 FROM c;
CLOSE c;

-- the loop of a function that leaves early
CREATE VIEW endless AS SELECT :endless AS s;
DO $$
DECLARE
	r record;
BEGIN
	FOR r IN SELECT (s).seq FROM endless LOOP
		EXIT WHEN r.seq = 3;
	END LOOP;
	RAISE NOTICE 'left at %', r.seq;
END
$$;
DROP VIEW endless;
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';

-- errors
SELECT * FROM qwen_stream('x', max_tokens => 0);
