import sys

import pytest

from robustmed import data, errors


def test_info_and_groups(small):
  assert small.info['sizes'] == {'train': 15, 'test': 6}
  assert small.info['groups'] == {'train': 5, 'test': 2}
  assert small.info['name'] == 'phantom_lumbar_disks'
  assert small.validation is None
  assert not set(small.train.groups) & set(small.test.groups)


def test_sizes_follow_the_fields():
  config = {'name': 'phantom_lumbar_disks', 'train_patients': 3, 'disks_per_patient': 2}
  assert data.sizes(config) == {'train': 6, 'test': 40}


def test_unknown_source_and_field():
  with pytest.raises(errors.UserError, match=r"data source 'lumbar'.*phantom_lumbar_disks"):
    data.load({'name': 'lumbar'})
  with pytest.raises(errors.UserError, match="did you mean 'noise'"):
    data.load({'name': 'phantom_lumbar_disks', 'noize': 0.1})
  with pytest.raises(errors.UserError, match='data source None'):
    data.sizes({})


@pytest.mark.parametrize(('field', 'value'), [('side', '64'), ('side', 64.0), ('seed', True)])
def test_values_of_the_wrong_type(field, value):
  with pytest.raises(errors.UserError, match=f'data field {field} must be like'):
    data.load({'name': 'phantom_lumbar_disks', field: value})


def test_whole_numbers_serve_as_floats():
  assert data.fields_of({'name': 'phantom_lumbar_disks', 'noise': 0})['noise'] == 0


def test_prepared_once_per_set_of_fields(small, tmp_path):
  base = {'name': 'phantom_lumbar_disks', 'side': 16, 'train_patients': 1, 'test_patients': 1}
  config = {**base, 'cache_dir': str(tmp_path)}
  folders = [data.load({**config, 'seed': seed}).info['folder'] for seed in (0, 0, 1)]
  assert folders[0] == folders[1] != folders[2]


def test_no_tensorflow(small):
  assert small.train[0] is not None
  assert 'tensorflow' not in sys.modules
