"""Small sagittal slices with several disks of known contours, for sources that cut disks out."""

import numpy as np
import skimage.draw
from PIL import Image

from robustmed.data.spine import phantom_shapes

SHAPE = (120, 80)


def draw(seed, *, disks=2, shape=SHAPE, scale=64.0):
  """Returns image [h, w] uint8, label mask [h, w] uint8 and the contours [disks, 176, 2]."""
  rng = np.random.default_rng(seed)
  height, width = shape
  centres = np.stack(
    [np.full(disks, width / 2), (np.arange(disks) + 0.5) * height / disks - 0.5], axis=-1
  )
  contours = phantom_shapes.draw(rng, disks) * scale + centres[:, None]
  mask = np.zeros(shape, np.uint8)
  for label, contour in enumerate(contours, start=1):
    mask[skimage.draw.polygon2mask(shape, contour[:, ::-1])] = label
  image = rng.integers(0, 90, shape) + 120 * (mask > 0)
  return image.astype(np.uint8), mask, contours


def save_slice(folder, name, image, mask, *, suffix='.png'):
  """One pair images/NAME and masks/NAME of the disk_masks source."""
  for kind, array in (('images', image), ('masks', mask)):
    path = folder / kind / f'{name}{suffix}'
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == '.npy':
      np.save(path, array)
    elif suffix == '.npz':
      np.savez(path, array)
    else:
      Image.fromarray(array).save(path)
  return folder


def fill(folder, *, exams=3, slices=2, **options):
  """A folder of the disk_masks source: exam e has slices e_0, e_1, ..."""
  for exam in range(exams):
    for number in range(slices):
      image, mask, _ = draw(10 * exam + number, **options)
      save_slice(folder, f'{exam}_{number}', image, mask)
  return folder


def save_volume(path, plane, *, spacing, direction, flips=(False, False, False)):
  """Writes a sagittal plane [h, w] (front left, head up) as an .mha of 5 equal planes.

  spacing: millimetres from right to left, front to back, feet to head. direction: the order in
  which the file's axes run through the patient, a permutation of (0, 1, 2) of those; flips: which
  of the three run the other way in the file.
  """
  import SimpleITK as sitk

  volume = np.repeat(
    plane[::-1, :, None], 5, axis=2
  )  # [feet to head, front to back, right to left]
  axes = {0: 2, 1: 1, 2: 0}  # of the array
  for axis, flipped in enumerate(flips):
    if flipped:
      volume = np.flip(volume, axes[axis])
  # a file's first axis is the array's last
  array = np.transpose(volume, [axes[axis] for axis in reversed(direction)])
  image = sitk.GetImageFromArray(np.ascontiguousarray(array))
  matrix = np.zeros((3, 3))
  for column, axis in enumerate(direction):
    matrix[axis, column] = -1 if flips[axis] else 1
  image.SetSpacing([float(spacing[axis]) for axis in direction])
  image.SetDirection(matrix.ravel().tolist())
  path.parent.mkdir(parents=True, exist_ok=True)
  sitk.WriteImage(image, str(path))
  return path
