"""All folds as one run: every case is tested once, and no fold sees its test cases in training."""

import itertools

import numpy as np
import pytest

from robustmed import data, errors
from robustmed.data.decathlon import folds, msd, volumes
from support import scans

CONFIG = {'name': 'phantom_hippocampus', 'cases': 11, 'scale': 0.25}


@pytest.mark.parametrize(('count', 'number'), [(20, 5), (32, 5), (260, 5), (11, 3), (6, 2), (5, 5)])
def test_every_case_is_tested_once_and_never_seen_before(count, number):
  every = [folds.partition(count, fold=fold, folds=number) for fold in range(number)]
  tested = list(itertools.chain(*(parts['test'] for parts in every)))
  assert sorted(tested) == list(range(count))
  for fold, parts in enumerate(every):
    whole = list(itertools.chain(*parts.values()))
    assert sorted(whole) == list(range(count)) and parts['train']  # disjoint, none left out
    assert parts['test'] == folds.held_out(count, fold, number)
    assert set(parts) == {'train', 'test'}


def test_the_five_folds_are_the_published_ones():
  for fold in range(5):
    one = folds.partition(260, fold=fold, folds=0)
    every = folds.partition(260, fold=fold, folds=5)
    assert sorted(one['test'] + one['validation']) == every['test']


def test_without_validation_all_cases_held_out_are_tested():
  whole = folds.partition(195, fold=2, folds=0, all_test=True)
  usual = folds.partition(195, fold=2, folds=0)
  assert len(whole['test']) == 39 and whole['train'] == usual['train'] and len(whole) == 2
  assert whole['test'] == sorted(usual['test'] + usual['validation'])


def test_sources_without_validation_are_stored_apart(tmp_path):
  fields = {**CONFIG, 'cache_dir': str(tmp_path)}
  usual, whole = data.load(fields), data.load({**fields, 'all_test': True})
  assert whole.validation is None and usual.info['fingerprint'] != whole.info['fingerprint']
  assert whole.info['groups']['test'] == sum(
    usual.info['groups'][n] for n in ('test', 'validation')
  )
  assert whole.info['sizes'] == data.sizes({**fields, 'all_test': True})


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  cache = str(tmp_path_factory.mktemp('cache'))
  make = lambda fold: data.load({**CONFIG, 'cache_dir': cache, 'folds': 3, 'fold': fold})
  return [make(fold) for fold in range(3)]


def test_folds_share_what_is_prepared_and_name_examples_alike(sources):
  assert len({source.info['fingerprint'] for source in sources}) == 1
  named: dict[str, tuple[int, int]] = {}
  for source in sources:
    for example in [*source.train, *source.volumes]:
      key = int(example['index']), int(example['group'])
      assert named.setdefault(str(example['name']), key) == key
  assert len(set(named.values())) == len(named)
  tested = [int(example['index']) for source in sources for example in source.volumes]
  assert sorted(tested) == list(range(len(named)))
  assert [name.rsplit('_', 1)[0] for name in sorted(named)] == [
    f'hippocampus_{group:03d}' for _, group in sorted(named.values())
  ]


def test_patients_stay_together(sources):
  for fold, source in enumerate(sources):
    groups = {name: set(getattr(source, name).groups) for name in ('train', 'test')}
    assert not groups['test'] & groups['train'] and source.validation is None
    assert sorted(set().union(*groups.values())) == list(range(11))
    fields = {**CONFIG, 'folds': 3, 'fold': fold}
    assert source.info['sizes'] == data.sizes(fields)
    assert data.groups(fields) == len(groups['test']) == len(data.depths(fields))
    assert source.info['groups'] == {name: len(found) for name, found in groups.items()}
    cases = source.info['cases']
    assert {name: len(found) for name, found in cases.items()} == source.info['groups']
    assert cases['test'] == [f'hippocampus_{group:03d}' for group in sorted(groups['test'])]
    draw = [source.sampling.choose(n, seed=0, batch_size=4, size=len(source.train)) for n in (0, 1)]
    assert all(position < len(source.train) for position, _ in draw)


def test_limits_hold_in_every_fold_and_one_fold_is_as_before(tmp_path):
  fields = {**CONFIG, 'cache_dir': str(tmp_path), 'train_cases': 2, 'test_cases': 1}
  source = data.load({**fields, 'folds': 3, 'fold': 1})
  assert source.info['groups'] == {'train': 2, 'test': 1}
  assert source.info['sizes'] == data.sizes({**fields, 'folds': 3, 'fold': 1})
  one, five = data.load({**fields, 'fold': 1}), data.load({**fields, 'fold': 1, 'folds': 5})
  assert one.info['fingerprint'] != five.info['fingerprint']
  wanted = {str(example['name']): example for example in five.train}
  shared = [example for example in one.train if str(example['name']) in wanted]
  assert shared
  for example in shared:
    np.testing.assert_array_equal(example['image'], wanted[str(example['name'])]['image'])


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'folds': 1}, r'folds must be 0 \(one of the published folds\) or at least 2, not 1'),
    ({'folds': -5}, 'folds must be 0 .* not -5'),
    ({'folds': 3, 'fold': 3}, 'fold must be 0 to 2, not 3'),
    ({'folds': 12}, 'cases must be at least 12, not 11'),
  ],
)
def test_fields_out_of_range(fields, message):
  with pytest.raises(errors.UserError, match=message):
    data.load({**CONFIG, **fields})


def test_files_of_the_decathlon_have_folds_too(tmp_path):
  folder = scans.fill(tmp_path / 'raw')
  fields = {'name': 'msd', 'dir': str(folder), 'cache_dir': str(tmp_path / 'cache'), 'folds': 2}
  both = [data.load({**fields, 'fold': fold}) for fold in (0, 1)]
  groups = [set(source.volumes.groups) for source in both]
  count = len(volumes.stored(msd.find(data.fields_of(fields)))['test'])
  assert sorted(groups[0] | groups[1]) == list(range(count)) and not groups[0] & groups[1]
  assert [data.groups({**fields, 'fold': fold}) for fold in (0, 1)] == [*map(len, groups)]


@pytest.mark.parametrize(('task', 'cases'), [('heart', 20), ('prostate', 32), ('hippocampus', 260)])
def test_without_files_the_published_number_of_cases_is_known(task, cases):
  fields = {'name': 'msd', 'task': task, 'folds': 5}
  assert sum(data.groups({**fields, 'fold': fold}) for fold in range(5)) == cases
  sizes = data.sizes({**fields, 'fold': 0})
  assert 0 < sizes['test'] < sizes['train'] and 'validation' not in sizes
  assert data.groups({'name': 'msd', 'task': task}) == len(msd.TASKS[task].depths)
