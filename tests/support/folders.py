"""Small labelled folders in any layout and format."""

import json

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from PIL import Image

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 3.0, 0, -5], [0, 0, 4.0, 7], [0, 0, 0, 1]])


def blob(seed, shape, *, classes=2, dtype=np.int16):
  """An image [*shape] with boxes of class 1, 2, ..., brighter by class, and its labels."""
  rng = np.random.default_rng(seed)
  labels = np.zeros(shape, np.uint8)
  for label in range(1, classes + 1):
    corner = [int(rng.integers(0, max(1, n - 4))) for n in shape]
    labels[tuple(slice(c, c + 4) for c in corner)] = label
  image = rng.normal(40, 3, shape) + 60 * labels
  return image.astype(dtype), labels


def save(path, array, *, affine=AFFINE):
  """Writes an array [z, y, x], [y, x] or with channels last; the ending says how."""
  path.parent.mkdir(parents=True, exist_ok=True)
  name = path.name
  if name.endswith(('.nii', '.nii.gz')):
    turned = array.transpose(2, 1, 0, *range(3, array.ndim))
    nib.save(nib.Nifti1Image(turned, affine), path)
  elif name.endswith(('.mha', '.mhd', '.nrrd')):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([2.0, 3.0, 4.0][: image.GetDimension()])
    sitk.WriteImage(image, str(path))
  elif name.endswith('.npy'):
    np.save(path, array)
  elif name.endswith('.npz'):
    np.savez(path, array)
  else:
    Image.fromarray(array).save(path)
  return path


def nnunet(folder, *, cases=6, channels=1, shape=(6, 8, 10), labels=None, more=None, parts=('Tr',)):
  """nnU-Net raw; labels: of dataset.json, None: no dataset.json."""
  for part in parts:
    for number in range(cases):
      image, numbers = blob(number + 100 * (part == 'Ts'), shape)
      name = f'{part.lower()}_{number:02d}'
      for channel in range(channels):
        save(folder / f'images{part}' / f'{name}_{channel:04d}.nii.gz', image + channel)
      save(folder / f'labels{part}' / f'{name}.nii.gz', numbers)
  if labels is not None:
    found = {
      'channel_names': {str(n): f'c{n}' for n in range(channels)},
      'labels': labels,
      'numTraining': cases,
      'file_ending': '.nii.gz',
      **(more or {}),
    }
    (folder / 'dataset.json').write_text(json.dumps(found))
  return folder


def pairs(
  folder, ending, *, cases=5, shape=(16, 20), labels='labels', label_ending=None, **options
):
  for number in range(cases):
    image, numbers = blob(number, shape, **options)
    save(folder / 'images' / f'p{number}_{number:02d}{ending}', image)
    save(folder / labels / f'p{number}_{number:02d}{label_ending or ending}', numbers)
  return folder


def shades(folder, *, cases=4, shape=(32, 32)):
  """Class folders: 'bright' and 'dark' photographs, `cases` of each."""
  for k, name in enumerate(('bright', 'dark')):
    for number in range(cases):
      rng = np.random.default_rng(10 * k + number)
      level = (150, 105)[k] + 4 * number
      image = np.clip(rng.normal(level, 20, shape), 0, 255).astype(np.uint8)
      save(folder / name / f'{name}_{number}.png', image)
  return folder


def spots(folder, *, cases=4, shape=(32, 40)):
  """Photographs with a bright and a dark spot, and a CSV of their places."""
  lines = ['image,bright_x,bright_y,dark_x,dark_y']
  for number in range(cases):
    rng = np.random.default_rng(number)
    image = rng.normal(128, 6, shape)
    places = []
    for shift in (70, -70):
      y, x = (int(rng.integers(5, n - 5)) for n in shape)
      image[y - 2 : y + 3, x - 2 : x + 3] += shift
      places += [x, y]
    save(folder / f'p{number}.png', np.clip(image, 0, 255).astype(np.uint8))
    lines.append(f'p{number}.png,' + ','.join(map(str, places)))
  (folder / 'points.csv').write_text('\n'.join([*lines, '']))
  return folder
