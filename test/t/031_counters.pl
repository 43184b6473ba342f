# The counters where they need a server of their own: errors of each cause, more roles than there is room for, and
# places in the queue.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $node = QwenNode->create('main', 'qwen.max_requests' => 4, 'qwen.max_sequences' => 1);
my $session = $node->background_psql('postgres', on_error_stop => 0);
my $ask = "SELECT qwen_generate('What is 17 + 25?')";

# The counters of the test's own role, of which those that are given must be so and all other errors 0.
sub counts
{
	my ($what, %expected) = @_;
	my @columns = map { "errors_$_" } qw(invalid too_long resources not_ready cancelled engine other);
	my %row = (map({ ($_ => 0) } @columns), %expected);

	is( $node->safe_psql('postgres', 'SELECT ' . join(', ', sort keys %row) . ' FROM qwen_stat'),
		join('|', map { $row{$_} } sort keys %row), $what);
	$node->safe_psql('postgres', 'SELECT qwen_stat_reset()');
}

# ---- places in the queue ----

# The engine runs one at a time, so the others wait: a stream that nobody reads gives its seat to its equals and betters
# alone.
$session->query_safe("SET qwen.priority = 'interactive'");
$session->query_safe("BEGIN; DECLARE c CURSOR FOR $QwenNode::ENDLESS; MOVE 1 FROM c");
my $second = $node->begin_sql("SET qwen.priority = 'batch'; $ask");
$node->wait_until("SELECT count(*) = 1 FROM qwen_requests WHERE state = 'queued'", 'one waits');
my $third = $node->begin_sql("SET qwen.priority = 'batch'; $ask");
$node->wait_until("SELECT count(*) = 2 FROM qwen_requests WHERE state = 'queued'", 'two wait');
my $urgent = $node->begin_sql($ask);
$node->wait_until("SELECT count(*) = 3 FROM qwen_requests WHERE state = 'queued'", 'three wait');
is( $node->safe_psql(
		'postgres', 'SELECT state, queue_position, priority FROM qwen_requests ORDER BY age DESC'),
	"running||interactive\nqueued|2|batch\nqueued|3|batch\nqueued|1|normal",
	'who waits has a place, by priority and age');
$node->wait_until('SELECT bool_and(prompt_tokens > 0) FROM qwen_requests',
	'the tokens of those that wait are known too');

# ---- errors by cause ----

like($node->error_of("SET qwen.queue_timeout = 0; $ask"), qr/^53000 /, 'no slot is free');
$session->query_safe('COMMIT');
is($node->end_sql($_)->{out}, 42, 'who has waited gets an answer') foreach $second, $third, $urgent;
counts('three answers, a stream that was left, a full queue',
	requests => 5, answers => 3, errors_resources => 1, errors_cancelled => 1);

# Who is not waited for, with a place and without one.
$session->query_safe("BEGIN; DECLARE c CURSOR FOR $QwenNode::ENDLESS; MOVE 1 FROM c");
my @jobs = map { $node->begin_sql($ask) } 1 .. 3;
$node->wait_until('SELECT count(*) = 4 FROM qwen_requests', 'all slots are taken');
like($node->error_of("SET statement_timeout = '100ms'; $ask"), qr/^57014 /, 'cancelled in the line');
$node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM qwen_requests WHERE state = 'queued'");
like($node->end_sql($_)->{err}, qr/57014/, 'cancelled in the queue') foreach @jobs;
$session->query_safe('COMMIT');
counts('five that were not waited for', requests => 5, answers => 0, errors_cancelled => 5);

# Three engines.
$session->query_safe("BEGIN; DECLARE c CURSOR FOR $QwenNode::ENDLESS; MOVE 1 FROM c");
foreach my $deaths (0 .. 2)
{
	$node->wait_until("SELECT bool_or(state = 'running' AND engine_deaths = $deaths) FROM qwen_requests", 'it runs');
	$node->kill_engine;
}
$node->wait_until("SELECT bool_or(state = 'done') FROM qwen_requests", 'it has failed');
$session->query('MOVE ALL FROM c');
$session->{stderr} = '';
$session->query_safe('ROLLBACK');
counts('one that lost three engines', requests => 1, answers => 0, errors_engine => 1);

# No model.
$node->reload_with('qwen.model' => $node->data_dir);
$node->wait_for_state('failed');
like($node->error_of($ask), qr/^55000 /, 'there is no model');
counts('one without a model', requests => 1, answers => 0, errors_not_ready => 1);
is($node->safe_psql('postgres', 'SELECT steps IS NULL AND kv_blocks IS NULL FROM qwen_stat_engine'),
	't', 'no engine, no counters of it');
$node->reload_with('qwen.model' => '');
$node->wait_ready;
$node->wait_until('SELECT kv_blocks > 0 FROM qwen_stat_engine', 'an engine that nobody has asked tells its sizes');

# ---- more roles than there are sets ----

my $roles = 300;
$node->safe_psql(
	'postgres', join '', map {
		"CREATE ROLE r$_; SELECT qwen_grant_usage('r$_'); SET ROLE r$_; SELECT qwen_token_count('x'); RESET ROLE;"
	} 1 .. $roles);
is( $node->safe_psql(
		'postgres', q{
		SELECT count(userid), count(*) FILTER (WHERE userid IS NULL), sum(requests),
			   sum(requests) FILTER (WHERE userid IS NULL)
		FROM qwen_stat}),
	"256|1|$roles|44", 'those after the first 256 are counted together');
is( $node->safe_psql('postgres', "SET ROLE r$roles; SELECT count(*) FROM qwen_stat")
	  . $node->safe_psql('postgres', 'SET ROLE r1; SELECT count(*) FROM qwen_stat'),
	'01', 'and see nothing of each other');
is($node->safe_psql('postgres', 'SELECT qwen_stat_reset(); SELECT count(*) FROM qwen_stat'),
	"\n0", 'a reset gives all sets back');

# ---- a server that begins anew ----

$node->safe_psql('postgres', $ask);
$session->quit;
$node->restart;
is($node->safe_psql('postgres', 'SELECT count(*) FROM qwen_stat'), 0, 'the counters do not outlive the server');
$node->leaves_nothing;
done_testing();
