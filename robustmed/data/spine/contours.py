"""What all sources of images with contours share: coordinates and features.

Contours are (x, y) in pixels, and the centre of the first pixel is (0, 0) in masks and in warps, so
that a mask and its image are warped consistently.
"""

from typing import Any

import numpy as np
import skimage.draw
import tensorflow_datasets as tfds

from robustmed import errors

NUM_POINTS = 176


def check_side(side: int) -> None:
  if side < 16:
    raise errors.UserError(f'data field side must be at least 16, not {side}')


def features(side: int) -> tfds.features.FeaturesDict:
  """Returns the features of a side x side grey image with one contour and the mask inside it."""
  return tfds.features.FeaturesDict(
    {
      'image': tfds.features.Tensor(shape=(side, side, 1), dtype=np.float32),
      'contour': tfds.features.Tensor(shape=(NUM_POINTS, 2), dtype=np.float32),
      'mask': tfds.features.Tensor(shape=(side, side, 1), dtype=np.float32),
      'group': tfds.features.Scalar(dtype=np.int32),
      'index': tfds.features.Scalar(dtype=np.int32),
      'name': tfds.features.Text(),
    }
  )


def example(
  image: np.ndarray, contour: np.ndarray, *, index: int, group: int, name: str
) -> dict[str, Any]:
  """Returns one example of an image [side, side] and its contour [176, 2]."""
  filled = skimage.draw.polygon2mask(image.shape, contour[:, ::-1])
  return {
    'image': image.astype(np.float32)[..., None],
    'contour': contour.astype(np.float32),
    'mask': filled.astype(np.float32)[..., None],
    'group': group,
    'index': index,
    'name': name,
  }
