#!/usr/bin/env bash
# Measures a GPU in one call of less than ten minutes; whatever ends early has written what it has.
#   ROBUSTMED_ACCELERATOR=cuda13 bash launch/measure_gpu.sh [FOLDER]          FOLDER: runs/gpu
# FOLDER/results.jsonl gets a line for each part as it ends: the speed of attacks (spine, hippo, brats3d
# at 128^3, with the batches of a CPU, with larger ones and in bfloat16; networks from ONNX), and per second of training the steps of the hippocampus at full width
# and of BraTS at 128^3, synthetic images, with the peak of memory and the mean use of the GPU.
# ROBUSTMED_SECONDS: of all parts together (540). ROBUSTMED_PRESET=smoke: tiny sizes, for a test on a CPU.
# ROBUSTMED_PEER: a command that prints JSON lines of another library's speed, run before and after.
# ROBUSTMED_PYTHON_BIN: a Python with the requirements, instead of an environment of its own.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
folder=${1:-runs/gpu}
preset=${ROBUSTMED_PRESET:-paper}
python=${ROBUSTMED_PYTHON_BIN:-}
if [ -z "$python" ]; then
  make_environment requirements.txt
  python=$venv/bin/python
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export XLA_PYTHON_CLIENT_PREALLOCATE=false # so that what is used is what is needed
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
results=$folder/results.jsonl
end=$((SECONDS + ${ROBUSTMED_SECONDS:-540}))

# Memory in MiB and use in percent, twice a second, while a part runs.
watch() {
  command -v nvidia-smi >/dev/null || return 0
  nvidia-smi --query-gpu=memory.used,utilization.gpu --format=csv,noheader,nounits --loop-ms=500 >"$folder/gpu.csv" &
  watcher=$!
}

unwatch() {
  [ -z "${watcher:-}" ] || kill "$watcher" 2>/dev/null || true
  watcher=''
}
trap unwatch EXIT

# part NAME SECONDS COMMAND...: runs the command for so long at most, and adds a line of results.
part() {
  local name=$1 limit=$2 left=$((end - SECONDS)) code=0 began=$SECONDS
  shift 2
  # Tiny sizes end by themselves, on a busy machine later than any limit for a GPU.
  if [ "$left" -lt "$limit" ] || [ "$preset" = smoke ]; then limit=$left; fi
  if [ "$limit" -lt 5 ]; then
    say "$name: no time is left"
    return
  fi
  say "$name, $limit s at most"
  rm -f "$folder/gpu.csv"
  watch
  timeout --signal=TERM --kill-after=15 "$limit" "$@" >"$folder/$name.out" 2>"$folder/$name.err" || code=$?
  unwatch
  "$python" - "$name" "$code" "$((SECONDS - began))" "$folder" >>"$results" <<'PYTHON'
import csv, json, pathlib, sys

name, code, seconds, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), pathlib.Path(sys.argv[4])
row = {'part': name, 'exit code': code, 'seconds': seconds}
lines = (folder / f'{name}.out').read_text().splitlines()
row['rows'] = [json.loads(line) for line in lines if line.startswith('{')]
for log in sorted((folder / name).glob('logs/*.csv')) + sorted((folder / name).glob('logs/*/*.csv')):
  steps = [one for one in csv.DictReader(log.open()) if one.get('seconds')]
  if len(steps) > 1 and 'step' in steps[0]:
    first, last = steps[0], steps[-1]
    spent = float(last['seconds']) - float(first['seconds'])
    if spent > 0:
      row['steps per second'] = round((int(last['step']) - int(first['step'])) / spent, 4)
      row['steps'] = int(last['step'])
used = folder / 'gpu.csv'
samples = [line.split(',') for line in used.read_text().splitlines()] if used.is_file() else []
samples = [(float(a), float(b)) for a, b in (one for one in samples if len(one) == 2)]
if samples:
  row['peak MiB'] = max(a for a, _ in samples)
  row['mean use %'] = round(sum(b for _, b in samples) / len(samples), 1)
print(json.dumps(row))
PYTHON
  tail -n 1 "$results" >&2
}

main=("$python" -m robustmed.main)
sizes=() steps=1000000 cube=(--config.size=128)
if [ "$preset" = smoke ]; then
  sizes=(--config.width=0.03125 --config.batch=2 --config.steps=2 --config.repeats=1)
  cube=(--config.size=16) steps=6
fi
"$python" - >"$folder/device.json" <<'PYTHON'
import json
from robustmed.process import parallel
print(json.dumps(parallel.describe()))
PYTHON

peer() { if [ -n "${ROBUSTMED_PEER:-}" ]; then part "peer_$1" 60 bash -c "$ROBUSTMED_PEER"; fi; }
# bench NAME SECONDS FLAGS...: the workload is the name up to its first _.
bench() { part "$1" "$2" "${main[@]}" --config configs/benchmark.py --config.workloads="${1%%_*}" "${@:3}" ${sizes[@]+"${sizes[@]}"}; }
train() {
  local name=$1 limit=$2 config=$3
  shift 3
  rm -rf "${folder:?}/$name"
  part "$name" "$limit" "${main[@]}" --config "$config" --workdir "$folder/$name" --stage train \
    --config.train.steps="$steps" --config.train.log_every=2 "$@"
}
peer before
bench hippo 45
bench hippo_large 45 --config.batch=512
bench hippo_bf16 45 --config.batch=512 --config.dtype=bfloat16
bench brats3d 60 "${cube[@]}"
bench brats3d_bf16 60 "${cube[@]}" --config.dtype=bfloat16
train hippocampus 90 "configs/amat_hippocampus.py:$preset" --arms sat_5 --config.data.source=phantom_hippocampus
train brats 90 "configs/brats3d.py:$preset" --arms std --config.data.source=phantom_brats
bench spine 120 # XLA needs more than 45 seconds for this network
bench spine_large 120 --config.batch=256
bench spine_bf16 120 --config.batch=256 --config.dtype=bfloat16
bench onnx 60
peer after
say "results: $results"
