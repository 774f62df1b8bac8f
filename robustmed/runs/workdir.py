"""A run's folder: `config.json env.json data.json checkpoints/ logs/ results/ report/`."""

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from robustmed import errors
from robustmed.process import files, leftovers, parallel

DATA = 'data.json'
EDITABLE = ('config.report.other',)  # nothing but the report reads it
ABSENT = '(absent)'
SUMMED = ('results', 'checkpoints')  # the files in them get check sums
KEPT = ('checkpoints', 'logs', 'results', 'report', 'locks')  # locks are those of other runs
PACKAGES = ('robustmed', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'scipy')


def claim(folder: files.Path, config: Mapping[str, Any]) -> bool:
  """Ties `folder` to a configuration; a folder of another one is a `UserError` and stays as it is.

  Configurations that differ in `EDITABLE` alone count as the same, and so do fields that the stored
  one lacks and that are empty ('', 0, (), ...) here, as a workdir of an earlier version has them;
  the newest is stored.
  Returns True if the folder had no configuration before.
  """
  plain = json.loads(json.dumps(config))
  path = folder / 'config.json'
  try:
    if parallel.is_writer():
      folder.mkdir(parents=True, exist_ok=True)
    writable = files.is_remote(folder) or os.access(folder, os.W_OK) or not parallel.is_writer()
  except OSError as error:
    raise errors.UserError(
      f'cannot make the workdir {folder}: {error.strerror}; choose another --workdir'
    ) from None
  if not writable:
    raise errors.UserError(f'the workdir {folder} is not writable; choose another --workdir')
  new, moved = not files.present(path), False
  if not new:
    old = files.read_json(path)
    moved = bool(differences(old, plain))
    found = differences(old, _without_added(old, plain))
    changed = [line for line in found if line.partition(':')[0] not in EDITABLE]
    if changed:
      raise errors.UserError(
        f'{folder} holds a run of another configuration: {"; ".join(changed[:6])}'
        f'{f"; and {len(changed) - 6} more" if len(changed) > 6 else ""}; '
        f'use another --workdir or remove that one'
      )
  if parallel.is_writer():
    leftovers.sweep(folder, depth=6)
    leftovers.sweep_temporary()
    if new or moved:
      files.write_json(path, plain)
    files.write_json(folder / 'env.json', environment())
  return new


def claim_data(folder: files.Path, info: Mapping[str, Any]) -> None:
  """Ties the run to its data; data other than those it began with are a `UserError`."""
  if 'fingerprint' not in info:
    return
  path = folder / DATA
  plain = json.loads(json.dumps({k: info[k] for k in ('name', 'fingerprint', 'sizes', 'groups')}))
  old = files.read_json(path) if files.present(path) else None
  if not isinstance(old, dict | None):
    raise errors.UserError(f'{path} is damaged; if the data are still the same, remove it')
  # The files that other hosts read may be copies with other modification times.
  same = old is None or old.get('fingerprint') == plain['fingerprint']
  if not bool(parallel.broadcast_from_writer(np.array(same))):
    changed = [d for d in differences(old or {}, plain) if not d.startswith('fingerprint')]
    raise errors.UserError(
      f'the data of source {info["name"]} are not those that the run in {folder} began with '
      f'({"; ".join(changed) or "files were changed, replaced or touched"}); use another '
      f'--workdir, put the old files back, or, if their content is the same, remove {path}'
    )
  if old is None and parallel.is_writer():
    files.write_json(path, plain)


def release(folder: files.Path) -> None:
  """Undoes `claim` for a run that stored nothing: a corrected command can use the folder."""
  if not parallel.is_writer() or any((folder / name).exists() for name in KEPT):
    return
  for name in ('config.json', 'env.json', DATA):
    (folder / name).unlink(missing_ok=True)
  with contextlib.suppress(OSError, ValueError):
    folder.rmdir()


def _without_added(old: Any, new: Any) -> Any:
  """`new` without the fields that `old` lacks and that are empty, so that they change nothing."""
  if not (isinstance(old, dict) and isinstance(new, dict)):
    return new
  return {
    name: _without_added(old.get(name), value)
    for name, value in new.items()
    if name in old or not _is_empty(value)
  }


def _is_empty(value: Any) -> bool:
  return all(map(_is_empty, value.values())) if isinstance(value, dict) else not value


def differences(old: Any, new: Any, path: str = '') -> list[str]:
  """'train.steps: 10 there, 20 here' for every leaf that differs."""
  if isinstance(old, dict) and isinstance(new, dict):
    out = []
    for name in sorted({*old, *new}):
      out += differences(
        old.get(name, ABSENT), new.get(name, ABSENT), f'{path}.{name}' if path else name
      )
    return out
  return [] if old == new else [f'{path}: {_short(old)} there, {_short(new)} here']


def _short(value):
  text = value if value == ABSENT else repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'


def environment() -> dict[str, Any]:
  """Devices, versions and the command line, for env.json."""
  versions = {}
  for name in PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = _own_version() if name == 'robustmed' else 'absent'
  return {
    **parallel.describe(),
    'python': platform.python_version(),
    'system': platform.platform(),
    'cores': os.cpu_count(),
    'versions': versions,
    'command': shlex.join(['python', '-m', 'robustmed.main', *sys.argv[1:]]),
  }


def _own_version() -> str:
  import robustmed

  return robustmed.__version__
