"""Distillation by hand: both stages, what is a minimum, the teacher in memory and after a stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import errors, types
from robustmed.defenses import distillation
from robustmed.process import console
from robustmed.training import checkpoints, loop, optimisers
from support import toys

TEACHER = toys.variables()


def _make(temperature=20.0, **fields):
  return distillation.make(toys.task(), temperature=temperature, **fields)


def _context(defense, batch):
  keys = jax.random.split(jax.random.key(3), len(batch['mask']))
  memory = defense.init(8)
  return types.LossContext({}, memory, batch, keys, jax.random.key(4), jnp.float32(0))


def _logit(variables, batch):
  hidden, out = variables['params']['hidden'], variables['params']['out']
  x = batch['image'].reshape(len(batch['image']), -1).astype(np.float64)
  return np.tanh(x @ hidden['kernel'] + hidden['bias']) @ out['kernel'] + out['bias']


def _entropy(logit, label):
  """Binary cross-entropy in float64."""
  p = 1 / (1 + np.exp(-logit))
  return -(label * np.log(p) + (1 - label) * np.log(1 - p))[:, 0]


def test_the_student_learns_what_the_teacher_says_at_temperature():
  defense, batch, student = _make(teacher=TEACHER), toys.batch(6), toys.variables(9)
  values, aux = defense.phases[0].loss(student['params'], _context(defense, batch))
  soft = 1 / (1 + np.exp(-_logit(TEACHER, batch) / 20))
  want = _entropy(_logit(student, batch) / 20, soft)
  np.testing.assert_allclose(values, want, rtol=1e-5)
  np.testing.assert_allclose(aux['scalars']['bce'], want, rtol=1e-5)
  assert soft.min() > 0.3 and soft.max() < 0.7  # soft indeed
  other, _ = defense.phases[0].loss(
    student['params'],
    _context(defense, {**batch, 'target': {'label': 1 - batch['target']['label']}}),
  )
  np.testing.assert_array_equal(values, other)  # true labels have no say


def test_the_teacher_learns_the_truth_at_temperature():
  defense, batch = _make(stage='teacher'), toys.batch(6)
  values, _ = defense.phases[0].loss(TEACHER['params'], _context(defense, batch))
  want = _entropy(_logit(TEACHER, batch) / 20, batch['target']['label'])
  np.testing.assert_allclose(values, want, rtol=1e-5)
  assert defense.init(8) == {'temperature': 20}
  assert (defense.cost.forwards, defense.cost.passes) == (0, 1)


def test_adam_moves_as_far_at_any_temperature():
  """A gradient 1/T as large is small beside Adam's epsilon, so it is given its size back."""
  batch, rule = toys.batch(6), optimisers.make({'name': 'adam', 'lr': 1.0}, num_steps=1)
  flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])

  def first_step(temperature, **more):
    defense = _make(temperature, stage='teacher', **more)
    context = _context(defense, batch)
    loss = lambda params: jnp.mean(defense.phases[0].loss(params, context)[0])
    value, gradient = jax.value_and_grad(loss)(TEACHER['params'])
    moved, _ = rule.update(gradient, rule.init(TEACHER['params']))
    return float(value), flat(gradient), np.abs(flat(moved))

  logged, gradient, moved = first_step(1e6)
  same, small, stuck = first_step(1e6, full_gradient=False)
  assert logged == same  # the loss that is logged is the printed one
  np.testing.assert_allclose(gradient, 1e6 * small, rtol=1e-4, atol=1e-6)
  assert np.median(moved) > 0.999 and np.median(stuck) < 0.9


def test_the_temperature_rises_by_equal_factors():
  defense, batch = _make(16.0, stage='teacher', rise=0.5), toys.batch(6)
  context = _context(defense, batch)
  for progress, temperature in ((0.0, 1), (0.25, 4), (0.5, 16), (0.9, 16)):
    values, _ = defense.phases[0].loss(
      TEACHER['params'], context._replace(progress=jnp.float32(progress))
    )
    want = _entropy(_logit(TEACHER, batch) / temperature, batch['target']['label'])
    np.testing.assert_allclose(values, want, rtol=1e-5)


def test_temperature_is_an_argument_so_that_arms_share_programs():
  batch, params = toys.batch(6), TEACHER['params']
  one, two = (_make(temperature, stage='teacher') for temperature in (20.0, 3.0))
  at = lambda defense, memory: defense.phases[0].loss(
    params, _context(one, batch)._replace(memory=memory)
  )[0]
  np.testing.assert_array_equal(at(one, two.init(8)), at(two, two.init(8)))
  assert np.abs(at(one, two.init(8)) - at(one, one.init(8))).max() > 1e-3


def test_a_student_equal_to_its_teacher_is_at_the_minimum_of_cross_entropy():
  defense, batch = _make(3.0, teacher=TEACHER), toys.batch(6)
  context = _context(defense, batch)
  loss = jax.jit(lambda params, context: jnp.mean(defense.phases[0].loss(params, context)[0]))
  gradient = jax.jit(jax.grad(loss))
  at = lambda params: jnp.concatenate(
    [g.ravel() for g in jax.tree.leaves(gradient(params, context))]
  )
  assert float(jnp.abs(at(TEACHER['params'])).max()) < 1e-6
  assert float(jnp.abs(at(toys.variables(9)['params'])).max()) > 1e-3
  best = float(loss(TEACHER['params'], context))
  for seed in range(3):
    rng = np.random.default_rng(seed)
    moved = lambda p, rng=rng: p + 0.1 * rng.normal(size=p.shape)
    near = jax.tree.map(moved, TEACHER['params'])
    assert float(loss(near, context)) > best


def test_the_teacher_is_an_argument_and_not_a_constant():
  defense, batch = _make(teacher=TEACHER), toys.batch(6)
  context = _context(defense, batch)
  jaxpr = jax.make_jaxpr(lambda p, c: defense.phases[0].loss(p, c)[0])(TEACHER['params'], context)
  assert all(np.size(constant) <= 2 for constant in jaxpr.consts)
  total = lambda c: jnp.sum(defense.phases[0].loss(TEACHER['params'], c)[0])
  into = jax.grad(lambda memory: total(context._replace(memory=memory)))(context.memory)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(into))


class StopAt(console.Stopper):
  def __init__(self, after):
    super().__init__()
    self._left = after

  def requested(self):
    self._left -= 1
    return self._left < 0


def _fit(folder, stopper=None):
  return loop.fit(
    'student',
    task=toys.task(),
    defense=_make(teacher=TEACHER),
    batches=toys.stream(),
    config={
      'steps': 4,
      'optimisers': {'main': {'name': 'adamax', 'lr': 0.05}},
      'checkpoint_every': 4,
    },
    folder=folder / 'state',
    log=folder / 'log.csv',
    key=jax.random.key(0),
    num_examples=8,
    stopper=stopper or console.Stopper(),
  )


def test_the_teacher_is_in_the_checkpoint_and_a_stop_changes_nothing(tmp_path):
  whole = _fit(tmp_path / 'whole')
  with pytest.raises(console.Stopped):
    _fit(tmp_path / 'cut', StopAt(1))
  again = _fit(tmp_path / 'cut')
  toys.assert_equal_trees(again, whole)
  store = checkpoints.Store(tmp_path / 'cut' / 'state')
  kept, _ = store.restore(store.latest(), jax.tree.map(jnp.zeros_like, again))
  store.close()
  toys.assert_equal_trees(kept.memory['teacher'], TEACHER)


def test_a_teacher_to_come_has_a_cost_and_no_weights():
  defense = _make(teacher=())
  assert defense.cost == types.Cost(forwards=1, passes=1)
  with pytest.raises(ValueError, match='without teacher'):
    defense.init(1)


@pytest.mark.parametrize(
  ('fields', 'says'),
  [
    ({}, "name its arm in the arm's teacher_from"),
    ({'stage': 'techer'}, "did you mean 'teacher'"),
    ({'stage': 'teacher', 'teacher': TEACHER}, 'no teacher of its own'),
    ({'temperature': 0.0, 'teacher': TEACHER}, 'temperature must be above 0'),
    ({'coupled': True, 'teacher': TEACHER}, 'no coupled losses'),
    ({'rise': 1.5, 'teacher': TEACHER}, r'rise must be in \[0, 1\]'),
  ],
)
def test_mistakes(fields, says):
  with pytest.raises(errors.UserError, match=says):
    _make(**fields)
  with pytest.raises(errors.UserError, match='no softened outputs'):
    distillation.make(toys.task()._replace(soften=None), temperature=2.0, teacher=TEACHER)
