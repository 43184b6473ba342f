# Statements with many calls under way, where there are few places for them: nobody waits for a place while holding one,
# what is not wanted any more gives its places back, and memory is bounded.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;

my $node = QwenNode->create('main', 'qwen.max_requests' => 6, 'qwen.queue_timeout' => '20s');
my $plain = 'SET qwen.batch_scan = off;';
my $prompts = "(SELECT 'What is ' || i || ' + 1?' AS body, i FROM generate_series(1, 60) i) AS prompts";

# ---- two nodes that take places from each other, in several sessions ----

my $nested = "SELECT string_agg(qwen_generate('Say: ' || qwen_generate(body)), '|' ORDER BY i) FROM $prompts";
my $mixed = "SELECT string_agg(CASE WHEN i % 2 = 0 THEN qwen_complete(body || g, max_tokens => 3) ELSE g END, '|' ORDER BY i)
	FROM (SELECT i, body, qwen_generate(body) AS g FROM $prompts OFFSET 0) AS s";
my %expected = map { $_ => $node->safe_psql('postgres', "$plain $_") } $nested, $mixed;
my @jobs = map { { sql => $_, job => $node->begin_sql($_) } } ($nested, $mixed) x 3;

foreach (@jobs)
{
	my $job = $node->end_sql($_->{job});

	is($job->{err}, '', 'no statement waits in vain');
	is($job->{out}, $expected{ $_->{sql} }, 'and all answers are right');
}
$node->is_idle;

# ---- what is not wanted any more ----

# Three short answers, then long ones that nobody will wait for.
my $text = "SELECT qwen_generate(CASE WHEN i < 4 THEN 'What is 17 + 25?' ELSE 'Describe these countries: France, Japan.' END,
	max_tokens => CASE WHEN i < 4 THEN 5 ELSE 1900 END,
	temperature => CASE WHEN i < 4 THEN 0 ELSE 100 END,
	seed => 5) AS g FROM generate_series(1, 50) AS i";
my $cursor = "DECLARE c CURSOR FOR $text; FETCH 3 FROM c";
my $session = $node->background_psql('postgres', on_error_stop => 0);

is($session->query_safe("BEGIN; $cursor"), "42\n42\n42", 'a cursor gives what it was asked for');
$node->wait_until('SELECT count(*) > 0 FROM qwen_requests', 'and has asked for more');
$session->query_safe('CLOSE c; COMMIT');
$node->is_idle('nothing is left of a cursor that is closed');
$session->query_safe("BEGIN; $cursor; ROLLBACK");
$node->is_idle('nor of a transaction that is rolled back');
$session->query_safe("BEGIN; SAVEPOINT s; $cursor; ROLLBACK TO s");
$node->is_idle('nor of a savepoint');
$session->query_safe('COMMIT');
$session->quit;

like($node->error_of("SET statement_timeout = '1s'; $text"), qr/^57014 /, 'a statement that takes too long');
$node->is_idle;
like($node->error_of("SELECT 1 / (g <> '42')::int FROM ($text) AS s"), qr/^22012 /, 'an error elsewhere');
$node->is_idle;
is($node->safe_psql('postgres', <<~SQL), '0', 'a LIMIT: what it does not need is given back when the rows are there, before triggers run');
	CREATE TABLE taken (answer text);
	CREATE FUNCTION count_requests() RETURNS trigger LANGUAGE plpgsql AS \$\$
	BEGIN
		CREATE TABLE seen AS SELECT count(*) FROM qwen_requests WHERE state <> 'cancelled';
		RETURN NULL;
	END
	\$\$;
	CREATE TRIGGER t AFTER INSERT ON taken FOR EACH STATEMENT EXECUTE FUNCTION count_requests();
	INSERT INTO taken SELECT g FROM ($text OFFSET 0) AS s WHERE g = '42' LIMIT 3;
	SELECT * FROM seen;
	SQL
$node->is_idle;

# A statement without a portal of its own, of which two rows are read.
my $two = $text =~ s/i < 4/i < 3/gr;

is($node->safe_psql('postgres', <<~SQL), '42 0', 'a statement inside another one gives back all at its end');
	SET client_min_messages = error;
	SET plpgsql.extra_warnings = too_many_rows;
	CREATE FUNCTION first() RETURNS text LANGUAGE plpgsql AS \$\$
	DECLARE
		answer text;
		n int;
	BEGIN
		$two INTO answer;
		SELECT count(*) INTO n FROM qwen_requests WHERE state <> 'cancelled';
		RETURN answer || ' ' || n;
	END
	\$\$;
	SELECT first();
	SQL
$node->is_idle;

# ---- memory ----

# Rows of 100 kB when there are 64 kB: one at a time, whatever qwen.batch_rows says.
$node->safe_psql('postgres', q{
	CREATE TABLE fat AS SELECT i, string_agg(md5(i || '.' || j), '') AS fat
	FROM generate_series(1, 10) AS i, generate_series(1, 3200) AS j GROUP BY i ORDER BY i});
my $explain = q{EXPLAIN (ANALYZE, COSTS OFF) SELECT qwen_generate('What is ' || i || ' + 1?'), fat || '' FROM (SELECT i, fat || '' AS fat FROM fat OFFSET 0) AS s};

like($node->safe_psql('postgres', "SET work_mem = '64kB'; $explain"), qr/Mean Batch: 1\.0/, 'rows that are large');
unlike($node->safe_psql('postgres', "SET work_mem = '64MB'; $explain"), qr/Mean Batch: 1\.0/, 'with more memory');

$node->leaves_nothing;
done_testing();
