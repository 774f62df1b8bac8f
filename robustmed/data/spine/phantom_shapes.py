"""Draws closed contours of lumbar disks from twenty independent shape modes.

Coordinates are fractions of the crop side, centred on the crop, x first, y downwards.
"""

import functools

import numpy as np

PIECES = (24, 64, 24, 64)  # points on the left, bottom, right and top piece
NUM_POINTS = sum(PIECES)
HALF_LENGTH = 0.25
HALF_HEIGHT = 0.095
SPREAD = 0.030  # root mean square displacement of a point from its mean
# Shares of the variance; 3, 5 and 10 of them sum to 70.5, 82.2 and 91.4 per cent.
SHARES = np.array(
  [36.0, 21.0, 13.5, 6.6, 5.1, 2.6, 2.2, 1.8, 1.4, 1.2]
  + [1.08, 1.04, 1.0, 0.96, 0.9, 0.84, 0.78, 0.72, 0.66, 0.62]
)
SHARES = SHARES / SHARES.sum()
LIMIT = 2.5  # mode coefficients are standard normal cut at +-LIMIT


def mean_contour():
  """Returns the mean disk [176, 2]: a rounded box, pieces left, bottom, right, top."""
  angle = np.linspace(0, 2 * np.pi, 4 * 2048, endpoint=False) + 0.75 * np.pi
  # y points down, so a decreasing angle runs along left side, bottom, right side and top
  x, y = np.cos(angle), -np.sin(angle)
  power = 2 / 3.2
  dense = np.stack(
    [
      HALF_LENGTH * np.sign(x) * np.abs(x) ** power,
      HALF_HEIGHT * np.sign(y) * np.abs(y) ** power,
    ],
    axis=-1,
  )
  pieces = []
  for quarter, count in enumerate(PIECES):
    piece = dense[(np.arange(2049) + quarter * 2048) % len(dense)]
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(piece, axis=0).T))])
    at = np.linspace(0, length[-1], count, endpoint=False)
    pieces.append(np.stack([np.interp(at, length, piece[:, k]) for k in (0, 1)], axis=-1))
  return np.concatenate(pieces)


@functools.cache
def modes():
  """Returns (mean [352], orthonormal modes [20, 352], their standard deviations [20])."""
  mean = mean_contour()
  x, y = mean.T
  u, v = x / HALF_LENGTH, y / HALF_HEIGHT
  one, zero = np.ones_like(x), np.zeros_like(x)
  fields = [
    (-y, x),  # tilt
    (x, zero),  # length
    (zero, y),  # height
    (zero, one),  # up and down
    (zero, u * y),  # wedge
    (zero, u**2),  # bend
    (one, zero),  # left and right
    (y, zero),  # shear
    (zero, y * u**2),  # concave or convex endplates
    (x * v**2, zero),  # bulging ends
  ]
  tangent = np.roll(mean, -1, axis=0) - np.roll(mean, 1, axis=0)
  tangent /= np.linalg.norm(tangent, axis=-1, keepdims=True)
  normal = np.stack([tangent[:, 1], -tangent[:, 0]], axis=-1)
  along = 2 * np.pi * np.arange(NUM_POINTS) / NUM_POINTS
  # waves of the outline, and points that slide along it, as in manual annotations
  for direction, orders in ((normal, (3, 4, 5)), (tangent, (1, 2))):
    for order in orders:
      fields.append(tuple((direction * np.cos(order * along)[:, None]).T))
      fields.append(tuple((direction * np.sin(order * along)[:, None]).T))
  matrix = np.stack([np.stack(field, axis=-1).ravel() for field in fields])
  orthonormal = np.linalg.qr(matrix.T)[0].T
  deviation = np.sqrt(SHARES * NUM_POINTS) * SPREAD
  return mean.ravel(), orthonormal, deviation


def draw(rng, count):
  """Returns `count` contours [count, 176, 2] from the numpy generator `rng`."""
  mean, basis, deviation = modes()
  coefficients = np.clip(rng.standard_normal((count, len(deviation))), -LIMIT, LIMIT)
  return (mean + (coefficients * deviation) @ basis).reshape(count, NUM_POINTS, 2)
