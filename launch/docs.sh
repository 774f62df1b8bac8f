#!/usr/bin/env bash
# Builds the documentation site strictly (a dead link is an error) into site/, in an environment of
# its own with the pins of docs/requirements.txt. The pages request nothing from elsewhere.
#   bash launch/docs.sh          then open site/index.html (the search wants `python -m http.server -d site`)
#   bash launch/docs.sh serve    rebuilds while you write, http://127.0.0.1:8000
set -euo pipefail
ROBUSTMED_VENV=${ROBUSTMED_VENV:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv-docs}
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
unset ROBUSTMED_ACCELERATOR
make_environment docs/requirements.txt
export NO_MKDOCS_2_WARNING=1
if [ "${1-}" = serve ]; then exec "$venv/bin/mkdocs" serve --strict; fi
"$venv/bin/mkdocs" build --strict --quiet --clean
"$venv/bin/python" launch/docs_check.py site
say "built $root/site/index.html"
