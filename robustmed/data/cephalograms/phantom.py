"""Synthetic twin of the source `ceph`: lateral skulls with 19 landmarks, one image per patient.

The skull is drawn around its landmarks, so each of them is a corner, an end or the middle of a
visible structure. Size, tilt and position of the head, length and advance of the jaw vary by
patient, and every landmark a little; image i of a split is the same whatever the number of images.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.ndimage
from PIL import Image, ImageDraw

from robustmed.data import store, streams
from robustmed.data.cephalograms import points as cephalograms

DEFAULTS = {
  'height': 100,
  'width': 80,
  'seed': 0,
  'train_images': 48,
  'validation_images': 8,
  'test_images': 16,
  'noise': 0.02,  # standard deviation, of the range [0, 1]
}
# An average face in the frame of 1935 x 2400, in the order of cephalograms.LANDMARKS.
_MEAN = np.array(
  [
    (815, 1040),
    (1400, 970),
    (1280, 1220),
    (605, 1220),
    (1400, 1525),
    (1360, 1855),
    (1350, 1985),
    (1295, 2045),
    (1330, 2025),
    (740, 1740),
    (1425, 1695),
    (1445, 1705),
    (1565, 1615),
    (1535, 1815),
    (1505, 1495),
    (1440, 2030),
    (980, 1430),
    (1410, 1445),
    (675, 1325),
  ],
  float,
)
_LOWER_JAW = [5, 6, 7, 8, 10, 13, 15]  # indices of landmarks that move with the chin
_FINE = 4  # painted pixels per pixel
_JITTER = 9.0  # pixels of the frame
_CHIN, _UPPER_FACE = 2050.0, 1450.0  # heights between which the jaw is stretched


sizes = streams.sizes


def groups(fields: Mapping[str, Any]) -> int:
  """Returns the number of images of the test split, each of which is a group."""
  return sizes(fields)['test']


def fingerprint(fields: Mapping[str, Any]) -> Any:
  """Returns all fields, on which the drawn data depend; a value out of range is a `UserError`."""
  cephalograms.check(fields)
  streams.check(fields)
  return {name: fields[name] for name in DEFAULTS}


class PhantomCeph(store.Builder):
  """Draws 'train', 'validation' and 'test', by default 48, 8 and 16 patients of one image."""

  def features(self):
    return cephalograms.features(self.fields)

  def splits(self):
    return streams.splits(self.fields, self._example)

  def _example(self, rng, *, index, name) -> dict[str, Any]:
    points = draw_points(rng)
    shape = self.fields['height'], self.fields['width']
    picture = render(rng, points, shape, noise=self.fields['noise'])
    return cephalograms.example(picture, points, self.fields, index=index, name=name)


def draw_points(rng: np.random.Generator) -> np.ndarray:
  """Draws landmarks [19, 2] of a patient, at least 60 pixels inside the frame of 1935 x 2400."""
  points = _MEAN + _JITTER * rng.standard_normal(_MEAN.shape)
  longer, advance = rng.normal(0, 0.08), rng.normal(0, 35)
  below = np.clip((_MEAN[:, 1] - _UPPER_FACE) / (_CHIN - _UPPER_FACE), 0, None)
  points[:, 1] += longer * (_CHIN - _UPPER_FACE) * below
  points[_LOWER_JAW, 0] += advance
  tilt, size = np.clip(rng.normal(0, 0.05), -0.12, 0.12), np.clip(rng.normal(1, 0.05), 0.88, 1.1)
  middle = _MEAN.mean(axis=0)
  turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
  points = (points - middle) @ turn * size + middle + rng.normal(0, 30, 2)
  return np.clip(points, 60, np.array(cephalograms.FRAME) - 60)


def render(
  rng: np.random.Generator, points: np.ndarray, shape: tuple[int, int], *, noise: float
) -> np.ndarray:
  """Draws the radiograph [h, w], float32 in [0, 1], of a head with these landmarks."""
  canvas = _Canvas(points, shape)
  _soft_tissue(canvas)
  _skull(canvas)
  _neck(canvas, rng)
  _upper_jaw(canvas)
  _lower_jaw(canvas)
  _marks(canvas)
  grid = np.linspace(-1, 1, shape[1])[None] * rng.normal(0, 0.03)
  picture = scipy.ndimage.gaussian_filter(canvas.picture, 0.0035 * shape[0]) + 0.06 + grid
  picture = picture * rng.uniform(0.9, 1.1) + rng.normal(0, noise, shape)
  return np.clip(picture, 0, 1).astype(np.float32)


class _Canvas:
  """Adds shapes to a picture, at points (x, y) of the frame, most of them offsets from a landmark.

  Offsets and lengths are in the face's own frame, which is rotated and scaled by the line from
  porion to nasion, so that structures without a landmark move with those that have one.
  """

  def __init__(self, points, shape):
    self.points = points
    self.picture = np.zeros(shape, np.float32)
    self._zoom = _FINE * np.array(shape[::-1]) / cephalograms.FRAME
    axis, mean = points[1] - points[3], _MEAN[1] - _MEAN[3]
    ratio = complex(*axis) / complex(*mean)
    self.size = abs(ratio)
    self._turn = np.array([[ratio.real, ratio.imag], [-ratio.imag, ratio.real]])

  def at(self, landmark, across=0.0, down=0.0):
    """Returns a landmark (numbered from 1) moved by an offset of the face's frame, (x, y)."""
    return self.points[landmark - 1] + np.array([across, down]) @ self._turn

  def area(self, corners, brightness):
    self._add(brightness, lambda draw, corners: draw.polygon(corners, fill=255), corners)

  def line(self, corners, thickness, brightness):
    """Adds a line through the corners, at least a pixel wide; overlaps with itself count once."""
    width = max(_FINE, round(thickness * self.size * float(self._zoom.mean())))
    self._add(
      brightness,
      lambda draw, corners: draw.line(corners, fill=255, width=width, joint='curve'),
      corners,
    )

  def _add(self, brightness, paint, corners):
    """Adds a shape that is painted on a finer grid, so that its edges are smooth."""
    height, width = self.picture.shape
    fine = Image.new('L', (width * _FINE, height * _FINE))
    paint(ImageDraw.Draw(fine), [tuple(corner * self._zoom) for corner in np.array(corners)])
    self.picture += brightness / 255 * np.asarray(fine.reduce(_FINE), np.float32)

  def arc(self, centre, radii, angles, thickness, brightness):
    """Adds part of an ellipse between two angles in degrees, 0 to the front and 90 downwards."""
    self.line(self.ellipse(centre, radii, angles), thickness, brightness)

  def ellipse(self, centre, radii, angles=(0, 360)):
    angle = np.radians(np.linspace(*angles, 48))
    around = np.stack([radii[0] * np.cos(angle), radii[1] * np.sin(angle)], axis=-1)
    return np.asarray(centre) + around @ self._turn


def _vault(canvas):
  return canvas.at(1, -60, -330)


def _soft_tissue(canvas):
  at = canvas.at
  scalp = canvas.ellipse(_vault(canvas), (790, 620), (150, 350))
  face = [
    at(2, 70, -40),
    at(2, 60, 20),
    at(15, 110, -140),  # the tip of the nose
    at(15, 90, -50),
    at(15),
    at(13),
    at(13, -35, 60),
    at(14),
    at(14, -55, 70),
    at(16),
    at(8, 20, 60),
    at(8, -250, 70),
  ]
  canvas.area([*scalp, *face, at(10, 60, 700), at(10, -560, 700)], 0.2)


def _skull(canvas):
  at = canvas.at
  canvas.area(canvas.ellipse(_vault(canvas), (720, 560)), 0.1)
  canvas.arc(_vault(canvas), (720, 560), (140, 352), 55, 0.3)
  canvas.line([at(2, 0, -240), at(2, -15, -80), at(2)], 40, 0.3)  # the forehead down to the nasion
  canvas.line([at(2), at(2, 65, 120)], 30, 0.35)  # the nasal bone
  canvas.line([at(2), at(1, 130, -40), at(1, 60, -60)], 24, 0.25)  # the floor of the vault
  canvas.line([at(1, -60, 20), at(1, -150, 190), at(19, 60, 10)], 30, 0.25)  # the clivus
  canvas.arc(canvas.at(1), (58, 52), (0, 180), 26, 0.45)  # the Turkish saddle
  canvas.arc(canvas.at(3, 10, -130), (125, 130), (60, 250), 24, 0.35)  # the eye socket


def _neck(canvas, rng):
  for level in range(4):
    middle = canvas.at(19, -90 - 25 * level, 230 + 170 * level)
    half = np.array([95, 55]) * rng.uniform(0.9, 1.1)
    canvas.area(canvas.ellipse(middle, half), 0.25)


def _upper_jaw(canvas):
  at = canvas.at
  canvas.area([at(17), at(18), at(5), at(12, -30, -60), at(17, 110, 170)], 0.2)
  canvas.line([at(17), at(18)], 28, 0.35)  # the palate
  canvas.line([at(18), at(5)], 20, 0.25)
  canvas.line([at(5, -70, 10), at(12, -20, -40), at(12)], 34, 0.45)  # the upper incisor
  for tooth in range(3):
    canvas.line([at(12, -150 - 95 * tooth, -90), at(12, -150 - 95 * tooth, -10)], 62, 0.3)


def _lower_jaw(canvas):
  at = canvas.at
  outline = [
    at(19),
    at(10),
    at(8, -300, -70),
    at(8),
    at(9),
    at(7),
    at(6),
    at(11, -60, 120),
    at(11, -400, 60),
    at(19, 270, 30),
    at(19, 150, 60),
  ]
  canvas.area(outline, 0.22)
  canvas.line([at(19), at(10), at(8, -300, -70), at(8), at(9), at(7), at(6)], 30, 0.3)
  canvas.line([at(6, -70, -20), at(11, -25, 45), at(11)], 30, 0.4)  # the lower incisor
  for tooth in range(3):
    canvas.line([at(11, -150 - 95 * tooth, 20), at(11, -150 - 95 * tooth, 90)], 62, 0.3)


def _marks(canvas):
  at = canvas.at
  canvas.arc(at(4, 0, 45), (40, 45), (0, 360), 22, 0.4)  # the ear canal, porion on its top
  canvas.line([at(15, 15, -70), at(15), at(13, -25, -25)], 16, 0.12)
  canvas.line([at(19, -50, -70), at(19)], 22, 0.25)  # the base of the skull meets the ramus


Builder = PhantomCeph
