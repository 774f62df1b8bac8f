"""Mosaics of four images with boxes, made on the device as in YOLOv5 (version 6.1).

The three other images of a mosaic are loaded with the first, chosen by the number of its draw, so a
mosaic depends on neither batch size nor device count; it has the index of its first image.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import types
from robustmed.data import pipeline, store
from robustmed.data.cells import boxed
from robustmed.ops import warp

Array = jax.Array
PARTNERS = 3
_FIELDS = ('image', 'boxes', 'classes', 'mask', 'content')
_STREAM = 0x305A1C  # keeps these random numbers apart from those of permutations


def sampling(split: store.Split) -> pipeline.Sampling:
  """Returns the sampling of examples, each with three others of the split in 'more_<field>'."""

  def choose(draw, *, seed, batch_size, size):
    position, _ = pipeline.shuffled(draw, seed=seed, batch_size=batch_size, size=size)
    rng = np.random.default_rng([seed % 2**32, draw, _STREAM])
    return position, rng.integers(0, size, PARTNERS).tolist()

  def crop(example, positions):
    others = [split[position] for position in positions]
    more = {f'more_{name}': np.stack([other[name] for other in others]) for name in _FIELDS}
    return {**example, **more}

  return pipeline.Sampling(choose, crop)


def with_partners(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of an example that `sampling` gives, from those of a stored one."""
  several = lambda one: jax.ShapeDtypeStruct((PARTNERS, *one.shape), one.dtype)
  return {**shapes, **{f'more_{name}': several(shapes[name]) for name in _FIELDS}}


def make(
  *,
  side: int,
  scale: float = 0.5,
  translate: float = 0.1,
  flip: float = 0.5,
  hsv: tuple[float, float, float] = (0.015, 0.7, 0.4),
) -> Callable[[Array, types.Batch], dict]:
  """Returns (keys [b], batch) -> batch of mosaics [b, side, side, 3].

  Four pictures are placed around a random point near the middle of a grey canvas of twice the side.
  The canvas is scaled by 1 +- `scale` about its middle, moved by +- `translate` of the side and cut
  to the side. Then hue, saturation and value are multiplied by 1 +- `hsv`, and a share `flip` of
  the images is mirrored. A box is kept if more than 2 pixels a side and a tenth of its area remain;
  the boxes of all four pictures keep their rows, and 'mask' says which are kept.
  """

  def apply(keys, batch):
    target = batch['target']
    several = {name: _all_four(batch, name) for name in _FIELDS}
    draws = jax.vmap(lambda key: jax.random.uniform(key, (9,)))(keys)
    between = lambda i, low, high: (low + (high - low) * draws[:, i])[:, None]
    centre = jnp.concatenate([between(0, 0.5, 1.5), between(1, 0.5, 1.5)], axis=-1) * side
    zoom = between(2, 1 - scale, 1 + scale)
    low, high = 0.5 - translate, 0.5 + translate
    middle = jnp.concatenate([between(3, low, high), between(4, low, high)], axis=-1) * side
    image = _picture(several, centre, zoom, middle, side)
    boxes, mask = _boxes(several, centre, zoom, middle, side)
    gains = jnp.concatenate([between(5 + i, 1 - g, 1 + g) for i, g in enumerate(hsv)], axis=-1)
    image = recolour(image, gains)
    turned = draws[:, 8] < flip
    image = jnp.where(turned[:, None, None, None], image[:, :, ::-1], image)
    mirrored = jnp.stack([side - boxes[..., 2], boxes[..., 1], side - boxes[..., 0], boxes[..., 3]])
    boxes = jnp.where(turned[:, None, None], jnp.moveaxis(mirrored, 0, -1), boxes)
    whole = jnp.broadcast_to(jnp.array([0, 0, side, side], jnp.float32)[None], (len(keys), 4))
    kept = {name: value for name, value in target.items() if not name.startswith('more_')}
    classes = several['classes'].reshape(len(keys), -1)
    new = {**kept, 'boxes': boxes, 'classes': classes, 'mask': mask, 'content': whole}
    return {**batch, 'image': image, 'target': new}

  return apply


def _all_four(batch, name):
  """Returns a field of the four images of every mosaic, [b, 4, ...]."""
  own = batch['image'] if name == 'image' else batch['target'][name]
  return jnp.concatenate([own[:, None], batch['target'][f'more_{name}']], axis=1)


def _corners(content, centre):
  """Returns the upper left corners of the four pictures on the canvas, [b, 4, 2]."""
  size = content[..., 2:] - content[..., :2]
  before = jnp.array([[1, 1], [0, 1], [1, 0], [0, 0]], jnp.float32)[None]  # left, above
  return centre[:, None] - before * size


def _picture(several, centre, zoom, middle, side):
  """Returns the mosaics; every pixel is sampled from one of the four pictures, or grey."""
  image, content = several['image'], several['content'].astype(jnp.float32)
  number, _, height, width, _ = image.shape
  ticks = jnp.arange(side, dtype=jnp.float32) + 0.5
  back = lambda axis: (ticks[None] - middle[:, axis : axis + 1]) / zoom + side
  x, y = back(0), back(1)  # [b, side], on the canvas
  right, below = (x >= centre[:, :1])[:, None, :], (y >= centre[:, 1:])[:, :, None]
  which = right.astype(jnp.int32) + 2 * below.astype(jnp.int32)  # [b, side, side]
  pick = lambda values, axis: jnp.take_along_axis(
    values[..., axis], which.reshape(number, -1), axis=1
  ).reshape(which.shape)
  corner = _corners(content, centre)
  places, inside = [], (x >= 0)[:, None, :] & (x < 2 * side)[:, None, :]
  inside = inside & (y >= 0)[:, :, None] & (y < 2 * side)[:, :, None]
  for axis, at in ((0, x[:, None, :]), (1, y[:, :, None])):
    low, high = pick(content, axis), pick(content, axis + 2)
    local = at - pick(corner, axis) + low
    inside = inside & (local >= low) & (local < high)
    places.append(jnp.clip(local - 0.5, low, high - 1))
  stacked = image.reshape(number, PARTNERS * height + height, width, 3)
  where = jnp.stack([places[1] + height * which, places[0]], axis=-1)
  found = warp.sample(stacked, where, padding='edge')
  return jnp.where(inside[..., None], found, boxed.GREY)


def _boxes(several, centre, zoom, middle, side):
  """Returns the boxes [b, 4 m, 4] on the mosaics and which of them are kept."""
  content, boxes = several['content'].astype(jnp.float32), several['boxes']
  shift = _corners(content, centre) - content[..., :2]
  on_canvas = boxes + jnp.concatenate([shift, shift], axis=-1)[:, :, None]
  on_canvas = jnp.clip(on_canvas, 0, 2 * side).reshape(len(boxes), -1, 4)
  twice = lambda pair: jnp.concatenate([pair, pair], axis=-1)[:, None]
  result = jnp.clip(zoom[:, None] * (on_canvas - side) + twice(middle), 0, side)
  sides = lambda box: jnp.maximum(box[..., 2:] - box[..., :2], 0)
  width, height = jnp.moveaxis(sides(result), -1, 0)
  before = jnp.prod(sides(on_canvas), axis=-1) * jnp.square(zoom)
  slim = jnp.maximum(width / (height + 1e-6), height / (width + 1e-6)) < 100
  enough = (width > 2) & (height > 2) & (width * height > 0.1 * before) & slim
  return result, enough & several['mask'].reshape(enough.shape)


def recolour(image: Array, gains: Array) -> Array:
  """Multiplies hue (modulo 1), saturation and value of images [b, h, w, 3] by gains [b, 3]."""
  high, low = image.max(-1), image.min(-1)
  range_ = high - low
  safe = jnp.where(range_ > 0, range_, 1)
  red, green, blue = jnp.moveaxis(image, -1, 0)
  sixth = jnp.where(
    high == red,
    (green - blue) / safe % 6,
    jnp.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
  )
  gain = lambda i: gains[:, i, None, None]
  hue = jnp.where(range_ > 0, sixth, 0) * gain(0)
  saturation = jnp.clip(range_ / jnp.where(high > 0, high, 1) * gain(1), 0, 1)
  value = jnp.clip(high * gain(2), 0, 1)
  bands = []
  for n in (5, 3, 1):
    k = (n + hue) % 6
    bands.append(value * (1 - saturation * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)))
  return jnp.stack(bands, axis=-1)
