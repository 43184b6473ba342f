-- The devices that the model is on, and where its parts are.
SELECT qwen_generate('capital of Germany');
SELECT device, kind, layers, loaded_bytes = weights_bytes AS loaded, used_bytes >= weights_bytes + kv_bytes AS reserved,
	   used_bytes <= planned_bytes AS as_planned, peak_bytes = used_bytes AS at_peak, planned_bytes <= budget_bytes AS fits,
	   budget_bytes <= total_bytes AS there, free_bytes BETWEEN 1 AND budget_bytes AS left_over
FROM qwen_devices;
SELECT item, layer, device, weights_bytes > 0 AS weights, kv_bytes > 0 AS kv FROM qwen_device_map ORDER BY ordinal;
-- the parts make the whole
SELECT d.weights_bytes = sum(m.weights_bytes) AS weights, d.kv_bytes = sum(m.kv_bytes) AS kv
FROM qwen_devices d JOIN qwen_device_map m USING (device) GROUP BY device, d.weights_bytes, d.kv_bytes;
-- what the plan says is what is there
SELECT p.weights_bytes = d.weights_bytes AS weights, p.workspace_bytes = d.workspace_bytes AS workspace
FROM qwen_plan() p JOIN qwen_devices d USING (device);
-- the settings of the plan are settings of the server
SELECT name, setting, context, enumvals FROM pg_settings
WHERE name IN ('qwen.max_memory', 'qwen.tensor_parallel', 'qwen.offload') ORDER BY name;
ALTER SYSTEM SET qwen.tensor_parallel = 0;
ALTER SYSTEM SET qwen.offload = 'disk';
