# Without shared_preload_libraries the extension can be created, and calls say what to do.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $node = QwenNode->create('main', preload => 0);

foreach my $call (
	"qwen_generate('x')", "qwen_generate(ARRAY['x'])", "qwen_complete('x')", "qwen_token_count('x')",
	"qwen_chat('[{\"role\": \"user\", \"content\": \"x\"}]')", "(qwen_stream('x')).piece", "qwen_reload()")
{
	like($node->error_of("SELECT $call"), qr/^55000 qwen must be loaded via shared_preload_libraries/, $call);
}
like($node->end_sql($node->begin_sql("SELECT qwen_generate('x')"))->{err},
	qr/HINT: .*shared_preload_libraries/, 'the hint tells what to do');
is($node->status('state'), 'not preloaded', 'status knows');
is($node->safe_psql('postgres', 'SELECT qwen_generate(NULL::text) IS NULL'), 't', 'NULL needs no model');
is($node->safe_psql('postgres', "LOAD 'qwen'; SHOW qwen.max_tokens"), 512, 'the settings are known once the library is loaded');

# A plan needs no engine, running or not.
is($node->safe_psql('postgres', "SELECT fits FROM qwen_plan() WHERE device = 'total'"), 't', 'plans are made all the same');

# LOAD in a session is not enough, and says so as well.
like($node->error_of("LOAD 'qwen'; SELECT qwen_generate('x')"), qr/^55000 /, 'LOAD is not enough');

# Preloaded at the next start, it works.
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'qwen'");
$node->restart;
is($node->safe_psql('postgres', "SELECT qwen_generate('What is 17 + 25?')"), 42, 'it works once it is preloaded');

$node->leaves_nothing;
done_testing();
