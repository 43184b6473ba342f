-- Errors, their SQLSTATE and their words.

-- a prompt longer than the context is never cut silently
SELECT qwen_generate(repeat('word ', 5000));
\echo :LAST_ERROR_SQLSTATE
SELECT qwen_complete(repeat('word ', 5000));
SELECT qwen_chat(jsonb_build_array(jsonb_build_object('role', 'user', 'content', repeat('word ', 5000))));
SELECT * FROM qwen_stream(repeat('word ', 5000));
SELECT error, sqlstate, value, finish_reason, prompt_tokens, run_ms FROM qwen_try_generate(repeat('word ', 5000));

-- nor is an answer that was asked for in full; one by default takes what is left
SELECT qwen_generate('What is 17 + 25?', max_tokens => 2048);
\echo :LAST_ERROR_SQLSTATE
SELECT qwen_generate('What is 17 + 25?', options => '{"max_tokens": 10000}');
SELECT qwen_complete('What', max_tokens => 16777216);
SELECT qwen_generate(ARRAY['What is 17 + 25?'], max_tokens => 2048);
SELECT qwen_chat('[{"role": "user", "content": "What is 17 + 25?"}]', max_tokens => 2048);
SELECT * FROM qwen_stream('What is 17 + 25?', max_tokens => 2048);
SELECT error, sqlstate, prompt_tokens, run_ms FROM qwen_try_generate('What is 17 + 25?', max_tokens => 2048);
SELECT qwen_generate('What is 17 + 25?', max_tokens => 2048, on_error => 'null') IS NULL AS failed;
SELECT qwen_generate(repeat('word ', 1000), max_tokens => 2000);
SELECT qwen_generate(repeat('word ', 5000), max_tokens => 2000);
SELECT qwen_generate('What is 17 + 25?', max_tokens => 2000);
SET qwen.max_tokens = 100000;
SELECT qwen_generate('What is 17 + 25?');
SELECT finish_reason, prompt_tokens + output_tokens AS tokens
FROM qwen_try_generate(repeat('word ', 1900), temperature => 100, seed => 5);
RESET qwen.max_tokens;
SELECT finish_reason, prompt_tokens + output_tokens < 2048 AS cut
FROM qwen_try_generate(repeat('word ', 5000), max_tokens => 10, options => '{"truncate": true}');
SELECT qwen_generate('What is 17 + 25?', max_tokens => 2048, options => '{"truncate": true}');

-- a request that no queue could hold
SET client_min_messages = error;
\set VERBOSITY terse
SELECT qwen_generate(repeat('x', 100000000));
\echo :LAST_ERROR_SQLSTATE
SELECT error, sqlstate FROM qwen_try_generate(repeat('x', 100000000));
SELECT qwen_token_count(repeat('x', 100000000));
\set VERBOSITY default
RESET client_min_messages;

-- an error gives its place in the queue back, in a sub-transaction too
DO $$
BEGIN
	PERFORM qwen_generate(repeat('word ', 5000));
EXCEPTION WHEN program_limit_exceeded THEN
	RAISE NOTICE 'caught %', SQLSTATE;
END
$$;
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';

-- cancelled by a timeout
SET statement_timeout = '100ms';
SELECT count(qwen_complete('The ' || i, max_tokens => 1900, options => '{"frequency_penalty": -2}')) FROM generate_series(1, 1000) i;
\echo :LAST_ERROR_SQLSTATE
SELECT count((qwen_try_generate('The ' || i, max_tokens => 1900, options => '{"frequency_penalty": -2}')).value)
FROM generate_series(1, 1000) i;
\echo :LAST_ERROR_SQLSTATE
RESET statement_timeout;
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';
SELECT qwen_generate('capital of Germany');
