-- Texts travel as UTF-8, whatever the database's encoding.
SELECT current_database() AS main \gset
CREATE DATABASE regress_qwen_latin1 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0;
CREATE DATABASE regress_qwen_ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0;

-- what the model sees in UTF-8
SELECT qwen_token_count('naïve café'), qwen_tokenize('漢') AS han \gset

\c regress_qwen_latin1
\encoding UTF8
CREATE EXTENSION qwen;
SELECT qwen_token_count('naïve café') = :qwen_token_count AS same, qwen_detokenize(qwen_tokenize('naïve café'));
SELECT qwen_generate('capital of Germany', system => 'Précis.', stop => '{é}');
SELECT qwen_chat('[{"role": "user", "content": "capital of Germany"}]', system => 'Précis.') ->> 'content' AS content;

-- an answer with a character that this encoding lacks
SELECT qwen_detokenize(:'han');
\echo :LAST_ERROR_SQLSTATE
\set ask 'qwen_generate(''Translate to Chinese: thank you'''
SELECT :ask);
SELECT :ask, on_error => 'null');
SELECT value, error, sqlstate FROM qwen_try_generate('Translate to Chinese: thank you');
SELECT qwen_generate(ARRAY['Translate to Chinese: thank you', 'capital of Germany'], on_error => 'null');
SELECT * FROM qwen_stream('Translate to Chinese: thank you', on_error => 'null') WHERE done;
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';

-- SQL_ASCII: bytes pass, if they are UTF-8
\c regress_qwen_ascii
CREATE EXTENSION qwen;
SELECT qwen_token_count(convert_from('\x6e61c3af766520636166c3a9', 'SQL_ASCII')) = :qwen_token_count AS same;
SELECT qwen_generate(convert_from('\x66ff', 'SQL_ASCII'));
\echo :LAST_ERROR_SQLSTATE
SELECT qwen_generate(convert_from('\x66ff', 'SQL_ASCII'), on_error => 'null');
SELECT convert_to(qwen_detokenize(:'han'), 'SQL_ASCII');

\c :main
DROP DATABASE regress_qwen_latin1;
DROP DATABASE regress_qwen_ascii;
