"""Removes temporary files and folders that a killed process left behind.

Their names say which process made them, on which host: `.NAME.OWNER.tmp.SUFFIX`. One whose process
has ended is removed by the next run; one of another host once it is a day old, and so is what
earlier versions left, whose names do not say the host.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import re
import shutil
import socket
import tempfile
import time

_OLD = 24 * 3600.0  # seconds after which what other hosts made is removed
_OWNER = re.compile(r'\.([0-9a-f]{8})-(\d+)-(\d*)\.tmp(\.[^.]+)?$')
# Of earlier versions: in workdirs and data caches, and in the system's place for temporary files.
_EARLIER = re.compile(r'\..+\.\d+\.tmp\.\w+|\.building-\w{8}')
_EARLIER_TEMPORARY = re.compile(r'tmp\w{8}tfds')


def owner() -> str:
  """Returns the part of a temporary name that says which process made it."""
  return f'{_host()}-{os.getpid()}-{born(os.getpid())}'


@functools.cache
def _host() -> str:
  """Returns what tells hosts, and containers on one host, apart."""
  space = ''
  with contextlib.suppress(OSError):
    space = os.readlink('/proc/self/ns/pid')
  return hashlib.sha256(f'{socket.gethostname()} {boot()} {space}'.encode()).hexdigest()[:8]


def boot() -> str:
  """Returns what differs between two starts of a host; '' if that is unknown."""
  with contextlib.suppress(OSError):
    return pathlib.Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii').strip()
  return ''


def born(pid: int) -> str:
  """When a process started, in ticks since boot; '' if that is unknown or it has ended."""
  with contextlib.suppress(OSError, IndexError):
    text = pathlib.Path(f'/proc/{pid}/stat').read_text(encoding='utf-8', errors='replace')
    return text.rpartition(')')[2].split()[19]
  return ''


def is_alive(pid: int) -> bool:
  """Returns whether a process of this host runs."""
  try:
    os.kill(pid, 0)
  except (ProcessLookupError, OverflowError):
    return False
  except OSError:
    return True
  return True


def temporary_folder() -> tempfile.TemporaryDirectory:
  """Returns a context with the path of a new folder in the system's place for temporary ones."""
  return tempfile.TemporaryDirectory(prefix='robustmed-', suffix=f'.{owner()}.tmp')


def sweep_temporary() -> list[pathlib.Path]:
  """Sweeps the system's place for temporary files."""
  return sweep(pathlib.Path(tempfile.gettempdir()), earlier=_EARLIER_TEMPORARY)


def sweep(
  folder: pathlib.Path, *, depth: int = 0, earlier: re.Pattern[str] = _EARLIER
) -> list[pathlib.Path]:
  """Removes what ended processes left in a folder, and `depth` levels below; returns what it was.

  Links are not followed. Folders of an object store have no temporary files.
  """
  removed: list[pathlib.Path] = []
  if not isinstance(folder, pathlib.Path):
    return removed
  with contextlib.suppress(OSError), os.scandir(folder) as found:
    for entry in list(found):
      is_folder = entry.is_dir(follow_symlinks=False)
      if _is_left(entry, earlier):
        with contextlib.suppress(OSError):
          shutil.rmtree(entry.path) if is_folder else os.unlink(entry.path)
          removed.append(pathlib.Path(entry.path))
      elif is_folder and depth:
        removed += sweep(pathlib.Path(entry.path), depth=depth - 1, earlier=earlier)
  return removed


def _is_left(entry, earlier) -> bool:
  found = _OWNER.search(entry.name)
  if found is None:
    return bool(earlier.fullmatch(entry.name)) and _is_old(entry)
  host, pid, since = found[1], int(found[2]), found[3]
  if host != _host():
    return _is_old(entry)
  return not is_alive(pid) or born(pid) != since


def _is_old(entry) -> bool:
  return time.time() - entry.stat(follow_symlinks=False).st_mtime > _OLD
