"""The study of gliomas at smoke size, as a real process."""

import itertools
import re

import jax
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from robustmed.papers.brats import experiment
from robustmed.runs import commandline
from robustmed.training import checkpoints
from support import counted, gliomas, runs

pytestmark = pytest.mark.slow

ARMS = {'std', 'teacher_5', 'teacher_20', 'distil_5'}
ATTACKS = {
  'none', 'fgsm', 'ifgsm', 'tifgsm', 'scaled_ifgsm', 'transfer', 'square', 'noise',
}  # fmt: skip


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Slices, all arms, with NIfTI files."""
  folder = tmp_path_factory.mktemp('brats')
  words = ['--config', 'configs/brats2d.py:smoke', '--arms', 'std,teacher_20,distil_5']
  words += ['--config.evaluate.save_nifti=True']
  counts = folder.with_suffix('.passes.json')
  return folder, runs.main(*words, '--workdir', folder, counted=counts)


def test_the_forecast_is_what_was_counted(run):
  arms = ('std', 'teacher_20', 'distil_5')
  counted.check(run[0].with_suffix('.passes.json'), 'configs/brats2d.py:smoke', arms)


def test_arms_meet_the_attacks_volume_by_volume(run):
  rows = pd.read_parquet(run[0] / 'results' / 'rows.parquet')
  assert set(rows['arm']) == ARMS - {'teacher_5'}
  assert {path.name for path in (run[0] / 'checkpoints').iterdir()} == ARMS
  found = rows.groupby('arm')['attack'].agg(set)
  assert found['teacher_20'] == {'none'}
  assert found['distil_5'] == ATTACKS and found['std'] == ATTACKS - {'transfer'}
  assert sorted(rows['index'].unique()) == sorted(rows['group'].unique()) == [3, 4]
  parts = pd.read_parquet(run[0] / 'results' / 'parts' / 'std.seed0.fgsm.0.05.parquet')
  assert len(parts) == 2 * 2 and '_both_wt' in parts.columns
  attacked = rows[rows['attack'] != 'none']
  assert (attacked['_distance'] <= attacked['eps'] * (1 + 1e-4)).all()
  np.testing.assert_allclose(attacked['psnr'], -20 * np.log10(attacked['rmse']), rtol=1e-6)


def test_trainings_at_different_temperatures_are_different_trainings(run):
  """With one key: T must not cancel, or teachers would be std up to rounding."""
  task = experiment.build(commandline.load_config('configs/brats2d.py:smoke')).task

  def weights(arm):
    path = run[0] / 'checkpoints' / arm / 'seed0' / 'variables'
    leaves = jax.tree.leaves(checkpoints.load_variables(path, task)['params'])
    return np.concatenate([np.ravel(leaf) for leaf in leaves])

  for one, two in itertools.combinations(('std', 'teacher_5', 'teacher_20'), 2):
    apart = np.abs(weights(one) - weights(two))
    assert apart.max() > 1e-3 and apart.mean() > 1e-5, (one, two)


def test_curves_over_iterations_begin_at_the_clean_image(run):
  rows = pd.read_parquet(run[0] / 'results' / 'rows.parquet')
  curves = pd.read_parquet(run[0] / 'results' / 'iterations.parquet')
  assert set(curves['attack']) == {'ifgsm', 'tifgsm'} and set(curves['arm']) == {'std'}
  assert sorted(curves['eps'].unique()) == [0.0, 0.005, 0.01]
  clean = rows[(rows['arm'] == 'std') & (rows['attack'] == 'none')].set_index('index')
  start = curves[(curves['eps'] == 0) & (curves['attack'] == 'ifgsm')].set_index('index')
  for name in ('dice_wt', 'dice_tc', 'dice_et'):
    np.testing.assert_allclose(start[name], clean[name], atol=1e-6)
  last = curves[curves['eps'] == 0.01]
  assert ((last['rmse'] > 0) & (last['rmse'] <= 0.01 + 1e-6)).all()


def test_the_report_has_the_papers_tables_and_an_answer_to_every_claim(run):
  folder = run[0]
  decided = pd.read_csv(folder / 'report' / 'tables' / 'claims.csv').set_index('statement')
  assert set(decided['verdict']) <= {'holds', 'fails', 'undecided', 'measured', 'not run'}
  assert 'FGSM lowers whole tumour Dice' in decided.index and len(decided) == 15
  page = (folder / 'report' / 'report.md').read_text()
  for words in (
    'Table 1', 'Table 3', '0.561 ± 0.077', 'adaptive column', 'Verdicts', 'Cost of training',
    'rank-sum', 'Fig. 9', 'Diagnostics',
  ):  # fmt: skip
    assert words in page, words
  pictures = re.findall(r'\]\((.*?\.png)\)', page)
  assert all((folder / 'report' / link).is_file() for link in pictures)
  names = ' '.join(pictures)
  for part in ('fig2', 'fig3_4', 'fig6', 'fig8', 'fig9', 'adaptive', 'label_leak'):
    assert part in names, part


def test_volumes_are_written_as_nifti(run):
  folder = run[0] / 'results' / 'nifti' / 'distil_5'
  names = sorted(path.name for path in folder.iterdir())
  assert names == sorted(
    f'phantom000{case}_{kind}.nii.gz'
    for case in (3, 4)
    for kind in ('clean', 'adversarial', 'prediction', 'prediction_clean')
  )
  clean, attacked = (
    nib.load(folder / f'phantom0003_{kind}.nii.gz') for kind in ('clean', 'adversarial')
  )
  assert clean.shape == (16, 16, 16, 4) and clean.get_data_dtype() == np.float32
  change = np.abs(attacked.get_fdata() - clean.get_fdata()).max()
  assert 0 < change <= 0.05 + 1e-6
  worst = list((run[0] / 'results' / 'worst').glob('std*/*_seg.nii.gz'))
  assert len(worst) == 1


def test_bad_files_end_with_one_line(tmp_path):
  words = ['--config', 'configs/brats3d.py:smoke', '--config.data.source=brats']
  words += ['--config.data.n4=none', '--stage', 'train']
  folder = gliomas.brats2017(tmp_path / 'data')
  path = next(folder.glob('HGG/*_0_1/*_seg.nii.gz'))
  image = nib.load(path)
  labels = image.get_fdata()
  labels[4, 4, 4] = 3
  nib.save(nib.Nifti1Image(labels.astype(np.float32), image.affine), path)
  line = runs.mistake(*words, f'--config.data.dir={folder}', '--workdir', tmp_path / 'run')
  assert re.search(r'Brats17_CBICA_0_1_seg\.nii\.gz: has label 3', line)
  assert not (tmp_path / 'run').exists()
