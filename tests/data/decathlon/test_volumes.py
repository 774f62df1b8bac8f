import dataclasses
import itertools
import json

import numpy as np
import pytest

from robustmed import data, errors
from robustmed.data.decathlon import folds, preprocess, volumes

HIPPOCAMPUS_VALIDATION = [9, 10, 16, 18, 20, 30, 33, 40, 47, 50, 52, 54, 57, 67, 68, 71, 73]
HIPPOCAMPUS_TEST = [
  *(95, 101, 104, 110, 117, 120, 122, 127, 128, 130, 134, 135, 145, 156, 167, 169, 175),
  *(177, 179, 181, 182, 187, 196, 197, 203, 211, 214, 216, 222, 227, 228, 234, 235, 246, 259),
]


def study(count, fold=0):
  def read():
    labels = np.zeros((4, 3, 3), np.int8)
    return preprocess.Volume(np.ones((4, 3, 3, 1), np.float32), labels, (1.0, 1.0, 1.0))

  cases = tuple(volumes.Case(f'c{n:03d}', read, f'file{n}') for n in range(count))
  return volumes.Study(f'{count}', cases, ('MRI',), ('background', 'organ'), fold)


@pytest.mark.parametrize(
  ('count', 'validation', 'test'),
  [
    (20, [3], [8, 13, 16]),
    (32, [0, 3], [8, 12, 15, 18, 27]),
    (260, HIPPOCAMPUS_VALIDATION, HIPPOCAMPUS_TEST),
  ],
)
def test_fold_0_is_the_published_one(count, validation, test):
  found = volumes.split(study(count))
  assert found['validation'] == validation and found['test'] == test
  assert found['train'] == sorted(set(range(count)) - set(validation) - set(test))


@pytest.mark.parametrize('count', [5, 6, 11, 32])
def test_folds_are_a_partition(count):
  held = [folds.held_out(count, fold) for fold in range(5)]
  assert sorted(itertools.chain(*held)) == list(range(count))
  assert max(map(len, held)) - min(map(len, held)) <= 1
  found = volumes.split(study(count, fold=3))
  assert sorted(itertools.chain(*found.values())) == list(range(count))
  assert ('validation' in found) == (len(held[3]) >= 3)


def test_too_few_cases():
  with pytest.raises(errors.UserError, match='file0: 4 cases are too few for 5 folds'):
    volumes.split(study(4))


def test_which_slices_are_kept():
  groups, present = [7, 7, 7, 7, 9, 9, 4, 4], [0, 1, 3, 2, 2, 0, 0, 0]
  assert volumes.select_slices(groups, present, 'complete') == [2, 4]  # case 9 has class 2 alone
  assert volumes.select_slices(groups, present, 'foreground') == [1, 2, 3, 4]
  assert volumes.select_slices(groups, present, 'all') == list(range(8))
  assert volumes.select_slices(groups, present, 'complete', 1) == [2, 4]
  labels = np.zeros((3, 2, 2))
  labels[1, 0, 0], labels[1, 1, 1], labels[2, 0, 0] = 3, 1, -1
  assert volumes.class_bits(labels, 4) == [0, 0b101, 0]


def test_slices_of_a_case_are_thinned_evenly():
  groups, present = [0] * 7 + [1] * 2 + [2] * 4, [1] * 13
  assert volumes.select_slices(groups, present, 'complete', 2) == [1, 5, 7, 8, 10, 12]
  assert volumes.select_slices(groups, present, 'all', 3) == [1, 3, 5, 7, 8, 9, 11, 12]


def test_a_zero_image_names_the_file():
  empty = study(6)
  blank = preprocess.Volume(np.zeros((2, 2, 2, 1)), np.zeros((2, 2, 2)), (1.0, 1.0, 1.0))
  cases = (*empty.cases[:5], volumes.Case('c5', lambda: blank, 'file5'))
  with pytest.raises(errors.UserError, match='file5: the image is zero everywhere'):
    volumes.survey(volumes.Study('blank', cases, ('MRI',), ('background', 'organ')))


CONFIG = {'name': 'phantom_prostate', 'cases': 16, 'scale': 0.1}


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return {'cache_dir': str(tmp_path_factory.mktemp('cache'))}


@pytest.fixture(scope='module')
def source(cache):
  return data.load({**CONFIG, **cache})


def test_splits_of_slices(source):
  assert source.info['sizes'] == data.sizes(CONFIG)
  groups = source.volumes.groups
  assert data.depths(CONFIG) == tuple(groups.count(group) for group in sorted(set(groups)))
  assert data.depths({**CONFIG, 'test_cases': 2}) == data.depths(CONFIG)[:2]
  assert source.info['groups'] == {'train': 12, 'test': 3, 'validation': 1}
  assert {name: len(names) for name, names in source.info['cases'].items()} == {
    **source.info['groups']
  }
  counts = source.info['counts']
  assert [counts[f'{name}_cases'] for name in ('train', 'test', 'validation')] == [12, 3, 1]
  whole = [*source.train, *source.volumes, *source.validation]
  assert [example['index'] for example in whole] == list(range(len(whole)))
  assert counts['slices_without_foreground'] == sum(not e['present'].any() for e in whole)
  named = {
    name: number
    for number, name in enumerate(sorted(itertools.chain(*source.info['cases'].values())))
  }
  for example in whole:
    case, z = example['name'].rsplit('_', 1)
    assert named[case] == example['group'] and int(z) == example['slice']
    shown = [(example['labels'] == label).any() for label in (1, 2)]
    np.testing.assert_array_equal(example['present'], shown)
    assert example['image'].shape == (*example['labels'].shape, 2)
    np.testing.assert_allclose(example['spacing'][1:], source.info['properties']['spacing'][1:])
  case = np.stack([e['image'] for e in source.train if e['group'] == source.train.groups[0]])
  np.testing.assert_allclose(case.mean(axis=(0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(case.std(axis=(0, 1, 2)), 1, atol=1e-5)


def test_cases_of_other_spacing_are_resampled_to_the_median(source):
  spacing, side = source.info['properties']['spacing'], source.info['properties']['shape'][1]
  assert spacing[1] == spacing[2] == pytest.approx(6.25)
  widths = {example['labels'].shape[1] for example in source.train}
  assert side in widths and len(widths) > 1  # 0.6 mm or 0.75 mm times 256 or 320 pixels
  between = {float(example['spacing'][0]) for example in source.train}
  assert len(between) > 1  # slices stay where they are


@pytest.mark.parametrize('slices', volumes.SLICES)
def test_the_choice_of_test_slices_needs_no_new_preparation(source, cache, slices):
  got = data.load({**CONFIG, **cache, 'slices': slices})
  assert got.info['folder'] == source.info['folder']
  assert got.info['sizes'] == data.sizes({**CONFIG, 'slices': slices})
  keep = {
    'complete': lambda flags: flags.all(),
    'foreground': lambda flags: flags.any(),
    'all': lambda flags: True,
  }[slices]
  want = [example['index'] for example in got.volumes if keep(example['present'])]
  assert [example['index'] for example in got.test] == want
  assert got.test.groups == tuple(example['group'] for example in got.test)
  assert 0 < len(got.test) <= len(got.volumes)
  np.testing.assert_array_equal(got.test.stack('present').shape, (len(want), 2))
  with pytest.raises(IndexError):
    got.test[len(want)]


def test_patch_and_margin(source, cache):
  assert source.info['patch'] == [32, 32] and source.info['loader_patch'] == [37, 37]
  got = data.load({**CONFIG, **cache, 'patch': (24, 16), 'margin': False})
  assert got.info['patch'] == got.info['loader_patch'] == [24, 16]
  assert got.crop(got.test[0])['image'].shape == (24, 16, 2)
  assert json.loads(json.dumps(got.info)) == got.info


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'fold': 5}, 'fold must be 0 to 4, not 5'),
    ({'slices': 'some'}, "slices must be one of .*not 'some'"),
    ({'patch': (1, 2, 3)}, r'patch must be \(rows, columns\)'),
    ({'patch': (0, 2)}, 'patch must be'),
    ({'cases': 4}, 'cases must be at least 5, not 4'),
    ({'scale': 0.0}, r'scale must lie in \[0.05, 4\]'),
  ],
)
def test_fields_out_of_range(fields, message):
  with pytest.raises(errors.UserError, match=message):
    data.load({**CONFIG, **fields})


def test_no_such_test_slices(cache):
  source = data.load({**CONFIG, **cache})
  blank = {'present': {**dict.fromkeys(['train'], [0] * len(source.train))}, 'cases': {'test': []}}
  blank['present']['test'] = [0] * len(source.volumes)
  with pytest.raises(errors.UserError, match='set the data field slices to all'):
    volumes.arrange(
      source._replace(test=source.volumes), data.fields_of(CONFIG), blank, patch=(8, 8)
    )


def test_limits_keep_the_first_cases_of_each_split():
  whole = volumes.split(study(30))
  some = volumes.split(dataclasses.replace(study(30), limits=(7, 2)))
  assert some['train'] == whole['train'][:7] and some['test'] == whole['test'][:2]
  assert some['validation'] == whole['validation'][:2]


def test_a_negative_limit_is_refused():
  with pytest.raises(errors.UserError, match='train_cases must be 0'):
    volumes.check_fields({**volumes.FIELDS, 'train_cases': -1})
