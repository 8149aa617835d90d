# shellcheck shell=bash
# Shared by tests/setup, tests/run, tests/demo/run and the Makefile: where things are, and how to start a throw-away server.
#
# Everything that is built for a test or for the demo is installed into a private copy of the server's tree
# (`server_tree`), never into the directories of the PostgreSQL that the machine uses: a build with fault points has
# no business there. PostgreSQL finds its libraries and its share directory relative to its own binary, so a copy of
# the binaries beside links to the rest is a whole server.
#
# Must never: write outside of SCRATCH and the project's target folder; stop a server that it did not start.

set -euo pipefail
# What is built and installed here is read by the user that runs the servers.
umask 022

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PG_MAJOR=${PG_MAJOR:-15}
# The tree that the machine's packages installed; the private trees are made from it.
SYSTEM_PG_CONFIG=${SYSTEM_PG_CONFIG:-/usr/lib/postgresql/$PG_MAJOR/bin/pg_config}
PGRX_VERSION=$(sed -n 's/^pgrx = "=\(.*\)"$/\1/p' "$PROJECT/Cargo.toml")
# One scratch folder per user and checkout; readable for the unprivileged user that runs the servers.
SCRATCH=${BUCARDO_SCRATCH:-/var/tmp/bucardo-$(id -u)-$(printf %s "$PROJECT" | cksum | cut -d' ' -f1)}
# PostgreSQL refuses to run as root: its package's own user runs it then.
RUN_AS=${RUN_AS:-$([ "$(id -u)" = 0 ] && echo postgres || id -un)}
TOOLS=$SCRATCH/tools/cargo-pgrx-$PGRX_VERSION

export PATH="$TOOLS/bin:$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PROJECT/target}
export USER=${USER:-$(id -un)}
# build.rs gives the library the linker flag that cargo-pgrx would add to every dependency too: without this
# variable cargo would compile all of them a second time.
export CARGO_PGRX_DISABLE_GC_SECTIONS_WORKAROUND=1
# A backtrace would stand in the DETAIL of every error.
unset RUST_BACKTRACE
# psql and libpq must not pick up what the caller has set for other servers.
unset PGHOST PGPORT PGUSER PGDATABASE PGOPTIONS PGSERVICE PGPASSWORD PGDATA PGTZ PGCLIENTENCODING

say() { printf '%s\n' "$*"; }
note() { printf '== %s\n' "$*" >&2; }
die() { printf '%s\n' "$*" >&2; exit 1; }

# The scratch folder has a name that others can guess: it must be a folder of ours, not a link that somebody laid there.
make_scratch() {
    mkdir -p "$SCRATCH"
    [ -d "$SCRATCH" ] && [ ! -L "$SCRATCH" ] && [ -O "$SCRATCH" ] || die "$SCRATCH is not a folder of $(id -un): remove it, or set BUCARDO_SCRATCH"
    chmod 755 "$SCRATCH"
}

# Runs a command as the user that may run a server.
as_pg() {
    if [ "$RUN_AS" = "$(id -un)" ]; then
        (cd "$SCRATCH" && "$@")
    else
        (cd "$SCRATCH" && runuser -u "$RUN_AS" -- "$@")
    fi
}

# server_tree NAME: prints the pg_config of a private copy of the server's tree, made when it is missing or out of date.
server_tree() {
    local tree=$SCRATCH/server-$1 bin lib share sub=lib/postgresql/$PG_MAJOR
    bin=$("$SYSTEM_PG_CONFIG" --bindir) lib=$("$SYSTEM_PG_CONFIG" --pkglibdir) share=$("$SYSTEM_PG_CONFIG" --sharedir)
    if [ "$("$tree/$sub/bin/postgres" --version 2>/dev/null)" != "$("$bin/postgres" --version)" ] || [ ! -e "$tree/complete" ]; then
        rm -rf "$tree"
        mkdir -p "$tree/$sub/lib" "$tree/share/postgresql/$PG_MAJOR/extension" "$tree/include"
        cp -a "$bin" "$tree/$sub/bin"
        link_all "$lib" "$tree/$sub/lib"
        link_all "$share" "$tree/share/postgresql/$PG_MAJOR"
        link_all "$share/extension" "$tree/share/postgresql/$PG_MAJOR/extension"
        ln -s "$("$SYSTEM_PG_CONFIG" --includedir)" "$tree/include/postgresql"
        ln -s "$("$SYSTEM_PG_CONFIG" --libdir)" "$tree/lib/$(basename "$("$SYSTEM_PG_CONFIG" --libdir)")"
        touch "$tree/complete"
    fi
    say "$tree/$sub/bin/pg_config"
}

# Links every entry of folder $1 into folder $2, but for those that are there and for an installed bucardo: writing through
# such a link would change the machine's own server.
link_all() {
    local entry name
    for entry in "$1"/*; do
        name=${entry##*/}
        case $name in bucardo.* | bucardo--*) continue ;; esac
        [ -e "$2/$name" ] || ln -s "$entry" "$2/$name"
    done
}

# start_server PG_CONFIG DIR [SETTING...]: a fresh server in DIR that listens on a unix socket in DIR only (nobody else's
# port can be taken, nobody from outside can connect); superuser `postgres`, no password.
start_server() {
    local bin dir=$2
    bin=$("$1" --bindir)
    shift 2
    as_pg mkdir -p "$dir"
    as_pg "$bin/initdb" -D "$dir/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync >"$dir.initdb.log" 2>&1 || { cat "$dir.initdb.log" >&2; die "initdb failed in $dir"; }
    {
        say "listen_addresses = ''"
        say "unix_socket_directories = '$dir'"
        say "unix_socket_permissions = 0700"
        say "max_worker_processes = 16"
        local setting
        for setting in "$@"; do say "$setting"; done
    } | as_pg tee -a "$dir/data/postgresql.conf" >/dev/null
    as_pg "$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -w -t 60 start >/dev/null || { tail -n 30 "$dir/log" >&2; die "the server in $dir did not start"; }
}

# stop_servers FOLDER: stops every server whose data lies under FOLDER, and no other.
stop_servers() {
    local pidfile bin
    bin=$("$SYSTEM_PG_CONFIG" --bindir 2>/dev/null) || return 0
    while IFS= read -r pidfile; do
        as_pg "$bin/pg_ctl" -D "$(dirname "$pidfile")" -m immediate -w stop >/dev/null 2>&1 || true
    done < <(find "$1" -maxdepth 4 -name postmaster.pid 2>/dev/null)
}
