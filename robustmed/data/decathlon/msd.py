"""Heart, Hippocampus and Prostate of the Medical Segmentation Decathlon, as distributed.

`dir` is the folder of one task, e.g. `Task04_Hippocampus`, with `dataset.json`, `imagesTr` and
`labelsTr` (Antonelli et al. 2022). Cases, classes and modalities are those that dataset.json lists;
files whose names start with a dot are left out. Splits and preprocessing are those of nnU-Net v1,
see `volumes` and `preprocess`; fold 0 is that of the published study. With `folds=5` all held-out
cases of its five folds are test cases.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from robustmed import errors
from robustmed.data.decathlon import folds, preprocess, volumes
from robustmed.data.files import exams, nifti
from robustmed.process import files, links

DEFAULTS = {'dir': '', 'task': '', **volumes.FIELDS}
_HELP = (
  'download the archive of the task (Task02_Heart, Task04_Hippocampus or Task05_Prostate) from '
  'medicaldecathlon.com, unpack it and name the folder that has dataset.json, imagesTr and labelsTr'
)


class Task(NamedTuple):
  """What is known about a task without its files."""

  patch: tuple[int, int]  # of the published network
  modalities: int
  sizes: Mapping[str, int]  # slices of the published splits, approximately
  depths: tuple[int, ...]  # slices of the test volumes, approximately
  names: tuple[str, ...]  # as dataset.json and folders spell it, in lower case
  cases: int
  classes: tuple[str, ...]  # beside the background, as dataset.json names them, in lower case


TASKS = {
  'heart': Task(
    (320, 256),
    1,
    {'train': 1840, 'test': 200, 'validation': 115},
    (115,) * 3,
    ('heart', 'leftatrium'),
    20,
    ('left atrium',),
  ),
  'hippocampus': Task(
    (56, 40),
    1,
    {'train': 7400, 'test': 190, 'validation': 600},
    (35,) * 35,
    ('hippocampus',),
    260,
    ('anterior', 'posterior'),
  ),
  'prostate': Task(
    (320, 320),
    2,
    {'train': 490, 'test': 60, 'validation': 40},
    (20,) * 5,
    ('prostate',),
    32,
    ('pz', 'tz'),
  ),
}


def sizes(fields: Mapping[str, Any]) -> dict[str, int]:
  """Returns the slices per split, read from the volumes; without the folder, approximate ones."""
  if not _folder_exists(fields):
    return _nominal_sizes(fields)
  return volumes.sizes(find(fields), fields)


def depths(fields: Mapping[str, Any]) -> list[int]:
  """Returns the slices of every test volume; without the folder, approximate ones."""
  if not _folder_exists(fields):
    return [_nominal_task(fields).depths[0]] * len(_nominal_cases(fields)['test'])
  return volumes.depths(find(fields))


def groups(fields: Mapping[str, Any]) -> int:
  """Returns the number of test volumes; without the folder, that of the published data set."""
  cases = volumes.split(find(fields)) if _folder_exists(fields) else _nominal_cases(fields)
  return len(cases['test'])


def _folder_exists(fields):
  return bool(fields['dir']) and pathlib.Path(fields['dir']).expanduser().is_dir()


def _nominal_task(fields):
  return errors.lookup(TASKS, fields['task'] or 'hippocampus', kind='task')


def _nominal_cases(fields):
  volumes.check_fields(fields)
  cases = _nominal_task(fields).cases
  chosen = {name: fields[name] for name in folds.FIELDS}
  return folds.partition(cases, **chosen)


def _nominal_sizes(fields):
  task = _nominal_task(fields)
  if not (fields['all_test'] or fields['folds']):
    return dict(task.sizes)
  found = {name: len(cases) * task.depths[0] for name, cases in _nominal_cases(fields).items()}
  # Not all slices of a test volume are evaluated.
  return {**found, 'test': found['test'] * task.sizes['test'] // sum(task.depths)}


def features(fields: Mapping[str, Any]):
  """Returns the features of the published task's slices, without the folder."""
  task = _nominal_task(fields)
  return volumes.features(modalities=task.modalities, foreground=len(task.classes))


def windows(fields: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Returns the size of the patches that are loaded in training, and that of evaluation."""
  return volumes.windows(fields, patch=fields['patch'] or _nominal_task(fields).patch)


def fingerprint(fields: Mapping[str, Any]) -> Any:
  """Returns the files with their sizes and times, and the fold."""
  volumes.check_fields(fields)
  return find(fields).key


class Msd(volumes.VolumeBuilder):
  """Builds the cases of the folder that the module's docstring describes."""

  def study(self):
    return find(self.fields)


def arrange(source, fields, facts):
  task = TASKS[task_of(fields, description(root_of(fields)))]
  return volumes.arrange(source, fields, facts, patch=fields['patch'] or task.patch)


def root_of(fields: Mapping[str, Any]) -> pathlib.Path:
  return exams.root_of(fields['dir'], help_text=_HELP)


def description(root: pathlib.Path) -> dict[str, Any]:
  """Returns the content of dataset.json with its fields checked."""
  path = root / 'dataset.json'
  if not links.present(root, path):
    raise errors.UserError(f'{root}: has no dataset.json; {_HELP}')
  found = files.parsed_json(path, help_text='unpack it again')
  for name, kind in (('training', list), ('labels', dict), ('modality', dict)):
    if not isinstance(found, dict) or name not in found:
      raise errors.UserError(f'{path}: has no field {name!r}; {_HELP}')
    if not isinstance(found[name], kind):
      raise errors.UserError(f'{path}: field {name!r} is not a {kind.__name__}')
  for name in ('labels', 'modality'):
    numbers = sorted(found[name])
    if numbers != sorted(str(n) for n in range(len(numbers))) or len(numbers) < 1:
      raise errors.UserError(f'{path}: the numbers of field {name!r} are not 0, 1, 2, ...')
  if len(found['labels']) < 2:
    raise errors.UserError(f"{path}: field 'labels' has no class beside the background")
  return found


def task_of(fields: Mapping[str, Any], found: Mapping[str, Any]) -> str:
  """Returns the task that the field names, else that of dataset.json, else that of the folder."""
  if fields['task']:
    errors.lookup(TASKS, fields['task'], kind='task')
    return fields['task']
  folder = pathlib.Path(fields['dir']).expanduser().resolve().name
  for text in (str(found.get('name', '')), folder):
    for task, known in TASKS.items():
      if any(name in text.lower().replace(' ', '') for name in known.names):
        return task
  raise errors.UserError(
    f'{fields["dir"]}: neither dataset.json nor the folder says which task it is; set the data '
    f'field task to one of {", ".join(TASKS)}'
  )


def _check_organ(root, found, task):
  """Raises a `UserError` if the folder is of another organ than `task`, whatever its name.

  Reports name the classes of the task, so that another organ would be shown under its name.
  """
  wanted = TASKS[task].classes
  labels = [str(found['labels'][str(n)]) for n in range(1, len(found['labels']))]
  named = any(
    name in text.lower().replace(' ', '')
    for text in (str(found.get('name', '')), root.resolve().name)
    for name in TASKS[task].names
  )
  alike = tuple(label.lower() for label in labels) == wanted
  if len(labels) != len(wanted) or not (named or alike):
    raise errors.UserError(
      f'{root / "dataset.json"}: the classes are {", ".join(labels)}, but the task {task} has '
      f'{", ".join(wanted)}; configs/train.py trains on a folder of any organ'
    )


def find(fields: Mapping[str, Any]) -> volumes.Study:
  """Returns the cases that dataset.json lists, sorted by name; all files must exist."""
  root = root_of(fields)
  found = description(root)
  name = task_of(fields, found)
  task = TASKS[name]
  _check_organ(root, found, name)
  if len(found['modality']) != task.modalities:
    raise errors.UserError(
      f"{root / 'dataset.json'}: field 'modality' has {len(found['modality'])} entries, this task "
      f'has {task.modalities}'
    )
  cases, stamps = {}, []
  for entry in found['training']:
    image, label = (_listed(root, entry, kind) for kind in ('image', 'label'))
    if image.name.startswith('.') or label.name.startswith('.'):
      continue
    name = image.name.removesuffix('.gz').removesuffix('.nii')
    if name in cases:
      raise errors.UserError(f'{root / "dataset.json"}: lists {name} twice')
    for path in (image, label):
      links.inside(root, path, listed='dataset.json')
    reader = functools.partial(
      read, image, label, modalities=len(found['modality']), classes=len(found['labels'])
    )
    cases[name] = volumes.Case(name, reader, str(image))
    stamps += exams.stamp([image, label])
  if not cases:
    raise errors.UserError(f"{root / 'dataset.json'}: field 'training' lists no cases; {_HELP}")
  limits = volumes.limits_of(fields)
  text = [sorted(stamps), folds.key(fields), limits, found['labels'], found['modality']]
  return volumes.Study(
    key=json.dumps(text, sort_keys=True),
    cases=tuple(cases[name] for name in sorted(cases)),
    modalities=tuple(str(found['modality'][str(n)]) for n in range(len(found['modality']))),
    classes=tuple(str(found['labels'][str(n)]) for n in range(len(found['labels']))),
    fold=fields['fold'],
    folds=fields['folds'],
    all_test=fields['all_test'],
    limits=limits,
  )


def _listed(root, entry, kind):
  if not isinstance(entry, dict) or not isinstance(entry.get(kind), str):
    raise errors.UserError(f"{root / 'dataset.json'}: an entry of 'training' has no {kind!r}")
  path = pathlib.PurePosixPath(entry[kind])
  if path.is_absolute() or '..' in path.parts:
    raise errors.UserError(f'{root / "dataset.json"}: {entry[kind]} lies outside the folder')
  return root / path


def read(
  image: pathlib.Path, label: pathlib.Path, *, modalities: int, classes: int
) -> preprocess.Volume:
  """Reads one case [z, y, x]; labels below -1 (one voxel of the data set has one) become 0."""
  values, spacing = _load(image)
  numbers, _ = _load(label)
  if values.ndim == 3:
    values = values[..., None]
  if values.ndim != 4 or values.shape[-1] != modalities:
    raise errors.UserError(
      f'{image}: array of {list(values.shape)}, needs three axes and {modalities} modalities'
    )
  if numbers.shape != values.shape[:3]:
    raise errors.UserError(
      f'{label}: labels of {list(numbers.shape)} voxels for an image of {list(values.shape[:3])}'
    )
  if not np.isfinite(values).all():
    raise errors.UserError(f'{image}: has NaN or infinite values')
  numbers = np.where(numbers < -1, 0, numbers)
  unknown = [value for value in np.unique(numbers) if value not in range(classes)]
  if unknown:
    raise errors.UserError(
      f'{label}: label {unknown[0]:g} is not one of the {classes} in dataset.json '
      f'(0 to {classes - 1})'
    )
  return preprocess.Volume(
    np.ascontiguousarray(values.transpose(2, 1, 0, 3), np.float32),
    np.ascontiguousarray(numbers.transpose(2, 1, 0), np.int8),
    tuple(reversed(spacing)),
  )


def _load(path):
  """Returns the array [x, y, z, ...] of a file and the spacing of its first three axes."""
  file = nifti.checked(path)
  try:
    values = np.asanyarray(file.dataobj)
    spacing = tuple(float(value) for value in file.header.get_zooms()[:3])
  except Exception as error:  # for a damaged file the reader raises exceptions of any kind
    raise nifti.damaged(path, error) from error
  if values.dtype.kind not in 'biuf':
    raise errors.UserError(f'{path}: must hold plain numbers, not {values.dtype}')
  if len(spacing) != 3 or not all(np.isfinite(spacing)) or min(spacing) <= 0:
    raise errors.UserError(f'{path}: voxel spacing {spacing} is not three positive numbers')
  return values, spacing


Builder = Msd
