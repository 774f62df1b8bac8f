#!/usr/bin/env bash
# The environment of local.sh plus the test tools; ruff, then the tests. Arguments go to pytest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment requirements.txt tests/requirements.txt
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
"$venv/bin/ruff" format --check .
"$venv/bin/ruff" check .
exec "$venv/bin/python" -m pytest "$@"
