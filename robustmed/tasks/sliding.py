"""Sliding-window prediction of whole images, as nnU-Net deploys its networks; differentiable.

Isensee et al. 2021: windows half a patch apart, Gaussian weights, softmax averaged over all mirror
images. Any number of spatial axes.
"""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import ndimage

from robustmed import errors, types

Array = jax.Array


def gaussian(patch: tuple[int, ...]) -> np.ndarray:
  """Weights [*patch] of a window: sigma patch / 8, largest 1, zeros replaced by the smallest."""
  peak = np.zeros(patch)
  peak[tuple(n // 2 for n in patch)] = 1
  weights = ndimage.gaussian_filter(peak, [n / 8 for n in patch], mode='constant')
  weights = (weights / weights.max()).astype(np.float32)
  return np.maximum(weights, weights[weights > 0].min())


def starts(size: tuple[int, ...], patch: tuple[int, ...], *, step: float = 0.5) -> np.ndarray:
  """First cells of all windows, [windows, rank], at most `step` patches apart and spread evenly."""
  if not 0 < step <= 1:
    raise errors.UserError(f'the step of a sliding window must be in (0, 1], not {step:g}')
  axes = []
  for n, m in zip(size, patch, strict=True):
    count = math.ceil((n - m) / (m * step)) + 1
    axes.append([round((n - m) * i / max(1, count - 1)) for i in range(count)])
  return np.array(list(itertools.product(*axes)), np.int32)


def probabilities(
  network: Callable[[Array], Array],
  image: Array,
  *,
  patch: tuple[int, ...],
  step: float = 0.5,
  mirror: bool = True,
  checkpoint: bool = True,
) -> Array:
  """Averaged softmax [b, *spatial, classes] of image [b, *spatial, c].

  `network` maps windows [b, *patch, c] to logits [b, *patch, classes]; it is traced once. Images
  smaller than the patch are padded with 0. With `checkpoint` a gradient keeps nothing of a window
  and passes through it again, so its memory is that of one window whatever their number.
  """
  patch, rank = tuple(patch), image.ndim - 2
  if len(patch) != rank:
    raise errors.UserError(f'a patch {patch} does not fit images {image.shape}')
  before = [max(0, m - n) // 2 for n, m in zip(image.shape[1:-1], patch, strict=True)]
  after = [max(0, m - n) - lo for n, m, lo in zip(image.shape[1:-1], patch, before, strict=True)]
  inner = (slice(None), *(slice(lo, lo + n) for lo, n in zip(before, image.shape[1:-1])))
  image = jnp.pad(image, ((0, 0), *zip(before, after, strict=True), (0, 0)))
  size = image.shape[1:-1]
  flips = list(itertools.product((False, True), repeat=rank)) if mirror else [(False,) * rank]
  weights, corners = gaussian(patch), starts(size, patch, step=step)
  plan = [np.repeat(corners, len(flips), axis=0), np.tile(np.array(flips), (len(corners), 1))]
  norm = np.zeros(size, np.float32)
  for corner in corners:
    norm[tuple(slice(a, a + m) for a, m in zip(corner, patch))] += weights * len(flips)

  def turned(x, mirrored):
    for axis in range(rank):
      x = jnp.where(mirrored[axis], jnp.flip(x, axis + 1), x)
    return x

  def window(image, corner, mirrored):
    shape = (len(image), *patch, image.shape[-1])
    x = lax.dynamic_slice(image, (0, *corner, 0), shape)
    return turned(jax.nn.softmax(network(turned(x, mirrored))), mirrored) * weights[None, ..., None]

  once = jax.checkpoint(window) if checkpoint else window

  def add(total, place):
    corner, mirrored = place
    part = once(image, corner, mirrored)
    where = (0, *corner, 0)
    old = lax.dynamic_slice(total, where, part.shape)
    return lax.dynamic_update_slice(total, old + part, where), None

  out = jax.eval_shape(window, image, *(jax.ShapeDtypeStruct((rank,), p.dtype) for p in plan))
  total = jnp.zeros((len(image), *size, out.shape[-1]), out.dtype)
  total, _ = lax.scan(add, total, tuple(map(jnp.asarray, plan)))
  return (total / norm[None, ..., None])[inner]


def deployed(
  task: types.Task,
  *,
  image_shape: tuple[int, ...],
  patch: tuple[int, ...],
  step: float = 0.5,
  mirror: bool = True,
) -> types.Task:
  """A segmentation task whose prediction of a whole image is the sliding window's.

  Its one head holds log-probabilities, so that losses, objectives and metrics stay what they are.
  For evaluation and attacks; training goes on with `task` itself.
  """

  @jax.jit
  def predict(variables, image):
    network = lambda window: task.predict(variables, window)['head0']
    found = probabilities(network, image, patch=patch, step=step, mirror=mirror)
    return {'head0': jnp.log(jnp.maximum(found, 1e-30))}

  return task._replace(predict=predict, image_shape=tuple(image_shape))
