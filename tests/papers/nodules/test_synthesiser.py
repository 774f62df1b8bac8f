import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from robustmed import errors
from robustmed.generators import networks, vae
from robustmed.ops import conv
from robustmed.papers.nodules import networks as nodule_networks
from robustmed.papers.nodules import synthesiser
from robustmed.training import optimisers, step
from robustmed.training import state as train_state
from support import lungs

RULES = {
  'generator': {'name': 'adam', 'lr': 1e-2, 'b1': 0.5, 'b2': 0.9},
  'critic': {'name': 'adam', 'lr': 1e-3, 'b1': 0.5, 'b2': 0.9},
}


@pytest.fixture(scope='module', autouse=True)
def _quick_to_compile():
  with conv.using('native'):
    yield


@pytest.fixture(scope='module')
def made():
  model = lungs.model()
  return model, model.task.init(jax.random.key(0))


@pytest.fixture(scope='module')
def trained(made):
  """(before, after one step, its scalars, after 25 steps, errors of all steps)."""
  model, _ = made
  rules = {name: optimisers.make(rule, num_steps=99) for name, rule in RULES.items()}
  weights = synthesiser.Weights(penalty=1.0, critic_steps=1, divergence=1e-4)
  defense = synthesiser.fitting(model, weights=weights)
  own = step.for_phases(defense, rules)
  state = train_state.create(
    model.task, defense, own, key=jax.random.key(0), num_examples=4, average=False
  )
  run, seen = step.make(defense, optimisers=rules, num_steps=99), [(state, {})]
  for number in range(25):
    seen.append(run(seen[-1][0], lungs.batch(start=4 * (number % 2)), jax.random.key(1)))
  found = [float(scalars['generator/error']) for _, scalars in seen[1:]]
  return state, *seen[1], seen[-1][0], found


@pytest.mark.slow
def test_both_phases_train_and_the_reconstruction_gets_better(trained):
  begin, first, scalars, last, found = trained
  assert int(last.bad_step) == -1 and np.mean(found[-3:]) < 0.6 * found[0]
  for name in ('generator', 'critic'):
    old, new = jax.tree.leaves(begin.params[name]), jax.tree.leaves(first.params[name])
    assert any(np.any(a != b) for a, b in zip(old, new, strict=True)), name
  assert {'critic/gap', 'generator/sigma', 'generator/mean_square'} <= set(scalars)
  for leaf in jax.tree.leaves(last.state['batch_stats']):
    np.testing.assert_allclose(np.linalg.norm(leaf), 1, rtol=1e-5)


def context_of(variables, batch):
  keys = jax.random.split(jax.random.key(2), len(batch['image']))
  state = {'batch_stats': variables['batch_stats']}
  return types.SimpleNamespace(batch=batch, keys=keys, state=state)


def test_losses_are_those_of_the_paper(made):
  model, variables = made
  weights = synthesiser.Weights(divergence=0.3, adversarial=0.7, penalty=0.0, prior=0.0)
  critic, generator = synthesiser.fitting(model, weights=weights).phases
  batch = lungs.batch(3)
  context = context_of(variables, batch)
  keys = context.keys
  image = batch['image'] * batch['target']['soft']
  found = model.encode(variables, image)
  fake = model.decode(variables, vae.draw(found, keys))
  score = lambda image: np.asarray(model.judge(variables, image)[0])
  values, aux = generator.loss(variables['params'], context)
  expected = np.abs(fake - image).mean((1, 2, 3, 4)) + 0.3 * np.asarray(vae.divergence(found))
  expected -= 0.7 / np.sqrt(image[0].size) * score(fake)
  np.testing.assert_allclose(values, expected, rtol=2e-4, atol=1e-5)
  values, aux = critic.loss(variables['params'], context)
  # The critic's pass in training makes a step of power iteration first.
  after = {**variables, **model.judge(variables, image, train=True)[1]}
  real = np.asarray(model.judge(variables, image, train=True)[0])
  np.testing.assert_allclose(
    values, np.asarray(model.judge(after, fake)[0]) - real, rtol=1e-3, atol=1e-5
  )
  assert critic.repeat == 5 and set(aux['state']) == {'batch_stats'}


def test_codes_say_how_dense_a_nodule_is(made, trained):
  model, variables = made
  batch = lungs.batch(8)
  image = jnp.asarray(synthesiser.cut_out(batch))
  later = {'params': trained[3].params, **trained[3].state}
  for own in (variables, later):
    code, fainter = (np.asarray(model.encode(own, x).mean) for x in (image, 0.5 * image))
    spread = np.sqrt(np.square(code - code.mean(0)).mean())
    moved = np.sqrt(np.square(fainter - code).mean())
    assert moved > 0.1 * spread, (moved, spread)


def test_the_critic_is_also_shown_what_random_codes_make(made):
  model, variables = made
  context = context_of(variables, lungs.batch(3))
  image = synthesiser.cut_out(context.batch)
  keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(context.keys)
  random = model.decode(variables, vae.normal(keys, (model.latent,)))
  again = model.decode(variables, vae.draw(model.encode(variables, image), context.keys))
  score = lambda image: np.asarray(model.judge(variables, image)[0])

  def losses(prior):
    weights = synthesiser.Weights(penalty=0.0, prior=prior)
    phases = synthesiser.fitting(model, weights=weights).phases
    return [np.asarray(phase.loss(variables['params'], context)[0]) for phase in phases]

  after = {**variables, **model.judge(variables, image, train=True)[1]}
  real = np.asarray(model.judge(variables, image, train=True)[0])
  shown = lambda image: np.asarray(model.judge(after, image)[0]) - real
  np.testing.assert_allclose(losses(0.0)[0], shown(again), rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(losses(1.0)[0], shown(random), rtol=1e-3, atol=1e-5)
  moved = losses(0.25)[1] - losses(0.0)[1]
  share = 0.1 / np.sqrt(image[0].size) * 0.25
  np.testing.assert_allclose(moved, share * (score(again) - score(random)), rtol=2e-2, atol=1e-7)


@pytest.mark.parametrize('side', [4, 16])
def test_the_critics_share_of_the_gradient_is_that_of_the_paper_at_every_size(side):
  shape = (1, side, side, side, 1)
  along = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  along /= np.linalg.norm(along)  # a critic whose gradient has norm 1, as its penalty wants
  code = networks.Latent(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
  model = synthesiser.Model(
    encode=lambda variables, image: code,
    decode=lambda variables, code: variables['params']['generator'],
    judge=lambda variables, image, train=False: ((image * along).sum()[None], {}),
    task=None,
    latent=2,
  )
  batch = {'image': jnp.zeros(shape), 'target': {'soft': jnp.ones(shape)}}
  context = types.SimpleNamespace(
    batch=batch, keys=jax.random.split(jax.random.key(0), 1), state={}
  )

  def norm(**weights):
    chosen = synthesiser.Weights(divergence=0.0, **weights)
    _, generator = synthesiser.fitting(model, weights=chosen).phases
    loss = lambda image: generator.loss({'generator': image}, context)[0].sum()
    return jax.grad(loss)(jnp.ones(shape))

  alone = norm(adversarial=0.0)
  critic = norm(adversarial=0.1) - alone
  assert np.linalg.norm(critic) == pytest.approx(0.1 * np.linalg.norm(alone), rel=1e-3)


def test_spectral_convolution_has_a_largest_singular_value_of_one():
  class Alone(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
      layer = nodule_networks.SpectralConv(5, (2, 2, 2), padding=(0, 0, 0), name='conv')
      return layer(x, train=train)

  # On one window the layer is the product with its matrix, so its columns can be read off.
  module, eye = Alone(), jnp.eye(24).reshape(24, 2, 2, 2, 3)
  variables = module.init(jax.random.key(0), eye, train=False)
  for _ in range(60):
    _, state = module.apply(variables, eye, train=True, mutable=['batch_stats'])
    variables = {**variables, **state}
  matrix = np.asarray(module.apply(variables, eye, train=False)).reshape(24, 5)
  sizes = np.linalg.svd(matrix, compute_uv=False)
  np.testing.assert_allclose(sizes[0], 1, rtol=1e-3)
  raw = np.linalg.svd(np.asarray(variables['params']['conv']['kernel']).reshape(24, 5))[1]
  np.testing.assert_allclose(sizes, raw / raw[0], rtol=2e-3)


def test_shapes_range_and_that_examples_stay_apart(made):
  model, variables = made
  code = jax.random.normal(jax.random.key(3), (3, 3))
  image = model.decode(variables, code)
  assert image.shape == (3, *lungs.SHAPE) and 0 < float(image.min()) < float(image.max()) < 1
  np.testing.assert_allclose(model.decode(variables, code[1:2]), image[1:2], atol=1e-6)
  assert model.task.predict(variables, image).shape == image.shape
  assert model.judge(variables, image)[0].shape == (3,)


def test_fusion_takes_the_nodule_where_it_is_bright_enough():
  nodule = jnp.array([0.0, 0.1, 0.2, 0.9]).reshape(1, 2, 2, 1, 1)
  lung = jnp.array([0.3, 0.4, 0.5, 0.6]).reshape(1, 2, 2, 1, 1)
  fused, mask = synthesiser.fuse(nodule, lung, threshold=0.1)
  np.testing.assert_allclose(fused.ravel(), [0.3, 0.4, 0.2, 0.9])
  np.testing.assert_array_equal(mask.ravel(), [0, 0, 1, 1])


def test_the_gradient_of_fusion_is_that_of_a_fixed_mask():
  nodule = jnp.array([0.0, 0.1, 0.2, 0.9]).reshape(1, 2, 2, 1, 1)
  lung = jnp.full_like(nodule, 0.3)
  total = lambda nodule, lung: jnp.sum(jnp.square(synthesiser.fuse(nodule, lung, threshold=0.1)[0]))
  for_nodule, for_lung = jax.grad(total, argnums=(0, 1))(nodule, lung)
  np.testing.assert_allclose(for_nodule.ravel(), [0, 0, 0.4, 1.8], rtol=1e-6)
  np.testing.assert_allclose(for_lung.ravel(), [0.6, 0.6, 0, 0], rtol=1e-6)


def test_diameter_is_that_of_a_ball_of_equal_volume():
  places = np.mgrid[:41, :41, :41] - 20.0
  for wanted in (6.0, 9.0):
    inside = np.sqrt(np.square(places * 0.4).sum(0)) <= wanted / 2
    found = synthesiser.diameter(jnp.asarray(inside, jnp.float32)[None, ..., None], spacing=0.4)
    assert float(found[0]) == pytest.approx(wanted, rel=0.02)
  one = jnp.zeros((2, 3, 3, 3, 1)).at[0, 1, 1, 1].set(1.0)
  np.testing.assert_allclose(
    synthesiser.diameter(one, spacing=1.0), [(6 / np.pi) ** (1 / 3), 0], rtol=1e-6
  )


def test_border_counts_the_outermost_voxels():
  mask = jnp.zeros((3, 4, 4, 4, 1)).at[0, 1:3, 1:3, 1:3].set(1.0).at[1, :2, 1, 1].set(1.0)
  np.testing.assert_allclose(synthesiser.border(mask), [0.0, 0.5, 0.0])


def test_the_size_of_the_paper_can_be_described_and_misfits_are_told():
  full = synthesiser.make({}, image_shape=(64, 64, 64, 1))
  shapes = jax.eval_shape(full.task.init, jax.random.key(0))
  assert full.latent == 128
  assert shapes['params']['generator']['encoder']['code']['kernel'].shape == (4**3 * 128, 256)
  with pytest.raises(errors.UserError, match='multiples of 16, not'):
    wrong = synthesiser.make({}, image_shape=(24, 24, 24, 1))
    jax.eval_shape(wrong.task.init, jax.random.key(0))
  with pytest.raises(errors.UserError, match="unknown field of the synthesiser 'latents'"):
    synthesiser.make({'latents': 3}, image_shape=lungs.SHAPE)
