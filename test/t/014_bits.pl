# One greedy prompt gives the same text alone, among sixteen others, on a loaded engine and after an engine's death.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $node = QwenNode->create('main');

# Long, so that a last bit that differs anywhere has time to show; sampled ones show every bit of the probabilities.
my @prompts = (
	"qwen_generate('Describe these countries: Slovakia, Ghana, New Zealand, Argentina, Uruguay.')",
	"qwen_complete('To create an index without locking out writes,', max_tokens => 300)",
	"qwen_generate('Describe these countries: France, Japan.', temperature => 1.5, seed => 11, max_tokens => 300)",
	"qwen_generate('Describe these countries: France, Japan.', temperature => 100, seed => 9, max_tokens => 900)");
my $alone = join "\n", map { $node->safe_psql('postgres', "SELECT md5($_)") } @prompts;
my $together = 'SELECT md5(x) FROM unnest(ARRAY[' . join(', ', @prompts) . ']) WITH ORDINALITY AS u (x, n) ORDER BY n';

is($node->safe_psql('postgres', $together), $alone, 'the same again');

# Among sixteen others that come and go.
$node->load_docs;
my @others = map { $node->begin_sql("SELECT qwen_generate(prompt, seed => $_, temperature => 1) FROM docs, generate_series(1, 5)") } 1 .. 16;
$node->wait_until("SELECT count(*) >= 8 FROM qwen_requests", 'others are at work');
is($node->safe_psql('postgres', $together), $alone, 'the same among sixteen others');
$node->end_sql($_) foreach @others;

# All in one batch.
my $many = join ', ', ("'Describe these countries: Slovakia, Ghana, New Zealand, Argentina, Uruguay.'") x 17;
is($node->safe_psql('postgres', "SELECT DISTINCT md5(x) FROM unnest(qwen_generate(ARRAY[$many])) AS x"),
	(split /\n/, $alone)[0], 'the same seventeen times in one array');

# After and during the death of an engine.
$node->kill_engine;
is($node->safe_psql('postgres', $together), $alone, 'the same after the death of the engine');
my $job = $node->begin_sql($together);
$node->wait_until("SELECT count(*) >= 1 FROM qwen_requests WHERE state = 'running'", 'they run');
$node->kill_engine;
is($node->end_sql($job)->{out}, $alone, 'the same when the engine dies meanwhile');

# Another number of threads, and another memory for keys and values, are no reason for another answer.
$node->reload_with('qwen.threads' => 1, 'qwen.max_sequences' => 2);
is($node->safe_psql('postgres', $together), $alone, 'the same with one thread and two sequences');

$node->is_idle;
$node->leaves_nothing;
done_testing();
