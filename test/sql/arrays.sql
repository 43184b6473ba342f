-- qwen_generate(text[]): same order, same shape.
SELECT qwen_generate(ARRAY['Name the capital of France.', 'capital of Germany', 'What is 30 - 29?']);

-- NULL elements stay NULL, dimensions and lower bounds stay what they were
SELECT qwen_generate('[0:2]={NULL,capital of Germany,NULL}'::text[]);
SELECT qwen_generate('[2:3][0:1]={{23 + 2 =,NULL},{16 + 8 =,17 + 15 =}}'::text[]);
SELECT qwen_generate('{}'::text[]), qwen_generate(ARRAY[NULL, NULL]::text[]);
SELECT array_ndims(qwen_generate('{}'::text[])) IS NULL AS empty;

-- more elements than are in flight at a time
SELECT count(*), count(*) FILTER (WHERE answer = CASE WHEN i % 10 = 0 THEN NULL ELSE 'The capital of France is Paris.' END)
FROM unnest(qwen_generate((SELECT array_agg(CASE WHEN i % 10 > 0 THEN 'Name the capital of France.' END ORDER BY i)
						   FROM generate_series(1, 200) i))) WITH ORDINALITY AS a(answer, i);

-- as one by one
WITH prompts(list) AS (
	SELECT array_agg('What is ' || i || ' + ' || j || '?' ORDER BY i, j)
	FROM generate_series(1, 9) i, generate_series(1, 9) j)
SELECT qwen_generate(list) = ARRAY(SELECT qwen_generate(p) FROM unnest(list) p) AS equal FROM prompts;

-- options hold for all elements
SELECT qwen_generate(ARRAY['Describe these countries: France, Peru, Kenya.', 'Describe these countries: Kenya, Peru.'],
					 max_tokens => 4);
SELECT qwen_generate(ARRAY['a'], max_tokens => 0);

-- an element that fails
SELECT qwen_generate(ARRAY['capital of Germany', repeat('word ', 5000), 'capital of Ukraine']);
SELECT qwen_generate(ARRAY['capital of Germany', repeat('word ', 5000), 'capital of Ukraine'], on_error => 'null');
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';
