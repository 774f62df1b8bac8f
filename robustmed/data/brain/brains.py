"""What all sources of brain tumours share: four MR series in [0, 1], three nested tumour labels.

Labels: 0 background, 1 necrosis and tumour that does not enhance, 2 oedema, 3 enhancing tumour (4
in the files of the challenge). The field `planes` chooses between whole cubes ('volume') and their
slices ('axial'), one example each, whose 'position' counts from the feet; slices of a cube are one
group, so that predictions can be stacked again (`restack`). Of every `slice_step` slices the middle
one is kept.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from robustmed import errors
from robustmed.data.files import nifti

SERIES = ('t1', 't1ce', 't2', 'flair')  # the order of the channels
CLASSES = ('background', 'necrosis', 'oedema', 'enhancing')
PLANES = ('volume', 'axial')
HALVINGS = 16  # the networks halve the sides four times


def check_fields(fields: Mapping[str, Any]) -> None:
  """Raises a `UserError` for fields that the networks of this package do not accept."""
  if fields['side'] < HALVINGS or fields['side'] % HALVINGS:
    raise errors.UserError(
      f'data field side must be a multiple of {HALVINGS}, which the networks halve four times, '
      f'not {fields["side"]}'
    )
  errors.lookup(dict.fromkeys(PLANES), fields['planes'], kind='data field planes')
  if fields['slice_step'] < 1 or fields['side'] % fields['slice_step']:
    raise errors.UserError(
      f'data field slice_step must divide the side {fields["side"]}, not be {fields["slice_step"]}'
    )


def features(
  fields: Mapping[str, Any], *, channels: int = len(SERIES)
) -> tfds.features.FeaturesDict:
  """Returns features of images [d, h, w, c] or [h, w, c] with labels and their `nifti.Geometry`."""
  side = fields['side']
  spatial = (side,) * (3 if fields['planes'] == 'volume' else 2)
  tensor = tfds.features.Tensor
  position = {} if fields['planes'] == 'volume' else {'position': np.int32}
  return tfds.features.FeaturesDict(
    {
      'image': tensor(shape=(*spatial, channels), dtype=np.float32),
      'labels': tensor(shape=spatial, dtype=np.int32),
      'affine': tensor(shape=(4, 4), dtype=np.float32),
      'grid': tensor(shape=(3,), dtype=np.int32),
      'box': tensor(shape=(3, 2), dtype=np.int32),
      'index': np.int32,
      'group': np.int32,
      'name': tfds.features.Text(),
      **position,
    }
  )


def per_case(fields: Mapping[str, Any]) -> int:
  """Returns the number of examples of one case."""
  return 1 if fields['planes'] == 'volume' else fields['side'] // fields['slice_step']


def examples(
  image: np.ndarray,
  labels: np.ndarray,
  *,
  fields: Mapping[str, Any],
  geometry: nifti.Geometry,
  case: int,
  name: str,
) -> Iterator[dict[str, Any]]:
  """Yields the examples of one cube [d, h, w, c] with labels [d, h, w]: itself or its slices."""
  common = {
    'group': case,
    'affine': geometry.affine.astype(np.float32),
    'grid': np.asarray(geometry.grid, np.int32),
    'box': np.asarray(geometry.box, np.int32),
  }
  image, labels = image.astype(np.float32), labels.astype(np.int32)
  if fields['planes'] == 'volume':
    yield {**common, 'image': image, 'labels': labels, 'index': case, 'name': name}
    return
  step = fields['slice_step']
  for position, place in enumerate(range(step // 2, len(image), step)):
    yield {
      **common,
      'image': image[place],
      'labels': labels[place],
      'position': position,
      'index': case * per_case(fields) + position,
      'name': f'{name}_{place:03d}',
    }


def restack(
  slices: np.ndarray, *, groups: np.ndarray, positions: np.ndarray
) -> dict[int, np.ndarray]:
  """Returns the stack [d, h, w, ...] of each group from slices [n, h, w, ...] in any order.

  Every group needs each of its positions 0 ... d - 1 once; `ValueError` otherwise.
  """
  groups, positions = np.asarray(groups), np.asarray(positions)
  stacks = {}
  for group in np.unique(groups):
    mine = np.flatnonzero(groups == group)
    order = mine[np.argsort(positions[mine], kind='stable')]
    if not np.array_equal(positions[order], np.arange(len(order))):
      raise ValueError(f'group {group} has the slices {positions[order].tolist()}')
    stacks[int(group)] = np.asarray(slices)[order]
  return stacks
