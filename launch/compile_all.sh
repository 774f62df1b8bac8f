#!/usr/bin/env bash
# Compiles the preset paper of every experiment for 16 chips of TPU v5e, and of each the training and
# the attack that matter most for 256; no TPU is needed. A program takes one to several minutes; a
# second call goes on where the first was stopped, because results are kept by program and version.
#   bash launch/compile_all.sh [FOLDER] [CONFIG...]     FOLDER: runs/compile; CONFIG: amat_hippocampus ...
# Then FOLDER/programs.csv has a row for each program, FOLDER/runs.csv one for each experiment.
# ROBUSTMED_JOBS programs are compiled at once (1). ROBUSTMED_TARGETS: other slices ("v5e-16 v5e-256").
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
folder=${1:-runs/compile}
[ $# -eq 0 ] || shift
configs=("$@")
[ ${#configs[@]} -gt 0 ] || configs=(amat_hippocampus amat_heart amat_prostate amat_ceph amat_bccd
  quickstart spine synthesis nodules brats2d brats3d)
python=${ROBUSTMED_COMPILE_PYTHON:-}
if [ -z "$python" ]; then
  venv=${ROBUSTMED_VENV:-$root/.venv-tpu-compile}
  make_environment requirements.txt launch/tpu_compile.txt
  python=$venv/bin/python
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

# The programs that are compiled for large slices.
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
for target in ${ROBUSTMED_TARGETS:-v5e-16 v5e-256}; do
  for config in "${configs[@]}"; do
    words=(--config "configs/$config.py:${ROBUSTMED_PRESET:-paper}" --stage compile --target "$target")
    words+=(--jobs "${ROBUSTMED_JOBS:-1}" --workdir "$folder/$config")
    case $target in *-16 | cpu-*) ;; *) words+=(--programs "$(main_programs "$config")") ;; esac
    say "$config for $target"
    "$python" -m robustmed.main "${words[@]}" || failed=1
    "$python" -m robustmed.runs.compilation "$folder" >&2
  done
done
exit $failed
