#!/usr/bin/env bash
# Builds the source archive and the wheel, checks them, and tries the wheel where a user would: in an
# empty environment of each Python at hand, from an empty folder. Publishes nothing.
#   bash launch/release.sh [folder of the files, default: dist]
# ROBUSTMED_PYTHONS='python3.11 /opt/python3.12' names the interpreters; those that are not there are
# left out and named at the end.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
say() { printf '[release] %s\n' "$*" >&2; }
fail() { printf 'robustmed: error: %s\n' "$*" >&2; exit 2; }

mkdir -p "${1:-$root/dist}"
out=$(cd "${1:-$root/dist}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip=(-m pip --disable-pip-version-check --quiet)

pythons=()
absent=()
for name in ${ROBUSTMED_PYTHONS:-python3.11 python3.12 python3.13}; do
  if "$name" -c '' 2>/dev/null; then pythons+=("$name"); else absent+=("$name"); fi
done
[ ${#pythons[@]} -gt 0 ] || fail 'no Python 3.11, 3.12 or 3.13 on PATH; set ROBUSTMED_PYTHONS'

say 'building'
"${pythons[0]}" -m venv "$work/tools"
"$work/tools/bin/python" "${pip[@]}" install build twine
# What is committed, and nothing that lies about.
git -C "$root" archive HEAD | (mkdir "$work/source" && tar -x -C "$work/source")
rm -f "$out"/robustmed-*
"$work/tools/bin/python" -m build --outdir "$out" "$work/source" >"$work/build.log" 2>&1 || {
  cat "$work/build.log" >&2
  fail 'the build failed, see above'
}
"$work/tools/bin/twine" check --strict "$out"/robustmed-*
wheel=$(ls "$out"/robustmed-*.whl)

# The versions that are tested; a constraint has no extras.
sed 's/\[.*\]//' "$root/requirements.txt" >"$work/tested.txt"
for python in "${pythons[@]}"; do
  say "trying $(basename "$wheel") with $("$python" --version)"
  venv=$work/$(basename "$python")-venv
  "$python" -m venv "$venv"
  "$venv/bin/python" "${pip[@]}" install "$wheel" -c "$work/tested.txt"
  empty=$work/$(basename "$python")-empty
  mkdir "$empty"
  (
    cd "$empty"
    unset PYTHONPATH
    "$venv/bin/robustmed" doctor
    "$venv/bin/robustmed" --config quickstart:smoke --workdir runs/q
    test -s runs/q/report/report.html
    # Configurations that share modules, and the experiments' tables, are in the wheel.
    for name in amat_hippocampus brats2d harden nodules spine; do
      "$venv/bin/robustmed" "$name:smoke" --stage describe >/dev/null
    done
    "$venv/bin/robustmed" froc --help >/dev/null
    "$venv/bin/python" - <<'EOF'
import importlib.resources

import jax.numpy as jnp
import jax

from robustmed import attacks

result = attacks.pgd(bounds=(0.0, 1.0))(
  lambda x: x.sum((1, 2, 3)), jnp.full((2, 4, 4, 1), 0.5), eps=0.1, key=jax.random.key(0)
)
assert jnp.allclose(result.x, 0.6), result.x
assert (importlib.resources.files('robustmed') / 'py.typed').is_file()
EOF
  )
  rm -rf "$venv"
done
say "good: $(cd "$out" && ls robustmed-* | tr '\n' ' ')"
[ ${#absent[@]} -eq 0 ] || say "not tried, no such interpreter: ${absent[*]}"
