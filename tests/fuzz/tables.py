"""Inputs of the readers of tables, boxes, landmarks, classes and descriptions of data sets."""

import functools
import json

import nibabel as nib
import numpy as np
from PIL import Image

from fuzz import damages, readers
from robustmed.data.cephalograms import ceph
from robustmed.data.decathlon import msd
from robustmed.data.files import xml
from robustmed.data.labelled.layouts import boxes, maps, tables
from robustmed.metrics.froc import luna16

_LAYOUTS = 'robustmed.data.labelled.layouts'
_TEXT = ('content', 'text', 'place')
_JSON = ('content', 'text', 'json', 'place')
_SILENT = (
  'flip',
  'flips',
  'truncate',
  'shorten',
  'extend',
  'zeros',
  'remove',
  'double',
  'nul',
  'not_utf8',
  'number',
  'name',
  'line_lost',
  'line_doubled',
  'comma',
  'quote',
  'long_field',
)
_JSON_SILENT = ('flip', 'flips', 'zeros', 'remove', 'double', 'not_utf8', 'number', 'quote', 'name')
_JSON_SILENT += ('long_field', 'line_lost', 'line_doubled', 'field_lost', 'wrong_kind')
_VOC = """<annotation>
<filename>b1.png</filename>
<size><width>7</width><height>9</height></size>
<object><name>RBC</name><bndbox>
<xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>6</ymax>
</bndbox></object>
<object><name>WBC</name><bndbox>
<xmin>0</xmin><ymin>1</ymin><xmax>3</xmax><ymax>5</ymax>
</bndbox></object>
</annotation>
"""
_COCO = {
  'images': [{'id': n, 'file_name': f'b{n}.png', 'width': 7, 'height': 9} for n in (1, 2)],
  'annotations': [
    {'id': 1, 'image_id': 1, 'category_id': 3, 'bbox': [1, 2, 3, 4]},
    {'id': 2, 'image_id': 2, 'category_id': 1, 'bbox': [0, 1, 2.5, 4]},
  ],
  'categories': [{'id': 1, 'name': 'RBC'}, {'id': 3, 'name': 'WBC'}],
}
_MSD = {
  'name': 'Hippocampus',
  'modality': {'0': 'MRI'},
  'labels': {'0': 'background', '1': 'Anterior', '2': 'Posterior'},
  'training': [{'image': './imagesTr/h_001.nii.gz', 'label': './labelsTr/h_001.nii.gz'}],
}
_NNUNET = {
  'channel_names': {'0': 'MRI'},
  'labels': {'background': 0, 'anterior': 1, 'posterior': 2},
  'numTraining': 1,
  'file_ending': '.nii.gz',
}


def _picture(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(readers.numbers((9, 7), np.uint8)).save(path)


def _write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)


def _voc(folder, *, text=_VOC):
  _picture(folder / 'JPEGImages' / 'b1.png')
  _write(folder / 'Annotations' / 'b1.xml', text)


def _coco(folder):
  for number in (1, 2):
    _picture(folder / f'b{number}.png')
  _write(folder / 'coco.json', json.dumps(_COCO, indent=1))


def _yolo(folder):
  for number in (1, 2):
    _picture(folder / 'images' / f'b{number}.png')
    _write(folder / 'labels' / f'b{number}.txt', '0 0.5 0.5 0.25 0.5\n1 0.25 0.5 0.25 0.5\n')
  _write(folder / 'classes.txt', 'RBC\nWBC\n')


def _table(folder, *, text):
  for name in ('a', 'b'):
    _picture(folder / f'{name}.png')
  _write(folder / 'table.csv', text)


def _froc(folder):
  rows = 'seriesuid,coordX,coordY,coordZ'
  _write(folder / 'annotations.csv', f'{rows},diameter_mm\ns1,1.5,2,3,6\ns2,4,5,6,7.5\n')
  _write(folder / 'annotations_excluded.csv', f'{rows},diameter_mm\ns1,10,20,30,-1\n')
  _write(folder / 'seriesuids.csv', 's1\ns2\n')
  _write(folder / 'sub.csv', f'{rows},probability\ns1,1.5,2,3,0.9\ns2,9,9,9,0.25\n')


def _dataset(folder, *, description, image):
  for place in (f'imagesTr/{image}', 'labelsTr/h_001.nii.gz'):
    (folder / place).parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(readers.numbers((4, 5, 6), np.int16), np.eye(4)), folder / place)
  _write(folder / 'dataset.json', json.dumps(description, indent=1))


def _points(folder):
  _write(folder / '001.txt', ''.join(f'{n}.5, {n + 7}\n' for n in range(19)))


def _billion_laughs(content, rng):
  entities = ''.join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(9))
  return f'<!DOCTYPE x [<!ENTITY a0 "ha">{entities}]><annotation>&a9;</annotation>'.encode()


def _outside_entity(content, rng):
  head = b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
  return head + content.replace(b'RBC', b'&e;')


def _deep_xml(content, rng):
  return b'<annotation>' + b'<a>' * 100_000 + content + b'</a>' * 100_000 + b'</annotation>'


def _other_root(content, rng):
  return content.replace(b'annotation>', b'note>')


_XML = {
  'billion_laughs': _billion_laughs,
  'outside_entity': _outside_entity,
  'deep_xml': _deep_xml,
  'other_xml_root': _other_root,
}


def _layout(name, make, target, find, *, silent=_SILENT, groups=_TEXT, module='boxes', **more):
  return readers.Reader(
    f'layout:{name}',
    make,
    target,
    find,
    (f'{_LAYOUTS}.{module}',),
    groups=groups,
    silent=readers.unchecked('a table of text', *silent),
    **more,
  )


def _scored(folder):
  found = luna16.read_annotations(folder)
  return found, luna16.read_submission(folder / 'sub.csv', found.scans)


READERS = (
  _layout('voc', _voc, 'Annotations/b1.xml', boxes.voc, special=_XML),
  _layout('coco', _coco, 'coco.json', boxes.coco, silent=_JSON_SILENT, groups=_JSON),
  _layout('yolo', _yolo, 'labels/b1.txt', boxes.yolo, silent=(*_SILENT, 'empty', 'missing')),
  _layout('yolo_names', _yolo, 'classes.txt', boxes.yolo, silent=(*_SILENT, 'missing')),
  _layout(
    'landmarks',
    functools.partial(_table, text='image,p1_x,p1_y,p2_x,p2_y\na.png,1,2,3,4\nb.png,5,6,6.5,8\n'),
    'table.csv',
    tables.landmarks,
    module='tables',
    special={'cell_doubled': damages.cell_doubled},
  ),
  _layout(
    'classes',
    functools.partial(_table, text='image,class,split\na.png,sick,train\nb.png,well,test\n'),
    'table.csv',
    tables.classes,
    module='tables',
    special={'cell_doubled': damages.cell_doubled},
  ),
  _layout(
    'nnunet',
    functools.partial(_dataset, description=_NNUNET, image='h_001_0000.nii.gz'),
    'dataset.json',
    maps.nnunet,
    module='maps',
    groups=_JSON,
    silent=(*_JSON_SILENT, 'missing'),
  ),
  readers.Reader(
    'msd:dataset.json',
    functools.partial(_dataset, description=_MSD, image='h_001.nii.gz'),
    'dataset.json',
    msd.description,
    ('robustmed.data.decathlon.msd',),
    groups=_JSON,
    silent=readers.unchecked('JSON', *_JSON_SILENT),
  ),
  readers.Reader(
    'ceph:points',
    _points,
    '001.txt',
    lambda folder: ceph.read_points(folder / '001.txt'),
    ('robustmed.data.cephalograms.ceph',),
    groups=_TEXT,
    silent=readers.unchecked('a table of text', *_SILENT),
  ),
  readers.Reader(
    'xml',
    _voc,
    'Annotations/b1.xml',
    lambda folder: [
      (node.tag, (node.text or '').strip())
      for node in xml.read(folder / 'Annotations/b1.xml', kind='x').iter()
    ],
    ('robustmed.data.files.xml',),
    groups=_TEXT,
    special=_XML,
    silent=readers.unchecked('XML', *_SILENT, 'other_xml_root'),
  ),
  *(
    readers.Reader(
      f'froc:{name}',
      _froc,
      name,
      _scored,
      ('robustmed.metrics.froc.luna16',),
      groups=_TEXT,
      special={'cell_doubled': damages.cell_doubled},
      silent=readers.unchecked('CSV', *_SILENT, *(['empty'] if 'excluded' in name else [])),
    )
    for name in ('annotations.csv', 'annotations_excluded.csv', 'seriesuids.csv', 'sub.csv')
  ),
)
