-- The counters of requests.
CREATE ROLE regress_qwen_one;
CREATE ROLE regress_qwen_two;
CREATE ROLE regress_qwen_monitor IN ROLE pg_read_all_stats;
SELECT qwen_grant_usage(r) FROM unnest('{regress_qwen_one,regress_qwen_two,regress_qwen_monitor}'::regrole[]) r;
SELECT qwen_stat_reset();
SELECT count(*) FROM qwen_stat;

-- an answer is counted when it has been returned, with the numbers that the call itself gives
CREATE TEMP TABLE given AS
SELECT (r).* FROM (SELECT qwen_try_generate(prompt) AS r
				   FROM (VALUES ('capital of Germany'), (NULL), ('29 + 26 ='), ('capital of Ukraine')) v(prompt)
				   OFFSET 0) x;
SELECT s.requests, s.answers, s.errors, s.prompt_tokens = g.prompt AS prompt, s.cached_tokens = g.cached AS cached,
	   s.output_tokens = g.output AS output, abs(s.queue_ms - g.queue) < 0.01 AS queue,
	   abs(s.run_ms - g.run) < 0.01 AS run,
	   first_token_ms > queue_ms AND first_token_ms < queue_ms + run_ms AS first_token,
	   abs(mean_first_token_ms - first_token_ms / 3) < 0.01 AS mean_first_token,
	   abs(tokens_per_s / (1000 * g.output / g.run) - 1) < 0.01 AS tokens_per_s,
	   steps = output_tokens + 3 AS steps, mean_batch >= 1 AS mean_batch, usename = current_user AS own
FROM qwen_stat s,
	 (SELECT sum(prompt_tokens) AS prompt, sum(cached_tokens) AS cached, sum(output_tokens) AS output,
			 sum(queue_ms) AS queue, sum(run_ms) AS run
	  FROM given) g;
SELECT requests, qwen_generate('capital of Germany') FROM qwen_stat;
SELECT requests FROM qwen_stat;

-- the ways to ask are all the same
SELECT qwen_stat_reset();
SELECT array_length(qwen_generate(array_agg(format('%s + %s =', i, i))), 1) FROM generate_series(1, 100) i;
SELECT qwen_complete('capital', max_tokens => 1) IS NOT NULL;
SELECT qwen_chat('[{"role": "user", "content": "capital of Germany"}]') ->> 'content';
SELECT count(*) > 1 FROM qwen_stream('capital of Germany');
SELECT requests, answers, errors FROM qwen_stat;

-- what only goes through the tokenizer is a request but no answer
SELECT qwen_stat_reset();
SELECT qwen_token_count('capital of Germany') > 0, qwen_detokenize(qwen_tokenize('Germany'));
SELECT requests, answers, errors, prompt_tokens, output_tokens, queue_ms, run_ms, mean_first_token_ms, tokens_per_s,
	   mean_batch
FROM qwen_stat;

-- errors by cause
CREATE VIEW errors AS
SELECT requests, answers, errors, errors_invalid AS invalid, errors_too_long AS too_long, errors_resources AS resources,
	   errors_not_ready AS not_ready, errors_cancelled AS cancelled, errors_engine AS engine, errors_other AS other
FROM qwen_stat;
SELECT qwen_stat_reset();
\set VERBOSITY terse
SELECT qwen_detokenize('{-1}');
SELECT (qwen_try_generate(repeat('word ', 5000))).sqlstate;
SELECT qwen_generate(repeat('word ', 5000));
SELECT qwen_generate(repeat('word ', 5000), on_error => 'null');
SELECT qwen_generate('x', max_tokens => 2048, on_error => 'null');
\set VERBOSITY default
SELECT * FROM errors;
SELECT (qwen_try_generate(repeat('x', 100000000))).sqlstate;
SELECT * FROM errors;
-- before there is a request there is nothing to count
SELECT qwen_generate('x', max_tokens => 0);
SELECT * FROM errors;

-- not waited for
SELECT qwen_stat_reset();
BEGIN;
DECLARE c CURSOR FOR
	SELECT (qwen_stream('Describe these countries: France, Japan.', max_tokens => 1900, temperature => 100, seed => 5)).seq;
MOVE 1 FROM c;
SELECT count(*) FROM errors;
CLOSE c;
SELECT * FROM errors;
DECLARE c CURSOR FOR
	SELECT (qwen_stream('Describe these countries: France, Japan.', max_tokens => 1900, temperature => 100, seed => 5)).seq;
MOVE 1 FROM c;
ROLLBACK;
SELECT * FROM errors;
SET statement_timeout = '100ms';
SELECT qwen_complete('The', temperature => 100, seed => 5, max_tokens => 1900) FROM generate_series(1, 1000);
RESET statement_timeout;
SELECT cancelled > 2 AS cancelled, requests = answers + cancelled AS complete FROM errors;

-- each to the role that asked, also for a function of somebody else
SELECT qwen_stat_reset();
CREATE FUNCTION ask_as_owner() RETURNS text LANGUAGE sql SECURITY DEFINER
AS $$ SELECT qwen_generate('capital of Germany') $$;
ALTER FUNCTION ask_as_owner() OWNER TO regress_qwen_two;
GRANT EXECUTE ON FUNCTION ask_as_owner() TO regress_qwen_one;
SET ROLE regress_qwen_one;
SELECT qwen_generate('capital of Germany'), qwen_generate('capital of Ukraine'), ask_as_owner();
SELECT usename, requests FROM qwen_stat;
SELECT qwen_stat_reset();
SET ROLE regress_qwen_two;
SELECT usename, requests FROM qwen_stat;
SET ROLE regress_qwen_monitor;
SELECT usename, requests FROM qwen_stat ORDER BY usename;
RESET ROLE;
SELECT usename, requests FROM qwen_stat ORDER BY usename;
SELECT qwen_revoke_usage('regress_qwen_two');
SET ROLE regress_qwen_two;
SELECT requests FROM qwen_stat;
RESET ROLE;

-- a role that is gone has counted all the same
DROP FUNCTION ask_as_owner();
DROP ROLE regress_qwen_two;
SELECT usename, requests FROM qwen_stat ORDER BY usename;

-- a reset says when
CREATE TEMP TABLE moment AS SELECT clock_timestamp() AS at;
SELECT qwen_stat_reset();
SELECT qwen_generate('capital of Germany');
SELECT stats_reset > at AS later, requests FROM qwen_stat, moment;

-- the engine's own counters
SELECT steps >= 0 AS steps, batched_tokens >= steps AS batched_tokens, coalesce(mean_batch, 1) >= 1 AS mean_batch,
	   cached_tokens >= 0 AS cached, preemptions >= 0 AS preemptions, running >= 0 AS running, waiting >= 0 AS waiting,
	   kv_blocks_used <= kv_blocks AS kv_blocks, since < now() AS since
FROM qwen_stat_engine;

-- where a request stands
BEGIN;
DECLARE c CURSOR FOR
	SELECT (qwen_stream('Describe these countries: France, Japan.', max_tokens => 1900, temperature => 100, seed => 5)).seq;
MOVE 1 FROM c;
SELECT state, queue_position, prompt_tokens > 10 AS prompt_tokens, age > '0' AS age
FROM qwen_requests WHERE state <> 'cancelled';
COMMIT;

DROP VIEW errors;
SELECT qwen_revoke_usage(r) FROM unnest('{regress_qwen_one,regress_qwen_monitor}'::regrole[]) r;
DROP ROLE regress_qwen_one, regress_qwen_monitor;
