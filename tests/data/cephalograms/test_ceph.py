import numpy as np
import pytest

from robustmed import data, errors
from robustmed.data.cephalograms import ceph
from support import skulls

NUMBERS = (1, 2, 38, 144, 151, 173, 201, 283, 301)


def load(folder, tmp_path, **fields):
  config = {'name': 'ceph', 'dir': str(folder), 'height': 60, 'width': 48, **fields}
  source = data.load({**config, 'cache_dir': str(tmp_path / 'cache')})
  assert data.sizes(config) == source.info['sizes']
  return source


def find(folder, **fields):
  return ceph.find({**ceph.DEFAULTS, 'dir': str(folder), **fields})


def test_the_challenge_layout(tmp_path):
  source = load(skulls.challenge(tmp_path / 'raw', NUMBERS), tmp_path)
  names = {
    split: [row['name'] for row in getattr(source, split)]
    for split in ('train', 'validation', 'test')
  }
  assert names == {
    'train': ['001', '002', '038', '144'],
    'validation': ['151', '173'],
    'test': ['201', '283'],
  }
  assert source.info['counts'] == {'duplicates_kept': 2, 'images_of_one_reader': 0}
  row = source.train[1]
  assert row['index'] == row['group'] == 1 and source.test[0]['index'] == 6
  # readers 3 pixels apart: the mean is 1.5 further, cut to 1
  expected = (skulls.points(2) + 1) * [48 / 1935, 60 / 2400]
  np.testing.assert_allclose(row['landmarks'], expected, rtol=1e-6)
  np.testing.assert_allclose(row['scale'], [193.5 / 48, 240 / 60], rtol=1e-6)
  grey = np.random.default_rng(2).integers(0, 255, skulls.SHAPE, np.uint8)
  np.testing.assert_allclose(row['image'][..., 1], grey / 127.5 - 1, atol=1e-6)
  np.testing.assert_array_equal(row['image'][..., 0], row['image'][..., 2])


def test_readers(tmp_path):
  raw = skulls.challenge(tmp_path / 'raw', NUMBERS, nested=False, suffix='.jpg')
  (raw / '400_junior' / '001.txt').unlink()
  one = lambda **fields: load(raw, tmp_path, **fields).train[0]['landmarks'] / [48, 60]
  frame = np.array([1935, 2400])
  np.testing.assert_allclose(one(reader='senior') * frame, skulls.points(1), rtol=1e-5)
  mean = load(raw, tmp_path)
  np.testing.assert_allclose(one() * frame, skulls.points(1), rtol=1e-5)
  assert mean.info['counts']['images_of_one_reader'] == 1
  second = mean.train[1]['landmarks'] / [48, 60] * frame
  np.testing.assert_allclose(second, skulls.points(2) + 1, rtol=1e-5)
  with pytest.raises(
    errors.UserError, match=r'001\.jpg: has no annotation .* by the junior reader'
  ):
    find(raw, reader='junior')
  with pytest.raises(errors.UserError, match="unknown reader of cephalograms 'both'"):
    find(raw, reader='both')


def test_the_kaggle_layout_gives_the_same_landmarks(tmp_path):
  one = load(skulls.kaggle(tmp_path / 'kaggle', NUMBERS), tmp_path)
  two = load(skulls.challenge(tmp_path / 'raw', NUMBERS), tmp_path, reader='senior')
  for split in ('train', 'validation', 'test'):
    for name in ('landmarks', 'image', 'name'):
      values = getattr(one, split).stack(name), getattr(two, split).stack(name)
      np.testing.assert_array_equal(*values)
  assert one.info['counts']['images_of_one_reader'] == 8


def test_duplicates_leave_the_training_set(tmp_path):
  raw = skulls.challenge(tmp_path / 'raw', NUMBERS)
  source = load(raw, tmp_path, drop_duplicates=True)
  assert [row['name'] for row in source.train] == ['001', '002']
  assert source.info['sizes'] == {'train': 2, 'validation': 2, 'test': 2}
  assert source.info['counts']['duplicates_kept'] == 0
  assert data.sizes({'name': 'ceph'})['train'] == 150
  assert data.sizes({'name': 'ceph', 'drop_duplicates': True})['train'] == 148


def test_the_second_test_set(tmp_path):
  raw = skulls.challenge(tmp_path / 'raw', NUMBERS)
  assert [file.number for file in find(raw, test='test2')['test']] == [301]
  with pytest.raises(errors.UserError, match="unknown test set of cephalograms 'test3'"):
    find(raw, test='test3')
  few = skulls.challenge(tmp_path / 'few', (1, 151))
  with pytest.raises(errors.UserError, match=r'has no image numbered 201 to 300 \(test\)'):
    find(few)


def test_lines_after_the_landmarks_are_ignored(tmp_path):
  path = tmp_path / '001.txt'
  skulls.save_text(path, skulls.points(1), tail=['anything', '', '9,9'])
  np.testing.assert_array_equal(ceph.read_points(path), skulls.points(1))


@pytest.mark.parametrize(
  'rows, tail, message',
  [
    (18, (), r'001\.txt: has 18 landmarks \(x,y\), must begin with 19'),
    (18, ('1', '3', '2'), r'001\.txt: has 18 landmarks'),  # the clinical classes follow
    (0, (), r'001\.txt: has 0 landmarks'),
    (18, ('1,2,3',), 'has 18 landmarks'),
    (18, ('1_0,2',), 'has 18 landmarks'),
    (18, ('2000,10',), r'001\.txt: landmark 19 at \[2000\.0, 10\.0\] is outside the 1935 x 2400'),
    (18, ('nan,10',), r'landmark 19 at \[nan, 10\.0\] is outside'),
  ],
)
def test_bad_text_files(tmp_path, rows, tail, message):
  raw = skulls.challenge(tmp_path / 'raw', NUMBERS)
  path = raw / 'AnnotationsByMD' / '400_senior' / '001.txt'
  skulls.save_text(path, skulls.points(1)[:rows], tail=tail)
  with pytest.raises(errors.UserError, match=message) as caught:
    load(raw, tmp_path)
  assert '\n' not in str(caught.value)


def test_bad_tables(tmp_path):
  raw = skulls.kaggle(tmp_path / 'raw', NUMBERS)
  path = raw / 'train_senior.csv'
  lines = path.read_text().splitlines()
  path.write_text('\n'.join([*lines[:2], lines[2].rpartition(',')[0], *lines[3:]]))
  with pytest.raises(errors.UserError, match=r'train_senior\.csv, row 3: has 18 landmarks'):
    load(raw, tmp_path)
  path.write_text('\n'.join(lines[:2]))
  with pytest.raises(errors.UserError, match=r'002\.png: has no annotation of number 002 by the'):
    find(raw)
  path.write_bytes(b'\xff\xfe\xff')
  with pytest.raises(errors.UserError, match=r'train_senior\.csv: cannot be read as text'):
    find(raw)


def test_bad_images(tmp_path):
  raw = skulls.challenge(tmp_path / 'raw', NUMBERS, suffix='.png')
  folder = raw / 'RawImage' / 'TrainingData'
  skulls.save_image(folder / '002.png', 2, shape=(60, 60))
  with pytest.raises(
    errors.UserError, match=r'002\.png: is 60 x 60 pixels, .* shape of 1935 x 2400'
  ):
    load(raw, tmp_path)
  (folder / '002.png').write_bytes((folder / '001.png').read_bytes()[:99])
  with pytest.raises(errors.UserError, match=r'002\.png: cannot be read'):
    load(raw, tmp_path)
  (raw / 'AnnotationsByMD' / '400_senior' / '144.txt').unlink()
  (raw / 'AnnotationsByMD' / '400_junior' / '144.txt').unlink()
  with pytest.raises(errors.UserError, match=r'144\.png: has no annotation of number 144'):
    find(raw)
  skulls.save_image(folder / '001.bmp', 1)
  with pytest.raises(errors.UserError, match=r'001\.png: has the number of .*001\.bmp too'):
    find(raw)
  (folder / '001.bmp').rename(folder / 'first.bmp')
  with pytest.raises(errors.UserError, match=r'first\.bmp: images must be named by number'):
    find(raw)


def test_real_radiographs_in_both_layouts(tmp_path, shared_data):
  """The same patients at full size and shrunk: equal up to the two ways of shrinking."""
  full = find(shared_data / 'isbi2015_ceph', test='test2')
  small = find(shared_data / 'isbi2015_ceph_640x800', reader='senior', test='test2')
  assert {name: len(listed) for name, listed in small.items()} == {
    'train': 120,
    'validation': 40,
    'test': 80,
  }
  fields = {'height': 200, 'width': 160}
  number = full['train'][0].number
  rows = []
  for found in (full, small):
    file = next(file for file in found['train'] if file.number == number)
    points = ceph.read_points(*file.readings['senior'])
    image = ceph.read_image(file.image)
    rows.append(ceph.cephalograms.example(image, points, fields, index=0, name=''))
  np.testing.assert_array_equal(rows[0]['landmarks'], rows[1]['landmarks'])
  assert np.abs(rows[0]['image'] - rows[1]['image']).mean() < 0.02
  np.testing.assert_allclose(rows[0]['landmarks'][0], [835 * 160 / 1935, 83], rtol=1e-6)
  np.testing.assert_allclose(rows[0]['scale'], [1.209375, 1.2])
  assert number == 1 and set(small['train'][0].readings) == {'senior'}
