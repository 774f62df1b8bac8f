"""The measurement of a GPU, with tiny sizes on the CPU."""

import json
import subprocess
import sys

import pytest

from support import runs

SCRIPT = runs.ROOT / 'launch' / 'measure_gpu.sh'
SPEEDS = [f'{name}{kind}' for name in ('spine', 'hippo') for kind in ('', '_large', '_bf16')]
SPEEDS += ['brats3d', 'brats3d_bf16', 'onnx']
PARTS = [*SPEEDS[3:-1], 'hippocampus', 'brats', *SPEEDS[:3], 'onnx']


def _run(folder, **environment):
  own = {'ROBUSTMED_PRESET': 'smoke', 'ROBUSTMED_PYTHON_BIN': sys.executable}
  environment = {**runs.environment(), **own, 'JAX_PLATFORMS': 'cpu', **environment}
  words = ['bash', str(SCRIPT), str(folder)]
  done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  path = folder / 'results.jsonl'
  rows = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line) for line in rows], done.stderr


@pytest.mark.long
def test_every_part_writes_a_line(tmp_path):
  rows, _ = _run(tmp_path, ROBUSTMED_PEER='echo \'{"peer": 1}\'', ROBUSTMED_SECONDS='3000')
  assert [row['part'] for row in rows] == ['peer_before', *PARTS, 'peer_after']
  assert [row['exit code'] for row in rows] == [0] * len(rows)
  found = {row['part']: row for row in rows}
  assert found['peer_before']['rows'] == [{'peer': 1}]
  for name in SPEEDS:
    (row,) = found[name]['rows']
    assert row['workload'] == name.partition('_')[0] and row['grads_per_s'] > 0
    assert row.get('dtype', 'float32') == ('bfloat16' if name.endswith('bf16') else 'float32')
  for name in ('hippocampus', 'brats'):
    assert found[name]['steps per second'] > 0


@pytest.mark.slow
def test_without_time_nothing_is_started(tmp_path):
  rows, err = _run(tmp_path, ROBUSTMED_SECONDS='0')
  assert rows == [] and all(f'{name}: no time is left' in err for name in PARTS)
  assert json.loads((tmp_path / 'device.json').read_text())['platform'] == 'cpu'
