import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import attacks, errors, types
from robustmed.defenses import amat

D = 2.0


def _task():
  """A network that returns its image [b, dims]: every loss and gradient is known."""
  losses = lambda outputs, batch: {'mean': outputs.mean(1), 'first': outputs[:, 0]}
  return types.Task(
    init=lambda key: {'params': {'w': jnp.zeros(())}},
    predict=lambda variables, image: image + variables['params']['w'],
    forward=lambda variables, image, key: (image + variables['params']['w'], {}),
    losses=losses,
    objectives={'up': lambda outputs, batch: outputs.sum(1)},
    metrics=lambda outputs, batch: {'near': -outputs.mean(1), 'moved': -batch['clean'].mean(1)},
    image_shape=(4,),
  )


def _make(attack=None, **more):
  attack = attack or attacks.pgd(norm='l2', num_steps=3, relative_step=0.5)
  fields = {'step': D, 'thresholds': (1.0,), 'terms': ('mean',), 'when': 'immediate'}
  return amat.make(_task(), attack=attack, **{**fields, **more})


def _batch(index, *, draw=None, mask=None, dims=4):
  count = len(index)
  return {
    'image': jnp.zeros((count, dims)),
    'target': {},
    'index': jnp.asarray(index, jnp.int32),
    'draw': jnp.arange(count) if draw is None else jnp.asarray(draw, jnp.int32),
    'mask': jnp.ones(count, bool) if mask is None else jnp.asarray(mask),
  }


def _seen(passed, distance):
  return {'main': {'passed': jnp.asarray(passed, float), 'distance': jnp.asarray(distance, float)}}


def _after(defense, *steps, num=4):
  """The memory after global batches of (index, passed, distance)."""
  memory = defense.init(num)
  for index, passed, distance in steps:
    memory = defense.update(memory, _seen(passed, distance), _batch(index))
  return memory


@pytest.mark.parametrize(
  'fields, passed, distance, want',
  [
    ({}, 1, 2.0, 4.0),  # expand
    ({}, 0, 2.0, 2.0),  # on the sphere refinement does nothing
    ({}, 0, 1.0, 1.5),  # inside the ball it does
    ({'refine': False}, 0, 1.0, 2.0),
    ({'max_margin': 3.0}, 1, 2.0, 3.0),  # cap
    ({'floor': 1.75}, 0, 1.0, 1.75),
    ({'max_margin': 1.5}, 0, 1.5, 1.5),  # also of the start
  ],
)
def test_one_transition(fields, passed, distance, want):
  memory = _after(_make(**fields), ([1], [passed], [distance]))
  start = min(D, fields.get('max_margin') or D)
  np.testing.assert_allclose(memory['margin'], [start, want, start, start])


def test_an_epoch_collects_first_and_changes_once():
  defense = _make(when='epoch_end', epoch_steps=2)
  first = ([0, 1, 2], [1, 0, 0], [2, 1, 1])
  second = ([0, 1, 2], [1, 1, 0], [2, 2, 0.5])
  memory = _after(defense, first)
  np.testing.assert_array_equal(memory['margin'], [D] * 4)
  memory = _after(defense, first, second)
  # twice passed: one step; once: one step and no refinement; never: both refinements in turn
  np.testing.assert_allclose(memory['margin'], [4, 4, (0.5 + (1 + 2) / 2) / 2, 2])
  assert not memory['passed'].any()
  np.testing.assert_array_equal(memory['refined'], memory['margin'])
  np.testing.assert_array_equal(memory['draws'], [2, 2, 2, 0])
  third = _after(defense, first, second, first)
  np.testing.assert_array_equal(third['margin'], memory['margin'])


def _reference(batches, *, num, epoch_steps, cap, floor):
  """Draw by draw in plain Python."""
  margin, refined, passed = [[value] * num for value in (D, D, False)]
  for number, (index, ok, distance, draw, mask) in enumerate(batches, start=1):
    for i in np.argsort(draw):
      if mask[i]:
        passed[index[i]] |= bool(ok[i])
        if not ok[i]:
          refined[index[i]] = (refined[index[i]] + distance[i]) / 2
    if number % epoch_steps == 0:
      moved = [m + D if p else r for m, r, p in zip(margin, refined, passed)]
      margin = [min(max(m, floor), cap) for m in moved]
      refined, passed = list(margin), [False] * num
  return margin


def test_duplicates_and_padding_in_any_order_are_draws_one_after_the_other():
  rng, num, size = np.random.default_rng(0), 5, 8
  batches = [
    (
      rng.integers(0, num, size),
      rng.uniform(size=size) < 0.15,
      rng.uniform(0, 3, size),
      8 * number + rng.permutation(size),
      rng.uniform(size=size) < 0.8,
    )
    for number in range(9)
  ]
  defense = _make(when='epoch_end', epoch_steps=3, max_margin=5.0, floor=0.5)
  want = _reference(batches, num=num, epoch_steps=3, cap=5.0, floor=0.5)
  assert len(set(want)) == num
  update = jax.jit(defense.update)
  for shuffle in (False, True):
    memory = defense.init(num)
    for index, passed, distance, draw, mask in batches:
      order = rng.permutation(size) if shuffle else np.arange(size)
      batch = _batch(index[order], draw=draw[order], mask=mask[order])
      memory = update(memory, _seen(passed[order], distance[order]), batch)
    np.testing.assert_allclose(memory['margin'], want, rtol=1e-6)


def _attacked(defense, margin, *, seed=0, xi=None, dims=4):
  """What the second copy of the loss gives at these margins."""
  num = len(margin)
  memory = {**defense.init(num), 'margin': jnp.asarray(margin, jnp.float32)}
  if xi is not None:
    memory['xi'] = jnp.asarray(xi)
  batch = _batch(range(num), dims=dims)
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(batch['draw'])
  context = types.LossContext({}, memory, batch, keys, jax.random.key(4), jnp.float32(0))
  return defense.phases[0].loss({'w': jnp.zeros(())}, context)


def test_the_start_lies_on_its_sphere_and_the_end_within_the_margin():
  margins = [0.0, 1.0, 2.0, 3.0, 5.0]
  _, start = _attacked(_make(attacks.pgd(norm='l2', num_steps=0)), margins, dims=64)
  np.testing.assert_allclose(start['distance'], [0, 1, 2, 2, 3], atol=1e-4)  # min(max(E - D, D), E)
  attack = attacks.pgd(norm='l2', num_steps=8, relative_step=0.5)
  values, aux = _attacked(_make(attack), margins, dims=64)
  np.testing.assert_allclose(aux['distance'], margins, atol=1e-4)
  np.testing.assert_array_equal(aux['margin'], margins)
  # the loss of the task is linear in x: mean grows by E times the gradient's norm at its most
  clean, attacked = aux['scalars']['loss/clean'], aux['scalars']['loss/attacked']
  assert (clean == 0).all() and attacked[0] == 0 and (np.diff(attacked) > 0).all()
  np.testing.assert_allclose(values, (clean + attacked) / 2)


def test_all_terms_must_be_below_their_thresholds_strictly():
  ascent = {'objective': 'up', 'terms': None, 'thresholds': (1.0, 1.0)}
  attack = attacks.pgd(norm='l2', num_steps=20, relative_step=0.5)
  at = lambda *xi: _attacked(_make(attack, **ascent), [2.0], xi=xi)[1]['passed'].tolist()
  # up the diagonal by 2: every element is 1, so is the mean
  assert at(1.1, 1.1) == [1] and at(0.9, 1.1) == [0] and at(1.1, 0.9) == [0]
  zero = lambda xi: _attacked(_make(attack), [0.0], xi=[xi])[1]['passed'].tolist()
  assert zero(0.0) == [0] and zero(1e-6) == [1]
  with pytest.raises(errors.UserError, match='3 thresholds do not fit the 2 values'):
    at(1.0, 1.0, 1.0)


def test_an_example_is_tested_against_the_threshold_of_its_stratum():
  kinds = types.Strata(('even', 'odd', 'none'), lambda batch: batch['index'] % 2)
  task = _task()._replace(strata=kinds)
  attack = attacks.pgd(norm='l2', num_steps=20, relative_step=0.5)
  fields = {
    'attack': attack,
    'step': D,
    'terms': ('mean',),
    'when': 'immediate',
    'strata': True,
    'objective': 'up',
  }
  make = lambda limits: amat.make(task, thresholds=limits, **fields)
  passed = lambda *limits: _attacked(make([[one] for one in limits]), [2.0] * 4)[1]['passed']
  # up the diagonal by 2: the mean is 1
  assert passed(1.1, 0.9, 5.0).tolist() == [1, 0, 1, 0]
  assert passed(0.9, 1.1, 5.0).tolist() == [0, 1, 0, 1]
  assert passed(np.nan, 1.1, np.nan).tolist() == [0, 1, 0, 1]  # no clean values, no growth
  assert make([[1.0], [2.0], [3.0]]).init(5)['xi'].shape == (3, 1)
  for limits, message in (
    ((1.0,), r'one row for each of 3 strata, not of shape \(1,\)'),
    (((1.0,), (2.0,)), r'not of shape \(2, 1\)'),
    (((1.0,), (np.inf,), (2.0,)), 'must be finite'),
  ):
    with pytest.raises(errors.UserError, match=message):
      make(limits)


def test_any_looks_at_every_iterate_and_final_at_the_last():
  # The attack goes up, so the criterion, which falls with it, fails at the start only.
  down = {'criterion': 'dice', 'terms': ('near',), 'thresholds': (0.0,), 'objective': ''}
  attack = attacks.pgd(norm='l2', num_steps=4, relative_step=1.0, random_start=False)
  loss = {'criterion': 'loss', 'terms': ('mean',), 'thresholds': (0.5,), 'objective': 'up'}
  fall = attacks.pgd(norm='l2', num_steps=4, relative_step=1.0, minimise=True)
  passed = lambda attack, **fields: float(_attacked(_make(attack, **fields), [3.0])[1]['passed'][0])
  assert passed(attack, **loss) == 0 and passed(attack, **loss, tested='any') == 0
  assert passed(fall, **loss) == 1
  seeds = [
    float(_attacked(_make(fall, **loss, tested='any'), [3.0], seed=seed)[1]['passed'][0])
    for seed in range(8)
  ]
  assert 0 < sum(seeds) < 8  # some random starts lie above the threshold
  assert passed(attack, **down) == 0 and passed(fall, **down) == 1
  # a metric of the clean image does not see the attack; >= is not strict
  assert passed(attack, **{**down, 'terms': ('moved',)}) == 1


def test_terms_may_be_the_total_or_objectives():
  batch, outputs = _batch([0, 1]), jnp.array([[1.0, 2, 3, 4], [0, 0, 0, 8]])
  values = amat.term_values(_task(), ('total', 'first', 'up'), criterion='loss')(outputs, batch)
  np.testing.assert_allclose(values, [[3.5, 1, 10], [2, 0, 8]])
  every = amat.term_values(_task(), None, criterion='loss')(outputs, batch)
  np.testing.assert_allclose(every, [[2.5, 1], [2, 0]])
  with pytest.raises(errors.UserError, match="unknown amat: term 'frist'; did you mean 'first'"):
    amat.term_values(_task(), ('frist',), criterion='loss')(outputs, batch)


def test_the_summary_counts_who_was_drawn():
  defense = _make(max_margin=4.0)
  memory = _after(defense, ([0, 1, 2], [1, 0, 0], [2, 1, 2]))
  found = {name: float(value) for name, value in defense.summaries['margins'](memory).items()}
  bins = {name: found.pop(name) for name in list(found) if name.startswith('from_')}
  assert found == {'drawn': 3, 'min': 1.5, 'mean': 2.5, 'max': 4}
  assert bins == {'from_0': 0, 'from_1': 1, 'from_2': 1, 'from_3': 0, 'from_4': 1}


def test_it_costs_one_forward_pass_more_than_the_attack_and_its_training():
  cost = _make(attacks.pgd(norm='l2', num_steps=20)).cost
  assert cost == types.Cost(gradients=20, forwards=1, passes=2)


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'thresholds': None}, 'needs thresholds'),
    ({'thresholds': (float('nan'),)}, 'must be finite'),
    ({'thresholds': ((1.0,), (2.0,))}, r'one row, not of shape \(2, 1\)'),
    ({'strata': True}, 'this task has no strata'),
    ({'step': 0.0}, 'step must be above 0'),
    ({'max_margin': 1.0, 'floor': 2.0}, 'floor <= max_margin'),
    ({'when': 'epoch_end'}, 'needs epoch_steps'),
    ({'when': 'later'}, "'epoch_end' or 'immediate'"),
    ({'tested': 'some'}, "unknown amat: tested 'some'"),
    ({'criterion': 'iou'}, "unknown amat: criterion 'iou'"),
    ({'criterion': 'dice', 'terms': None}, 'needs terms'),
    ({'objective': 'upp'}, "did you mean 'up'"),
    ({'clean_weight': 2.0}, 'clean_weight'),
    ({'attack': attacks.pgd(norm='l2', select='best')}, "select='last'"),
    ({'attack': attacks.pgd(norm='l2', score_last=False)}, 'score_last=True'),
  ],
)
def test_mistakes_are_user_errors(fields, message):
  with pytest.raises(errors.UserError, match=message):
    _make(**fields)
