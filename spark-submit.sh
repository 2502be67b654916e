#!/usr/bin/env bash
# Runs a job: ./spark-submit.sh [SPARK OPTIONS] jobs/NAME.py [JOB OPTIONS], from any directory.
set -euo pipefail
project=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
python=$project/.venv/bin/python
if [[ ! -x $python ]]; then
    echo "error: The environment is not there yet. Run: make -C $project setup" >&2
    exit 1
fi
export PYTHONPATH=$project/lib${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m wares.submit "$@"
