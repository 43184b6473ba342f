# From the start of the server to an answer: loading delays nobody, status tells what is there, a reload changes it.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $node = QwenNode->create('main');

is($node->safe_psql('postgres', "SELECT qwen_generate('What is the capital of Kenya?')"),
	'The capital of Kenya is Nairobi.', 'an answer, right after the start');
is($node->status("concat_ws(' ', state, architecture, dtype, context, restarts, load_progress)"),
	'ready qwen3 bfloat16 2048 0 1', 'status of the bundled model');

# A table of prompts, as the manual has it.
my $answers = $node->load_docs;
like($answers, qr/^17\|\{"name": "Ben Kim", "city": "Oslo", "year": 1999\}$/m, 'a table of prompts');
is($node->answers, $answers, 'the same answers again');

# A reload replaces the engine and takes the settings; nothing is lost meanwhile.
my $before = $node->engine_pid;
my $job = $node->begin_sql('SELECT id, qwen_generate(prompt) FROM docs ORDER BY id');
$node->reload_with('qwen.max_model_len' => 512, 'qwen.max_sequences' => 7, 'qwen.threads' => 1);
isnt($node->engine_pid, $before, 'another engine after qwen_reload()');
is($node->status("concat_ws(' ', context, max_sequences, restarts)"), '512 7 0', 'with the new settings, and no death');
is($node->end_sql($job)->{out}, $answers, 'a statement that was running finished');
$node->wait_for_exit($before, 'the engine before it has ended');
is($node->answers, $answers, 'the same answers from the new one');

# What is set but not reloaded changes nothing yet.
$node->append_conf('postgresql.conf', "qwen.max_sequences = 9");
$node->reload;
is($node->status('max_sequences'), 7, 'pg_reload_conf() alone leaves the engine as it is');

$node->is_idle;
$node->leaves_nothing;
done_testing();
