import numpy as np
import pandas as pd
import pytest

from robustmed.evaluation import claims
from robustmed.papers.amat import claims as amat_claims
from robustmed.papers.amat import landmarks, objects, segmentation
from robustmed.report import inputs
from robustmed.runs import commandline

SAT = ('sat_1', 'sat_5')
LEVELS_CLAIM = 'AMAT is the best at almost all levels (at least 2 of 3, clean among them)'
LEVELS = (2.0, 4.0)
# mean Dice of clean images and at the two levels
DICE = {
  'std': (0.90, 0.30, 0.02),
  'sat_1': (0.85, 0.55, 0.20),
  'sat_5': (0.70, 0.62, 0.50),
  'amat': (0.88, 0.75, 0.60),
}


def rows(dice=DICE, volumes=12, slices=3):
  rng = np.random.default_rng(0)
  lines = []
  for arm, means in dice.items():
    for (attack, eps), mean in zip((('none', 0.0), ('pgd', 2.0), ('pgd', 4.0)), means, strict=True):
      for index in range(volumes * slices):
        tp, size = 100.0, 20.0 if index % slices else 200.0
        score = mean + rng.normal(0, 0.01)
        lines.append(
          {
            'arm': arm,
            'attack': attack,
            'eps': eps,
            'index': index,
            'seed': 0,
            'group': index // slices,
            'DICE': score,
            '_tp1': tp * size / 200,
            '_fp1': 0.0,
            '_fn1': 40.0 if index % slices else 0.0,
          }
        )
  return pd.DataFrame(lines)


def ratio(value):
  steps = np.arange(20, 240, 20)
  return pd.DataFrame(
    {
      'arm': 'amat',
      'seed': 0,
      'attack': 'none',
      'eps': 0.0,
      'group': steps,
      'index': steps,
      'ratio': value + 0.001 * np.arange(len(steps)),
    }
  )


SAYING = amat_claims.Saying(levels=True, volumes=True)


def made(frame, losses=None, seconds=1.05, saying=SAYING):
  losses = np.random.default_rng(1).normal(0.1, 0.01, (400, 1)) if losses is None else losses
  return amat_claims.of_paper(
    frame,
    metric='DICE',
    sat=SAT,
    levels=LEVELS,
    clean=losses
    if isinstance(losses, amat_claims.Clean)
    else amat_claims.Clean(losses, np.arange(len(losses))),
    seconds=ratio(seconds),
    saying=saying,
  )


def decide(frame, **options):
  return claims.decide(made(frame, **options), frame).set_index('statement')['verdict']


def test_the_papers_ordering_holds():
  found = decide(rows(volumes=24))
  cost = found.pop('AMAT takes about as long as SAT')
  assert cost == 'measured'
  assert set(found) == {'holds'}, found[found != 'holds']
  assert LEVELS_CLAIM in found.index
  assert len(found) == 3 + 1 + 2 + 1 + 2 + 2 + 1


def test_the_opposite_fails():
  turned = {**DICE, 'amat': DICE['std'], 'std': DICE['amat']}
  found = decide(rows(turned, volumes=24), seconds=1.6)
  for statement in (
    'AMAT has a better average over all levels than std',
    LEVELS_CLAIM,
    'STD falls to almost nothing at level 4',
  ):
    assert found[statement] == 'fails', statement


def test_landmarks_and_cells_have_claims_of_their_own():
  errors_in_mm = {arm: tuple(40 - 38 * value for value in means) for arm, means in DICE.items()}
  errors_in_mm['std_bce'] = tuple(value + 3 for value in errors_in_mm['std'])
  frame = rows(errors_in_mm, volumes=24)
  saying = amat_claims.Saying(higher=False, collapse='', better=(('std', 'std_bce'),))
  losses = np.random.default_rng(1).normal(0.1, 0.01, (400, 3))
  found = decide(frame, losses=losses, saying=saying)
  cost = found.pop('AMAT takes about as long as SAT')
  assert cost == 'measured'
  assert set(found) == {'holds'}, found[found != 'holds']
  assert 'AMAT has a better average over all levels than std_bce' in found.index
  assert not found.index.str.contains('the best at').any()  # said of segmentation alone
  assert 'The clean losses V of STD, term 3, are approximately normal' in found.index
  close = amat_claims.Saying(collapse='lowest', close=(('sat_5', 'amat', 0.2),))
  found = decide(rows(), losses=np.zeros((0, 1)), saying=close)
  assert found['sat_5 is close to amat on average over all levels'] == 'holds'
  assert found['STD falls to almost nothing at level 2'] == 'fails'


def test_almost_all_levels_are_all_but_one():
  """On clean images std is better here, as in the paper's prostate."""
  assert DICE['std'][0] > DICE['amat'][0]
  frame = rows(volumes=24)
  (test,) = [claim.test for claim in made(frame) if claim.statement == LEVELS_CLAIM]
  outcome = test(frame)
  assert outcome.numbers.startswith('2 of 3 lie so: amat, clean: next best std: 0.8')
  assert 'amat, pgd 4: next best sat_5' in outcome.numbers
  two = {**DICE, 'amat': (0.88, 0.60, 0.60)}  # and sat_5 at level 2
  assert decide(rows(two, volumes=24))[LEVELS_CLAIM] == 'fails'


def test_parts_say_what_the_paper_says_of_them():
  of = lambda name: commandline.load_config(f'configs/amat_{name}.py')
  said = {name: segmentation.saying(of(name)) for name in ('heart', 'hippocampus', 'prostate')}
  assert all(one.levels and one.volumes for one in said.values())
  assert [one.better_clean for one in said.values()] == ['', '', 'std']
  for part, name in ((objects, 'bccd'), (landmarks, 'ceph')):
    assert not part.saying(of(name)).levels
  assert landmarks.saying(of('ceph')).better == (('std', 'std_bce'),)


def test_losses_with_a_long_tail_are_not_normal():
  tail = np.random.default_rng(0).lognormal(0, 1.2, (300, 1))
  assert (
    decide(rows(), losses=tail)['The clean losses V of STD are approximately normal'] == 'fails'
  )
  none = np.zeros((0, 1))
  assert decide(rows(), losses=none).str.contains('not run').sum() == 1


def test_normality_is_said_in_the_method():
  found = made(rows())
  places = [claim.place for claim in found if 'approximately normal' in claim.statement]
  assert places == ['Section 2.2']


def test_heaps_of_equal_size_are_not_normal():
  heaps = np.repeat([0.3, 0.6, 0.9], 100)[:, None] + np.random.default_rng(0).normal(
    0, 0.02, (300, 1)
  )
  statement = 'The clean losses V of STD are approximately normal'
  assert decide(rows(), losses=heaps)[statement] == 'fails'


def heaps_of_strata(centres, **more):
  strata = np.repeat(np.arange(len(centres)), 400)
  values = np.array(centres)[strata] + np.random.default_rng(0).normal(0, 0.02, strata.size)
  groups = np.tile(np.arange(400), len(centres))
  return amat_claims.Clean(values[:, None], groups, strata, ('none', 'one', 'both'), **more)


def test_normality_is_that_within_strata():
  statement = 'The clean losses V of STD are approximately normal'
  normal = heaps_of_strata([0.9, 0.6, 0.3])
  assert decide(rows(), losses=normal)[statement] == 'holds'
  assert decide(rows(), losses=normal._replace(strata=None))[statement] == 'fails'
  values = normal.values.copy()
  values[:400:2] += 0.3  # two heaps within one stratum
  heaped = normal._replace(values=values)
  assert decide(rows(), losses=heaped)[statement] == 'fails'
  (test,) = [claim.test for claim in made(rows(), heaped) if claim.statement == statement]
  assert test(rows()).numbers.startswith('2 of 3 lie so: none: distance')
  # a stratum of a few slices is left out
  few = np.concatenate([np.arange(5), np.arange(400, 1200)])
  heaped = heaped._replace(
    values=heaped.values[few], groups=heaped.groups[few], strata=heaped.strata[few]
  )
  assert decide(rows(), losses=heaped)[statement] == 'holds'


def test_clean_dice_is_tested_too():
  clean = heaps_of_strata([0.9], what='Dice')
  assert decide(rows(), losses=clean)['The clean Dice V of STD is approximately normal'] == 'holds'
  unknown = clean._replace(groups=None)  # earlier workdirs
  assert decide(rows(), losses=unknown).str.contains('not run').sum() == 1


def test_the_average_is_over_clean_and_all_levels():
  frame = rows(volumes=2)
  mean = amat_claims.averaged(frame, attack='pgd', metric='DICE')
  one = frame[(frame['arm'] == 'amat') & (frame['index'] == 1)]
  got = mean[(mean['arm'] == 'amat') & (mean['index'] == 1)]['DICE']
  assert got.item() == pytest.approx(one['DICE'].mean())
  assert set(mean['attack']) == {amat_claims.AVERAGE} and len(mean) == 4 * 6


def test_volume_dice_minus_slice_dice_by_hand():
  frame = rows({'std': DICE['std']}, volumes=1, slices=2)
  found = amat_claims.volumes(frame[frame['attack'] == 'none'])
  # slices: tp 100 and 10, fn 0 and 40
  together, apart = 2 * 110 / (220 + 40), (1 + 20 / 60) / 2
  assert found['volume_minus_slices'].item() == pytest.approx(together - apart)


def test_seconds_leave_out_compilation_and_interruptions():
  log = pd.DataFrame(
    {
      'arm': ['amat'] * 5 + ['sat_1'] * 5,
      'seed': 0,
      'step': [1, 20, 40, 60, 80] * 2,
      'seconds': [30.0, 40.0, 60.0, 2.0, 22.0, 31.0, 41.0, 51.0, 61.0, 71.0],
    }
  )
  table = inputs.seconds_per_step(log)
  ours = table[table['arm'] == 'amat'].set_index('step')['per_step']
  assert dict(ours) == pytest.approx({20: 10 / 19, 40: 1.0, 80: 1.0})
  found = amat_claims.ratios(log, sat=('sat_1',)).set_index('step')['ratio']
  assert dict(found) == pytest.approx({20: 1.0, 40: 2.0, 80: 2.0})
  assert inputs.seconds_per_step(None).empty and amat_claims.ratios(None, sat=SAT).empty


def test_folds_have_clocks_of_their_own():
  lines = [
    (arm, 0, fold, step, step * speed * (1 + fold))
    for arm, speed in (('amat', 3.0), ('sat_1', 2.0))
    for fold in (0, 1)
    for step in (1, 2, 3, 4)
  ]
  log = pd.DataFrame(lines, columns=['arm', 'seed', 'fold', 'step', 'seconds'])
  table = inputs.seconds_per_step(log)
  assert list(table.columns) == ['arm', 'seed', 'fold', 'step', 'per_step'] and len(table) == 12
  assert table.groupby(['arm', 'fold'])['per_step'].agg(set).tolist() == [{3}, {6}, {2}, {4}]
  found = amat_claims.ratios(log, sat=('sat_1',))
  assert found['fold'].tolist() == [0, 0, 0, 1, 1, 1] and (found['ratio'] == 1.5).all()
  cost = claims.measured(claims.Cell('amat'), metric='ratio', high=2.0, reason='ours')
  claim = claims.Claim('costs', 'Table 2', claims.Elsewhere(cost, found))
  decided = claims.decide([claim], rows({'std': DICE['std']}, volumes=1, slices=2))
  assert decided['verdict'].tolist() == ['measured'] and '1.5 ' in decided['numbers'].item()
