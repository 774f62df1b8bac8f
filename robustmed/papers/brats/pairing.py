"""Do two runs test the same cases, so that their rows can be paired by the number of the case?"""

import pathlib
from collections.abc import Mapping
from typing import Any

from robustmed import data, errors
from robustmed.data import store
from robustmed.process import files

PLANES = {2: 'axial', 3: 'volume'}
# Fields of a source that change how cases are cut, not which they are.
_CUT = ('planes', 'side', 'slice_step', 'cache_dir', 'dir', 'workers')


def mismatch(first: pathlib.Path, second: pathlib.Path) -> str:
  """Why the cases of two finished runs are not known to be the same, in one line; '' if they are.

  Source, split and the files of the cases must agree, and the files must be those that each run
  began with.
  """
  try:
    one, two = (_cases(folder) for folder in (first, second))
  except errors.UserError as error:
    return f'the cases of both runs cannot be compared: {error}'
  if one['name'] != two['name']:
    return f'the runs have data of different sources, {one["name"]} and {two["name"]}'
  for name in sorted(one.keys() | two.keys()):
    if one.get(name) != two.get(name):
      what = 'have different files' if name == 'files' else f'differ in the data field {name}'
      return f'the cases of both runs {what}'
  return ''


def source_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of the source of a run with this configuration (plain data)."""
  plain = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in config['data'].items()
  }
  return data.fields_of({'planes': PLANES[config['dimension']], **data.source_config(plain)})


def _cases(folder: pathlib.Path) -> dict[str, Any]:
  """Everything on which the cases of a run depend, with the files as they are now."""
  stored = files.read_json(folder / 'config.json').get('config', {})
  if 'data' not in stored or not (folder / 'data.json').is_file():
    raise errors.UserError(f'{folder} does not say what its data are')
  fields = source_fields(stored)
  source = data.SOURCES[fields['name']]
  with store.report_read_errors(fields['name']):
    found = source.fingerprint(fields)
  place = store.location(source.Builder, root=pathlib.Path(), fingerprint=found)
  if files.read_json(folder / 'data.json').get('fingerprint') != place.name:
    raise errors.UserError(f'the data of {folder} have changed since it was made')
  return {'name': fields['name'], **{k: v for k, v in found.items() if k not in _CUT}}
