-- A NULL subject gives NULL and no call: the options are not even looked at.
\pset null (null)
SELECT qwen_generate(NULL::text), qwen_complete(NULL), qwen_chat(NULL), qwen_generate(NULL::text[]);
SELECT qwen_generate(NULL::text, max_tokens => -1);
SELECT qwen_try_generate(NULL) IS NULL AS no_result;
SELECT * FROM qwen_stream(NULL);
SELECT 'before', (qwen_stream(NULL)).*;
SELECT qwen_token_count(NULL), qwen_tokenize(NULL), qwen_detokenize(NULL);

-- the empty text is a text
SELECT qwen_generate('') IS NOT NULL AS answered;
SELECT qwen_token_count(''), qwen_tokenize(''), qwen_detokenize('{}');
SELECT qwen_complete('');

-- NULL options are no options
SELECT qwen_generate('Which continent is China in?', max_tokens => NULL, temperature => NULL, top_p => NULL,
					 top_k => NULL, seed => NULL, stop => NULL, system => NULL, schema => NULL, thinking => NULL,
					 on_error => NULL, options => NULL);
SELECT qwen_generate('Which continent is China in?',
					 options => '{"min_p": null, "schema": null, "stop": null, "priority": null}');
