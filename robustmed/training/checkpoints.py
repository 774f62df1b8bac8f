"""Orbax checkpoints of a whole training state, written atomically; the newest two are kept."""

import contextlib
import functools
import hashlib
import logging
import os
import sys
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from robustmed import errors, types
from robustmed.process import checksums, console, files, parallel

PyTree = Any
CARD = 'network.json'
_TREE, _EXTRA = 'state', 'extra'  # the folders of a checkpoint
# What Orbax raises for a folder that it cannot read: its own files are JSON and protocol buffers.
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError)


_NOTES = ('_CHECKPOINT_METADATA', 'commit_success.txt')  # when it was saved; written last


class _Trees(ocp.StandardCheckpointHandler):
  """Writes arrays with a list of the sums of their files, before their folder gets its name."""

  def finalize(self, directory):
    super().finalize(directory)
    checksums.write_list(directory, changing=_NOTES)


class _Json(ocp.JsonCheckpointHandler):
  """Writes JSON likewise."""

  def finalize(self, directory):
    super().finalize(directory)
    checksums.write_list(directory, changing=_NOTES)


@ocp.args.register_with_handler(_Trees, for_save=True)
class _SaveTree(ocp.args.StandardSave):
  pass


@ocp.args.register_with_handler(_Trees, for_restore=True)
class _RestoreTree(ocp.args.StandardRestore):
  pass


@ocp.args.register_with_handler(_Json, for_save=True)
class _SaveJson(ocp.args.JsonSave):
  pass


@ocp.args.register_with_handler(_Json, for_restore=True)
class _RestoreJson(ocp.args.JsonRestore):
  pass


class Store:
  """The checkpoints of one network in `folder`."""

  def __init__(self, folder: str | os.PathLike, *, keep: int = 2):
    self.folder = files.path_of(folder)
    with _silenced():
      try:
        self._manager = _manager(self.folder, keep)
      except _UNREADABLE as error:
        if files.os_error(error) is not None:
          raise
        # Notes of when a checkpoint was saved are damaged; no value depends on them.
        _remove_notes(self.folder)
        self._manager = _manager(self.folder, keep)

  def latest(self) -> int | None:
    """Returns the newest complete step; an interrupted save does not count."""
    return self._manager.latest_step()

  def save(self, step: int, state: PyTree, extra: dict[str, Any]) -> None:
    """Writes step `step` whole or not at all; `extra` is JSON (the data position)."""
    if self.latest() == step:
      return
    args = ocp.args.Composite(
      **{_TREE: _SaveTree(parallel.to_host(state)), _EXTRA: _SaveJson(extra)}
    )
    with _saving(f'the checkpoint {self.folder}/{step}'):
      self._manager.save(step, args=args)
      self._manager.wait_until_finished()

  def restore(self, step: int, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """Returns the state saved at `step`, shaped like `like`, and its `extra`."""
    folder = self.folder / str(step)
    abstract = parallel.to_host(like)

    def check():
      for item in (_TREE, _EXTRA):
        checksums.check_list(folder / item)

    parallel.run_on_writer(check)
    try:
      with _silenced():
        found = self._manager.restore(
          step,
          args=ocp.args.Composite(**{_TREE: _RestoreTree(abstract), _EXTRA: _RestoreJson()}),
        )
    except _UNREADABLE as error:
      raise _unusable(f'checkpoint {folder}', error) from error
    return found[_TREE], found[_EXTRA]

  def restore_latest(self, like: PyTree) -> PyTree | None:
    """Returns the newest state that can be read, shaped like `like`; None if nothing was saved.

    Newer ones that are damaged are removed with one line each: a resumed run computes the same
    states again. If none can be read, none is removed, and the error of the newest is raised.
    """
    failed: dict[int, errors.UserError] = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        state, _ = self.restore(step, like)
      except errors.UserError as error:
        failed[step] = error
        continue
      for worse, error in failed.items():
        console.say(f'{error}; this checkpoint is removed, the one of step {step} is taken')
        self._manager.delete(worse)
      return state
    for error in failed.values():
      raise errors.UserError(
        f'{error}; there is no other that can be read; remove {self.folder} to train from the start'
      )
    return None

  def close(self) -> None:
    """Closes the checkpoint manager."""
    self._manager.close()


def _manager(folder, keep):
  return ocp.CheckpointManager(
    folder,
    item_handlers={_TREE: _Trees(), _EXTRA: _Json()},
    options=ocp.CheckpointManagerOptions(
      max_to_keep=keep, create=True, enable_async_checkpointing=False
    ),
  )


def _remove_notes(folder) -> None:
  if parallel.is_writer():
    for file in files.iter_files(folder):
      if file.name == _NOTES[0]:
        file.unlink()
  parallel.barrier('notes')


def _unusable(what, error) -> errors.UserError:
  reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
  return errors.UserError(f'{what} does not fit this configuration or is damaged: {reason}')


class _Silent(logging.Filter):
  """Lets only critical messages pass."""

  def filter(self, record):
    return record.levelno >= logging.CRITICAL


def _report_unraisable(report, *, default) -> None:
  """Reports what Python cannot raise, but for writes that end after one of them has failed.

  The first error closes their event loop, and each later one would show a traceback of that.
  """
  late = isinstance(report.exc_value, RuntimeError)
  if not late or str(report.exc_value) != 'Event loop is closed':
    default(report)


@functools.cache
def _hide_late_writes() -> None:
  sys.unraisablehook = functools.partial(_report_unraisable, default=sys.unraisablehook)


@contextlib.contextmanager
def _silenced():
  """Hides what Orbax logs: its threads log errors, with tracebacks, that are raised as well."""
  _hide_late_writes()
  # A filter of its own per call, because arms that are trained side by side save at the same time.
  logger = logging.getLogger('absl')
  silent = _Silent()
  logger.addFilter(silent)
  try:
    yield
  finally:
    logger.removeFilter(silent)


@contextlib.contextmanager
def _saving(what):
  """Turns errors of the file system, such as a full disk, into a `UserError`."""
  try:
    with _silenced():
      yield
  except (OSError, RuntimeError, ValueError) as error:
    code = files.os_error(error)
    if code is None:
      raise
    raise errors.UserError(
      f'cannot save {what}: {os.strerror(code)}; make room there and run the same command again '
      'to continue from the last checkpoint'
    ) from error


def save_variables(path: str | os.PathLike, variables: PyTree) -> None:
  """Writes the network alone, whole or not at all; it exists only after a finished training."""
  with _saving(f'the network {path}'), ocp.AsyncCheckpointer(_Trees()) as saver:
    saver.save(files.path_of(path), args=_SaveTree(parallel.to_host(variables)))


def load_variables(path: str | os.PathLike, task: types.Task) -> PyTree:
  """Returns the variables at `path`; a network of another shape than `task`'s is a `UserError`."""
  path = files.path_of(path)
  if not path.is_dir():
    raise errors.UserError(f'no saved network at {path}')
  parallel.run_on_writer(lambda: check_variables(path))
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  try:
    with _silenced(), ocp.StandardCheckpointer() as loader:
      return loader.restore(path, like)
  except _UNREADABLE as error:
    raise _unusable(f'the network at {path}', error) from error


def check_variables(path: files.Path) -> None:
  """Raises a `UserError` if the files of a saved network are not those that were written."""
  checksums.check_list(
    path,
    help_text=f'if the checkpoints beside it are still there, remove {path} and train again, which '
    'takes its last checkpoint; else train that arm again',
  )


def write_card(folder: str | os.PathLike, card: dict[str, Any]) -> None:
  """Writes which network the checkpoints hold, so that another run can load and attack it."""
  if parallel.is_writer():
    files.write_json(files.path_of(folder) / CARD, card)


def read_card(folder: str | os.PathLike) -> dict[str, Any]:
  """Returns what `write_card` wrote; a missing or incomplete file is a `UserError`."""
  path = files.path_of(folder) / CARD
  if not path.is_file():
    raise errors.UserError(
      f'no {CARD} in {folder}; --checkpoint takes a folder like runs/X/checkpoints/ARM/seed0'
    )
  card = files.read_json(path)
  if not isinstance(card, dict) or not {'arm', 'seed', 'model', 'image_shape'} <= set(card):
    raise errors.UserError(f'{path} does not describe a network; it lacks arm, seed or model')
  files.name_of(card['arm'], what=f'arm in {path}')
  for number in ('seed', 'fold'):  # they become parts of paths, too
    value = card.get(number, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 10**6:
      raise errors.UserError(f'{number} in {path} must be a number of 0 or more')
  return card


def digest(folder: str | os.PathLike) -> str:
  """Returns a hash of the saved network's files, which identifies the network."""
  total = hashlib.sha256()
  root = files.path_of(folder)
  for path in sorted(files.iter_files(root / 'variables')):
    total.update(str(path.relative_to(root)).encode() + path.read_bytes())
  return total.hexdigest()[:16]
