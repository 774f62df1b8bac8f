"""Finds the files of each case of a brain tumour data set in the layouts of its distributions.

- 'brats2017': `HGG/<case>/<case>_{t1,t1ce,t2,flair,seg}.nii.gz` and `LGG/...`;
- 'folders': the same without the grades; 'flat': without the cases' folders either;
- 'msd': Task01 of the Medical Segmentation Decathlon, `dataset.json` with `imagesTr` (one file of
  four series a case) and `labelsTr`; names and label numbers are read from dataset.json;
- 'deepmedic': `<case>/{T1c_subtrMeanDivStd,Flair_subtrMeanDivStd,brainmask,OTMultiClass}.nii.gz`,
  two series, already standardised, labels of 2015.

A `pattern` such as '{case}/{case}-{series}.nii.gz' replaces that of a layout. The labels of every
layout are mapped to those of `brains`.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from robustmed import errors
from robustmed.data.brain import brains
from robustmed.data.files import exams, nifti
from robustmed.process import files, links

_BRATS = {0: 0, 1: 1, 2: 2, 4: 3}
HELP = (
  'put HGG/ and LGG/ of BraTS 2017 there, or dataset.json, imagesTr and labelsTr of MSD Task01, or '
  '<case>/<case>_{t1,t1ce,t2,flair,seg}.nii.gz, or set data fields layout and pattern'
)


class Layout(NamedTuple):
  """The names of the files of a case and the meaning of their labels."""

  pattern: str
  series: tuple[str, ...] = brains.SERIES  # in the order of the channels
  truth: str = 'seg'
  classes: Mapping[int, int] = _BRATS  # a file's label -> ours
  brain: str = ''  # the file of the brain mask
  corrected: bool = False  # series have negative values: no N4, no zero background

  def names(self) -> tuple[str, ...]:
    return tuple(name for name in (*self.series, self.truth, self.brain) if name)


class Case(NamedTuple):
  """One patient; a file per series, or one file for all, with its `channels` in that order."""

  name: str
  grade: str  # 'HGG', 'LGG' or ''
  series: tuple[pathlib.Path, ...]
  truth: pathlib.Path
  brain: pathlib.Path | None = None
  channels: tuple[int, ...] = ()

  def paths(self) -> tuple[pathlib.Path, ...]:
    found = (*self.series, self.truth, *((self.brain,) if self.brain else ()))
    return tuple(dict.fromkeys(found))


class Found(NamedTuple):
  layout: Layout
  cases: tuple[Case, ...]  # sorted by name


LAYOUTS = {
  'brats2017': Layout('{grade}/{case}/{case}_{series}'),
  'folders': Layout('{case}/{case}_{series}'),
  'flat': Layout('{case}_{series}'),
  'deepmedic': Layout(
    '{case}/{series}',
    series=('T1c_subtrMeanDivStd', 'Flair_subtrMeanDivStd'),
    truth='OTMultiClass',
    classes={0: 0, 1: 1, 2: 2, 3: 1, 4: 3},
    brain='brainmask',
    corrected=True,
  ),
  'msd': Layout(''),
}
_CHANNELS = {'t1': 't1', 't1w': 't1', 't1gd': 't1ce', 't1ce': 't1ce', 't2': 't2', 't2w': 't2'}
_CHANNELS['flair'] = 'flair'
_LABELS = {
  'background': 0,
  'edema': 2,
  'oedema': 2,
  'non-enhancing tumor': 1,
  'non-enhancing tumour': 1,
  'enhancing tumor': 3,
  'enhancing tumour': 3,
}


def find(fields: Mapping[str, Any]) -> Found:
  """Returns the cases of the folder `dir`; a `UserError` says which file is missing."""
  root = exams.root_of(fields['dir'], help_text=HELP)
  name = fields['layout'] or _guess(root, fields)
  layout = errors.lookup(LAYOUTS, name, kind='layout of brain tumour files')
  if name == 'msd':
    found = _decathlon(root, layout)
  else:
    layout = layout._replace(
      pattern=fields['pattern'] or layout.pattern,
      series=tuple(fields['series']) or layout.series,
      truth=fields['truth'] or layout.truth,
    )
    found = Found(layout, _cases(root, layout))
  names = [case.name for case in found.cases]
  for one in fields['exclude']:
    errors.lookup(dict.fromkeys(names), one, kind='case to exclude')
  kept = tuple(case for case in found.cases if case.name not in fields['exclude'])
  if not kept:
    raise errors.UserError(f'{root}: has no case of layout {name}; {HELP}')
  return found._replace(cases=kept)


def channels(fields: Mapping[str, Any]) -> int:
  return len(find(fields).layout.series)


def _guess(root, fields):
  if fields['pattern']:
    return 'flat'
  if links.present(root, root / 'dataset.json'):
    return 'msd'
  for name in ('brats2017', 'folders', 'flat', 'deepmedic'):
    if any(True for _ in _matches(root, LAYOUTS[name])):
      return name
  raise errors.UserError(f'{root}: has no cases of brain tumours; {HELP}')


def _matches(root, layout):
  """Yields (case, grade, series, path) of every file whose name matches the layout."""
  for part in ('{case}', '{series}'):
    if part not in layout.pattern:
      raise errors.UserError(f'data field pattern must contain {part}, not be {layout.pattern!r}')
  ending = any(layout.pattern.endswith(suffix) for suffix in nifti.SUFFIXES)
  expression = re.escape(layout.pattern).replace(r'\{', '{').replace(r'\}', '}')
  expression = expression.replace('{grade}', '(?P<grade>HGG|LGG)').replace(
    '{case}', '(?P<case>[^/]+)', 1
  )
  series = '|'.join(re.escape(name) for name in sorted(layout.names(), key=len, reverse=True))
  expression = expression.replace('{case}', '(?P=case)').replace(
    '{series}', f'(?P<series>{series})'
  )
  expression = re.compile(expression + ('' if ending else r'\.nii(\.gz)?'))
  for path in links.walk(root, endings=nifti.SUFFIXES):
    match = expression.fullmatch(path.relative_to(root).as_posix())
    if match and not path.name.startswith('.'):
      links.inside(root, path)
      yield match['case'], match.groupdict().get('grade') or '', match['series'], path


def _cases(root, layout):
  cases = {}
  for case, grade, series, path in _matches(root, layout):
    known_grade, found = cases.setdefault(case, (grade, {}))
    if known_grade != grade or series in found:
      raise errors.UserError(f'{path}: there is a second {series} of case {case}; remove one')
    found[series] = path
  made = []
  for case, (grade, found) in sorted(cases.items()):
    for name in layout.names():
      if name not in found:
        example = next(iter(found.values()))
        raise errors.UserError(
          f'{example.parent}: case {case} has no {name} (looked for '
          f'{_expected(root, layout, case, grade, name)}); add the file or exclude the case'
        )
    series = tuple(found[name] for name in layout.series)
    made.append(Case(case, grade, series, found[layout.truth], found.get(layout.brain)))
  return tuple(made)


def _expected(root, layout, case, grade, series):
  name = layout.pattern.format(case=case, grade=grade, series=series)
  return root / (name if name.endswith(nifti.SUFFIXES) else f'{name}.nii.gz')


def _decathlon(root, layout):
  path = root / 'dataset.json'
  if not links.present(root, path):
    raise errors.UserError(f'no file {path}; {HELP}')
  content = files.read_json(path)
  try:
    order = {_CHANNELS[str(name).lower()]: int(key) for key, name in content['modality'].items()}
    wanted = tuple(order[name] for name in layout.series)
    classes = {int(key): _LABELS[str(name).lower()] for key, name in content['labels'].items()}
    pairs = [(str(row['image']), str(row['label'])) for row in content['training']]
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise errors.UserError(
      f'{path}: is not that of MSD Task01 (modality, labels or training: unexpected {error})'
    ) from error
  made = []
  for image, label in pairs:
    image, label = (links.inside(root, root / name, listed=path.name) for name in (image, label))
    name = image.name
    for suffix in nifti.SUFFIXES:
      name = name.removesuffix(suffix)
    made.append(Case(name, '', (image,) * len(wanted), label, channels=wanted))
  return Found(layout._replace(classes=classes), tuple(sorted(made)))
