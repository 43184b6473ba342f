# An engine that is stopped, not dead: after qwen.heartbeat_timeout it is killed and replaced, and requests go on.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $node = QwenNode->create('main', 'qwen.heartbeat_timeout' => '0');
my $long = $node->safe_psql('postgres', "SELECT $QwenNode::LONG");
my $engine = $node->engine_pid;

my $job = $node->begin_sql("SELECT $QwenNode::LONG");
$node->wait_until("SELECT count(*) > 0 FROM qwen_requests WHERE state = 'running'", 'a call runs');
kill 'STOP', $engine;

# With the time limit off it stays as it is, and a call that waits for it can be cancelled.
like($node->error_of("SET statement_timeout = '500ms'; SELECT qwen_generate('What is 17 + 25?')"), qr/^57014 /,
	'a call of a hanging engine can be cancelled');
is($node->status('engine_pid'), $engine, 'without qwen.heartbeat_timeout nobody touches the engine');
like(slurp_file("/proc/$engine/stat"), qr/^\d+ \(qwen-engine\) T/, 'which is still stopped');

$node->append_conf('postgresql.conf', "qwen.heartbeat_timeout = '2s'");
$node->reload;
$node->wait_for_exit($engine, 'with it the engine is killed');
isnt($node->engine_pid, $engine, 'and replaced');
is($node->end_sql($job)->{out}, $long, 'the call is answered as if nothing had been');
like($node->status('last_error'), qr/heartbeat_timeout/, 'status tells why');
is($node->status('restarts'), 1, 'and counts it');

# One that is stopped for a moment is left alone.
$engine = $node->engine_pid;
kill 'STOP', $engine;
kill 'CONT', $engine;
is($node->safe_psql('postgres', "SELECT qwen_generate('What is 17 + 25?')"), 42, 'an engine that goes on in time is left alone');
is($node->engine_pid, $engine, 'it is the same one');

$node->is_idle;
$node->leaves_nothing;
done_testing();
