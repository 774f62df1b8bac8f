"""All folds of adaptive-margin training as one run at smoke size, as real processes."""

import numpy as np
import pandas as pd
import pytest

from robustmed.papers.amat import experiment
from robustmed.runs import commandline, description, forecast, networks
from support import runs

pytestmark = [pytest.mark.slow, pytest.mark.long]

FOLDS = 2
FILE = 'configs/amat_hippocampus.py:smoke'
CONFIG = [
  *('--config', FILE, f'--config.data.folds={FOLDS}', '--config.evaluate.save_examples=0'),
  *('--config.evaluate.levels=(2.484,)', '--config.report.pictures=2'),
  # As many examples in either fold as fill a batch: nothing is compiled twice.
  *('--config.data.slices=all', '--config.data.slices_per_case=4'),
]
ARMS = ('std', 'amat')


def place(folder, arm, fold):
  return folder / 'checkpoints' / arm / 'seed0' / f'fold{fold}'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Killed in the training of the second fold, and started again."""
  folder = tmp_path_factory.mktemp('folds') / 'run'
  words = [*CONFIG, '--workdir', folder, '--arms', ','.join(ARMS)]
  begun = lambda: (place(folder, 'amat', 1) / 'state' / '2').is_dir()
  runs.interrupted(*words, when=begun)
  kept = [place(folder, arm, 0) / 'variables' for arm in ARMS]
  before = [path.stat().st_mtime_ns for path in kept]
  done = runs.main(*words)
  assert [path.stat().st_mtime_ns for path in kept] == before
  return folder, done


def test_the_first_lines_say_what_is_run(run):
  lines = run[1].stderr.splitlines()
  said = [place for place, line in enumerate(lines) if '2 folds are one run' in line]
  trained = [place for place, line in enumerate(lines) if 'training' in line]
  assert '6 groups in all' in lines[said[0]] and said[0] < trained[0]
  assert 'training amat (seed 0, fold 1)' in lines[trained[0]] and len(trained) == 1


def test_every_case_is_tested_once_by_a_network_that_did_not_see_it(run):
  folder = run[0]
  rows = pd.read_parquet(folder / 'results' / 'rows.parquet')
  assert set(rows['group']) == set(range(6)) and set(rows['arm']) == set(ARMS)
  assert (rows.groupby('group')['fold'].nunique() == 1).all() and set(rows['fold']) == {0, 1}
  for fold in range(FOLDS):
    with np.load(place(folder, 'amat', fold) / 'thresholds.npz') as stored:
      trained = set(stored['group'].tolist())
    tested = set(rows.loc[rows['fold'] == fold, 'group'])
    assert trained and not trained & tested and len(tested) == 3
  assert {'transfer', 'apgd'} <= set(rows.loc[rows['arm'] == 'amat', 'attack'])
  whole = pd.read_csv(folder / 'results' / 'volumes.csv')
  clean = whole[whole['attack'] == 'none'].drop_duplicates(['arm', 'fold', 'group'])
  assert len(clean) == len(ARMS) * 6


def test_the_report_shows_the_folds_and_for_which_networks_it_holds(run):
  folder = run[0]
  page = (folder / 'report' / 'report.md').read_text()
  for words in ('## Folds', 'conditional on these networks', 'in each of 2 folds', 'first fold of'):
    assert words in page, words
  table = pd.read_csv(folder / 'report' / 'tables' / 'folds.csv')
  assert list(table.columns) == ['arm', 'level', 'fold 0', 'fold 1', 'F', 'p']
  assert table['arm'].tolist() == [arm for arm in ARMS for _ in (0, 1)]
  assert 'fold' not in set(pd.read_csv(folder / 'results' / 'summary.csv')['metric'])
  claims = pd.read_csv(folder / 'report' / 'tables' / 'claims.csv')
  assert claims['numbers'].str.contains('6 groups').any()


def test_a_finished_run_has_nothing_left_to_forecast(run):
  command = commandline.parse([*CONFIG, '--workdir', str(run[0])])
  exp = experiment.build(command.config)
  models = networks.Networks(exp, command.config, run[0]).models(ARMS)
  left = lambda results: (
    forecast.remaining(exp, command.config, untrained=(), models=models, results=results).passes
  )
  assert len(models) == len(ARMS) * FOLDS and left(run[0] / 'results') == 0 < left(run[0])
  assert description.reach(exp).groups == 6
