import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import errors, types
from robustmed.generators import hardening, synthesis
from robustmed.ops import warp
from robustmed.process import parallel
from support import synths

pytestmark = pytest.mark.slow

BATCH = synths.batch(8)
KEYS = jax.random.split(jax.random.key(2), 8)


def _bend():
  """A generator that deforms and does nothing else."""
  variables = synths.variables(scale=2.0)
  head = variables['params']['generator']['head_V']
  head |= {name: jnp.zeros_like(leaf) for name, leaf in head.items()}
  return variables


def _values(**more):
  model, task = synths.model(), synths.task()
  options = {'variables': (_bend(),), **more}
  defense = hardening.make(model, task, **options)
  params = task.init(jax.random.key(0))['params']
  context = types.LossContext({}, defense.init(8), BATCH, KEYS, jax.random.key(4), jnp.float32(0))
  return jax.jit(defense.phases[0].loss)(params, context)


def _want(variables, *, follow, losses=None):
  task = synths.task()
  losses = losses or task.losses
  network = task.init(jax.random.key(0))
  fields, _ = synths.model().draw(variables, BATCH['image'], KEYS)
  labels = BATCH['target']['labels']
  if follow:
    labels = warp.nearest(labels, fields.displacement)
  image = synthesis.compose(BATCH['image'], fields)
  batch = {**BATCH, 'image': image, 'target': {'labels': labels}}
  of = lambda image, batch: sum(losses(task.predict(network, image), batch).values())
  return of(BATCH['image'], BATCH), of(image, batch)


@pytest.mark.parametrize('follow', [True, False])
def test_the_loss_is_shared_between_clean_and_generated(follow):
  values, aux = _values(share=0.25, follow=follow)
  clean, generated = _want(_bend(), follow=follow)
  np.testing.assert_allclose(values, 0.75 * clean + 0.25 * generated, rtol=1e-4)
  np.testing.assert_allclose(aux['scalars']['loss/generated'], generated, rtol=1e-4)


def test_a_coupled_loss_is_that_of_the_batches():
  model, task = synths.model(), synths.task()
  defense = hardening.make(model, task, variables=(_bend(),), share=0.25, coupled=True)
  assert defense.coupled and not hardening.make(model, task, variables=()).coupled
  params = task.init(jax.random.key(0))['params']
  context = types.LossContext({}, defense.init(8), BATCH, KEYS, jax.random.key(4), jnp.float32(0))

  def one_device(params):
    values, _ = defense.phases[0].loss(params, context)
    parts = _want(_bend(), follow=True, losses=task.coupled)
    return (
      values,
      parts,
      sum(task.losses(task.predict({'params': params}, BATCH['image']), BATCH).values()),
    )

  on_one = jax.jit(jax.vmap(one_device, axis_name=parallel.AXIS))
  values, (clean, generated), single = on_one(jax.tree.map(lambda leaf: leaf[None], params))
  np.testing.assert_allclose(values, 0.75 * clean + 0.25 * generated, rtol=1e-4)
  assert np.abs(clean - single).max() > 1e-3  # not that of each example


def test_labels_that_follow_make_generated_examples_easier():
  follow = _values(follow=True)[1]['scalars']['loss/generated']
  stay = _values(follow=False)[1]['scalars']['loss/generated']
  assert float(follow.mean()) < float(stay.mean())


def test_every_example_meets_one_of_the_generators():
  fresh = synths.model().task.init(jax.random.key(0))  # changes nothing
  _, aux = _values(variables=(fresh, _bend()))
  found = aux['scalars']['loss/generated'] - aux['scalars']['loss/clean']
  untouched = np.abs(found) < 1e-6
  assert 0 < untouched.sum() < 8


def test_mistakes():
  with pytest.raises(errors.UserError, match=r'share must lie in \[0, 1\]'):
    _values(share=2.0)
  with pytest.raises(ValueError, match='without generators'):
    _values(variables=())
