-- on_error = 'null': rows that fail are NULL, and the statement says how many.
\pset null (null)
CREATE TABLE prompts (id int, prompt text);
INSERT INTO prompts VALUES
	(1, 'capital of Germany'), (2, repeat('word ', 5000)), (3, 'capital of Ukraine'), (4, repeat('word ', 6000)), (5, NULL);

SELECT id, qwen_generate(prompt) FROM prompts ORDER BY id;
SELECT id, qwen_generate(prompt, on_error => 'null') FROM prompts ORDER BY id;
SELECT id, qwen_generate(prompt, options => '{"on_error": "NULL"}') FROM prompts WHERE id <= 2 ORDER BY id;

-- by setting; the argument wins
SET qwen.on_error = 'null';
SELECT id, qwen_generate(prompt) FROM prompts WHERE id <= 2 ORDER BY id;
SELECT id, qwen_generate(prompt, on_error => 'raise') FROM prompts WHERE id <= 2 ORDER BY id;

-- one warning a statement, whatever the number of calls in it
SELECT id, qwen_generate(prompt), qwen_complete(prompt, max_tokens => 1) IS NULL AS failed
FROM prompts WHERE id IN (2, 4) ORDER BY id;
SELECT qwen_generate(array_agg(prompt ORDER BY id)) FROM prompts;
SELECT qwen_chat(jsonb_build_array(jsonb_build_object('role', 'user', 'content', prompt))) FROM prompts WHERE id = 2;
UPDATE prompts SET prompt = qwen_generate(prompt) WHERE id = 2 RETURNING *;
UPDATE prompts SET prompt = repeat('word ', 5000) WHERE id = 2;

-- a failed filter row is not true
SELECT id FROM prompts WHERE qwen_generate(prompt) LIKE '%' ORDER BY id;

-- a stream that fails ends with NULL
SELECT * FROM qwen_stream(repeat('word ', 5000));

-- infrastructure and bad options raise all the same
SELECT qwen_generate('x', max_tokens => 0);
SET statement_timeout = '50ms';
SELECT count(qwen_complete('The', max_tokens => 1900, options => '{"frequency_penalty": -2}')) FROM generate_series(1, 1000) i;
RESET statement_timeout;

-- try has no use for the setting, and raises nothing
SELECT (qwen_try_generate(prompt)).sqlstate FROM prompts WHERE id = 2;

-- cursors: the warning comes when the query ends
BEGIN;
DECLARE c CURSOR FOR SELECT id, qwen_generate(prompt) FROM prompts ORDER BY id;
FETCH 2 FROM c;
SELECT 'meanwhile' AS other, qwen_generate('capital of Germany');
FETCH 1 FROM c;
CLOSE c;
COMMIT;

-- statements inside a function are statements; expressions outside of any report when the transaction ends
CREATE FUNCTION ask_all() RETURNS int LANGUAGE plpgsql AS $$
DECLARE
	n int;
BEGIN
	SELECT count(qwen_generate(prompt)) INTO n FROM prompts;
	RETURN n;
END
$$;
SELECT ask_all();
CREATE FUNCTION ask_long() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	answer text;
BEGIN
	FOR i IN 1 .. 3 LOOP
		answer := qwen_generate(repeat('word ', 5000));
	END LOOP;
	RETURN answer;
END
$$;
SELECT ask_long();
BEGIN;
SELECT ask_long();
COMMIT;
DO $$ BEGIN PERFORM qwen_generate(prompt) FROM prompts; END $$;

-- what was rolled back is forgotten
BEGIN;
SELECT ask_long();
ROLLBACK;
SELECT 1 / (qwen_generate(prompt) IS NOT NULL)::int FROM prompts WHERE id = 2;
SELECT 1 AS no_warning;

RESET qwen.on_error;
DROP FUNCTION ask_all, ask_long;
DROP TABLE prompts;
