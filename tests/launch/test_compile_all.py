"""launch/compile_all.sh with a Python that writes down how it is called."""

import os
import subprocess

from support import runs


def _calls(tmp_path, **environment):
  python, log = tmp_path / 'python', tmp_path / 'log'
  python.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
  python.chmod(0o755)
  words = ['bash', str(runs.ROOT / 'launch' / 'compile_all.sh'), str(tmp_path / 'runs')]
  given = {**os.environ, 'ROBUSTMED_COMPILE_PYTHON': str(python), **environment}
  subprocess.run([*words, 'amat_heart', 'spine'], env=given, check=True, capture_output=True)
  return [line for line in log.read_text().splitlines() if 'robustmed.main' in line]


def _asked(call):
  words = call.partition('--programs ')[0].split()
  return words[words.index('--target') + 1], words[words.index('--config') + 1]


def test_every_experiment_has_its_main_programs_before_any_has_all(tmp_path):
  calls = _calls(tmp_path)
  pair = ['configs/amat_heart.py:paper', 'configs/spine.py:paper']
  expected = [(target, config) for target in ('v5e-16', 'v5e-256', 'v5e-16') for config in pair]
  assert [_asked(call) for call in calls] == expected
  assert all('--programs train amat,attack pgd --jobs 1' in calls[place] for place in (0, 2))
  assert '--programs train amat,attack pgd,augment,train,score,attack --jobs 1' in calls[4]
  assert not any('--full' in call for call in calls)


def test_only_the_main_programs_in_full(tmp_path):
  calls = _calls(tmp_path, ROBUSTMED_ONLY='main', ROBUSTMED_FULL='yes', ROBUSTMED_TARGETS='v5e-16')
  assert len(calls) == 2 and all(call.endswith('--full') for call in calls)
