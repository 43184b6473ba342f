# Quantized weights and caches: qwen.quantization and qwen.kv_dtype take effect at qwen_reload(), qwen_status() shows
# them, answers are those of the weights as they were published, and a word that is not known leaves everything as it is.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $node = QwenNode->create('main');
my %published = map { split /\|/, $_, 2 } split /\n/, $node->load_docs;
my $types = 'SELECT dtype, quantization, kv_dtype FROM qwen_status()';

sub same_answers
{
	my %now = map { split /\|/, $_, 2 } split /\n/, $node->answers;

	return scalar grep { $now{$_} eq $published{$_} } keys %published;
}

# Loads with these settings; at least that share of the answers must be the published ones.
sub serves
{
	my ($quantization, $kv_dtype, $shown, $share) = @_;
	my $name = "quantization $quantization, kv_dtype $kv_dtype";

	$node->reload_with('qwen.quantization' => $quantization, 'qwen.kv_dtype' => $kv_dtype);
	$node->wait_until("SELECT state = 'ready' AND (dtype, quantization, kv_dtype) = ($shown) FROM qwen_status()", "$name: status shows it")
	  or BAIL_OUT('the engine is not the one that was asked for');
	$node->engine_pid;
	cmp_ok(same_answers(), '>=', $share * keys %published, "$name: answers are as before");
}

is($node->safe_psql('postgres', $types), 'bfloat16|none|bfloat16', 'by default the types are those of the checkpoint');
cmp_ok(scalar(keys %published), '>', 20, 'there are answers to compare with');
serves('int8', 'auto', "'bfloat16', 'int8', 'bfloat16'", 0.95);
serves('int4', 'auto', "'bfloat16', 'int4', 'bfloat16'", 0.8);
serves('none', 'int8', "'bfloat16', 'none', 'int8'", 0.95);
serves('int8', 'int8', "'bfloat16', 'int8', 'int8'", 0.95);

# Words that are not known: refused when they are set, ignored when they stand in the file.
my $engine = $node->engine_pid;
like($node->error_of("ALTER SYSTEM SET qwen.quantization = 'int9'"),
	qr/^22023 invalid value for parameter "qwen.quantization": "int9"/, 'ALTER SYSTEM refuses an unknown type');
$node->append_conf('postgresql.conf', "qwen.kv_dtype = 'bfloat17'");
$node->safe_psql('postgres', 'SELECT qwen_reload()');
is($node->safe_psql('postgres', 'SHOW qwen.kv_dtype'), 'int8', 'an unknown type in the file changes nothing');
like(slurp_file($node->logfile), qr/invalid value for parameter "qwen.kv_dtype": "bfloat17"\n.*int8/,
	'the log says so, with the known ones');

$node->leaves_nothing;
done_testing();
