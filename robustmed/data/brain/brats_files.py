"""Which files are a case of a brain tumour set, in the layouts it is distributed in.

- 'brats2017': `HGG/<case>/<case>_{t1,t1ce,t2,flair,seg}.nii.gz` and `LGG/...`;
- 'folders': the same without the grades; 'flat': without the cases' folders either;
- 'msd': Task01 of the Medical Segmentation Decathlon, `dataset.json` with `imagesTr` (one file of
  four series a case) and `labelsTr`; names and numbers are read from dataset.json;
- 'deepmedic': `<case>/{T1c_subtrMeanDivStd,Flair_subtrMeanDivStd,brainmask,OTMultiClass}.nii.gz`,
  two series, standardised already, labels of 2015.

A `pattern` such as '{case}/{case}-{series}.nii.gz' replaces that of a layout. Labels of every
layout become those of `brains`.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from robustmed import errors
from robustmed.data.brain import brains
from robustmed.data.files import exams, nifti
from robustmed.process import files

_BRATS = {0: 0, 1: 1, 2: 2, 4: 3}
HELP = (
  'put HGG/ and LGG/ of BraTS 2017 there, or dataset.json, imagesTr and labelsTr of MSD Task01, or '
  '<case>/<case>_{t1,t1ce,t2,flair,seg}.nii.gz, or set data fields layout and pattern'
)


class Layout(NamedTuple):
  """What the files of a case are called and what their numbers mean."""

  pattern: str
  series: tuple[str, ...] = brains.SERIES  # in the order of the channels
  truth: str = 'seg'
  classes: Mapping[int, int] = _BRATS  # a file's label -> ours
  brain: str = ''  # a file with the brain's mask
  corrected: bool = False  # series have negative values: no N4, no zero background

  def names(self) -> tuple[str, ...]:
    return tuple(name for name in (*self.series, self.truth, self.brain) if name)


class Case(NamedTuple):
  """One patient; series by channel, all of one file where `channels` says which of its volumes."""

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
  """Returns the cases of the folder `dir`, all files there; a `UserError` says what is missing."""
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
    found = Found(layout, _matching(root, layout))
  names = [case.name for case in found.cases]
  for one in fields['exclude']:
    errors.lookup(dict.fromkeys(names), one, kind='case to exclude')
  kept = tuple(case for case in found.cases if case.name not in fields['exclude'])
  if not kept:
    raise errors.UserError(f'{root}: no case of layout {name} there; {HELP}')
  return found._replace(cases=kept)


def channels(fields: Mapping[str, Any]) -> int:
  return len(find(fields).layout.series)


def _guess(root, fields):
  if fields['pattern']:
    return 'flat'
  if (root / 'dataset.json').is_file():
    return 'msd'
  for name in ('brats2017', 'folders', 'flat', 'deepmedic'):
    if any(True for _ in _matches(root, LAYOUTS[name])):
      return name
  raise errors.UserError(f'{root}: no cases of brain tumours there; {HELP}')


def _matches(root, layout):
  """(case, grade, series, path) of every file that is named as the layout wants."""
  for part in ('{case}', '{series}'):
    if part not in layout.pattern:
      raise errors.UserError(f'data field pattern must contain {part}, not be {layout.pattern!r}')
  stars = re.sub(r'\{\w+\}', '*', layout.pattern)
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
  for path in sorted(root.glob(stars if ending else f'{stars}.nii*')):
    match = expression.fullmatch(path.relative_to(root).as_posix())
    if match and not path.name.startswith('.'):
      yield match['case'], match.groupdict().get('grade') or '', match['series'], path


def _matching(root, layout):
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
  if not path.is_file():
    raise errors.UserError(f'no file {path}; {HELP}')
  content = files.read_json(path)
  try:
    order = {_CHANNELS[str(name).lower()]: int(key) for key, name in content['modality'].items()}
    wanted = tuple(order[name] for name in layout.series)
    classes = {int(key): _LABELS[str(name).lower()] for key, name in content['labels'].items()}
    pairs = [(str(row['image']), str(row['label'])) for row in content['training']]
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise errors.UserError(
      f'{path}: is not that of MSD Task01 (modality, labels, training; stumbled over {error})'
    ) from error
  made = []
  for image, label in pairs:
    image, label = (_inside(root, path, name) for name in (image, label))
    name = image.name
    for suffix in nifti.SUFFIXES:
      name = name.removesuffix(suffix)
    made.append(Case(name, '', (image,) * len(wanted), label, channels=wanted))
  return Found(layout._replace(classes=classes), tuple(sorted(made)))


def _inside(root, listing, name):
  path = root / name
  if not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
    raise errors.UserError(f'{listing}: lists {name}, which is not in that folder; add the file')
  return path
