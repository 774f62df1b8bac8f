"""Draws axial slices like chest CT in [0, 1], as out-of-distribution images for the disk networks.

Grey values mimic a lung window: air outside and in the trachea black, lungs dark with bright
branching vessels, soft tissue light, bone white. Lengths are fractions of the side.
"""

import numpy as np
import scipy.ndimage

_LUNG, _TISSUE, _FAT, _MUSCLE, _BONE = 0.22, 0.72, 0.58, 0.7, 1.0
_FINE = 128  # pixels at least


def draw(rng: np.random.Generator, *, side: int) -> np.ndarray:
  """Returns one slice [side, side] in [0, 1], drawn from the numpy generator `rng`.

  Below 128 pixels a finer slice is drawn and averaged, since ribs are thinner than a pixel.
  """
  times = -(-_FINE // side)
  fine = _draw(rng, times * side)
  return fine.reshape(side, times, side, times).mean(axis=(1, 3))


def _draw(rng, side):
  line = (np.arange(side) + 0.5) / side - 0.5
  x, y = np.meshgrid(line, line)
  edge = 1.5 / side
  wobble = _smooth_noise(rng, side, width=0.12)
  fine = _smooth_noise(rng, side, width=0.008)

  def inside(distance, width=edge):
    return np.clip(0.5 - distance / width, 0, 1)

  def ellipse(cx, cy, rx, ry, power=2.0):
    """Returns the approximate signed distance to a superellipse."""
    radius = (np.abs((x - cx) / rx) ** power + np.abs((y - cy) / ry) ** power) ** (1 / power)
    return (radius - 1) * min(rx, ry)

  def paint(image, value, weight):
    return image + (value - image) * weight

  wide, deep = rng.uniform(0.46, 0.49), rng.uniform(0.39, 0.43)
  body = ellipse(0, 0.01, wide, deep, 2.6) + 0.006 * wobble
  image = paint(np.zeros((side, side)), _FAT + 0.02 * fine, inside(body))
  image = paint(image, _MUSCLE + 0.025 * fine, inside(body + rng.uniform(0.025, 0.04)))

  cage = ellipse(0, 0.005, wide - 0.085, deep - 0.075, 2.4) + 0.005 * wobble
  image = paint(image, _TISSUE + 0.02 * fine, inside(cage - 0.01))
  lungs = np.full((side, side), np.inf)
  for sign in (-1, 1):
    gap = rng.uniform(0.055, 0.075) + (0.02 if sign > 0 else 0.0)  # the heart leans to one side
    middle = gap + 0.05 * np.exp(-(((y + 0.05) / 0.12) ** 2)) + 0.006 * wobble
    middle = middle + 0.10 * np.clip(-(y + 0.12) / 0.2, 0, 1)
    lungs = np.minimum(lungs, np.maximum(cage + 0.02, middle - sign * x))
  lung = inside(lungs, 2 * edge)
  parenchyma = _LUNG + 0.03 * wobble + 0.02 * fine
  image = paint(image, parenchyma + _vessels(rng, x, y, side), lung)

  # the mediastinum: trachea, aorta and other large vessels
  image = paint(image, 0.03, inside(ellipse(rng.normal(0, 0.006), -0.09, 0.036, 0.042)))
  for cx, cy, radius in ((0.045, 0.06, 0.04), (-0.04, -0.15, 0.032), (0.04, -0.17, 0.028)):
    cx, cy = cx + rng.normal(0, 0.005), cy + rng.normal(0, 0.005)
    image = paint(image, _TISSUE + 0.1, inside(ellipse(cx, cy, radius, radius), 3 * edge))

  # bone: vertebra with its canal and spine, ribs along the cage, sternum
  back = deep - 0.145
  image = paint(image, _BONE - 0.06 + 0.05 * fine, inside(ellipse(0, back, 0.065, 0.05, 2.5)))
  process = np.maximum(np.abs(x) - 0.014, np.abs(y - back - 0.11) - 0.035)
  image = paint(image, _BONE, inside(process, 2 * edge))
  for sign in (-1, 1):
    image = paint(image, _BONE, inside(ellipse(sign * 0.075, back + 0.055, 0.05, 0.014), 2 * edge))
  image = paint(image, _TISSUE, inside(ellipse(0, back + 0.062, 0.024, 0.02)))
  image = paint(image, _BONE - 0.04, inside(ellipse(0, 0.075 - deep, 0.045, 0.014), 2 * edge))
  angle = np.arctan2(y / deep, x / wide)
  first, step = rng.uniform(0, 0.5), rng.uniform(0.62, 0.74)
  for centre in np.arange(-np.pi + first, np.pi, step):
    if abs(np.cos(centre)) < 0.3:  # front and back belong to sternum and spine
      continue
    along = np.abs(np.angle(np.exp(1j * (angle - centre)))) * wide
    rib = np.hypot(along / 0.085, (cage - 0.014) / 0.014) - 1
    image = paint(image, _BONE, inside(0.03 * rib, edge))
    image = paint(image, _BONE - 0.14, inside(0.03 * rib + 0.012, edge))
  image = scipy.ndimage.gaussian_filter(image, 0.4) + rng.normal(0, 0.012, image.shape)
  return np.clip(image, 0, 1)


def _smooth_noise(rng, side, *, width):
  """Returns a random field [side, side], standardised, smooth over a share `width` of the side."""
  field = scipy.ndimage.gaussian_filter(rng.standard_normal((side, side)), max(width * side, 0.7))
  return (field - field.mean()) / field.std()


def _vessels(rng, x, y, side):
  """Returns bright branching lines [side, side] from the hila outwards, thinner at every fork."""
  out = np.zeros((side, side))
  tips = []
  for sign in (-1, 1):
    for direction in rng.uniform(-1.3, 1.3, size=4):
      start = np.array([sign * 0.10, 0.0])
      heading = np.arctan2(np.sin(direction), sign * np.cos(direction))
      tips.append((start, heading + rng.normal(0, 0.2), 0.0065, 3))
  while tips:
    start, heading, width, forks = tips.pop()
    length = rng.uniform(0.04, 0.11)
    end = start + length * np.array([np.cos(heading), np.sin(heading)])
    along = np.clip(
      ((x - start[0]) * (end - start)[0] + (y - start[1]) * (end - start)[1]) / length**2, 0, 1
    )
    away = np.hypot(
      x - start[0] - along * (end - start)[0], y - start[1] - along * (end - start)[1]
    )
    out = np.maximum(
      out, 0.42 * np.clip((width - away) * side / 1.5 + 0.5, 0, 1) * min(1.0, 2 * width * side)
    )
    if forks and rng.uniform() < 0.8:
      turn = rng.uniform(0.3, 0.6)
      for side_turn in (turn, -rng.uniform(0.1, 0.5)):
        tips.append((end, heading + side_turn, 0.72 * width, forks - 1))
  for _ in range(60):  # vessels that run through the slice
    cx, cy, radius = rng.uniform(-0.4, 0.4), rng.uniform(-0.35, 0.35), rng.uniform(0.002, 0.006)
    dot = np.clip((radius - np.hypot(x - cx, y - cy)) * side / 1.5 + 0.5, 0, 1)
    out = np.maximum(out, rng.uniform(0.2, 0.5) * dot)
  return out
