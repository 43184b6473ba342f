# A hot standby has a worker and an engine of its own and answers.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $primary = QwenNode->create('primary', allows_streaming => 1);
my $answers = $primary->load_docs;

$primary->backup('copy');
my $standby = bless PostgreSQL::Test::Cluster->new('standby'), 'QwenNode';
$standby->init_from_backup($primary, 'copy', has_streaming => 1);
$standby->start;
$primary->wait_for_catchup($standby);

is($standby->safe_psql('postgres', 'SELECT pg_is_in_recovery()'), 't', 'the standby is one');
is($standby->answers, $answers, 'it gives the same answers');
isnt($standby->engine_pid, $primary->engine_pid, 'with an engine of its own');
is($standby->status('state'), 'ready', 'status there');

my $killed = $standby->kill_engine;
is($standby->answers, $answers, 'and again after the death of its engine');
is($primary->status('restarts'), 0, 'which is none of the primary\'s business');

$standby->promote;
is($standby->answers, $answers, 'and after its promotion');

$_->is_idle foreach $standby, $primary;
$_->leaves_nothing foreach $standby, $primary;
done_testing();
