# kill -9 of the engine every second for a minute under sixteen sessions: no statement fails, the server does not
# restart, nothing leaks, and all answers are what they are in quiet times.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;
use Time::HiRes qw(time usleep);

my $sessions = 16;
my $seconds = $ENV{QWEN_STORM_SECONDS} // 60;
my $node = QwenNode->create('main', log_min_messages => 'log');
my $answers = $node->load_docs;
my $started = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');

$node->safe_psql(
	'postgres', q{
	CREATE TABLE expected AS SELECT id, qwen_generate(prompt) AS answer FROM docs;
	CREATE TABLE rounds (session int, round int, wrong int);
	CREATE PROCEDURE storm(this_session int, until timestamptz) LANGUAGE plpgsql AS $$
	DECLARE this_round int := 0;
	BEGIN
		WHILE clock_timestamp() < until LOOP
			this_round := this_round + 1;
			INSERT INTO rounds
			SELECT this_session, this_round, count(*) FILTER (WHERE qwen_generate(prompt) IS DISTINCT FROM answer)
			FROM docs JOIN expected USING (id);
			COMMIT;
		END LOOP;
	END $$});

my $until = time + $seconds;
my @jobs = map { $node->begin_sql("CALL storm($_, to_timestamp($until))") } 1 .. $sessions;

# The rhythm is the test: it waits for nothing.
my $kills = 0;
while (time < $until)
{
	my $pid = $node->status('engine_pid');

	$node->{qwen_engines}{$pid} = 1 if $pid;
	$kills += kill 'KILL', $pid if $pid;
	usleep(1_000_000);
}

my @failed = grep { $node->end_sql($_)->{status} != 0 } @jobs;
is(scalar(@failed), 0, 'no statement failed') or diag($failed[0]{err});
cmp_ok($kills, '>=', $seconds / 2, "the engine was killed again and again ($kills times)");
is($node->safe_psql('postgres', 'SELECT count(DISTINCT session), sum(wrong) FROM rounds'),
	"$sessions|0", 'all answers are what they are in quiet times');
note($node->safe_psql('postgres', 'SELECT count(*) FROM rounds') . ' rounds of the table');
is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'), $started, 'the server did not restart');
unlike(slurp_file($node->logfile), qr/all server processes terminated|reinitializing/, 'nor did its processes');
is($node->answers, $answers, 'the next answers are the same');
$node->is_idle;
$node->leaves_nothing;
done_testing();
