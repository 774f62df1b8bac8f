import numpy as np
import pytest

from robustmed import data, errors
from support import spines, torch_files

SHAPE = (240, 80)


def content(seed, **changed):
  image, mask, contours = spines.draw(seed, disks=5, shape=SHAPE, scale=60.0)
  arrays = {'img': image / 255, 'disk': contours, 'disk_mask': mask, **changed}
  return {key: value for key, value in arrays.items() if value is not None}


def fill(folder, *, train=2, test=1, shapes=2):
  for number in range(train + test):
    side = 'SSMSpine_Train' if number < train else 'SSMSpine_Test'
    for shape in range(shapes):
      torch_files.save(folder / side / f'p{number}_{shape}.pt', content(10 * number + shape))
  return folder


def load(folder, tmp_path, **fields):
  config = {
    'name': 'ssmspine',
    'dir': str(folder),
    'side': 32,
    'cache_dir': str(tmp_path / 'cache'),
  }
  source = data.load({**config, **fields})
  assert data.sizes({**config, **fields}) == source.info['sizes']
  return source


def test_five_disks_of_the_first_shape_of_each_texture(tmp_path):
  source = load(fill(tmp_path / 'raw'), tmp_path)
  assert source.info['sizes'] == {'train': 10, 'test': 5}
  assert [row['name'] for row in source.test] == [f'p2_0_d{disk}' for disk in range(1, 6)]
  assert source.train.groups == (0,) * 5 + (1,) * 5 and source.test.groups == (2,) * 5
  assert [row['index'] for row in [*source.train, *source.test]] == list(range(15))
  for row, contour in zip(source.train, content(0)['disk']):
    centred = row['contour'] - row['contour'].mean(axis=0)
    given = contour - contour.mean(axis=0)
    factor = np.hypot(*centred.T).sum() / np.hypot(*given.T).sum()
    np.testing.assert_allclose(centred, factor * given, atol=1e-3)  # the points as they are
    assert row['image'][row['mask'] > 0].mean() > row['image'][row['mask'] == 0].mean() + 0.3


def test_all_shapes(tmp_path):
  source = load(fill(tmp_path / 'raw'), tmp_path, shapes=0)
  assert source.info['sizes'] == {'train': 20, 'test': 10}
  assert source.info['groups'] == {'train': 2, 'test': 1}


def test_nominal_sizes():
  assert data.sizes({'name': 'ssmspine'}) == {'train': 400, 'test': 100}
  assert data.sizes({'name': 'ssmspine', 'shapes': 0}) == {'train': 50_000, 'test': 12_500}


def test_one_folder_is_split_by_texture(tmp_path):
  folder = fill(tmp_path / 'raw', train=3, test=0)
  folder = (folder / 'SSMSpine_Train').rename(tmp_path / 'loose')
  source = load(folder, tmp_path, shapes=0)
  assert source.info['groups'] == {'train': 2, 'test': 1} and set(source.test.groups) == {2}


def test_texture_names_by_pattern(tmp_path):
  for number in range(4):
    torch_files.save(tmp_path / 'raw' / f'shape{number}-tex{number % 2}.pt', content(number))
  by_name = load(tmp_path / 'raw', tmp_path)
  assert by_name.info['groups'] == {'train': 3, 'test': 1}
  by_texture = load(tmp_path / 'raw', tmp_path, texture='.*-tex(.)', shapes=0)
  assert by_texture.info['sizes'] == {'train': 10, 'test': 10}


def test_image_with_a_leading_axis_of_one(tmp_path):
  folder = fill(tmp_path / 'raw', shapes=1)
  plain = load(folder, tmp_path).train[0]
  changed = content(0, img=content(0)['img'][None])
  torch_files.save(folder / 'SSMSpine_Train' / 'p0_0.pt', changed)
  np.testing.assert_array_equal(load(folder, tmp_path).train[0]['image'], plain['image'])


NAN = content(0)['img'].copy()
NAN[4, 5] = np.nan
BAD = {
  'no image': ({'img': None}, "has no 'img'"),
  'no disks': ({'disk': None}, "has no 'disk'"),
  'points': ({'disk': np.ones((5, 175, 2))}, r'disk must be \[5, 176, 2\].* not \[5, 175, 2\]'),
  'four': ({'disk': np.ones((4, 176, 2))}, r'not \[4, 176, 2\]'),
  'axes': ({'img': np.ones((3, 40, 40))}, r'img has shape \[3, 40, 40\]'),
  'nan': ({'img': NAN}, 'img has NaN'),
  'outside': ({'disk': content(0)['disk'] + 60.0}, 'a contour leaves the image of 80 x 240 pixels'),
  'constant': ({'img': np.ones(SHAPE)}, 'p1_0_d1: the image is constant'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_content_names_the_file(tmp_path, case):
  changed, message = BAD[case]
  folder = fill(tmp_path / 'raw', shapes=1)
  torch_files.save(folder / 'SSMSpine_Train' / 'p1_0.pt', content(0, **changed))
  with pytest.raises(errors.UserError, match=message) as caught:
    load(folder, tmp_path)
  assert 'p1_0.pt' in str(caught.value) and '\n' not in str(caught.value)
  assert [path for path in (tmp_path / 'cache').rglob('*') if path.is_file()] == []


def test_what_is_no_archive(tmp_path):
  folder = fill(tmp_path / 'raw', shapes=1)
  (folder / 'SSMSpine_Test' / 'p2_0.pt').write_text('hello')
  with pytest.raises(errors.UserError, match=r'p2_0\.pt: is not a tensor archive'):
    load(folder, tmp_path)


def test_bad_folders_and_fields(tmp_path):
  with pytest.raises(errors.UserError, match=r'dir is empty.*SSMSpine_Train\.zip'):
    load('', tmp_path)
  (tmp_path / 'none').mkdir()
  with pytest.raises(errors.UserError, match=r'no \.pt file in'):
    load(tmp_path / 'none', tmp_path)
  folder = fill(tmp_path / 'raw', shapes=1)
  for fields, message in (
    ({'texture': '('}, 'no regular expression'),
    ({'texture': '.*'}, r'must have exactly one \(group\)'),
    ({'texture': '(p)'}, 'texture p is in train and in test'),
    ({'shapes': -1}, r'shapes must be 0 \(all\) or more'),
    ({'side': 4}, 'side must be at least 16'),
  ):
    with pytest.raises(errors.UserError, match=message):
      load(folder, tmp_path, **fields)
  torch_files.save(folder / 'stray_0.pt', content(0))
  with pytest.raises(
    errors.UserError, match=r'stray_0\.pt: neither in a train nor in a test folder'
  ):
    load(folder, tmp_path)
