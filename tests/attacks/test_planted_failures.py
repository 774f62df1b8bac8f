"""Networks and a metric with planted failures: a probe or a flag names each, and each is broken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import attacks
from robustmed.attacks import ensemble, objectives
from robustmed.evaluation.checks import network
from robustmed.tasks import segmentation

COUNT, SIDE, CLASSES, EPS = 8, 6, 3, 0.3
OBJECTIVES = ('ce', 'margin')  # of the default members; fewer compile in less time
pytestmark = [pytest.mark.slow, pytest.mark.long]


def _core(variables, image, activation=jnp.tanh):
  shifts = [jnp.roll(image[..., 0], (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
  hidden = activation(jnp.stack(shifts, -1) @ variables['first'])
  return hidden @ variables['last']


def _batch_statistics(variables, image):
  mean, deviation = (f(image, (0, 1, 2), keepdims=True) for f in (jnp.mean, jnp.std))
  return _core(variables, (image - mean) / deviation)


def _random(variables, image):
  """Noise of a key that every image has of its own, drawn anew for another `seed`."""
  bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(image), jnp.uint32)
  bits = jnp.sum(bits.reshape(len(image), -1), axis=1)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(variables['seed']), bits)
  draw = lambda key: jax.random.normal(key, (SIDE, SIDE, CLASSES))
  return _core(variables, image) + jax.vmap(draw)(keys)


NETWORKS = {
  'sound': _core,
  'saturated': lambda v, x: jax.nn.sigmoid(1e6 * (_core(v, x) - 0.2)),
  'quantised input': lambda v, x: _core(v, jnp.round(3 * x) / 3),
  'batch statistics': _batch_statistics,
  'clipped range': lambda v, x: _core(v, jnp.clip(x, 0.35, 0.65)),
  'random output': _random,
  'rounded activations': lambda v, x: _core(v, x, lambda h: jnp.round(2 * jnp.tanh(h)) / 2),
  'rescaled logits': lambda v, x: 1e3 * _core(v, x),
}
NAMED = {  # the probes that fail on it, beside none on the sound one
  'sound': set(),
  'saturated': {'outputs have gradients'},
  'quantised input': {'outputs have gradients'},
  'batch statistics': {'examples alone'},
  'clipped range': {'outputs have gradients'},
  'random output': {'same image, same output', 'gradients predict changes'},
  'rounded activations': {'outputs have gradients'},
  'rescaled logits': {'the objective has gradients'},
}
WITHOUT_GRADIENT = ('saturated', 'quantised input', 'rounded activations')


def _predict(variables, image):
  return {'head0': jax.lax.switch(variables['kind'], [*NETWORKS.values()], variables, image)}


def _badness(outputs, batch):
  """The share of pixels that are wrong."""
  wrong = jnp.argmax(outputs['head0'], -1) != batch['target']['labels']
  return jnp.mean(wrong.astype(jnp.float32), (1, 2))


def _case(name):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  first = draw(9, 8)
  variables = {'first': first - first.mean(0, keepdims=True), 'last': draw(8, CLASSES), 'seed': 0}
  variables['kind'] = list(NETWORKS).index(name)
  image = rng.uniform(0.02, 0.25, size=(COUNT, SIDE, SIDE, 1))
  image = np.where(rng.random(image.shape) < 0.5, image, 1 - image)
  batch = {'image': jnp.asarray(image, jnp.float32)}
  right = _predict({**variables, 'seed': 1}, batch['image'])['head0']
  if name == 'random output':
    right = _core(variables, batch['image'])
  return variables, {**batch, 'target': {'labels': jnp.argmax(right, -1).astype(jnp.int32)}}


def _members():
  made = []
  for name, settings in ensemble.settings_of(OBJECTIVES, 'standard', bounds=(0.0, 1.0)).items():
    settings = dict(settings)
    objective = segmentation.OBJECTIVES[settings.pop('objective')]
    made.append(attacks.Member(name, attacks.make(settings.pop('name'), **settings), objective))
  return tuple(made)


MEMBERS = _members()
ENSEMBLE = attacks.Ensemble(_predict, MEMBERS, _badness)


@jax.jit
def _worst(variables, batch):
  return ENSEMBLE.worst(variables, batch, eps=EPS, key=jax.random.key(0))


@jax.jit
def _judged(variables, batch, x):
  return _badness(_predict(variables, x), batch)


@jax.jit
def _plain(variables, batch):
  """PGD on the cross-entropy from the image itself, what a careless evaluation does."""
  attack = attacks.pgd(num_steps=20, random_start=False, bounds=(0.0, 1.0))
  outputs = lambda x: _predict(variables, x)
  climbed = objectives.bind(outputs, segmentation.cross_entropy, batch)
  return attack(climbed, batch['image'], eps=EPS, key=jax.random.key(0))


def _failed(variables, batch, badness=_badness):
  found = network.of_network(
    lambda x: _predict(variables, x),
    segmentation.cross_entropy,
    badness,
    batch,
    eps=EPS,
    key=jax.random.key(0),
  )
  assert all(check.detail for check in found)
  return {check.name for check in found if check.status == 'fail'}


@pytest.mark.parametrize('name', list(NETWORKS))
def test_a_probe_names_the_failure(name):
  found = _failed(*_case(name))
  assert found >= NAMED[name], found
  if name == 'sound':
    assert not found


@pytest.mark.parametrize('name', list(NETWORKS))
def test_the_ensemble_breaks_it(name):
  variables, batch = _case(name)
  found = _worst(variables, batch)
  assert np.abs(found.x - batch['image']).max() <= EPS + 1e-6
  # With fresh noise, where there is any.
  clean, fresh = (
    np.mean([_judged({**variables, 'seed': seed}, batch, x) for seed in (5, 6, 7)])
    for x in (batch['image'], found.x)
  )
  assert fresh > clean + 0.25
  names = [member.name for member in MEMBERS]
  each = dict(zip(names, np.mean(found.each, 1), strict=True))
  if name in WITHOUT_GRADIENT:  # the random search finds what gradients do not
    assert each['square_200'] > max(v for k, v in each.items() if k != 'square_200') + 0.1
  flags = _plain(variables, batch).flags
  if name in (*WITHOUT_GRADIENT, 'clipped range'):
    assert np.mean(flags.no_gradient) > 0.7
  if name == 'rescaled logits':
    assert np.any(flags.no_gradient)
    assert each['apgd_margin_10'] > each['apgd_ce_10'] + 0.05
  if name == 'sound':
    assert not np.any(flags.no_gradient)


@pytest.mark.parametrize(
  ('name', 'near'),
  [
    ('quantised input', _core),
    ('rounded activations', lambda v, x: _core(v, x, jnp.tanh)),
  ],
)
def test_a_gradient_of_what_is_rounded_breaks_it(name, near):
  """Without a random search, by the network before it is rounded."""
  variables, batch = _case(name)
  passed = attacks.straight_through(
    lambda x: _predict(variables, x)['head0'], lambda x: near(variables, x)
  )
  objective = lambda x: segmentation.margin({'head0': passed(x)}, batch)
  attack = attacks.pgd(num_steps=20, bounds=(0.0, 1.0))
  run = jax.jit(lambda x: attack(objective, x, eps=EPS, key=jax.random.key(0)))
  result = run(batch['image'])
  assert not np.any(result.flags.no_gradient)
  assert np.mean(_judged(variables, batch, result.x)) > 0.4
  np.testing.assert_array_equal(
    passed(batch['image']), _predict(variables, batch['image'])['head0']
  )


@pytest.mark.parametrize('value', [np.nan, -1.0])
def test_a_metric_that_ignores_empty_masks_is_named(value):
  """No attack can win an example that its metric does not count; the sound metric shows it."""
  variables, batch = _case('sound')
  empty = batch['target']['labels'].at[:2].set(0)
  batch = {**batch, 'target': {'labels': empty}}

  def ignores(outputs, batch):
    there = jnp.any(batch['target']['labels'] > 0, (1, 2))
    return jnp.where(there, _badness(outputs, batch), value)

  assert 'the metric counts every example' in _failed(variables, batch, ignores)
  assert 'the metric counts every example' not in _failed(variables, batch)
  blind = attacks.Ensemble(_predict, MEMBERS[:1], ignores)
  found = jax.jit(lambda b: blind.worst(variables, b, eps=EPS, key=jax.random.key(0)))(batch)
  assert np.all(found.member[:2] == ensemble.CLEAN)
  assert np.all(found.member[2:] != ensemble.CLEAN)
