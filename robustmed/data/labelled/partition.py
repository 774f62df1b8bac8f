"""Patients of the cases of a folder, and its splits; no patient is in two of them."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from robustmed import errors
from robustmed.data.labelled import folders
from robustmed.process import files, links

SPLITS = ('auto', 'all', 'file', 'fraction')
FILES = ('splits.csv', 'splits_final.json')  # that are looked for
_LAST_NUMBER = re.compile(r'[-_. ]*[A-Za-z]*\d+$')


class Partition(NamedTuple):
  patients: tuple[str, ...]  # of every case
  parts: dict[str, list[int]]  # positions of the cases of 'train', 'validation', 'test'
  said: tuple[str, ...]  # how it was done, for people


def make(folder: folders.Folder, fields: Mapping[str, Any], *, spatial: int) -> Partition:
  """Returns patients and splits by the data fields patients, split, split_file and the shares."""
  patients, said, guessed = _patients(folder, fields['patients'], spatial)
  how = errors.lookup({name: name for name in SPLITS}, fields['split'], kind='split')
  path = _split_file(folder.root, fields['split_file'])
  listed = path is not None or any(case.part for case in folder.cases)
  if how == 'auto':
    how = 'file' if listed else 'fraction'
  if how == 'all':
    parts = {'test': list(range(len(folder.cases)))}
    return Partition(patients, parts, (said, 'split: all cases are the test set'))
  if how == 'fraction':
    parts, text = _fractions(folder, patients, fields)
    return Partition(patients, parts, (said, text))
  if not listed:
    raise errors.UserError(
      f'{folder.root}: data field split is file, but the folder has neither train and test '
      f'folders nor {" nor ".join(FILES)}; name one in the data field split_file'
    )
  names = _listed_parts(folder, path) if path is not None else [c.part for c in folder.cases]
  parts = {}
  for number, part in enumerate(names):
    if part:
      parts.setdefault(part, []).append(number)
  shared = _shared(patients, parts)
  if shared and not guessed:
    raise errors.UserError(
      f'{path or folder.root}: patient {shared!r} is in two splits; correct the split or the data '
      'field patients'
    )
  if shared:
    patients, said = tuple(case.name for case in folder.cases), _OWN
  if 'test' not in parts and 'validation' in parts:
    parts['test'] = parts.pop('validation')
  if 'test' not in parts:
    raise errors.UserError(f'{path or folder.root}: lists no test cases')
  parts = {part: parts[part] for part in ('train', 'test', 'validation') if part in parts}
  where = path.name if path is not None else 'the folders'
  counts = ', '.join(f'{len(chosen)} {part}' for part, chosen in parts.items())
  return Partition(patients, parts, (said, f'split by {where}: {counts} cases'))


_OWN = 'every case is a patient of its own (data.patients)'


def _patients(folder, rule, spatial):
  """(patient of every case, what to say, whether it is a guess)."""
  names = [case.name for case in folder.cases]
  if rule.endswith('.csv'):
    return _patient_table(folder, rule), f'patients as in {rule}', False
  if rule:
    return _matched(names, rule), f'patients by {rule!r} in the names', False
  prefixes = [_LAST_NUMBER.sub('', name) for name in names]
  count = len(set(prefixes))
  # Slices NAME_12 of several volumes NAME; in one series of numbers each is its own.
  if spatial == 2 and all(prefixes) and 3 <= count < len(names):
    text = f'{count} patients by the names without their last number (data.patients)'
    return tuple(prefixes), text, True
  return tuple(names), _OWN, True


def _matched(names, rule):
  try:
    pattern = re.compile(rule)
  except re.error as error:
    raise errors.UserError(
      f'data field patients {rule!r} is no regular expression: {error}'
    ) from None
  found = []
  for name in names:
    match = pattern.search(name)
    if match is None:
      raise errors.UserError(f'data field patients {rule!r} does not match the case {name!r}')
    found.append(match[1] if pattern.groups else match[0])
  return tuple(found)


def _patient_table(folder, rule):
  path = pathlib.Path(rule).expanduser()
  path = path if path.is_file() else _inside(folder.root, rule)
  table = _two_columns(path)
  lost = next((case.name for case in folder.cases if case.name not in table), None)
  if lost is not None:
    raise errors.UserError(f'{path}: has no row for the case {lost!r}')
  return tuple(table[case.name] for case in folder.cases)


def _inside(root, name) -> pathlib.Path:
  path = root / name
  return links.inside(root, path) if files.present(path) else path


def _two_columns(path) -> dict[str, str]:
  """{first cell: second cell} of the rows of a table; the endings of files are dropped."""
  rows = read_csv(path)
  found = {}
  for number, row in enumerate(rows, start=1):
    if len(row) < 2:
      raise errors.UserError(f'{path}, row {number}: needs two columns, case and value')
    name, value = pathlib.PurePath(row[0].strip()).name.partition('.')[0], row[1].strip()
    if found.setdefault(name, value) != value:
      raise errors.UserError(f'{path}, row {number}: lists {name[:60]} again with another value')
  return found


def read_csv(path: pathlib.Path) -> list[list[str]]:
  """Returns the rows of a table without empty ones; a damaged file is a `UserError`."""
  if not path.is_file():
    raise errors.UserError(f'no file {path}')
  return [row for row in files.csv_rows(path, marks=',;\t') if any(map(str.strip, row))]


def _split_file(root, named) -> pathlib.Path | None:
  if named:
    path = pathlib.Path(named).expanduser()
    path = path if path.is_file() else _inside(root, named)
    if not path.is_file():
      raise errors.UserError(f'data field split_file: no file {path}')
    return path
  return next((root / name for name in FILES if links.present(root, root / name)), None)


def _listed_parts(folder, path):
  """The part of every case, '' for those that the file does not list."""
  if path.suffix == '.json':  # nnU-Net: a list of folds, of which the first is taken
    try:
      fold = files.parsed_json(path)[0]
      table = dict.fromkeys(fold['val'], 'test') | dict.fromkeys(fold['train'], 'train')
      if not all(isinstance(name, str) for name in table):
        raise TypeError('names are text')
      both = sorted(set(fold['val']) & set(fold['train']))
      if both:
        raise errors.UserError(f'{path}: {both[0][:60]!r} is in train and in val')
    except (LookupError, TypeError) as error:
      raise errors.UserError(f"{path}: must be a list of folds with 'train' and 'val'") from error
    found = [table.get(case.name, '') for case in folder.cases]
  else:
    table = _two_columns(path)
    found = [folders.part_of(table.get(case.name, '')) for case in folder.cases]
    known = {folders.part_of(value) for value in table.values()}
    if not known - {''}:
      raise errors.UserError(f'{path}: its second column must say train, validation or test')
    named = {case.name for case in folder.cases}
    folders.check_parts((f'{path}, {name[:60]}', table[name]) for name in table if name in named)
  lost = sorted(set(table) - {case.name for case in folder.cases})
  header = {'case', 'name', 'image', 'file', 'filename', 'id'}
  lost = [name for name in lost if name.lower() not in header]
  if lost:
    raise errors.UserError(f'{path}: lists {lost[0]!r}, which is not in the folder')
  return found


def _fractions(folder, patients, fields):
  test, validation = fields['test_share'], fields['validation_share']
  if not (0 < test < 1 and 0 <= validation < 1 and test + validation < 1):
    raise errors.UserError(
      f'data fields test_share {test:g} and validation_share {validation:g} must leave a training '
      'set'
    )
  names = sorted(set(patients))
  wanted = 3 if validation else 2
  if len(names) < wanted:
    raise errors.UserError(
      f'{folder.root}: {len(names)} patient(s) are too few to split; at least {wanted} are needed; '
      'with the data field split=all every case is a test case'
    )
  order = np.random.default_rng(fields['seed'] % 2**32).permutation(len(names))
  most = len(names) - wanted + 1
  first = min(most, max(1, round(test * len(names))))
  second = min(most, max(1, round(validation * len(names)))) if validation else 0
  chosen = {
    'test': {names[i] for i in order[:first]},
    'validation': {names[i] for i in order[first : first + second]},
  }
  held = chosen['test'] | chosen['validation']
  chosen['train'] = set(names) - held
  parts = {
    part: [n for n, patient in enumerate(patients) if patient in chosen[part]]
    for part in ('train', 'test', 'validation')
    if chosen[part]
  }
  text = f'split by patient: {len(chosen["train"])} train, {first} test'
  text += f', {second} validation' if second else ''
  return parts, f'{text} (data.test_share={test:g}, data.seed={fields["seed"]})'


def _shared(patients: Sequence[str], parts: Mapping[str, Sequence[int]]) -> str:
  """A patient that is in two parts, '' if there is none."""
  seen: dict[str, str] = {}
  for part, chosen in parts.items():
    for number in chosen:
      if seen.setdefault(patients[number], part) != part:
        return patients[number]
  return ''
