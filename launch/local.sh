#!/usr/bin/env bash
# One machine, from nothing to a result: makes .venv, installs the pinned requirements, runs the main
# program with the flags it was given. A second call reuses the environment.
#   bash launch/local.sh --config configs/quickstart.py --workdir runs/quickstart
# ROBUSTMED_ACCELERATOR=cuda13|cuda12|tpu installs JAX for that accelerator instead of the CPU;
# ROBUSTMED_EXTRA is a file of further requirements.
set -euo pipefail
start=$PWD
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment requirements.txt ${ROBUSTMED_EXTRA:+"$ROBUSTMED_EXTRA"}
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
# Paths on the command line are relative to where the caller stands.
cd "$start"
exec "$venv/bin/python" -m robustmed.main "$@"
