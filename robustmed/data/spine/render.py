"""Renders T2-like sagittal crops around given disk contours, several at a time.

Lengths are fractions of the crop side. Intensities are in [0, 1] units before the final
per-image normalisation.
"""

from typing import NamedTuple

import numpy as np

FAR = 0.04  # nothing that is painted by its distance from the disk extends further


class Patient(NamedTuple):
  """What the crops of one patient share."""

  bone: float  # marrow
  csf: float
  fat: float
  muscle: float
  vertebra: float  # height of a vertebral body
  canal: float  # width of the canal
  slope: float  # spectral slope of the textures
  bias: np.ndarray  # [5] coefficients of the receive field
  seed: int  # of the textures


def draw_patient(rng):
  """Returns a `Patient` from the numpy generator `rng`."""
  return Patient(
    bone=rng.uniform(0.34, 0.46),
    csf=rng.uniform(0.78, 0.95),
    fat=rng.uniform(0.5, 0.7),
    muscle=rng.uniform(0.16, 0.28),
    vertebra=rng.uniform(0.34, 0.42),
    canal=rng.uniform(0.10, 0.15),
    slope=rng.uniform(1.1, 1.6),
    bias=rng.normal(scale=[0.14, 0.14, 0.08, 0.08, 0.08]),
    seed=int(rng.integers(2**31)),
  )


def _field(rng, count, side, *, slope, low=1.0, high=0.4):
  """Returns random fields [count, side, side] of zero mean, unit variance, amplitude 1/f^slope.

  `low` is the lowest frequency in cycles per crop, `high` the highest in cycles per pixel of 128.
  """
  fy = np.fft.fftfreq(side)[:, None] * side
  fx = np.fft.rfftfreq(side)[None] * side
  radius = np.hypot(fy, fx)
  gain = np.where(radius < low, 0.0, np.maximum(radius, low) ** -slope)
  gain = gain * np.exp(-((radius / (high * 128)) ** 4))
  spectrum = np.fft.rfft2(rng.standard_normal((count, side, side), np.float32))
  field = np.fft.irfft2(spectrum * gain.astype(np.float32), s=(side, side))
  return field / field.std(axis=(1, 2), keepdims=True)


def _inside(distance, width):
  """Returns a soft indicator of distance < 0 with a ramp of the given width."""
  return np.clip(0.5 - distance / width, 0.0, 1.0)


def _boundary_distance(contour, x, y):
  """Returns signed distances [n, side, side], negative inside, of the points x, y [n, side, side].

  contour: [n, p, 2], closed, left side first and then the bottom. Distances are exact to second
  order in the spacing of its points, and `FAR` beyond that distance from its bounding box.
  """
  ahead = np.roll(contour, -1, axis=1) - np.roll(contour, 1, axis=1)
  ahead /= np.linalg.norm(ahead, axis=-1, keepdims=True)
  normal = np.stack([-ahead[..., 1], ahead[..., 0]], axis=-1)
  spacing = np.linalg.norm(np.diff(contour, axis=1), axis=-1).max()
  out = np.full_like(x, FAR)
  place = np.stack([x, y], axis=-1)
  low, high = contour.min(axis=1) - FAR, contour.max(axis=1) + FAR
  near = ((place >= low[:, None, None]) & (place <= high[:, None, None])).all(axis=-1)
  for i, points in enumerate(contour):
    box = place[i][near[i]]
    square = (points**2).sum(axis=-1)[None] - 2 * box @ points.T
    nearest = square.argmin(axis=-1)
    away = box - points[nearest]
    height = (away * normal[i][nearest]).sum(axis=-1)
    length = np.hypot(away[..., 0], away[..., 1])
    out[i][near[i]] = np.where(length < 2 * spacing, height, np.sign(height) * length)
  return out


def render(contour, patient, rng, *, side, contrast, noise):
  """Returns images [n, side, side] in [0, 1].

  contour: [n, 176, 2], fractions of the side about the crop centre; patient: a `Patient`;
  contrast: nucleus above marrow, rim and endplates below it in proportion; noise: standard
  deviation of the two channels of the noise.
  """
  count = len(contour)
  pixel = 1 / side
  edge = 1.2 * max(pixel, 1 / 128)  # the partial volume of an edge
  contour = contour.astype(np.float32)
  line = ((np.arange(side) - (side - 1) / 2) * pixel).astype(np.float32)
  centre = contour.mean(axis=1)
  x = np.broadcast_to(line[None, None, :], (count, side, side)) - centre[:, 0, None, None]
  y = np.broadcast_to(line[None, :, None], (count, side, side)) - centre[:, 1, None, None]

  right = contour[:, 88:112].mean(axis=1) - contour[:, :24].mean(axis=1)
  length = np.hypot(*right.T)[:, None, None] / 2
  cos, sin = (right / np.hypot(*right.T)[:, None]).T[:, :, None, None]
  u, v = cos * x + sin * y, cos * y - sin * x
  to_disk = _boundary_distance(contour - centre[:, None], x, y)

  shared = np.random.default_rng(patient.seed)
  texture = _field(shared, 3, side, slope=patient.slope, low=2.0)
  fine = _field(shared, 1, side, slope=0.5, low=6.0)
  shift = rng.integers(side, size=(count, 2))
  texture = np.stack([np.roll(texture, s, axis=(1, 2)) for s in shift])
  fine = np.stack([np.roll(fine[0], s, axis=(0, 1)) for s in shift])
  wave = _field(rng, count, side, slope=2.5, high=0.06)

  def vary(low, high):
    return rng.uniform(low, high, size=(count, 1, 1)).astype(np.float32)

  # the column of vertebrae: bodies with a waist, leaning with the lordosis
  lean = vary(-0.12, 0.12)
  along = np.abs(v) - 0.09
  reach = np.clip(along / patient.vertebra, 0, 1)
  waist = length * (0.99 - 0.26 * reach * (1 - reach)) + 0.004 * wave
  across = u - lean * np.abs(v) * np.sign(v)
  to_column = np.abs(across) - waist

  # in front: fat with a dark vessel; behind: canal, then ligament, fat and muscle
  front = patient.fat * 0.72 + 0.09 * texture[:, 0] + 0.03 * fine
  vessel = np.abs(across + length + vary(0.08, 0.16) + 0.012 * wave) - vary(0.02, 0.05)
  front = front + (0.08 - front) * _inside(vessel, 3 * edge)
  behind = patient.muscle + 0.08 * texture[:, 1] + 0.03 * fine
  fat = _inside(0.3 - wave - 0.5 * texture[:, 2], 2.0)
  behind = behind + (patient.fat + 0.06 * texture[:, 0] - behind) * fat
  depth = across - waist - 0.012
  canal = patient.csf + 0.03 * texture[:, 1]
  knots = np.linspace(-1, 2, 40)
  roots = np.clip(rng.normal(scale=0.6, size=(count, len(knots))), 0, 1)
  place = depth / patient.canal + 0.1 * wave
  root = np.stack(
    [np.interp(p, knots, profile) for p, profile in zip(place, roots)], dtype=np.float32
  )
  canal = canal - 0.45 * root * _inside(0.35 * patient.canal - depth, 4 * edge)
  width = patient.canal * (1 + 0.08 * wave)
  behind = behind + (0.1 - behind) * _inside(np.abs(depth - width - 0.008) - 0.008, edge)
  behind = behind + (canal - behind) * _inside(depth - width, 2 * edge)
  behind = behind + (0.08 - behind) * _inside(np.abs(depth + 0.004) - 0.007, edge)
  image = front + (behind - front) * _inside(-across, edge)

  bone = patient.bone + vary(-0.03, 0.03) + 0.045 * texture[:, 2] + 0.025 * fine
  vein = np.hypot((across - 0.75 * waist) / 0.07, (along - patient.vertebra / 2) / 0.02)
  bone = bone + vary(-0.02, 0.14) * _inside(vein - 1, 1.0)
  image = image + (0.1 - image) * _inside(to_column - 0.008, edge)
  image = image + (bone - image) * _inside(to_column + 0.006, edge)

  # parts of the neighbouring disks at the top and at the bottom
  grade = rng.uniform(0.75, 1.25, size=(count, 3, 1, 1)).astype(np.float32)
  beyond = along - patient.vertebra
  beside = np.maximum(-beyond, to_column + 0.004)
  next_grade = np.where(v < 0, grade[:, 1], grade[:, 2])
  core = _inside((np.hypot(across / (0.72 * length), (beyond - 0.08) / 0.07) - 1) * 0.07, 0.05)
  next_disk = patient.bone + contrast * (next_grade * core - 0.75 * (1 - core))
  image = image + (0.08 - image) * _inside(beside - 0.012, edge)
  image = image + (next_disk - image) * _inside(beside, edge)

  # the disk: dark endplates and annulus, a bright nucleus with a cleft
  endplate = max(patient.bone - 1.1 * contrast, 0.05)
  image = image + (endplate - image) * _inside(to_disk - 0.011, edge)
  nucleus = _inside(np.maximum(to_disk + 0.028, np.abs(u) - 0.78 * length), 0.045)
  cleft = _inside(np.hypot(u / (0.5 * length), (v + 0.004 * wave) / 0.008) - 1, 1.0)
  level = grade[:, 0] * (nucleus - 0.35 * cleft * vary(0.2, 1.0)) - 0.7 * (1 - nucleus)
  disk = patient.bone + contrast * level + 0.03 * texture[:, 1] + 0.02 * fine
  image = image + (disk - image) * _inside(to_disk, edge)

  px, py = line[None, :], line[:, None]
  terms = np.stack(np.broadcast_arrays(px * 2, py * 2, 4 * px * py, 4 * px**2, 4 * py**2))
  bias = np.exp(np.tensordot(patient.bias.astype(np.float32), terms, axes=1))
  image = np.maximum(image, 0.02) * bias[None]
  one, two = np.float32(noise) * rng.standard_normal((2, *image.shape), np.float32)
  image = np.hypot(image + one, two)  # magnitude images carry Rician noise
  low = image.min(axis=(1, 2), keepdims=True)
  high = image.max(axis=(1, 2), keepdims=True)
  return (image - low) / (high - low)
