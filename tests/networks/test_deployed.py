"""nnU-Net from the voxels of a file to logits on the same grid, and its gradient in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import attacks, errors
from robustmed.attacks.stored import steps
from robustmed.networks import nnunet_plans, nnunet_predict, nnunet_preprocess
from robustmed.networks.deployed import nnunet, resampling
from robustmed.tasks import sliding
from support import nnunet_folders

SPACING = (3.0, 1.3, 0.8)  # of the image; the plan has (3, 2, 1)
KERNEL = np.random.default_rng(0).normal(size=(2, 3))


class _Small:
  """A network of few operations, to which mirroring and place matter."""

  classes = 3

  def apply(self, weight, window):
    near = jnp.roll(window, 1, axis=1) - 0.5 * jnp.roll(window, 2, axis=-2)
    return {'head0': jnp.tanh(weight * (window + near)) @ jnp.asarray(KERNEL, window.dtype)}


def _image(shape=(2, 6, 11, 15), seed=0):
  image = np.random.default_rng(seed).normal(50, 20, shape).astype(np.float32)
  image[:, :1], image[:, :, :, -2:] = 0, 0
  return image


@pytest.fixture(scope='module', params=[2, 3])
def network(request, tmp_path_factory):
  """Two folds of `_Small` with the plan of a results folder that also transposes axes."""

  def change(plans, data):
    plans.update(transpose_forward=[0, 2, 1], transpose_backward=[0, 2, 1])
    for one in plans['configurations'].values():
      one.update(normalization_schemes=['ZScoreNormalization', 'RescaleTo01Normalization'])
      one.update(use_mask_for_norm=[True, False])

  folder = nnunet_folders.write(
    tmp_path_factory.mktemp('nnunet'), rank=request.param, folds=2, channels=2, change=change
  )
  plan = nnunet_predict.load(folder).plan
  return nnunet_predict.NnUNet(plan, _Small(), jnp.array([0.4, 0.9]))


def _last(image):
  return jnp.moveaxis(jnp.asarray(image), 0, -1)[None]


def test_it_is_prediction_on_the_host(network):
  image = _image()
  predict = jax.jit(nnunet.predictor(network, image, spacing=SPACING))
  found = predict(network.variables, _last(image))['head0'][0]
  shares = network.predict_probabilities(image, spacing=SPACING)
  np.testing.assert_allclose(np.moveaxis(jax.nn.softmax(found), -1, 0), shares, atol=2e-5)
  labels = network.predict(image, spacing=SPACING)
  sure = np.sort(shares, axis=0)
  clear = sure[-1] - sure[-2] > 1e-4
  np.testing.assert_array_equal(np.argmax(found, -1)[clear], labels[clear])
  assert clear.mean() > 0.9 and len(np.unique(labels)) == 3


def _naive(network, image):
  """The predictor without its scan and checkpoints: every window stays in memory."""
  plan = network.plan
  prepared = network.prepare(image, spacing=SPACING)
  box, inside = nnunet_preprocess.nonzero(image.transpose(0, *(a + 1 for a in plan.forward)))
  size, shape = inside.shape, prepared.image.shape[1:]
  there, back = (prepared.spacing, prepared.target), (prepared.target, prepared.spacing)
  to = resampling.of(size, shape, plan.resample_image, spacings=there)
  fro = resampling.of(shape, size, plan.resample_logits, spacings=back)
  weights = sliding.half_gaussian(plan.patch).astype(np.float64)[..., None]

  def windows(x):  # [b, *spatial, c]
    pads = sliding.margins(x.shape[1:-1], plan.patch)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    total, norm = 0.0, 0.0
    for corner in sliding.starts(x.shape[1:-1], plan.patch):
      at = (slice(None), *(slice(a, a + m) for a, m in zip(corner, plan.patch)))
      for count in range(len(plan.mirrored) + 1):
        for axes in itertools.combinations([axis + 1 for axis in plan.mirrored], count):
          for fold in network.variables:
            part = network.network.apply(fold, jnp.flip(x[at], axes))['head0']
            put = (
              jnp.zeros((*x.shape[:-1], 3), x.dtype)
              .at[at]
              .set(jnp.flip(part, axes) * weights[None])
            )
            total = total + put
          norm = norm + jnp.zeros((*x.shape[1:-1], 1), x.dtype).at[at[1:]].set(2 * weights)
    inner = tuple(slice(lo, lo + n - lo - hi) for (lo, hi), n in zip(pads, x.shape[1:-1]))
    return (total / norm[None])[(slice(None), *inner)]

  def logits(image):
    x = image[0].transpose(*plan.forward, 3)[box]
    one, two = x[..., 0], x[..., 1]
    values = one[inside]
    one = jnp.where(inside, (one - values.mean()) / values.std(), one)
    two = (two - two.min()) / (two.max() - two.min())
    x = to(jnp.stack([one, two], axis=-1))
    found = fro(windows(x) if len(plan.patch) == 2 else windows(x[None])[0])
    full = jnp.zeros((*prepared.shape, 3), x.dtype).at[box].set(found)
    return full.transpose(*np.argsort(plan.forward), 3)[None]

  return logits


def test_the_gradient_is_that_of_naive_autodiff_in_float64(network):
  image = _image()
  with jax.enable_x64(True):
    wide = jnp.asarray(_last(image), jnp.float64)
    variables = jnp.asarray(network.variables, jnp.float64)
    network = nnunet_predict.NnUNet(network.plan, network.network, variables)
    weight = jnp.asarray(np.random.default_rng(3).normal(size=(1, *image.shape[1:], 3)))
    value = lambda f: lambda x: jnp.sum(weight * jnp.sin(f(x)))
    slopes = {}
    for statistics in nnunet.STATISTICS:
      predict = nnunet.predictor(network, image, spacing=SPACING, statistics=statistics)
      whole = value(lambda x, p=predict: p(variables, x)['head0'])
      slopes[statistics] = np.asarray(jax.jit(jax.grad(whole))(wide))
    wanted = np.asarray(jax.jit(jax.grad(value(_naive(network, image))))(wide))
    assert wanted.dtype == np.float64
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(slopes['differentiated'], wanted, atol=1e-6 * scale, rtol=1e-6)
    assert np.abs(slopes['held'] - wanted).max() > 1e-3 * scale
    # zeros outside of the box have no gradient, all others do
    inside = (image != 0).any(0)
    assert not slopes['differentiated'][0][~inside].any()
    assert (np.abs(slopes['differentiated'][0][inside]) > 0).mean() > 0.99


def test_an_attack_of_a_volume_goes_on_where_it_ended(network, tmp_path):
  """Bit by bit what an undisturbed one gives, in windows, with mirror images and resampling."""
  if len(network.plan.patch) == 2:
    pytest.skip('windows of slices are those of volumes with a side of 1')
  image = _image()
  predict = nnunet.predictor(network, image, spacing=SPACING)
  weight = jnp.asarray(np.random.default_rng(3).normal(size=(1, *image.shape[1:], 3)), jnp.float32)
  objective = lambda x: jnp.sum(weight * predict(network.variables, x)['head0'], (1, 2, 3, 4))
  attack, asked = attacks.apgd(num_steps=4), []

  def run(name, **more):
    told = {'eps': 5.0, 'key': jax.random.key(0), 'path': tmp_path / name}
    return steps.run(attack, objective, _last(image), **told, **more)

  whole = run('whole.npz')
  assert run('parts.npz', stop=lambda: asked.append(1) or len(asked) == 2) is None
  parts = run('parts.npz', stop=lambda: asked.append(1))
  assert len(asked) == attack.num_steps
  jax.tree.map(np.testing.assert_array_equal, parts, whole)
  assert float(whole.value[0]) > float(objective(_last(image))[0])


RESAMPLERS = [
  ('resample_data_or_seg_to_shape', {'order': 3, 'order_z': 0, 'force_separate_z': None}),
  ('resample_data_or_seg_to_shape', {'order': 3, 'order_z': 1, 'force_separate_z': True}),
  ('resample_data_or_seg_to_shape', {'order': 1, 'order_z': 0, 'force_separate_z': False}),
  ('resample_torch_fornnunet', {'force_separate_z': None, 'mode': 'linear'}),
]


@pytest.mark.parametrize(('name', 'options'), RESAMPLERS)
@pytest.mark.parametrize('spacings', [((5.0, 1, 1), (2.5, 0.8, 1)), ((1.0, 1, 2), (1, 1.5, 1.5))])
def test_matrices_are_the_resampling_of_the_host(name, options, spacings):
  how = nnunet_plans.Resampling(name, options)
  data = np.random.default_rng(0).normal(size=(2, 5, 9, 7))
  shape = [round(n * a / b) for n, a, b in zip(data.shape[1:], *spacings)]
  wanted = nnunet_preprocess.resample(data, shape, how, spacings=spacings)
  made = resampling.of(data.shape[1:], shape, how, spacings=spacings)
  with jax.enable_x64(True):
    found = np.asarray(made(jnp.moveaxis(jnp.asarray(data), 0, -1)))
  np.testing.assert_allclose(np.moveaxis(found, -1, 0), wanted, atol=1e-6)


def test_mistakes_are_named(network):
  with pytest.raises(errors.UserError, match='way of statistics'):
    nnunet.predictor(network, _image(), spacing=SPACING, statistics='hold')
  with pytest.raises(errors.UserError, match='made for images'):
    nnunet.predictor(network, _image(), spacing=SPACING)(None, _last(_image())[:, 1:])
