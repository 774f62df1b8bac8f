#!/usr/bin/env bash
# The environment of local.sh plus the test tools; ruff, then the tests, a process per core (at most
# eight).
# usage: test.sh [--quick | --all | --peers] [pytest arguments, as -n 0 for one process that prints
# as it goes]
#
#   --quick  what runs in little time, for everyday work: no test that is marked `slow`, because it
#            starts the whole program or takes seconds even when its programs are compiled.
#   (none)   everything but what is marked `long`.
#   --all    everything; CI does so, with what builds the documentation site installed. `long` are runs on several hosts, which are two at a time on the
#            same cores, the notebook, at the speed of users' programs, and whole runs of networks
#            whose study runs as a whole on another task, too.
#   --peers  only tests/peers: networks against PyTorch, MONAI and ONNX Runtime, in an environment of
#            their own beside .venv (several GB; elsewhere these tests are skipped).
set -euo pipefail
chosen=(-m 'not long')
files=(requirements.txt tests/requirements.txt)
case ${1-} in
  --quick) chosen=(-m 'not long and not slow') && shift ;;
  --all)
    shift
    chosen=()
    files+=(docs/requirements.txt)
    ;;
  --peers)
    shift
    files+=(tests/peers/requirements.txt)
    chosen=(tests/peers)
    ROBUSTMED_VENV=${ROBUSTMED_VENV:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv-peers}
    ;;
esac
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment "${files[@]}"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
"$venv/bin/ruff" format --check .
"$venv/bin/ruff" check .
workers=$("$venv/bin/python" -c 'import os; print(min(8, os.cpu_count() or 1))')
exec "$venv/bin/python" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder \
  --durations 20 ${chosen[@]+"${chosen[@]}"} "$@"
