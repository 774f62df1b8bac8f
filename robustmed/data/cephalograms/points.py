"""What all sources of cephalograms share: coordinates, landmarks and features."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from robustmed import errors

FRAME = (1935, 2400)  # width and height of the original radiographs, in which landmarks are given
MM_PER_PIXEL = 0.1  # of the original radiographs
SIZE_FIELDS = {'height': 200, 'width': 160}
LANDMARKS = (
  'sella',
  'nasion',
  'orbitale',
  'porion',
  'subspinale',
  'supramentale',
  'pogonion',
  'menton',
  'gnathion',
  'gonion',
  'lower incisor',
  'upper incisor',
  'upper lip',
  'lower lip',
  'subnasale',
  'soft tissue pogonion',
  'posterior nasal spine',
  'anterior nasal spine',
  'articulare',
)


def check(fields: Mapping[str, Any]) -> None:
  """Raises a `UserError` for a size that is out of range."""
  for name in SIZE_FIELDS:
    if fields[name] < 32:
      raise errors.UserError(f'data field {name} must be at least 32, not {fields[name]}')


def features(fields: Mapping[str, Any]) -> tfds.features.FeaturesDict:
  """Returns the features of a radiograph, three channels in [-1, 1], with 19 landmarks."""
  shape = (fields['height'], fields['width'], 3)
  return tfds.features.FeaturesDict(
    {
      'image': tfds.features.Tensor(shape=shape, dtype=np.float32),
      'landmarks': tfds.features.Tensor(shape=(len(LANDMARKS), 2), dtype=np.float32),
      'scale': tfds.features.Tensor(shape=(2,), dtype=np.float32),
      'group': tfds.features.Scalar(dtype=np.int32),
      'index': tfds.features.Scalar(dtype=np.int32),
      'name': tfds.features.Text(),
    }
  )


def zoom(fields: Mapping[str, Any]) -> np.ndarray:
  """Returns the stored pixels per pixel of the original frame, (x, y)."""
  return np.array([fields['width'], fields['height']]) / FRAME


def example(
  seen: np.ndarray, points: np.ndarray, fields: Mapping[str, Any], *, index: int, name: str
) -> dict[str, Any]:
  """Returns one example of a picture in [0, 1] of any size and points [19, 2] in `FRAME`.

  seen: [h, w], which becomes three equal channels, or [h, w, 3]. It is resized with PIL's bilinear
  filter, which averages where it shrinks. landmarks: in pixels of the stored image; scale:
  millimetres per such pixel, (x, y). Every image is its own group.
  """
  size = (fields['width'], fields['height'])
  channels = [_resized(one, size) for one in np.moveaxis(np.atleast_3d(seen), -1, 0)]
  image = (np.clip(np.stack(channels, axis=-1), 0, 1) * 2 - 1).astype(np.float32)
  return {
    'image': np.broadcast_to(image, (*size[::-1], 3)).copy(),
    'landmarks': (points * zoom(fields)).astype(np.float32),
    'scale': (MM_PER_PIXEL / zoom(fields)).astype(np.float32),
    'group': index,
    'index': index,
    'name': name,
  }


def _resized(channel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  if channel.shape == size[::-1]:
    return channel
  picture = Image.fromarray(channel.astype(np.float32))
  return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
