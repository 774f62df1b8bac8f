"""Stored images: within the ball, never worse than rounding, the same bits after save and load."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from robustmed.attacks.stored import lattice
from robustmed.data.files import nifti, pictures

BYTES = lattice.Lattice(0.0, 1 / 255, 0, 255)
HU = lattice.Lattice(np.array([0.5, 0.3]), np.array([1 / 400, -1 / 250]), -1024, 3071)
KINDS = {'bytes': (BYTES, 1), 'HU': (HU, 2)}


def _case(kind, seed=0, shape=(7, 9)):
  made, channels = KINDS[kind]
  rng = np.random.default_rng(seed)
  ends = (0, 256) if kind == 'bytes' else (-200, 200)
  clean = made.image(rng.integers(*ends, (*shape, channels)))
  weight = rng.normal(size=clean.shape)
  return made, clean, weight, rng


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('steps', [0.4, 1.0, 2.5])
def test_images_are_of_the_lattice_and_in_the_ball(kind, norm, steps):
  made, clean, weight, rng = _case(kind)
  size = np.abs(np.asarray(made.step)).max()
  eps = steps * size * (1 if norm == 'linf' else np.sqrt(clean.size) / 3)
  delta = rng.normal(size=clean.shape)
  delta *= eps / (np.abs(delta).max() if norm == 'linf' else np.linalg.norm(delta))
  x = np.clip(clean + delta, 0, 1) if kind == 'bytes' else clean + delta
  score = lambda image: np.sum(np.sin(3 * weight * image))
  slope = lambda image: 3 * weight * np.cos(3 * weight * image)
  more = {'lattice': made, 'eps': eps, 'norm': norm}
  found = lattice.search(score, x, clean, slope=slope, **more)
  np.testing.assert_array_equal(made.image(found.whole), found.image)
  assert found.whole.min() >= made.lowest and found.whole.max() <= made.highest
  change = found.image.astype(np.float64) - clean
  distance = np.abs(change).max() if norm == 'linf' else np.linalg.norm(change)
  assert found.inside and distance <= eps * (1 + 1e-6) + 2e-3 * size
  np.testing.assert_allclose(found.distance, distance, rtol=1e-3, atol=1e-6)
  np.testing.assert_allclose(found.value, score(found.image), rtol=1e-6)
  # each pixel is one of the two numbers beside the attacked one
  assert np.abs(made.place(found.image) - made.place(x)).max() < 1 + 1e-3
  towards = lattice.search(score, x, clean, rounds=0, **more)
  assert found.value >= towards.value
  alone = lattice.search(score, x, clean, **{**more, 'eps': None})
  assert alone.chosen == 'towards the centre'
  between = (made.place(alone.image) - made.place(x)) * (made.place(x) - made.place(clean))
  assert between.max() < 1e-3  # never beyond the attacked image


def test_the_best_of_all_roundings_is_found_for_a_linear_score():
  made, clean, weight, _ = _case('bytes', shape=(2, 4))
  x = clean + 0.5 / 255 * np.where(weight > 0, 0.9, -0.9)  # the nearest numbers undo the attack
  x = np.clip(x, 0, 1)
  score = lambda image: float(np.sum(weight * image))
  more = {'lattice': made, 'eps': 1 / 255}
  found = lattice.search(score, x, clean, slope=lambda image: weight, **more)
  sides = [np.unique([np.floor(v), np.ceil(v)]) for v in made.place(x).ravel()]
  every = [np.reshape(p, x.shape) for p in itertools.product(*sides)]
  np.testing.assert_allclose(found.value, max(score(made.image(p)) for p in every), rtol=1e-6)
  blind = lattice.search(score, x, clean, rounds=60, **more)
  assert blind.value > score(made.image(np.round(made.place(x))))


def test_a_ball_without_a_number_is_named():
  made, clean, weight, _ = _case('bytes')
  between = clean + 0.4 / 255
  found = lattice.search(lambda image: 0.0, between, between, lattice=made, eps=0.1 / 255)
  assert not found.inside
  np.testing.assert_allclose(found.distance, 0.4 / 255, rtol=1e-3)
  assert lattice.search(lambda image: 0.0, between, between, lattice=made, eps=0.5 / 255).inside


def test_pixels_stay_within_bounds_and_region():
  centre = np.full((4, 4, 1), 100 / 255, np.float32)
  region = np.zeros((4, 4, 1))
  region[0, 0] = 1
  darker = lambda image: -float(image.sum())
  within = {'lattice': BYTES, 'eps': 4 / 255, 'bounds': (97.5 / 255, 1.0)}
  x = np.maximum(centre - 3.4 / 255, 97.5 / 255)
  found = lattice.search(darker, x, centre, **within)
  assert (found.whole == 98).all() and found.inside
  x = np.where(region, centre + 2.5 / 255, centre)
  found = lattice.search(lambda image: float(image.sum()), x, centre, region=region, **within)
  assert found.whole[0, 0] == 103 and (found.whole.ravel()[1:] == 100).all() and found.inside
  limited = lattice.search(darker, centre - 3.4 / 255, centre, max_change=2 / 255, **within)
  assert (limited.whole == 98).all() and limited.inside
  # of resized images: between two numbers, so that no file holds the pixels that must stay
  between = centre + 0.4 / 255
  found = lattice.search(darker, between, between, region=region, **within)
  assert (found.whole.ravel()[1:] == 100).all() and not found.inside
  found = lattice.search(darker, centre, centre, **{**within, 'bounds': (0.1 / 255, 0.9 / 255)})
  assert (found.whole == 100).all()  # above the bounds before the attack


def test_a_score_that_is_not_a_number_gives_way_to_one_that_is():
  centre = np.full((4, 4, 1), 100 / 255, np.float32)
  for other in (1.0, -np.inf):
    values = itertools.chain([np.nan] * 4, [other], itertools.repeat(np.nan))
    made = lattice.search(
      lambda image, values=values: next(values),
      centre + 1.5 / 255,
      centre,
      lattice=BYTES,
      eps=2 / 255,
    )
    assert made.value == other and made.chosen.startswith('change')


def test_pixels_that_a_file_lacks_are_what_is_read_back():
  """Padding by zeros, of which the border was attacked too, and by the image's own mirror."""
  inner = np.full((4, 4, 1), 50 / 255, np.float32)
  window, file = ((2, 2), (2, 2), (0, 0)), np.s_[2:6, 2:6]
  for mode in ('constant', 'symmetric'):
    read = lambda image, mode=mode: np.pad(image[file], window, mode=mode)
    made = BYTES._replace(read=read)
    clean = np.pad(inner, window, mode=mode)
    border = lambda image: float(image[:2].sum())
    x = clean + 1.5 / 255
    unknown = lattice.search(border, x, clean, lattice=made, eps=None)
    np.testing.assert_array_equal(unknown.image, np.pad(inner + 1 / 255, window, mode=mode))
    for norm, eps in (('linf', 2 / 255), ('l2', 1.5 / 255 * 8)):
      found = lattice.search(border, x, clean, lattice=made, eps=eps, norm=norm)
      pixels = np.asarray(found.whole)[file]
      again = read(made._replace(read=None).image(np.pad(pixels, window)))
      np.testing.assert_array_equal(found.image, again)
      assert found.value == border(again) and found.inside
      if mode == 'constant':
        assert found.value == 0
      change = np.abs(again - clean)
      distance = change.max() if norm == 'linf' else np.linalg.norm(change)
      np.testing.assert_allclose(found.distance, distance, rtol=1e-4)
      assert distance <= eps * (1 + 1e-5)


def test_nothing_changes_in_a_file(tmp_path):
  """Both formats give back the numbers and, by the arithmetic of the lattice, the image."""
  made, clean, weight, rng = _case('bytes', shape=(6, 8))
  x = np.clip(clean + rng.uniform(-2, 2, clean.shape) / 255, 0, 1)
  found = lattice.search(lambda i: np.sum(weight * i), x, clean, lattice=made, eps=2 / 255)
  path = tmp_path / 'a.png'
  Image.fromarray(found.whole[..., 0].astype(np.uint8)).save(path)
  stored = pictures.read(path)
  np.testing.assert_array_equal(stored, found.whole[..., 0])
  np.testing.assert_array_equal(made.image(stored[..., None].astype(np.int64)), found.image)
  np.testing.assert_array_equal(stored.astype(np.float32) / 255, found.image[..., 0])
  made, clean, weight, rng = _case('HU', shape=(4, 5, 6))
  x = clean + rng.uniform(-2, 2, clean.shape) / 400
  found = lattice.search(lambda i: np.sum(weight * i), x, clean, lattice=made, eps=2 / 400)
  for dtype in (np.int16, np.float32):  # float32, as the package writes volumes
    path = tmp_path / f'{np.dtype(dtype).name}.nii.gz'
    nib.Nifti1Image(found.whole.astype(dtype), np.eye(4)).to_filename(path)
    back = nifti.read(path, axes=4).array
    np.testing.assert_array_equal(back, found.whole)
    np.testing.assert_array_equal(made.image(back.astype(np.int64)), found.image)
