#!/usr/bin/env bash
# Compiles the preset paper of every experiment for 16 chips of TPU v5e; no TPU is needed. First of
# each experiment the training and the attack that matter most, for 16 chips and for 256, then all
# programs for 16. What was compiled is kept: a second call goes on where the first was stopped.
#   bash launch/compile_all.sh [FOLDER] [CONFIG...]     FOLDER: runs/compile; CONFIG: amat_hippocampus ...
# Then FOLDER/programs.csv has a row for each program, FOLDER/runs.csv one for each experiment, and
# FOLDER/table.md both for a page.
# ROBUSTMED_JOBS programs are compiled at once (1). ROBUSTMED_TARGETS: other slices ("v5e-16 v5e-256").
# ROBUSTMED_FULL=yes: with --full, in five times the time. ROBUSTMED_ONLY=main: none but the first.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
folder=${1:-runs/compile}
[ $# -eq 0 ] || shift
configs=("$@")
[ ${#configs[@]} -gt 0 ] || configs=(quickstart nodules amat_hippocampus spine synthesis
  amat_ceph brats2d amat_prostate amat_heart amat_bccd brats3d)
python=${ROBUSTMED_COMPILE_PYTHON:-}
if [ -z "$python" ]; then
  venv=${ROBUSTMED_VENV:-$root/.venv-tpu-compile}
  make_environment requirements.txt launch/tpu_compile.txt
  python=$venv/bin/python
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

# The programs that are compiled first, and for large slices.
main_programs() {
  case $1 in
    amat_*) echo 'train amat,attack pgd' ;;
    quickstart) echo 'train adv,attack pgd_seg' ;;
    spine) echo 'train P10_adv_rs,attack pgd_seg' ;;
    synthesis) echo 'train gen_2,attack pgd' ;;
    nodules) echo 'train ce,attack pgd' ;;
    brats*) echo 'train at_05,attack ifgsm' ;;
  esac
}

failed=0
compile() { # TARGET CONFIG PROGRAMS
  local words=(--config "configs/$2.py:${ROBUSTMED_PRESET:-paper}" --stage compile --target "$1")
  words+=(--programs "$3" --jobs "${ROBUSTMED_JOBS:-1}" --workdir "$folder/$2")
  [ -z "${ROBUSTMED_FULL:-}" ] || words+=(--full)
  say "$2 for $1: $3"
  "$python" -m robustmed.main "${words[@]}" || failed=1
  "$python" -m robustmed.runs.compilation "$folder" >&2
}

targets=${ROBUSTMED_TARGETS:-v5e-16 v5e-256}
for target in $targets; do
  for config in "${configs[@]}"; do compile "$target" "$config" "$(main_programs "$config")"; done
done
[ "${ROBUSTMED_ONLY:-}" != main ] || exit $failed
for target in $targets; do
  case $target in *-16 | cpu-*) ;; *) continue ;; esac
  for config in "${configs[@]}"; do
    compile "$target" "$config" "$(main_programs "$config"),augment,train,score,attack"
  done
done
exit $failed
