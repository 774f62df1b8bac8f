"""Adaptive-margin training at smoke size, as real processes."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from robustmed.evaluation import grid, trials
from robustmed.papers.amat import experiment
from robustmed.runs import commandline, forecast
from support import counted, runs

pytestmark = pytest.mark.slow

CONFIG = ['--config', 'configs/amat_hippocampus.py:smoke']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('amat')
  counts = folder.with_suffix('.passes.json')
  return folder, runs.main(*CONFIG, '--workdir', folder, counted=counts)


def test_the_forecast_is_what_was_counted(run):
  counted.check(run[0].with_suffix('.passes.json'), CONFIG[1])


def margins(folder):
  return pd.read_csv(folder / 'logs' / 'amat.seed0.margins.csv')


def test_arms_meet_the_grid_and_the_stronger_attacks(run):
  rows = pd.read_parquet(run[0] / 'results' / 'rows.parquet')
  assert set(rows['arm']) == {'std', 'sat_5', 'sat_15', 'amat'}
  found = rows.groupby('arm')['attack'].agg(set).to_dict()
  stronger = {'none', 'pgd', 'pgd_best', 'apgd', 'transfer', 'one_step', 'noise'}
  assert found['amat'] == found['sat_5'] == stronger
  assert found['std'] == stronger - {'transfer'}
  attacked = rows[rows['attack'] != 'none']
  assert (attacked['_distance'] <= attacked['eps'] * (1 + 1e-4)).all()
  counts = rows[['_tp1', '_fp1', '_fn1', '_tp2', '_fp2', '_fn2']]
  assert (counts >= 0).all().all() and (rows['_tp1'] + rows['_fn1'] > 0).all()


def test_a_finished_run_has_nothing_left_to_forecast(run):
  config = commandline.load_config(CONFIG[1])
  exp = experiment.build(config)
  models = [grid.Model(arm, trials.Trial(0), dict) for arm in ('std', 'sat_5', 'sat_15', 'amat')]
  left = lambda results: forecast.remaining(
    exp, config, untrained=(), models=models, results=results
  )
  assert left(run[0] / 'results').passes == 0
  beside = sum(
    sum(cost[:3])
    for model in models
    for cost in exp.study_cells(model.arm, model.trial, ()).values()
  )
  assert left(run[0] / 'elsewhere').passes > beside > 0


def test_thresholds_are_the_mean_clean_dice_of_the_complete_training_slices(run):
  folder = run[0]
  with np.load(folder / 'checkpoints' / 'amat' / 'seed0' / 'thresholds.npz') as stored:
    values, xi, stratum = stored['values'], stored['xi'], stored['stratum']
  plan = runs.main(*CONFIG, '--stage', 'describe')
  sizes = json.loads(plan.stdout)['data']
  assert 0 < len(values) < sizes['train'] and (stratum == 3).all()
  np.testing.assert_allclose(xi, values.mean(axis=0), rtol=1e-12)


@pytest.mark.long
def test_thresholds_of_the_papers_text_are_those_of_slices_with_equal_classes(tmp_path):
  words = ['--config', 'configs/amat_hippocampus.py:smoke,text', '--workdir', tmp_path]
  runs.main(*words, '--arms', 'amat', '--stage', 'train')
  with np.load(tmp_path / 'checkpoints' / 'amat' / 'seed0' / 'thresholds.npz') as stored:
    values, xi, stratum = stored['values'], stored['xi'], stored['stratum']
  assert xi.shape == (4, 1) and {0, 3} <= set(stratum)
  for place, limit in enumerate(xi):
    if (stratum == place).any():
      np.testing.assert_allclose(limit, values[stratum == place].mean(axis=0), rtol=1e-12)
    else:
      assert np.isnan(limit)
  runs.main(*words, '--arms', 'std,amat')
  claims = pd.read_csv(tmp_path / 'report' / 'tables' / 'claims.csv').set_index('statement')
  normal = claims.loc['The clean losses V of STD are approximately normal']
  assert normal['verdict'] in ('holds', 'fails', 'undecided') and 'distance' in normal['numbers']
  page = (tmp_path / 'report' / 'report.md').read_text()
  assert 'among slices that show the same classes' in page and 'total, no class' in page


def test_margins_grow_by_the_step_alone(run):
  table = margins(run[0])
  assert table['step'].iloc[-1] == 4 and (table['min'] >= 0).all()
  assert table['max'].iloc[0] == pytest.approx(2.5 * 0.414, rel=1e-3)
  assert (table['drawn'].diff().dropna() >= 0).all()


def test_the_report_answers_every_claim(run):
  folder = run[0]
  claims = pd.read_csv(folder / 'report' / 'tables' / 'claims.csv').set_index('statement')
  normal = 'The clean Dice V of STD is approximately normal'
  assert claims['verdict'][normal] == 'not run'  # too few slices of so small a run are complete
  verdicts = claims['verdict'].drop(normal)
  assert set(verdicts) <= {'holds', 'fails', 'undecided', 'measured'}
  assert 'AMAT takes about as long as SAT' in claims.index and len(claims) >= 12
  page = (folder / 'report' / 'report.md').read_text()
  for words in ('Margins over training', 'Table 2', 'TVDI', 'HD95', 'best iterate', 'batch (stock'):
    assert words in page, words
  assert all((folder / 'report' / link).is_file() for link in re.findall(r'\]\((.*?\.png)\)', page))
  volumes = pd.read_csv(folder / 'results' / 'volumes.csv')
  clean, attacked = (volumes[(volumes['attack'] == name)] for name in ('none', 'pgd'))
  assert clean['group'].nunique() > attacked['group'].nunique() == 1
  assert volumes['Dice'].between(0, 1).all() and volumes['NSD'].between(0, 1).all()
  assert len(list((folder / 'results' / 'worst').glob('*/*.nii.gz'))) == 2 * 4


def test_killed_in_training_the_margins_end_the_same(run, tmp_path):
  words = [*CONFIG, '--workdir', tmp_path, '--stage', 'train', '--arms', 'amat']
  state = tmp_path / 'checkpoints' / 'amat' / 'seed0' / 'state'
  begun = lambda: state.is_dir() and any(path.name.isdigit() for path in state.iterdir())
  runs.interrupted(*words, when=begun)
  runs.main(*words)
  whole = run[0] / 'checkpoints' / 'amat' / 'seed0'
  other = tmp_path / 'checkpoints' / 'amat' / 'seed0'
  with np.load(whole / 'thresholds.npz') as one, np.load(other / 'thresholds.npz') as two:
    np.testing.assert_array_equal(one['values'], two['values'])
  pd.testing.assert_frame_equal(
    margins(run[0]).tail(1), margins(tmp_path).tail(1), check_exact=True
  )
  last = lambda folder: (
    pd.read_csv(folder / 'logs' / 'amat.seed0.csv').tail(1).drop(columns=['seconds'])
  )
  pd.testing.assert_frame_equal(last(run[0]), last(tmp_path), check_exact=True)
