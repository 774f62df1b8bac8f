"""Anchors of YOLOv5 (version 6.1): assignment of boxes to grid cells, and decoding of outputs."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
MAX_RATIO = 4.0  # between the sides of a box and of an anchor that is assigned to it
# The cell of the centre, and half a cell to the left, up, right and down.
_SHIFTS = np.array([(0, 0), (0.5, 0), (0, 0.5), (-0.5, 0), (0, -0.5)], np.float32)


class Positives(NamedTuple):
  """Candidate cells of one grid, [b, k] each, k = boxes x 3 anchors x 5 cells."""

  row: Array
  column: Array
  anchor: Array
  box: Array  # which of the m boxes
  mask: Array  # which candidates are positives


def decode(raw: Array, *, stride: int, anchors: Sequence[tuple[int, int]]) -> Array:
  """Returns boxes (x1, y1, x2, y2) in pixels, [b, h, w, 3, 4], of raw [b, h, w, 3, 5 + classes]."""
  height, width = raw.shape[1:3]
  column, row = jnp.meshgrid(jnp.arange(width), jnp.arange(height))
  cell = jnp.stack([column, row], axis=-1)[None, :, :, None]
  anchors = jnp.asarray(anchors, raw.dtype)[None, None, None]
  return decode_cells(raw, cell.astype(raw.dtype), anchors, stride=stride)


def decode_cells(raw: Array, cell: Array, anchors: Array, *, stride: int) -> Array:
  """Returns the corners of boxes [..., 4] that raw outputs at given cells and anchors stand for.

  centre = (2 sigmoid - 0.5 + cell) stride, side = (2 sigmoid)^2 anchor. raw: [..., 4 or more]; cell
  (x, y) and anchors (w, h): arrays of the same rank, last axis 2.
  """
  centre = (2 * jax.nn.sigmoid(raw[..., :2]) - 0.5 + cell) * stride
  half = 0.5 * jnp.square(2 * jax.nn.sigmoid(raw[..., 2:4])) * anchors
  return jnp.concatenate([centre - half, centre + half], axis=-1)


def assign(
  boxes: Array,
  mask: Array,
  *,
  grid: tuple[int, int],
  stride: int,
  anchors: Sequence[tuple[int, int]],
) -> Positives:
  """Returns the cells of a grid (h, w) assigned to boxes [b, m, 4]; mask [b, m], False = padding.

  An anchor is assigned to a box if their sides differ by a factor below 4, at up to three cells:
  that of the box's centre, the nearer one to the left or right, and the nearer one above or below.
  """
  size = jnp.asarray(grid[::-1], boxes.dtype).reshape(1, 1, 2)
  centre = (boxes[..., :2] + boxes[..., 2:]) / 2 / stride
  sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 1e-6)
  ratio = sides[:, :, None] / jnp.asarray(anchors, boxes.dtype)[None, None]
  fits = jnp.max(jnp.maximum(ratio, 1 / ratio), axis=-1) < MAX_RATIO  # [b, m, 3]
  before = (centre % 1 < 0.5) & (centre > 1)
  after = ((size - centre) % 1 < 0.5) & (size - centre > 1)
  beside = jnp.concatenate([jnp.ones_like(before[..., :1]), before, after], axis=-1)  # [b, m, 5]
  cell = jnp.floor(centre[:, :, None] - _SHIFTS[None, None]).astype(jnp.int32)
  cell = jnp.clip(cell, 0, size.astype(jnp.int32)[:, :, None] - 1)
  shape = (*mask.shape, 3, 5)
  flat = lambda value: jnp.broadcast_to(value, shape).reshape(shape[0], -1)
  number = jnp.arange(mask.shape[1]).reshape(1, -1, 1, 1)
  return Positives(
    row=flat(cell[:, :, None, :, 1]),
    column=flat(cell[:, :, None, :, 0]),
    anchor=flat(jnp.arange(3).reshape(1, 1, 3, 1)),
    box=flat(number),
    mask=flat(mask[:, :, None, None] & fits[..., None] & beside[:, :, None]),
  )
