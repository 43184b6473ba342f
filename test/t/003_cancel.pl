# Whatever makes a backend lose interest in an answer stops the engine's work on it and frees the slot.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $node = QwenNode->create('main');
my $stream = $QwenNode::ENDLESS;
my $running = "SELECT count(*) > 0 FROM qwen_requests WHERE state = 'running'";

# The engine's own count is what matters: it comes with the heartbeat.
my $engine_runs = "SELECT running = 1 FROM qwen_status()";

# Opens a cursor on an answer that never ends and waits until the engine works on it.
sub open_stream
{
	my ($session) = @_;

	$session->query_safe("BEGIN; DECLARE c CURSOR FOR $stream; MOVE 1 FROM c");
	return $node->wait_until($engine_runs, 'the engine works on it');
}

# Runs SQL that must end with an error, in a session, and gives the error.
sub failing
{
	my ($session, $sql) = @_;
	my $error;

	$session->query($sql);
	$error = $session->{stderr};
	$session->{stderr} = '';
	return $error;
}

my $session = $node->background_psql('postgres', on_error_stop => 0);

# ---- pg_cancel_backend ----

my $job = $node->begin_sql("SELECT $QwenNode::LONG FROM generate_series(1, 1000)");
$node->wait_until($running, 'a call runs');
$node->wait_until(
	"SELECT bool_or(pg_cancel_backend(pid)) FROM qwen_requests", 'it is cancelled');
like($node->end_sql($job)->{err}, qr/57014/, 'and ends with 57014');
$node->is_idle('nothing is left after a cancel');

# ---- statement_timeout ----

$job = $node->begin_sql("SET statement_timeout = '300ms'; SELECT $QwenNode::LONG FROM generate_series(1, 1000)");
like($node->end_sql($job)->{err}, qr/57014: +canceling statement due to statement timeout/, 'statement_timeout ends a call');
$node->is_idle('nothing is left after statement_timeout');

# ---- cursors ----

open_stream($session);
$session->query_safe('CLOSE c');
$node->is_idle('nothing is left after CLOSE');
$session->query_safe('COMMIT');

open_stream($session);
$session->query_safe('ROLLBACK');
$node->is_idle('nothing is left after ROLLBACK');

open_stream($session);
$session->query_safe('COMMIT');
$node->is_idle('nothing is left after COMMIT');

# A cursor that is read to its LIMIT needs no more.
is($session->query_safe("SELECT count(*) FROM ($stream LIMIT 3) AS s"), 3, 'LIMIT');
$node->is_idle('nothing is left after LIMIT');

# ---- sub-transactions ----

$session->query_safe("BEGIN; SAVEPOINT a; DECLARE c CURSOR FOR $stream; MOVE 1 FROM c");
$node->wait_until($engine_runs, 'a stream is open in a sub-transaction');
like(failing($session, 'SELECT 1 / 0'), qr/division by zero/, 'an error in it');
$session->query_safe('ROLLBACK TO a');
$node->is_idle('nothing is left after ROLLBACK TO');
is($session->query_safe("SELECT qwen_generate('What is 17 + 25?')"), 42, 'the transaction goes on');
$session->query_safe('COMMIT');

# An error while a call inside a PL/pgSQL block is on its way, caught by the block.
$session->query_safe(
	qq{DO \$\$
	DECLARE n int := 0; r record;
	BEGIN
		FOR r IN $stream LOOP
			n := n + 1 / (3 - n);
		END LOOP;
	EXCEPTION WHEN division_by_zero THEN NULL;
	END \$\$});
$node->is_idle('nothing is left after a caught error');

# ---- clients that go ----

# One that ends while its backend waits: the server notices it by asking the socket.
$job = $node->begin_sql(
	"SET client_connection_check_interval = '100ms'; SELECT $QwenNode::LONG FROM generate_series(1, 1000)");
$node->wait_until($running, 'a call runs');
$job->{harness}->kill_kill;
$node->is_idle('nothing is left of a client that was killed');

# One that ends between two fetches.
my $leaver = $node->background_psql('postgres');
open_stream($leaver);
$leaver->quit;
$node->is_idle('nothing is left of a client that went away with an open cursor');

# ---- pg_terminate_backend ----

open_stream($session);
$node->safe_psql('postgres', 'SELECT pg_terminate_backend(pid) FROM qwen_requests');
$node->is_idle('nothing is left of a backend that was terminated');

# ---- all slots are still there ----

is($node->safe_psql('postgres', "SELECT count(*) FROM unnest(qwen_generate(array_fill('2 + 3 ='::text, '{64}'))) AS a WHERE a = '5'"),
	64, 'sixty-four requests after all that');
is($node->status('restarts'), 0, 'and the engine has lived through it');
$node->is_idle;
$node->leaves_nothing;
done_testing();
