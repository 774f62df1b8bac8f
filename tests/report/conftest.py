"""A finished run in miniature, written by hand."""

import json

import numpy as np
import pandas as pd
import pytest

from robustmed import report
from robustmed.evaluation import checks, claims

FALL = {'std': 12.0, 'adv': 3.0}
LEVELS = (0.01, 0.07, 0.2)


def make_rows():
  random = np.random.default_rng(0)
  parts = []
  for arm, fall in FALL.items():
    for attack in ('none', 'fgsm', 'pgd_seg', 'noise'):
      power = {'none': 0, 'fgsm': 0.5, 'pgd_seg': 1, 'noise': 0.05}[attack]
      for eps in LEVELS if attack != 'none' else (0.0,):
        index = np.arange(16)
        dice = 0.93 * np.exp(-power * fall * eps) + random.normal(0, 0.005, 16)
        part = pd.DataFrame({'index': index, 'group': index // 2, 'DICE_seg': dice})
        part = part.assign(arm=arm, attack=attack, eps=np.float32(eps), seed=0)
        parts.append(part.assign(Error_reg=2 + 20 * (1 - dice), _distance=eps * 0.99))
  return pd.concat(parts, ignore_index=True)


def make_examples(side=16):
  angle = np.linspace(0, 2 * np.pi, 176, endpoint=False)
  circle = side / 2 + side / 4 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
  image = np.random.default_rng(1).uniform(size=(side, side, 1)).astype(np.float32)
  mask = np.zeros((side, side, 1), bool)
  mask[5:11, 5:11] = True
  lines = [(arm, index) for arm in FALL for index in (4, 2)]
  count = len(lines)
  repeat = lambda array: np.repeat(array[None], count, axis=0)
  return {
    'arm': np.array([arm for arm, _ in lines]),
    'attack': np.array(['pgd_seg'] * count),
    'eps': np.full(count, 0.07, np.float32),
    'index': np.array([index for _, index in lines]),
    'image': repeat(image),
    'adversarial': repeat(image + 0.07),
    'contour_true': repeat(circle),
    'contour_clean': repeat(circle + 0.3),
    'contour_adv': repeat(circle + 3),
    'mask_true': repeat(mask),
    'seg_clean': repeat(mask.astype(np.float32)),
    'seg_adv': repeat(1 - mask.astype(np.float32)),
  }


def make_workdir(folder):
  (folder / 'results').mkdir(parents=True)
  (folder / 'logs').mkdir()
  rows = make_rows()
  rows.to_parquet(folder / 'results' / 'rows.parquet')
  found = checks.run(rows, metric='DICE_seg', higher_is_better=True)
  (folder / 'results' / 'checks.json').write_text(json.dumps([c._asdict() for c in found]))
  np.savez(folder / 'results' / 'examples.npz', **make_examples())
  log = pd.DataFrame({'arm': 'std', 'seed': 0, 'step': range(60)})
  log['loss'] = np.exp(-log['step'] / 10)
  log.to_csv(folder / 'logs' / 'train.csv', index=False)
  attacks = {'pgd_seg': {'name': 'pgd'}}
  config = {'model': {'dtype': 'float32'}, 'evaluate': {'attacks': attacks}}
  stored = {'config': config, 'train': {'steps': 60, 'eps': 0.07}}
  (folder / 'config.json').write_text(json.dumps(stored))
  (folder / 'env.json').write_text(json.dumps({'python': '3.x <dev>'}))
  made = {'date': '2031-02-03T04:05:06+00:00', 'commit': 'c0ffee' * 6, 'version': '9.8.7'}
  (folder / 'evaluated.json').write_text(json.dumps(made))
  data = {'name': 'phantom_disks', 'fingerprint': 'f00d', 'sizes': {'test': 16}}
  (folder / 'data.json').write_text(json.dumps(data))
  variables = folder / 'checkpoints' / 'std' / 'seed0' / 'variables'
  variables.mkdir(parents=True)
  (variables / 'SHA256SUMS').write_text('0' * 64 + '  d/0\n')
  return folder


@pytest.fixture
def workdir(tmp_path):
  return make_workdir(tmp_path / 'run')


@pytest.fixture(scope='session')
def written(tmp_path_factory, spec):
  """A report that tests only read."""
  return report.write(make_workdir(tmp_path_factory.mktemp('written') / 'run'), spec=spec)


@pytest.fixture(scope='session')
def spec():
  at = {'metric': 'DICE_seg', 'attack': 'pgd_seg', 'eps': 0.2}
  return report.ReportSpec(
    title='A & B <i>test</i>',
    description=('What was **done**.',),
    panels=(
      report.Panel('DICE_seg', 'pgd_seg', label='segmentation Dice', limits=(0, 1)),
      report.Panel('Error_reg', 'pgd_seg', higher_is_better=False),
    ),
    level_units='intensity',
    arms=(report.Arm('std', 'standard'), report.Arm('adv', line='--'), report.Arm('never')),
    claims=(
      claims.Claim('adv is <b>better</b> | always', 'Table 1', claims.greater('adv', 'std', **at)),
      claims.Claim('std is fine', 'Table 1', claims.above('std', threshold=0.9, **at)),
      claims.Claim('third arm', 'Table 2', claims.greater('third', 'std', **at)),
    ),
    paper=pd.DataFrame(
      [('std', 'none', 0.0, 'DICE_seg', 0.9446), ('std', 'pgd_seg', 0.07, 'DICE_seg', 0.0013)],
      columns=['arm', 'attack', 'eps', 'metric', 'mean'],
    ),
    notes=('Last iterate.',),
    sections=(
      report.Section('Cost', '- one\n- two', (), [('time', pd.DataFrame({'s': [1.5, 22.25]}))]),
    ),
  )
