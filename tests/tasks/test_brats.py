"""The brain tumour task by hand, in float64, and what temperature does to its gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import metrics as skimage_metrics

from robustmed import errors
from robustmed.metrics import regions
from robustmed.tasks import brats

SIDE = 8


class Linear(nn.Module):
  """One matrix per pixel; compiles in no time."""

  labels: int = 4

  @nn.compact
  def __call__(self, image, *, train=False):
    return {'head0': nn.Dense(self.labels)(image)}


def task(shape=(SIDE, SIDE, 4), **fields):
  return brats.make(Linear(), image_shape=shape, **fields)


def batch(size=3, seed=0):
  rng = np.random.default_rng(seed)
  clean = rng.uniform(0.1, 0.9, (size, SIDE, SIDE, 4)).astype(np.float32)
  noise = rng.uniform(-0.05, 0.05, clean.shape).astype(np.float32)
  return {
    'image': clean + noise,
    'clean': clean,
    'target': {'labels': rng.integers(0, 4, (size, SIDE, SIDE)).astype(np.int32)},
    'mask': np.ones(size, bool),
  }


def outputs(size=3, seed=1, scale=1.0):
  rng = np.random.default_rng(seed)
  return {'head0': (scale * rng.normal(size=(size, SIDE, SIDE, 4))).astype(np.float32)}


def softmax(logits):
  logits = logits.astype(np.float64)
  high = np.exp(logits - logits.max(-1, keepdims=True))
  return high / high.sum(-1, keepdims=True)


def dice_loss(p, t):
  """Eq. 5 over the three foreground classes, in float64."""
  p, t = p[..., 1:], t[..., 1:]
  both, size = (p * t).sum((1, 2)), (p + t).sum((1, 2))
  return 1 - ((2 * both + 1e-5) / (size + 1e-5)).mean(-1)


def test_the_loss_is_soft_dice_without_the_background():
  data, out = batch(), outputs()
  truth = np.eye(4)[data['target']['labels']]
  want = dice_loss(softmax(out['head0']), truth)
  losses = task().losses(out, data)
  assert set(losses) == {'dice'}
  np.testing.assert_allclose(losses['dice'], want, rtol=1e-5)
  np.testing.assert_allclose(brats.OBJECTIVES['dice'](out, data), want, rtol=1e-5)
  both = task(terms=('dice', 'ce')).losses(out, data)
  entropy = -np.log((softmax(out['head0']) * truth).sum(-1)).mean((1, 2))
  np.testing.assert_allclose(both['ce'], entropy, rtol=1e-5)
  np.testing.assert_allclose(brats.OBJECTIVES['ce'](out, data), entropy, rtol=1e-5)


def test_soft_targets_take_the_place_of_labels():
  data, out = batch(), outputs()
  cooler, soft = task().soften(outputs(seed=2), 20.0)
  np.testing.assert_allclose(cooler['head0'], outputs(seed=2)['head0'] / 20, rtol=1e-6)
  want = softmax(outputs(seed=2)['head0'] / 20)
  np.testing.assert_allclose(soft['soft'], want, rtol=1e-5)
  both = task(terms=('dice', 'ce')).losses(out, {**data, 'target': {**data['target'], **soft}})
  np.testing.assert_allclose(both['dice'], dice_loss(softmax(out['head0']), want), rtol=1e-5)
  entropy = -(want * np.log(softmax(out['head0']))).sum(-1).mean((1, 2))
  np.testing.assert_allclose(both['ce'], entropy, rtol=1e-5)
  coarse = {'target': {**data['target'], 'soft': soft['soft'][:, ::2]}}
  with pytest.raises(ValueError, match='not on the grid'):
    task().losses(out, {**data, **coarse})


def test_the_targeted_loss_wants_necrosis_everywhere():
  wanted = {'head0': np.zeros((1, 4, 4, 4), np.float32)}
  labels = {'target': {'labels': np.full((1, 4, 4), 3, np.int32)}}
  ti = lambda logits: float(brats.OBJECTIVES['ti']({'head0': logits}, labels)[0])
  steps = [
    wanted['head0'] + np.float32(height) * np.eye(4, dtype=np.float32)[1] for height in range(4)
  ]
  values = [ti(logits) for logits in steps]
  assert values == sorted(values, reverse=True) and len(set(values)) == 4
  # Where nothing else is left of the others, these agree with their absence.
  assert ti(steps[1] * 200) == pytest.approx(0.0, abs=1e-3)
  p = softmax(steps[1])
  truth = np.broadcast_to(np.eye(4)[1], p.shape)
  np.testing.assert_allclose(values[1], dice_loss(p, truth)[0], rtol=1e-5)


def test_scaled_logits_have_the_gradient_that_temperature_took():
  data, out = batch(), outputs()
  gradient = jax.jit(
    lambda logits, name: jax.grad(
      lambda logits: jnp.sum(brats.OBJECTIVES[name]({'head0': logits}, data))
    )(logits),
    static_argnums=1,
  )
  hot = 5000 * out['head0']
  assert np.mean(np.asarray(gradient(hot, 'dice')) == 0) > 0.9
  plain, masked = gradient(out['head0'], 'scaled'), gradient(hot, 'scaled')
  assert np.mean(np.asarray(plain) == 0) < 0.01
  np.testing.assert_allclose(5000 * masked, plain, rtol=2e-3, atol=1e-7)
  value = lambda logits: brats.OBJECTIVES['scaled']({'head0': logits}, data)
  np.testing.assert_allclose(value(hot), value(out['head0']), rtol=1e-4)
  # By hand: the scale is the mean lead of the first label over the second.
  order = np.sort(out['head0'].astype(np.float64), axis=-1)
  scale = (order[..., -1] - order[..., -2]).mean((1, 2))
  np.testing.assert_allclose(brats.logit_scale(jnp.asarray(out['head0'])), scale, rtol=1e-5)
  truth = np.eye(4)[data['target']['labels']]
  want = dice_loss(softmax(out['head0'] / scale[:, None, None, None]), truth)
  np.testing.assert_allclose(value(out['head0']), want, rtol=1e-5)
  flat = jnp.zeros((1, SIDE, SIDE, 4))
  one = {'target': {'labels': data['target']['labels'][:1]}}
  assert np.isfinite(brats.OBJECTIVES['scaled']({'head0': flat}, one)).all()


def test_metrics_per_region_and_of_the_image():
  data, out = batch(), outputs()
  data['target']['labels'][1] = 0
  out['head0'][1, ..., 0] = 50
  found = out['head0'].argmax(-1)
  metrics = task().metrics(out, data)
  for name, members in (('wt', (1, 2, 3)), ('tc', (1, 3)), ('et', (3,))):
    a, b = np.isin(found, members), np.isin(data['target']['labels'], members)
    want = [2 * (a[i] & b[i]).sum() / (a[i].sum() + b[i].sum()) for i in (0, 2)]
    np.testing.assert_allclose(np.asarray(metrics[f'dice_{name}'])[[0, 2]], want, rtol=1e-6)
    assert metrics[f'dice_{name}'][1] == 1  # neither has any
  whole = regions.volume_dice({k: v for k, v in metrics.items() if k[0] == '_'}, np.zeros(3))
  a, b = found > 0, data['target']['labels'] > 0
  assert whole['dice_wt'][0] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
  for i in range(3):
    image, clean = data['image'][i], data['clean'][i]
    rmse = np.sqrt(np.mean((image.astype(np.float64) - clean) ** 2))
    assert float(metrics['rmse'][i]) == pytest.approx(rmse, rel=1e-5)
    assert float(metrics['psnr'][i]) == pytest.approx(-20 * np.log10(rmse), rel=1e-5)
    theirs = skimage_metrics.structural_similarity(image, clean, data_range=1.0, channel_axis=-1)
    assert float(metrics['ssim'][i]) == pytest.approx(theirs, abs=1e-4)


def test_volumes_need_no_counts_and_are_their_slices():
  data, out = batch(1), outputs(1)
  deep = jax.tree.map(lambda leaf: np.repeat(leaf[:, None], SIDE, axis=1), data)
  metrics = task((SIDE, SIDE, SIDE, 4)).metrics(
    {'head0': np.repeat(out['head0'][:, None], SIDE, axis=1)}, {**deep, 'mask': data['mask']}
  )
  flat = task().metrics(out, data)
  assert set(metrics) == {'dice_wt', 'dice_tc', 'dice_et', 'psnr', 'ssim', 'rmse'}
  for name in ('dice_wt', 'dice_tc', 'dice_et', 'rmse', 'psnr'):
    np.testing.assert_allclose(metrics[name], flat[name], rtol=1e-5)


def test_every_function_is_per_example():
  data, out = batch(), outputs()
  other = {'head0': np.concatenate([out['head0'][:1], 1 - out['head0'][1:]])}
  state = lambda outputs, batch: brats.diagnostics(outputs)
  functions = {'losses': task().losses, 'metrics': task().metrics, 'diagnostics': state}
  for name, function in {**functions, **brats.OBJECTIVES}.items():
    for a, b in zip(
      jax.tree.leaves(function(out, data)), jax.tree.leaves(function(other, data)), strict=True
    ):
      assert a.shape == (3,) and np.isfinite(a).all(), name
      np.testing.assert_allclose(a[0], b[0], rtol=1e-6)


@pytest.mark.parametrize(
  ('fields', 'says'),
  [({'terms': ('dise',)}, "did you mean 'dice'"), ({'terms': ()}, 'must name a loss')],
)
def test_mistakes(fields, says):
  with pytest.raises(errors.UserError, match=says):
    task(**fields)
  with pytest.raises(errors.UserError, match='network with 4 outputs, not 3'):
    task().metrics({'head0': np.zeros((3, SIDE, SIDE, 3), np.float32)}, batch())
