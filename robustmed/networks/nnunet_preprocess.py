"""What nnU-Net v2 does to an image before its network, and to the logits after it.

Images are [c, z, y, x] with the axes of the file in reverse order, as nnunetv2 reads them. All of
it runs on the host in the types and the order of nnunetv2 2.8, so that results agree to rounding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.ndimage
import skimage.transform

from robustmed import errors
from robustmed.networks import nnunet_plans

ANISOTROPIC = 3  # spacings that differ by more are resampled in the plane first


class Prepared(NamedTuple):
  """An image as the network reads it, and what leads back to its own grid."""

  image: np.ndarray  # [c, *spatial] float32, three spatial axes
  spacing: tuple[float, ...]  # of the case, axes of the plan
  target: tuple[float, ...]  # of `image`
  shape: tuple[int, ...]  # of the case, axes of the plan
  box: tuple[slice, ...]  # non-zero part of the case, axes of the plan


def prepare(
  image: np.ndarray, plan: nnunet_plans.Plan, *, spacing: Sequence[float], what: str = 'the image'
) -> Prepared:
  """Returns image [c, z, y, x] cropped, normalised and resampled as the plan says."""
  image = np.asarray(image, np.float32)
  if image.ndim != 4 or len(spacing) != 3:
    raise errors.UserError(f'{what}: must be [c, z, y, x] with 3 spacings, not {image.shape}')
  if len(image) != len(plan.channels):
    raise errors.UserError(
      f'{what}: has {len(image)} channels, the network reads {len(plan.channels)} '
      f'({", ".join(plan.channels)})'
    )
  spacing = tuple(float(spacing[axis]) for axis in plan.forward)
  if not np.isfinite(image).all() or not all(0 < value < np.inf for value in spacing):
    raise errors.UserError(f'{what}: has NaN or infinite values or no positive spacing')
  image = image.transpose(0, *(axis + 1 for axis in plan.forward))
  box, inside = nonzero(image)
  target = plan.spacing if len(plan.spacing) == 3 else (spacing[0], *plan.spacing)
  cut = np.stack(
    [
      normalise(channel[box], how, inside=inside, what=what)
      for channel, how in zip(image, plan.normalisations, strict=True)
    ]
  )
  shape = [round(i / j * k) for i, j, k in zip(spacing, target, cut.shape[1:], strict=True)]
  if min(shape) < 1:
    raise errors.UserError(f'{what}: is thinner than one voxel of the network ({target} mm)')
  data = resample(cut, shape, plan.resample_image, spacings=(spacing, target))
  return Prepared(data, spacing, target, image.shape[1:], box)


def restore(logits: np.ndarray, prepared: Prepared, plan: nnunet_plans.Plan) -> np.ndarray:
  """Returns the label map [z, y, x] of logits [classes, *spatial] on the case's own grid."""
  shape = [part.stop - part.start for part in prepared.box]
  logits = resample(
    logits, shape, plan.resample_logits, spacings=(prepared.target, prepared.spacing)
  )
  full = np.zeros(prepared.shape, np.uint8 if max(plan.labels.values) < 255 else np.uint16)
  full[prepared.box] = to_labels(logits, plan.labels)
  return full.transpose(_backward(plan))


def restore_probabilities(
  logits: np.ndarray, prepared: Prepared, plan: nnunet_plans.Plan
) -> np.ndarray:
  """Returns probabilities [classes or regions, z, y, x] on the case's own grid.

  Outside the non-zero part the background has 1, with regions every region 0.
  """
  shape = [part.stop - part.start for part in prepared.box]
  logits = resample(
    logits, shape, plan.resample_logits, spacings=(prepared.target, prepared.spacing)
  ).astype(np.float32)
  if plan.labels.regions:
    inner = scipy.special.expit(logits)
  else:
    inner = scipy.special.softmax(logits, axis=0)
  full = np.zeros((len(logits), *prepared.shape), np.float32)
  if not plan.labels.regions:
    full[0] = 1
  full[(slice(None), *prepared.box)] = inner
  return full.transpose(0, *(axis + 1 for axis in _backward(plan)))


def to_labels(logits: np.ndarray, labels: nnunet_plans.Labels) -> np.ndarray:
  """Returns the label map of logits [classes, ...]: argmax, or regions above 1/2 in their order."""
  if not labels.regions:
    return logits.argmax(0)
  found = np.zeros(logits.shape[1:], np.uint16)
  for channel, value in zip(logits, labels.values, strict=True):
    found[channel > 0] = value
  return found


def nonzero(image: np.ndarray) -> tuple[tuple[slice, ...], np.ndarray]:
  """Returns the box of voxels with any channel not zero, and inside it their filled mask.

  An image of zeros is kept whole.
  """
  mask = scipy.ndimage.binary_fill_holes((image != 0).any(axis=0))
  box = scipy.ndimage.find_objects(mask.astype(np.int8))
  box = box[0] if box else tuple(slice(0, n) for n in mask.shape)
  return box, mask[box]


def normalise(
  image: np.ndarray, how: nnunet_plans.Normalisation, *, inside: np.ndarray, what: str = 'the image'
) -> np.ndarray:
  """Returns one channel [z, y, x] normalised; z-scores over `inside` alone if the plan says so."""
  image = np.array(image, np.float32)
  if how.name == 'ZScoreNormalization':
    where = inside if how.masked else np.ones(image.shape, bool)
    values = image[where] if how.masked else image
    mean, deviation = values.mean(), max(values.std(), 1e-8)
    image[where] = (image[where] - mean) / deviation
  elif how.name == 'CTNormalization':
    known = how.properties
    image = np.clip(image, known['percentile_00_5'], known['percentile_99_5'])
    image = (image - known['mean']) / max(known['std'], 1e-8)
  elif how.name == 'RescaleTo01Normalization':
    image -= image.min()
    image /= max(image.max(), 1e-8)
  elif how.name == 'RGBTo01Normalization':
    if image.min() < 0 or image.max() > 255:
      raise errors.UserError(f'{what}: the network reads colours from 0 to 255')
    image /= 255
  return image.astype(np.float32, copy=False)


def separate_axis(options, spacings) -> int | None:
  """Returns the axis that is resampled by itself, None where all are resampled together."""
  force = options.get('force_separate_z')
  threshold = options.get('separate_z_anisotropy_threshold', ANISOTROPIC)
  if force is False:
    return None
  for spacing in spacings:
    if force or max(spacing) / min(spacing) > threshold:
      coarsest = [axis for axis, value in enumerate(spacing) if value == max(spacing)]
      return coarsest[0] if len(coarsest) == 1 else None
  return None


def resample(data, shape, how: nnunet_plans.Resampling, *, spacings) -> np.ndarray:
  """Returns data [c, *spatial] on a grid of another shape; spacings: (now, then)."""
  shape = tuple(int(n) for n in shape)
  if how.name == 'no_resampling_hack' and data.shape[1:] != shape:
    raise errors.UserError(
      f'the plan does not resample, but the image has another spacing than its own {spacings[1]}'
    )
  if data.shape[1:] == shape:
    return data
  axis = separate_axis(how.options, spacings)
  if how.name == 'resample_torch_fornnunet':
    nearest = how.options.get('aniso_axis_mode', 'nearest-exact') != 'linear'
    for side in range(3):
      data = by_axis(data, side + 1, shape[side], nearest=nearest and side == axis)
    return data
  order, wide = int(how.options['order']), data.astype(np.float64)
  resize = lambda part, to: skimage.transform.resize(
    part, to, order=order, mode='edge', clip=True, anti_aliasing=False
  )
  if axis is None:
    return np.stack([resize(part, shape) for part in wide]).astype(data.dtype)
  plane = tuple(n for side, n in enumerate(shape) if side != axis)
  made = np.empty((len(data), *shape), data.dtype)
  for c, volume in enumerate(wide):
    cuts = [resize(cut, plane) for cut in np.moveaxis(volume, axis, 0)]
    volume = np.stack(cuts, axis=axis)
    if volume.shape[axis] != shape[axis]:
      at = [np.arange(n, dtype=np.float64) for n in shape]
      at[axis] = volume.shape[axis] / shape[axis] * (at[axis] + 0.5) - 0.5
      order_z = int(how.options.get('order_z', 0))
      at = np.meshgrid(*at, indexing='ij')
      volume = scipy.ndimage.map_coordinates(volume, at, order=order_z, mode='nearest')
    made[c] = volume
  return made


def by_axis(data, axis, count, *, nearest):
  """Returns linear or nearest values at the middles of the new cells, as torch interpolates."""
  n = data.shape[axis]
  if n == count:
    return data
  at = (np.arange(count, dtype=np.float32) + 0.5) * np.float32(n / count)
  if nearest:
    return np.take(data, np.minimum(at.astype(int), n - 1), axis=axis)
  at = np.maximum(at - 0.5, 0)
  low = np.minimum(at.astype(int), n - 1)
  share = (at - low).reshape(-1, *(1,) * (data.ndim - axis - 1)).astype(np.float32)
  high = np.take(data, np.minimum(low + 1, n - 1), axis=axis)
  return np.take(data, low, axis=axis) * (1 - share) + high * share


def _backward(plan):
  return tuple(int(axis) for axis in np.argsort(plan.forward))
