"""The rows that stand for a paper's printed tables (support.replication)."""

import math

import numpy as np
import pandas as pd
import pytest

from robustmed.evaluation import claims
from support import replication

CELLS = [
  ('std', 'none', 0.0, 'dice', 0.95),
  ('adv', 'none', 0.0, 'dice', 0.94),
  ('std', 'pgd', 0.1, 'dice', 0.01),
  ('adv', 'pgd', 0.1, 'dice', 0.7),
  ('std', 'none', 0.0, 'error', 1.5),
  ('adv', 'none', 0.0, 'error', 0.0),
]
TABLE = pd.DataFrame(CELLS, columns=[*replication.KEYS, 'metric', 'mean'])
SPREAD = {'dice': replication.DICE, 'error': replication.Spread(0.4, bounds=(0.0, math.inf))}
AT = {'metric': 'dice', 'attack': 'pgd', 'eps': 0.1}
SIZES = (5,) * 20


def make(table=TABLE, **options):
  return replication.rows(table, **{'sizes': SIZES, 'spread': SPREAD, **options})


def cell(rows, arm, attack='none', metric='dice'):
  return rows[(rows['arm'] == arm) & (rows['attack'] == attack)][metric].to_numpy()


@pytest.mark.parametrize('sizes', [SIZES, (1,) * 3, (1, 4, 2)])
def test_means_are_the_printed_ones_and_values_possible(sizes):
  rows = make(sizes=sizes)
  for arm, attack, _, metric, mean in CELLS:
    values = cell(rows, arm, attack, metric)
    assert len(values) == sum(sizes) and values.mean() == pytest.approx(mean, rel=1e-9)
    assert values.min() >= 0 and (metric == 'error' or values.max() <= 1)
  assert len(np.unique(cell(rows, 'adv', 'pgd'))) == sum(sizes)


def test_spread_correlation_and_groups_are_the_stated_ones():
  rows = make(sizes=(5,) * 400)
  first, second = cell(rows, 'std'), cell(rows, 'adv')
  assert cell(rows, 'adv', 'pgd').std() == pytest.approx(0.06, rel=0.03)
  assert np.corrcoef(first, second)[0, 1] == pytest.approx(0.5, abs=0.08)
  by_group = cell(rows, 'adv', 'pgd').reshape(400, 5).mean(1)
  assert by_group.var() == pytest.approx(0.06**2 * (0.5 + 0.5 / 5), rel=0.1)
  table = TABLE.assign(std=0.02, correlation=0.95)
  rows = make(table, sizes=(5,) * 400)
  assert np.corrcoef(cell(rows, 'std'), cell(rows, 'adv'))[0, 1] == pytest.approx(0.95, abs=0.02)
  assert cell(rows, 'adv', 'pgd').std() == pytest.approx(0.02, rel=0.03)


def test_a_cell_does_not_depend_on_the_others():
  alone = make(TABLE[TABLE['arm'] == 'adv'].iloc[::-1])
  assert np.array_equal(cell(alone, 'adv', 'pgd'), cell(make(), 'adv', 'pgd'))
  assert not np.array_equal(cell(make(seed=1), 'adv', 'pgd'), cell(make(), 'adv', 'pgd'))


def test_rows_without_effect_have_one_distribution():
  made = [
    replication.without_effect(TABLE, seed=seed, sizes=(5,) * 200, spread=SPREAD)
    for seed in range(2)
  ]
  means = [cell(rows, arm, attack).mean() for rows in made for arm, attack, _, _, _ in CELLS[:4]]
  assert np.allclose(means, 0.65, atol=0.02) and len(set(means)) == 8


def test_expected_verdicts_are_checked():
  made = [
    claims.Claim('better', '', claims.greater('adv', 'std', **AT)),
    claims.Claim('worse', '', claims.greater('std', 'adv', **AT)),
    claims.Claim('level', '', claims.above('adv', threshold=0.6, **AT)),
    claims.Claim('alike', '', claims.close('adv', 'std', tolerance=0.1, reason='ours', **AT)),
    claims.Claim('missing', '', claims.greater('none', 'std', **AT)),
    claims.Claim('best', '', claims.best_of('adv', ['std'], **AT)),
  ]
  rest = {'fails': ['worse', 'alike'], 'not_run': ['missing']}
  replication.check(made, make(), holds=['better', 'level', 'best'], **rest)
  with pytest.raises(AssertionError, match='best: holds, not undecided'):
    replication.check(made, make(), holds=['better', 'level'], undecided=['best'], **rest)
  with pytest.raises(AssertionError, match='best'):
    replication.check(made, make(), holds=['better', 'level'], **rest)
  assert replication.superiority(made) == ['better', 'worse', 'missing', 'best']
  assert replication.held(made, make()) == ['better', 'best']


def test_errors_in_rows_without_effect_are_counted():
  better = [claims.Claim('better', '', claims.greater('adv', 'std', **AT))]
  options = {'sizes': (1,) * 20, 'spread': SPREAD}
  draw = lambda seed: replication.without_effect(TABLE, seed=seed, **options)
  replication.check_without_effect(lambda rows: better, draw)
  with pytest.raises(AssertionError, match='better'):
    replication.check_without_effect(lambda rows: better, lambda seed: make(seed=seed))


def test_thresholds_without_a_reason_are_found():
  plain = claims.above('adv', threshold=0.6, **AT)
  made = [
    claims.Claim('plain', '', plain),
    claims.Claim('said', '', claims.above('adv', threshold=0.6, reason='ours', **AT)),
    claims.Claim('elsewhere', '', claims.Elsewhere(plain, TABLE)),
    claims.Claim('above 0', '', claims.greater('adv', 'std', **AT)),
    claims.Claim('margin', '', claims.greater('adv', 'std', margin=0.1, **AT)),
    claims.Claim('best', '', claims.best_of('adv', ['std'], **AT)),
  ]
  assert replication.unexplained(made) == ['plain', 'elsewhere', 'margin']
