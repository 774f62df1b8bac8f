"""Out-of-distribution images, start points of the OOD attack: [n, side, side, 1]."""

import pathlib

import numpy as np
import skimage.transform

from robustmed import errors
from robustmed.data.files import exams, pictures
from robustmed.data.spine import lung_slice

_HELP = 'put .png or .jpg images there (the paper used a lung CT slice), or leave it empty'


def load_images(folder: str, *, side: int, count: int, seed: int = 0) -> np.ndarray:
  """Returns `count` images, float32 in [0, 1].

  An empty `folder` draws phantom lung slices; image i depends on `seed` and i alone. Else the
  pictures of the folder in the order of their names, over again if they are fewer than `count`:
  first channel, stretched to side x side, divided by the largest value of an integer format
  (others: min-max normalised).
  """
  if not folder:
    rows = [
      lung_slice.draw(np.random.default_rng([seed, i]), side=side).astype(np.float32)
      for i in range(count)
    ]
  else:
    root = exams.root_of(folder, help_text=_HELP)
    paths = exams.listing(root, pictures.PHOTOS, root=root)
    if not paths:
      raise errors.UserError(f'no image in {root}: {_HELP}')
    read = [_picture(path, side) for path in paths[:count]]
    rows = [read[i % len(read)] for i in range(count)]
  return np.stack(rows)[..., None]


def noise_images(*, side: int, count: int, seed: int = 0) -> np.ndarray:
  """Returns `count` images of independent U(0, 1) pixels, float32; i depends on `seed` and i."""
  shape = (side, side, 1)
  return np.stack(
    [np.random.default_rng([seed, i]).random(shape, np.float32) for i in range(count)]
  )


def _picture(path: pathlib.Path, side: int) -> np.ndarray:
  array = pictures.read(path)
  array = array if array.ndim == 2 else array[..., 0]
  if array.dtype.kind == 'u':
    image = array / np.iinfo(array.dtype).max
  else:
    low, high = float(array.min()), float(array.max())
    image = (array.astype(np.float64) - low) / (high - low if high > low else 1.0)
  if image.shape != (side, side):
    image = skimage.transform.resize(
      image, (side, side), order=1, mode='edge', anti_aliasing=max(image.shape) > side
    )
  return np.clip(image, 0, 1).astype(np.float32)
