# One engine for all databases: each with its own extension, in its own encoding; and none of them is held by it.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $node = QwenNode->create('main');
my $ask = "SELECT qwen_generate('capital of Germany')";
my $answer = 'The capital of Germany is Berlin.';
my $engine = $node->engine_pid;

$node->safe_psql('postgres', 'CREATE DATABASE second');
$node->safe_psql('postgres', "CREATE DATABASE latin1 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
$node->safe_psql('postgres', "CREATE DATABASE ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");

like($node->error_of($ask, 'second'), qr/^42883 /, 'a database without the extension has no such function');
foreach my $db (qw(second latin1 ascii))
{
	$node->safe_psql($db, 'CREATE EXTENSION qwen');
	is($node->safe_psql($db, $ask), $answer, "an answer in $db");
}
is($node->engine_pid, $engine, 'by the same engine');

# Characters go in and out in the database's encoding.
is($node->safe_psql('latin1', "SET client_encoding = 'UTF8'; SELECT qwen_generate(U&'What is \"tree\" in Spanish?')"),
	$node->safe_psql('postgres', "SELECT qwen_generate('What is \"tree\" in Spanish?')"), 'an accent in LATIN1');

# All databases at once.
my @jobs = map { $node->begin_sql("$ask FROM generate_series(1, 20)", $_) } qw(postgres second latin1 ascii) x 2;
my $same = join "\n", ($answer) x 20;
is(scalar(grep { $node->end_sql($_)->{out} ne $same } @jobs), 0, 'several databases at the same time');

# Neither the worker nor a request elsewhere keeps a database from being dropped.
my $holder = $node->background_psql('postgres');
$holder->query_safe("BEGIN; DECLARE c CURSOR FOR $QwenNode::ENDLESS; MOVE 1 FROM c");
foreach my $db (qw(second latin1 ascii))
{
	is($node->end_sql($node->begin_sql("SET statement_timeout = '60s'; DROP DATABASE $db"))->{err}, '', "$db can be dropped");
}
is($node->end_sql($node->begin_sql("SET statement_timeout = '60s'; CREATE DATABASE third"))->{err}, '',
	'and another one created');
$holder->quit;

# Dropped by force with a request on its way.
$node->safe_psql('third', 'CREATE EXTENSION qwen');
my $job = $node->begin_sql("SELECT $QwenNode::LONG FROM generate_series(1, 1000)", 'third');
$node->wait_until("SELECT count(*) > 0 FROM qwen_requests WHERE datname = 'third'", 'a request from a database');
$node->safe_psql('postgres', 'DROP DATABASE third WITH (FORCE)');
like($node->end_sql($job)->{err}, qr/57P01/, 'which is dropped by force');
$node->is_idle;

# DROP EXTENSION and back.
$node->safe_psql('postgres', 'DROP EXTENSION qwen; CREATE EXTENSION qwen');
is($node->safe_psql('postgres', $ask), $answer, 'the extension dropped and created again');

$node->leaves_nothing;
done_testing();
