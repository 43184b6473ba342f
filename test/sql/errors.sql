-- Errors, their SQLSTATE and their words.

-- a prompt longer than the context is never cut silently
SELECT qwen_generate(repeat('word ', 5000));
\echo :LAST_ERROR_SQLSTATE
SELECT qwen_complete(repeat('word ', 5000));
SELECT qwen_chat(jsonb_build_array(jsonb_build_object('role', 'user', 'content', repeat('word ', 5000))));
SELECT * FROM qwen_stream(repeat('word ', 5000));
SELECT error, sqlstate, value, finish_reason, prompt_tokens, run_ms FROM qwen_try_generate(repeat('word ', 5000));

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
