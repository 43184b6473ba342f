# A server whose engine has the CUDA plug-in, on emulated GPUs: who maps it, a GPU that fails for good in the middle of
# requests, and a driver that does not answer.
use strict;
use warnings;

use PostgreSQL::Test::Utils qw(slurp_file);
use QwenNode;
use Test::More;

# A loaded engine has started some 40 kernels, and an answer to one of the prompts below takes about 500.
my $LAST_KERNEL = 3000;

$ENV{QWEN_EMULATED_GPUS} = 2;
$ENV{QWEN_EMULATED_GPU_BYTES} = 512 << 20;

my $node = QwenNode->create('main', 'qwen.device_map' => 'cpu', 'qwen.kv_memory' => '4MB');
my $prompts = q{(SELECT id, prompt FROM docs ORDER BY id LIMIT 4) AS d};
my $ask = "SELECT id, qwen_generate(prompt, max_tokens => 8) FROM $prompts";
$node->load_docs;
my $answers = $node->safe_psql('postgres', $ask);

# Whether a process has mapped a file whose name fits.
sub maps
{
	my ($pid, $name) = @_;

	return slurp_file("/proc/$pid/maps") =~ $name ? 1 : 0;
}

# ---- on a GPU ----

$node->reload_with('qwen.device_map' => 'cuda:0');
$node->wait_ready;
is($node->safe_psql('postgres', $ask), $answers, 'a GPU gives the answers of the processor');
is($node->safe_psql('postgres', "SELECT device, layers, loaded_bytes = weights_bytes FROM qwen_devices WHERE kind = 'cuda'
	ORDER BY device"), "cuda:0|4|t\ncuda:1|0|t", 'the view tells of the GPUs');

my $session = $node->background_psql('postgres');
my $backend = $session->query_safe("SELECT pg_backend_pid() FROM $prompts WHERE qwen_generate(prompt, max_tokens => 1) <> '' LIMIT 1");
my $worker = $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type ~ 'qwen'});
my $gpu = qr/qwen_cuda|libcu|libnccl/;
is(maps($node->engine_pid, $gpu), 1, 'the engine has mapped the plug-in');
is(join(' ', map { maps($_, $gpu) } $backend, $worker, $node->{_pid}), '0 0 0', 'no process of the server has');
$session->quit;

$node->reload_with('qwen.device_map' => 'balanced');
$node->wait_ready;
is($node->safe_psql('postgres', $ask), $answers, 'two GPUs give the same answers');

# ---- a GPU that fails ----

$node->stop;
{
	local $ENV{QWEN_EMULATED_GPU_FAULT} = $LAST_KERNEL;
	$node->start;
}
my $wrong = 0;
for my $i (1 .. 100)
{
	$wrong++ if $node->safe_psql('postgres', $ask) ne $answers;
	last if $node->status('restarts') >= 2;
}
cmp_ok($node->status('restarts'), '>=', 2, 'engines ended with their GPU, and others took their place');
is($wrong, 0, 'with the answers of statements that it happened to');
like(slurp_file($node->logfile), qr/qwen-engine: cuda:0: .+/, 'the log has what the GPU said');

# ---- a driver that fails ----

$node->stop;
$node->append_conf('postgresql.conf', "qwen.device_map = 'auto'");
{
	local $ENV{QWEN_EMULATED_GPU_BROKEN} = 1;
	$node->start;
}
$node->wait_ready;
is($node->status('device'), 'cpu', 'a map that allows it falls back to the processor');
like(slurp_file($node->logfile), qr/no GPU is used: .+/, 'which the log says, and why');
is($node->safe_psql('postgres', $ask), $answers, 'with the same answers');
$node->reload_with('qwen.device_map' => 'cuda:0');
$node->wait_until(q{SELECT last_error LIKE '%CUDA%' FROM qwen_status()}, 'a map of GPUs alone is refused with the reason');

$node->leaves_nothing;
done_testing();
