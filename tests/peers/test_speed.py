"""The peers of the benchmark have the layers of ours, and the comparison runs."""

import json
import pathlib
import subprocess
import sys

import jax
import pytest

from robustmed.benchmark import problems

torch = pytest.importorskip('torch', reason='the peer of the benchmark')

FOLDER = pathlib.Path(__file__).parent
COUNTS = {
  'spine': 38_998_721,
  'hippo': 1_928_256,
  'brats3d': 8_269_676,
  'ceph': 24_308_153,
  'bccd': 7_027_720,
}


@pytest.mark.parametrize('name', COUNTS)
def test_both_sides_have_the_published_number_of_parameters(name, monkeypatch):
  monkeypatch.syspath_prepend(FOLDER)
  import speed
  import torch_networks as networks

  nets = (networks.ShapeNet, lambda: networks.NnUNet2D([32, 64, 128, 256], 3))
  nets = (*nets, networks.ResUNet3D, networks.LandmarkUNet, networks.Yolo)
  theirs = dict(zip(speed.NAMES, nets, strict=True))[name]()
  sized = (16,) if name == 'brats3d' else ()
  ours = jax.eval_shape(lambda: getattr(problems, name)(1, 1.0, *sized).variables['params'])
  assert sum(leaf.size for leaf in jax.tree.leaves(ours)) == COUNTS[name]
  assert sum(leaf.numel() for leaf in theirs.parameters()) == COUNTS[name]


@pytest.mark.slow
def test_a_comparison_has_both_rates(tmp_path):
  words = ['hippo', '--rounds=2', '--steps=2', '--batch=1', f'--out={tmp_path / "a.csv"}']
  done = subprocess.run(
    [sys.executable, FOLDER / 'speed.py', *words], capture_output=True, text=True, timeout=600
  )
  assert done.returncode == 0, done.stderr
  row = json.loads(done.stdout)
  assert float(row['ours']) > 0 and float(row['theirs']) > 0
  assert len((tmp_path / 'a.csv').read_text().splitlines()) == 2
