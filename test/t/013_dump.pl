# pg_dump and restore: the extension, what depends on it, and grants of usage come back.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $node = QwenNode->create('main');
my $dump = PostgreSQL::Test::Utils::tempdir('dump') . '/postgres.sql';

$node->load_docs;
$node->safe_psql(
	'postgres', q{
	CREATE ROLE alice;
	SELECT qwen_grant_usage('alice');
	CREATE VIEW answered AS SELECT id, qwen_generate(prompt, max_tokens => 20) AS answer FROM docs;
	CREATE FUNCTION shout(q text) RETURNS text LANGUAGE sql AS $$ SELECT upper(qwen_generate(q)) $$;
	CREATE TABLE results (r qwen_result);
	INSERT INTO results SELECT qwen_try_generate('What is 17 + 25?');});

$node->command_ok([ 'pg_dump', '-f', $dump, $node->connstr('postgres') ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $node->connstr('restored') ], 'restore');

my $query = 'SELECT id, answer FROM answered WHERE id IN (1, 26) ORDER BY id';
is($node->safe_psql('restored', $query), $node->safe_psql('postgres', $query), 'a view over calls');
is($node->safe_psql('restored', "SELECT shout('capital of Germany')"), 'THE CAPITAL OF GERMANY IS BERLIN.', 'a function over calls');
is($node->safe_psql('restored', 'SELECT (r).value FROM results'), 42, 'a column of its type');
is($node->safe_psql('restored', "SET ROLE alice; SELECT qwen_generate('What is 17 + 25?')"), 42, 'granted usage');
like(slurp_file($dump), qr/CREATE EXTENSION IF NOT EXISTS qwen/, 'the dump holds the extension by name');
unlike(slurp_file($dump), qr/CREATE FUNCTION public\.qwen_/, 'and none of its objects');

$node->is_idle;
$node->leaves_nothing;
done_testing();
