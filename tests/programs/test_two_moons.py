"""The two moons at smoke size, as a real process that is killed and goes on."""

import numpy as np
import pandas as pd
import pytest

from support import runs

pytestmark = pytest.mark.slow

CONFIG = ['--config', 'configs/two_moons.py:smoke']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run that was killed as soon as the searched codes were there, and went on."""
  folder = tmp_path_factory.mktemp('moons')
  added = folder / 'checkpoints' / 'e_searched_codes' / 'seed0' / 'added.npz'
  runs.interrupted(*CONFIG, '--workdir', folder, when=added.is_file)
  before = added.read_bytes()
  done = runs.main(*CONFIG, '--workdir', folder)
  assert added.read_bytes() == before and 'training a_full' not in done.stderr
  return folder


def test_every_panel_is_judged_on_moons_tail_and_far_away(run):
  rows = pd.read_parquet(run / 'results' / 'rows.parquet')
  assert len(set(rows['arm'])) == 6 and 'vae' not in set(rows['arm'])
  clean = rows[rows['eps'] == 0].groupby('arm')[['accuracy', 'tail', 'far']].count()
  assert (clean['far'] == 12).all() and (clean['accuracy'] == 24).all()
  assert (clean['tail'] > 0).all() and clean['tail'].nunique() == 1
  assert (rows['_distance'] <= rows['eps'] * (1 + 1e-4)).all()
  assert set(rows['group']) == {0, 1}


def test_the_report_has_six_panels_numbers_and_claims(run):
  page = (run / 'report' / 'report.md').read_text()
  for words in ('The six panels (Fig. 7)', 'searched codes', 'p(positive) far away'):
    assert words in page
  figure = run / 'report' / 'figures' / 'fig7_two_moons.png'
  assert figure.read_bytes().startswith(b'\x89PNG')
  with np.load(run / 'results' / 'two_moons.npz') as stored:
    assert stored['probability'].shape == (6, 9, 9) and len(set(stored['arm'])) == 6
  decided = pd.read_csv(run / 'report' / 'tables' / 'claims.csv')
  assert len(decided) == 6 and set(decided['verdict']) <= {'holds', 'fails', 'undecided'}
