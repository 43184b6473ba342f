# The engine is killed: what was running goes on with the next one and gives the same text, and a request that loses
# three engines fails alone.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $node = QwenNode->create('main');
my $answers = $node->load_docs;
my $long = $node->safe_psql('postgres', "SELECT $QwenNode::LONG");
cmp_ok(length($long), '>', 4000, 'the long answer is long');

# ---- one death ----

# A cursor in the middle of a stream, a long answer and a table of short ones.
my $stream = $node->safe_psql('postgres', "SELECT md5(string_agg(piece, '' ORDER BY seq)) FROM ($QwenNode::ENDLESS) AS s");
my $reader = $node->background_psql('postgres', on_error_stop => 0);
$reader->query_safe(
	q{CREATE TEMP TABLE pieces (seq int, piece text, done boolean);
	CREATE FUNCTION pg_temp.take(c refcursor, n int) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE r record;
	BEGIN
		FOR i IN 1 .. n LOOP
			FETCH c INTO r;
			EXIT WHEN NOT FOUND;
			INSERT INTO pieces VALUES (r.seq, r.piece, r.done);
		END LOOP;
	END $$});
$reader->query_safe("BEGIN; DECLARE c CURSOR FOR $QwenNode::ENDLESS; SELECT pg_temp.take('c', 5)");
my $single = $node->begin_sql("SELECT $QwenNode::LONG");
my $table = $node->begin_sql('SELECT id, qwen_generate(prompt) FROM docs ORDER BY id');

$node->wait_until("SELECT count(*) >= 2 FROM qwen_requests WHERE state = 'running'", 'several requests run');
my $killed = $node->kill_engine;
$node->wait_for_exit($killed, 'the engine has died');
isnt($node->engine_pid, $killed, 'another one has been started');
is($node->end_sql($single)->{out}, $long, 'a long answer is the same as without the death');
is($node->end_sql($table)->{out}, $answers, 'so are the answers of a table');
is($node->safe_psql('postgres', 'SELECT engine_deaths FROM qwen_requests'), 1, 'the stream has seen one death');
$reader->query_safe("SELECT pg_temp.take('c', 10000)");
is($reader->query_safe('SELECT count(*) = max(seq) - min(seq) + 1, count(*) FILTER (WHERE done) FROM pieces'),
	't|1', 'the stream goes on where it was, to its end');
is($reader->query_safe(q{SELECT md5(string_agg(piece, '' ORDER BY seq)) FROM pieces}),
	$stream, 'and its text is the same as without the death');
$reader->query_safe('COMMIT');
$node->is_idle;

# ---- three deaths ----

$reader->query_safe("BEGIN; DECLARE c CURSOR FOR $QwenNode::ENDLESS");
$reader->query_safe('FETCH 1 FROM c');
my $other;
foreach my $death (1 .. 3)
{
	$node->wait_until("SELECT bool_or(state = 'running' AND engine_deaths = $death - 1) FROM qwen_requests",
		"the request runs, with deaths: " . ($death - 1));
	# One that has seen fewer deaths shares the engine from the second on.
	if ($death == 2)
	{
		$other = $node->background_psql('postgres');
		$other->query_safe("BEGIN; DECLARE o CURSOR FOR $QwenNode::ENDLESS");
		$other->query_safe('FETCH 1 FROM o');
	}
	$node->kill_engine;
}
$node->wait_until(
	"SELECT array_agg(state ORDER BY state) = '{done,running}' FROM qwen_requests",
	'after the third death that request is done and the other one runs');
$reader->query_safe('\set VERBOSITY verbose');
$reader->query('FETCH 10000 FROM c');
like($reader->{stderr}, qr/58000: +the engine was lost three times while it ran this request/,
	'the request fails, with 58000');
$reader->{stderr} = '';
$reader->query_safe('ROLLBACK');
$other->query_safe('MOVE 10000 FROM o');
pass('the other one finishes');
$other->query_safe('COMMIT');
is($node->answers, $answers, 'and the server answers as before');
is($node->status('restarts'), 4, 'four deaths have been counted');
like($node->status('last_error'), qr/signal 9/, 'status tells how the last engine died');

$_->quit foreach $reader, $other;
$node->is_idle;
$node->leaves_nothing;
done_testing();
