#!/usr/bin/env bash
# The environment of local.sh plus the test tools; ruff, then the tests, a process per core (at most
# eight; `-n 0` for one that prints as it goes). Arguments go to pytest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment requirements.txt tests/requirements.txt
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
"$venv/bin/ruff" format --check .
"$venv/bin/ruff" check .
workers=$("$venv/bin/python" -c 'import os; print(min(8, os.cpu_count() or 1))')
exec "$venv/bin/python" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder --durations 20 "$@"
