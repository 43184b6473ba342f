# server.sh: private PostgreSQL servers inside the run directory. To be sourced after run.sh.
#
# A server finds its library and share directories relative to its own executable, so a copy of its directories under
# another root, with our files installed into them, is a server of its own: nothing of the system is written to, and an
# ordinary user can do it. Servers listen on a socket in the run directory alone, so no port can be in use.

debian_pgxs=/usr/lib/postgresql/15/lib/pgxs
servers=() # data directories of those that run

# pg NAME: a directory of the server that PG_CONFIG names, as pg_config calls it.
pg() { "$PG_CONFIG" "--$1"; }

pg_major() { pg version | sed 's/^PostgreSQL \([0-9]*\).*/\1/'; }

# Builds for the server that PG_CONFIG names.
build_extension() { make -C "$root" -j"$jobs" -s all PG_CONFIG="$PG_CONFIG"; }

# copy_server TREE: the server that PG_CONFIG names under TREE, with our files in it. Sets server_bin to its bin
# directory. LD_LIBRARY_PATH leads its programs to libraries that they would have found beside the original alone.
copy_server()
{
	local tree=$1
	local dir

	for dir in "$(pg bindir)" "$(pg pkglibdir)" "$(pg sharedir)"; do
		mkdir -p "$tree$dir"
		cp -aL "$dir/." "$tree$dir/"
	done
	server_bin=$tree$(pg bindir)
	copy_libraries "$tree"
	make -C "$root" -s install PG_CONFIG="$PG_CONFIG" DESTDIR="$tree"
	"$server_bin/postgres" --version >/dev/null || die "the copied server does not start"
	[ "$("$server_bin/pg_config" --sharedir)" = "$tree$(pg sharedir)" ] ||
		die "the copied server does not find its files in $tree"
}

copy_libraries()
{
	local program library

	mkdir -p "$1/lib"
	for program in psql postgres; do
		for library in $(ldd "$server_bin/$program" | awk '/not found/ { print $1 }'); do
			cp -L "$(ldd "$(pg bindir)/$program" | awk -v name="$library" '$1 == name { print $3 }')" "$1/lib/"
		done
	done
	export LD_LIBRARY_PATH=$1/lib
}

# make_cluster DIR [SETTING...]: a new cluster in DIR, with the library preloaded and the settings given as NAME=VALUE.
make_cluster()
{
	local dir=$1

	as_user "$server_bin/initdb" -D "$dir" --no-sync --auth=trust --encoding=UTF8 --locale=C -U postgres \
		>"$run_dir/initdb.log" || die "initdb failed: $(cat "$run_dir/initdb.log")"
	as_user tee -a "$dir/postgresql.conf" >/dev/null <<-END
		shared_preload_libraries = 'qwen'
		listen_addresses = ''
		unix_socket_directories = '$run_dir/work'
		fsync = off
		$(printf '%s\n' "${@:2}")
	END
}

start_server()
{
	local dir=$1

	servers+=("$dir")
	as_user "$server_bin/pg_ctl" -D "$dir" -l "$dir/server.log" -w -t 120 -s start ||
		die "the server did not start: $(as_user cat "$dir/server.log")"
}

stop_servers()
{
	local dir
	local status=0

	for dir in "${servers[@]}"; do
		as_user "$server_bin/pg_ctl" -D "$dir" -m fast -w -t 60 -s stop || status=1
	done
	servers=()
	return $status
}

# sql [psql option...]: psql in the server of the run.
sql() { as_user "$server_bin/psql" -X -q -v ON_ERROR_STOP=1 -h "$run_dir/work" -U postgres "$@"; }

# ---- SQL tests ----

pg_regress()
{
	local own

	own=$(dirname "$(pg pgxs)")/../test/regress/pg_regress
	if [ -x "$own" ]; then
		echo "$own"
	else
		echo "$debian_pgxs/src/test/regress/pg_regress"
	fi
}

# regress WORK CONF [OPTION...]: the SQL tests in WORK/sql on a new instance of the copied server with the settings in
# CONF; OPTIONS are for the sessions. Shows what differs.
regress()
{
	as_user env PGOPTIONS="${*:3}" "$(pg_regress)" --bindir="$server_bin" --inputdir="$1" --outputdir="$1" \
		--temp-instance="$1/instance" --temp-config="$2" --no-locale --encoding=UTF8 --load-extension=qwen \
		--dbname=regression $(cd "$1/sql" && ls -- *.sql | sed 's/\.sql$//') && return
	head -n 200 "$1/regression.diffs" || tail -n 50 "$1/log/postmaster.log"
	return 1
}
