"""The examples of images with boxes, landmarks or one class: features and rows.

Images are [h, w, 3] in [0, 1], of classes [h, w, c]. Boxes: the features of `cells.boxed`,
letterboxed. Landmarks: 'landmarks' [n, 2] in pixels (x, y) and 'scale' [2] in mm per pixel,
or in pixels of the file where no size is known. Classes: 'label'. All have 'case' besides.
"""

from collections import Counter
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from robustmed import errors
from robustmed.data.cells import boxed
from robustmed.data.labelled import study, units


def features(found: study.Study) -> tfds.features.FeaturesDict:
  """Returns the features of the folder's kind of labels."""
  tensor, scalar = tfds.features.Tensor, tfds.features.Scalar
  height, width = found.window
  channels = found.channels if found.folder.kind == 'classes' else 3
  one = {
    'image': tensor(shape=(height, width, channels), dtype=np.float32),
    **{name: scalar(dtype=np.int32) for name in ('case', 'group', 'index')},
    'name': tfds.features.Text(),
  }
  if found.folder.kind == 'boxes':
    most = max_boxes(found)
    one |= {
      'boxes': tensor(shape=(most, 4), dtype=np.float32),
      'classes': tensor(shape=(most,), dtype=np.int32),
      'mask': tensor(shape=(most,), dtype=np.bool_),
      'content': tensor(shape=(4,), dtype=np.float32),
    }
  elif found.folder.kind == 'landmarks':
    one['landmarks'] = tensor(shape=(len(found.classes), 2), dtype=np.float32)
    one['scale'] = tensor(shape=(2,), dtype=np.float32)
  else:
    one['label'] = scalar(dtype=np.int32)
  return tfds.features.FeaturesDict(one)


def max_boxes(found: study.Study) -> int:
  """Returns the rows of boxes of an example: the field, or the most that an image has."""
  return found.fields['max_boxes'] or max(1, *(len(case.label) for case in found.folder.cases))


def row(found: study.Study, number: int, image: np.ndarray, counts: Counter) -> dict[str, Any]:
  """Returns the example of a case without 'group' and 'index'; counts what it repairs."""
  case, made = found.folder.cases[number], units.of(found)
  scaled = np.clip((image - made.shift[number]) / made.scale[number], 0, 1).astype(np.float32)
  base = {'case': number, 'name': case.name}
  if found.folder.kind == 'classes':
    return {**base, 'image': _resized(scaled, found.window), 'label': case.label}
  colour = scaled[..., :3] if scaled.shape[-1] >= 3 else np.repeat(scaled[..., :1], 3, axis=-1)
  if found.folder.kind == 'landmarks':
    return {**base, **_landmarks(found, number, colour)}
  return {**base, **_boxes(found, number, colour, counts)}


def _resized(image, size):
  """The image [h, w, c] on `size`, with PIL's bilinear filter, which averages where it shrinks."""
  if image.shape[:2] == tuple(size):
    return image
  resize = lambda plane: Image.fromarray(plane).resize(size[::-1], Image.Resampling.BILINEAR)
  bands = [np.asarray(resize(np.ascontiguousarray(image[..., c]))) for c in range(image.shape[-1])]
  return np.stack(bands, axis=-1)


def _landmarks(found, number, image):
  case, one = found.folder.cases[number], found.surveys[number]
  points, (height, width) = np.array(case.label, np.float64), image.shape[:2]
  outside = ~((points >= 0) & (points <= [width, height])).all(axis=1)
  if outside.any():
    place = int(np.argmax(outside))
    raise errors.UserError(
      f'{case.tables[0]}: {found.classes[place]} of {case.name} at {points[place].tolist()} is '
      f'outside of the {width} x {height} image'
    )
  zoom = np.array(found.window[::-1]) / [width, height]
  size = one.spacing[::-1] if one.spacing else [found.fields['mm_per_pixel'] or 1.0] * 2
  return {
    'image': _resized(image, found.window),
    'landmarks': (points * zoom).astype(np.float32),
    'scale': (np.array(size) / zoom).astype(np.float32),
  }


def _boxes(found, number, image, counts):
  case, (height, width) = found.folder.cases[number], image.shape[:2]
  sides = np.array([width, height] * 2)
  corners = [np.array(box.corners) * (sides if box.fractions else 1) for box in case.label]
  boxes = np.array(corners, np.float64).reshape(-1, 4)
  inside = np.clip(boxes, 0, sides)
  counts['boxes_clipped'] += int((np.abs(inside - boxes) > 1e-6).any(axis=1).sum())
  solid = (inside[:, 2:] > inside[:, :2]).all(axis=1)
  counts['boxes_without_area'] += int((~solid).sum())
  rows, columns = found.window
  letter = boxed.letterbox(
    image, inside[solid], height=rows, width=columns, long_side=max(rows, columns)
  )
  numbers = np.array([box.number for box in case.label], np.int32)[solid]
  made = boxed.example(letter, numbers, max_boxes=max_boxes(found), index=0, name=case.name)
  return {name: made[name] for name in ('image', 'boxes', 'classes', 'mask', 'content')}
