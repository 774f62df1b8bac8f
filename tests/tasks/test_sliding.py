"""Sliding windows against a plain numpy loop, and their gradient against one that keeps all."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from robustmed import errors, types
from robustmed.tasks import segmentation, sliding

KERNEL = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)


def network(window, xp=jnp):
  """Looks at neighbours on one side only, so that mirroring and position matter."""
  near = xp.roll(window, 1, axis=1) - 0.5 * xp.roll(window, 2, axis=2)
  return xp.tanh(window + near) @ KERNEL


def plain(image, patch, mirror):
  size, rank = image.shape[1:-1], image.ndim - 2
  total, norm = 0.0, 0.0
  weights = sliding.gaussian(patch)
  for corner in sliding.starts(size, patch):
    where = (slice(None), *(slice(a, a + m) for a, m in zip(corner, patch)))
    for count in range(rank + 1) if mirror else [0]:
      for axes in itertools.combinations(range(1, rank + 1), count):
        logits = np.flip(network(np.flip(image[where], axes), np), axes)
        exp = np.exp(logits)
        part = np.zeros((*image.shape[:-1], 3))
        part[where] = exp / exp.sum(-1, keepdims=True) * weights[..., None]
        total, norm = total + part, norm + np.where(part.sum(-1, keepdims=True) > 0, part, 0)
  return total / norm.sum(-1, keepdims=True)


@functools.cache
def program(patch, mirror=True, checkpoint=True):
  kw = {'patch': patch, 'mirror': mirror, 'checkpoint': checkpoint}
  return jax.jit(lambda image: sliding.probabilities(network, image, **kw))


def image(*size, seed=0):
  return np.random.default_rng(seed).normal(size=(2, *size, 2)).astype(np.float32)


@pytest.mark.parametrize(
  ('size', 'patch', 'mirror'),
  [((11, 9), (6, 4), True), ((8, 7), (8, 4), False), ((5, 6, 4), (4, 4, 4), True)],
)
def test_it_is_the_loop_over_windows_and_mirror_images(size, patch, mirror):
  x = image(*size)
  found = program(patch, mirror)(x)
  np.testing.assert_allclose(found, plain(x, patch, mirror), atol=1e-5)
  np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)


def test_a_small_image_is_padded_in_the_middle():
  x = image(5, 4)
  padded = np.pad(x, ((0, 0), (0, 1), (1, 1), (0, 0)))
  found = program((6, 6), False)(x)
  np.testing.assert_allclose(found, plain(padded, (6, 6), False)[:, :5, 1:5], atol=1e-5)


def test_the_gradient_is_that_without_checkpoints_in_less_memory():
  x, weight = image(11, 9), np.random.default_rng(1).normal(size=(2, 11, 9, 3))
  results, memory = [], []
  for checkpoint in (True, False):
    function = program((6, 4), True, checkpoint)
    gradient = jax.jit(jax.grad(lambda x, f=function: jnp.sum(weight * f(x))))
    compiled = gradient.lower(x).compile()
    memory.append(compiled.memory_analysis().temp_size_in_bytes)
    results.append(compiled(x))
  np.testing.assert_allclose(*results, atol=1e-5)
  assert float(jnp.abs(results[0]).min()) > 0
  assert memory[0] < 0.5 * memory[1]


def test_windows_cover_the_image_at_most_half_a_patch_apart():
  for size, patch in (((320, 232), (256, 128)), ((100, 41), (40, 40)), ((40, 40), (40, 40))):
    found = sliding.starts(size, patch)
    for axis, (n, m) in enumerate(zip(size, patch)):
      row = np.unique(found[:, axis])
      assert row[0] == 0 and row[-1] == n - m
      assert (np.diff(row) <= m // 2).all()
  assert len(sliding.starts((40, 40), (40, 40))) == 1
  np.testing.assert_array_equal(sliding.starts((100,), (40,)).ravel(), [0, 20, 40, 60])


def test_weights_are_a_gaussian_of_an_eighth_of_the_patch():
  weights = sliding.gaussian((56, 40))
  assert weights.max() == 1 == weights[28, 20] and weights.min() > 0
  bell = lambda n: stats.norm.pdf(np.arange(n), n // 2, n / 8)
  want = np.outer(bell(56), bell(40)) / (bell(56).max() * bell(40).max())
  np.testing.assert_allclose(weights, want, rtol=1e-5)


def test_mistakes_are_named():
  with pytest.raises(errors.UserError, match=r'patch \(4, 4\) does not fit images of \(8, 8, 8\)'):
    sliding.probabilities(network, image(8, 8, 8), patch=(4, 4))
  with pytest.raises(errors.UserError, match=r'must be in \(0, 1\], not 0'):
    sliding.starts((8, 8), (4, 4), step=0)


def test_a_deployed_task_predicts_whole_images_and_keeps_its_losses():
  predict = lambda variables, image: {'head0': variables * network(image)}
  task = types.Task(
    init=None,
    predict=predict,
    forward=None,
    losses=segmentation.loss_terms,
    objectives=segmentation.OBJECTIVES,
    metrics=None,
    image_shape=(6, 4, 2),
  )
  whole = sliding.with_sliding_window(task, image_shape=(11, 9, 2), patch=(6, 4))
  x, labels = image(11, 9), np.random.default_rng(0).integers(0, 3, (2, 11, 9))
  assert whole.image_shape == (11, 9, 2)
  outputs = whole.predict(jnp.float32(1), x)
  found = plain(x, (6, 4), True)
  np.testing.assert_allclose(jnp.exp(outputs['head0']), found, atol=1e-5)
  entropy = -np.log((found * np.eye(3)[labels]).sum(-1)).mean((1, 2))
  terms = whole.losses(outputs, {'target': {'labels': labels}})
  np.testing.assert_allclose(terms['ce'], entropy, rtol=1e-4)


@pytest.mark.parametrize(('size', 'batch_size'), [((11, 9), 2), ((5, 4), 1), ((8, 9, 5), 5)])
def test_tiles_on_the_host_stitch_to_the_same_mean(size, batch_size):
  x, patch, seen = image(*size)[:1], (6, 4, 4)[: len(size)], []

  def predict(windows):
    seen.append(windows.shape)
    exp = np.exp(network(windows, np))
    return {'p': exp / exp.sum(-1, keepdims=True)}

  found = list(sliding.tiles(predict, x[0], patch=patch, batch_size=batch_size))
  assert set(seen) == {(batch_size, *patch, 2)}
  assert len(seen) == -(-len(found) // batch_size)
  whole = sliding.stitch(
    ((tile.corner, tile.outputs['p']) for tile in found), size=size, patch=patch
  )
  want = jax.jit(
    lambda x: sliding.probabilities(network, x, patch=patch, mirror=False, checkpoint=False)
  )(x)
  np.testing.assert_allclose(whole, want[0], atol=1e-5)


@pytest.mark.parametrize('mirrored', [(), (0, 1)])
def test_boxes_of_a_batch_are_as_images_of_their_own(mirrored):
  """Two sizes in one batch, one of them smaller than a window; the network sees whole windows."""
  sizes, places, patch = ((11, 5), (4, 9)), ((1, 2), (0, 3)), (6, 4)
  rng = np.random.default_rng(0)
  kernel = jnp.asarray(rng.normal(size=(1, *patch, 2)), jnp.float32)
  network = lambda x: jnp.tanh(x * kernel + jnp.mean(x, axis=(1, 2), keepdims=True))
  images = [rng.normal(1, 1, (1, *size, 2)).astype(np.float32) for size in sizes]
  whole, inside = np.zeros((2, 13, 12, 2), np.float32), np.zeros((2, 13, 12, 1), bool)
  cuts = [tuple(slice(p, p + n) for p, n in zip(place, size)) for place, size in zip(places, sizes)]
  for number, (image, cut) in enumerate(zip(images, cuts)):
    whole[(number, *cut)], inside[(number, *cut)] = image[0], True
  options = {'patch': patch, 'mirrored': mirrored, 'blend': 'nnunet'}
  found = lambda x: sliding.averaged_in_boxes(network, x, inside, **options)
  outputs = jax.jit(found)(whole)
  slopes = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(found(x)))))(whole)
  assert not outputs[~np.broadcast_to(inside, outputs.shape)].any()
  for number, (image, cut) in enumerate(zip(images, cuts)):
    alone = lambda x: sliding.averaged(network, x, **options)
    np.testing.assert_allclose(outputs[(number, *cut)], alone(image)[0], atol=1e-5)
    wanted = jax.grad(lambda x: jnp.sum(jnp.sin(alone(x))))(image)  # noqa: B023
    np.testing.assert_allclose(slopes[(number, *cut)], wanted[0], atol=1e-4)
