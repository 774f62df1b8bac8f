"""A workdir that an earlier version wrote (552aab2, two_moons:smoke --arms a_full)."""

import pathlib
import shutil

import pandas as pd
import pytest

from support import runs

pytestmark = pytest.mark.slow

STORED = pathlib.Path(__file__).parent / 'fixtures' / 'workdir_552aab2'
# The stored configuration, whatever the present preset says.
CONFIG = """
import json, ml_collections


def _plain(value):
  if isinstance(value, dict):
    return {key: _plain(inner) for key, inner in value.items()}
  return tuple(map(_plain, value)) if isinstance(value, list) else value

def get_config(preset=''):
  with open(PATH) as stored:
    return ml_collections.ConfigDict(_plain(json.load(stored)["config"]))
"""


@pytest.fixture
def workdir(tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(STORED, folder)
  path = tmp_path / 'config.py'
  path.write_text(f'PATH = {str(STORED / "config.json")!r}\n{CONFIG}')
  return folder, ('--config', path, '--workdir', folder, '--arms', 'a_full')


def _summary(folder):
  return pd.read_csv(folder / 'results' / 'summary.csv', keep_default_na=False)


def test_a_finished_workdir_is_neither_trained_nor_evaluated_again(workdir):
  folder, words = workdir
  kept = {path: path.read_bytes() for path in (folder / 'results' / 'parts').iterdir()}
  done = runs.main(*words)
  assert 'training' not in done.stderr and 'report.html' in done.stdout
  assert {path: path.read_bytes() for path in (folder / 'results' / 'parts').iterdir()} == kept
  assert (folder / 'report' / 'report.html').is_file()
  pd.testing.assert_frame_equal(_summary(folder), _summary(STORED))


def test_an_interrupted_training_goes_on_from_its_checkpoint(workdir):
  folder, words = workdir
  arm = folder / 'checkpoints' / 'a_full' / 'seed0'
  shutil.rmtree(arm / 'variables')
  shutil.rmtree(arm / 'state' / '4')
  shutil.rmtree(folder / 'results')
  runs.main(*words)
  # The lines of the first two steps, with their seconds, are those of then.
  before, after = ((root / 'logs' / 'a_full.seed0.csv').read_text() for root in (STORED, folder))
  assert after.splitlines()[:3] == before.splitlines()[:3] and after != before
  pd.testing.assert_frame_equal(_summary(folder), _summary(STORED), rtol=1e-3, atol=1e-5)
