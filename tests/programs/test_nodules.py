"""The study of nodules at smoke size, as a real process that is killed and goes on."""

import re

import numpy as np
import pandas as pd
import pytest

from support import runs

pytestmark = pytest.mark.slow

CONFIG = ['--config', 'configs/nodules.py:smoke']
ARMS = {'ce', 'beta_finetune', 'longer', 'syn', 'perturb'}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Killed in the stress tests; what is there is not made again."""
  folder = tmp_path_factory.mktemp('nodules')
  cell = folder / 'results' / 'stress' / 'ce.seed0.uniform.0.3.parquet'
  runs.interrupted(*CONFIG, '--workdir', folder, when=cell.exists, timeout=900)
  kept = [*(folder / 'pools').rglob('facts.json'), *(folder / 'checkpoints').rglob('network.json')]
  kept += (folder / 'results').glob('*/**/[!.]*.parquet')
  before = {path: path.stat().st_mtime_ns for path in kept}
  runs.main(*CONFIG, '--workdir', folder, timeout=900)
  assert {'facts.json', 'network.json', cell.name, 'phantom.00004.parquet'} <= {
    path.name for path in before
  }
  assert all(path.stat().st_mtime_ns == time for path, time in before.items())
  return folder


def test_classifiers_meet_the_grid_and_the_rest_does_not(run):
  rows = pd.read_parquet(run / 'results' / 'rows.parquet')
  assert set(rows['arm']) == ARMS and set(rows['attack']) == {'none', 'pgd', 'one_step', 'noise'}
  trained = {path.name for path in (run / 'checkpoints').iterdir()}
  assert trained == ARMS | {'blob', 'segmentation', 'synthesiser'}
  assert (rows['_distance'] <= rows['eps'] * (1 + 1e-4)).all()
  beta = rows[rows['arm'] != 'ce']
  assert beta['uncertainty'].between(0, 1).all() and beta['confidence'].between(0, 1).all()


def test_every_network_meets_the_same_stressed_patches(run):
  stress = pd.read_parquet(run / 'results' / 'stress.parquet')
  cells = stress.groupby(['attack', 'eps', 'arm']).size().unstack()
  assert set(cells.columns) == ARMS and cells.notna().all().all()
  assert (cells.nunique(axis=1) == 1).all()
  assert {'codes', 'random', 'own_noise_pgd', 'uniform_wide', 'poisson'} <= set(stress['attack'])
  for same in (('none', 'uniform', 'poisson', 'positives'), ('clean_negatives', 'negatives')):
    patches = [
      frozenset(zip(one['index'], one['group'], strict=True))
      for _, one in stress[stress['attack'].isin(same)].groupby(['arm', 'attack', 'eps'])
    ]
    assert len(patches) >= len(same) * len(ARMS) and len(set(patches)) == 1, same
  claims = pd.read_csv(run / 'report' / 'tables' / 'claims.csv')
  assert not claims['numbers'].str.contains('no finite value').any()
  made = pd.read_parquet(run / 'results' / 'made.parquet')
  assert set(made['attack']) == {'codes', 'random', 'real'}
  assert made['diameter'].gt(0).all() and np.isfinite(made['hu']).all()


def test_submissions_can_be_scored_by_the_tool(run, tmp_path):
  from robustmed.metrics.froc import tool

  folder = run / 'results' / 'froc'
  assert {path.name for path in folder.glob('*.seed0.csv')} == {
    f'{arm}.seed0.csv' for arm in (*ARMS, 'candidates')
  }
  words = ['--annotations', folder / 'annotations', '--out', tmp_path, '--bootstrap', 10]
  assert tool.main([str(w) for w in (folder / 'syn.seed0.csv', *words)]) == 0
  table = pd.read_csv(folder / 'syn.seed0.csv')
  assert table['probability'].between(0, 1).all() and len(table) <= 2 * 5


def test_the_report_has_the_papers_tables_figures_and_claims(run):
  page = (run / 'report' / 'report.md').read_text()
  words = (*(f'Table {number}' for number in range(1, 7)), 'Figs. 5 and 8', 'Fig. 6', 'Circularity')
  assert [word for word in words if word not in page] == []
  links = re.findall(r'\]\((.*?\.png)\)', page)
  assert all((run / 'report' / link).is_file() for link in links)
  decided = pd.read_csv(run / 'report' / 'tables' / 'claims.csv')
  verdicts = {'holds', 'fails', 'undecided', 'not run'}
  assert len(decided) == 44 and set(decided['verdict']) <= verdicts
