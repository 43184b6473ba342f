# What a role without privileges can see and do, which one session alone cannot show.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $node = QwenNode->create('main');

$node->safe_psql('postgres', 'CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE watch LOGIN IN ROLE pg_read_all_stats');

my $alice = 'SET SESSION AUTHORIZATION alice;';
like($node->error_of("$alice SELECT qwen_generate('x')"), qr/^42501 /, 'nobody may call without a grant');
like($node->error_of("$alice SELECT qwen_reload()"), qr/^42501 /, 'nor reload');
$node->safe_psql('postgres', "SELECT qwen_grant_usage('alice'), qwen_grant_usage('bob'), qwen_grant_usage('watch')");
is($node->safe_psql('postgres', "$alice SELECT qwen_generate('What is 17 + 25?')"), 42, 'with a grant one may call');
like($node->error_of("$alice SELECT qwen_reload()"), qr/^42501 /, 'and still not reload');
like($node->error_of("$alice SET qwen.model = '/tmp'"), qr/^55P02 /, 'nor choose the model');
like($node->error_of("$alice SET qwen.priority = 'interactive'"), qr/^42501 /, 'nor raise the priority');
like($node->error_of("$alice SET qwen.log_prompts = on"), qr/^42501 /, 'nor have prompts logged');

# Requests of others.
my $holder = $node->background_psql('postgres');
$holder->query_safe("$alice BEGIN; DECLARE c CURSOR FOR $QwenNode::ENDLESS; MOVE 1 FROM c");
my $see = 'SELECT count(*) FROM qwen_requests';
is($node->safe_psql('postgres', "$alice $see"), 1, 'one sees one\'s own requests');
is($node->safe_psql('postgres', "SET SESSION AUTHORIZATION bob; $see"), 0, 'not those of others');
is($node->safe_psql('postgres', "SET SESSION AUTHORIZATION watch; $see"), 1, 'but pg_read_all_stats does');
is($node->safe_psql('postgres', $see), 1, 'and so does a superuser');
$holder->quit;

# Prompts are nobody's business.
$node->safe_psql('postgres', "SET log_statement = 'none'; SELECT qwen_generate('my secret is rosebud')");
unlike(slurp_file($node->logfile), qr/rosebud/, 'prompts are not logged');

$node->safe_psql('postgres', "SELECT qwen_revoke_usage('alice')");
like($node->error_of("$alice SELECT qwen_generate('x')"), qr/^42501 /, 'what was granted can be revoked');

$node->is_idle;
$node->leaves_nothing;
done_testing();
