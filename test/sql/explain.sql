-- The plans are those with batching, whatever the setting.
SET qwen.batch_scan = on;

-- Planning never calls the model. An argument that the call itself refuses shows it: EXPLAIN says nothing of it.
\set ask 'qwen_generate(''x'', max_tokens => 0)'
SELECT :ask;
EXPLAIN (COSTS OFF) SELECT :ask;
EXPLAIN (COSTS OFF, VERBOSE) SELECT 1 FROM generate_series(1, 3) i WHERE :ask = 'a';
EXPLAIN (COSTS OFF) SELECT qwen_token_count('x'), qwen_detokenize('{-1}'), qwen_try_generate('x', max_tokens => 0);
EXPLAIN (COSTS OFF) SELECT * FROM qwen_stream('x', max_tokens => 0);
PREPARE ask AS SELECT :ask;
EXPLAIN (COSTS OFF) EXECUTE ask;
DEALLOCATE ask;

-- cheap conditions come first
EXPLAIN (COSTS OFF) SELECT 1 FROM pg_class WHERE qwen_generate(relname::text) = 'a' AND relpages > 1000000000;
SELECT 1 FROM pg_class WHERE qwen_generate(relname::text, max_tokens => 0) = 'a' AND relpages > 1000000000;

-- EXPLAIN ANALYZE runs the query
EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT :ask;
