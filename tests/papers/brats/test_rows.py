"""Slices to volumes, attacks to the lowest Dice, gains to verdicts: all by hand."""

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


# mean Dice: clean, fgsm, scaled (one step), i-FGSM
DICE = {
  'std': (0.90, 0.40, 0.33, 0.20),
  'hides': (0.90, 0.85, 0.22, 0.80),
  'weak': (0.90, 0.80, 0.78, 0.21),
  'yields': (0.90, 0.80, 0.74, 0.21),
  'half': (0.90, 0.80, 0.78, 0.40),
  'holds': (0.85, 0.75, 0.74, 0.52),
  'same': (0.90, 0.40, 0.33, 0.20),
}
CELLS = (('none', 0.0), ('fgsm', 0.05), ('scaled', 0.05), ('ifgsm', 0.05))
RIVALS = (('scaled', 'fgsm'),)


def rows(dice=DICE, subjects=12, noise=0.004):
  rng = np.random.default_rng(0)
  lines = []
  for arm, means in dice.items():
    for (attack, eps), mean in zip(CELLS, means, strict=True):
      for index in range(subjects):
        line = {'arm': arm, 'attack': attack, 'eps': eps, 'seed': 0, 'group': index}
        value = mean + noise * rng.normal()
        lines.append({**line, 'index': index, 'dice_wt': value, 'dice_et': 0.5 - mean / 9})
  return pd.DataFrame(lines)


def judged(frame, *, arms=DICE, rivals=RIVALS):
  names = [name for name, _ in CELLS[1:]]
  table = brats_rows.verdicts(
    frame, arms=list(arms), attacks=names, eps=0.05, metric='dice_wt', rivals=rivals
  )
  return table.set_index('arm')


def test_the_lowest_dice_is_found_subject_by_subject():
  frame = rows(subjects=3)
  frame.loc[(frame['attack'] == 'scaled') & (frame['index'] == 1), 'dice_wt'] = 0.99
  found = brats_rows.lowest(
    frame, attacks=['fgsm', 'scaled'], eps=0.05, metrics=['dice_wt', 'dice_et']
  )
  mine = found[found['arm'] == 'hides'].set_index('index')
  assert mine.loc[1, 'dice_wt'] == pytest.approx(0.85, abs=0.02)
  assert mine.loc[0, 'dice_wt'] == pytest.approx(0.22, abs=0.02)
  assert mine['dice_et'].tolist() == pytest.approx([0.5 - 0.85 / 9] * 3)
  assert set(found['attack']) == {brats_rows.LOWEST} and len(found) == 3 * len(DICE)


def test_verdicts_follow_the_rule():
  table = judged(rows(), arms=[*DICE, 'absent'])
  assert table['verdict'].to_dict() == {
    'hides': 'masked',
    'weak': 'gone',  # to more steps: a weakness, nothing is hidden
    'yields': 'gone',  # to scaled logits by no more than an undefended network does
    'half': 'partly',
    'holds': 'holds',
    'same': 'no gain shown',
  }
  assert table.loc['half', 'kept'] == pytest.approx(0.20 / 0.40, abs=0.03)
  assert table.loc['holds', 'clean'] == pytest.approx(0.85, abs=0.01)
  assert table.loc['hides', 'by'] == 'scaled'
  raw = 0.5**12
  assert raw <= table.loc['holds', 'p_holds'] <= 6 * raw * (1 + 1e-9)
  assert table.loc['half', 'p_holds'] > 0.05 and table.loc['half', 'p_gone'] > 0.05


def test_a_gain_that_these_subjects_cannot_tell_from_all_of_it_is_partly():
  """Half of the gain is left, and so little is known of it that nothing is called gone."""
  table = judged(rows(subjects=8, noise=0.2))
  assert table.loc['half', 'verdict'] in ('partly', 'no gain shown')
  assert table.loc['half', 'p_left'] > 0.05


def test_the_gain_shown_is_that_under_fgsm_alone():
  frame = rows()
  # std falls further under i-FGSM: no gain of 'same' under FGSM, a large one under i-FGSM
  frame.loc[(frame['arm'] == 'same') & (frame['attack'] == 'ifgsm'), 'dice_wt'] += 0.5
  table = judged(frame)
  assert table.loc['same', 'verdict'] == 'no gain shown'
  assert table.loc['same', 'gain_shown'] == pytest.approx(0.0, abs=0.01)


def test_images_made_for_another_network_that_hurt_more_tell_of_masking():
  frame = rows()
  moved = frame[(frame['attack'] == 'scaled') & (frame['arm'] == 'weak')]
  transfer = moved.assign(attack='transfer', dice_wt=moved['dice_wt'] - 0.3)
  frame = pd.concat([frame, transfer], ignore_index=True)
  table = judged(frame, rivals=(*RIVALS, ('transfer', 'fgsm')))
  assert table.loc['weak', ['verdict', 'by']].tolist() == ['masked', 'transfer']


def test_with_few_subjects_nothing_is_significant():
  assert set(judged(rows(subjects=3))['verdict']) == {'no gain shown'}


LINE = {'gain_shown': 0.4, 'p_shown': 0.01, 'p_gone': 0.9, 'p_holds': 0.9, 'p_aware': 0.9}


@pytest.mark.parametrize(
  ('change', 'verdict'),
  [
    ({}, 'partly'),
    ({'p_holds': 0.04}, 'holds'),
    ({'p_gone': 0.04}, 'gone'),
    ({'p_gone': 0.04, 'p_aware': 0.04}, 'masked'),
    ({'p_gone': 0.04, 'p_aware': float('nan')}, 'gone'),
    ({'p_aware': 0.04}, 'partly'),
    ({'p_shown': 0.06, 'p_gone': 0.01, 'p_aware': 0.01}, 'no gain shown'),
  ],
)
def test_borders_of_the_rule(change, verdict):
  assert brats_rows.verdict_of({**LINE, **change}) == verdict


def test_only_attacks_of_equal_steps_are_compared():
  one = {'name': 'fgsm', 'objective': 'dice'}
  ten = {'name': 'ifgsm', 'objective': 'dice', 'num_steps': 10}
  found = brats_rows.equal_steps(
    {
      'fgsm': one,
      'ifgsm': ten,
      'tifgsm': {**ten, 'name': 'tifgsm', 'objective': 'ti'},
      'scaled_fgsm': {**one, 'objective': 'scaled'},
      'scaled_ifgsm': {**ten, 'objective': 'scaled'},
      'transfer': {**ten, 'objective': 'scaled', 'source': 'std'},
      'pgd_margin': {'name': 'pgd', 'objective': 'margin', 'num_steps': 5, 'restarts': 2},
      'square': {'name': 'square', 'objective': 'dice', 'num_steps': 50},
      'noise': {'name': 'noise', 'objective': 'dice'},
    }
  )
  assert found == (
    ('scaled_fgsm', 'fgsm'),
    ('scaled_ifgsm', 'ifgsm'),
    ('transfer', 'ifgsm'),
    ('pgd_margin', 'ifgsm'),
  )
