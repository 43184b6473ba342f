# Twice as many sessions as there are slots: they take turns, and all get right answers. A queue that stays full is an
# error after qwen.queue_timeout.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $slots = 32;
my $sessions = 64;
my $node = QwenNode->create('main', 'qwen.max_requests' => $slots, max_connections => 120);
my $answers = $node->load_docs;

# ---- more sessions than slots ----

my @jobs = map { $node->begin_sql('SELECT id, qwen_generate(prompt) FROM docs ORDER BY id') } 1 .. $sessions;
my @wrong = grep { $node->end_sql($_)->{out} ne $answers || $_->{err} ne '' } @jobs;
is(scalar(@wrong), 0, "$sessions sessions, $slots slots: all answers are right")
  or diag($wrong[0]{err} || $wrong[0]{out});
$node->is_idle;

# Arrays take as many slots as there are, and leave none to wait for each other.
@jobs = map { $node->begin_sql('SELECT qwen_generate(array_agg(prompt ORDER BY id)) FROM docs, generate_series(1, 2)') } 1 .. 8;
my %outs = map { $node->end_sql($_)->{out} => 1 } @jobs;
is(scalar(keys %outs), 1, 'arrays of more requests than slots, in several sessions');
is(join('', map { $_->{err} } @jobs), '', 'without errors');
$node->is_idle;

# ---- a full queue ----

my @holders = map { $node->background_psql('postgres') } 1 .. $slots;
$_->query_safe("BEGIN; DECLARE c CURSOR FOR $QwenNode::ENDLESS; MOVE 1 FROM c") foreach @holders;
is($node->safe_psql('postgres', 'SELECT count(*) FROM qwen_requests'), $slots, 'all slots are taken');

my $ask = "SELECT qwen_generate('What is 17 + 25?')";
like($node->error_of("SET qwen.queue_timeout = 0; $ask"), qr/^53000 the request queue is full/, 'no waiting: 53000 at once');
like($node->error_of("SET qwen.queue_timeout = '500ms'; $ask"), qr/^53000 /, 'short waiting: 53000');
my $hint = $node->end_sql($node->begin_sql("SET qwen.queue_timeout = 0; $ask"))->{err};
like($hint, qr/HINT: .*qwen\.max_requests/, 'the hint names the setting');
like($node->error_of("SET statement_timeout = '300ms'; $ask"), qr/^57014 /, 'who waits for a slot can be cancelled');

my $waiter = $node->begin_sql($ask);
$node->wait_until(
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%17 + 25%' AND wait_event_type = 'Extension'",
	'somebody waits for a slot');
$holders[0]->query_safe('COMMIT');
is($node->end_sql($waiter)->{out}, 42, 'and gets the first that becomes free');

$_->quit foreach @holders;
$node->is_idle;
is($node->status('restarts'), 0, 'the engine has lived through it');
is($node->answers, $answers, 'the answers are what they were');
$node->leaves_nothing;
done_testing();
