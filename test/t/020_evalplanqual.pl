# Statements that wait for a row that another one is changing, and then look at its new version: with calls of many rows
# under way the answer is still that to the new version, and no row is left out.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $node = QwenNode->create('main');
my $first = $node->background_psql('postgres');

# Has `first` change the rows, lets SQL wait for that, and gives what it returns after `first` has committed.
sub after
{
	my ($change, $sql) = @_;
	my $job;

	$node->safe_psql('postgres',
		"DROP TABLE IF EXISTS docs; CREATE TABLE docs AS SELECT i AS id, 'What is ' || i || ' + 1?' AS body, NULL AS answer FROM generate_series(1, 5) i");
	$first->query_safe("BEGIN; $change");
	$job = $node->begin_sql("SET qwen.debug_require_batch = on; $sql");
	$node->wait_until("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock')", 'it waits');
	$first->query_safe('COMMIT');
	return $node->end_sql($job)->{out};
}

my $rows = 'SELECT id, answer FROM docs ORDER BY id';
my $change = "UPDATE docs SET body = 'What is 20 + 20?' WHERE id = 3";

is( after($change, "UPDATE docs SET answer = qwen_generate(body); $rows"),
	"1|2\n2|3\n3|40\n4|5\n5|6", 'the answer that is written is that to the new version');
is( after($change, "UPDATE docs SET answer = 'found' WHERE qwen_generate(body) IN ('3', '4', '5'); $rows"),
	"1|\n2|found\n3|\n4|found\n5|", 'a row that meets the condition no more is left alone');
is( after("UPDATE docs SET answer = 'was ' WHERE id = 3", "UPDATE docs SET answer = answer || qwen_generate('Say: ' || qwen_generate(body)) WHERE qwen_generate(body) = '4'; SELECT answer LIKE 'was %' FROM docs WHERE id = 3"),
	't', 'a row that still meets it is changed, with nested calls');
is(after($change, "DELETE FROM docs WHERE qwen_generate(body) = '4'; SELECT count(*) FROM docs"),
	5, 'the same for DELETE');
is( after($change, "SELECT id, qwen_generate(body) FROM docs WHERE id > 1 FOR UPDATE"),
	"2|3\n3|40\n4|5\n5|6", 'rows that are locked');
is( after("$change; DELETE FROM docs WHERE id = 4", "UPDATE docs d SET answer = qwen_generate(d.body || e.note) FROM (VALUES (2, ''), (3, ''), (4, '')) AS e (id, note) WHERE d.id = e.id; $rows"),
	"1|\n2|3\n3|40\n5|", 'with a join, and a row that is gone');

is( after($change, "UPDATE docs d SET answer = 'found' FROM (VALUES (2, ''), (3, ''), (4, '')) AS e (id, note) WHERE d.id = e.id AND qwen_generate(d.body || e.note) IN ('3', '4', '5'); $rows"),
	"1|\n2|found\n3|\n4|found\n5|", 'a condition of the join');

$first->quit;
$node->leaves_nothing;
done_testing();
