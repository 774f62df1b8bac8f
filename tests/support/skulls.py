"""Small folders of the cephalogram source in both layouts."""

import csv

import numpy as np
from PIL import Image

SHAPE = (60, 48)  # rows and columns; the shape of 2400 x 1935 within a percent


def points(number, reader=0):
  rng = np.random.default_rng([number, 7])
  return rng.integers(300, 1800, (19, 2)) + 3 * reader


def part(number):
  return 'TrainingData' if number <= 150 else 'Test1Data' if number <= 300 else 'Test2Data'


def save_image(path, number, *, shape=SHAPE):
  path.parent.mkdir(parents=True, exist_ok=True)
  grey = np.random.default_rng(number).integers(0, 255, shape, np.uint8)
  Image.fromarray(grey).save(path)
  return grey


def save_text(path, rows, *, tail=('1', '2', '1')):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('\n'.join([*(f'{x},{y}' for x, y in rows), *tail]))


def challenge(folder, numbers, *, suffix='.bmp', nested=True, shape=SHAPE):
  """The layout of the challenge; senior and junior differ by 3 pixels in x and y."""
  notes = folder / 'AnnotationsByMD' if nested else folder
  for number in numbers:
    save_image(folder / 'RawImage' / part(number) / f'{number:03d}{suffix}', number, shape=shape)
    for reader, name in enumerate(('senior', 'junior')):
      save_text(notes / f'400_{name}' / f'{number:03d}.txt', points(number, reader))
  return folder


def kaggle(folder, numbers):
  folder.mkdir(parents=True, exist_ok=True)
  head = ['image_path', *(f'{n}_{axis}' for n in range(1, 20) for axis in 'xy')]
  for name in ('train', 'test1', 'test2'):
    with (folder / f'{name}_senior.csv').open('w', newline='') as file:
      writer = csv.writer(file)
      writer.writerow(head)
      for number in numbers:
        if {'TrainingData': 'train', 'Test1Data': 'test1'}.get(part(number), 'test2') == name:
          writer.writerow([f'{number:03d}.png', *points(number).ravel()])
  for number in numbers:
    save_image(folder / 'cepha400' / f'{number:03d}.png', number)
  return folder
