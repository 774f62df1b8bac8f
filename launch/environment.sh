# shellcheck shell=bash
# Sourced by the scripts beside it: makes .venv once for every change of its inputs and activates it.
# usage: . launch/environment.sh [requirement files...]

say() { printf '[launch] %s\n' "$*" >&2; }
fail() { printf 'robustmed: error: %s\n' "$*" >&2; exit 2; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
venv=${ROBUSTMED_VENV:-$root/.venv}

find_python() {
  local name
  for name in ${ROBUSTMED_PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
    if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      printf '%s\n' "$name"
      return
    fi
  done
  return 1
}

# Two markers say that what lies in $venv is not whole, whoever was killed in the middle:
#   .making      it was being made here and has never been complete: it is removed and made anew
#   .installing  a complete one was being changed: everything is installed again
make_environment() {
  local accelerator=${ROBUSTMED_ACCELERATOR:-cpu} files=("$@") python stamp
  case $accelerator in cpu | cuda12 | cuda13 | tpu) ;; *)
    fail "ROBUSTMED_ACCELERATOR must be cpu, cuda12, cuda13 or tpu, not '$accelerator'" ;;
  esac
  stamp=$({ printf '%s\n' "$accelerator"; cat "${files[@]}"; } | cksum)
  if [ -e "$venv/.making" ]; then
    say "$venv is incomplete; creating it again"
    rm -rf "$venv"
  fi
  if [ -e "$venv/.installing" ]; then
    say "an installation into $venv was interrupted; installing again"
    rm -f "$venv"/.stamp-*
  elif [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.stamp-$#" 2>/dev/null)" = "$stamp" ]; then
    return
  fi
  if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python) || fail 'no Python 3.11, 3.12 or 3.13 on PATH; install one or set ROBUSTMED_PYTHON'
    say "creating $venv with $("$python" --version)"
    # A folder of somebody else's files is not ours to remove afterwards.
    if [ ! -e "$venv" ]; then
      mkdir -p "$venv" || fail "cannot create the folder $venv; set ROBUSTMED_VENV to another one"
      touch "$venv/.making"
    fi
    "$python" -m venv "$venv" || {
      give_up
      fail "$python could not create the virtual environment $venv, see above (Debian and Ubuntu: apt install python3-venv)"
    }
  fi
  local command=("$venv/bin/python" -m pip install --disable-pip-version-check --quiet)
  local file
  for file in "${files[@]}"; do command+=(-r "$file"); done
  if [ "$accelerator" != cpu ]; then
    # The pinned jax, with the plugin of the accelerator.
    command+=("jax[$accelerator]==$(sed -n 's/^jax==\([^ ]*\).*/\1/p' requirements.txt)")
  fi
  say "${command[*]}"
  touch "$venv/.installing"
  "${command[@]}" || {
    give_up
    fail "pip could not install ${files[*]} into $venv, see above; check the network and the free space, then run the same command again"
  }
  printf '%s\n' "$stamp" >"$venv/.stamp-$#"
  rm -f "$venv/.making" "$venv/.installing"
}

give_up() {
  if [ -e "$venv/.making" ]; then rm -rf "$venv"; fi
}
