# packages.sh: finds out what is missing to build and test, and installs it where that is allowed. To be sourced after
# run.sh.

missing=() # nothing works without these
wanted=()  # some tests are skipped without these

# need PACKAGE TEST...: PACKAGE is missing if the command TEST fails. want: likewise.
need()
{
	"${@:2}" >/dev/null 2>&1 || missing+=("$1")
}

want()
{
	"${@:2}" >/dev/null 2>&1 || wanted+=("$1")
}

# Whether PG_CONFIG names a server, and what extensions for it are built with.
have_server() { [ -x "$("$PG_CONFIG" --bindir)/postgres" ] && [ -x "$("$PG_CONFIG" --bindir)/psql" ]; }

have_server_headers() { [ -f "$("$PG_CONFIG" --pgxs)" ]; }

# Debian has the headers of PostgreSQL 15 alone; a server that PG_CONFIG names has to bring its own.
need_server()
{
	if [ -z "${PG_CONFIG:-}" ]; then
		export PG_CONFIG=pg_config
		need postgresql-15 have_server
		need postgresql-server-dev-15 have_server_headers
	else
		PG_CONFIG=$(command -v "$PG_CONFIG") || die "PG_CONFIG names no program"
		have_server 2>/dev/null || die "$PG_CONFIG: no postgres and psql in its bin directory"
		have_server_headers || die "$PG_CONFIG: no PGXS beside it"
	fi
}

need_engine()
{
	need gcc command -v gcc
	need libc6-dev test -f /usr/include/stdio.h
	need make command -v make
	need pkg-config command -v pkg-config
	need libjansson-dev pkg-config --exists jansson
	need libpcre2-dev pkg-config --exists libpcre2-8
	need libutf8proc-dev pkg-config --exists libutf8proc
}

need_build()
{
	need_engine
	need_server
}

# pg_regress and the modules of the TAP tests come with Debian's client package and serve other servers too.
need_tests()
{
	need_build
	need postgresql-client-15 test -x "$debian_pgxs/src/test/regress/pg_regress"
	need g++ command -v g++
	need libcmocka-dev pkg-config --exists cmocka
	need perl command -v prove
	need xz-utils command -v xz
	need libipc-run-perl perl -MIPC::Run -e 1
	need python3 command -v python3
	want python3-pip python3 -m pip --version
	want clang-format-14 command -v clang-format-14
}

# Installs what is missing, or says how and ends.
install_missing()
{
	local sudo=()

	[ $((${#missing[@]} + ${#wanted[@]})) -gt 0 ] || return 0
	if [ "$(id -u)" -ne 0 ]; then
		sudo=(sudo -n)
	fi
	if ! "${sudo[@]}" apt-get --version >/dev/null 2>&1; then
		[ ${#missing[@]} -gt 0 ] || return 0
		die "packages are missing; please run: sudo apt-get install -y ${missing[*]} ${wanted[*]}"
	fi
	heading "Installing ${missing[*]} ${wanted[*]}"
	"${sudo[@]}" apt-get update -q
	"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
		"${missing[@]}" "${wanted[@]}"
	have_server && have_server_headers || die "$(command -v "$PG_CONFIG") belongs to no server; please set PG_CONFIG"
}
