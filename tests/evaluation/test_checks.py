"""Every check on rows that pass it and on rows made to fail it."""

import numpy as np
import pandas as pd
import pytest

from robustmed import errors
from robustmed.evaluation import checks, movement, statistics

LEVELS = (0.03, 0.07, 0.2)
NAMES = (
  'zero gradients', 'more budget, more harm', 'more budget, larger objective',
  'many steps beat one', 'gradients beat noise', 'saturated outputs', 'inside the ball',
  'objective above its start', 'defined values', 'outputs move with the image',
)  # fmt: skip


def sketches(random, count, **moves):
  """Columns of outputs that move as far as their targets, times the number given."""
  target = random.normal(size=(count, movement.SKETCHES))
  made = {}
  for name, share in moves.items():
    for place, values in enumerate(target.T):
      made[f'{movement.TARGET}{name}.{place}'] = values
      made[f'{movement.OUTPUT}{name}.{place}'] = 3 + share * values
  return made


def make_rows(arms=('std', 'adv'), *, count=24):
  random = np.random.default_rng(0)
  strength = {'none': 0.0, 'noise': 0.1, 'fgsm': 2.0, 'pgd_seg': 4.0}
  parts = []
  for arm in arms:
    for attack, power in strength.items():
      for eps in LEVELS if attack != 'none' else (0.0,):
        dice = 0.9 - power * eps + random.normal(scale=0.01, size=count)
        index = np.arange(count)
        part = pd.DataFrame({'index': index, 'group': index // 2, 'dice': dice})
        extra = {'_value': 1 - dice, '_start': 0.05, '_distance': eps, '_zero_grad': 0.01}
        part = part.assign(arm=arm, attack=attack, eps=eps, seed=0, _saturated=0.1, **extra)
        part['_gain'] = part['_value'] - part['_start']
        if attack == 'none':
          part = part.assign(**sketches(random, count, mask=1.0, contour=0.9))
        parts.append(part)
  return pd.concat(parts, ignore_index=True)


def run(rows, **changes):
  keywords = {'metric': 'dice', 'higher_is_better': True} | changes
  return {(check.name, check.arm): check for check in checks.run(rows, **keywords)}


def where(rows, **wanted):
  mask = np.ones(len(rows), bool)
  for name, value in wanted.items():
    mask &= np.isclose(rows[name], value) if name == 'eps' else (rows[name] == value).to_numpy()
  return mask


def test_an_honest_run_passes_everything():
  found = checks.run(make_rows(), metric='dice', higher_is_better=True)
  assert [check.name for check in found] == [*NAMES, *NAMES]
  assert {check.status for check in found} == {'pass'}, found
  assert checks.worst(found) == 'pass'


def test_of_a_single_group_the_mean_speaks():
  found = run(make_rows().assign(group=0))
  assert {check.status for check in found.values()} == {'pass'}, found


def test_an_error_metric_is_read_the_other_way_round():
  rows = make_rows()
  rows['dice'] = 1 - rows['dice']
  assert {check.status for check in run(rows, higher_is_better=False).values()} == {'pass'}
  wrong = run(rows, higher_is_better=True)
  assert wrong['more budget, more harm', 'std'].status == 'fail'


@pytest.mark.parametrize(('share', 'status'), [(0.0, 'pass'), (0.25, 'warn'), (0.75, 'fail')])
def test_zero_gradients_of_a_defense(share, status):
  rows = make_rows()
  mine = where(rows, arm='adv', attack='pgd_seg')
  rows.loc[mine & (rows['index'] < share * 24), '_zero_grad'] = 0.999
  found = run(rows)
  assert found['zero gradients', 'adv'].status == status
  assert found['zero gradients', 'std'].status == 'pass'
  assert f'{share:.1%}' in found['zero gradients', 'adv'].detail


def test_zero_gradients_everywhere_are_no_sign_of_a_defense_but_are_told():
  rows = make_rows().assign(_zero_grad=1.0)
  found = run(rows)
  assert found['zero gradients', 'adv'].status == 'warn'
  assert found['zero gradients', 'std'].status == 'fail'


def test_more_budget_that_helps_the_defender():
  rows = make_rows()
  mine = where(rows, arm='adv', attack='pgd_seg', eps=0.2)
  rows.loc[mine, 'dice'] = 0.85
  rows.loc[mine, '_value'] = 0.1
  found = run(rows)
  for name in ('more budget, more harm', 'more budget, larger objective'):
    assert found[name, 'adv'].status == 'fail'
    assert '0.07 -> 0.2' in found[name, 'adv'].detail
    assert found[name, 'std'].status == 'pass'


def test_a_trifling_step_back_is_a_warning_and_noise_is_none():
  rows = make_rows()
  lower, upper = (where(rows, arm='std', attack='pgd_seg', eps=eps) for eps in (0.07, 0.2))
  rows.loc[upper, 'dice'] = rows.loc[lower, 'dice'].to_numpy() + 0.001
  assert run(rows)['more budget, more harm', 'std'].status == 'warn'
  random = np.random.default_rng(3)
  rows.loc[upper, 'dice'] = rows.loc[lower, 'dice'].to_numpy() + random.normal(0, 0.01, size=24)
  assert run(rows)['more budget, more harm', 'std'].status == 'pass'


def test_clean_rows_take_part_in_monotony():
  rows = make_rows()
  rows.loc[where(rows, arm='std', attack='none'), 'dice'] = 0.5
  found = run(rows)['more budget, more harm', 'std']
  assert found.status == 'fail' and '0 -> 0.03' in found.detail


def test_one_step_beating_many():
  rows = make_rows()
  rows.loc[where(rows, arm='adv', attack='fgsm', eps=0.07), 'dice'] -= 0.4
  found = run(rows)
  assert found['many steps beat one', 'adv'].status == 'fail'
  assert 'at 0.07' in found['many steps beat one', 'adv'].detail
  assert 'at 0.2 ' not in found['many steps beat one', 'adv'].detail
  assert found['many steps beat one', 'std'].status == 'pass'


@pytest.mark.parametrize(('shift', 'status'), [(-0.2, 'fail'), (0.0, 'warn')])
def test_noise_as_strong_as_gradients(shift, status):
  rows = make_rows()
  for eps in LEVELS:
    strong = rows.loc[where(rows, arm='adv', attack='pgd_seg', eps=eps), 'dice'].to_numpy()
    random = np.random.default_rng(5).normal(0, 0.005, size=24)
    rows.loc[where(rows, arm='adv', attack='noise', eps=eps), 'dice'] = strong + shift + random
  found = run(rows)
  assert found['gradients beat noise', 'adv'].status == status
  assert found['gradients beat noise', 'std'].status == 'pass'


@pytest.mark.parametrize(('share', 'status'), [(0.3, 'pass'), (0.7, 'warn'), (1.0, 'fail')])
def test_saturated_outputs(share, status):
  rows = make_rows()
  rows.loc[where(rows, arm='adv', attack='pgd_seg'), '_saturated'] = share
  assert run(rows)['saturated outputs', 'adv'].status == status


def test_one_example_outside_the_ball():
  rows = make_rows()
  position = np.flatnonzero(where(rows, arm='adv', attack='fgsm', eps=0.07))[3]
  rows.loc[position, '_distance'] = 0.07 * (1 + 1e-6)
  assert run(rows)['inside the ball', 'adv'].status == 'pass'
  rows.loc[position, '_distance'] = 0.0702
  found = run(rows)
  assert found['inside the ball', 'adv'].status == 'fail'
  assert '1 of 216' in found['inside the ball', 'adv'].detail
  assert 'fgsm at 0.07' in found['inside the ball', 'adv'].detail
  assert found['inside the ball', 'std'].status == 'pass'


def test_objective_below_its_start():
  rows = make_rows()
  rows.loc[where(rows, arm='std', attack='noise'), '_gain'] = -0.05  # noise may do that
  assert run(rows)['objective above its start', 'std'].status == 'pass'
  mine = where(rows, arm='adv', attack='pgd_seg', eps=0.03)
  rows.loc[mine & (rows['index'] < 6), '_gain'] = -0.01
  found = run(rows)['objective above its start', 'adv']
  assert found.status == 'warn' and 'pgd_seg at 0.03 (25.0%)' in found.detail
  rows.loc[mine, '_gain'] = -0.01
  found = run(rows)['objective above its start', 'adv']
  assert found.status == 'fail' and 'pgd_seg at 0.03' in found.detail


def test_unknown_values_are_told():
  rows = make_rows()
  rows.loc[np.flatnonzero(where(rows, arm='adv', attack='pgd_seg', eps=0.2))[:2], 'dice'] = np.nan
  found = run(rows)
  assert found['defined values', 'adv'].status == 'warn'
  assert found['defined values', 'adv'].detail.startswith('2 of ')
  assert found['defined values', 'std'].status == 'pass'


def test_nothing_to_look_at_is_skipped_with_a_reason():
  rows = make_rows()
  bare = rows[rows['attack'].isin(['none', 'pgd_seg'])]
  bare = bare.drop(columns=[name for name in bare if name.startswith('_')])
  found = run(bare)
  assert len(found) == 2 * len(NAMES)
  skipped = {name for (name, arm), check in found.items() if check.status == 'skipped'}
  assert skipped == {*NAMES} - {'more budget, more harm', 'defined values'}
  assert all(check.detail for check in found.values())


def test_a_missing_metric_is_a_clear_error():
  with pytest.raises(errors.UserError, match='auroc'):
    checks.run(make_rows(), metric='auroc', higher_is_better=True)


def test_worst():
  make = lambda *statuses: [checks.Check('', '', status, '') for status in statuses]
  assert checks.worst([]) == 'skipped'
  assert checks.worst(make('pass', 'skipped')) == 'pass'
  assert checks.worst(make('pass', 'warn')) == 'warn'
  assert checks.worst(make('warn', 'fail', 'pass')) == 'fail'


def test_a_network_that_ignores_its_input():
  rows = make_rows()
  mine = where(rows, arm='adv', attack='none')
  outputs = [name for name in rows.columns if name.startswith(movement.OUTPUT)]
  rows.loc[mine, outputs] = 3.0
  found = run(rows)
  assert found['outputs move with the image', 'adv'].status == 'fail'
  assert found['outputs move with the image', 'adv'].detail.startswith('mask and contour (nearly)')
  assert found['outputs move with the image', 'std'].status == 'pass'


@pytest.mark.parametrize(('share', 'status'), [(0.0, 'fail'), (0.15, 'warn'), (0.4, 'pass')])
def test_one_output_that_ignores_the_input_is_named(share, status):
  rows = make_rows()
  mine = where(rows, arm='adv', attack='none')
  for place in range(movement.SKETCHES):
    output, target = (f'{kind}contour.{place}' for kind in (movement.OUTPUT, movement.TARGET))
    rows.loc[mine, output] = share * rows.loc[mine, target]
  found = run(rows)['outputs move with the image', 'adv']
  assert found.status == status and f'contour {share:.1%}' in found.detail
  assert found.detail.startswith('contour ') == (status != 'pass')
  assert 'mask 100.0%' in found.detail


def test_one_image_alone_does_not_count_as_movement():
  rows = make_rows()
  mine = where(rows, arm='adv', attack='none')
  outputs = [name for name in rows.columns if name.startswith(movement.OUTPUT)]
  rows.loc[mine, outputs] = 0.0
  rows.loc[np.flatnonzero(mine)[0], outputs] = 1.0  # as far as the targets' deviation
  assert run(rows)['outputs move with the image', 'adv'].status == 'fail'


@pytest.mark.parametrize('axis', ['seed', 'fold'])
def test_networks_of_several_seeds_or_folds_are_judged_one_by_one(axis):
  rows = make_rows().assign(fold=0)
  other = rows.assign(**{axis: 1, 'index': rows['index'] + 1000 * (axis == 'fold')})
  outputs = [name for name in rows.columns if name.startswith(movement.OUTPUT)]
  for place, part in enumerate((rows, other)):
    part.loc[where(part, arm='adv', attack='none'), outputs] = 100.0 * place
  found = run(pd.concat([rows, other], ignore_index=True))
  assert found['outputs move with the image', 'adv'].status == 'fail'


def test_rows_without_outputs_do_not_say_whether_they_move():
  rows = make_rows()
  old = rows[[name for name in rows.columns if not movement.is_column(name)]]
  assert run(old)['outputs move with the image', 'std'].status == 'skipped'
  for place in range(movement.SKETCHES):  # nothing to follow
    rows[[f'{movement.TARGET}{name}.{place}' for name in ('mask', 'contour')]] = 1.0
  assert run(rows)['outputs move with the image', 'std'].status == 'skipped'


ATTACKS = ('fgsm', 'noise', 'pgd_seg')
JUDGE = {'metric': 'dice', 'higher_is_better': True}


def of_worst(rows, worst=None, pairs=(), **judge):
  judge = JUDGE | judge
  if worst is None:
    worst = statistics.worst(rows, attacks=ATTACKS, **judge)
  found = checks.of_worst(rows, worst, attacks=ATTACKS, pairs=pairs, **judge)
  return {(check.name, check.arm): check for check in found}


NEVER, REACHED = 'the worst is never weaker', 'members reach plain attacks'


def test_the_worst_of_all_is_never_weaker_than_one():
  rows = make_rows()
  rows.loc[3, 'dice'] = np.nan
  assert {of_worst(rows)[NEVER, arm].status for arm in ('std', 'adv')} == {'pass'}
  rows['dice'] = 1 - rows['dice']
  assert of_worst(rows, higher_is_better=False)[NEVER, 'std'].status == 'pass'


def test_one_example_that_an_attack_harms_more_than_the_worst_is_named():
  rows = make_rows()
  worst = statistics.worst(rows, attacks=ATTACKS, **JUDGE)
  rows.loc[where(rows, arm='adv', attack='fgsm', eps=0.07, index=5), 'dice'] = 0.125
  found = of_worst(rows, worst)
  assert found[NEVER, 'std'].status == 'pass'
  assert found[NEVER, 'adv'].status == 'fail'
  assert 'most under fgsm at 0.07: dice 0.125 against' in found[NEVER, 'adv'].detail


@pytest.mark.parametrize('column', ['_value', 'dice'])
def test_a_member_reaches_the_mean_of_a_plain_attack_less_a_hundredth(column):
  rows = make_rows()
  plain = where(rows, attack='pgd_seg')
  assert of_worst(rows)[REACHED, 'std'].status == 'skipped'
  pairs = [('apgd', 'pgd_seg', column)]
  assert of_worst(rows, pairs=pairs)[REACHED, 'std'].status == 'skipped'
  sign = 1 if column == '_value' else -1
  for share, status in ((0.999, 'pass'), (0.97, 'fail')):
    member = rows[plain].assign(attack='apgd')
    scale = (
      member[column] if column == '_value' else 4.0 * member['eps']
    )  # what the plain one harms
    member[column] -= sign * (1 - share) * scale
    found = of_worst(pd.concat([rows, member]), pairs=pairs)[REACHED, 'adv']
    assert found.status == status, found
  assert 'apgd below pgd_seg at 0.2 by ' in found.detail


def test_a_member_that_may_have_been_unlucky_is_a_warning():
  rows = make_rows()
  member = rows[where(rows, attack='pgd_seg')].assign(attack='apgd')
  unlucky = member['index'] < 2  # one patient of twelve
  member.loc[unlucky, '_value'] -= 0.4
  found = of_worst(pd.concat([rows, member]), pairs=[('apgd', 'pgd_seg', '_value')])
  assert found[REACHED, 'std'].status == 'warn'


def test_an_error_that_is_0_on_clean_images_has_a_share_of_its_harm():
  """The mean of the clean images said inf% of 0; where nothing is harmed nothing is compared."""
  rows = make_rows()
  rows['dice'] = np.where(rows['attack'] == 'none', 0.0, 10 * rows['eps'])
  member = rows[where(rows, attack='pgd_seg')].assign(attack='apgd')
  how = {'pairs': [('apgd', 'pgd_seg', 'dice')], 'higher_is_better': False}
  for share, status in ((0.999, 'pass'), (0.97, 'fail')):
    member['dice'] = 10 * share * member['eps']
    found = of_worst(pd.concat([rows, member]), **how)[REACHED, 'std']
    assert found.status == status and 'inf' not in found.detail, found
  assert 'below pgd_seg at 0.2 by 3.0%' in found.detail
  rows['dice'] = member['dice'] = 0.0
  found = of_worst(pd.concat([rows, member]), **how)[REACHED, 'std']
  assert found.status == 'skipped' and 'no effect' in found.detail


def test_the_objective_of_a_judged_member_counts_where_the_metric_is_the_same():
  """A flat metric: the member that hands over its start is named."""
  rows = make_rows()
  flat = rows['index'] < 12
  rows.loc[flat, 'dice'] = np.nan
  plain = where(rows, attack='pgd_seg')
  member = rows[plain].assign(attack='apgd')
  member.loc[member['index'] >= 12, '_value'] -= 0.5  # chosen by a metric that is better
  member['dice'] -= 0.1
  pairs = [('apgd', 'pgd_seg', 'dice'), ('apgd', 'pgd_seg', '_value')]
  assert of_worst(pd.concat([rows, member]), pairs=pairs)[REACHED, 'std'].status == 'pass'
  member.loc[member['index'] < 12, '_value'] -= 0.1
  found = of_worst(pd.concat([rows, member]), pairs=pairs)[REACHED, 'std']
  assert found.status == 'fail' and 'apgd below pgd_seg at 0.2 by' in found.detail
