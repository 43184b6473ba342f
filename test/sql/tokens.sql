-- The model's tokenizer.
SELECT qwen_tokenize('Which continent is China in?'), qwen_token_count('Which continent is China in?');

-- there and back; a composed and a decomposed letter are the same to the model
SELECT t, qwen_detokenize(qwen_tokenize(t)) = t AS same, qwen_token_count(t) = cardinality(qwen_tokenize(t)) AS counted
FROM unnest(ARRAY['', ' ', 'a', 'naïve café', '漢字', '🙂 smile', E'two\nlines\ttab', '<|im_start|>', 'a''b']) t;
SELECT qwen_tokenize(U&'caf\00E9') = qwen_tokenize(U&'cafe\0301') AS normalised;

-- control tokens in a text are text
SELECT cardinality(qwen_tokenize('<|im_start|>')) > 1 AS inert;

-- long texts
SELECT qwen_token_count(repeat('word ', 100000)) >= 100000 AS long, cardinality(qwen_tokenize(repeat('word ', 100000))) =
	   qwen_token_count(repeat('word ', 100000)) AS equal;

SELECT qwen_detokenize('{}');
SELECT qwen_detokenize('{1,NULL}');
\echo :LAST_ERROR_SQLSTATE
SELECT qwen_detokenize('{-1}');
\echo :LAST_ERROR_SQLSTATE
SELECT qwen_detokenize('{100000000}');
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';
