# Prompts are data: the server log has them only when a superuser says so.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

# The server's own tests log all statements.
my $node = QwenNode->create('main', log_statement => 'none');
my $chat = '[{"role": "user", "content": "a confidential question"}]';
my $ask = "SELECT qwen_generate(prompt, on_error => 'null'), qwen_chat('$chat') FROM secrets";

# One of the prompts is refused.
$node->safe_psql('postgres', q{
	CREATE TABLE secrets (prompt text);
	INSERT INTO secrets VALUES ('a secret question'), (repeat('a secret question', 5000))});
$node->safe_psql('postgres', $ask);
like($node->error_of('SELECT qwen_generate(prompt) FROM secrets'), qr/^54000 /, 'a prompt that is refused');
unlike(slurp_file($node->logfile), qr/a secret question|confidential/, 'no prompt in the log by default');

$node->safe_psql('postgres', "SET qwen.log_prompts = on; $ask");
like(slurp_file($node->logfile), qr/LOG:  qwen prompt: a secret question$/m, 'with qwen.log_prompts they are logged');
like(slurp_file($node->logfile), qr/LOG:  qwen prompt: .*a confidential question/, 'those of chats too');

$node->is_idle;
$node->leaves_nothing;
done_testing();
