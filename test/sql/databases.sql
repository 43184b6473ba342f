-- One engine serves all databases of the cluster, and the extension may live in any schema.
SELECT current_database() AS main \gset
CREATE DATABASE regress_qwen_second;
\c regress_qwen_second
SELECT qwen_generate('x');
CREATE SCHEMA "A i";
CREATE EXTENSION qwen SCHEMA "A i";
SELECT qwen_generate('x');
SELECT "A i".qwen_generate('capital of Germany');
SELECT "A i".qwen_generate(ARRAY['capital of Ukraine']), ("A i".qwen_try_generate('29 + 26 =')).value;
SELECT datname = current_database() AS here FROM "A i".qwen_requests WHERE state <> 'cancelled';

-- requests are seen from every database
\set endless '"A i".qwen_stream(''Write SQL'', max_tokens => 1900, options => ''{"frequency_penalty": -2, "presence_penalty": -2}'')'
BEGIN;
DECLARE c CURSOR FOR SELECT :endless;
MOVE 1 FROM c;
SELECT datname, kind FROM "A i".qwen_requests WHERE state <> 'cancelled';
COMMIT;

-- grants of usage do not depend on the search path; the schema itself is not the extension's to give
CREATE ROLE "regress_qwen user";
SET search_path = 'A i';
SELECT qwen_grant_usage('"regress_qwen user"');
RESET search_path;
SET ROLE "regress_qwen user";
SELECT "A i".qwen_generate('capital of Germany');
RESET ROLE;
GRANT USAGE ON SCHEMA "A i" TO "regress_qwen user";
SET ROLE "regress_qwen user";
SELECT "A i".qwen_generate('capital of Germany');
RESET ROLE;
SELECT "A i".qwen_grant_usage('"regress_qwen user"');
SELECT "A i".qwen_revoke_usage('"regress_qwen user"');

-- the extension goes without a trace
DROP EXTENSION qwen;
SELECT count(*) FROM pg_proc WHERE proname LIKE 'qwen\_%';
DROP SCHEMA "A i";
DROP ROLE "regress_qwen user";
\c :main
DROP DATABASE regress_qwen_second;
