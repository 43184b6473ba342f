-- qwen_chat: messages in, the assistant's message out.
SELECT qwen_chat('[{"role": "user", "content": "Name the capital of France."}]');
SELECT qwen_chat('[{"role": "system", "content": "You are a careful assistant."},
				   {"role": "user", "content": "What is the capital of Kenya?"},
				   {"role": "assistant", "content": "The capital of Kenya is Nairobi."},
				   {"role": "user", "content": "What is the capital of Sweden?"}]') ->> 'role' AS role;

-- a conversation of one message is a prompt
SELECT qwen_chat(jsonb_build_array(jsonb_build_object('role', 'user', 'content', p))) ->> 'content' = qwen_generate(p) AS same
FROM unnest(ARRAY['29 + 26 =', 'capital of Ukraine', E'quote " backslash \\ newline \n tab \t ü 漢']) p;

-- options
SELECT qwen_chat('[{"role": "user", "content": "Describe these countries: France, Peru, Kenya."}]', max_tokens => 12);
SELECT qwen_chat('[{"role": "user", "content": "Name the capital of Senegal."}]', thinking => true) ?& '{role,content,reasoning_content}' AS thought;
SELECT qwen_chat('[{"role": "user", "content": "Name the capital of Senegal."}]') ? 'reasoning_content' AS thought;

-- the system message may come as an option or from the setting, but not twice; that of the messages goes before the setting
SELECT qwen_chat('[{"role": "user", "content": "What is the capital of Sweden?"}]', system => 'You are a "careful" assistant.') ->> 'content' AS content;
SELECT qwen_chat('[{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]', system => 'c');
SET qwen.system = 'You are a careful assistant.';
SELECT qwen_chat('[{"role": "system", "content": "You are a careful assistant."}, {"role": "user", "content": "What is the capital of Sweden?"}]') =
	   qwen_chat('[{"role": "user", "content": "What is the capital of Sweden?"}]') AS same;
RESET qwen.system;

-- tools
SELECT qwen_chat('[{"role": "user", "content": "What is 17 + 25?"}]', max_tokens => 40,
				 tools => '[{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]') ->> 'role' AS role;
SELECT qwen_chat('[{"role": "user", "content": "Add 15 and 29."}]', tools => '[]') ->> 'content' AS content;
SELECT qwen_chat('[{"role": "user", "content": "What is 17 + 25?"},
				   {"role": "assistant", "content": null, "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 17, "b": 25}}}]},
				   {"role": "tool", "content": "42"}]', max_tokens => 20) ->> 'role' AS role;

-- shapes, refused before anything is queued
SELECT qwen_chat('{"role": "user", "content": "x"}');
SELECT qwen_chat('"x"');
SELECT qwen_chat('[]');
SELECT qwen_chat('["x"]');
SELECT qwen_chat('[{"role": "user", "content": "x"}, 5]');
SELECT qwen_chat('[{"content": "x"}]');
SELECT qwen_chat('[{"role": "robot", "content": "x"}]');
SELECT qwen_chat('[{"role": 1, "content": "x"}]');
SELECT qwen_chat('[{"role": "user"}]');
SELECT qwen_chat('[{"role": "user", "content": null}]');
SELECT qwen_chat('[{"role": "user", "content": [{"type": "text", "text": "x"}]}]');
SELECT qwen_chat('[{"role": "assistant", "content": null}, {"role": "user", "content": "x"}]');
SELECT qwen_chat('[{"role": "user", "content": "x"}]', tools => '{}');
SELECT qwen_chat('[{"role": "user", "content": "x"}]', tools => '["add"]');
\echo :LAST_ERROR_SQLSTATE
