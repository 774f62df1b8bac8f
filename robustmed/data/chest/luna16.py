"""LUNA16 (Setio et al. 2017): chest CT with lung nodules, cut into patches.

`dir` is the folder that `luna16_files` describes. Scans are split by their subset, which is a fold
of the challenge: 0-7 train, 8 validation, 9 test by default; missing subsets are skipped. `fold` k
instead tests on subset k, validates on the one before it (9 before 0) and trains on the other
eight, so that ten runs test every scan once. All annotated nodules become patches, whatever their
diameter. `exclude` names scans to leave out. The patches are those of `nodule_patches`; `scans`
reads whole scans.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

from robustmed import errors
from robustmed.data.chest import luna16_files, nodule_patches, nodule_scans
from robustmed.data.files import exams

DEFAULTS = {
  'dir': '',
  **nodule_patches.FIELDS,
  'train_subsets': tuple(range(8)),
  'validation_subsets': (8,),
  'test_subsets': (9,),
  'fold': -1,  # 0 to 9, in place of the three
  'exclude': (),
}
FOLDS = 10
_SCANS, _NODULES = 888, 1186  # of all ten subsets


def sizes(fields: Mapping[str, Any]) -> dict[str, int]:
  """Returns the patches per split; without the folder, about those of LUNA16."""
  check_fields(fields)
  if fields['dir'] and pathlib.Path(fields['dir']).expanduser().is_dir():
    return nodule_patches.sizes(scans(fields), fields)
  per_scan = _NODULES / _SCANS + nodule_patches.others(fields)
  shares = {name: len(listed) / FOLDS for name, listed in subsets(fields).items()}
  return {name: round(share * _SCANS * per_scan) for name, share in shares.items() if share}


def groups(fields: Mapping[str, Any]) -> int:
  """Returns the scans of the test split; without the folder, about those of LUNA16."""
  check_fields(fields)
  if fields['dir'] and pathlib.Path(fields['dir']).expanduser().is_dir():
    return len(scans(fields).splits['test'])
  return round(len(subsets(fields)['test']) / FOLDS * _SCANS)


def fingerprint(fields: Mapping[str, Any]) -> Any:
  """Returns the files with their sizes and times, and the fields that change the patches."""
  check_fields(fields)
  found = _find(fields)
  tables = [path for path in (*found.tables.values(), found.kinds()) if path is not None]
  listed = scans(fields).splits
  files = {
    name: [[uid, exams.stamp(found.paths(uid))] for uid in uids] for name, uids in listed.items()
  }
  return {**nodule_patches.key(fields), 'tables': exams.stamp(tables), 'files': files}


def scans(fields: Mapping[str, Any]) -> nodule_scans.Scans:
  """Returns the scans of the folder by split."""
  found = _find(fields)
  known = luna16_files.annotations(found)
  for uid in fields['exclude']:
    errors.lookup(found.images, uid, kind='scan to exclude')
  splits = {
    name: tuple(
      uid for uid in found.images if found.subset[uid] in listed and uid not in fields['exclude']
    )
    for name, listed in subsets(fields).items()
  }
  if not splits['test']:
    raise errors.UserError(
      f'{found.root}: has no scan in the test subsets {subsets(fields)["test"]}; unpack them there '
      'or set data field test_subsets or fold'
    )
  number = {uid: place for place, uid in enumerate(known.scans)}
  listed = {name: uids for name, uids in splits.items() if uids}
  counts = {
    uid: int((known.nodules.scan == number[uid]).sum()) for uids in listed.values() for uid in uids
  }
  return nodule_scans.Scans(
    splits=listed,
    read=functools.partial(luna16_files.read, found, known),
    tables=functools.partial(luna16_files.tables, known),
    counts=counts,
    masked=functools.partial(luna16_files.masked, found, known),
  )


def check_fields(fields: Mapping[str, Any]) -> None:
  nodule_patches.check_fields(fields)
  if fields['fold'] not in range(-1, FOLDS):
    raise errors.UserError(f'data field fold must be 0 to 9, or -1, not {fields["fold"]}')
  named = [subset for listed in subsets(fields).values() for subset in listed]
  if len(set(named)) < len(named) or not set(named) <= set(range(FOLDS)):
    raise errors.UserError(
      f'each of the subsets 0 to 9 can be in one split only, not {subsets(fields)}'
    )


def subsets(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """The subsets of every split."""
  fold = fields['fold']
  if fold >= 0:
    before = (fold - 1) % FOLDS
    rest = tuple(number for number in range(FOLDS) if number not in (fold, before))
    return {'train': rest, 'validation': (before,), 'test': (fold,)}
  return {name: fields[f'{name}_subsets'] for name in nodule_patches.SPLITS}


def _find(fields):
  needed = fields['negatives_from'] == 'candidates' and fields['negatives'] > 0
  return luna16_files.find(fields['dir'], candidates=needed and fields['cut'] == 'patches')


arrange = nodule_patches.arrange


class Luna16(nodule_patches.PatchBuilder):
  """Builds the patches of the folder that the module's docstring describes."""

  def scans(self):
    return scans(self.fields)


Builder = Luna16
