import numpy as np
import pytest

from robustmed import data
from robustmed.data import painting
from robustmed.data.decathlon import (
  phantom_heart,
  phantom_hippocampus,
  phantom_organs,
  phantom_prostate,
)

MODULES = {'heart': phantom_heart, 'hippocampus': phantom_hippocampus, 'prostate': phantom_prostate}
SCALE = {'heart': 0.15, 'hippocampus': 0.7, 'prostate': 0.2}


def draw(name, number=0, **fields):
  fields = {**MODULES[name].DEFAULTS, 'scale': SCALE[name], **fields}
  return phantom_organs.case(MODULES[name].ANATOMY, number, fields)


@pytest.mark.parametrize('name', MODULES)
class TestOrgan:
  def test_grid(self, name):
    anatomy, volume = MODULES[name].ANATOMY, draw(name)
    layout = anatomy.layout(np.random.default_rng([0, 0]))
    shape = [max(low, round(n * SCALE[name])) for n, low in zip(layout.shape, (6, 16, 16))]
    assert volume.image.shape == (*shape, len(anatomy.modalities))
    sides = np.array(volume.spacing) * shape
    np.testing.assert_allclose(sides, np.multiply(layout.spacing, layout.shape))
    assert volume.image.dtype == np.float32 and volume.labels.dtype == np.int8
    assert (volume.image >= 0).all() and volume.image.any(axis=(1, 2, 3)).all()
    assert (volume.image > 0).all() == anatomy.filled

  def test_every_class_in_every_case_and_no_two_alike(self, name):
    classes = set(range(len(MODULES[name].ANATOMY.classes)))
    cases = [draw(name, number) for number in range(3)]
    assert all(set(np.unique(case.labels)) == classes for case in cases)
    assert len({round(float((case.labels > 0).mean()), 6) for case in cases}) == 3

  def test_a_case_follows_from_seed_and_number(self, name):
    first, again = draw(name, 1), draw(name, 1, cases=7)
    np.testing.assert_array_equal(first.image, again.image)
    assert (
      not np.array_equal(first.image.shape, draw(name, 1, seed=3).image.shape)
      or (first.image != draw(name, 1, seed=3).image).any()
    )

  def test_brightness_alone_does_not_tell_the_organ(self, name):
    """The best threshold pair on the truth itself finds far less than a network could."""
    volume = draw(name)
    image, target = volume.image[..., 0], volume.labels == 1
    edges = np.quantile(image[image > 0], np.linspace(0, 1, 41))
    best = 0
    for low in range(40):
      for high in range(low + 1, 41):
        found = (image >= edges[low]) & (image <= edges[high])
        best = max(best, 2 * (found & target).sum() / (found.sum() + target.sum()))
    assert best < 0.6

  def test_the_organ_differs_from_what_touches_it(self, name):
    volume = draw(name)
    inside = volume.labels > 0
    around = ~inside & (sum(np.roll(inside, step, axis) for axis in (1, 2) for step in (-2, 2)) > 0)
    image = volume.image[..., 0]
    gap = abs(np.median(image[inside]) - np.median(image[around]))
    assert gap > 0.4 * image[inside].std()


def test_halves_of_the_hippocampus():
  labels = draw('hippocampus').labels
  head, tail = (np.argwhere(labels == label).mean(axis=0) for label in (1, 2))
  assert head[0] < tail[0] and head[1] > tail[1]  # as in the real volumes
  both = ((labels == 1).any(axis=(1, 2)) & (labels == 2).any(axis=(1, 2))).mean()
  assert 0.1 < both < 0.6


def test_transition_zone_lies_in_the_peripheral_zone():
  labels = draw('prostate').labels
  inner = labels == 2
  for axis in (1, 2):
    for step in (-1, 1):
      assert (labels[np.roll(inner, step, axis)] > 0).mean() > 0.9
  outer = np.argwhere(labels == 1).mean(axis=0)
  assert outer[1] > np.argwhere(inner).mean(axis=0)[1]  # behind


def test_published_sizes_and_patches():
  assert {name: module.ANATOMY.cases for name, module in MODULES.items()} == {
    'heart': 20,
    'hippocampus': 260,
    'prostate': 32,
  }
  patches = [module.ANATOMY.patch for module in MODULES.values()]
  assert patches == [(320, 256), (56, 40), (320, 320)]


def test_heart_is_cropped_and_normalised_in_the_mask(tmp_path):
  source = data.load(
    {'name': 'phantom_heart', 'cases': 5, 'scale': 0.06, 'cache_dir': str(tmp_path)}
  )
  fingerprint = source.info['properties']
  assert fingerprint['mask_norm'] and 0.65 < fingerprint['crop_ratio'] < 0.75
  example = source.train[0]
  assert (example['labels'] == -1).any()
  assert (example['image'][example['labels'] == -1] == 0).all()


def test_test_slices_of_large_volumes_are_counted_in_small_ones(monkeypatch):
  config = {'name': 'phantom_prostate', 'cases': 10, 'scale': 0.4}
  exact, depths = data.sizes(config), data.depths(config)
  monkeypatch.setattr(phantom_organs, '_DRAWN_AT_ONCE', 0)
  about = data.sizes(config)
  assert data.depths(config) == depths
  assert about['train'] == exact['train'] and abs(about['test'] - exact['test']) <= 1


def test_shapes_and_paint():
  canvas = painting.Canvas(np.random.default_rng(0), (8, 20, 40), warp=0.0)
  ball = canvas.tube(np.array([[0, 0, 0]]), [0.2])
  assert (ball < 0)[4].sum() == pytest.approx(np.pi * 8**2, rel=0.05)
  assert (ball < 0)[:, 10].sum() == pytest.approx(8 * 16, rel=0.05)
  disk = canvas.ellipsoid((0, 0.1, -0.1), (np.inf, 0.2, 0.1)) < 0
  assert (disk == disk[0]).all() and disk[0].sum() == pytest.approx(np.pi * 4 * 4, rel=0.05)
  image = np.zeros((8, 20, 40), np.float32)
  canvas.paint(image, 3, ball)
  assert image.max() == 3 and image.min() == 0
  assert ((image > 1.5) == (ball < 0)).mean() > 0.999


def test_noise():
  rng = np.random.default_rng(0)
  field = np.stack([painting.smooth_field(rng, (6, 12, 20)) for _ in range(40)])
  assert 0.8 < field.std() < 1.2 and abs(field.mean()) < 0.15
  assert np.abs(np.diff(field, axis=3)).mean() < 0.25
  assert painting.texture(rng, (3, 20, 20), width=1).std() == pytest.approx(1)
