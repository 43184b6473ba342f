# The ways in which servers end, with requests on their way: nothing hangs and no process is left.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $node = QwenNode->create('main', restart_after_crash => 'on');
my $ask = "SELECT qwen_generate('What is 17 + 25?')";
my $busy = "SELECT $QwenNode::LONG FROM generate_series(1, 1000)";

# Sessions whose calls the engine works on.
sub work
{
	my @jobs = map { $node->begin_sql($busy) } 1 .. 4;

	$node->engine_pid;
	$node->wait_until("SELECT count(DISTINCT pid) = 4 FROM qwen_requests WHERE state = 'running'", 'four sessions run calls');
	return @jobs;
}

# ---- stops ----

foreach my $mode (qw(fast immediate))
{
	my @jobs = work();
	my $engine = $node->engine_pid;

	$node->stop($mode);
	$node->wait_for_exit($engine, "$mode stop: the engine is gone");
	is(scalar(grep { $node->end_sql($_)->{status} == 0 } @jobs), 0, "$mode stop: the calls ended with errors");
	$node->start;
	is($node->safe_psql('postgres', $ask), 42, "$mode stop: an answer after the next start");
}

# A smart stop waits for sessions, and their calls are answered while it does.
my $job = $node->begin_sql("SELECT qwen_generate('2 + ' || i || ' =') FROM generate_series(1, 3000) i");
$node->wait_until("SELECT count(*) > 0 FROM qwen_requests", 'a table of calls runs');
$node->stop('smart');
is($node->end_sql($job)->{status}, 0, 'smart stop: the calls were answered first');
$node->start;

# ---- the worker ends ----

$job = $node->begin_sql("SELECT $QwenNode::LONG");
$node->wait_until("SELECT count(*) > 0 FROM qwen_requests WHERE state = 'running'", 'a call runs');
my $engine = $node->engine_pid;
my $worker = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'qwen worker'");
is($node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)"), 't', 'the worker is told to end');
$node->wait_for_exit($engine, 'its engine goes with it');
is(length($node->end_sql($job)->{out}) > 4000, 1, 'the call is answered by the next worker and engine');
isnt($node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'qwen worker'"),
	$worker, 'which the postmaster has started');
is($node->safe_psql('postgres', "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type = 'qwen worker'"),
	't', 'pg_cancel_backend of the worker');
is($node->safe_psql('postgres', $ask), 42, 'does no harm');

# ---- a backend crashes: the server restarts all its processes ----

my @jobs = work();
$engine = $node->engine_pid;
my $restarts = () = slurp_file($node->logfile) =~ /reinitializing/g;
my $victim = $node->safe_psql('postgres', 'SELECT min(pid) FROM qwen_requests');
kill 'KILL', $victim;
is(scalar(grep { $node->end_sql($_)->{status} == 0 } @jobs), 0, 'crash of a backend: all calls end');
$node->wait_for_exit($engine, 'crash of a backend: the engine is gone');
$node->poll_query_until('postgres', 'SELECT true');
is($node->safe_psql('postgres', $ask), 42, 'crash of a backend: an answer after the restart');
is($node->safe_psql('postgres', 'SELECT count(*) FROM qwen_requests'), 0, 'crash of a backend: all slots are free');

# ---- the postmaster dies ----

@jobs = work();
$engine = $node->engine_pid;
my @processes = split /\n/, $node->safe_psql('postgres', 'SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()');
$node->kill9;
$node->wait_for_exit($engine, 'death of the postmaster: the engine is gone');
$node->end_sql($_) foreach @jobs;
$node->wait_for_exit($_, "death of the postmaster: process $_ is gone") foreach @processes;
$node->start;
is($node->safe_psql('postgres', $ask), 42, 'death of the postmaster: an answer after the next start');

$node->is_idle;
$node->leaves_nothing(crash => 1);
done_testing();
