"""Tables and folders that contradict themselves, or have names that no text has, are refused."""

import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from robustmed import errors
from robustmed.data.labelled import folders, partition
from robustmed.data.labelled.layouts import boxes, maps, tables

LIST = {'patients': '', 'split': 'file', 'split_file': ''}


def _write(root, **files):
  for name, text in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return root


def _pictures(root, *names):
  for number, name in enumerate(names):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 6), number, np.uint8)).save(path)
  return root


def _refused(match, function, *arguments, **more):
  with pytest.raises(errors.UserError, match=match):
    function(*arguments, **more)


@pytest.mark.parametrize(
  ('text', 'match'),
  [
    ('image,p_x,p_y,p_x\na.png,1,2,3\n', 'has the column p_x twice'),
    ('image,p_x,p_y,q_x\na.png,1,2,3\n', 'has a column q_x and none of its other axis'),
    ('image,p_x,p_y,y_q\na.png,1,2,3\n', 'has a column y_q and none of its other axis'),
    ('image,p_x,p_y\na.png,1,5,2,5\n', 'row 2: has 5 cells, the header 3'),
    ('image,p_x,p_y,split\na.png,1,2,train\nb.png,3,4,tset\n', "row 3: 'tset' is no part"),
    ('image,p_x,p_y\n"a.png,1,2\nb.png,3,4\n', 'is no table'),
    (f'image,p_x,p_y\n{"a" * 300}.png,1,2\n', 'is not in the folder'),
  ],
)
def test_tables_of_landmarks(tmp_path, text, match):
  _write(_pictures(tmp_path, 'a.png', 'b.png'), **{'t.csv': text})
  _refused(match, tables.landmarks, tmp_path)


def test_columns_that_end_in_an_axis_by_chance_are_no_landmarks(tmp_path):
  text = 'image,p_x,p_y,sex,quality,group,\na.png,1,2,f,good,7,\nb.png,3,4,m,bad,8\n'
  _write(_pictures(tmp_path, 'a.png', 'b.png'), **{'t.csv': text})
  assert [case.label for case in tables.landmarks(tmp_path).cases] == [((1, 2),), ((3, 4),)]


@pytest.mark.parametrize(
  ('text', 'match'),
  [
    ('image,class\na.png,sick\nb.png,\n', 'row 3: has no class'),
    ('image,class,class\na.png,sick,well\nb.png,well,sick\n', 'has the column class twice'),
    ('image,class,split\na.png,sick,train\nb.png,well,trian\n', "row 3: 'trian' is no part"),
  ],
)
def test_tables_of_classes(tmp_path, text, match):
  _write(_pictures(tmp_path, 'a.png', 'b.png'), **{'t.csv': text})
  _refused(match, tables.classes, tmp_path)


def test_a_column_of_other_sets_is_no_split(tmp_path):
  text = 'image,class,set\na.png,sick,A\nb.png,well,B\n'
  _write(_pictures(tmp_path, 'a.png', 'b.png'), **{'t.csv': text})
  assert [case.part for case in tables.classes(tmp_path).cases] == ['', '']


COCO = {
  'images': [{'id': 1, 'file_name': 'a.png'}, {'id': 2, 'file_name': 'b.png'}],
  'annotations': [{'id': 1, 'image_id': 1, 'category_id': 7, 'bbox': [1, 1, 2, 2]}],
  'categories': [{'id': 7, 'name': 'cell'}, {'id': 9, 'name': 'spot'}],
}


@pytest.mark.parametrize(
  ('part', 'place', 'change', 'match'),
  [
    ('categories', 1, {'id': 7}, 'category 7 is cell and spot'),
    ('categories', 1, {'name': 'cell'}, 'names the class cell twice'),
    ('images', 1, {'id': 1}, 'has image 1 twice'),
  ],
)
def test_coco(tmp_path, part, place, change, match):
  table = json.loads(json.dumps(COCO))
  table[part][place].update(change)
  _write(_pictures(tmp_path, 'a.png', 'b.png'), **{'train.json': json.dumps(table)})
  _refused(match, boxes.coco, tmp_path)


def test_coco_of_two_files_that_number_the_classes_differently(tmp_path):
  _pictures(tmp_path, 'a.png', 'b.png', 'c.png')
  swapped = [{'id': 9, 'name': 'cell'}, {'id': 7, 'name': 'spot'}]
  other = {**COCO, 'images': [{'id': 1, 'file_name': 'c.png'}], 'categories': swapped}
  _write(tmp_path, **{'train.json': json.dumps(COCO), 'val.json': json.dumps(other)})
  _refused('category 9 is spot and cell', boxes.coco, tmp_path)


def _yolo(root, **names):
  _pictures(root, 'images/a.png')
  return _write(root, **{'labels/a.txt': '1 0.5 0.5 0.25 0.25\n', **names})


def test_yolo_names(tmp_path):
  _refused('names the class b twice', boxes.yolo, _yolo(tmp_path / '1', **{'classes.txt': 'b\nb'}))
  numbered = _yolo(tmp_path / '2', **{'data.yaml': 'names:\n  1: b\n  0: a\n'})
  assert boxes.yolo(numbered).classes == ('a', 'b')
  gap = _yolo(tmp_path / '3', **{'data.yaml': 'names:\n  0: a\n  2: b\n'})
  _refused('are not numbered 0, 1, ...', boxes.yolo, gap)
  (gap / 'data.yaml').unlink()
  (gap / 'data.yaml').symlink_to('nowhere')
  _refused('no regular file', boxes.yolo, gap)


def test_an_image_in_two_lists_of_voc(tmp_path):
  lists = {f'ImageSets/Main/{part}.txt': 'a\n' for part in ('train', 'val')}
  text = '<annotation></annotation>'
  _write(_pictures(tmp_path, 'JPEGImages/a.png'), **lists, **{'Annotations/a.xml': text})
  _refused('a is in train and in', boxes.voc, tmp_path)


def _folder(root):
  cases = [folders.Case(name, (root / f'{name}.png',), 0) for name in ('a', 'b', 'c')]
  return folders.Folder(root, 'x', 'classes', tuple(cases))


@pytest.mark.parametrize(
  ('name', 'text', 'match'),
  [
    ('splits.csv', 'a,train\nb,test\na,test\n', 'row 3: lists a again'),
    ('splits.csv', 'a,train\nb,test\nc,tset\n', "'tset' is no part"),
    ('splits_final.json', '[{"train": ["a", "b"], "val": ["b"]}]', "'b' is in train and in val"),
  ],
)
def test_splits(tmp_path, name, text, match):
  _write(tmp_path, **{name: text})
  _refused(match, partition.make, _folder(tmp_path), LIST, spatial=2)


def test_a_case_of_two_patients(tmp_path):
  _write(tmp_path, **{'p.csv': 'a,1\nb,1\na,2\nc,3\n'})
  fields = {'patients': 'p.csv', 'split': 'all', 'split_file': ''}
  _refused('row 3: lists a again', partition.make, _folder(tmp_path), fields, spatial=2)
  _write(tmp_path, **{'p.csv': 'case,patient\na,1\nb,1\na,1\nc,3\n'})
  found = partition.make(_folder(tmp_path), fields, spatial=2)
  assert found.patients == ('1', '1', '3')


def test_two_folders_of_one_part(tmp_path):
  _pictures(tmp_path, 'train/x/a.png', 'training/x/b.png')
  _refused('train and training are both', folders.part_folders, tmp_path)


def test_ten_channels_keep_their_order():
  named = {str(number): f'c{number}' for number in range(12)}
  channels = maps._channels({'channel_names': named}, pathlib.Path('dataset.json'))
  assert channels == tuple(f'c{number}' for number in range(12))


@pytest.mark.parametrize(
  'change', [('<xmin>1', '<xmin>0</xmin><xmin>1'), ('<name>a', '<name>b</name><name>a')]
)
def test_an_object_of_voc_that_says_a_thing_twice(tmp_path, change):
  corners = '<xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax>'
  text = f'<object><name>a</name><bndbox>{corners}</bndbox></object>'.replace(*change)
  path = {'Annotations/a.xml': f'<annotation>{text}</annotation>'}
  _write(_pictures(tmp_path, 'JPEGImages/a.png'), **path)
  _refused('object 1 has .* twice', boxes.voc, tmp_path)


LAYOUTS = {'pairs': folders.Layout('pairs', maps.has_pairs, maps.pairs, '')}


@pytest.mark.parametrize('name', [b'im\xff.png', b'a\nb.png', b'a\x1b[31m.png'])
def test_names_of_files_that_are_no_text(tmp_path, name):
  for part in ('images', 'labels'):
    _pictures(tmp_path, f'{part}/a.png', f'{part}/b.png')
    os.rename(tmp_path / part / 'a.png', os.fsencode(tmp_path / part) + b'/' + name)
  with pytest.raises(errors.UserError, match='is no name for a case') as refused:
    folders.recognise(tmp_path, LAYOUTS, layout='auto')
  assert str(refused.value).isprintable()


def test_names_of_classes_that_are_no_text(tmp_path):
  _write(_pictures(tmp_path, 'a.png'), **{'t.csv': 'image,class\na.png,or\x1b[1mgan\n'})
  known = folders.Layout('classes', tables.has_classes, tables.classes, '')
  _refused('is no name for a class', folders.recognise, tmp_path, {'x': known}, layout='x')
