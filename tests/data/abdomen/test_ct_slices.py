import json

import numpy as np
import pytest

from robustmed import data, errors
from robustmed.data.abdomen import ct_slices
from robustmed.data.decathlon import preprocess

FIELDS = {**ct_slices.FIELDS, 'side': 16, 'spacing': 1.0, 'window': (-100.0, 100.0)}


def case(image, labels=None, spacing=(3.0, 1.0, 1.0)):
  image = np.asarray(image, np.float32)[..., None]
  labels = np.zeros(image.shape[:3], np.int8) if labels is None else labels
  return ct_slices.Case('a', len(image), lambda: preprocess.Volume(image, labels, spacing), 'a.nii')


def test_window_then_z_score_of_the_whole_subject():
  image = np.random.default_rng(0).uniform(-2000, 2000, (3, 16, 16))
  found = ct_slices.prepare(case(image), FIELDS).image[..., 0]
  clipped = np.clip(image.astype(np.float32), -100, 100)
  np.testing.assert_allclose(found, (clipped - clipped.mean()) / clipped.std(), atol=1e-4)
  assert abs(found.mean()) < 1e-5 and found.std() == pytest.approx(1, rel=1e-4)


def test_slices_are_cut_and_padded_about_the_middle_with_air():
  image = np.zeros((1, 20, 10))
  image[0, 10, 5] = 100
  labels = np.zeros((1, 20, 10), np.int8)
  labels[0, 10, 5] = 3
  volume = ct_slices.prepare(case(image, labels), FIELDS)
  assert volume.image.shape == (1, 16, 16, 1)
  assert np.argwhere(volume.labels).tolist() == [[0, 8, 8]]
  np.testing.assert_allclose(volume.image[0, :, [0, 2, 13, 15]], volume.image.min())
  assert volume.image[0, 8, 4, 0] > volume.image.min()


def test_resampling_keeps_the_number_of_slices_and_the_share_of_an_organ():
  labels = np.zeros((2, 32, 32), np.int8)
  labels[:, 8:24, 4:16] = 1
  image = np.where(labels, 50.0, -50.0)
  volume = ct_slices.prepare(case(image, labels, (5.0, 0.5, 0.5)), FIELDS)
  assert volume.spacing == (5.0, 1.0, 1.0) and volume.labels.shape == (2, 16, 16)
  assert (volume.labels == 1).sum() == (labels == 1).sum() / 4


def test_a_volume_without_contrast_is_one_line():
  with pytest.raises(errors.UserError, match=r'a\.nii: all voxels are 100 .*Hounsfield'):
    ct_slices.prepare(case(np.full((1, 16, 16), 900.0)), FIELDS)


@pytest.mark.parametrize(
  ('count', 'subjects', 'want'),
  [
    (150, (60, 15, 75), [60, 15, 75]),
    (200, (60, 15, 75), [60, 15, 75]),
    (50, (60, 15, 75), [20, 5, 25]),
    (3, (60, 15, 75), [1, 1, 1]),
    (7, (60, 15, 75), [3, 1, 3]),
    (4, (0, 0, 1), [1]),
    (1, (0, 0, 75), [1]),
  ],
)
def test_splits_are_disjoint_and_as_large_as_asked(count, subjects, want):
  names = [f's{i:03d}' for i in range(count)]
  found = ct_slices.assign_splits(names, {**FIELDS, 'subjects': subjects})
  assert [len(part) for part in found.values()] == want
  drawn = [name for part in found.values() for name in part]
  assert len(set(drawn)) == len(drawn) and set(drawn) <= set(names)
  again = ct_slices.assign_splits(names, {**FIELDS, 'subjects': subjects})
  assert again == found
  if count > 10:
    other = ct_slices.assign_splits(names, {**FIELDS, 'subjects': subjects, 'split_seed': 1})
    assert other != found


def test_a_list_of_names_decides_the_split(tmp_path):
  path = tmp_path / 'split.json'
  fields = {**FIELDS, 'split': str(path)}
  with pytest.raises(errors.UserError, match=r'no split file .*split\.json'):
    ct_slices.assign_splits(['a', 'b'], fields)
  path.write_text(json.dumps({'train': ['b'], 'test': ['a']}))
  assert ct_slices.assign_splits(['a', 'b', 'c'], fields) == {'train': ['b'], 'test': ['a']}
  for wrong, message in (
    ({'test': ['d']}, 'names d, which is not there'),
    ({'train': ['a'], 'test': ['a']}, 'names a subject twice'),
    ({'train': ['a']}, 'must hold lists'),
  ):
    path.write_text(json.dumps(wrong))
    with pytest.raises(errors.UserError, match=message):
      ct_slices.assign_splits(['a', 'b', 'c'], fields)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'side': 8}, 'side must be'),
    ({'patch': 17}, r'patch must lie in \[0, side=16\]'),
    ({'spacing': 0.0}, 'spacing must'),
    ({'window': (3.0, 1.0)}, 'window must'),
    ({'slices': 'some'}, 'choice of slices'),
    ({'slices_per_case': -1}, 'slices_per_case must be 0'),
    ({'subjects': (1, 1, 0)}, 'subjects must be'),
  ],
)
def test_wrong_fields_are_named(change, message):
  with pytest.raises(errors.UserError, match=message):
    ct_slices.check_fields({**FIELDS, **change})


@pytest.mark.parametrize('slices', ['foreground', 'all'])
def test_few_slices_of_every_test_subject(tmp_path, slices):
  fields = {'side': 16, 'spacing': 24.0, 'subjects': (1, 0, 2), 'depth': 6, 'slices': slices}
  config = {'name': 'phantom_abdomen', **fields}
  whole = data.load({**config, 'cache_dir': str(tmp_path)})
  few = data.load({**config, 'slices_per_case': 2, 'cache_dir': str(tmp_path)})
  assert few.info['folder'] == whole.info['folder'] and len(few.volumes) == 12
  assert (
    few.info['sizes'] == data.sizes({**config, 'slices_per_case': 2}) == {'train': 6, 'test': 4}
  )
  for group in set(whole.test.groups):
    indices = [[e['index'] for e in s.test if e['group'] == group] for s in (whole, few)]
    count = len(indices[0])
    assert indices[1] == [indices[0][count // 4], indices[0][3 * count // 4]]


def test_generators_draw_whole_slices_that_show_an_organ(tmp_path):
  fields = {'side': 16, 'spacing': 24.0, 'subjects': (2, 1, 1), 'depth': 4, 'patch': 8}
  source = data.load({'name': 'phantom_abdomen', **fields, 'cache_dir': str(tmp_path)})
  whole = ct_slices.whole_slice_sampling(source)
  found = [whole.choose(i, seed=0, batch_size=2, size=len(source.train))[0] for i in range(16)]
  shown = [i for i in range(len(source.train)) if source.train[i]['present'].any()]
  assert sorted(set(found)) == shown
  assert sorted(found[: len(shown)]) == shown  # a pass shows each of them once
  assert whole.crop(source.train[0], None)['image'].shape == (16, 16, 1)
  position, wish = source.sampling.choose(1, seed=0, batch_size=2, size=len(source.train))
  patch = source.sampling.crop(source.train[position], wish)
  assert patch['image'].shape == (8, 8, 1) and (patch['labels'] > 0).any()  # forced
