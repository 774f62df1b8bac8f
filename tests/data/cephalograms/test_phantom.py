import numpy as np
import pytest

from robustmed import errors
from robustmed.data.cephalograms import phantom
from robustmed.data.cephalograms import points as cephalograms

INDEX = {name: number for number, name in enumerate(cephalograms.LANDMARKS)}


def faces(count):
  return np.stack([phantom.draw_points(np.random.default_rng(seed)) for seed in range(count)])


def test_landmarks_are_in_anatomical_order_in_every_patient():
  points = faces(100)
  x = {name: points[:, n, 0] for name, n in INDEX.items()}
  y = {name: points[:, n, 1] for name, n in INDEX.items()}
  for upper, lower in (
    ('nasion', 'orbitale'),
    ('orbitale', 'anterior nasal spine'),
    ('anterior nasal spine', 'subspinale'),
    ('subspinale', 'upper incisor'),
    ('lower incisor', 'supramentale'),
    ('supramentale', 'pogonion'),
    ('pogonion', 'menton'),
    ('porion', 'articulare'),
    ('articulare', 'gonion'),
    ('subnasale', 'upper lip'),
    ('upper lip', 'lower lip'),
  ):
    assert (y[upper] < y[lower]).all(), (upper, lower)
  for back, front in (
    ('porion', 'sella'),
    ('sella', 'orbitale'),
    ('orbitale', 'nasion'),
    ('posterior nasal spine', 'anterior nasal spine'),
    ('gonion', 'menton'),
    ('menton', 'pogonion'),
    ('subspinale', 'subnasale'),
    ('upper incisor', 'upper lip'),
    ('pogonion', 'soft tissue pogonion'),
  ):
    assert (x[back] < x[front]).all(), (back, front)


def test_patients_differ_in_more_than_place_and_size():
  points = faces(60)
  assert (points > 0).all() and (points < cephalograms.FRAME).all()
  centred = points - points.mean(axis=1, keepdims=True)
  centred /= np.linalg.norm(centred, axis=(1, 2), keepdims=True)
  spread = np.linalg.svd((centred - centred.mean(0)).reshape(60, -1), compute_uv=False)
  assert (spread[:5] > 0.05 * spread[0]).all() and spread[0] > 0.1
  deviation = points.std(axis=0)
  assert (deviation > 20).all() and (deviation < 160).all()


def test_structures_move_with_their_landmarks():
  """Where a landmark was and where it went is where the image changes."""
  shape = (200, 160)
  zoom = np.array(shape[::-1]) / cephalograms.FRAME
  for name, shift in (('porion', (60, -50)), ('gonion', (-70, 60)), ('upper incisor', (50, 20))):
    points = phantom._MEAN.copy()
    images = []
    for _ in range(2):
      images.append(phantom.render(np.random.default_rng(0), points, shape, noise=0.0))
      points = points.copy()
      points[INDEX[name]] += shift
    change = np.abs(images[1] - images[0])
    rows, columns = np.nonzero(change > 0.08)
    old, new = phantom._MEAN[INDEX[name]] * zoom, (phantom._MEAN[INDEX[name]] + shift) * zoom
    assert np.hypot(columns + 0.5 - new[0], rows + 0.5 - new[1]).min() < 3
    assert np.hypot(columns + 0.5 - old[0], rows + 0.5 - old[1]).min() < 3


def test_the_head_is_brighter_than_the_air_and_landmarks_lie_on_it():
  for seed in range(3):
    rng = np.random.default_rng(seed)
    points = phantom.draw_points(rng)
    image = phantom.render(rng, points, (100, 80), noise=0.01)
    assert image.dtype == np.float32 and image.min() >= 0 and image.max() <= 1
    x, y = (points * [80 / 1935, 100 / 2400]).astype(int).T
    air = image[:20, -8:].mean()
    bone = [n for name, n in INDEX.items() if 'lip' not in name and 'soft' not in name]
    assert (image[y, x][bone] > air + 0.03).all()
    assert image[y, x].mean() > air + 0.2


def test_an_image_depends_on_its_number_alone(tmp_path):
  make = lambda **fields: phantom.Builder(
    fields={**phantom.DEFAULTS, **fields}, data_dir=str(tmp_path / str(len(fields)))
  )
  few, more = make(train_images=2), make(train_images=3, test_images=2)
  few, more = few.splits(), more.splits()
  first, second = list(more['train'])[:2]
  for one, two in zip(few['train'], (first, second)):
    np.testing.assert_array_equal(one['image'], two['image'])
    np.testing.assert_array_equal(one['landmarks'], two['landmarks'])
  other = next(iter(more['test']))
  assert (first['image'] != second['image']).any() and (first['image'] != other['image']).any()
  assert other['index'] == 3 + 8
  np.testing.assert_allclose(first['scale'], [193.5 / 80, 240 / 100], rtol=1e-6)


@pytest.mark.parametrize('change', [{'train_images': 0}, {'noise': 2.0}, {'height': 9}])
def test_bad_fields(change):
  with pytest.raises(errors.UserError, match=f'data field {next(iter(change))}'):
    phantom.fingerprint({**phantom.DEFAULTS, **change})
