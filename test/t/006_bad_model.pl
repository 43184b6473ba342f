# A model that does not load: the server runs, status and every call say why, and mending the setting and qwen_reload()
# mends it.
use strict;
use warnings;

use File::Copy qw(copy);
use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $data = "$ENV{TESTDIR}/data";
my $good = "$data/demo-model";
my $ask = "SELECT qwen_generate('What is 17 + 25?')";

# A copy of the bundled model that can be broken.
sub model_copy
{
	my $dir = PostgreSQL::Test::Utils::tempdir('model');

	copy($_, $dir) or die "$_: $!" foreach glob "$good/*";
	return $dir;
}

sub rewrite
{
	my ($file, $change) = @_;
	my $text = slurp_file($file);

	$text = $change->($text);
	open my $out, '>:raw', $file or die "$file: $!";
	print $out $text;
	close $out;
}

my $node = QwenNode->create('main', 'qwen.model' => "$data/there-is-none");

# Checks that a model is refused, with a text in status and in the error of every kind of call.
sub refused
{
	my ($name, $model, $why, %settings) = @_;
	my $error;

	$node->reload_with('qwen.model' => $model, %settings);
	$node->wait_for_state('failed');
	like($node->status('last_error'), $why, "$name: status says why");
	like($node->error_of($ask), qr/^55000 the model could not be loaded/, "$name: a call fails with 55000");
	$error = $node->end_sql($node->begin_sql($ask))->{err};
	like($error, qr/DETAIL: .*/, "$name: and says more");
	like($error, $why, "$name: and says why");
	like($error, qr/HINT: .*qwen_reload/, "$name: the hint tells what to do");
	is($node->safe_psql('postgres', 'SELECT 1'), 1, "$name: the server runs");
}

like($node->error_of($ask), qr/^55000 the model could not be loaded/, 'the server starts with a model that is not there');
is($node->status('engine_pid'), '', 'there is no engine');
refused('missing folder', "$data/there-is-none", qr/there-is-none/);
refused('relative path, missing', 'no/such/model', qr{no/such/model});

my $model = model_copy();
rewrite("$model/config.json", sub { substr $_[0], 0, 100 });
refused('broken config.json', $model, qr/config\.json/);

$model = model_copy();
unlink "$model/config.json";
refused('no config.json', $model, qr/config\.json/);

$model = model_copy();
rewrite("$model/config.json", sub { $_[0] =~ s/"qwen3"/"mamba9"/r =~ s/Qwen3ForCausalLM/Mamba9ForCausalLM/r });
refused('unknown architecture', $model, qr/[Mm]amba9/);
refused('an architecture that is not supported yet', "$data/golden/qwen3_moe", qr/qwen3_?moe/i);

$model = model_copy();
truncate "$model/model.safetensors", 1_000_000;
refused('truncated weights', $model, qr/model\.safetensors/);

$model = model_copy();
rewrite("$model/model.safetensors", sub { "\xff" x 16 . substr $_[0], 16 });
refused('broken weights', $model, qr/model\.safetensors/);

$model = model_copy();
unlink "$model/model.safetensors";
refused('no weights', $model, qr/safetensors/);

$model = model_copy();
rewrite("$model/tokenizer.json", sub { substr $_[0], 0, 5000 });
refused('broken tokenizer', $model, qr/tokenizer\.json/);

refused('too big', $good, qr/memory|fit/, 'qwen.kv_memory' => '4096GiB');
refused('a setting out of range', $good, qr/max.model.len|context|position/, 'qwen.kv_memory' => 'auto', 'qwen.max_model_len' => 1_000_000);

# And mended.
$node->reload_with('qwen.model' => $good, 'qwen.kv_memory' => 'auto', 'qwen.max_model_len' => 0);
$node->wait_ready;
is($node->safe_psql('postgres', $ask), 42, 'the right setting and qwen_reload() mend it');

# A call that waits for the model while it is refused fails at once, not after qwen.wait_ready.
my $engine = $node->engine_pid;
$node->append_conf('postgresql.conf', "qwen.model = '$model'");
$node->safe_psql('postgres', "SELECT qwen_reload()");
like($node->error_of("SET qwen.wait_ready = '1h'; $ask"), qr/^55000 the model could not be loaded/,
	'a call does not wait for a model that cannot come');

$node->leaves_nothing;
done_testing();
