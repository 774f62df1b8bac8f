"""A table of attacks and levels in one call."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from robustmed import attacks, errors
from robustmed.attacks.ensemble import budgets

COUNT = 7
WEIGHT = np.random.default_rng(0).normal(size=(6, 1)).astype(np.float32)
IMAGE = np.random.default_rng(1).uniform(size=(COUNT, 2, 3, 1)).astype(np.float32)
TARGET = (IMAGE.reshape(COUNT, 6) @ WEIGHT > 0.3).astype(np.float32)


def network(image):
  return image.reshape(len(image), -1) @ WEIGHT - 0.3


def loss(outputs, target):
  return jnp.sum((1 - 2 * target) * outputs, axis=1)


def right(outputs, target):
  return (outputs > 0)[:, 0] == (target > 0.5)[:, 0]


PGD = attacks.pgd(num_steps=4, relative_step=0.5, bounds=(0.0, 1.0))
JUDGED = attacks.apgd(num_steps=4, select='monitor', bounds=(0.0, 1.0))
NOISE = attacks.noise(bounds=(0.0, 1.0))
FLAGS = ['no_gradient', 'not_finite', 'not_moved', 'wrong_eps']


@pytest.fixture(scope='module')
def table():
  return attacks.evaluate(
    network,
    (IMAGE, TARGET),
    objective=loss,
    metric=right,
    levels=(0.3, 0.1),
    attacks={'pgd': PGD, 'judged': JUDGED, 'noise': (NOISE, loss)},
    progress=False,
  )


def test_every_attack_level_and_example_has_a_row(table):
  frame = table.frame
  cells = frame.groupby(['attack', 'eps']).size()
  assert cells.to_dict() == {
    ('none', 0.0): COUNT,
    **{(a, e): COUNT for a in ('pgd', 'judged', 'noise', 'worst') for e in (0.1, 0.3)},
  }
  assert (frame['distance'].dropna() <= frame['eps'][frame['distance'].notna()] + 1e-6).all()
  clean = frame[frame['attack'] == 'none'].set_index('index')
  np.testing.assert_array_equal(clean['value'], 1)
  np.testing.assert_allclose(clean['objective'], loss(network(IMAGE), TARGET), rtol=1e-5)
  assert not frame.loc[frame['attack'] == 'pgd', FLAGS[:3]].to_numpy().any()


def test_the_worst_is_that_of_all_and_of_lower_levels(table):
  frame, means = table.frame, table.means
  for eps in (0.1, 0.3):
    inside = frame[(frame['eps'] <= eps) & (frame['attack'] != 'worst')]
    worst = frame[(frame['attack'] == 'worst') & (frame['eps'] == eps)].set_index('index')
    np.testing.assert_array_equal(worst['value'], inside.groupby('index')['value'].min())
    assert (worst['by_eps'] <= eps).all()
  assert means.loc['worst', 0.3] < means.loc['none', 0.0]
  assert list(means) == [0.0, 0.1, 0.3]


def test_batches_do_not_matter(table):
  halves = [{'image': IMAGE[:4], 'target': TARGET[:4]}, (IMAGE[4:], TARGET[4:])]
  found = attacks.evaluate(
    lambda variables, image: network(image) * variables,
    halves,
    objective=loss,
    metric=right,
    levels=(0.1, 0.3),
    attacks={'pgd': PGD, 'judged': JUDGED, 'noise': NOISE},
    variables=jnp.float32(1.0),
    progress=False,
  )
  order = ['attack', 'eps', 'index']
  first, second = (one.frame.sort_values(order, ignore_index=True) for one in (table, found))
  pd.testing.assert_frame_equal(first, second, rtol=1e-5, atol=1e-6)


def test_the_report_and_the_figure(table, tmp_path):
  axes = table.plot()
  assert {line.get_label() for line in axes.get_lines()} == {'pgd', 'judged', 'noise', 'worst'}
  assert all(line.get_xdata()[0] == 0 for line in axes.get_lines())
  path = table.report(tmp_path / 'out')
  text = path.read_text()
  assert '| attack | 0 | 0.1 | 0.3 |' in text and '| worst |' in text and '7 examples' in text
  ball = 'levels in the linf norm of images, values from 0 to 1'
  assert table.settings == {
    'pgd': f'{ball}, 4 steps of 0.5 times the level, 1 start, the last iterate',
    'judged': f'{ball}, 4 steps, 1 start, the iterate that is worst by the metric',
    'noise': f'{ball}, a random image',
  }
  assert f'- pgd: {table.settings["pgd"]}.' in text
  names = {one.name for one in path.parent.iterdir()}
  assert names == {'report.md', 'curve.png', 'means.csv', 'examples.csv'}
  stored = pd.read_csv(path.parent / 'examples.csv')
  assert len(stored) == len(table.frame)
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UserError, match='cannot write the report'):
    table.report(tmp_path / 'file')


def test_a_flat_objective_and_progress_are_told(tmp_path, capsys):
  found = attacks.evaluate(
    network,
    (IMAGE, TARGET),
    objective=lambda outputs, target, progress: jnp.zeros(len(outputs)) * progress,
    metric=right,
    levels=[0.1],
    attacks={'pgd': PGD},
  )
  assert '2/2, 0 s left  pgd at 0.1' in capsys.readouterr().err
  assert found.means.loc['worst', 0.1] == 1
  said = found.report(tmp_path).read_text()
  assert '- 7 of 7 attacked images: no gradient was ever other than 0 (pgd).' in said


@pytest.mark.parametrize(
  'changed, said',
  [
    ({'levels': ()}, 'levels must be numbers above 0'),
    ({'levels': (0.1, -1)}, 'levels must be numbers above 0'),
    ({'attacks': 'quik'}, "unknown budget of attacks 'quik'"),
    ({'attacks': {'worst': PGD}}, "other than 'none' and 'worst'"),
    ({'attacks': {'pgd': PGD}, 'norm': 'l2'}, 'norm: settings belong to each attack'),
    ({'data': []}, 'no examples'),
    ({'attacks': {'a': PGD, 'b': attacks.pgd(num_steps=4)}}, 'a and b differ in norm, bounds or'),
    ({'attacks': {'a': NOISE, 'b': attacks.noise(norm='l2')}}, 'a and b differ in norm, bounds or'),
    ({'metric': lambda outputs, target: outputs}, 'the metric must return one'),
  ],
)
def test_mistakes_are_one_line(changed, said):
  given = {'data': (IMAGE, TARGET), 'levels': (0.1,), 'attacks': {'pgd': PGD}} | changed
  with pytest.raises(errors.UserError, match=said):
    attacks.evaluate(network, objective=loss, progress=False, **given)


def test_a_loss_alone_is_its_own_metric():
  found = attacks.evaluate(
    network, (IMAGE, TARGET), objective=loss, levels=(0.1,), attacks={'pgd': PGD}, progress=False
  )
  assert not found.higher_is_better
  assert found.means.loc['worst', 0.1] > found.means.loc['none', 0.0]
  assert found.frame['objective'].equals(found.frame['value'])


def test_artefacts_are_shown_but_are_no_candidates_of_the_worst():
  rician = attacks.corruption(kind='rician')
  how = {'objective': loss, 'levels': (0.3,), 'progress': False}
  both = {'noise': NOISE, 'rician': rician}
  frame = attacks.evaluate(network, (IMAGE, TARGET), attacks=both, **how).frame
  assert set(frame['attack']) == {'none', 'noise', 'rician', 'worst'}
  assert set(frame.loc[frame['attack'] == 'worst', 'by']) <= {'none', 'noise'}
  alone = attacks.evaluate(network, (IMAGE, TARGET), attacks={'rician': rician}, **how).frame
  assert set(alone['attack']) == {'none', 'rician'}


def test_a_larger_budget_has_the_candidates_of_the_smaller(monkeypatch):
  """Of an objective with many bumps, where more steps need not find more."""
  small = {
    'quick': budgets.Budget(3, 1, 0, 3, None),
    'standard': budgets.Budget(4, 1, 5, 3, 'quick'),
  }
  monkeypatch.setattr('robustmed.attacks.ensemble.table.BUDGETS', small)
  bumps = lambda outputs, target: jnp.sin(200 * outputs[:, 0])
  frames = {
    budget: attacks.evaluate(
      network, (IMAGE, TARGET), objective=bumps, levels=(0.1,), attacks=budget, progress=False
    ).frame
    for budget in small
  }
  assert list(dict.fromkeys(frames['standard']['attack'])) == [
    'none', 'pgd', 'apgd', 'pgd_4', 'apgd_4', 'square_5', 'worst'
  ]  # fmt: skip
  for name in ('pgd', 'apgd'):
    one, two = (frame.loc[frame['attack'] == name, 'value'] for frame in frames.values())
    np.testing.assert_array_equal(one, two)
  one, two = (frame[frame['attack'] == 'worst'].set_index('index') for frame in frames.values())
  assert (two['value'] >= one['value']).all()


def test_units_and_sizes_that_do_not_fit():
  told = {'objective': loss, 'metric': right, 'attacks': {'noise': NOISE}, 'progress': False}
  with pytest.raises(errors.UserError, match=r'a target of shape \(1.*\) for 7 images'):
    attacks.evaluate(network, (IMAGE, TARGET[:1]), levels=0.1, **told)
  with pytest.warns(RuntimeWarning, match='level 8 is more than the whole range of values, 1;'):
    attacks.evaluate(network, (IMAGE, TARGET), levels=8, **told)
  with pytest.warns(RuntimeWarning, match='of the values of the images are outside') as found:
    halves = [(IMAGE[:6], TARGET[:6]), (IMAGE[6:] + 5, TARGET[6:])]
    attacks.evaluate(network, halves, levels={0.1}, **told)
  assert str(found[0].message).startswith('14 %')
  artefact = attacks.corruption(kind='rician', bounds=(0.0, 1.0))
  table = attacks.evaluate(
    network, (IMAGE, TARGET), levels=8, **{**told, 'attacks': {'r': artefact}}
  )
  assert table.settings == {'r': 'an artefact, whose level has a unit of its own'}
