"""configs/train.py at smoke size, as a real process, on folders that were written for it."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from support import folders, runs

pytestmark = pytest.mark.slow

CONFIG = ['--config', 'configs/train.py:smoke']
ORGAN = {'background': 0, 'organ': 1, 'lesion': 2}


def test_a_new_organ_needs_no_code(tmp_path):
  folder = folders.nnunet(tmp_path / 'raw', labels=ORGAN, shape=(8, 16, 16))
  done = runs.main(*CONFIG, f'--config.data.dir={folder}', '--workdir', tmp_path / 'w')
  assert '[robustmed] nnU-Net raw, 6 cases, 3D, 1 channel, 3 classes: ' in done.stderr
  summary = pd.read_csv(tmp_path / 'w' / 'results' / 'summary.csv', keep_default_na=False)
  assert set(summary['metric']) == {'DICE', 'DICE_organ', 'DICE_lesion'}
  assert set(summary['arm']) == {'std', 'adv', 'amat'}
  worst = sorted((tmp_path / 'w' / 'results' / 'worst').rglob('tr_*_label.nii.gz'))
  assert len(worst) == 3
  np.testing.assert_array_equal(np.abs(np.diag(nib.load(worst[0]).affine)), [2, 3, 4, 1])
  stored = [json.loads(path.read_text()) for path in (tmp_path / 'w/results/stored').glob('*.json')]
  assert len(stored) == 3 and all(one['inside'] for one in stored)
  page = (tmp_path / 'w' / 'report' / 'report.md').read_text()
  assert 'DICE as attacked and as stored' in page
  assert 'nnU-Net raw, 6 cases' in page and 'split by patient: 4 train, 2 test' in page
  assert len(pd.read_csv(tmp_path / 'w' / 'report' / 'tables' / 'claims.csv')) == 4


def test_a_trained_network_meets_a_folder_of_one_case(tmp_path):
  folder = folders.nnunet(tmp_path / 'raw', labels=ORGAN, shape=(8, 16, 16))
  words = [*CONFIG, '--stage', 'train', '--arms', 'std', f'--config.data.dir={folder}']
  done = runs.main(*words, '--workdir', tmp_path / 'w')
  assert 'patches of 16 x 16 in training (data.patch)' in done.stderr
  one = folders.nnunet(tmp_path / 'one', cases=1, labels=ORGAN, shape=(6, 20, 18))
  words = [*CONFIG, f'--config.data.dir={one}', '--config.data.split=all']
  words += ['--config.data.patch=(16,16)', '--workdir', tmp_path / 'v']
  line = runs.mistake(*words)
  assert 'all cases are test cases, so adv, amat, std cannot be trained' in line
  checkpoint = tmp_path / 'w' / 'checkpoints' / 'std' / 'seed0'
  runs.main(*words, '--stage', 'evaluate', '--checkpoint', checkpoint)
  summary = pd.read_csv(tmp_path / 'v' / 'results' / 'summary.csv', keep_default_na=False)
  assert set(summary['n']) == {1} and set(summary['arm']) == {'std'}


def test_mistakes_leave_nothing_behind(tmp_path):
  line = runs.mistake(*CONFIG, '--config.data.dir=/nowhere', '--workdir', tmp_path / 'a')
  assert 'no folder /nowhere: put one of these there' in line
  folder = folders.nnunet(tmp_path / 'raw', cases=1, labels=ORGAN, shape=(8, 16, 16))
  line = runs.mistake(*CONFIG, f'--config.data.dir={folder}', '--workdir', tmp_path / 'b')
  assert 'too few to split' in line
  assert not (tmp_path / 'a').exists() and not (tmp_path / 'b').exists()
