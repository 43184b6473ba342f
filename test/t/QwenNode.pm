# A server with qwen, and what the tests do to it again and again. An object of this class is a
# PostgreSQL::Test::Cluster with a few methods more.
#
# Nothing here sleeps to let something happen: what has to happen is asked for until it is so, with the time limit of
# the server's own tests.
package QwenNode;

use strict;
use warnings;

use parent -norequire, 'PostgreSQL::Test::Cluster';

use Cwd ();
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils qw(append_to_file slurp_file);
use Test::More;
use Time::HiRes qw(usleep);

# A query for cursors, whose stream fills the window between engine and backend and then waits for its reader for as long
# as that takes: at this temperature words are drawn almost evenly, and this seed does not draw an end.
our $ENDLESS = "SELECT (s).* FROM (SELECT qwen_stream('Describe these countries: France, Japan.',
	max_tokens => 1900, temperature => 100, seed => 5) AS s OFFSET 0) AS stream";

# The same as one long answer.
our $LONG = "qwen_generate('Describe these countries: France, Japan.',
	max_tokens => 1900, temperature => 100, seed => 5)";

# create(NAME, SETTING => VALUE...): a server that is started, with the extension in its database postgres. The setting
# `preload` = 0 leaves the library out; `start` = 0 leaves the server stopped.
sub create
{
	my ($class, $name, %settings) = @_;
	my $preload = delete $settings{preload} // 1;
	my $start = delete $settings{start} // 1;
	my $node = bless PostgreSQL::Test::Cluster->new($name), $class;

	$node->init(extra => [ '--encoding=UTF8', '--locale=C' ], allows_streaming => delete $settings{allows_streaming});
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'qwen'") if $preload;
	# The server may be busy with many things at once on a small machine.
	$node->append_conf('postgresql.conf', "qwen.wait_ready = '180s'") if $preload;
	$node->append_conf('postgresql.conf', "$_ = '$settings{$_}'") foreach sort keys %settings;
	if ($start)
	{
		$node->start;
		$node->safe_psql('postgres', 'CREATE EXTENSION qwen');
	}
	return $node;
}

# Sets settings in the configuration file and has the worker take them.
sub reload_with
{
	my ($self, %settings) = @_;

	$self->append_conf('postgresql.conf', "$_ = '$settings{$_}'") foreach sort keys %settings;
	$self->safe_psql('postgres', 'SELECT qwen_reload()');
}

# A column of qwen_status().
sub status
{
	my ($self, $column) = @_;

	return $self->safe_psql('postgres', "SELECT $column FROM qwen_status()");
}

sub wait_for_state
{
	my ($self, $state) = @_;

	$self->poll_query_until('postgres', "SELECT state = '$state' FROM qwen_status()")
	  or BAIL_OUT("the engine did not become $state");
}

sub wait_ready { $_[0]->wait_for_state('ready') }

# The engine that is ready now, remembered so that leaves_nothing() can look for it.
sub engine_pid
{
	my ($self) = @_;
	my $pid;

	$self->wait_ready;
	$pid = $self->status('engine_pid');
	$self->{qwen_engines}{$pid} = 1;
	return $pid;
}

# kill -9, and the pid that it was.
sub kill_engine
{
	my ($self) = @_;
	my $pid = $self->engine_pid;

	kill 'KILL', $pid;
	return $pid;
}

# Waits until SQL gives true.
sub wait_until
{
	my ($self, $sql, $what) = @_;

	return ok($self->poll_query_until('postgres', $sql), $what);
}

# Whether nothing is queued, running or reserved any more, in the slots and in the engine.
sub is_idle
{
	my ($self, $what) = @_;

	return $self->wait_until(
		'SELECT running = 0 AND waiting = 0 AND NOT EXISTS (SELECT FROM qwen_requests) FROM qwen_status()',
		$what // 'no request is left, in the slots or in the engine');
}

# Starts psql with a script and comes back at once. Script and output are files, so that nobody has to pump them.
sub begin_sql
{
	my ($self, $sql, $db) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir('sql') . '/script';
	my %job = (file => $file);

	append_to_file($file, $sql);
	$job{harness} = IPC::Run::start(
		[
			$self->installed_command('psql'), '-XAtq', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose',
			'-d', $self->connstr($db // 'postgres'), '-f', $file
		],
		'<', '/dev/null', '>', "$file.out", '2>', "$file.err");
	return \%job;
}

# Waits for it: exit status, output and errors stand in the job then.
sub end_sql
{
	my ($self, $job) = @_;

	$job->{harness}->finish;
	$job->{status} = $job->{harness}->full_result(0);
	$job->{out} = slurp_file("$job->{file}.out");
	$job->{err} = slurp_file("$job->{file}.err");
	chomp $job->{out};
	return $job;
}

# The error that SQL ends with, as "sqlstate message".
sub error_of
{
	my ($self, $sql, $db) = @_;
	my $job = $self->end_sql($self->begin_sql($sql, $db));

	return "none, but: $job->{out}" if $job->{status} == 0;
	return $job->{err} =~ /(?:ERROR|FATAL): +([0-9A-Z]{5}): +(.*)/ ? "$1 $2" : $job->{err};
}

# The table docs, and what the model says to it: id => answer.
sub load_docs
{
	my ($self) = @_;

	$self->safe_psql('postgres', slurp_file("$ENV{TESTDIR}/data/docs.sql"));
	return $self->answers;
}

sub answers
{
	my ($self) = @_;

	return $self->safe_psql('postgres', 'SELECT id, qwen_generate(prompt) FROM docs ORDER BY id');
}

sub process_is_there
{
	my ($pid) = @_;

	return kill(0, $pid) || $!{EPERM};
}

# Waits until a process has gone; a child of ours that nobody waits for is none.
sub wait_for_exit
{
	my ($self, $pid, $what) = @_;

	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return pass($what) unless process_is_there($pid);
		usleep(100_000);
	}
	return fail($what);
}

# The last word of every test: the server stops, and all engines with it; and nothing of the server has crashed, unless
# the test itself saw to that (crash => 1).
sub leaves_nothing
{
	my ($self, %option) = @_;
	my @lines;

	$self->stop('fast') if $self->{_pid};
	$self->wait_for_exit($_, "engine $_ is gone") foreach sort keys %{ $self->{qwen_engines} };
	is(join(' ', $self->engines), '', 'no engine of this server is left');

	@lines = split /\n/, slurp_file($self->logfile);
	is_deeply([ grep { /TRAP:|PANIC:|Sanitizer/ } @lines ], [], 'the log tells of no broken assertion');
	is_deeply([ grep { /was terminated by signal/ && !/qwen engine \(PID/ } @lines ], [], 'no process of the server crashed')
	  unless $option{crash};
}

# The pids of the engines of this server: programs of that name that write to its log.
sub engines
{
	my ($self) = @_;
	my $log = Cwd::realpath($self->logfile);

	return grep {
		(readlink("/proc/$_/exe") // '') =~ m{/qwen-engine( \(deleted\))?$} && (readlink("/proc/$_/fd/2") // '') eq $log
	} map { m{(\d+)} } glob '/proc/[0-9]*';
}

1;
