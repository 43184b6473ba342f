# An order to replace the engine while somebody still uses it: what runs is finished first, and everybody who waits
# meanwhile can see for what, and stop waiting.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $node = QwenNode->create('main');
my $ask = "SELECT qwen_generate('What is 17 + 25?')";
my $before = $node->engine_pid;

# Nothing runs: nothing to be told of.
my $job = $node->end_sql($node->begin_sql('SELECT qwen_reload()'));
is("$job->{status} $job->{err}", '0 ', 'an idle engine is replaced without a word');
$node->wait_until("SELECT state = 'ready' AND engine_pid <> $before FROM qwen_status()", 'by another one');

# A cursor that nobody reads.
my $holder = $node->background_psql('postgres', on_error_stop => 0);
$holder->query_safe("BEGIN; DECLARE c CURSOR FOR $QwenNode::ENDLESS; MOVE 1 FROM c");
my $held = $node->engine_pid;
$job = $node->end_sql($node->begin_sql('SELECT qwen_reload()'));
is($job->{status}, 0, 'the order is taken, and not waited for');
like($job->{err}, qr/NOTICE: .*when 1 running request has finished/, 'its author learns what is in the way');
like($job->{err}, qr/HINT: .*qwen_requests/, 'and where to look');
is($node->safe_psql('postgres', 'SELECT state, running, engine_pid FROM qwen_status()'),
	"draining|1|$held", 'the state says so');
is( $node->safe_psql('postgres', q{SELECT a.state FROM pg_stat_activity a JOIN qwen_requests r USING (pid)}),
	'idle in transaction', 'and qwen_requests who it is');

# Others wait, visibly and within bounds.
my $waiting = $node->begin_sql($ask);
$node->wait_until(
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event IN ('Extension', 'QwenModelLoad') AND query LIKE '%17%' AND pid <> pg_backend_pid()",
	'a call that waits for the next engine shows in pg_stat_activity');
$job = $node->end_sql($node->begin_sql("SET qwen.wait_ready = '200ms'; $ask"));
like($job->{err}, qr/ERROR: +55000: +the model is not ready/, 'one that waits no longer fails');
like($job->{err}, qr/DETAIL: .*to be replaced has 1 request to finish/, 'and says what for it has waited');
like($node->error_of("SET statement_timeout = '200ms'; $ask"), qr/^57014 /, 'the wait can be interrupted');

# What runs goes on.
like($holder->query_safe('MOVE 100 FROM c; FETCH 1 FROM c'), qr/^102\|/, 'the cursor is read on, from the old engine');
is($node->status('engine_pid'), $held, 'which is still there');
$holder->query_safe('COMMIT');
is($node->end_sql($waiting)->{out}, 42, 'then the next engine answers who has waited');
isnt($node->engine_pid, $held, 'another one');

# A worker that does not answer.
my $worker = $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'qwen%'});
kill 'STOP', $worker;
my $order = $node->begin_sql("SET statement_timeout = '3s'; SELECT qwen_reload()");
$node->wait_until(
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event IN ('Extension', 'QwenReloadWait') AND query LIKE '%qwen_reload%' AND pid <> pg_backend_pid()",
	'an order that is not taken shows in pg_stat_activity');
like($node->end_sql($order)->{err}, qr/57014/, 'and can be interrupted');
kill 'CONT', $worker;
$node->wait_until("SELECT state = 'ready' FROM qwen_status()", 'the worker goes on');
is($node->safe_psql('postgres', $ask), 42, 'and so does the engine');

$holder->quit;
$node->leaves_nothing;
done_testing();
