# A program that makes a plan and does not come to its end holds nobody up: who asked for the plan can be cancelled and
# terminated, and the program goes with them.
use strict;
use warnings;

use PostgreSQL::Test::Utils qw(slurp_file);
use QwenNode;
use Test::More;

my $node = QwenNode->create('main');

# What stands in a file of /proc; '' when the process has gone.
sub proc
{
	my ($pid, $file) = @_;

	return eval { slurp_file("/proc/$pid/$file") } // '';
}

# The program that a backend waits for, stopped in the middle of its work. It lives for milliseconds, so that most are
# missed, and is left alone before it is the program: until then the backend is in the same call.
sub stop_program
{
	my ($backend) = @_;
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;

	while (time < $until)
	{
		foreach my $pid (map { m{(\d+)} } glob '/proc/[0-9]*')
		{
			next unless proc($pid, 'stat') =~ /\) \w $backend / && proc($pid, 'cmdline') =~ /qwen-engine\0plan/;
			kill 'STOP', $pid;
			1 while proc($pid, 'stat') =~ /\) [RSD] /;
			return $pid if proc($pid, 'stat') =~ /\) T /;
		}
	}
	BAIL_OUT('no program could be stopped');
}

# A session that asks for plans until it is ended, what ends it, and how it takes that.
sub ends
{
	my ($what, $settings, $end, $expected) = @_;
	my $job = $node->begin_sql("$settings; DO \$\$ BEGIN LOOP PERFORM qwen_plan_json(); END LOOP; END \$\$");
	my $active =
	  q{FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%LOOP PERFORM%' AND pid <> pg_backend_pid()};
	my ($backend, $program);

	$node->wait_until("SELECT count(*) = 1 $active", "$what: a session asks for plans");
	$backend = $node->safe_psql('postgres', "SELECT pid $active");
	$program = stop_program($backend);
	$node->safe_psql('postgres', "SELECT $end($backend)") if $end;
	like($node->end_sql($job)->{err}, $expected, "$what ends it, although the program stands still");
	$node->wait_for_exit($program, "$what: and the program has gone");
}

ends('cancel', 'SELECT', 'pg_cancel_backend', qr/57014: +canceling statement due to user request/);
ends('terminate', 'SELECT', 'pg_terminate_backend', qr/57P01/);
ends('statement_timeout', "SET statement_timeout = '3s'",
	undef, qr/57014: +canceling statement due to statement timeout/);

is($node->safe_psql('postgres', 'SELECT bool_and(fits) FROM qwen_plan()'), 't', 'plans are made as before');
is($node->safe_psql('postgres', q{SELECT count(*) FROM generate_series(1, 200), qwen_plan_json()}),
	200, 'hundreds of them in one statement, without descriptors that stay open');
$node->leaves_nothing;
done_testing();
