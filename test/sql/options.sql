-- What may be said, and how it is refused.
\set VERBOSITY default

-- ranges, before anything is queued
SELECT qwen_generate('x', max_tokens => 0);
SELECT qwen_generate('x', max_tokens => -5);
SELECT qwen_generate('x', max_tokens => 2000000000);
SELECT qwen_generate('x', temperature => -0.1);
SELECT qwen_generate('x', temperature => 'NaN');
SELECT qwen_generate('x', temperature => 'Infinity');
SELECT qwen_generate('x', top_p => 1.5);
SELECT qwen_generate('x', top_p => '-Infinity');
SELECT qwen_generate('x', top_k => -1);
SELECT qwen_generate('x', stop => '{a,NULL}');
SELECT qwen_generate('x', stop => '{a,""}');
SELECT qwen_generate('x', stop => array_fill('a'::text, '{65}'));
SELECT qwen_generate('x', on_error => 'ignore');
SELECT qwen_generate('x', options => '{"min_p": 2}');
SELECT qwen_generate('x', options => '{"presence_penalty": 2.5}');
SELECT qwen_generate('x', options => '{"frequency_penalty": -3}');
SELECT qwen_generate('x', options => '{"repetition_penalty": 0}');
SELECT qwen_generate('x', options => '{"repetition_penalty": 1e400}');
SELECT qwen_generate('x', options => '{"max_tokens": 99999999999}');
\echo :LAST_ERROR_SQLSTATE

-- types
SELECT qwen_generate('x', options => '[]');
SELECT qwen_generate('x', options => '"min_p"');
SELECT qwen_generate('x', options => '{"min_p": "0.5"}');
SELECT qwen_generate('x', options => '{"max_tokens": 1.5}');
SELECT qwen_generate('x', options => '{"seed": 1e30}');
SELECT qwen_generate('x', options => '{"thinking": "on"}');
SELECT qwen_generate('x', options => '{"stop": {}}');
SELECT qwen_generate('x', options => '{"stop": [1]}');
SELECT qwen_generate('x', options => '{"system": 1}');
SELECT qwen_generate('x', options => '{"priority": 1}');
SELECT qwen_generate('x', options => '{"priority": "urgent"}');

-- unknown
SELECT qwen_generate('x', options => '{"max_token": 5}');
SELECT qwen_generate('x', options => '{"": 5}');

-- said twice
SELECT qwen_generate('x', max_tokens => 5, options => '{"max_tokens": 5}');
SELECT qwen_generate('x', stop => '{a}', options => '{"stop": "a"}');
\echo :LAST_ERROR_SQLSTATE

-- not there yet: refused, never ignored
SELECT qwen_generate('x', schema => '{}');
SELECT qwen_generate('x', options => '{"schema": {}}');
SELECT qwen_generate('x', options => '{"regex": "a+"}');
SELECT qwen_generate('x', options => '{"grammar": "root ::= x"}');
SELECT qwen_generate('x', options => '{"deadline_ms": 100}');
\echo :LAST_ERROR_SQLSTATE

-- without meaning for the function
SELECT qwen_complete('x', system => 'y');
SELECT qwen_complete('x', thinking => false);
SELECT qwen_chat('[{"role": "user", "content": "x"}]', options => '{"truncate": true}');
SELECT qwen_try_generate('x', on_error => 'raise');
\echo :LAST_ERROR_SQLSTATE

-- every option in "options"
SELECT qwen_generate('Describe these countries: France, Peru, Kenya.', options => '{
	"max_tokens": 30, "temperature": 0.5, "top_p": 1, "top_k": 1, "seed": -9223372036854775808, "stop": [";", "people"],
	"system": "You are a careful assistant.", "thinking": false, "on_error": "raise", "min_p": 0.0, "presence_penalty": 0,
	"frequency_penalty": 0, "repetition_penalty": 1, "priority": "batch", "cache": false, "truncate": false,
	"control_tokens": false}');

-- what only "options" can say reaches the engine
SELECT key, qwen_complete('The', max_tokens => 60, options => jsonb_build_object(key, value)) <>
	   qwen_complete('The', max_tokens => 60) AS changed
FROM (VALUES ('repetition_penalty', 5), ('frequency_penalty', 2), ('presence_penalty', 2), ('presence_penalty', 0)) v(key, value);
SELECT qwen_generate('capital of Germany', temperature => 2, options => '{"min_p": 1}');

-- a prompt is cut only when asked for
SELECT finish_reason, prompt_tokens BETWEEN 1000 AND 2047 AS cut
FROM qwen_try_generate(repeat('word ', 5000), max_tokens => 4, options => '{"truncate": true}');

-- settings, and what goes before them
SET qwen.max_tokens = 4;
SELECT qwen_generate('Describe these countries: France, Peru.');
SELECT qwen_generate('Describe these countries: France, Peru.', options => '{"max_tokens": 6}');
SELECT qwen_generate('Describe these countries: France, Peru.', max_tokens => 8);
RESET qwen.max_tokens;
SET qwen.temperature = 2;
SET qwen.seed = 5;
SELECT qwen_complete('The', max_tokens => 40) = qwen_complete('The', max_tokens => 40) AS same,
	   qwen_complete('The', max_tokens => 40) = qwen_complete('The', max_tokens => 40, seed => 5) AS setting_is_5,
	   qwen_complete('The', max_tokens => 40) = qwen_complete('The', max_tokens => 40, seed => 6) AS argument_wins;
SET qwen.top_k = 1;
SELECT qwen_generate('capital of Germany');
RESET qwen.top_k;
SET qwen.top_p = 0.000001;
SELECT qwen_generate('capital of Germany');
RESET ALL;
SET qwen.system = 'You are a careful assistant.';
SELECT (qwen_try_generate('x', max_tokens => 1)).prompt_tokens -
	   (qwen_try_generate('x', max_tokens => 1, system => 'You')).prompt_tokens > 0 AS system_setting;
SELECT qwen_complete('The', max_tokens => 1) IS NOT NULL AS system_is_not_for_complete;
RESET qwen.system;
SET qwen.thinking = on;
SELECT (qwen_try_generate('Name the capital of Senegal.')).output_tokens;
SELECT (qwen_try_generate('Name the capital of Senegal.', thinking => false)).output_tokens;
RESET qwen.thinking;
SET qwen.max_tokens = 0;
SET qwen.on_error = 'ignore';
SET qwen.no_such_setting = 1;

-- priority: one may step back, not ahead
CREATE ROLE regress_qwen_user;
SELECT qwen_grant_usage('regress_qwen_user');
SELECT qwen_generate('capital of Germany', options => '{"priority": "interactive"}');
SET ROLE regress_qwen_user;
SELECT qwen_generate('capital of Germany', options => '{"priority": "batch"}');
SELECT qwen_generate('capital of Germany', options => '{"priority": "normal"}');
SELECT qwen_generate('capital of Germany', options => '{"priority": "interactive"}');
\echo :LAST_ERROR_SQLSTATE
SET qwen.priority = 'interactive';
RESET ROLE;
SELECT qwen_revoke_usage('regress_qwen_user');
DROP ROLE regress_qwen_user;
