# Thousands of requests of mixed length from many sessions, with cancels, disconnects and engine kills at random. At
# the end all slots, all memory of the queue and all blocks of the KV cache are free, the processes have not grown, and
# every answer that was waited for is what it is in quiet times.
#
#	SOAK_REQUESTS	how many (2000); a long run takes 100000
#	SOAK_SEED		of what happens; printed, to be given again
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;
use Time::HiRes qw(time usleep);

my $requests = $ENV{SOAK_REQUESTS} // 2000;
my $seed = $ENV{SOAK_SEED} // int(time);
my $sessions = 12;
my $slots = 24;

srand($seed);
note("SOAK_SEED=$seed");

# Little of everything, so that requests wait for a slot, for memory in the queue, and for room in the cache.
my $node = QwenNode->create(
	'main',
	max_connections => 60,
	client_connection_check_interval => '100ms',
	'qwen.max_requests' => $slots,
	'qwen.queue_memory' => '2MB',
	'qwen.kv_memory' => '12MB');

# ---- quiet times ----

# Requests from one token to long ones, with and without chance, some of them with a prompt of hundreds of tokens.
$node->safe_psql('postgres', slurp_file("$ENV{TESTDIR}/data/docs.sql"));
$node->safe_psql(
	'postgres', q{
	CREATE TABLE work AS
	SELECT row_number() OVER () AS id,
		   repeat('This is a note about nothing. ', CASE WHEN id % 5 = 0 THEN id ELSE 0 END) || prompt AS prompt,
		   (ARRAY[1, 5, 20, 60, 150])[1 + id % 5] AS max_tokens,
		   CASE WHEN id % 3 = 0 THEN 1.5 ELSE 0 END AS temperature,
		   id AS seed,
		   NULL::text AS answer
	FROM docs;
	UPDATE work SET answer =
		qwen_generate(prompt, max_tokens => max_tokens, temperature => temperature, seed => seed);
	CREATE SEQUENCE taken;
	CREATE TABLE outcome (kind text, n int, right_ones int, sqlstate text)});
is($node->safe_psql('postgres', 'SELECT count(*) > 30 AND count(*) = count(answer) FROM work'),
	't', 'the undisturbed answers');

# What a session does again and again: one request, rows of a table, an array, or a stream that it leaves in the middle.
# Cancels are caught; what else goes wrong is written down.
$node->safe_psql(
	'postgres', q{
	CREATE FUNCTION answer_of(w work) RETURNS text LANGUAGE sql AS $$
		SELECT qwen_generate(w.prompt, max_tokens => w.max_tokens, temperature => w.temperature, seed => w.seed) $$;

	CREATE FUNCTION one_turn(kind int, n int, OUT right_ones int) LANGUAGE plpgsql AS $$
	DECLARE
		w work;
		c refcursor;
		start int := random() * 100;
	BEGIN
		IF kind = 0 THEN
			SELECT * INTO w FROM work ORDER BY random() LIMIT 1;
			right_ones := (answer_of(w) IS NOT DISTINCT FROM w.answer)::int;
		ELSIF kind = 1 THEN
			SELECT count(*) FILTER (WHERE qwen_generate(prompt, max_tokens => max_tokens, temperature => temperature,
														seed => seed) IS NOT DISTINCT FROM answer) INTO right_ones
			FROM (SELECT * FROM work ORDER BY random() LIMIT n) AS picked;
		ELSIF kind = 2 THEN
			SELECT count(*) FILTER (WHERE a IS NOT DISTINCT FROM answer) INTO right_ones
			FROM (SELECT array_agg(prompt) AS prompts, array_agg(answer) AS answers
				  FROM (SELECT prompt, answer FROM work WHERE max_tokens = 20 AND temperature = 0
						ORDER BY random() LIMIT n) AS picked) AS arrays,
				 unnest(answers, qwen_generate(prompts, max_tokens => 20)) AS u (answer, a);
		ELSE
			OPEN c FOR SELECT qwen_stream(prompt, max_tokens => 150) FROM work WHERE id = 1 + start % 30;
			MOVE 2 FROM c;
			CLOSE c;
			right_ones := n;
		END IF;
	END $$;

	CREATE PROCEDURE soak(requests int, seed float8) LANGUAGE plpgsql AS $$
	DECLARE
		kind int;
		n int;
		right_ones int;
		state text;
	BEGIN
		PERFORM setseed(seed);
		LOOP
			kind := random() * 3.99 - 0.5;
			n := CASE kind WHEN 1 THEN 1 + random() * 10 WHEN 2 THEN 5 ELSE 1 END;
			EXIT WHEN (SELECT count(*) FILTER (WHERE nextval('taken') > requests) > 0 FROM generate_series(1, n));
			BEGIN
				state := 'none';
				right_ones := one_turn(kind, n);
			EXCEPTION WHEN query_canceled OR OTHERS THEN
				state := SQLSTATE;
				right_ones := NULL;
			END;
			INSERT INTO outcome VALUES (kind, n, right_ones, state);
			COMMIT;
		END LOOP;
	END $$});

# ---- the storm ----

my @jobs;
my %done = (cancel => 0, terminate => 0, disconnect => 0, kill => 0);
my $watch = $node->background_psql('postgres');

# Its time limit is for a query, not for the whole soak.
$watch->set_query_timer_restart;

sub start_session { return $node->begin_sql("CALL soak($requests, " . rand() . ")") }

# Whether a session still runs; one that was ended by force is followed by another.
sub keep_running
{
	my ($job) = @_;

	return 1 if $job->{harness}->pumpable;
	$node->end_sql($job);
	return 0 if $job->{status} == 0;
	%$job = %{ start_session() };
	return 1;
}

# One of the things that go wrong.
sub disturb
{
	my $dice = rand();
	my $pid = "SELECT pid FROM qwen_requests WHERE pid > 0 ORDER BY random() LIMIT 1";

	if ($dice < 0.7)
	{
		$done{cancel} += $watch->query_safe("SELECT count(*) FILTER (WHERE pg_cancel_backend(pid)) FROM ($pid) AS p");
	}
	elsif ($dice < 0.85)
	{
		$done{terminate} +=
		  $watch->query_safe("SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM ($pid) AS p");
	}
	else
	{
		$jobs[ rand @jobs ]{harness}->kill_kill;
		$done{disconnect}++;
	}
}

# Kills the engine if it has been there for a while, and if no request would lose its third one.  True if it did.
sub kill_engine
{
	my $pid = $watch->query_safe(
		"SELECT engine_pid FROM qwen_status() WHERE state = 'ready' AND uptime > '0.2s'
			AND NOT EXISTS (SELECT FROM qwen_requests WHERE engine_deaths = 2)");

	return 0 unless $pid;
	$node->{qwen_engines}{$pid} = 1;
	return $done{kill} += kill 'KILL', $pid;
}

# Runs the sessions to their end.  Something goes wrong every thirty requests, and the engine is killed soon
# and then every second.
sub storm
{
	my ($upto, $kills) = @_;
	my $next_kill = time + 0.2;
	my $next = 0;

	$requests = $upto;
	@jobs = map { start_session() } 1 .. $sessions;
	while (grep { keep_running($_) } @jobs)
	{
		my $taken = $watch->query_safe('SELECT last_value FROM taken');

		usleep(20_000);
		if ($taken >= $next)
		{
			disturb();
			$next = $taken + 30;
		}
		next unless $kills && time > $next_kill;
		$next_kill = time + (kill_engine() ? 1 : 0.1);
	}
}

# Kilobytes of a process that are its own: not the shared memory, not the mapped model.
sub own_memory
{
	my ($pid) = @_;

	return slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+)/m ? $1 : die "no RssAnon of $pid";
}

my $total = $requests;
my $worker = $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'qwen%'});
my $started = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');

$node->safe_psql('postgres', 'SELECT qwen_stat_reset()');
storm(int($total / 2), 1);
# From here on it is one engine; first it sees everything once, then it must not grow any more.
storm(int($total * 3 / 4), 0);
my $engine = $node->engine_pid;
my ($engine_before, $worker_before) = (own_memory($engine), own_memory($worker));
storm($total, 0);
my ($engine_after, $worker_after) = (own_memory($engine), own_memory($worker));
$watch->quit;

# ---- what is left ----

note(join ', ', map { "$_: $done{$_}" } sort keys %done);
note($node->safe_psql(
		'postgres', 'SELECT kind, sqlstate, sum(n), sum(right_ones) FROM outcome GROUP BY 1, 2 ORDER BY 1, 2'));
is($node->safe_psql('postgres', "SELECT count(*) FROM outcome WHERE sqlstate NOT IN ('none', '57014')"),
	0, 'nothing failed but what was cancelled');
is($node->safe_psql('postgres', 'SELECT count(*) FROM outcome WHERE right_ones < n'),
	0, 'all answers that were waited for are what they are in quiet times');
cmp_ok($node->safe_psql('postgres', 'SELECT sum(right_ones) FROM outcome'),
	'>', $total / 3, 'and they are many');
cmp_ok($done{$_}, '>', 0, "there was a $_ at least") foreach sort keys %done;
is($node->safe_psql('postgres', 'SELECT sum(requests) = sum(answers) + sum(errors) FROM qwen_stat'),
	't', 'each request was counted once');
is( $node->safe_psql(
		'postgres', 'SELECT sum(errors) = sum(errors_cancelled) AND sum(answers) > 0 FROM qwen_stat'),
	't', 'as an answer or as cancelled');

$node->is_idle;
$node->wait_until('SELECT kv_blocks_used = 0 FROM qwen_stat_engine', 'all blocks of the cache are free');
is($node->engine_pid, $engine, 'the engine has lived since the last kill');
cmp_ok($engine_after, '<', $engine_before + 4096, "the engine has not grown: $engine_before kB, $engine_after kB");
cmp_ok($worker_after, '<', $worker_before + 1024, "nor has the worker: $worker_before kB, $worker_after kB");
is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'), $started, 'the server did not restart');
unlike(slurp_file($node->logfile), qr/all server processes terminated|reinitializing/, 'nor did its processes');

# All slots: as many streams as there are, and no more. All memory: a request that needs nearly all of it.
my $all = $node->background_psql('postgres', on_error_stop => 0);
$all->query_safe('BEGIN');
$all->query_safe("DECLARE c$_ CURSOR FOR $QwenNode::ENDLESS; MOVE 1 FROM c$_") foreach 1 .. $slots;
is($node->safe_psql('postgres', 'SELECT count(*) FROM qwen_requests'), $slots, 'all slots can be taken');
$all->query_safe('ROLLBACK');
$all->quit;
is($node->safe_psql('postgres', q{SELECT qwen_token_count(repeat('word ', 370000)) > 0}), 't', 'and all of the memory');
$node->is_idle;
$node->leaves_nothing;
done_testing();
