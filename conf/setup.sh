#!/usr/bin/env bash
# Sets up all that jobs and tests need, into .tools and .venv, and says what each step took. Run again, it goes on where it was.
# Usage: setup.sh PYTHON LOCK UV_VERSION
set -euo pipefail
set -m  # each step in the background is a process group of its own, so that all of it can be ended
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$1 lock=$2 uv_version=$3
steps=()

end_steps() {
    for step in "${steps[@]}"; do kill -TERM -- "-$step" 2>/dev/null || true; done
    wait 2>/dev/null || true
}
trap 'echo "stopping ..." >&2; end_steps; echo "stopped; run make again, it goes on" >&2; exit 130' INT TERM HUP

# What to do about a step that failed, as far as what it said tells.
advice() {
    if grep -qiE 'no space left|disk quota' "$1"; then
        echo "the disk is full: free some space"
    elif grep -qiE 'dns error|failed to lookup|name resolution|connection (refused|reset|timed)|unreachable|error sending request|timed out|UNRESOLVED DEP|NewConnectionError' "$1"; then
        echo "something could not be fetched: see that the network is there (an index of your own is named to pip, uv and Ivy; README.md)"
    else
        echo "it said: $(grep -v '^[[:space:]]*$' "$1" | tail -n 1 | cut -c 1-200)"
    fi
}

# step STAMP WHAT COMMAND...: does what has not been done for this lock file, and says in one line how long it took.
step() {
    local stamp=$1 what=$2 before=$SECONDS log
    shift 2
    log=.tools/setup-$(basename "$stamp" | tr -d .).log
    [[ -f $stamp && $(<"$stamp") == "$locked" ]] && return
    if ! "$@" >"$log" 2>&1; then
        echo "error: set-up failed at: $what; $(advice "$log"). Then run make again, it goes on. All that was said: $log" >&2
        return 1
    fi
    echo "$locked" >"$stamp"
    printf 'set-up %5d s  %s\n' $((SECONDS - before)) "$what"
}

begin() { step "$@" & steps+=($!); }

finish() {
    for _ in "${steps[@]}"; do
        wait -n || { end_steps; exit 1; }
    done
    steps=()
}

get_uv() {
    local found
    found=$(command -v uv || true)
    if [[ -n $found && $("$found" --version | cut -d' ' -f2) == "$uv_version" ]]; then
        ln -sf "$found" .tools/uv-command
        return
    fi
    "$python" -m venv .tools/uv
    .tools/uv/bin/pip install --quiet --disable-pip-version-check "uv==$uv_version"
    ln -sf uv/bin/uv .tools/uv-command
}

# The part of the lock file that is about Horovod, or all the rest.
of_lock() { awk -v horovod="$1" '/^[a-z0-9]/ { is = /^horovod==/ } is == horovod || /^#/' "$lock"; }

install_packages() {
    [[ -x .venv/bin/python ]] || .tools/uv-command venv --quiet --python "$python" .venv
    of_lock 0 >.tools/packages.lock
    .tools/uv-command pip sync --quiet --python .venv/bin/python --require-hashes .tools/packages.lock
}

compile_horovod() {
    of_lock 1 >.tools/horovod.lock
    .tools/uv-command pip install --quiet --no-deps --python .venv/bin/python --require-hashes -r .tools/horovod.lock
}

fetch_jars() { PYTHONPATH=lib .venv/bin/python -m wares.lake.session; }

# What jobs import is compiled by importing it, also where Python is told to write no bytecode: each start would do it again.
compile_imports() { env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -c 'import delta, keras, mlflow.pyfunc, mlflow.store.tracking.sqlalchemy_store, pandas, pyspark.sql, scipy.sparse, tensorflow'; }

mkdir -p .tools
conf/check-system.sh "$python"
locked=$(sha256sum "$lock" | cut -d' ' -f1)
echo "set-up: about two to five minutes, once; most of it is compiling Horovod"
begin .tools/.uv "uv $uv_version, into .tools" get_uv
finish
begin .venv/.packages "Python packages, into .venv" install_packages
finish
begin .venv/.horovod "Horovod, compiled" compile_horovod
begin .tools/.jars "Delta's jars, into .tools/ivy" fetch_jars
begin .venv/.imports "what jobs import, as bytecode" compile_imports
finish
printf 'set-up %5d s  together\n' "$SECONDS"
