# Several devices: answers do not depend on the map, the views tell what is where, also while a model is loaded, and a
# model that does not fit is refused with settings that help.
use strict;
use warnings;

use File::Copy qw(copy);
use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $demo = "$ENV{TESTDIR}/data/demo-model";
my $node = QwenNode->create('main', 'qwen.max_sequences' => 8);
my $answers = $node->load_docs;

sub rows { $node->safe_psql('postgres', $_[0]) }

my $holdings = 'SELECT device, layers, loaded_bytes = weights_bytes FROM qwen_devices ORDER BY device';
my $places = q{SELECT string_agg(concat(item, layer, '=', device), ' ' ORDER BY ordinal, device) FROM qwen_device_map};

is(rows($holdings), 'cpu|4|t', 'one processor is one device');

# ---- layers, then shards of layers ----

$node->reload_with(
	'qwen.device_map' => '{"embed": "cpu:0", "layers": {"0-2": "cpu:1", "3": "cpu:2"}, "head": "cpu:0"}',
	'qwen.max_memory' => 'cpu:0=1GiB,cpu:1=1GiB,cpu:2=1GiB');
$node->wait_ready;
is($node->answers, $answers, 'the same answers from three devices');
is(rows($holdings), "cpu:0|0|t\ncpu:1|3|t\ncpu:2|1|t", 'each has what the map says');
is(rows($places), 'embed=cpu:0 layer0=cpu:1 layer1=cpu:1 layer2=cpu:1 layer3=cpu:2 head=cpu:0', 'the map');
is($node->status('device'), 'cpu:0, cpu:1, cpu:2', 'and status names them');

$node->reload_with('qwen.device_map' => 'auto', 'qwen.max_memory' => 'cpu:0=1GiB,cpu:1=1GiB', 'qwen.tensor_parallel' => 2);
$node->wait_ready;
is($node->answers, $answers, 'the same answers from two shards');
is(rows($holdings), "cpu:0|4|t\ncpu:1|4|t", 'both have every layer');
is(rows(q{SELECT count(*), count(DISTINCT weights_bytes) FROM qwen_device_map WHERE item = 'layer'}), '8|1',
	'in equal parts');

# ---- what does not fit, and what helps ----

$node->reload_with('qwen.tensor_parallel' => 1, 'qwen.max_memory' => 'cpu=24MiB');
$node->wait_for_state('failed');
like($node->status('last_error'), qr/device cpu lacks .*Exactly \d+ bytes are missing/, 'a refusal with device and bytes');
is(rows('SELECT count(*) FROM qwen_devices'), 0, 'nothing is on a device');
my $remedy = rows(q{SELECT remedies[1] FROM qwen_plan() WHERE device = 'total'});
like($remedy, qr/^ALTER SYSTEM SET qwen\./, 'qwen_plan() knows a remedy');
rows($remedy);
rows('SELECT qwen_reload()');
$node->wait_ready;
is($node->answers, $answers, "which does: $remedy");
rows('ALTER SYSTEM RESET ALL');

# ---- while a model is loaded ----

# A model of zeros whose file takes no room: 28 layers of 15.7 million weights.
sub large_model
{
	my $dir = PostgreSQL::Test::Utils::tempdir('large');
	my $at = 0;
	my @header;
	my $add = sub {
		my ($name, @shape) = @_;
		my $begin = $at;

		$at += 2 * $shape[0] * ($shape[1] // 1);
		push @header, sprintf '"%s":{"dtype":"BF16","shape":[%s],"data_offsets":[%d,%d]}', $name, join(',', @shape), $begin, $at;
	};

	copy($_, $dir) or die "$_: $!" foreach grep { !/config\.json$|safetensors$/ } glob "$demo/*.json";
	open my $config, '>', "$dir/config.json" or die $!;
	print $config '{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 4160, "hidden_size": 1024,
		"intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
		"head_dim": 128, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
		"tie_word_embeddings": true, "torch_dtype": "bfloat16"}';
	close $config;
	$add->('model.embed_tokens.weight', 4160, 1024);
	foreach my $layer (map { "model.layers.$_" } 0 .. 27)
	{
		$add->("$layer.input_layernorm.weight", 1024);
		$add->("$layer.post_attention_layernorm.weight", 1024);
		$add->("$layer.self_attn.$_->[0]_proj.weight", @$_[ 1, 2 ])
		  foreach [ 'q', 2048, 1024 ], [ 'k', 1024, 1024 ], [ 'v', 1024, 1024 ], [ 'o', 1024, 2048 ];
		$add->("$layer.self_attn.${_}_norm.weight", 128) foreach 'q', 'k';
		$add->("$layer.mlp.$_->[0]_proj.weight", @$_[ 1, 2 ])
		  foreach [ 'gate', 3072, 1024 ], [ 'up', 3072, 1024 ], [ 'down', 1024, 3072 ];
	}
	$add->('model.norm.weight', 1024);
	open my $file, '>:raw', "$dir/model.safetensors" or die $!;
	my $text = '{' . join(',', @header) . '}';
	print $file pack('Q<', length $text), $text;
	truncate $file, 8 + length($text) + $at or die $!;
	close $file;
	return $dir;
}

my $part = q{SELECT bool_or(loaded_bytes > 0 AND loaded_bytes < weights_bytes) FROM qwen_devices};
my $seen = $node->begin_sql(qq{SET statement_timeout = '180s'; DO \$\$ BEGIN WHILE ($part) IS NOT TRUE LOOP END LOOP; END \$\$});
my $model = large_model();

$node->reload_with('qwen.model' => $model, 'qwen.device_map' => 'balanced', 'qwen.max_memory' => 'cpu:0=2GiB,cpu:1=2GiB',
	'qwen.threads' => 1);
is($node->end_sql($seen)->{status}, 0, 'another session sees devices that are loaded in part');
my $engine = $node->status('engine_pid');
kill 'STOP', $engine;
is(rows($part), 't', 'and so do we');
is(rows('SELECT bool_and(used_bytes >= loaded_bytes + kv_bytes AND planned_bytes > used_bytes) FROM qwen_devices'),
	't', 'memory is reserved as planned');
cmp_ok($node->status('load_progress'), '<', 1, 'status says how far it is');
kill 'CONT', $engine;
$node->wait_ready;
is(rows($holdings), "cpu:0|14|t\ncpu:1|14|t", 'then everything is there');

$node->is_idle;
$node->leaves_nothing;
done_testing();
