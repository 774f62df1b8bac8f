"""Adaptive margins on landmarks and on objects at smoke size, as real processes."""

import re

import numpy as np
import pandas as pd
import pytest

from support import counted, runs

pytestmark = pytest.mark.slow

ARMS = ('std', 'amat')  # the others differ in their defense alone
TERMS = {'ceph': ['heat', 'offset_x', 'offset_y'], 'bccd': ['box', 'obj', 'cls']}
WORDS = {
  'ceph': ('Table 3', 'Worst cases', 'SDR_2.5mm', 'twice the cross-entropy', '(paper)'),
  'bccd': ('Figure 7', 'mAP@0.5:0.95', 'IOU_found', 'Worst cases', 'stock YOLOv5'),
}
CLAIMS = {
  'ceph': 'std has a better average over all levels than std_bce',
  'bccd': 'sat_5 is close to amat on average over all levels',
}


@pytest.mark.long
@pytest.mark.parametrize('name', ['ceph', 'bccd'])
def test_a_whole_run(name, tmp_path):
  words = ['--config', f'configs/amat_{name}.py:smoke', '--workdir', tmp_path]
  counts = tmp_path.with_suffix('.passes.json')
  runs.main(*words, '--arms', ','.join(ARMS), counted=counts)
  counted.check(counts, words[1], ARMS)
  rows = pd.read_parquet(tmp_path / 'results' / 'rows.parquet')
  assert set(rows['arm']) == set(ARMS)
  attacked = rows[rows['attack'] != 'none']
  assert (attacked['_distance'] <= attacked['eps'] * (1 + 1e-4)).all()
  with np.load(tmp_path / 'checkpoints' / 'amat' / 'seed0' / 'thresholds.npz') as stored:
    values, xi = stored['values'], stored['xi']
  assert values.shape == (6, 3)
  np.testing.assert_allclose(xi, values.mean(axis=0) + 2 * values.std(axis=0), rtol=1e-9)
  log = pd.read_csv(tmp_path / 'logs' / 'amat.seed0.csv')
  assert {f'main/{term}' for term in TERMS[name]} <= set(log.columns)
  page = (tmp_path / 'report' / 'report.md').read_text()
  for words in (*WORDS[name], 'Margins over training', 'term'):
    assert words in page, words
  assert '| STD |' in page and '| AMAT |' in page
  assert all(
    (tmp_path / 'report' / link).is_file() for link in re.findall(r'\]\((.*?\.png)\)', page)
  )
  claims = pd.read_csv(tmp_path / 'report' / 'tables' / 'claims.csv').set_index('statement')
  assert CLAIMS[name] in claims.index and set(claims['verdict']) <= {
    'holds',
    'fails',
    'undecided',
    'not run',
    'measured',
  }
  pictures = list((tmp_path / 'results' / 'worst').glob('*/*.png'))
  assert len(pictures) >= len(ARMS)
