"""deepbet's bounding-box network on the MNI template, from PyTorch's file to the page of an audit.

`launch/test.sh --peers` makes the environment that it needs.
"""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import nibabel as nib
import numpy as np
import pytest

from robustmed import networks
from support import runs

reason = 'launch/test.sh --peers runs it with PyTorch, deepbet and nilearn'
torch = pytest.importorskip('torch', reason=reason)
if not (importlib.util.find_spec('deepbet') and importlib.util.find_spec('nilearn')):
  pytest.skip(reason, allow_module_level=True)

DICE = 0.999


@pytest.fixture(scope='module')
def work(tmp_path_factory):
  folder = tmp_path_factory.mktemp('deepbet')
  peer = pathlib.Path(__file__).with_name('deepbet_peer.py')
  subprocess.run([sys.executable, str(peer), str(folder)], check=True)
  return folder


def test_the_clean_mask_is_pytorchs(work):
  network = networks.load(work / 'bbox.onnx')
  image = nib.load(work / 'template' / 'imagesTr' / 'mni_0000.nii.gz')
  given = np.asarray(image.dataobj, np.float32)[None, ..., None]
  found = np.asarray(jax.jit(network.predict)(network.variables, given))[0, ..., 1] > 0.5
  mask = np.load(work / 'mask.npy')
  assert 2 * (found & mask).sum() / (found.sum() + mask.sum()) >= DICE
  assert 0.1 < mask.mean() < 0.4


def test_it_is_audited_on_one_case_without_an_interval(work):
  """One level and few steps; the results page has PGD-10 at three levels."""
  words = [f'--config.network={work / "bbox.onnx"}', f'--config.data.dir={work / "template"}']
  words += ['--config.evaluate.batch_size=1', '--config.evaluate.levels=(0.02,)']
  words += ['--config.evaluate.attacks.pgd.num_steps=2', '--config.evaluate.halvings=0']
  words += ['--config.evaluate.save_examples=0', '--config.report.pictures=0']
  words.append('--config.evaluate.corruptions=()')
  runs.main('--config', 'configs/audit.py', *words, '--workdir', work / 'w')
  found = json.loads((work / 'w' / 'report' / 'audit.json').read_text())
  dice = {line['attack']: line for line in found['results'] if line['metric'] == 'DICE'}
  assert dice['none']['mean'] > 0.95 and dice['pgd']['mean'] < dice['none']['mean']
  assert all(line['low'] is None and line['groups'] == 1 for line in dice.values())
  page = (work / 'w' / 'report' / 'report.md').read_text()
  assert 'One patient says nothing of others: no intervals are given' in page
