"""Small folders of the BCCD source: drawn pictures and Pascal VOC files."""

import numpy as np
from PIL import Image

_OBJECT = """
  <object><name>{}</name><bndbox>
    <xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>
  </bndbox></object>"""
NAME = 'BloodImage_{:05d}'


def write(folder, number, objects, *, shape=(60, 80), size=None, image=None, head=''):
  """One image with its annotation; objects: (name, x1, y1, x2, y2). Returns the XML's path."""
  rng = np.random.default_rng(number)
  image = rng.integers(0, 255, (*shape, 3), np.uint8) if image is None else image
  height, width = size or image.shape[:2]
  for part in ('Annotations', 'JPEGImages'):
    (folder / part).mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(folder / 'JPEGImages' / f'{NAME.format(number)}.jpg', quality=95)
  path = folder / 'Annotations' / f'{NAME.format(number)}.xml'
  text = ''.join(_OBJECT.format(*row) for row in objects)
  path.write_text(
    f'{head}<annotation><size><width>{width}</width><height>{height}</height></size>'
    f'{text}</annotation>'
  )
  return path


def fill(folder, *, images=10, **options):
  for number in range(images):
    cell = (5 + number, 10, 25 + number, 30)
    write(folder, number, [('RBC', *cell), ('WBC', 30, 30, 60, 55)], **options)
  return folder
