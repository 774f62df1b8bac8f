"""Whole runs as two processes of two devices and as one of four end in the same rows."""

import shutil

import numpy as np
import pandas as pd
import pytest

from support import runs

KEYS = ['arm', 'seed', 'attack', 'eps', 'index', 'group']
# The smoke presets with as few programs to compile as show the difference that hosts could make.
TINY = """
import importlib, sys
sys.path.insert(0, {configs!r})
smoke = importlib.import_module({name!r})

def get_config(preset=''):
  config = smoke.get_config('smoke')
  for attack in set(config.evaluate.attacks) - {attacks!r}:
    del config.evaluate.attacks[attack]
  for arm in set(config.arms) - {arms!r}:
    del config.arms[arm]
  config.train.batch_size = {batch}
  return config
"""


def _config(folder, name, *, attacks, arms, batch):
  path = folder / f'tiny_{name}.py'
  text = TINY.format(
    configs=str(runs.ROOT / 'configs'), name=name, attacks=attacks, arms=arms, batch=batch
  )
  path.write_text(text)
  return path


def _run(folder, *words, processes, devices):
  started = runs.hosts(*words, '--workdir', folder, processes=processes, devices=devices)
  try:
    codes, texts = runs.ends(started)
  finally:
    for process in started:
      process.kill()
  assert codes == [0] * processes, texts
  assert f'4 x cpu (cpu) on {processes} host(s)' in texts[0]
  assert [text.count('done in') for text in texts[1:]] == [0] * (processes - 1)
  return pd.read_parquet(folder / 'results' / 'rows.parquet')


def _both(folder, config):
  words = ['--config', config]
  two = _run(folder / 'two', *words, processes=2, devices=2)
  one = _run(folder / 'one', *words, processes=1, devices=4)
  pd.testing.assert_frame_equal(two[KEYS], one[KEYS])
  return two, one


def _logs(folder):
  return [pd.read_csv(folder / n / 'logs' / 'train.csv') for n in ('two', 'one')]


@pytest.mark.slow
def test_quickstart(tmp_path):
  config = _config(tmp_path, 'quickstart', attacks={'pgd_seg'}, arms={'std'}, batch=8)
  two, one = _both(tmp_path, config)
  np.testing.assert_allclose(two['_value'], one['_value'], rtol=2e-3)
  logs = _logs(tmp_path)
  np.testing.assert_allclose(logs[0]['loss'], logs[1]['loss'], rtol=1e-4)

  # The network of the two hosts on one: equal weights, equal bits.
  shutil.rmtree(tmp_path / 'two' / 'results')
  again = _run(tmp_path / 'two', '--config', config, '--stage', 'evaluate', processes=1, devices=4)
  pd.testing.assert_frame_equal(again, two)


@pytest.mark.long
def test_amat(tmp_path):
  attacks, arms = {'pgd'}, {'std', 'amat'}
  config = _config(tmp_path, 'amat_hippocampus', attacks=attacks, arms=arms, batch=8)
  two, one = _both(tmp_path, config)
  np.testing.assert_allclose(two['_value'], one['_value'], rtol=5e-3, atol=1e-5)
  margins = [pd.read_csv(tmp_path / n / 'logs' / 'amat.seed0.margins.csv') for n in ('two', 'one')]
  pd.testing.assert_frame_equal(*margins, rtol=1e-3)
  assert margins[0]['drawn'].iloc[-1] > 0


@pytest.mark.long
def test_brats(tmp_path):
  config = _config(tmp_path, 'brats2d', attacks={'fgsm'}, arms={'std'}, batch=4)
  two, one = _both(tmp_path, config)
  np.testing.assert_allclose(two['_value'], one['_value'], rtol=5e-3, atol=1e-5)
