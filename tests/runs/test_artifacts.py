"""Files of pictures that grow with the arms that are asked for."""

import numpy as np

from robustmed.evaluation import grid, trials
from robustmed.runs import artifacts


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
