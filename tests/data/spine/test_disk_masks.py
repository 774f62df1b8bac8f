import numpy as np
import pytest
import scipy.io
import skimage.draw
from PIL import Image

from robustmed import data, errors
from robustmed.data.spine import disk_masks, tracing
from support import spines


def load(folder, tmp_path, *, side=32, **fields):
  cache = str(tmp_path / 'cache')
  config = {'name': 'disk_masks', 'dir': str(folder), 'side': side, 'cache_dir': cache, **fields}
  source = data.load(config)
  assert data.sizes(config) == source.info['sizes']
  return source


def test_every_label_of_every_slice_split_by_exam(tmp_path):
  source = load(spines.fill(tmp_path / 'raw'), tmp_path)
  assert source.info['groups'] == {'train': 2, 'test': 1}
  assert [row['name'] for row in source.test] == ['2_0_1', '2_0_2', '2_1_1', '2_1_2']
  assert source.train.groups == (0,) * 4 + (1,) * 4 and source.test.groups == (2,) * 4
  assert [row['index'] for row in [*source.train, *source.test]] == list(range(12))
  for row in source.train:
    inside = row['image'][row['mask'] > 0].mean()
    assert inside > row['image'][row['mask'] == 0].mean() + 0.3
  for row, contour in zip(source.train, spines.draw(0)[2]):
    area = skimage.draw.polygon2mask(spines.SHAPE, contour[:, ::-1]).sum()
    length = tracing.frame(contour).length  # 16 of the 32 pixels of a crop
    np.testing.assert_allclose(row['mask'].sum(), area * (16 / length) ** 2, rtol=0.12)
  masks = [spines.draw(10 * exam + number)[1] for exam in range(3) for number in range(2)]
  frames = [tracing.frame(tracing.trace(mask == label)) for mask in masks for label in (1, 2)]
  over = [
    bool((f.centre + 0.5 < f.length).any() or (f.centre + 0.5 + f.length > [80, 120]).any())
    for f in frames
  ]
  assert 0 < sum(over) < 12
  assert source.info['counts'] == {
    'slices': 6,
    'slices_without_labels': 0,
    'small_labels_left_out': 0,
    'slices_left_out': 0,
    'loose_parts': 0,
    'padded_crops': sum(over),
  }


def test_contours_are_those_of_the_phantom(tmp_path):
  image, mask, contours = spines.draw(0, shape=(240, 160), scale=80.0)
  for exam in ('a', 'b'):
    spines.save_slice(tmp_path / 'raw', f'{exam}_1', image, mask)
  source = load(tmp_path / 'raw', tmp_path, side=128)
  for row, contour in zip(source.train, contours):
    span = np.ptp(row['contour'], axis=0)
    scale = span / np.ptp(contour, axis=0)
    np.testing.assert_allclose(scale[0], scale[1], rtol=0.1)
    aligned = (contour - contour.mean(axis=0)) * scale.mean() + row['contour'].mean(axis=0)
    assert np.hypot(*(aligned - row['contour']).T).mean() < 3


@pytest.mark.parametrize('suffix', ['.npy', '.npz', '.tif'])
def test_other_formats_give_the_same(tmp_path, suffix):
  png = load(spines.fill(tmp_path / 'png', exams=2, slices=1), tmp_path)
  for exam in range(2):
    image, mask, _ = spines.draw(10 * exam)
    spines.save_slice(tmp_path / 'other', f'{exam}_0', image, mask, suffix=suffix)
  other = load(tmp_path / 'other', tmp_path)
  np.testing.assert_array_equal(other.train.stack('image'), png.train.stack('image'))
  np.testing.assert_array_equal(other.train.stack('contour'), png.train.stack('contour'))


def test_volumes_equal_their_slices(tmp_path):
  spines.fill(tmp_path / 'png', exams=2, slices=3)
  for exam in range(2):
    planes = [spines.draw(10 * exam + number)[:2] for number in range(3)]
    image, mask = (np.stack(arrays, axis=-1) for arrays in zip(*planes))
    (tmp_path / 'mat').mkdir(exist_ok=True)
    scipy.io.savemat(tmp_path / 'mat' / f'{exam}.mat', {'I': image, 'GT': mask})
  one, two = (load(tmp_path / name, tmp_path) for name in ('png', 'mat'))
  np.testing.assert_array_equal(one.test.stack('image'), two.test.stack('image'))
  assert [row['name'] for row in two.train][:2] == ['0_00_1', '0_00_2']
  assert two.train.groups == one.train.groups


def test_choice_of_slices(tmp_path):
  folder = spines.fill(tmp_path / 'raw', exams=2, slices=6)
  image, mask, _ = spines.draw(3)
  spines.save_slice(folder, '0_2', image, np.where(mask == 2, 0, mask))  # shows one disk of two
  spines.save_slice(folder, '0_4', image, np.zeros_like(mask))
  names = lambda mode: [row['name'] for row in load(folder, tmp_path, slices=mode).train]
  assert names('every') == [
    f'0_{z}_{d}' for z in (0, 1, 2, 3, 5) for d in (1, 2) if (z, d) != (2, 2)
  ]
  assert names('complete') == [f'0_{z}_{d}' for z in (0, 1, 3, 5) for d in (1, 2)]
  assert names('central') == ['0_1_1', '0_1_2', '0_3_1', '0_3_2']
  assert names('mid') == ['0_3_1', '0_3_2']
  counts = load(folder, tmp_path, slices='complete').info['counts']
  assert (counts['slices_without_labels'], counts['slices_left_out']) == (1, 1)


def test_loose_parts_and_small_labels_are_counted(tmp_path):
  folder = spines.fill(tmp_path / 'raw', exams=2, slices=1)
  image, mask, _ = spines.draw(0)
  before = load(folder, tmp_path).train
  mask[2:4, 2:6] = 1
  mask[2:4, 70:74] = 9
  spines.save_slice(folder, '0_0', image, mask)
  after = load(folder, tmp_path)
  counts = after.info['counts']
  assert (counts['loose_parts'], counts['small_labels_left_out']) == (1, 1)
  np.testing.assert_array_equal(after.train.stack('contour'), before.stack('contour'))


def test_sizes_without_a_folder():
  assert data.sizes({'name': 'disk_masks'}) == {'train': 400, 'test': 100}


def _other_shape(folder):
  Image.fromarray(np.zeros((50, 80), np.uint8)).save(folder / 'masks' / '1_0.png')


def _nan(folder):
  (folder / 'images' / '1_0.png').unlink()
  image = spines.draw(0)[0].astype(np.float32)
  image[3, 4] = np.nan
  np.save(folder / 'images' / '1_0.npy', image)


def _fractions(folder):
  (folder / 'masks' / '1_0.png').unlink()
  np.save(folder / 'masks' / '1_0.npy', np.full(spines.SHAPE, 0.5))


def _halves(folder):
  mask = np.zeros(spines.SHAPE, np.uint8)
  for row in (5, 45, 85):
    mask[row : row + 10, 20:50] = 255
  spines.save_slice(folder, '1_0', spines.draw(0)[0], mask)


def _no_labels(folder):
  spines.save_slice(folder, '1_0', spines.draw(0)[0], np.zeros(spines.SHAPE, np.uint8))


def _constant(folder):
  spines.save_slice(folder, '1_0', np.full(spines.SHAPE, 9, np.uint8), spines.draw(0)[1])


def _colour(folder):
  Image.fromarray(np.zeros((*spines.SHAPE, 3), np.uint8)).save(folder / 'masks' / '1_0.png')


def _twice(folder):
  np.save(folder / 'masks' / '1_0.npy', spines.draw(0)[1])


def _lossy(folder):
  (folder / 'masks' / '1_0.png').rename(folder / 'masks' / '1_0.jpg')


BAD = {
  'lossy': (_lossy, r'masks/1_0\.jpg: \.jpg changes the labels'),
  'no mask': (
    lambda f: (f / 'masks' / '1_0.png').unlink(),
    r'images/1_0\.png has no file .*masks/',
  ),
  'no image': (lambda f: (f / 'images' / '1_0.png').unlink(), r'masks/1_0\.png has no file'),
  'shape': (_other_shape, r'1_0\.png: mask of \[50, 80\] pixels for an image of \[120, 80\]'),
  'nan': (_nan, r'1_0\.npy: has NaN'),
  'fractions': (_fractions, r'1_0\.npy: labels must be whole numbers'),
  'one label for all': (_halves, r'1_0\.png: label 255 has 3 separate parts'),
  'no labels': (_no_labels, 'no mask of the test exams has a usable label'),
  'constant': (_constant, r'1_0\.png: 1_0_1: the image is constant around the disk'),
  'colour': (_colour, r'1_0\.png: a label map must have 2 axes'),
  'twice': (_twice, 'masks: two files of one name'),
  'damaged': (lambda f: (f / 'masks' / '1_0.png').write_bytes(b'x'), r'1_0\.png: cannot be read'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_folders_give_one_line_and_leave_nothing(tmp_path, case):
  spoil, message = BAD[case]
  folder = spines.fill(tmp_path / 'raw', exams=2, slices=1)
  spoil(folder)
  with pytest.raises(errors.UserError, match=message) as caught:
    load(folder, tmp_path)
  assert '\n' not in str(caught.value)
  assert [path for path in (tmp_path / 'cache').rglob('*') if path.is_file()] == []


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ({'I': np.ones((9, 9, 2))}, "1.mat: has no 'GT'"),
    (
      {'I': np.ones((9, 9, 2)), 'GT': np.ones((9, 8, 2))},
      r'I is \[9, 9, 2\] and GT is \[9, 8, 2\]',
    ),
    ({'I': np.ones((9, 9)), 'GT': np.ones((9, 9))}, 'must have 3 axes'),
    ({'I': np.full((9, 9, 2), np.nan), 'GT': np.ones((9, 9, 2))}, 'I has NaN'),
    (None, '1.mat: cannot be read'),
  ],
)
def test_bad_volumes(tmp_path, content, message):
  path = tmp_path / '1.mat'
  if content is None:
    path.write_bytes(b'nonsense' * 40)
  else:
    scipy.io.savemat(path, content)
  with pytest.raises(errors.UserError, match=message):
    list(disk_masks.slices(disk_masks.Exam('1', ((path, None),))))


def test_folders_without_files(tmp_path):
  for folder, message in (
    ('', 'data field dir is empty: .*images/NAME.png'),
    (tmp_path / 'gone', 'no folder .*gone'),
    (tmp_path, 'no images in .*put images/NAME.png'),
  ):
    with pytest.raises(errors.UserError, match=message):
      disk_masks.find(str(folder))
  folder = spines.fill(tmp_path / 'raw', exams=1)
  with pytest.raises(errors.UserError, match=r'at least two exams are needed.*test_exams=all'):
    disk_masks.find(str(folder))


def test_chosen_exams_are_tested_and_a_trained_network_needs_no_others(tmp_path):
  fields = {'name': 'disk_masks', 'side': 32, 'cache_dir': str(tmp_path / 'cache')}
  fields['dir'] = str(spines.fill(tmp_path / 'raw', exams=3))
  names = [exam.name for part in disk_masks.find(fields['dir']).values() for exam in part]
  for name in names:  # leave one out: 'group' stays that of the exam
    found = disk_masks.find(fields['dir'], test_exams=name)
    assert [exam.name for exam in found['test']] == [name] and len(found['train']) == 2
  source = data.load({**fields, 'test_exams': 'all'})
  assert len(source.train) == 0 and len(set(source.test.groups)) == 3
  assert data.sizes({**fields, 'test_exams': 'all'}) == {'train': 0, 'test': len(source.test)}
  with pytest.raises(errors.UserError, match=r'data\.test_exams'):
    disk_masks.find(fields['dir'], test_exams='gone')
  one = str(spines.fill(tmp_path / 'one', exams=1))
  assert len(data.load({**fields, 'dir': one, 'test_exams': 'all'}).test) > 0


@pytest.mark.parametrize(('field', 'value'), [('side', 8), ('slices', 'some')])
def test_fields_out_of_range(tmp_path, field, value):
  with pytest.raises(errors.UserError, match=f'data field {field} must be'):
    data.load({'name': 'disk_masks', 'dir': str(tmp_path), field: value})


REAL = {
  ('sagittal_2d', 'complete'): {'train': 310, 'test': 100},  # of 84 slices of four exams
  ('sagittal_2d', 'mid'): {'train': 15, 'test': 5},
  ('Matlab', 'mid'): {'train': 5, 'test': 5},  # two volumes
}


@pytest.mark.parametrize(('folder', 'slices'), REAL)
def test_real_disks(shared_data, tmp_path, folder, slices):
  path = shared_data / 'lumbar_ivd' / folder
  if not path.is_dir():
    pytest.skip(f'no {path}')
  if slices == 'complete':
    found = {'name': 'disk_masks', 'dir': str(path), 'slices': slices}
    assert data.sizes(found) == REAL[folder, slices]
    return
  source = load(path, tmp_path, side=64, slices=slices)
  assert source.info['sizes'] == REAL[folder, slices]
  exams = 4 if folder == 'sagittal_2d' else 2
  assert source.info['groups'] == {'train': exams - 1, 'test': 1}
  for row in [*source.train, *source.test]:
    width, height = np.ptp(row['contour'], axis=0)
    assert 20 < width < 36 and 6 < height < 28  # in a crop of 64
    rim = row['image'][row['mask'] > 0].mean()
    assert rim < 0.7  # dark against fat and canal
