"""Synthesised attacks at smoke size, as a real process."""

import re

import jax
import numpy as np
import pandas as pd
import pytest

from robustmed import generators
from robustmed.evaluation import grid, trials
from robustmed.papers.synthesis import experiment
from robustmed.runs import commandline, forecast
from support import counted, runs, torsos

pytestmark = pytest.mark.slow

CONFIG = ['--config', 'configs/synthesis.py:smoke']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('synthesis')
  counts = folder.with_suffix('.passes.json')
  runs.main(*CONFIG, '--workdir', folder, timeout=900, counted=counts)
  return folder


def test_the_forecast_is_what_was_counted(folder):
  counted.check(folder.with_suffix('.passes.json'), CONFIG[1])


def test_segmenters_meet_the_grid_and_generators_do_not(folder):
  rows = pd.read_parquet(folder / 'results' / 'rows.parquet')
  assert set(rows['arm']) == {'unet', 'nnunet', 'hardened'}
  assert set(rows['attack']) == {'none', 'pgd', 'noise'}


def test_generators_meet_the_segmenters_and_others_their_images(folder):
  found = pd.read_parquet(folder / 'results' / 'subjects.parquet')
  cells = set(found[['arm', 'attack', 'eps']].itertuples(index=False, name=None))
  for kind in ('dv', 'd', 'v', 'smooth', 'pgd'):
    assert ('unet', kind, 2.0) in cells
  assert {('unet', 'dv', 0.5), ('nnunet', 'dv', 2.0), ('hardened', 'dv', 2.0)} <= cells
  assert {('nnunet', 'dv_from_unet', 2.0), ('unet', 'dv_from_nnunet', 2.0)} <= cells
  assert found.groupby(['arm', 'attack', 'eps']).size().eq(2).all()  # test subjects
  slices = pd.read_parquet(folder / 'results' / 'generators.parquet')
  clean = slices[(slices['arm'] == 'unet') & (slices['attack'] == 'none')]
  assert len(clean) == 6  # all slices of the test subjects, those without organs too


def test_a_finished_run_has_nothing_left_to_forecast(folder):
  config = commandline.load_config(CONFIG[1])
  exp = experiment.build(config)
  models = [grid.Model(arm, trials.Trial(0), dict) for arm in ('unet', 'nnunet', 'hardened')]
  left = lambda results: forecast.remaining(
    exp, config, untrained=(), models=models, results=results, finished=exp.arms
  )
  assert left(folder / 'results').passes == 0
  beside = sum(
    sum(cost[:3])
    for model in models
    for cost in exp.study_cells(model.arm, model.trial, exp.arms).values()
  )
  assert left(folder / 'elsewhere').passes > beside > 0


def test_the_weights_kept_are_those_of_the_best_look(folder):
  looks = pd.read_csv(folder / 'results' / 'looks.csv')
  assert set(looks['arm']) == {'gen_0.5', 'gen_2', 'gen_2_nnunet', 'gen_2_hardened'}
  assert looks.groupby('arm')['step'].agg(list).map(lambda steps: steps == [2, 4]).all()
  miss = (looks['X'] - looks['xi']).abs()
  near = np.maximum(miss, 0.05 * looks['xi']) + looks['p'] / 1000
  np.testing.assert_allclose(looks['score'], near, atol=1e-5)  # of a table with six digits


def test_a_generator_of_the_run_attacks_a_new_image(folder):
  attack = generators.load(folder / 'checkpoints' / 'gen_2' / 'seed0')
  image = np.random.default_rng(0).normal(size=(2, 32, 16, 1)).astype(np.float32)
  result = attack(None, image, eps=2.0, key=jax.random.key(0))
  assert result.x.shape == image.shape and np.isfinite(result.x).all()
  assert (np.asarray(result.distance) > 0).all()


def test_the_report_has_the_papers_table_figures_and_claims(folder):
  page = (folder / 'report' / 'report.md').read_text()
  words = ('Table 1', '30 % decrease', 'I_DV 2', 'random smooth', 'Figs. 2 and 3', 'moved with D')
  assert [word for word in (*words, 'Hardening', 'critic') if word not in page] == []
  links = re.findall(r'\]\((.*?\.png)\)', page)
  assert all((folder / 'report' / link).is_file() for link in links)
  assert len([link for link in links if 'Fig_0' in link or 'deformation' in link]) == 3
  decided = pd.read_csv(folder / 'report' / 'tables' / 'claims.csv')
  assert len(decided) >= 15 and set(decided['verdict']) <= {
    'holds',
    'fails',
    'undecided',
    'not run',
  }


def test_once_more_nothing_is_done_again(folder):
  before = {p: p.stat().st_mtime_ns for p in (folder / 'results' / 'generators').iterdir()}
  runs.main(*CONFIG, '--workdir', folder, '--stage', 'evaluate', '--arms', 'gen_2')
  assert {p: p.stat().st_mtime_ns for p in (folder / 'results' / 'generators').iterdir()} == before


def test_grids_that_differ_end_in_one_line(tmp_path):
  for name in 'abc':
    torsos.save(tmp_path / f'{name}_0000.nii.gz', np.zeros((1, 16, 16)), (5.0, 3.0, 3.0))
    torsos.save(tmp_path / f'{name}.nii.gz', np.ones((1, 16, 17), np.uint8), (5.0, 3.0, 3.0))
  words = ['--config.data.source=abdomen', f'--config.data.dir={tmp_path}']
  line = runs.mistake(*CONFIG, '--workdir', tmp_path / 'run', *words)
  assert '.nii.gz: [17, 16, 1] voxels' in line and not (tmp_path / 'run').exists()
