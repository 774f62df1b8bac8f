import shutil

import numpy as np
import pytest

from robustmed import data, errors
from robustmed.data.cells import bccd
from support import cells

SMALL = {'height': 64, 'width': 96, 'long_side': 80, 'max_boxes': 5}


def load(folder, tmp_path, **fields):
  config = {'name': 'bccd', 'dir': str(folder), **SMALL, 'cache_dir': str(tmp_path / 'cache')}
  source = data.load({**config, **fields})
  assert data.sizes({**config, **fields}) == source.info['sizes']
  return source


def test_boxes_are_dropped_clipped_and_counted(tmp_path):
  raw = cells.fill(tmp_path / 'raw', images=3)
  for number in range(3):
    cells.write(
      raw,
      number,
      [
        ('WBC', 10, 20, 30, 40),
        ('RBC', -5, 50, 20, 70),
        ('Platelets', 7, 7, 7, 9),  # no width
        ('RBC', 85, 5, 99, 9),  # outside
      ],
    )
  source = load(raw, tmp_path)
  assert source.info['counts'] == {'boxes_clipped': 6, 'boxes_without_area': 6}
  assert source.info['sizes'] == {'train': 1, 'validation': 1, 'test': 1}
  row = source.train[0]
  # 60 x 80 pixels in 64 x 96: 2 above, 8 to the left
  np.testing.assert_allclose(row['boxes'][:2], [[18, 22, 38, 42], [8, 52, 28, 62]])
  np.testing.assert_array_equal(row['classes'], [2, 1, 0, 0, 0])
  np.testing.assert_array_equal(row['mask'], [1, 1, 0, 0, 0])
  assert row['image'].shape == (64, 96, 3) and row['image'].max() <= 1


def test_the_split_of_the_whole_set():
  parts = bccd.split(list(range(364)))
  assert {name: len(part) for name, part in parts.items()} == bccd.NOMINAL
  assert sorted(i for part in parts.values() for i in part) == list(range(364))
  # published, so that others can use the same images: positions in alphabetical order
  order = np.random.RandomState(13).permutation(364)
  assert parts['test'] == sorted(order[:37]) and parts['validation'] == sorted(order[37:70])
  assert parts['test'][:6] == [7, 12, 13, 27, 51, 61]
  some = bccd.split(list(range(21)))
  assert [len(some[name]) for name in ('train', 'validation', 'test')] == [16, 2, 3]


def test_indices_run_through_the_splits_and_every_image_is_a_group(tmp_path):
  source = load(cells.fill(tmp_path / 'raw', images=12), tmp_path)
  splits = source.train, source.validation, source.test
  assert [len(split) for split in splits] == [9, 1, 2]
  assert [int(row['index']) for split in splits for row in split] == list(range(12))
  assert [group for split in splits for group in split.groups] == list(range(12))
  assert len({row['name'] for split in splits for row in split}) == 12


def test_the_repository_itself_may_be_named(tmp_path):
  cells.fill(tmp_path / 'repository' / 'BCCD', images=3)
  assert len(bccd.find(tmp_path / 'repository')['train']) == 1


ENTITY = '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]>'
BAD_FILES = {
  'an external entity': ({'head': ENTITY}, r'00001\.xml: refused, it declares a document type'),
  'an entity bomb': ({'head': '<!DOCTYPE a [<!ENTITY b "b">]>'}, r'00001\.xml: refused'),
  'another size': (
    {'size': (480, 640)},
    r'00001\.xml: is for an image of 640 x 480 pixels, but BloodImage_00001\.jpg has 80 x 60',
  ),
}
BAD_OBJECTS = {
  'max below min': (('RBC', 9, 9, 5, 12), r'00001\.xml: object 1 has a box with max below min'),
  'no number': (('RBC', 9, 'b', 5, 12), r"00001\.xml: object 1: bndbox/ymin is 'b', not a number"),
  'nan': (('RBC', 9, 'nan', 5, 12), r"bndbox/ymin is 'nan', not a number"),
  'unknown class': (('Dog', 1, 1, 5, 12), r"00001\.xml: object 1 is a 'Dog'; known are Platelets"),
}


@pytest.mark.parametrize('case', [*BAD_FILES, *BAD_OBJECTS])
def test_bad_annotations(tmp_path, case):
  raw = cells.fill(tmp_path / 'raw', images=3)
  if case in BAD_FILES:
    options, message = BAD_FILES[case]
    cells.write(raw, 1, [], **options)
  else:
    row, message = BAD_OBJECTS[case]
    cells.write(raw, 1, [row])
  with pytest.raises(errors.UserError, match=message) as caught:
    load(raw, tmp_path)
  assert '\n' not in str(caught.value)
  assert not list((tmp_path / 'cache').rglob('*.json'))


def test_too_many_boxes(tmp_path):
  raw = cells.fill(tmp_path / 'raw', images=3)
  cells.write(raw, 2, [('RBC', 1, 1, 9, 9)] * 6)
  with pytest.raises(errors.UserError, match=r'00002: has 6 boxes; set the data field max_boxes'):
    load(raw, tmp_path)


def test_bad_folders(tmp_path):
  raw = cells.fill(tmp_path / 'raw', images=3)
  with pytest.raises(errors.UserError, match='has no folders Annotations and JPEGImages'):
    bccd.find(raw / 'JPEGImages')
  victim = raw / 'JPEGImages' / 'BloodImage_00001.jpg'
  content = victim.read_bytes()
  victim.unlink()
  with pytest.raises(errors.UserError, match=r'00001\.xml: its image .*00001\.jpg is not there'):
    bccd.find(raw)
  victim.write_bytes(content[:200])
  with pytest.raises(errors.UserError, match=r'00001\.jpg: cannot be read'):
    load(raw, tmp_path)
  (raw / 'Annotations' / 'BloodImage_00001.xml').write_text('<annotation>')
  with pytest.raises(errors.UserError, match=r'00001\.xml: cannot be read as XML'):
    bccd.parse(raw / 'Annotations' / 'BloodImage_00001.xml')
  (raw / 'Annotations' / 'BloodImage_00001.xml').unlink()
  with pytest.raises(errors.UserError, match=r'00001\.jpg: has no annotation'):
    bccd.find(raw)
  victim.unlink()
  with pytest.raises(errors.UserError, match='has 2 images; at least three needed'):
    bccd.find(raw)


def test_grey_pictures_get_three_channels(tmp_path):
  raw = tmp_path / 'raw'
  cells.write(raw, 0, [], image=np.full((60, 80), 51, np.uint8))
  name = cells.NAME.format(0)
  file = bccd.File(raw / 'Annotations' / f'{name}.xml', raw / 'JPEGImages' / f'{name}.jpg')
  picture, annotation = bccd.read(file)
  np.testing.assert_allclose(picture, np.full((60, 80, 3), 0.2), atol=1e-6)
  assert annotation.boxes.shape == (0, 4)


def test_real_images(tmp_path, shared_data):
  where = shared_data / 'bccd' / 'BCCD'
  raw = tmp_path / 'raw'
  for part, suffix in (('Annotations', 'xml'), ('JPEGImages', 'jpg')):
    (raw / part).mkdir(parents=True)
    for number in (0, 1, 2, 3, 343):
      shutil.copy(where / part / f'BloodImage_{number:05d}.{suffix}', raw / part)
  source = load(raw, tmp_path, height=256, width=352, long_side=320, max_boxes=32)
  assert source.info['counts'] == {'boxes_clipped': 0, 'boxes_without_area': 1}
  rows = [*source.train, *source.validation, *source.test]
  kinds = np.concatenate([row['classes'][row['mask']] for row in rows])
  assert (np.bincount(kinds) > 0).all() and len(np.bincount(kinds)) == 3
  for row in rows:
    boxes = row['boxes'][row['mask']]
    assert (boxes >= [16, 8, 16, 8]).all() and (boxes <= [336, 248, 336, 248]).all()
    # white cells have a nucleus: more violet inside the box than in the picture
    violet = row['image'][..., 2] - row['image'][..., 1]
    for x1, y1, x2, y2 in boxes[row['classes'][row['mask']] == 2].astype(int):
      assert violet[y1:y2, x1:x2].mean() > violet[8:248, 16:336].mean()
