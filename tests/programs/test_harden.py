"""configs/harden.py at smoke size, as a real process: trained on, handed back, audited again."""

import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
import pytest

from robustmed import networks
from support import audited, folders, runs

pytestmark = pytest.mark.slow

DATA = ['--config.data.source=phantom_labelled', '--config.input.normalise=minmax']
CONFIG = ['--config', 'configs/harden.py:smoke', *DATA]


def test_a_file_is_hardened_and_comes_back_as_a_file(tmp_path):
  path = audited.brightness(tmp_path / 'net.onnx', centres=(0.4, 0.7, 1.2), last='Softmax')
  words = [*CONFIG, f'--config.network={path}', '--config.evaluate.levels=(0.02,0.1)']
  words += ['--arms', 'loaded,adv,amat', '--workdir', tmp_path / 'w']
  done = runs.main(*words)
  assert 'net.onnx: 44 weights are trained' in done.stderr
  results, report = tmp_path / 'w' / 'results', tmp_path / 'w' / 'report'
  handed = results / 'networks'
  assert {file.name for file in handed.iterdir()} == {
    *(f'{arm}_seed0.{end}' for arm in ('adv', 'amat') for end in ('onnx', 'json')),
    'load.md',
  }
  old, new = networks.load(path), networks.load(handed / 'adv_seed0.onnx')
  assert any(not np.array_equal(new.variables[k], old.variables[k]) for k in old.variables)
  found = json.loads((report / 'audit.json').read_text())
  assert list(found['networks']) == ['loaded', 'adv', 'amat']
  assert found['networks']['adv']['sha256'] == new.digest
  assert found['networks']['loaded']['sha256'] == old.digest
  claims = pd.read_csv(report / 'tables' / 'claims.csv')
  assert len(claims) == 10
  assert 'adv_seed0.onnx' in (report / 'card.md').read_text()

  # Run again it repeats nothing, and writes back what is missing.
  shutil.rmtree(handed)
  again = runs.main(*words)
  assert 'training' not in again.stderr.replace('thresholds', '')
  assert networks.load(handed / 'adv_seed0.onnx').digest == new.digest

  # The file by itself has the numbers that it had here, its description beside it.
  single = [f'--config.network={handed / "adv_seed0.onnx"}', '--config.evaluate.levels=(0.02,0.1)']
  split = ['--config.data.split=fraction', '--config.data.test_share=0.4']
  runs.main(
    '--config',
    'configs/audit.py:smoke',
    DATA[0],
    *single,
    *split,
    '--workdir',
    tmp_path / 'v',
  )
  rows = pd.read_parquet(results / 'rows.parquet').query("arm == 'adv'")
  alone = pd.read_parquet(tmp_path / 'v' / 'results' / 'rows.parquet')
  order = ['attack', 'eps', 'index']
  for name in ('DICE', '_distance'):
    np.testing.assert_allclose(
      rows.sort_values(order)[name], alone.sort_values(order)[name], atol=1e-6
    )


def test_a_killed_training_goes_on_to_the_same_network(tmp_path):
  path = audited.brightness(tmp_path / 'net.onnx', centres=(0.4, 0.7, 1.2), last='Softmax')
  words = [*CONFIG, f'--config.network={path}', '--stage', 'train', '--arms', 'adv', '--workdir']
  trained = lambda name: tmp_path / name / 'checkpoints' / 'adv' / 'seed0'
  begun = (trained('killed') / 'state' / '2').exists
  assert runs.interrupted(*words, tmp_path / 'killed', when=begun) != 0
  for name in ('killed', 'whole'):
    runs.main(*words, tmp_path / name)
  with ocp.StandardCheckpointer() as loader:
    found = [loader.restore(trained(name) / 'variables') for name in ('killed', 'whole')]
  jax.tree.map(np.testing.assert_array_equal, *found)


def test_mistakes_are_one_line(tmp_path):
  path = audited.brightness(tmp_path / 'net.onnx')
  words = [*CONFIG, '--workdir', tmp_path / 'w']
  line = runs.mistake(*words, f'--config.network={path}', '--config.harden.freeze=.*')
  assert 'has no weights to train: named by freeze' in line
  line = runs.mistake(*words, f'--config.network={path}', '--config.data.split=all')
  assert 'all cases are test cases, so adv, amat, noise, std cannot be trained' in line
  assert not (tmp_path / 'w').exists()


@pytest.mark.long
def test_an_organ_is_trained_attacked_hardened_and_audited(tmp_path):
  """From a folder to a hardened network without code; Dice is the same wherever it is measured."""
  organ = {'background': 0, 'organ': 1, 'lesion': 2}
  folder = f'--config.data.dir={folders.nnunet(tmp_path / "raw", labels=organ, shape=(8, 18, 16))}'
  split = ['--config.data.test_share=0.4', '--config.data.slices_per_case=3']
  words = ['--config', 'configs/train.py:smoke', folder, *split, '--arms', 'std']
  runs.main(*words, '--workdir', tmp_path / 'train')
  network = tmp_path / 'train' / 'checkpoints' / 'std' / 'seed0'
  split += ['--config.data.split=fraction', '--config.data.most_examples=0', folder]
  levels = '--config.evaluate.levels=(0.01,0.04)'
  words = ['--config', 'configs/harden.py:smoke', *split, f'--config.network={network}', levels]
  done = runs.main(*words, '--arms', 'loaded,adv', '--workdir', tmp_path / 'harden')
  assert 'std_seed0: input.normalise = case (network.json)' in done.stderr
  rows = lambda name: pd.read_parquet(tmp_path / name / 'results' / 'rows.parquet')
  clean = lambda table, arm: table[(table['arm'] == arm) & (table['attack'] == 'none')].sort_values(
    'index'
  )['DICE']
  np.testing.assert_allclose(
    clean(rows('harden'), 'loaded'), clean(rows('train'), 'std'), atol=1e-6
  )
  handed = tmp_path / 'harden' / 'results' / 'networks' / 'adv_seed0'
  assert (handed / 'network.json').is_file() and (handed / 'variables').is_dir()
  words = ['--config', 'configs/audit.py:smoke', *split, f'--config.networks={handed},{network}']
  runs.main(*words, levels, '--workdir', tmp_path / 'audit')
  found = rows('audit')
  assert set(found['arm']) == {'adv_seed0', 'seed0'}
  np.testing.assert_allclose(clean(found, 'adv_seed0'), clean(rows('harden'), 'adv'), atol=1e-6)
