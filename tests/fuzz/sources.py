"""Inputs of the readers of the data sources: a file of a small folder in the original layout."""

import functools
import json
import pathlib

import numpy as np

from fuzz import readers
from robustmed import data
from robustmed.data import store
from robustmed.data.brain import n4
from robustmed.data.chest import lidc_xml
from support import gliomas, raw_folders, skulls

_BYTES = ('flip', 'flips', 'zeros', 'remove', 'double')
_WORDS = (
  *(*_BYTES, 'truncate', 'shorten', 'extend', 'nul', 'not_utf8', 'number', 'name', 'line_lost'),
  *('line_doubled', 'comma', 'quote', 'long_field'),
)
_JSON = (*_BYTES, 'not_utf8', 'number', 'quote', 'name', 'long_field', 'line_lost', 'line_doubled')
_JSON += ('field_lost', 'wrong_kind')
_FEWER = ('missing',)  # a folder without that file is a folder of fewer cases
_TEXT = ('content', 'text', 'place')


def _raw(folder, name):
  raw_folders.FILES[name](folder)


def rows(folder, name, **fields):
  """The examples of every split, with the checks that storing them makes."""
  places = {'dir': str(folder / 'raw'), 'cache_dir': str(folder / 'cache')}
  fields = data.fields_of({**raw_folders.CONFIGS[name], **places, **fields})
  source = data.SOURCES[name]
  with store.report_read_errors(name):
    source.fingerprint(fields)
  builder = source.Builder(fields=fields, data_dir=str(folder / 'built'))
  made = builder._split_generators(None)
  found = {split: [row for _, row in listed] for split, listed in made.items()}
  return found, dict(builder.counts), builder.facts


_PARTS_OF = {  # modules that a source reads its files with
  'brats': ('robustmed.data.brain.brats_files',),
  'labelled': ('robustmed.data.labelled.partition',),
  'luna16': ('robustmed.data.chest.luna16_files', 'robustmed.data.files.itk'),
}


def _source(name, target, *, make=None, fields=None, what='', silent=(), groups=(), **more):
  suffix = target.rpartition('.')[2]
  silent = silent or {'txt': _WORDS, 'csv': _WORDS, 'xml': _WORDS, 'json': _JSON}.get(suffix, ())
  kinds = ('content', 'text', 'json', 'place') if suffix == 'json' else ()
  kinds = kinds or (_TEXT if suffix in ('txt', 'csv', 'xml', 'mhd') else ('content', 'place'))
  return readers.Reader(
    f'source:{name}{what}:{target}',
    make or functools.partial(_raw, name=name),
    f'raw/{target}',
    functools.partial(rows, name=name, **(fields or {})),
    (data.SOURCES[name].__name__, *_PARTS_OF.get(name, ())),
    groups=groups or kinds,
    silent=readers.unchecked('its format', *silent),
    confined=True,
    **more,
  )


def _decathlon(folder):
  gliomas.decathlon(folder / 'raw')


def _kaggle(folder):
  skulls.kaggle(folder / 'raw', (1, 2, 3, 151, 201))


def _listed(folder):
  _raw(folder, 'lumbar_disks')
  names = sorted(path.name for path in (folder / 'raw').iterdir())
  for part, listed in (('train', names[:-2]), ('test', names[-2:])):
    (folder / 'raw' / f'{part}.txt').write_text(''.join(f'{name}\n' for name in listed))


def _mat(folder):
  import scipy.io

  (folder / 'raw').mkdir()
  for number in range(2):
    image, mask, _ = raw_folders.spines.draw(number)
    content = {'I': np.stack([image] * 3, -1), 'GT': np.stack([mask] * 3, -1)}
    scipy.io.savemat(folder / 'raw' / f'{number:02d}.mat', content, do_compression=True)


def _named(folder, *, name, text):
  _raw(folder, 'labelled')
  (folder / 'raw' / name).write_text(text)


def _annotated(folder):
  def roi(z):
    points = ((5, 5), (9, 5), (9, 9), (5, 9))
    edges = (f'<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>' for x, y in points)
    head = f'<imageZposition>{z}</imageZposition><inclusion>TRUE</inclusion>'
    return f'<roi>{head}{"".join(edges)}</roi>'

  ratings = '<calcification>6</calcification><texture>5</texture>'
  nodule = f'<noduleID>1</noduleID><characteristics>{ratings}</characteristics>{roi(0)}{roi(2.5)}'
  (folder / 'raw').mkdir()
  (folder / 'raw' / 'a.xml').write_text(
    '<LidcReadMessage xmlns="http://www.nih.gov"><ResponseHeader><SeriesInstanceUid>1.2'
    '</SeriesInstanceUid></ResponseHeader><readingSession><unblindedReadNodule>'
    f'{nodule}</unblindedReadNodule></readingSession></LidcReadMessage>'
  )


_GRID = lidc_xml.Grid((6, 20, 24), (2.5, 0.5, 0.5), np.zeros(3), np.eye(3))


def _nodules(folder):
  parsed = lidc_xml.parse(folder / 'raw' / 'a.xml')
  return parsed and (parsed, lidc_xml.nodules_of(parsed[1], _GRID))


_FIT = n4.Settings(iterations=1)
_FIELD = n4.field_file(_FIT, folder=pathlib.Path(), key=['a']).name


def _field(folder):
  return n4.cached_log_field(readers.numbers((6, 6, 6)), _FIT, folder=folder, key=['a'])


_CASES = [f'case_{number:03d}' for number in range(5)]
_PARTS = ''.join(f'{name},{"train" if n < 3 else "test"}\n' for n, name in enumerate(_CASES))
_OWNERS = ''.join(f'{name},p{n // 2}\n' for n, name in enumerate(_CASES))
_FOLDS = json.dumps([{'train': _CASES[:3], 'val': _CASES[3:]}], indent=1)
_UID = 'phantom.00000'
_CASE = 'Brats17_CBICA_0_1'

READERS = (
  _source('abdomen', 'images/abdomen_000_0000.nii.gz', silent=_FEWER),
  _source('abdomen', 'labels/abdomen_000.nii.gz', silent=_FEWER),
  _source('bccd', 'Annotations/BloodImage_00000.xml'),
  _source('bccd', 'JPEGImages/BloodImage_00000.jpg', silent=_BYTES),
  _source('brats', f'HGG/{_CASE}/{_CASE}_t1.nii.gz'),
  _source('brats', f'HGG/{_CASE}/{_CASE}_seg.nii.gz'),
  _source('brats', 'dataset.json', make=_decathlon, what=':msd'),
  _source('brats', 'imagesTr/BRATS_000.nii.gz', make=_decathlon, what=':msd'),
  _source('ceph', 'AnnotationsByMD/400_senior/001.txt', silent=(*_WORDS, 'missing', 'empty')),
  _source('ceph', 'RawImage/TrainingData/001.bmp', silent=(*_BYTES, *_FEWER)),
  _source('ceph', 'train_senior.csv', make=_kaggle, fields={'reader': 'senior'}, what=':kaggle'),
  _source('labelled', 'dataset.json', silent=(*_JSON, 'missing')),
  _source('labelled', 'imagesTr/case_000_0000.nii.gz'),
  _source('labelled', 'labelsTr/case_000.nii.gz'),
  *(
    _source(
      'labelled',
      name,
      make=functools.partial(_named, name=name, text=text),
      fields=fields,
      what=':parts',
      silent=silent,
    )
    for name, text, fields, silent in (
      ('splits.csv', _PARTS, {'split': 'file'}, _WORDS),
      ('splits_final.json', _FOLDS, {'split': 'file'}, _JSON),
      ('patients.csv', _OWNERS, {'patients': 'patients.csv', 'split': 'fraction'}, _WORDS),
    )
  ),
  _source('lumbar_disks', 'phantom0000_1.npz', silent=_FEWER),
  _source('lumbar_disks', 'train.txt', make=_listed, what=':listed', silent=(*_WORDS, 'empty')),
  _source('disk_masks', 'images/0_0.png'),
  _source('disk_masks', 'masks/0_0.png'),
  _source('disk_masks', '00.mat', make=_mat, what=':volume', silent=_BYTES),
  _source('spider', 'images/0_t2.mha', silent=(*_BYTES, *_FEWER)),
  _source('spider', 'masks/0_t2.mha', silent=_BYTES),
  _source('ssmspine', 'train/p0_0.pt', silent=_FEWER),
  *(
    _source('luna16', name, silent=silent)
    for name, silent in (
      (f'subset0/{_UID}.mhd', (*_WORDS, *_FEWER)),
      (f'subset0/{_UID}.raw', (*_BYTES, 'noise')),
      (f'seg-lungs-LUNA16/{_UID}.mhd', (*_WORDS, 'missing')),
      (f'seg-lungs-LUNA16/{_UID}.zraw', ()),
      (f'nodule_masks/{_UID}.nii.gz', _FEWER),
      ('nodule_masks/nodules.csv', (*_WORDS, 'missing')),
      ('annotations.csv', _WORDS),
      ('candidates_V2.csv', _WORDS),
    )
  ),
  _source('msd', 'dataset.json'),
  _source('msd', 'imagesTr/hippocampus_000.nii.gz'),
  _source('msd', 'labelsTr/hippocampus_000.nii.gz'),
  readers.Reader(
    'lidc_xml',
    _annotated,
    'raw/a.xml',
    _nodules,
    ('robustmed.data.chest.lidc_xml',),
    groups=_TEXT,
    silent=readers.unchecked('XML', *_WORDS),
  ),
  readers.Reader('n4', lambda folder: _field(folder), _FIELD, _field, ('robustmed.data.brain.n4',)),
)
