-- Where a model would go: from a config.json alone, on devices that are only described, so that all servers agree.
COPY (SELECT '{"architectures": ["Qwen2ForCausalLM"], "hidden_size": 5120, "intermediate_size": 13696, "max_position_embeddings": 32768, "model_type": "qwen2", "num_attention_heads": 40, "num_hidden_layers": 40, "num_key_value_heads": 40, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_sliding_window": false, "vocab_size": 152064}')
TO PROGRAM 'cat >qwen_plan_test.json';
\set model '''qwen_plan_test.json'''

-- 14B parameters on four cards of 22 GiB
SELECT device, holds, fits, weights_bytes, kv_bytes, missing_bytes, max_tokens, full_sequences, remedies
FROM qwen_plan(:model, devices => '4x22GiB');
SELECT device, weights_bytes + kv_bytes + state_bytes + workspace_bytes + overhead_bytes + margin_bytes + free_bytes
	   = available_bytes AS adds_up
FROM qwen_plan(:model, devices => '4x22GiB');

-- and on one: what is missing, and what would help
\x on
SELECT device, holds, fits, weights_bytes, kv_bytes, missing_bytes, max_tokens, full_sequences, detail, remedies
FROM qwen_plan(:model, devices => '1x22GiB');
\x off
SELECT fits, full_sequences FROM qwen_plan(:model, devices => '1x22GiB', quantization => 'int8', max_model_len => 9216)
WHERE device = 'total';

-- every argument has its effect
SELECT device, holds, fits FROM qwen_plan(:model, 'balanced_low_0', devices => '4x22GiB');
SELECT device, holds, fits FROM qwen_plan(:model, '{"embed": "cpu", "layers": {"0-9": "cpu", "10-39": "cuda:0"}, "head": "cuda:0"}',
										  devices => 'cuda:0=80GiB,cpu=64GiB');
SELECT device, holds, available_bytes FROM qwen_plan(:model, 'balanced', 'cuda:1=20GiB', devices => '2x80GiB');
SELECT device, holds, weights_bytes FROM qwen_plan(:model, devices => '4x22GiB', tensor_parallel => 4);
SELECT max_tokens FROM qwen_plan(:model, devices => '1x80GiB', kv_dtype => 'int8', kv_memory => '26GiB') WHERE device = 'total';
SELECT sum(weights_bytes) FROM qwen_plan(:model, devices => '2x80GiB', dtype => 'float32') WHERE device <> 'total';
SELECT full_sequences FROM qwen_plan(:model, devices => '1x80GiB', max_sequences => 1) WHERE device = 'total';
SELECT device, holds FROM qwen_plan(:model, devices => '2x22GiB,cpu=128GiB', offload => 'cpu');
SELECT p->'layers'->0, p->'embed', p->'parameters' FROM qwen_plan_json(:model, devices => '1x80GiB') AS p;

\set SHOW_CONTEXT never
-- mistakes, with what the engine's program says of them
SELECT qwen_plan(:model, devices => '4x');
\echo :LAST_ERROR_SQLSTATE
SELECT qwen_plan(:model, 'cuda:7', devices => '4x22GiB');
SELECT qwen_plan(:model, '{"embed": "cuda:0"}', devices => '4x22GiB');
SELECT qwen_plan(:model, max_memory => 'cuda:0=lots', devices => '4x22GiB');
SELECT qwen_plan(:model, tensor_parallel => 3, devices => '4x22GiB');
SELECT qwen_plan(:model, max_model_len => -1, devices => '4x22GiB');
SELECT qwen_plan(:model, kv_memory => 'a bit', devices => '4x22GiB');
SELECT qwen_plan(:model, quantization => 'int3', devices => '4x22GiB');
SELECT qwen_plan('no such folder', devices => '4x22GiB');
\echo :LAST_ERROR_SQLSTATE
SELECT qwen_plan('model.gguf', devices => '4x22GiB');
-- nothing gets through to the shell
SELECT qwen_plan($$'; echo "{}" #$$);
SELECT qwen_plan(:model, devices => $$4x22GiB'$(echo x)`echo y`;echo z$$);

\set SHOW_CONTEXT errors

-- the server's own model on its own devices
SELECT device = 'total' AS total, bool_and(fits) AS fits, count(*) > 0 AS rows FROM qwen_plan() GROUP BY 1 ORDER BY 1;
SELECT holds FROM qwen_plan(devices => 'cpu=1GiB') WHERE device = 'cpu';

-- it reads files of the server
CREATE ROLE regress_qwen_planner;
SELECT qwen_grant_usage('regress_qwen_planner');
SET ROLE regress_qwen_planner;
SELECT qwen_plan();
SELECT qwen_plan_json();
RESET ROLE;
SELECT qwen_revoke_usage('regress_qwen_planner');
DROP ROLE regress_qwen_planner;

COPY (SELECT) TO PROGRAM 'rm qwen_plan_test.json';
