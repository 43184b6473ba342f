-- A prompt goes in, an answer comes out.
SELECT qwen_generate('What is the capital of Kenya?');
SELECT qwen_generate('Translate to Spanish: house'), qwen_generate('What is 17 + 25?');
SELECT qwen_generate('Describe these countries: Tunisia, Zimbabwe.');

-- any kind of string
SELECT qwen_generate('Add 15 and 29.'::varchar), qwen_generate('23 + 2 ='::char(8)), qwen_generate('16 + 8 ='::name);

-- rows of a table
CREATE TABLE docs (id int PRIMARY KEY, prompt text, answer text);
INSERT INTO docs (id, prompt) VALUES
	(1, 'Which continent is China in?'),
	(2, 'Name the capital of Tonga.'),
	(3, 'Sentiment (positive or negative): This lamp is awful.'),
	(4, NULL),
	(5, 'Extract name, city and year as JSON: Karin Garcia moved to Lisbon in 2017.'),
	(6, 'Is this review positive or negative? This backpack is great. My family loves it.');
SELECT id, qwen_generate(prompt) FROM docs ORDER BY id;
SELECT id FROM docs WHERE qwen_generate(prompt) LIKE '%itive' ORDER BY id;
SELECT count(*), sum(length(qwen_generate(prompt))) FROM docs;
UPDATE docs SET answer = qwen_generate(prompt) WHERE id IN (1, 2, 4) RETURNING id, answer;
CREATE TABLE answers AS SELECT id, qwen_generate(prompt)::jsonb AS fields FROM docs WHERE id = 5;
SELECT fields ->> 'name' AS name, fields ->> 'city' AS city, (fields ->> 'year')::int AS year FROM answers;
SELECT d.id, x.answer FROM docs d, LATERAL (SELECT qwen_generate(d.prompt) AS answer) x WHERE d.id < 3 ORDER BY d.id;

-- one answer is another's prompt
SELECT qwen_generate('capital of ' || rtrim(split_part(qwen_generate('Which country has the capital Dublin?'), ' of ', 2), '.'));

-- options
SELECT qwen_generate('Describe these countries: France, Peru, Kenya.', max_tokens => 12);
SELECT qwen_generate('Describe these countries: France, Peru, Kenya.', stop => '{;," and"}');
SELECT qwen_generate('What is the capital of Sweden?', system => 'You are a careful assistant.');
SELECT qwen_generate('Which product is this review about? My new tent turned out slow and awful.', thinking => true);

-- the same seed gives the same text, and a fresh one is made for each call
SELECT qwen_complete('The', temperature => 2, seed => 7, max_tokens => 40) =
	   qwen_complete('The', temperature => 2, seed => 7, max_tokens => 40) AS same,
	   qwen_complete('The', temperature => 2, seed => 0, max_tokens => 40) =
	   qwen_complete('The', temperature => 2, seed => 0, max_tokens => 40) AS zero_is_a_seed,
	   qwen_complete('The', temperature => 2, seed => 7, max_tokens => 40) =
	   qwen_complete('The', temperature => 2, seed => 8, max_tokens => 40) AS other_seed,
	   qwen_complete('The', temperature => 2, max_tokens => 40) =
	   qwen_complete('The', temperature => 2, max_tokens => 40) AS fresh;

-- sampling from one token is greedy
SELECT qwen_generate('capital of Germany', temperature => 2, top_k => 1);

-- raw continuation: no template, so the model goes on where the text ends
SELECT qwen_complete('PostgreSQL is', max_tokens => 8) = qwen_generate('PostgreSQL is', max_tokens => 8) AS same;
SELECT length(qwen_complete('PostgreSQL is', max_tokens => 8)) > 0 AS some_text;

-- control tokens in data are data, unless asked for
SELECT (qwen_try_generate('a<|im_end|>b')).prompt_tokens >
	   (qwen_try_generate('a<|im_end|>b', options => '{"control_tokens": true}')).prompt_tokens AS inert;

-- everything that is known about an answer
SELECT value, error, sqlstate, finish_reason, prompt_tokens, output_tokens, cached_tokens >= 0 AS cached,
	   queue_ms >= 0 AS queue, run_ms > 0 AS run
FROM qwen_try_generate('Which continent is China in?');
SELECT finish_reason, output_tokens
FROM qwen_try_generate('Describe these countries: France, Peru, Kenya.', max_tokens => 12);
SELECT (qwen_try_generate(prompt)).value FROM docs WHERE id < 3 ORDER BY id;

-- prepared statements and functions
PREPARE ask(text) AS SELECT qwen_generate($1, max_tokens => 20);
EXECUTE ask('Name the capital of France.');
EXECUTE ask('capital of Ukraine');
DEALLOCATE ask;
CREATE FUNCTION ask_sql(text) RETURNS text LANGUAGE sql AS $$ SELECT qwen_generate($1) $$;
CREATE FUNCTION ask_plpgsql(question text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	answer text;
BEGIN
	answer := qwen_generate(question);
	RETURN answer;
END
$$;
SELECT ask_sql('29 + 26 ='), ask_plpgsql('17 + 15 =');

DROP FUNCTION ask_sql, ask_plpgsql;
DROP TABLE docs, answers;
