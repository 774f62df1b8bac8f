"""Files of pictures that grow with the arms that are asked for."""

import json

import numpy as np
import pandas as pd
import pytest

from robustmed import attacks
from robustmed.evaluation import grid, trials
from robustmed.runs import artifacts, experiment


def _model(arm, seed=0):
  return grid.Model(arm, trials.Trial(seed), dict)


def _maker(calls):
  def make(model):
    calls.append(model.arm)
    if model.arm == 'none':
      return {}
    return {'arm': np.array([model.arm] * 2), 'image': np.full((2, 3), len(model.arm))}

  return make


def test_pictures_of_other_arms_stay_and_only_new_ones_are_made(tmp_path):
  path, calls = tmp_path / 'pictures.npz', []
  artifacts.add_pictures(path, [_model('none')], _maker(calls))
  assert not path.exists()
  artifacts.add_pictures(path, [_model('std')], _maker(calls))
  first = path.read_bytes()
  artifacts.add_pictures(path, [_model('std'), _model('none')], _maker(calls))
  assert path.read_bytes() == first and calls == ['none', 'std', 'none']
  artifacts.add_pictures(path, [_model('std'), _model('adv_long')], _maker(calls))
  assert calls[3:] == ['adv_long']
  with np.load(path) as stored:
    assert stored['arm'].tolist() == ['adv_long', 'adv_long', 'std', 'std']
    np.testing.assert_array_equal(stored['image'][:, 0], [8, 8, 3, 3])


def test_the_first_trial_stands_for_an_arm():
  models = [_model('a', 1), _model('b', 1), _model('a', 2)]
  assert artifacts.first_trial(models) == models[:2]


PGD = attacks.pgd(num_steps=5, relative_step=0.3)
APGD = attacks.apgd(num_steps=5)


def _grid(**more):
  probes = {'pgd': grid.Probe(PGD, 'ce', (0.1,)), 'apgd': grid.Probe(APGD, 'ce', (0.1,)), **more}
  judge = {'metric': 'dice', 'higher_is_better': True, 'main': 'pgd'}
  return experiment.Grid(probes, 'pgd', checks=judge)


def _rows(**dice):
  """Two slices of each of two subjects; of a slice (hit, size), whose Dice is their quotient."""
  cells = []
  for attack, counts in dice.items():
    hit, size = np.transpose(counts)
    cells.append(
      pd.DataFrame(
        {
          'arm': 'std',
          'attack': attack,
          'eps': 0.0 if attack == 'none' else 0.1,
          'seed': 0,
          'index': range(4),
          'group': [0, 0, 1, 1],
          'dice': hit / size,
          '_hit': hit,
          '_size': size,
          '_value': 1.0,
        }
      )
    )
  return pd.concat(cells, ignore_index=True)


def _subjects(rows):
  keys = ['arm', 'attack', 'eps', 'seed', 'group']
  sums = rows.groupby(keys, as_index=False)[['_hit', '_size']].sum()
  return sums.assign(index=sums['group'], dice=sums['_hit'] / sums['_size'], _value=1.0)


def test_the_worst_of_a_subject_is_never_weaker_than_one_attack(tmp_path):
  """Though the worst of each of its slices is: in subject 0 pgd takes more from the large slice."""
  rows = _rows(
    none=[(9, 10), (90, 100), (9, 10), (9, 10)],
    pgd=[(5, 10), (10, 100), (5, 10), (5, 10)],
    apgd=[(6, 10), (0.7, 10), (4, 10), (6, 10)],
  )
  artifacts.save_rows(_grid()._replace(subjects=_subjects), rows, folder=tmp_path, seed=0)
  worst = pd.read_parquet(tmp_path / 'worst.parquet').set_index('index')['dice']
  assert worst[0] == pytest.approx(15 / 110)
  assert worst[1] == pytest.approx(9 / 20)
  stored = json.loads((tmp_path / 'checks.json').read_text())
  found = {check['name']: check['status'] for check in stored}
  assert found['the worst is never weaker'] == 'pass'
  assert found['members reach plain attacks'] == 'pass'


def test_members_are_compared_with_plain_attacks_of_no_more_gradients(tmp_path):
  shorter = attacks.apgd(num_steps=3)
  judged = attacks.apgd(num_steps=5, select='monitor')
  made = _grid(
    short=grid.Probe(shorter, 'ce', (0.1,)),
    other=grid.Probe(APGD, 'margin', (0.1,)),
    judged=grid.Probe(judged, 'ce', (0.1,)),
    moved=grid.Probe(APGD, 'ce', (0.1,), 'std'),
    l2=grid.Probe(attacks.apgd(norm='l2', num_steps=5), 'ce', (0.1,)),
  )
  names = artifacts._same_ball(made.probes, 'pgd')
  assert 'l2' not in names
  assert artifacts._pairs(made.probes, names, 'dice') == [
    ('apgd', 'pgd', '_value'),
    ('judged', 'pgd', 'dice'),
  ]
