-- Who may do what.
CREATE ROLE regress_qwen_user;
CREATE ROLE regress_qwen_other;
CREATE ROLE regress_qwen_monitor IN ROLE pg_read_all_stats;

-- nobody, at first
SELECT p.oid::regprocedure FROM pg_proc p
WHERE p.proname LIKE 'qwen\_%' AND has_function_privilege('regress_qwen_user', p.oid, 'EXECUTE')
ORDER BY 1::text;
SET ROLE regress_qwen_user;
SELECT qwen_generate('x');
SELECT qwen_token_count('x');
SELECT qwen_reload();
SELECT qwen_grant_usage('regress_qwen_user');
SELECT * FROM qwen_requests;
RESET ROLE;

-- usage
SELECT qwen_grant_usage('regress_qwen_user');
SELECT qwen_grant_usage('regress_qwen_monitor');
SELECT p.oid::regprocedure FROM pg_proc p
WHERE p.proname LIKE 'qwen\_%' AND has_function_privilege('regress_qwen_user', p.oid, 'EXECUTE')
ORDER BY p.oid;
SET ROLE regress_qwen_user;
SELECT qwen_generate('capital of Germany');
SELECT (qwen_try_generate('capital of Germany')).value;
SELECT state FROM qwen_status();
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';
SELECT qwen_reload();
SELECT qwen_grant_usage('regress_qwen_other');
RESET ROLE;

-- requests of others only for those who may see all statistics
\set endless 'qwen_stream(''Write SQL'', max_tokens => 1900, options => ''{"frequency_penalty": -2, "presence_penalty": -2}'')'
BEGIN;
DECLARE c CURSOR FOR SELECT :endless;
MOVE 1 FROM c;
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';
SET LOCAL ROLE regress_qwen_user;
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';
DECLARE own CURSOR FOR SELECT :endless;
MOVE 1 FROM own;
SELECT usename FROM qwen_requests WHERE state <> 'cancelled';
SET LOCAL ROLE regress_qwen_monitor;
SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';
COMMIT;

-- the owner may leave administration to others
GRANT EXECUTE ON FUNCTION qwen_grant_usage(regrole), qwen_revoke_usage(regrole) TO regress_qwen_other;
SET ROLE regress_qwen_other;
SELECT qwen_grant_usage('regress_qwen_other');
SELECT qwen_generate('capital of Ukraine');
SELECT qwen_revoke_usage('regress_qwen_user');
RESET ROLE;
SET ROLE regress_qwen_user;
SELECT qwen_generate('x');
RESET ROLE;

-- no way to the function owner's rights by objects of the same names
SET ROLE regress_qwen_other;
CREATE TEMP VIEW qwen_requests AS SELECT 1 AS one;
SELECT qwen_revoke_usage('regress_qwen_other');
SELECT qwen_generate('x');
DROP VIEW pg_temp.qwen_requests;
RESET ROLE;

-- no such role
SELECT qwen_grant_usage('regress_qwen_nobody');
SELECT qwen_grant_usage('-');
SELECT qwen_grant_usage(NULL);

-- settings that are the administrator's
SET ROLE regress_qwen_user;
SET qwen.priority = 'interactive';
SET qwen.log_prompts = on;
SET qwen.model = '/tmp';
SHOW qwen.model;
RESET ROLE;

SELECT qwen_revoke_usage(r) FROM unnest('{regress_qwen_user,regress_qwen_other,regress_qwen_monitor}'::regrole[]) r;
REVOKE EXECUTE ON FUNCTION qwen_grant_usage(regrole), qwen_revoke_usage(regrole) FROM regress_qwen_other;
DROP ROLE regress_qwen_user, regress_qwen_other, regress_qwen_monitor;
