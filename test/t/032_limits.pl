# A plan that leaves nothing over, and requests that use all of it: prompts and answers that fill the context to the
# last token, more of them than the cache holds. None fails, each gets the answer that it gets in quiet times, it is one
# engine from beginning to end, and its memory stays within the plan. What is beyond the limits is refused at once.
#
#	LIMIT_REQUESTS	how many on each map (200); a long run takes 10000
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use QwenNode;
use Test::More;
use Time::HiRes qw(usleep);

my $requests = $ENV{LIMIT_REQUESTS} || 200;
my $sessions = 8;
my $context = 128;
my $fitting = 4; # sequences of full length that the cache holds
my $block = 32768; # bytes that 16 tokens take in the cache

my $node = QwenNode->create(
	'main',
	'qwen.max_model_len' => $context,
	'qwen.max_sequences' => 8,
	'qwen.max_requests' => 64,
	'qwen.queue_memory' => '2MB',
	'qwen.threads' => 2);

sub value { return $node->safe_psql('postgres', $_[0]) }

# ---- quiet times ----

# All of them fill the context: prompts of all lengths, half of them with the same beginning, and answers of what is left.
# At a temperature of 100 hardly any answer ends by itself.
value(q{
	CREATE TABLE work AS
	SELECT i AS id,
		   CASE WHEN i % 2 = 0 THEN repeat('Of what is known by now, little is new. ', 2) ELSE '' END
			   || repeat(i || ' times as much. ', (ARRAY[1, 3, 10, 15])[1 + i % 4]) AS prompt,
		   CASE WHEN i % 3 > 0 THEN 100 ELSE 0 END AS temperature,
		   i AS seed, 0 AS max_tokens, NULL::text AS answer
	FROM generate_series(1, 24) AS i;
	CREATE TABLE outcome (n int, right_ones int);
	CREATE SEQUENCE taken;
	CREATE PROCEDURE press(requests int, chance float8) LANGUAGE plpgsql AS $$
	DECLARE
		wanted int;
		found int;
	BEGIN
		PERFORM setseed(chance);
		LOOP
			wanted := 1 + random() * 8;
			EXIT WHEN (SELECT max(nextval('taken')) > requests FROM generate_series(1, wanted));
			SELECT count(*) FILTER (WHERE qwen_complete(prompt, max_tokens => max_tokens, temperature => temperature,
														seed => seed) = answer) INTO found
			FROM (SELECT * FROM work ORDER BY random() LIMIT wanted) AS picked;
			INSERT INTO outcome VALUES (wanted, found);
			COMMIT;
		END LOOP;
	END $$});
value("UPDATE work SET max_tokens = $context - qwen_token_count(prompt)");
is(value("SELECT min(max_tokens) < $context / 4 AND max(max_tokens) > $context * 3 / 4 FROM work"),
	't', 'long prompts and long answers');
value('SET qwen.batch_scan = off; UPDATE work SET answer =
	qwen_complete(prompt, max_tokens => max_tokens, temperature => temperature, seed => seed)');
is(value('SELECT count(answer) FROM work'), 24, 'the undisturbed answers');

# ---- under pressure ----

# Kilobytes of a process that are no page cache.
sub resident
{
	my ($pid) = @_;
	my $sum = 0;

	$sum += $_ foreach slurp_file("/proc/$pid/status") =~ /^(?:RssAnon|RssShmem|VmSwap):\s+(\d+)/mg;
	return $sum;
}

# Opens as many endless answers as there are seats, so that whoever comes has to wait; gives their session.
sub take_all_seats
{
	my $session = $node->background_psql('postgres');

	$session->query_safe('BEGIN');
	$session->query_safe(
		"DECLARE c$_ CURSOR FOR SELECT qwen_stream('$_', max_tokens => 100, temperature => 100, seed => $_); MOVE 1 FROM c$_")
	  foreach 1 .. 8;
	return $session;
}

sub press
{
	my ($name, $memory) = @_;
	my $engine = $node->engine_pid;
	my ($peak, $most_blocks) = (0, 0);
	my $planned = value('SELECT sum(planned_bytes) FROM qwen_devices') / 1024;
	my $watch = $node->background_psql('postgres');
	my @jobs;

	# Its time limit is for a query, not for all of them.
	$watch->set_query_timer_restart;
	value("TRUNCATE outcome; SELECT setval('taken', 1, false)");
	@jobs = map { $node->begin_sql("CALL press($requests, 0.$_)") } 1 .. $sessions;
	while (grep { $_->{harness}->pumpable } @jobs)
	{
		my $now = resident($engine);
		my $blocks = $watch->query_safe('SELECT kv_blocks_used FROM qwen_stat_engine');

		$peak = $now if $now > $peak;
		$most_blocks = $blocks if $blocks > $most_blocks;
		usleep(20_000);
	}
	$watch->quit;
	is(join('', map { $node->end_sql($_)->{err} } @jobs), '', "$name: nothing failed");
	note("$name: " . value('SELECT sum(n) FROM outcome') . " requests, " .
		value('SELECT preemptions FROM qwen_stat_engine') . ' of them started again');
	is(value('SELECT count(*) FROM outcome WHERE right_ones < n'), 0, "$name: answers are what they are in quiet times");
	cmp_ok(value('SELECT sum(n) FROM outcome'), '>', $requests * 0.8, "$name: and they are many");
	is($node->engine_pid, $engine, "$name: it was one engine");
	cmp_ok($most_blocks, '>', ($fitting - 1) * $context / 16, "$name: the cache was used, up to $most_blocks blocks");
	cmp_ok(value('SELECT preemptions FROM qwen_stat_engine'), '>', 0, "$name: and it was too small for all");
	cmp_ok($peak, '<=', $planned, "$name: resident memory, at most $peak kB, is within the plan of $planned kB");
	cmp_ok($planned - $peak, '<', 24 * 1024, "$name: and not far below it");
}

# Beyond the limits, with everybody else in the way.
sub go_beyond
{
	my ($name) = @_;
	my $seats = take_all_seats();
	my $long = join ' ', map { "$_" } 1 .. $context;
	my $one_more = "SELECT qwen_complete(prompt, max_tokens => max_tokens + 1) FROM work WHERE id = 1";
	my $tokens = value('SELECT qwen_token_count(prompt) FROM work WHERE id = 1');
	my $n_long = value("SELECT qwen_token_count('$long')");
	my $error = $node->end_sql($node->begin_sql($one_more))->{err};

	like($error, qr/prompt and max_tokens together are longer than the context/, "$name: one token too many is refused");
	my ($needed, $answer) = ($context + 1, $context + 1 - $tokens);
	like($error, qr/It needs $needed tokens, $tokens for the prompt and $answer .* the context holds $context\./,
		"$name: with all numbers");
	like($node->end_sql($node->begin_sql("SELECT qwen_complete('$long')"))->{err},
		qr/takes $n_long tokens .* the context holds $context\./, "$name: and so is a prompt that is too long");
	is(value('SELECT count(*) FROM qwen_requests'), 8, "$name: while all seats were taken");
	$seats->query_safe('ROLLBACK');
	$seats->quit;
	$node->is_idle;
}

# The least memory that is enough, as the plan itself says, and what is one byte less.
sub tighten
{
	my ($name, $map, @devices) = @_;
	my $kv = $fitting * $context / 16 * $block;
	my $roomy = join ',', map { "$_=1GiB" } @devices;
	my $plan = "FROM qwen_plan(device_map => '$map', kv_memory => '$kv', max_memory => ";
	my @bytes = split /\n/,
	  value("SELECT available_bytes - free_bytes $plan '$roomy') WHERE device <> 'total' ORDER BY device");
	my @limits = map { "$devices[$_]=$bytes[$_]" } 0 .. $#devices;
	my $enough = join ',', @limits;
	my $less = join ',', @limits[ 0 .. $#devices - 1 ], "$devices[-1]=" . ($bytes[-1] - 1);

	is(value("SELECT fits, full_sequences $plan '$enough') WHERE device = 'total'"),
		"t|$fitting", "$name: room for $fitting sequences");
	is(value("SELECT fits, missing_bytes $plan '$less') WHERE device = '$devices[-1]'"),
		'f|1', "$name: and not a byte to spare");
	$node->reload_with('qwen.device_map' => $map, 'qwen.kv_memory' => $kv, 'qwen.max_memory' => $enough);
	$node->wait_ready;
	is(value('SELECT sum(planned_bytes - budget_bytes) FROM qwen_devices'), 0, "$name: the engine took the plan");
	$node->wait_until("SELECT kv_blocks = $fitting * $context / 16 FROM qwen_stat_engine", "$name: and its cache");
}

tighten('one device', 'cpu:0', 'cpu:0');
press('one device');
go_beyond('one device');

my $two = '{"embed": "cpu:0", "layers": {"0-1": "cpu:0", "2-3": "cpu:1"}, "head": "cpu:1"}';
tighten('two devices', $two, 'cpu:0', 'cpu:1');
press('two devices');
go_beyond('two devices');

is($node->status('restarts'), 0, 'no engine died');
$node->leaves_nothing;
done_testing();
