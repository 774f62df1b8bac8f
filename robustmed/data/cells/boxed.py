"""What all sources of images with boxes share: coordinates, features, the letterbox.

Boxes are (x1, y1, x2, y2) in pixels of the stored image, measured from its upper left corner, so a
box around the whole of a w x h image is (0, 0, w, h).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from robustmed import errors

GREY = 114 / 255  # the border of a letterbox, as in YOLOv5
SIZE_FIELDS = {
  'height': 256,  # of the stored image
  'width': 352,
  'long_side': 320,  # of the picture inside it
  'max_boxes': 32,  # of one image; unused rows are padding
}


class Letterbox(NamedTuple):
  image: np.ndarray  # [height, width, 3] float32
  boxes: np.ndarray  # [n, 4]
  content: np.ndarray  # [4], the box that the picture fills; the border around it is grey


def check(fields: Mapping[str, Any]) -> None:
  """Raises a `UserError` for a size that is out of range."""
  for name in SIZE_FIELDS:
    low = 1 if name == 'max_boxes' else 16
    if fields[name] < low:
      raise errors.UserError(f'data field {name} must be at least {low}, not {fields[name]}')
  if fields['long_side'] > max(fields['height'], fields['width']):
    raise errors.UserError(
      f'data field long_side {fields["long_side"]} is larger than the image of '
      f'{fields["width"]} x {fields["height"]} pixels'
    )


def features(fields: Mapping[str, Any]) -> tfds.features.FeaturesDict:
  """Returns the features of a colour image with at most `max_boxes` boxes; mask False = padding."""
  most = fields['max_boxes']
  shape = (fields['height'], fields['width'], 3)
  return tfds.features.FeaturesDict(
    {
      'image': tfds.features.Tensor(shape=shape, dtype=np.float32),
      'boxes': tfds.features.Tensor(shape=(most, 4), dtype=np.float32),
      'classes': tfds.features.Tensor(shape=(most,), dtype=np.int32),
      'mask': tfds.features.Tensor(shape=(most,), dtype=np.bool_),
      'content': tfds.features.Tensor(shape=(4,), dtype=np.float32),
      'group': tfds.features.Scalar(dtype=np.int32),
      'index': tfds.features.Scalar(dtype=np.int32),
      'name': tfds.features.Text(),
    }
  )


def letterbox(
  picture: np.ndarray, boxes: np.ndarray, *, height: int, width: int, long_side: int
) -> Letterbox:
  """Resizes a picture [h, w, 3] in [0, 1] at its aspect ratio and centres it on a grey image.

  Its longer side becomes `long_side`, or what fits. Shrinking averages (PIL's bilinear filter).
  """
  rows, columns = picture.shape[:2]
  scale = min(long_side / max(rows, columns), height / rows, width / columns)
  inner = max(1, round(rows * scale)), max(1, round(columns * scale))
  if inner != (rows, columns):
    bands = [
      Image.fromarray(picture[..., band].astype(np.float32)).resize(
        inner[::-1], Image.Resampling.BILINEAR
      )
      for band in range(3)
    ]
    picture = np.stack([np.asarray(band) for band in bands], axis=-1)
  top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
  image = np.full((height, width, 3), GREY, np.float32)
  image[top : top + inner[0], left : left + inner[1]] = np.clip(picture, 0, 1)
  zoom = np.array([inner[1] / columns, inner[0] / rows] * 2)
  shift = np.array([left, top] * 2)
  content = np.array([0, 0, inner[1], inner[0]]) + shift
  return Letterbox(image, np.asarray(boxes, np.float64).reshape(-1, 4) * zoom + shift, content)


def example(
  boxed: Letterbox, classes: np.ndarray, *, max_boxes: int, index: int, name: str
) -> dict[str, Any]:
  """Returns one example; every image is its own group. Too many boxes are a `UserError`."""
  count = len(boxed.boxes)
  if count > max_boxes:
    raise errors.UserError(
      f'{name}: has {count} boxes; set the data field max_boxes (now {max_boxes}) to that or more'
    )
  boxes, labels = np.zeros((max_boxes, 4), np.float32), np.zeros(max_boxes, np.int32)
  boxes[:count], labels[:count] = boxed.boxes, classes
  return {
    'image': boxed.image,
    'boxes': boxes,
    'classes': labels,
    'mask': np.arange(max_boxes) < count,
    'content': boxed.content.astype(np.float32),
    'group': index,
    'index': index,
    'name': name,
  }
