# run.sh: what demo, check and bench share: messages, the run directory, the user that servers run as. To be sourced.
#
# Everything that a run makes lies in one directory under /tmp, which the trap removes together with the servers that
# were started in it. Servers refuse root: for root they run as an ordinary user, who may not be able to read a clone
# below /root, so whatever a server or a test touches is copied into the run directory first.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
jobs=$(nproc)
run_dir=
kept=false

say() { printf '%s\n' "$*"; }

heading() { printf '\n== %s\n' "$*"; }

# What was left out must not be overlooked.
loudly() { printf '\n**** SKIPPED: %s ****\n' "$*"; }

die()
{
	printf '%s: %s\n' "$(basename "$0")" "$*" >&2
	exit 1
}

# The user that servers run as: ourselves, or for root the server's own user, or nobody.
server_user()
{
	if [ "$(id -u)" -ne 0 ]; then
		id -un
	elif id postgres >/dev/null 2>&1; then
		echo postgres
	else
		echo nobody
	fi
}

# as_user COMMAND...: as the server's user, in the run directory, with an environment that leads no client elsewhere.
as_user()
{
	local run=()

	[ "$(id -u)" -ne 0 ] || run=(runuser -u "$(server_user)" --)
	(
		cd "$run_dir/work"
		unset PGHOST PGPORT PGDATABASE PGUSER PGPASSWORD PGSERVICE PGSERVICEFILE PGOPTIONS PGDATA
		HOME=$run_dir/work TMPDIR=$run_dir/tmp "${run[@]}" "$@"
	)
}

# Makes the run directory: work/ and tmp/ are the server user's, the rest ours. Short, for the sake of socket names.
start_run()
{
	run_dir=$(mktemp -d /tmp/qwen-XXXXXX)
	trap end_run EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	mkdir "$run_dir/work" "$run_dir/tmp"
	chmod 755 "$run_dir"
	[ "$(id -u)" -ne 0 ] || chown "$(server_user)" "$run_dir/work" "$run_dir/tmp"
}

# The trap: stops the servers that still run and removes all, unless the run is to be kept.
end_run()
{
	local status=$?

	trap - EXIT
	if ! $kept; then
		stop_servers || status=1
		rm -rf "$run_dir"
	fi
	exit "$status"
}
