#!/usr/bin/env bash
# Says in one line what the system lacks and how to install it, before anything is downloaded.
# Usage: check-system.sh [PYTHON]
set -u
python="${1:-python3}"

refuse() {
    echo "error: $1" >&2
    exit 1
}
missing() { refuse "$1 is missing; install it: $2"; }

machine="$(uname -s) $(uname -m)"
[[ "$machine" == "Linux x86_64" ]] || refuse "TensorFlow and Horovod are taken for Linux on x86_64, and this is $machine: use another machine or a container"

version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)"
[[ "$version" == "3.11" || "$version" == "3.12" ]] \
    || missing "Python 3.11 or 3.12 (found ${version:-none} as '$python')" "sudo apt-get install python3.11 python3.11-venv (or name one: make PYTHON=python3.12 ...)"
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing "Python's venv module" "sudo apt-get install python$version-venv"

[[ -z "${JAVA_HOME:-}" || -x "$JAVA_HOME/bin/java" ]] \
    || refuse "JAVA_HOME names a folder without bin/java ($JAVA_HOME): unset it, or let it name a Java 17 or 21"
java_command="${JAVA_HOME:+$JAVA_HOME/bin/}java"
java="$("$java_command" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)"
# Spark 4.1 runs on Java 17 and 21; from 24 on Java lacks what its Hadoop libraries call.
[[ "${java:-0}" -ge 17 && "${java:-0}" -lt 24 ]] \
    || missing "Java 17 or 21 (found ${java:-none} as '$java_command')" "sudo apt-get install openjdk-17-jre-headless (and let JAVA_HOME name it)"

command -v "${CXX:-g++}" >/dev/null || missing "a C++ compiler (Horovod is compiled here; found no '${CXX:-g++}')" "sudo apt-get install g++"

free="$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')"
[[ -d .venv || "${free:-5}" -ge 5 ]] || refuse "the disk is too full for the packages (5 GB are needed here, $free GB are free): free some space"
