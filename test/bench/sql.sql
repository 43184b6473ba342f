-- The way from SQL to the engine and back, measured on the bundled model: a row a measure, with the median of five
-- rounds and what the rounds spread over. Sides that are compared take turns within a round.
\set ON_ERROR_STOP on
SET client_min_messages = warning;

CREATE TABLE measured (round int, position int, measure text, unit text, value float8);

CREATE FUNCTION seconds_of(query text) RETURNS float8 LANGUAGE plpgsql AS $$
DECLARE start timestamptz := clock_timestamp();
BEGIN
	EXECUTE query;
	RETURN extract(epoch FROM clock_timestamp() - start);
END $$;

-- Milliseconds of a call outside the engine: what it took in all, less queue and run as the engine counted them.
CREATE FUNCTION outside_ms(n int) RETURNS float8 LANGUAGE plpgsql AS $$
DECLARE start timestamptz; r qwen_result; outside float8[];
BEGIN
	FOR i IN 1 .. n LOOP
		start := clock_timestamp();
		r := qwen_try_generate('What is 17 + 25?');
		outside := outside || 1000 * extract(epoch FROM clock_timestamp() - start)::float8 - r.queue_ms - r.run_ms;
	END LOOP;
	RETURN percentile_cont(0.5) WITHIN GROUP (ORDER BY x) FROM unnest(outside) AS x;
END $$;

CREATE PROCEDURE measure(this_round int) LANGUAGE plpgsql AS $$
DECLARE
	n float8 := (SELECT count(*) FROM docs);
	tokens float8 := (SELECT sum(qwen_token_count(qwen_generate(prompt))) FROM docs);
	one_by_one float8 := seconds_of('SELECT qwen_generate(prompt) FROM docs');
	as_array float8 := seconds_of('SELECT qwen_generate(array_agg(prompt)) FROM docs');
	counted float8 := seconds_of('SELECT qwen_token_count(prompt) FROM docs, generate_series(1, 10)');
BEGIN
	INSERT INTO measured VALUES
		(this_round, 1, 'one call: time outside the engine', 'ms', outside_ms(50)),
		(this_round, 2, 'qwen_token_count(prompt)', 'calls/s', 10 * n / counted),
		(this_round, 3, 'qwen_generate(prompt), one session', 'rows/s', n / one_by_one),
		(this_round, 4, 'qwen_generate(prompt), one session', 'tokens/s', tokens / one_by_one),
		(this_round, 5, 'qwen_generate(array of prompts)', 'rows/s', n / as_array),
		(this_round, 6, 'qwen_generate(array of prompts)', 'tokens/s', tokens / as_array);
END $$;

CALL measure(0);
DELETE FROM measured;
SELECT format('CALL measure(%s)', n) FROM generate_series(1, 5) AS n \gexec
