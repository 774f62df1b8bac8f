"""Slices to volumes, attacks to the worst one, gains to verdicts: all by hand."""

import numpy as np
import pandas as pd
import pytest

from robustmed.papers.brats import rows as brats_rows

REGIONS = ('wt', 'tc', 'et')


def slices():
  """Two volumes of two slices under one attack; whole tumour in the first volume alone."""
  lines = []
  counts = {(0, 0): (4.0, 10.0), (0, 1): (1.0, 10.0), (1, 0): (0.0, 0.0), (1, 1): (0.0, 0.0)}
  for (group, position), (both, size) in counts.items():
    lines.append(
      {
        'arm': 'std',
        'attack': 'fgsm',
        'eps': 0.05,
        'seed': 0,
        'group': 7 + group,
        'index': 2 * group + position,
        **{f'dice_{name}': 0.5 for name in REGIONS},
        **{f'_both_{name}': both for name in REGIONS},
        **{f'_size_{name}': size for name in REGIONS},
        'rmse': 0.03 if position else 0.04,
        'psnr': 30.0,
        'ssim': 0.8 + 0.1 * position,
        '_distance': 0.05 - 0.01 * position,
        '_zero_grad': 0.2 * position,
      }
    )
  return pd.DataFrame(lines)


@pytest.mark.parametrize('order', [slice(None), slice(None, None, -1)])
def test_slices_of_a_volume_are_scored_together(order):
  found = brats_rows.volumes(slices().iloc[order])
  assert found['group'].tolist() == found['index'].tolist() == [7, 8]
  assert found['dice_wt'].tolist() == [2 * 5 / 20, 1.0]  # two empty regions agree
  rmse = np.sqrt((0.03**2 + 0.04**2) / 2)
  np.testing.assert_allclose(found['rmse'], rmse)
  np.testing.assert_allclose(found['psnr'], -20 * np.log10(rmse))
  np.testing.assert_allclose(found['ssim'], 0.85)
  assert found['_distance'].tolist() == [0.05, 0.05]
  np.testing.assert_allclose(found['_zero_grad'], 0.1)
  assert not any(name.startswith(('_both', '_size')) for name in found.columns)


def test_cells_and_seeds_stay_apart():
  one = slices()
  frame = pd.concat(
    [one, one.assign(seed=1), one.assign(attack='none', eps=0.0, rmse=0.0), one.assign(arm='at')]
  )
  found = brats_rows.volumes(frame)
  assert len(found) == 8 and not found.duplicated(['arm', 'attack', 'eps', 'seed', 'index']).any()
  assert np.isinf(found.loc[found['attack'] == 'none', 'psnr']).all()


# mean Dice: clean, fgsm, scaled
DICE = {
  'std': (0.90, 0.40, 0.30),
  'hides': (0.90, 0.85, 0.30),
  'half': (0.90, 0.80, 0.42),
  'holds': (0.85, 0.75, 0.62),
  'same': (0.90, 0.40, 0.30),
}


def rows(dice=DICE, subjects=12):
  rng = np.random.default_rng(0)
  lines = []
  for arm, means in dice.items():
    for (attack, eps), mean in zip((('none', 0.0), ('fgsm', 0.05), ('scaled', 0.05)), means):
      for index in range(subjects):
        noise = 0.004 * rng.normal()
        line = {'arm': arm, 'attack': attack, 'eps': eps, 'seed': 0, 'group': index}
        lines.append({**line, 'index': index, 'dice_wt': mean + noise, 'dice_et': 0.5 - mean / 9})
  return pd.DataFrame(lines)


def test_the_worst_attack_is_found_subject_by_subject():
  frame = rows(subjects=3)
  frame.loc[(frame['attack'] == 'scaled') & (frame['index'] == 1), 'dice_wt'] = 0.99
  found = brats_rows.worst(
    frame, attacks=['fgsm', 'scaled'], eps=0.05, metrics=['dice_wt', 'dice_et']
  )
  mine = found[found['arm'] == 'hides'].set_index('index')
  assert mine.loc[1, 'dice_wt'] == pytest.approx(0.85, abs=0.02)
  assert mine.loc[0, 'dice_wt'] == pytest.approx(0.30, abs=0.02)
  assert mine['dice_et'].tolist() == pytest.approx([0.5 - 0.85 / 9] * 3)
  assert set(found['attack']) == {brats_rows.WORST} and len(found) == 3 * len(DICE)


def test_verdicts_follow_the_rule():
  table = brats_rows.verdicts(
    rows(), arms=[*DICE, 'absent'], attacks=['fgsm', 'scaled'], eps=0.05, metric='dice_wt'
  ).set_index('arm')
  assert table['verdict'].to_dict() == {
    'hides': 'masked',
    'half': 'partly masked',
    'holds': 'holds',
    'same': 'no gain',
  }
  assert table.loc['half', 'kept'] == pytest.approx(0.12 / 0.40, abs=0.03)
  assert table.loc['holds', 'clean'] == pytest.approx(0.85, abs=0.01)
  raw = 0.5**12
  assert raw <= table.loc['holds', 'p_worst'] <= 4 * raw * (1 + 1e-9)


def test_the_gain_shown_is_the_larger_of_those_that_know_nothing():
  frame = rows()
  strong = frame[frame['attack'] == 'fgsm'].assign(attack='ifgsm')
  strong['dice_wt'] -= np.where(strong['arm'] == 'std', 0.35, 0.0)
  strong['dice_wt'] -= np.where(strong['arm'] == 'same', 0.36, 0.0)
  table = brats_rows.verdicts(
    pd.concat([frame, strong], ignore_index=True),
    arms=['holds', 'half', 'same'],
    attacks=['fgsm', 'ifgsm', 'scaled'],
    eps=0.05,
    metric='dice_wt',
  ).set_index('arm')
  assert table['by'].to_dict() == {'holds': 'ifgsm', 'half': 'ifgsm', 'same': 'fgsm'}
  assert table.loc['holds', 'gain_shown'] == pytest.approx(0.75 - 0.05, abs=0.01)
  # std falls to 0.05 under i-FGSM; of a gain of 0.75 there remain 0.37
  assert table.loc['half', 'kept'] == pytest.approx(0.37 / 0.75, abs=0.02)
  assert table.loc['half', 'verdict'] == 'partly masked'


def test_with_few_subjects_nothing_is_significant():
  table = brats_rows.verdicts(
    rows(subjects=3), arms=list(DICE), attacks=['fgsm', 'scaled'], eps=0.05, metric='dice_wt'
  )
  assert set(table['verdict']) == {'no gain'}


@pytest.mark.parametrize(
  ('shown', 'kept', 'verdict'),
  [
    ((0.4, 0.01), (0.2, 0.01), 'holds'),
    ((0.4, 0.01), (0.1999, 0.01), 'partly masked'),
    ((0.4, 0.01), (0.0399, 0.01), 'masked'),
    ((0.4, 0.01), (0.3, 0.06), 'masked'),
    ((0.4, 0.01), (-0.3, 0.99), 'masked'),
    ((0.4, 0.06), (0.3, 0.01), 'holds'),
    ((-0.1, 0.99), (0.0, 1.0), 'no gain'),
  ],
)
def test_borders_of_the_rule(shown, kept, verdict):
  line = dict(zip(('gain_shown', 'p_shown', 'gain_worst', 'p_worst'), (*shown, *kept)))
  assert brats_rows.verdict_of(line) == verdict
