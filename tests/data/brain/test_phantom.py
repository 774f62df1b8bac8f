import numpy as np
import pytest
import scipy.ndimage

from robustmed import data, errors
from robustmed.data.brain import brains, phantom

FIELDS = phantom.DEFAULTS
REGIONS = {'whole': (1, 2, 3), 'core': (1, 3), 'enhancing': (3,)}


def draw(number, **fields):
  return phantom.draw(np.random.default_rng([0, number]), {**FIELDS, **fields})


@pytest.fixture(scope='module')
def cases():
  return [draw(number) for number in range(10)]


def dice(one, two):
  return 2 * (one & two).sum() / max(1, one.sum() + two.sum())


def test_shapes_background_and_range(cases):
  for case in cases:
    assert case.series.shape == (32, 32, 32, 4) and case.series.dtype == np.float32
    assert (case.series[~case.brain] == 0).all() and (case.series[case.brain] > 0).all()
    image = phantom.standardise(case)
    assert (image[~case.brain] == 0).all()
    np.testing.assert_array_equal(image.max(axis=(0, 1, 2)), 1)
    assert image.min() == 0 and image.dtype == np.float32
    assert 0.4 < case.brain.mean() < 0.6
    assert scipy.ndimage.label(case.brain)[1] == 1


def test_tumours_are_nested(cases):
  enhancing = 0
  for case in cases:
    assert set(np.unique(case.labels)) <= {0, 1, 2, 3}
    assert not case.labels[~case.brain].any()
    assert 0.01 < (case.labels > 0).mean() < 0.15
    core = np.isin(case.labels, (1, 3))
    assert 0.05 < core.sum() / (case.labels > 0).sum() < 0.9
    if not (case.labels == 3).any():
      continue
    enhancing += 1
    # necrosis lies inside the rim: nearly nowhere does it meet what is no tumour
    ring = scipy.ndimage.binary_dilation(case.labels == 1) & (case.labels == 0)
    assert ring.sum() < 0.3 * max(40, (case.labels == 1).sum())
  assert enhancing >= 8


def test_share_without_enhancing_tumour():
  assert not any((draw(i, without_enhancing=1, side=16).labels == 3).any() for i in range(4))
  assert all((draw(i, without_enhancing=0, side=16).labels == 3).any() for i in range(20))


def test_same_stream_same_bits_and_same_anatomy_at_every_side():
  np.testing.assert_array_equal(draw(3).series, draw(3).series)
  assert np.abs(draw(3).series - draw(4).series).mean() > 0.1
  small, large = draw(3, side=16), draw(3, side=48)
  for region in REGIONS.values():
    picked = np.isin(large.labels[1::3, 1::3, 1::3], region)
    assert dice(picked, np.isin(small.labels, region)) > 0.95


def test_contrasts_are_those_of_mr(cases):
  t1, t1ce, t2, flair = range(4)
  of = lambda case, series, label: case.series[case.labels == label, series].mean()
  for case in cases:
    healthy = case.series[case.brain & (case.labels == 0)].mean(axis=0)
    assert of(case, t2, 2) > healthy[t2] and of(case, flair, 2) > healthy[flair]
    assert of(case, t1, 2) < healthy[t1]
    if (case.labels == 3).any():
      assert of(case, t1ce, 3) > 1.2 * of(case, t1ce, 2)
      assert of(case, t1ce, 3) > 1.2 * of(case, t1, 3)


def test_no_threshold_finds_a_region_but_all_series_together_do(cases):
  image = np.stack([phantom.standardise(case) for case in cases])
  labels = np.stack([case.labels for case in cases])
  brain = np.stack([case.brain for case in cases])
  near = scipy.ndimage.gaussian_filter(image, (0, 1.5, 1.5, 1.5, 0))
  seen = np.concatenate([image, near, image**2, image * image[..., [1, 2, 3, 0]]], axis=-1)
  seen = np.concatenate([seen, np.ones_like(seen[..., :1])], axis=-1)
  score = lambda guesses, mask: np.mean([dice(g, m) for g, m in zip(guesses, mask)])
  for region in REGIONS.values():
    mask = np.isin(labels, region)
    levels = np.linspace(0.05, 0.95, 19)
    alone = max(score(image[..., c] > level, mask) for c in range(4) for level in levels)
    train, test = slice(0, 7), slice(7, 10)
    weights, *_ = np.linalg.lstsq(seen[train][brain[train]], mask[train][brain[train]] * 1.0)
    together = seen[test] @ weights * brain[test]
    best = max(score(together > level, mask[test]) for level in levels)
    assert alone < 0.75 and best > alone + 0.1


def test_source_has_cubes_or_their_slices(tmp_path):
  config = {'name': 'phantom_brats', 'side': 16, 'train_cases': 2, 'test_cases': 1}
  config['cache_dir'] = str(tmp_path)
  cubes, slices = data.load(config), data.load({**config, 'planes': 'axial'})
  assert cubes.info['sizes'] == {'train': 2, 'test': 1}
  assert (
    slices.info['sizes'] == {'train': 32, 'test': 16} == data.sizes(config | {'planes': 'axial'})
  )
  assert slices.train.groups == (0,) * 16 + (1,) * 16 and slices.test.groups == (2,) * 16
  for split in ('train', 'test'):
    flat = getattr(slices, split)
    order = np.random.default_rng(0).permutation(len(flat))
    stacks = brains.restack(
      flat.stack('image')[order],
      groups=flat.stack('group')[order],
      positions=flat.stack('position')[order],
    )
    for example in getattr(cubes, split):
      np.testing.assert_array_equal(stacks[int(example['group'])], example['image'])
  assert slices.test[3]['name'] == 'phantom0002_003'
  few = data.load({**config, 'planes': 'axial', 'slice_step': 4})
  assert few.info['sizes'] == {'train': 8, 'test': 4}
  assert few.test.stack('position').tolist() == [0, 1, 2, 3]
  np.testing.assert_array_equal(few.test.stack('image'), slices.test.stack('image')[2::4])
  assert few.test[1]['name'] == 'phantom0002_006' and len(set(few.train.stack('index'))) == 8


def test_restack_wants_every_slice_once():
  for positions in ([0, 0], [0, 2], [1, 2]):
    with pytest.raises(ValueError, match='group 5 has the slices'):
      brains.restack(np.zeros((2, 4, 4)), groups=np.full(2, 5), positions=np.array(positions))


BAD = [
  ({'side': 24}, 'side must be a multiple of 16'),
  ({'side': 0}, 'side must be a multiple of 16'),
  ({'side': 32, 'slice_step': 5}, 'slice_step must divide the side 32'),
  ({'planes': 'sagittal'}, "planes 'sagittal'.*axial, volume"),
  ({'train_cases': 0}, 'train_cases must be at least 1'),
  ({'noise': 1.5}, r'noise must lie in \[0, 1\]'),
]


@pytest.mark.parametrize(('fields', 'message'), BAD)
def test_fields_out_of_range(fields, message):
  with pytest.raises(errors.UserError, match=message):
    data.load({'name': 'phantom_brats', **fields})
