"""Boxes, landmarks and classes."""

import json

import numpy as np
import pytest

from robustmed import data, errors
from support import cells, folders


def load(folder, tmp_path, **more):
  return data.load(
    {'name': 'labelled', 'dir': str(folder), 'cache_dir': str(tmp_path / 'cache'), **more}
  )


def refused(folder, tmp_path, match, **more):
  with pytest.raises(errors.UserError, match=match) as caught:
    load(folder, tmp_path, **more)
  assert '\n' not in str(caught.value)


def photos(folder, names, *, shape=(40, 60)):
  for number, name in enumerate(names):
    image = np.random.default_rng(number).integers(0, 255, (*shape, 3), np.uint8)
    folders.save(folder / name, image)
  return folder


BOXES = [(0, (10, 5, 30, 25)), (1, (40, 20, 60, 40))]


def coco(folder, count=4):
  names = [f'im{n}.png' for n in range(count)]
  photos(folder / 'images', names)
  table = {
    'images': [{'id': n, 'file_name': name} for n, name in enumerate(names)],
    'categories': [{'id': 7, 'name': 'cell'}, {'id': 9, 'name': 'spot'}],
    'annotations': [
      {
        'id': 10 * n + k,
        'image_id': n,
        'category_id': (7, 9)[kind],
        'bbox': [x, y, u - x, v - y],
        'iscrowd': 0,
      }
      for n in range(count)
      for k, (kind, (x, y, u, v)) in enumerate(BOXES)
    ],
  }
  (folder / 'annotations').mkdir()
  (folder / 'annotations' / 'instances.json').write_text(json.dumps(table))
  return folder


def yolo(folder, count=4):
  photos(folder / 'images', [f'im{n}.png' for n in range(count)])
  (folder / 'labels').mkdir()
  (folder / 'data.yaml').write_text("train: x\nnames: ['cell', 'spot']\nnc: 2\n")
  for n in range(count):
    lines = [
      f'{kind} {(x + u) / 120} {(y + v) / 80} {(u - x) / 60} {(v - y) / 40}'
      for kind, (x, y, u, v) in BOXES
    ]
    (folder / 'labels' / f'im{n}.txt').write_text('\n'.join(lines))
  return folder


def voc(folder, count=4):
  for n in range(count):
    image = np.random.default_rng(n).integers(0, 255, (40, 60, 3), np.uint8)
    named = [(('cell', 'spot')[kind], *box) for kind, box in BOXES]
    cells.write(folder, n, named, image=image)
  return folder


@pytest.mark.parametrize('make', [coco, yolo, voc])
def test_boxes_of_every_layout_are_the_same(make, tmp_path):
  source = load(make(tmp_path / 'raw'), tmp_path, height=64, width=96)
  assert ', 4 cases, 2D, 3 channels, 2 classes: cell, spot' in source.info['lines'][0]
  assert source.info['sizes'] == {'train': 3, 'test': 1}
  example = source.train[0]
  assert example['image'].shape == (64, 96, 3) and example['mask'].tolist() == [True, True]
  zoom, shift = 1.6, np.array([0, 0, 0, 0])
  wanted = np.array([box for _, box in BOXES]) * zoom + shift
  np.testing.assert_allclose(example['boxes'], wanted, atol=1e-4)
  assert example['classes'].tolist() == [0, 1]
  assert source.info['cases'][int(example['case'])]['shape'] == [40, 60]


def test_mistakes_in_boxes(tmp_path):
  one = yolo(tmp_path / 'yolo')
  (one / 'labels' / 'im1.txt').write_text('5 0.5 0.5 0.1 0.1')
  refused(one, tmp_path, 'im1.txt: class 5 is not one of the 2 names')
  (one / 'labels' / 'im1.txt').write_text('0 30 5 10 10')
  refused(one, tmp_path, 'im1.txt, line 1: numbers must be fractions')
  (one / 'labels' / 'im1.txt').write_text('0 0.2 0.2 0.4 0.2 0.4 0.6')  # a polygon
  (one / 'labels' / 'other.txt').write_text('')
  refused(one, tmp_path, 'other.txt: has no image of that name')
  (one / 'labels' / 'other.txt').unlink()
  found = list(load(one, tmp_path, split='all', height=40, width=60).test)
  np.testing.assert_allclose(found[1]['boxes'][0], [12, 8, 24, 24], atol=1e-4)
  two = coco(tmp_path / 'coco')
  path = two / 'annotations' / 'instances.json'
  table = json.loads(path.read_text())
  table['images'][0]['file_name'] = '../im0.png'
  path.write_text(json.dumps(table))
  refused(two, tmp_path, r'\.\./im0.png lies outside the folder')
  table['images'][0]['file_name'] = 'gone.png'
  path.write_text(json.dumps(table))
  refused(two, tmp_path, 'gone.png: is not there; it is listed in')
  three = voc(tmp_path / 'voc')
  (three / 'JPEGImages' / 'BloodImage_00001.jpg').unlink()
  refused(three, tmp_path, 'BloodImage_00001.xml: its image JPEGImages/BloodImage_00001 is not')


def test_landmarks_of_a_table(tmp_path):
  folder = photos(tmp_path / 'raw', [f'pics/p{n}.png' for n in range(5)])
  rows = ''.join(f'p{n}.png,{10 + n},5,30,{20 + n}\n' for n in range(5))
  (folder / 'points.csv').write_text('image,nose_x,nose_y,chin_x,chin_y\n' + rows)
  source = load(folder, tmp_path, height=80, width=120, mm_per_pixel=0.5)
  assert source.info['lines'][0] == (
    'landmarks in a CSV, 5 cases, 2D, 3 channels, 2 landmarks: nose, chin'
  )
  example = source.train[0]
  n = int(example['name'][1])
  np.testing.assert_allclose(example['landmarks'], [[2 * (10 + n), 10], [60, 2 * (20 + n)]])
  np.testing.assert_allclose(example['scale'], [0.25, 0.25])
  assert example['image'].min() >= -1 and example['image'].max() <= 1
  (folder / 'points.csv').write_text('image,nose_x,nose_y,chin_x,chin_y\n' + rows + 'p0.png,1,1,,1')
  refused(folder, tmp_path, "row 7: '' is not a number")
  (folder / 'points.csv').write_text(
    'image,nose_x,nose_y,chin_x,chin_y\n' + rows.replace('10,5', '1_0,5')
  )
  refused(folder, tmp_path, "row 2: '1_0' is not a number")
  (folder / 'points.csv').write_text('image,nose_x,nose_y,chin_x,chin_y\n' + rows + 'q.png,1,1,1,1')
  refused(folder, tmp_path, 'row 7: the image q.png is not in the folder')
  (folder / 'points.csv').write_text(
    'image,a_x,a_y,b_x,b_y\n' + rows.replace(',30,', ',99,') + 'p0.png,1,1,1,1'
  )
  refused(folder, tmp_path, "two cases of the name 'p0'")


def test_classes_as_folders_and_as_a_table(tmp_path):
  names = [f'{kind}/{kind}{n}.png' for kind in ('benign', 'malign') for n in range(3)]
  folder = photos(tmp_path / 'raw', names)
  source = load(folder, tmp_path, height=32, width=32)
  assert source.info['lines'][0] == (
    'class folders, 6 cases, 2D, 3 channels, 2 classes: benign, malign'
  )
  for example in [*source.train, *source.test]:
    assert example['label'] == example['name'].startswith('malign')
  (folder / 'labels.csv').write_text(
    'image,diagnosis,split\n'
    + ''.join(f'{n},{n[0]},{"test" if "0" in n else "train"}\n' for n in names)
  )
  source = load(folder, tmp_path, height=32, width=32)
  assert source.info['classes'] == ['b', 'm']
  assert source.info['sizes'] == {'train': 4, 'test': 2}


def test_volumes_have_label_maps_alone(tmp_path):
  folders.save(tmp_path / 'raw' / 'a' / 'v0.nii.gz', np.zeros((4, 5, 6), np.int16))
  folders.save(tmp_path / 'raw' / 'b' / 'v1.nii.gz', np.zeros((4, 5, 6), np.int16))
  refused(tmp_path / 'raw', tmp_path, 'boxes, landmarks and classes are 2D')


@pytest.mark.slow
@pytest.mark.long
def test_bccd_and_cephalograms_as_folders_of_a_user(shared_data, tmp_path):
  source = load(shared_data / 'bccd', tmp_path, height=96, width=128)
  assert source.info['lines'][0] == (
    'Pascal VOC, 304 cases, 2D, 3 channels, 3 classes: Platelets, RBC, WBC'
  )
  assert source.info['sizes'] == {'train': 172, 'test': 59, 'validation': 73}
  assert source.info['counts']['boxes_without_area'] == 1
  source = load(shared_data / 'isbi2015_ceph', tmp_path, height=100, width=80, mm_per_pixel=0.1)
  assert ', 22 cases, 2D, 3 channels, 19 landmarks' in source.info['lines'][0]
  np.testing.assert_allclose(source.test[0]['scale'], [0.1 * 1935 / 80, 0.1 * 24], rtol=1e-5)
