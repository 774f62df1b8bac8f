import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from robustmed import errors
from robustmed.evaluation import claims, grid, trials
from robustmed.papers.two_moons import arms as two_moons_arms
from robustmed.papers.two_moons import experiment as two_moons
from robustmed.papers.two_moons import figures, moons, report
from robustmed.process import files
from robustmed.runs import commandline, experiment, preparation
from support import buckets, replication, runs


@pytest.fixture
def config():
  return commandline.load_config(str(runs.ROOT / 'configs' / 'two_moons.py:smoke'))


def test_arms_need_what_their_points_are_made_with(config):
  arms = two_moons.build(config).arms
  needs = {name: set(arm.needs) for name, arm in arms.items()}
  assert needs == {
    'vae': set(),
    'a_full': set(),
    'b_tail': set(),
    'c_codes': {'vae'},
    'd_uniform': {'vae'},
    'e_searched_codes': {'vae', 'b_tail'},
    'f_searched_uniform': {'vae', 'b_tail'},
  }
  assert [name for name, arm in arms.items() if arm.evaluated is False] == ['vae']
  order, _ = experiment.training_order(arms, ('e_searched_codes',))
  assert order == ['vae', 'b_tail', 'e_searched_codes']


def test_metrics_look_at_their_own_points_alone(config):
  task = two_moons.make_task(config)
  outputs = {'logit': jnp.array([[2.0], [2.0], [-2.0], [-2.0]])}
  kind = np.array([moons.TEST, moons.FAR, moons.TAIL, moons.TEST])
  batch = {'target': {'label': np.array([[1.0], [0.0], [1.0], [0.0]]), 'kind': kind}}
  found = {name: np.asarray(value) for name, value in task.metrics(outputs, batch).items()}
  p = 1 / (1 + np.exp(-2))
  np.testing.assert_allclose(found['p_true'], [p, 1 - p, 1 - p, p], rtol=1e-5)
  np.testing.assert_array_equal(found['accuracy'], [1, np.nan, 0, 1])
  np.testing.assert_allclose(found['tail'], [np.nan, np.nan, 1 - p, np.nan], rtol=1e-5)
  np.testing.assert_allclose(found['far'], [np.nan, p, np.nan, np.nan], rtol=1e-5)


def _finished(config, folder, source):
  """As if 'b_tail' had been trained, with the weights that it begins with."""
  exp = two_moons.build(config)
  load = lambda arm: exp.task_of(arm).init(jax.random.key(0))
  return exp, preparation.Finished(load, source, config, 0, folder)


def test_added_points_lie_in_object_stores_too(config, monkeypatch):
  buckets.use(monkeypatch)
  folder = files.path_of('gs://bucket/runs/x/checkpoints/d_uniform/seed0')
  source = two_moons.make_source(config)
  exp, finished = _finished(config, folder, source)
  first = exp.arms['d_uniform'].prepared.source(finished).train
  assert files.iter_files(folder) == [folder / two_moons_arms.ADDED]
  monkeypatch.setattr(two_moons_arms, '_search', None)  # read, not made again
  again = exp.arms['d_uniform'].prepared.source(finished).train
  np.testing.assert_array_equal(again.stack('image'), first.stack('image'))
  found = two_moons_arms.points_of(config, source, 'd_uniform', folder)
  each = config.search.codes + config.search.uniform
  assert found['added'].sum() == config.data.replicates * each
  assert found['label'][found['added']].sum() == config.data.replicates * config.search.codes


def test_an_arm_learns_from_its_real_and_its_added_points(config, tmp_path):
  source = two_moons.make_source(config)
  exp, finished = _finished(config, tmp_path, source)
  per, kept, added = config.data.points, config.data.kept, config.search
  expected = {'vae': kept, 'a_full': 2 * per, 'b_tail': per + kept}
  expected |= dict.fromkeys(('c_codes', 'e_searched_codes'), per + kept + added.codes)
  both = ('d_uniform', 'f_searched_uniform')
  expected |= dict.fromkeys(both, per + kept + added.codes + added.uniform)
  made = {}
  for name, arm in exp.arms.items():
    own = finished._replace(folder=tmp_path / name)
    material = arm.prepared.source(own)
    assert len(material.train) == config.data.replicates * expected[name], name
    index = material.train.stack('index')
    assert len(set(index)) == len(index) and not set(index) & set(source.test.stack('index'))
    if (own.folder / two_moons_arms.ADDED).is_file():
      made[name] = np.load(own.folder / two_moons_arms.ADDED)['image']
      label = np.load(own.folder / two_moons_arms.ADDED)['label']
      wanted = [1] * added.codes + ([0] * added.uniform if name in both else [])
      assert sorted(label) == sorted(wanted * config.data.replicates), name
      again = arm.prepared.source(own).train  # read, not made again
      np.testing.assert_array_equal(again.stack('image'), material.train.stack('image'))
      assert again.stack('label').sum() == config.data.replicates * (kept + added.codes)
  assert set(made) == set(config.arms) - {'a_full', 'b_tail'}
  change = np.abs(made['f_searched_uniform'] - made['d_uniform'])
  codes = config.data.replicates * added.codes
  # Panels accumulate: c's positives are those of d, and of f, whose negatives alone are moved.
  np.testing.assert_array_equal(made['d_uniform'][:codes], made['c_codes'])
  assert not change[:codes].any() and change[codes:].any(axis=1).all()
  assert 0.1 < change[:, :2].max() <= 1.0 + 1e-5 and (change[:, 2] == 0).all()
  assert np.abs(made['e_searched_codes'] - made['c_codes']).max() > 1e-3


@pytest.mark.parametrize('held', [b'no archive', b'PK\x03\x04 cut off'])
def test_a_damaged_file_of_added_points_is_named(config, tmp_path, held):
  (tmp_path / two_moons_arms.ADDED).write_bytes(held)
  exp, finished = _finished(config, tmp_path, two_moons.make_source(config))
  with pytest.raises(errors.UserError, match=r'added\.npz'):
    exp.arms['d_uniform'].prepared.source(finished)


def _rows(config, values):
  """Rows of 8 replicates: metric (tail, far, accuracy) of each arm around these values."""
  rng, lines = np.random.default_rng(0), []
  for arm, (tail, far, accuracy) in values.items():
    for group in range(8):
      for place in range(3):
        line = {'arm': arm, 'attack': 'none', 'eps': 0.0, 'index': 3 * group + place}
        wanted = {'tail': tail, 'far': far, 'accuracy': accuracy}
        shown = {
          name: value + 0.01 * rng.normal() if place == number else np.nan
          for number, (name, value) in enumerate(wanted.items())
        }
        lines.append({**line, 'seed': 0, 'group': group, 'p_true': 0.5, **shown})
  return pd.DataFrame(lines)


VALUES = {
  'a_full': (0.99, 0.95, 0.99),
  'b_tail': (0.2, 0.95, 0.9),
  'c_codes': (0.5, 0.95, 0.93),
  'd_uniform': (0.45, 0.4, 0.9),
  'e_searched_codes': (0.8, 0.95, 0.95),
  'f_searched_uniform': (0.45, 0.1, 0.9),
}


def test_claims_follow_the_figure(config):
  def decide(values):
    rows = _rows(config, values)
    return claims.decide(report.make_claims(config, rows), rows).set_index('statement')['verdict']

  assert set(decide(VALUES)) == {'holds'}
  names = list(VALUES)
  swap = dict(zip(['e_searched_codes', 'c_codes'], (VALUES['c_codes'], VALUES['e_searched_codes'])))
  assert decide({**VALUES, **swap})['Searched codes bring more of it back'] == 'fails'
  looser = decide({**VALUES, 'c_codes': (0.5, 0.3, 0.93)})  # b is at 0.95, so d is compared with c
  assert looser['Uniform negatives lower the confidence far away'] == 'fails'
  assert (
    looser['With random codes a sizeable part of what is far away is a sure positive'] == 'fails'
  )
  some = decide({name: VALUES[name] for name in names[:2]})
  assert some.iloc[0] == 'holds' and (some.iloc[1:] == 'not run').all()


def test_every_threshold_prints_its_reason(config):
  made = report.make_claims(config)
  assert not replication.unexplained(made)
  assert '(margin 0.1: ours, as if one point in ten' in str(made[0].test)
  assert 'far_sure(c_codes, clean) > 0.1 (ours' in str(made[2].test)


def test_the_table_has_means_and_deviations_over_replicates(config):
  labels = {'a_full': 'all', 'gone': 'absent'}
  rows = _rows(config, VALUES)
  found = report.table(rows, labels)
  assert list(found['panel']) == ['all']
  own = rows[rows['arm'] == 'a_full'].groupby('group')['tail'].mean()
  assert found.iloc[0, 2] == f'{own.mean():.3f} ± {own.std():.3f}'


def _stored():
  arms = ['b_tail', 'c_codes']
  xy = np.full((2, 5, 2), np.nan)
  xy[:, :3] = [[0, 0], [1, 1], [2, 0]]
  slope = np.broadcast_to(np.linspace(0, 1, 9), (9, 9))
  return {
    'arm': np.array(arms),
    'probability': np.stack([slope, np.ones((9, 9))]),
    'xy': xy,
    'label': np.broadcast_to([0, 1, 1, 0, 0], (2, 5)),
    'added': np.broadcast_to([False, False, True, False, False], (2, 5)),
  }


def test_the_figure_draws_the_panels_that_are_there():
  titles = (('a_full', 'a'), ('b_tail', 'b'), ('c_codes', 'c'))
  box = ((-3.0, 4.0), (-3.0, 3.0))
  png = figures.panels(_stored(), arms=titles, box=box)
  assert png.startswith(b'\x89PNG') and png == figures.panels(_stored(), arms=titles, box=box)
  assert figures.panels(_stored(), arms=titles[:1], box=box) is None
  assert png != figures.panels(_stored(), arms=titles[1:2], box=box)


def test_titles_of_panels_do_not_reach_into_the_next(monkeypatch):
  drawn = []
  monkeypatch.setattr(figures.figures, 'png', drawn.append)
  long = 'd: 20 positives + random codes + uniform negatives'
  stored = _stored()
  figures.panels(stored, arms=[(name, long) for name in stored['arm']], box=((-3, 4), (-3, 3)))
  (figure,) = drawn
  figure.draw_without_rendering()
  for axes in figure.axes[: len(stored['arm'])]:
    title = axes.title if axes.title.get_text() else axes._left_title
    assert title.get_text() and title.get_window_extent().x1 <= axes.get_window_extent().x1 + 8


def test_a_kept_map_is_the_networks_own(config, tmp_path):
  source = two_moons.make_source(config)
  exp = two_moons.build(config)
  variables = exp.task.init(jax.random.key(3))
  held = types.SimpleNamespace(exp=exp, source=lambda: source, results=tmp_path / 'results')
  model = grid.Model('b_tail', trials.Trial(0), lambda: variables)
  report.keep(config, held, [model], None)
  with np.load(tmp_path / 'results' / report.PICTURES) as stored:
    kept = dict(stored)
  side = config.report.grid
  (left, right), (below, above) = config.data.box
  x, y = left + (right - left) * 0.5 / side, above - (above - below) * 0.5 / side
  logit = exp.task.predict(variables, jnp.array([[x, y, 0.0]]))['logit']
  np.testing.assert_allclose(kept['probability'][0, -1, 0], jax.nn.sigmoid(logit)[0, 0], rtol=1e-5)
  known = np.isfinite(kept['xy'][0, :, 0])
  assert known.sum() == config.data.points + config.data.kept
  assert kept['label'][0, known].sum() == config.data.kept


def test_an_attacked_point_is_saved_as_json(tmp_path):
  example = {'index': 7, 'target': {'label': np.array([1.0])}}
  two_moons.write_example(tmp_path, np.array([0.5, -1.0, 3.0]), example)
  text = pathlib.Path(tmp_path / '7.json').read_text()
  assert '"replicate": 3' in text and '"label": 1.0' in text


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    ({'arms': {'a_full': {'added': ('code',)}}}, "unknown kind of added points 'code'"),
    ({'arms': {'a_full': {'added': ('codes', 'codes')}}}, "'a_full' adds 'codes' twice"),
    ({'arms': {'a_full': {'real': 'some'}}}, "unknown real points of arm 'a_full' 'some'"),
    ({'search': {'victim': 'nobody'}}, "unknown arm that the searches attack 'nobody'"),
    ({'data': {'kept': 0}}, 'kept must be at least 1'),
    ({'model': {'name': 'cnn'}}, "unknown model 'cnn'"),
  ],
)
def test_mistakes(config, change, match):
  config.update(change)
  with pytest.raises(errors.UserError, match=match):
    two_moons.build(config)
