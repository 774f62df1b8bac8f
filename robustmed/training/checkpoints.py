"""Orbax checkpoints of a whole training state, written atomically; the newest two are kept."""

import contextlib
import hashlib
import logging
import os
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from robustmed import errors, types
from robustmed.process import files, parallel

PyTree = Any
CARD = 'network.json'


class Store:
  """The checkpoints of one network in `folder`."""

  def __init__(self, folder: str | os.PathLike, *, keep: int = 2):
    self.folder = files.path_of(folder)
    self._manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, enable_async_checkpointing=False
      ),
    )

  def latest(self) -> int | None:
    """Returns the newest complete step; an interrupted save does not count."""
    return self._manager.latest_step()

  def save(self, step: int, state: PyTree, extra: dict[str, Any]) -> None:
    """Writes step `step` whole or not at all; `extra` is JSON (the data position)."""
    if self.latest() == step:
      return
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(parallel.to_host(state)), extra=ocp.args.JsonSave(extra)
    )
    with _saving(f'the checkpoint {self.folder}/{step}'):
      self._manager.save(step, args=args)
      self._manager.wait_until_finished()

  def restore(self, step: int, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """Returns the state saved at `step`, shaped like `like`, and its `extra`."""
    abstract = parallel.to_host(like)
    try:
      found = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract), extra=ocp.args.JsonRestore()
        ),
      )
    except (ValueError, KeyError, FileNotFoundError) as error:
      raise errors.UserError(
        f'checkpoint {self.folder}/{step} does not fit this configuration or is damaged: '
        f'{str(error).splitlines()[0][:200]}'
      ) from error
    return found['state'], found['extra']

  def close(self) -> None:
    """Closes the checkpoint manager."""
    self._manager.close()


class _Silent(logging.Filter):
  """Lets only critical messages pass."""

  def filter(self, record):
    return record.levelno >= logging.CRITICAL


@contextlib.contextmanager
def _saving(what):
  """Turns errors of the file system, such as a full disk, into a `UserError`."""
  # Threads of Orbax log the same error with its traceback. A filter of its own per call, because
  # arms that are trained side by side save at the same time.
  logger = logging.getLogger('absl')
  silent = _Silent()
  logger.addFilter(silent)
  try:
    yield
  except (OSError, RuntimeError, ValueError) as error:
    code = files.os_error(error)
    if code is None:
      raise
    raise errors.UserError(
      f'cannot save {what}: {os.strerror(code)}; make room there and run the same command again '
      'to continue from the last checkpoint'
    ) from error
  finally:
    logger.removeFilter(silent)


def save_variables(path: str | os.PathLike, variables: PyTree) -> None:
  """Writes the network alone, whole or not at all; it exists only after a finished training."""
  with _saving(f'the network {path}'), ocp.StandardCheckpointer() as saver:
    saver.save(files.path_of(path), parallel.to_host(variables))


def load_variables(path: str | os.PathLike, task: types.Task) -> PyTree:
  """Returns the variables at `path`; a network of another shape than `task`'s is a `UserError`."""
  path = files.path_of(path)
  if not path.is_dir():
    raise errors.UserError(f'no saved network at {path}')
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  try:
    with ocp.StandardCheckpointer() as loader:
      return loader.restore(path, like)
  except (ValueError, KeyError, FileNotFoundError) as error:
    raise errors.UserError(
      f'the network at {path} does not fit this configuration or is damaged: '
      f'{str(error).splitlines()[0][:200]}'
    ) from error


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
    if not isinstance(card.get(number, 0), int) or not 0 <= card.get(number, 0) < 10**6:
      raise errors.UserError(f'{number} in {path} must be a number of 0 or more')
  return card


def digest(folder: str | os.PathLike) -> str:
  """Returns a hash of the saved network's files, which identifies the network."""
  total = hashlib.sha256()
  root = files.path_of(folder)
  for path in sorted(files.iter_files(root / 'variables')):
    total.update(str(path.relative_to(root)).encode() + path.read_bytes())
  return total.hexdigest()[:16]
