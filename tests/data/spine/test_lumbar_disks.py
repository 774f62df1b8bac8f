import numpy as np
import pytest
import scipy.io

from robustmed import data, errors
from robustmed.data.spine import contours, lumbar_disks


def load(folder, tmp_path, *, side=20):
  cache = str(tmp_path / 'cache')
  return data.load({'name': 'lumbar_disks', 'dir': str(folder), 'side': side, 'cache_dir': cache})


def fill_folder(folder, disk_file, *, patients=5, disks=2, suffix='npz'):
  for patient in range(patients):
    for disk in range(disks):
      disk_file(folder / f'p{patient}_{disk}.{suffix}')
  return folder


def test_reads_npz_and_splits_by_patient(tmp_path, disk_file):
  folder = fill_folder(tmp_path / 'raw', disk_file)
  source = load(folder, tmp_path, side=40)
  assert [row['name'] for row in source.train] == [f'p{p}_{d}' for p in range(4) for d in (0, 1)]
  assert [row['name'] for row in source.test] == ['p4_0', 'p4_1']
  assert source.train.groups == (0, 0, 1, 1, 2, 2, 3, 3) and source.test.groups == (4, 4)
  assert [row['index'] for row in [*source.train, *source.test]] == list(range(10))
  raw = np.load(folder / 'p0_0.npz')
  image = (raw['img'] - raw['img'].min()) / np.ptp(raw['img'])
  np.testing.assert_allclose(source.train[0]['image'][..., 0], image, atol=1e-6)
  np.testing.assert_allclose(source.train[0]['contour'], raw['shape'], atol=1e-5)
  ellipse = np.pi * 10 * 4
  assert abs(source.train[0]['mask'].sum() - ellipse) < 0.06 * ellipse


def test_mat_equals_npz(tmp_path, disk_file):
  path = disk_file(tmp_path / 'a_1.npz')
  content = dict(np.load(path))
  scipy.io.savemat(tmp_path / 'a_2.mat', content)
  for one, two in zip(lumbar_disks.read(path), lumbar_disks.read(tmp_path / 'a_2.mat')):
    np.testing.assert_array_equal(one, two)


def test_sub_folders_and_lists_say_the_split(tmp_path, disk_file):
  for name in ('train/x_1', 'train/y_1', 'test/a_1'):
    disk_file(tmp_path / 'folders' / f'{name}.npz')
  found = lumbar_disks.find(tmp_path / 'folders')
  assert [file.patient for file in found['train']] == ['x', 'y']
  assert [file.patient for file in found['test']] == ['a']

  lists = fill_folder(tmp_path / 'lists', disk_file, patients=3, disks=1)
  (lists / 'train.txt').write_text('p2_0.npz\n\np0_0.npz\n')
  (lists / 'test.txt').write_text('p1_0.npz\n')
  found = lumbar_disks.find(lists)
  assert [file.patient for file in found['train']] == ['p0', 'p2']
  assert [file.patient for file in found['test']] == ['p1']
  (lists / 'test.txt').write_text('gone_0.npz\n')
  with pytest.raises(
    errors.UserError, match=r'gone_0\.npz: is not there; it is listed in test\.txt'
  ):
    lumbar_disks.find(lists)


def test_chosen_patients_are_tested_whatever_split_the_folder_has(tmp_path, disk_file):
  for name in ('train/x_1', 'train/y_1', 'test/a_1'):
    disk_file(tmp_path / 'folders' / f'{name}.npz')
  found = lumbar_disks.find(tmp_path / 'folders', test_exams='x, a')
  assert [file.patient for file in found['train']] == ['y']
  fields = {'name': 'lumbar_disks', 'side': 32, 'cache_dir': str(tmp_path / 'cache')}
  one = str(fill_folder(tmp_path / 'one', disk_file, patients=1))
  with pytest.raises(errors.UserError, match=r'test_exams=all'):
    data.load({**fields, 'dir': one})
  source = data.load({**fields, 'dir': one, 'test_exams': 'all'})
  assert len(source.train) == 0 and len(source.test) == 2


def test_sizes_with_and_without_the_folder(tmp_path, disk_file):
  fields = {'name': 'lumbar_disks', 'dir': str(tmp_path / 'absent')}
  assert data.sizes(fields) == {'train': 400, 'test': 100}
  folder = fill_folder(tmp_path / 'raw', disk_file, patients=3)
  assert data.sizes({**fields, 'dir': folder}) == {'train': 4, 'test': 2}


def test_resize_keeps_contour_and_image_in_register():
  rows, columns = np.mgrid[:60, :60]
  image = ((columns >= 16) & (columns < 44) & (rows >= 24) & (rows < 36)).astype(float)
  box = np.array([[15.5, 23.5], [43.5, 23.5], [43.5, 35.5], [15.5, 35.5]])
  for side in (30, 120):
    scaled, contour = lumbar_disks.resize(image, box, side=side)
    factor = side / 60
    np.testing.assert_allclose(contour[0], [16 * factor - 0.5, 24 * factor - 0.5])
    mask = contours.example(scaled, contour, index=0, group=0, name='')['mask'][..., 0]
    np.testing.assert_array_equal(mask, scaled > 0.5)
  same, _ = lumbar_disks.resize(image, box, side=60)
  assert same is image


def test_changed_files_are_read_again(tmp_path, disk_file):
  folder = fill_folder(tmp_path / 'raw', disk_file, patients=2, disks=1)
  before = load(folder, tmp_path)
  again = load(folder, tmp_path)
  assert before.info['folder'] == again.info['folder']
  disk_file(folder / 'p0_1.npz')
  after = load(folder, tmp_path)
  assert after.info['folder'] != before.info['folder'] and after.info['sizes']['train'] == 2


def test_no_folder_named(tmp_path):
  with pytest.raises(errors.UserError, match=r'data field dir is empty.*named <patient>_<disk>'):
    load('', tmp_path)
  assert data.sizes({'name': 'lumbar_disks'}) == {'train': 400, 'test': 100}


def test_written_examples_come_back_bit_by_bit(tmp_path, small):
  folder = tmp_path / 'worst'
  rows = [small.train[0], small.test[0], small.test[1]]
  for row in rows:
    path = lumbar_disks.write(
      folder, row['image'][..., 0], row['contour'], patient=row['group'], disk=row['index']
    )
  assert path.parent == folder and len(list(folder.iterdir())) == 3
  back = load(folder, tmp_path, side=32)
  for row, again in zip(rows, [*back.train, *back.test]):
    for feature in ('image', 'contour', 'mask'):
      np.testing.assert_array_equal(again[feature], row[feature])
  assert back.train.groups == (0,) and back.test.groups == (1, 1)


def test_an_attacked_image_keeps_its_grey_values(tmp_path, small, disk_file):
  rows = [small.train[0], small.test[0]]
  attacked = [
    np.clip(row['image'][..., 0] * 0.6 + shift, 0, 1) for row, shift in zip(rows, (0.2, 0.5))
  ]
  folder = tmp_path / 'worst'
  for row, image in zip(rows, attacked):
    assert image.min() > 0.1 and image.dtype == np.float32
    path = lumbar_disks.write(folder, image, row['contour'], patient=row['group'], disk=0)
  back = load(folder, tmp_path, side=32)
  for image, again in zip(attacked, (back.train[0], back.test[0])):
    np.testing.assert_array_equal(again['image'][..., 0], image)
  smaller = load(folder, tmp_path, side=16).test[0]['image']
  assert smaller.min() > attacked[1].min() - 1e-6 and smaller.max() <= attacked[1].max() + 1e-6
  with np.load(path) as stored:  # as earlier versions and other programs write them
    plain = {key: stored[key] for key in ('img', 'shape')}
  np.savez(path, **plain)
  assert lumbar_disks.read(path)[0].min() == 0 and lumbar_disks.read(path)[0].max() == 1
  np.savez(path, **plain, normalised=False)
  assert lumbar_disks.read(path)[0].max() == 1
  scipy.io.savemat(path.with_suffix('.mat'), {**plain, 'normalised': True})
  np.testing.assert_array_equal(lumbar_disks.read(path.with_suffix('.mat'))[0], plain['img'])


def test_images_outside_the_range_are_not_marked_normalised(tmp_path, disk_file):
  path = disk_file(tmp_path / 'p_1.npz')
  image, contour = lumbar_disks.read(path)
  wide = lumbar_disks.write(tmp_path, 3 * image - 1, contour, patient=1, disk=2)
  np.testing.assert_allclose(lumbar_disks.read(wide)[0], image, atol=1e-12)
  np.savez(wide, img=3 * image - 1, shape=contour, normalised=True)
  with pytest.raises(errors.UserError, match='marked normalised, but img goes from -1 to 2'):
    lumbar_disks.read(wide)


def test_half_written_and_hidden_files_are_not_read(tmp_path, disk_file):
  folder = fill_folder(tmp_path / 'raw', disk_file, patients=2, disks=1)
  (folder / '._p0_0.npz').write_bytes(b'')
  (folder / '.p5_0.17.tmp.npz').write_bytes(b'')
  assert load(folder, tmp_path).info['sizes'] == {'train': 1, 'test': 1}


@pytest.mark.parametrize('make', ['absent', 'empty', 'one patient', 'shared patient'])
def test_bad_folders(tmp_path, disk_file, make):
  folder = tmp_path / 'raw'
  expected = {
    'absent': 'no folder .*raw.*SSMSpine',
    'empty': 'no .mat or .npz file in .*SSMSpine',
    'one patient': 'at least two patients are needed, one to train and one to test; found 1',
    'shared patient': 'patient q is in train and in test',
  }[make]
  if make != 'absent':
    folder.mkdir()
  if make == 'one patient':
    disk_file(folder / 'q_1.npz')
  if make == 'shared patient':
    disk_file(folder / 'train' / 'q_1.npz')
    disk_file(folder / 'test' / 'q_2.npz')
  with pytest.raises(errors.UserError, match=expected):
    load(folder, tmp_path)


def _with_nan(shape):
  array = np.random.default_rng(0).uniform(size=shape)
  array[3, 1] = np.nan
  return array


BAD_ARRAYS = {
  'no img': ({'img': None}, "has no 'img'"),
  'no shape': ({'shape': None}, "has no 'shape'"),
  'points': ({'shape': np.ones((175, 2))}, r'shape must be \[176, 2\].* not \[175, 2\]'),
  'transposed': ({'shape': np.ones((2, 176))}, r'not \[2, 176\]'),
  'colour': ({'img': np.ones((40, 40, 3))}, r'img must be a grey image.* not \[40, 40, 3\]'),
  'nan image': ({'img': _with_nan((40, 40))}, 'img has NaN'),
  'nan contour': ({'shape': _with_nan((176, 2))}, 'shape has NaN'),
  'outside': ({'shape': np.full((176, 2), 45.0)}, 'contour leaves the image of 40 x 40'),
  'left of it': ({'shape': np.full((176, 2), -3.0)}, 'contour leaves the image'),
  'constant': ({'img': np.full((40, 40), 7.0)}, 'img is constant'),
  'text': ({'img': np.full((40, 40), 'x')}, 'cannot be read'),
  'pickled': ({'img': np.array([[None]])}, 'cannot be read'),
}


@pytest.mark.parametrize('case', BAD_ARRAYS)
def test_bad_content_names_the_file_and_leaves_nothing(tmp_path, disk_file, case):
  arrays, message = BAD_ARRAYS[case]
  folder = fill_folder(tmp_path / 'raw', disk_file, patients=2, disks=1)
  disk_file(folder / 'p1_7.npz', **arrays)
  with pytest.raises(errors.UserError, match=message) as caught:
    load(folder, tmp_path)
  text = str(caught.value)
  assert 'p1_7.npz' in text and '\n' not in text
  assert [path for path in (tmp_path / 'cache').rglob('*') if path.is_file()] == []
  assert list((tmp_path / 'cache' / 'lumbar_disks').iterdir()) == []


@pytest.mark.parametrize('suffix', ['npz', 'mat'])
@pytest.mark.parametrize('damage', ['truncated', 'garbage', 'empty'])
def test_damaged_files(tmp_path, disk_file, suffix, damage):
  path = disk_file(tmp_path / 'p_1.npz')
  if suffix == 'mat':
    scipy.io.savemat(tmp_path / 'p_1.mat', dict(np.load(path)))
    path = tmp_path / 'p_1.mat'
  content = path.read_bytes()
  path.write_bytes({'truncated': content[:700], 'garbage': b'nonsense' * 50, 'empty': b''}[damage])
  with pytest.raises(errors.UserError, match=f'p_1.{suffix}: (cannot be read|has no)'):
    lumbar_disks.read(path)
