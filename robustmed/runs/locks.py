"""Locks in a workdir: two runs never train or evaluate the same arm at the same time.

A lock is a small file in the workdir's locks/, one for the training and one for the evaluation of
every arm (`train.ARM.json`, `evaluate.ARM.json`), so that arms can be separate jobs. It holds host,
process and start time, and counts the heartbeats of its holder, one every `BEAT` seconds.

A lock is stale, and is taken over, if its process has ended or its number belongs to another one
(same host and boot), or if it is watched for `WATCH` seconds without a heartbeat (other hosts; no
clocks are compared). On a local or network disk it is created by a hard link, so exactly one of two
runs gets it. Object stores have no such operation: there it is written and read back, best effort.
"""

import contextlib
import datetime
import json
import os
import secrets
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from robustmed import errors
from robustmed.process import console, files, leftovers, parallel

FOLDER = 'locks'
BEAT = 30.0
WATCH = 120.0
_POLL = 1.0  # seconds between two reads of a lock


@contextlib.contextmanager
def hold(workdir: files.Path, names: Sequence[str]) -> Iterator[None]:
  """Holds the locks `names` ('train.std') during the block; else a `UserError`, on all hosts."""
  held = Held(workdir)
  parallel.run_on_writer(lambda: held.acquire(names))
  try:
    yield
  finally:
    held.release()


@contextlib.contextmanager
def exclusive(workdir: files.Path, name: str) -> Iterator[None]:
  """Waits until no other run is in a block of this name. For work of seconds on one host."""
  held = Held(workdir)
  while parallel.is_writer() and held.try_acquire(name) is not None:
    time.sleep(_POLL / 4)
  held.start_heartbeat()
  try:
    yield
  finally:
    held.release()


class Held:
  """The locks of this process in one workdir."""

  def __init__(self, workdir: files.Path):
    self._folder = workdir / FOLDER
    self._held: dict[str, dict[str, Any]] = {}
    self._over = threading.Event()
    self._guard = threading.Lock()

  def acquire(self, names: Sequence[str]) -> None:
    """Takes all locks of `names`, or none: a `UserError` names the holder of one that is held."""
    try:
      for name in sorted(names):
        holder = self.try_acquire(name)
        if holder is not None:
          raise errors.UserError(_refusal(self._folder.parent, name, holder))
    except BaseException:
      self.release()
      raise
    self.start_heartbeat()

  def try_acquire(self, name: str) -> dict[str, Any] | None:
    """Takes one lock and returns None, or returns the record of its holder."""
    path = self._folder / f'{name}.json'
    record = _record()
    while not _create(path, record):
      holder = _read(path)
      if holder is None:
        continue  # released in the meantime
      if not _stale(path, holder):
        if _same(_read(path), holder):
          return holder
        continue  # released or taken in the meantime
      console.say(f'{path} is of a run that has ended ({_holder_text(holder)}); taken over')
      _remove(path, holder)
    self._held[name] = record
    return None

  def release(self) -> None:
    """Gives back all held locks."""
    self._over.set()
    with self._guard:
      for name, record in self._held.items():
        _remove(self._folder / f'{name}.json', record)
      self._held.clear()
    with contextlib.suppress(OSError, ValueError):
      self._folder.rmdir()

  def start_heartbeat(self) -> None:
    """Counts heartbeats in the held locks, in a thread, until `release`."""
    if self._held:
      threading.Thread(target=self._heartbeat, daemon=True).start()

  def _heartbeat(self):
    while not self._over.wait(BEAT):
      with self._guard:
        for name, record in [] if self._over.is_set() else self._held.items():
          path = self._folder / f'{name}.json'
          with contextlib.suppress(OSError, errors.UserError), _changing(path):
            if not _same(_read(path), record):
              print(f'robustmed: error: {path} was taken by another run', file=sys.stderr)
              os.kill(os.getpid(), signal.SIGTERM)  # saves and stops
              return
            record['beat'] += 1
            files.write_json(path, record)


def _refusal(workdir, name, holder):
  what, _, arm = name.partition('.')
  doing = {'train': 'training', 'evaluate': 'evaluating'}.get(what, what)
  return (
    f'another run is {doing} arm {arm!r} in {workdir}: {_holder_text(holder)}; wait for it or '
    'stop it, or choose other --arms or another --workdir'
  )


def _holder_text(record):
  host, process, since = (str(record.get(name))[:80] for name in ('host', 'pid', 'started'))
  return f'host {host}, process {process}, since {since}'


def _record() -> dict[str, Any]:
  return {
    'host': socket.gethostname(),
    'boot': leftovers.boot(),
    'pid': os.getpid(),
    'born': leftovers.born(os.getpid()),
    'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'command': shlex.join(sys.argv),
    'token': secrets.token_hex(8),
    'beat': 0,
  }


def remove_stale(workdir: files.Path) -> None:
  """Removes the locks of runs on this host that have ended, and what they left beside them."""
  folder = workdir / FOLDER
  if not parallel.is_writer() or not folder.is_dir():
    return
  for path in folder.glob('*.change'):  # held for milliseconds, see `_changing`
    with contextlib.suppress(OSError):
      if not files.is_remote(path) and time.time() - path.stat().st_mtime > WATCH:
        path.unlink()
  for path in sorted(folder.glob('*.json')):
    with contextlib.suppress(errors.UserError):
      record = _read(path)
      if record and _is_local(record) and _has_ended(record):
        _remove(path, record)
  leftovers.sweep(folder)


def _is_local(record) -> bool:
  return (record.get('host'), record.get('boot')) == (socket.gethostname(), leftovers.boot())


def _has_ended(record) -> bool:
  pid = record.get('pid')
  known = isinstance(pid, int) and 0 < pid < 2**31
  return not known or not leftovers.is_alive(pid) or leftovers.born(pid) != record.get('born')


def _stale(path, holder) -> bool:
  """True if the holder has ended; watches the heartbeat of one on another host."""
  if _is_local(holder):
    return _has_ended(holder)
  console.say(
    f'{path} is held by {_holder_text(holder)}; watching its heartbeat for up to {WATCH:g} s'
  )
  end = time.monotonic() + WATCH
  while time.monotonic() < end:
    time.sleep(min(_POLL, WATCH / 4))
    now = _read(path)
    if now != holder:
      return False
  return True


def _read(path) -> dict[str, Any] | None:
  """A lock's record; None if there is none."""
  if not files.is_remote(path) and path.exists() and not path.is_file():
    # a pipe would wait for ever, a device has no end
    raise errors.UserError(f'the lock {path} is no regular file; remove it')
  try:
    found = json.loads(path.read_text())
  except FileNotFoundError:
    if not files.is_remote(path) and path.is_symlink():
      raise errors.UserError(f'the lock {path} is a link to nothing; remove it') from None
    return None
  except OSError as error:
    raise errors.UserError(f'cannot read the lock {path}: {error.strerror}; remove it') from error
  except (ValueError, RecursionError):
    found = {}  # truncated
  return found if isinstance(found, dict) else {}


def _same(found, record) -> bool:
  # As text: what damage left in a token may be a NaN, which differs from itself.
  return found is not None and str(found.get('token')) == str(record.get('token'))


def _create(path, record) -> bool:
  """Creates the lock's file with its content; False if there is one already."""
  text = json.dumps(record, indent=2) + '\n'
  if files.is_remote(path):
    if path.exists():
      return False
    files.write_text(path, text)
    time.sleep(_POLL)
    return _same(_read(path), record)
  temporary = path.with_name(f'.{path.name}.{record["token"]}.{leftovers.owner()}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(text)
    try:
      os.link(temporary, path)
    except (FileExistsError, FileNotFoundError):
      raise
    except OSError:  # the file system has no hard links
      _create_without_link(path, text)
  except FileExistsError:
    return False
  except FileNotFoundError:
    return False  # another run has just removed the folder; the caller tries again
  except OSError as error:
    raise errors.UserError(
      f'cannot write the lock {path}: {error.strerror}; check the free space and the permissions'
    ) from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
  return True


def _create_without_link(path, text):
  with path.open('x') as file:
    try:
      file.write(text)
      file.flush()
    except OSError:
      path.unlink(missing_ok=True)
      raise


def _remove(path, record) -> None:
  """Removes the lock if it is still that of `record`."""
  with contextlib.suppress(OSError), _changing(path):
    if _same(_read(path), record):
      path.unlink(missing_ok=True)


@contextlib.contextmanager
def _changing(path) -> Iterator[None]:
  """Holds a mutex file, so that no other run changes a lock between a read and a write of it."""
  if files.is_remote(path):
    yield
    return
  mutex, began = path.with_suffix('.change'), time.monotonic()
  while True:
    try:
      os.close(os.open(mutex, os.O_CREAT | os.O_EXCL))
      break
    except FileExistsError:
      if time.monotonic() - began > 10:  # its process was killed in between
        mutex.unlink(missing_ok=True)
      time.sleep(0.01)
  try:
    yield
  finally:
    mutex.unlink(missing_ok=True)
