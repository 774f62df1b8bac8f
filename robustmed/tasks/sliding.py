"""Sliding-window prediction of whole images, as nnU-Net deploys its networks.

Isensee et al. 2021: windows half a patch apart, Gaussian weights, softmax averaged over all mirror
images. Any number of spatial axes. `probabilities` and `averaged` are differentiable and compile
once per image size; `tiles` and `stitch` run on the host and compile once for all sizes.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import ndimage

from robustmed import errors, types
from robustmed.process import parallel

Array = jax.Array
_NO_WINDOW = -(10**7)


class Tile(NamedTuple):
  """The outputs of a network on one window."""

  corner: np.ndarray  # [rank], its first cell; negative where a small image is padded
  outputs: Any  # numpy leaves without the batch axis


def margins(size: tuple[int, ...], patch: tuple[int, ...]) -> list[tuple[int, int]]:
  """Returns the padding before and after an image smaller than the patch, per axis."""
  if len(size) != len(patch):
    raise errors.UserError(f'a patch {tuple(patch)} does not fit images of {tuple(size)} cells')
  return [((m - n) // 2, m - n - (m - n) // 2) if m > n else (0, 0) for n, m in zip(size, patch)]


def gaussian(patch: tuple[int, ...]) -> np.ndarray:
  """Returns Gaussian weights [*patch]: sigma patch / 8, largest 1, zeros set to the smallest."""
  peak = np.zeros(patch)
  peak[tuple(n // 2 for n in patch)] = 1
  weights = ndimage.gaussian_filter(peak, [n / 8 for n in patch], mode='constant')
  weights = (weights / weights.max()).astype(np.float32)
  return np.maximum(weights, weights[weights > 0].min())


def half_gaussian(patch: tuple[int, ...]) -> np.ndarray:
  """Returns ten times `gaussian` in half precision, as nnU-Net v2 has it."""
  weights = (10 * gaussian(patch)).astype(np.float16).astype(np.float32)
  return np.maximum(weights, weights[weights > 0].min())


BLENDS = {
  'gaussian': gaussian,
  'nnunet': half_gaussian,
  'constant': lambda patch: np.ones(patch, np.float32),
}


def starts(size: tuple[int, ...], patch: tuple[int, ...], *, step: float = 0.5) -> np.ndarray:
  """Returns the first cells of all windows, [windows, rank], at most `step` patches apart."""
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
  """Returns the averaged softmax [b, *spatial, classes] of image [b, *spatial, c].

  `network` maps windows [b, *patch, c] to logits [b, *patch, classes]; see `averaged`, over the
  mirror images of all axes.
  """
  return averaged(
    lambda window: jax.nn.softmax(network(window)),
    image,
    patch=patch,
    step=step,
    mirrored=range(image.ndim - 2) if mirror else (),
    checkpoint=checkpoint,
  )


def averaged(
  network: Callable[[Array], Array],
  image: Array,
  *,
  patch: tuple[int, ...],
  step: float = 0.5,
  mirrored: Iterable[int] = (),
  blend: str = 'gaussian',
  checkpoint: bool = True,
) -> Array:
  """Returns the averaged outputs [b, *spatial, k] of windows of image [b, *spatial, c].

  `network` maps windows [b, *patch, c] to [b, *patch, k]; it is traced once. mirrored: spatial axes
  over whose mirror images outputs are averaged, too. blend: weights of a window, `BLENDS`. Images
  smaller than the patch are padded with 0. With `checkpoint` the backward pass recomputes each
  window, so it needs the memory of one window for any number of them.
  """
  patch, rank, zero = tuple(patch), image.ndim - 2, jnp.int32(0)
  padding = margins(image.shape[1:-1], patch)
  inner = (slice(None), *(slice(lo, lo + n) for (lo, _), n in zip(padding, image.shape[1:-1])))
  image = jnp.pad(image, ((0, 0), *padding, (0, 0)))
  size = image.shape[1:-1]
  choices = [(False, True) if axis in tuple(mirrored) else (False,) for axis in range(rank)]
  flips = list(itertools.product(*choices))
  weights = errors.lookup(BLENDS, blend, kind='blend of windows')(patch)
  corners = starts(size, patch, step=step)
  plan = [np.repeat(corners, len(flips), axis=0), np.tile(np.array(flips), (len(corners), 1))]
  norm = np.zeros(size, np.float32)
  for corner in corners:
    norm[tuple(slice(a, a + m) for a, m in zip(corner, patch))] += weights * len(flips)

  def flipped(x, turned):
    for axis in range(rank):
      x = jnp.where(turned[axis], jnp.flip(x, axis + 1), x) if len(choices[axis]) > 1 else x
    return x

  def window(image, corner, turned):
    shape = (len(image), *patch, image.shape[-1])
    x = lax.dynamic_slice(image, (zero, *corner, zero), shape)
    return flipped(network(flipped(x, turned)), turned) * weights[None, ..., None]

  one_window = jax.checkpoint(window) if checkpoint else window

  def add(total, place):
    corner, turned = place
    part = one_window(image, corner, turned)
    where = (zero, *corner, zero)
    old = lax.dynamic_slice(total, where, part.shape)
    return lax.dynamic_update_slice(total, old + part, where), None

  out = jax.eval_shape(window, image, *(jax.ShapeDtypeStruct((rank,), p.dtype) for p in plan))
  total = jnp.zeros((len(image), *size, out.shape[-1]), out.dtype)
  total, _ = lax.scan(add, total, tuple(map(jnp.asarray, plan)))
  return (total / norm[None, ..., None])[inner]


def averaged_in_boxes(
  network: Callable[[Array], Array],
  image: Array,
  inside: Array,
  *,
  patch: tuple[int, ...],
  step: float = 0.5,
  mirrored: Iterable[int] = (),
  blend: str = 'gaussian',
) -> Array:
  """Returns `averaged` of the box of each image alone, 0 outside of it: [b, *spatial, k].

  inside: [b, *spatial, 1], where the box of each image is; the image must be 0 outside. Boxes of
  one batch may differ: what pads images to one size changes nothing.
  """
  patch, rank, whole = tuple(patch), image.ndim - 2, image.shape[1:-1]
  choices = [(False, True) if axis in tuple(mirrored) else (False,) for axis in range(rank)]
  flips = list(itertools.product(*choices))
  weights = jnp.asarray(errors.lookup(BLENDS, blend, kind='blend of windows')(patch))[..., None]
  firsts, sizes, tables = [], [], []
  for axis, (n, m) in enumerate(zip(whole, patch, strict=True)):
    others = tuple(a + 1 for a in range(rank + 1) if a != axis)
    line = jnp.any(inside, axis=others)
    firsts.append(jnp.argmax(line, axis=1))
    sizes.append(jnp.sum(line, axis=1))
    tables.append(_places(n, m, step))
  most = [table.shape[1] for table in tables]
  padded = jnp.pad(image, ((0, 0), *((m, m) for m in patch), (0, 0)))
  plan = itertools.product(itertools.product(*map(range, most)), flips)
  numbers, turns = zip(*plan)

  def flipped(x, turned):
    for axis in range(rank):
      x = jnp.where(turned[axis], jnp.flip(x, axis + 1), x) if len(choices[axis]) > 1 else x
    return x

  @jax.checkpoint
  def window(padded, corners, known, turned):
    cut = lambda x, corner: lax.dynamic_slice(x, (*corner, 0), (*patch, x.shape[-1]))
    x = jax.vmap(cut)(padded, corners)
    known = known.reshape(-1, *(1,) * (rank + 1))
    return flipped(network(flipped(x, turned)), turned) * weights[None] * known

  def add(state, place):
    number, turned = place
    begun = [jnp.asarray(table)[size, n] for table, size, n in zip(tables, sizes, number)]
    known = jnp.all(jnp.stack([start > _NO_WINDOW for start in begun]), axis=0)
    corners = jnp.stack(
      [jnp.where(known, first + start + m, 0) for first, start, m in zip(firsts, begun, patch)],
      axis=1,
    )
    parts = window(padded, corners, known.astype(image.dtype), turned)
    shares = weights[None] * known.astype(image.dtype).reshape(-1, *(1,) * (rank + 1))

    def put(total, part, corner):
      old = lax.dynamic_slice(total, (*corner, 0), part.shape)
      return lax.dynamic_update_slice(total, old + part, (*corner, 0))

    return tuple(jax.vmap(put)(t, p, corners) for t, p in zip(state, (parts, shares))), None

  first = jax.ShapeDtypeStruct((len(image), *patch, image.shape[-1]), image.dtype)
  outputs = jax.eval_shape(network, first).shape[-1]
  state = tuple(jnp.zeros((*padded.shape[:-1], k), image.dtype) for k in (outputs, 1))
  places = jnp.asarray(numbers), jnp.asarray(turns)
  (total, norm), _ = lax.scan(add, state, places)
  inner = (slice(None), *(slice(m, m + n) for n, m in zip(whole, patch)))
  return jnp.where(inside, (total / jnp.where(norm > 0, norm, 1))[inner], 0)


def _places(longest: int, side: int, step: float) -> np.ndarray:
  """Returns the first cells of the windows of every size up to `longest`, [size, window].

  Smaller sizes have fewer windows; the others are `_NO_WINDOW`.
  """
  rows = []
  for size in range(longest + 1):
    low = margins((size,), (side,))[0][0]
    rows.append([int(v) - low for v in starts((max(size, side),), (side,), step=step)[:, 0]])
  most = max(map(len, rows))
  return np.array([row + [_NO_WINDOW] * (most - len(row)) for row in rows], np.int32)


def tiles(
  predict: Callable[[np.ndarray], Any],
  image: np.ndarray,
  *,
  patch: tuple[int, ...],
  step: float = 0.5,
  batch_size: int = 1,
) -> Iterator[Tile]:
  """Yields the outputs of `predict` on the windows of one image [*spatial, c].

  `predict` maps [batch_size, *patch, c] to outputs with that leading axis; the last batch is padded
  with copies. Images smaller than the patch are padded with 0.
  """
  patch, padding = tuple(patch), margins(image.shape[:-1], patch)
  image = np.pad(image, (*padding, (0, 0)))
  corners = starts(image.shape[:-1], patch, step=step)
  before = np.array([lo for lo, _ in padding])
  for first in range(0, len(corners), batch_size):
    some = corners[first : first + batch_size]
    windows = np.stack([image[tuple(slice(a, a + m) for a, m in zip(c, patch))] for c in some])
    outputs = jax.tree.map(np.asarray, predict(parallel.pad(windows, batch_size)))
    for i, corner in enumerate(some):
      yield Tile(corner - before, jax.tree.map(lambda leaf: leaf[i], outputs))  # noqa: B023


def stitch(
  found: Iterable[tuple[np.ndarray, np.ndarray]], *, size: tuple[int, ...], patch: tuple[int, ...]
) -> np.ndarray:
  """Returns the mean [*size, c] of (corner, values [*patch, c]) of windows that cover an image.

  Weighted as in `probabilities`.
  """
  weights = gaussian(tuple(patch))[..., None]
  total, norm = None, np.zeros((*size, 1), np.float32)
  for corner, values in found:
    first = np.maximum(corner, 0)
    last = np.minimum(corner + np.array(patch), size)
    here = tuple(map(slice, first, last))
    there = tuple(map(slice, first - corner, last - corner))
    if total is None:
      total = np.zeros((*size, values.shape[-1]), np.float32)
    total[here] += (values * weights)[there]
    norm[here] += weights[there]
  return total / norm


def with_sliding_window(
  task: types.Task,
  *,
  image_shape: tuple[int, ...],
  patch: tuple[int, ...],
  step: float = 0.5,
  mirror: bool = True,
) -> types.Task:
  """Returns the segmentation task with sliding-window prediction of whole images.

  Its one head holds log-probabilities, so that losses, objectives and metrics are unchanged. For
  evaluation and attacks; `task` itself is for training.
  """

  @jax.jit
  def predict(variables, image):
    network = lambda window: task.predict(variables, window)['head0']
    found = probabilities(network, image, patch=patch, step=step, mirror=mirror)
    return {'head0': jnp.log(jnp.maximum(found, 1e-30))}

  return task._replace(predict=predict, image_shape=tuple(image_shape))
