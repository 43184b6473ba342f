-- Settings of the engine whose values are words.
SELECT name, setting, context, enumvals FROM pg_settings
WHERE name IN ('qwen.dtype', 'qwen.quantization', 'qwen.kv_dtype')
ORDER BY name;
ALTER SYSTEM SET qwen.dtype = 'bf16';
ALTER SYSTEM SET qwen.quantization = 'int9';
ALTER SYSTEM SET qwen.kv_dtype = 'int4';
-- the weights are everybody's
SET qwen.quantization = 'int8';
SET qwen.kv_dtype = 'int8';
