"""Who works on what in a workdir: two runs never do the same part of it at the same time.

A lock is a small file in the workdir's locks/, one for the training and one for the evaluation of
every arm (`train.ARM.json`, `evaluate.ARM.json`), so that arms may be jobs of their own. It says
host, process, start time, and counts the heartbeats of its holder, one every `BEAT` seconds.

A lock is stale, and is taken over, if its process is gone or started anew (same host and boot), or
if it has no heartbeat for `WATCH` seconds of being watched (other hosts; no clocks are compared).
On a local or network disk it is made by a hard link, so exactly one of two runs gets it. Object
stores have nothing like it: there it is written and read back, best effort.
"""

import contextlib
import datetime
import json
import os
import pathlib
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
from robustmed.process import console, files, parallel

FOLDER = 'locks'
BEAT = 30.0
WATCH = 120.0
_AGAIN = 1.0  # seconds between two looks at a lock


@contextlib.contextmanager
def holding(workdir: files.Path, names: Sequence[str]) -> Iterator[None]:
  """Holds the locks `names` ('train.std') during the block; else a `UserError`, on all hosts."""
  held = Held(workdir)
  parallel.run_on_writer(lambda: held.take(names))
  try:
    yield
  finally:
    held.release()


@contextlib.contextmanager
def turn(workdir: files.Path, name: str) -> Iterator[None]:
  """Waits until no other run is in a block of this name. For seconds of work of one host."""
  held = Held(workdir)
  while parallel.is_writer() and held.try_one(name) is not None:
    time.sleep(_AGAIN / 4)
  held.keep_beating()
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

  def take(self, names: Sequence[str]) -> None:
    """All of `names` or, as a `UserError` that says who has the first that is not free, none."""
    try:
      for name in sorted(names):
        holder = self.try_one(name)
        if holder is not None:
          raise errors.UserError(_refusal(self._folder.parent, name, holder))
    except BaseException:
      self.release()
      raise
    self.keep_beating()

  def try_one(self, name: str) -> dict[str, Any] | None:
    """Takes one lock; returns who has it if it is not to be had."""
    path = self._folder / f'{name}.json'
    record = _record()
    while not _create(path, record):
      holder = _read(path)
      if holder is None:
        continue  # released meanwhile
      if not _stale(path, holder):
        if _same(_read(path), holder):
          return holder
        continue  # released or taken while we looked
      console.say(f'{path} is of a run that is gone ({_whom(holder)}); taken over')
      _remove(path, holder)
    self._held[name] = record
    return None

  def release(self) -> None:
    self._over.set()
    with self._guard:
      for name, record in self._held.items():
        _remove(self._folder / f'{name}.json', record)
      self._held.clear()
    with contextlib.suppress(OSError, ValueError):
      self._folder.rmdir()

  def keep_beating(self) -> None:
    if self._held:
      threading.Thread(target=self._beat, daemon=True).start()

  def _beat(self):
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
    f'another run is {doing} arm {arm!r} in {workdir}: {_whom(holder)}; wait for it or stop it, '
    'or choose other --arms or another --workdir'
  )


def _whom(record):
  return f'host {record.get("host")}, process {record.get("pid")}, since {record.get("started")}'


def _record() -> dict[str, Any]:
  return {
    'host': socket.gethostname(),
    'boot': _boot(),
    'pid': os.getpid(),
    'born': _born(os.getpid()),
    'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'command': shlex.join(sys.argv),
    'token': secrets.token_hex(8),
    'beat': 0,
  }


def _boot() -> str:
  with contextlib.suppress(OSError):
    return pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  return ''


def _born(pid: int) -> str:
  """When a process started, in ticks since boot; '' where that cannot be known or it is gone."""
  with contextlib.suppress(OSError, IndexError):
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
    return text.rpartition(')')[2].split()[19]
  return ''


def _alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except OSError:
    return True
  return True


def _stale(path, holder) -> bool:
  """True if the holder is gone; watches the heartbeat of one on another host."""
  if (holder.get('host'), holder.get('boot')) == (socket.gethostname(), _boot()):
    pid = int(holder.get('pid', 0))
    return not _alive(pid) or _born(pid) != holder.get('born')
  console.say(
    f'{path} is held by {_whom(holder)}; watching for up to {WATCH:g} s if it still works'
  )
  end = time.monotonic() + WATCH
  while time.monotonic() < end:
    time.sleep(min(_AGAIN, WATCH / 4))
    now = _read(path)
    if now != holder:
      return False
  return True


def _read(path) -> dict[str, Any] | None:
  """A lock's record; None if there is none."""
  try:
    found = json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except ValueError:
    found = {}  # cut short
  return found if isinstance(found, dict) else {}


def _same(found, record) -> bool:
  return found is not None and found.get('token') == record.get('token')


def _create(path, record) -> bool:
  """Makes the lock's file with its content unless there is one."""
  text = json.dumps(record, indent=2) + '\n'
  if files.is_remote(path):
    if path.exists():
      return False
    files.write_text(path, text)
    time.sleep(_AGAIN)
    return _same(_read(path), record)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{record["token"]}.tmp')
  try:
    temporary.write_text(text)
    os.link(temporary, path)
  except FileExistsError:
    return False
  except FileNotFoundError:
    return False  # the folder was removed by the last one to leave it: again
  except OSError:
    # A file system without hard links.
    try:
      with path.open('x') as file:
        file.write(text)
    except FileExistsError:
      return False
  finally:
    temporary.unlink(missing_ok=True)
  return True


def _remove(path, record) -> None:
  """Removes the lock if it still is the one of `record`."""
  with contextlib.suppress(OSError), _changing(path):
    if _same(_read(path), record):
      path.unlink(missing_ok=True)


@contextlib.contextmanager
def _changing(path) -> Iterator[None]:
  """Keeps others from changing a lock that is there: between look and deed nobody else acts."""
  if files.is_remote(path):
    yield
    return
  mutex, began = path.with_suffix('.change'), time.monotonic()
  while True:
    try:
      os.close(os.open(mutex, os.O_CREAT | os.O_EXCL))
      break
    except FileExistsError:
      if time.monotonic() - began > 10:  # whoever made it was killed within these milliseconds
        mutex.unlink(missing_ok=True)
      time.sleep(0.01)
  try:
    yield
  finally:
    mutex.unlink(missing_ok=True)
