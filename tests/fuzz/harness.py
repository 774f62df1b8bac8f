"""Reads damaged inputs in worker processes and judges what came back.

A reader may answer with a one-line `UserError` or with the values of the undamaged input. All else
is a failure: other values ('silent'), other exceptions ('traceback'), output of libraries
('noise'), lines that are too long ('long'), more memory than allowed ('memory'), no answer in time
('hang'), a dead process ('died') and whatever was made, changed or, where the content of a file
leads there, read outside of the folder of the input ('outside').
"""

import collections
import dataclasses
import math
import multiprocessing.connection
import os
import pathlib
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fuzz import damages, readers
from robustmed import errors

SECONDS = 10.0
FIRST = 60.0  # more for the first input of a reader, which is made and read whole before
MEMORY = 2 * 2**30  # more than the process has before
MOST = 40  # inputs of one worker
LONGEST = 500  # characters of an error line
_OWN = re.compile(r'^\[robustmed\] .*\n', re.M)  # progress for the user
_MEMORY = re.compile(r'MemoryError|allocat|out of memory', re.I)


class Case(NamedTuple):
  """One damaged input; the same case gives the same bytes."""

  reader: str
  damage: str
  seed: int


class Result(NamedTuple):
  case: Case
  outcome: str  # 'equal', 'refused', 'permitted' or the name of a failure
  detail: str


PASSED = ('equal', 'refused', 'permitted')


def cases(table: Mapping[str, readers.Reader], *, count: int, seed: int) -> list[Case]:
  """Returns `count` cases, all pairs of reader and damage in turn, ordered by reader."""
  pairs = [(name, damage) for name, reader in table.items() for damage in reader.damages()]
  order = np.random.default_rng(seed).permutation(len(pairs))
  turns = [pairs[order[number % len(pairs)]] for number in range(count)]
  return sorted(Case(*pair, seed * 1_000_003 + number) for number, pair in enumerate(turns))


def run(table: Mapping[str, readers.Reader], wanted: Iterable[Case]) -> list[Result]:
  """Returns the results of all cases.

  Every reader has workers of its own, each for at most `MOST` inputs: libraries keep threads. One
  that hangs or dies is replaced.
  """
  results, worker = [], None
  with tempfile.TemporaryDirectory(prefix='fuzz_') as root:
    for case in wanted:
      if worker is not None and (worker.read >= MOST or worker.reader != case.reader):
        worker = worker.close()
      if worker is None:
        worker = _Worker(table, pathlib.Path(root))
      result = worker.ask(case)
      results.append(result)
      if result.outcome in ('hang', 'died'):
        worker = worker.close()
    if worker is not None:
      worker.close()
  return results


def damaged(reader: readers.Reader, case: Case, folder: pathlib.Path) -> None:
  """Damages the whole input of a reader in `folder`."""
  path, damage, outside = folder / reader.target, reader.damages()[case.damage], _outside(folder)
  if damage in damages.PLACE:
    damage(path, outside)
    return
  rng = np.random.default_rng([case.seed, zlib.crc32(f'{case.reader} {case.damage}'.encode())])
  content = damage(path.read_bytes(), rng)
  path.write_bytes(content.replace(damages.HERE, str(outside).encode()))


def _outside(folder):
  return folder.parent / 'outside'


class _Surroundings:
  """Everything around the folder of an input: places to write to, and files to be read by mistake.

  home, work and tmp are those of the process.
  """

  def __init__(self, root: pathlib.Path, made: pathlib.Path):
    self.root = root
    for name in ('home', 'work', 'tmp', 'outside'):
      (root / name).mkdir(exist_ok=True)
    self._outside = root / 'outside'
    shutil.copytree(made, self._outside / 'tree')
    for path in made.rglob('*'):
      if path.is_file():
        shutil.copyfile(path, self._outside / path.name)
    (self._outside / 'canary.txt').write_text('0 0.5 0.5 0.25 0.5\n')
    (self._outside / 'voxels.raw').write_bytes(bytes(240))

  def enter(self) -> None:
    """Makes these the places of the process."""
    os.chdir(self.root / 'work')
    os.environ.update(HOME=str(self.root / 'home'), TMPDIR=str(self.root / 'tmp'))
    os.environ.update(XDG_CACHE_HOME=str(self.root / 'home'), ROBUSTMED_CACHE='cache')
    tempfile.tempdir = None

  def look(self) -> dict[str, tuple]:
    """Returns what there is, and has the next access of a file outside be noted."""
    found = self._found()
    for path in self._files():
      os.utime(path, ns=(0, path.stat().st_mtime_ns))
    return found

  def complaint(self, before: dict[str, tuple], *, reads: bool) -> str:
    """Says what was made, changed or, if `reads`, read since a look; '' if nothing was."""
    differ = sorted({name for name, _ in before.items() ^ self._found().items()})
    read = [path.name for path in self._files() if path.stat().st_atime_ns] if reads else []
    shutil.rmtree(self._outside / 'moved', ignore_errors=True)
    if differ:
      return f'made, changed or removed: {differ[:3]}'
    return f'read: {read[:3]}' if read else ''

  def _files(self) -> list[pathlib.Path]:
    return [path for path in self._outside.rglob('*') if path.is_file()]

  def _found(self) -> dict[str, tuple]:
    found, folders = {}, [self.root.parent]
    while folders:
      for entry in os.scandir(folders.pop()):
        path = pathlib.Path(entry.path)
        if path in (self.root / 'case', self.root / 'made') or entry.name.startswith('noise.'):
          continue
        if entry.is_dir(follow_symlinks=False):
          folders.append(path)
          found[entry.path] = ()
        else:
          status = path.lstat()
          found[entry.path] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return found


class _Worker:
  """A process, forked after the imports, that reads one case after the other."""

  def __init__(self, table, root):
    self.root = root
    self.here, there = multiprocessing.connection.Pipe()
    self.reader, self.read = '', 0
    sys.stdout.flush()
    self.pid = os.fork()
    if self.pid == 0:
      try:
        self.here.close()
        _serve(table, root, _folder(root, os.getpid()), there)
        os._exit(0)
      except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
      finally:
        os._exit(1)
    there.close()
    self.folder = _folder(root, self.pid)

  def ask(self, case: Case) -> Result:
    try:
      self.here.send(case)
      self.reader, self.read = case.reader, self.read + 1
      problem = self.read == 1 and self.here.poll(FIRST) and self.here.recv()
      if problem:
        raise ValueError(f'the whole input of {case.reader} cannot be read: {problem}')
      if not self.here.poll(SECONDS):
        return Result(case, 'hang', f'no answer within {SECONDS:g} s')
      return Result(case, *self.here.recv())
    except (EOFError, OSError):
      self.here.close()
      status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
      noise = self.root / f'noise.{self.pid}'
      said = noise.read_text(errors='replace')[-LONGEST:] if noise.is_file() else ''
      self.pid = None
      return Result(case, 'died', f'exit status {status}: {said}')

  def close(self) -> None:
    if self.pid is not None:
      os.kill(self.pid, signal.SIGKILL)
      os.waitpid(self.pid, 0)
      self.here.close()
    shutil.rmtree(self.folder, ignore_errors=True)


def _folder(root, pid):
  return root / f'worker.{pid}'


def _serve(table, root, own, pipe):
  used = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
  resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
  noise = (root / f'noise.{os.getpid()}').open('w+b', buffering=0)
  os.dup2(noise.fileno(), 1)
  os.dup2(noise.fileno(), 2)
  folder, made = own / 'case', own / 'made'
  whole, around = None, None
  while True:
    try:
      case = pipe.recv()
    except EOFError:
      return
    reader = table[case.reader]
    if around is None:
      try:
        made.mkdir(parents=True)
        reader.make(made)
        around = _Surroundings(own, made)
        around.enter()
        whole = _read(folder, made, reader, None, around)[1]
      except BaseException:
        pipe.send(traceback.format_exc())
        raise
      pipe.send('')
    noise.seek(0)
    noise.truncate()
    answer, value, left = _read(folder, made, reader, case, around)
    sys.stderr.flush()
    sys.stdout.flush()
    said = _OWN.sub('', os.pread(noise.fileno(), 4000, 0).decode(errors='replace'))[:400]
    excused = left and case.damage in reader.silent and case.damage.startswith('link')
    verdict = _judged(reader, case, answer, value, whole, said)
    pipe.send(('outside', left) if left and not excused else verdict)


def _read(folder, made, reader, case, around):
  """Returns (exception or None, values or None, complaint) of a copy of the input, then damaged."""
  shutil.copytree(made, folder)
  try:
    if case is None:
      return None, plain(reader.read(folder), folder), ''
    damaged(reader, case, folder)
    before, error, value = around.look(), None, None
    try:
      value = plain(reader.read(folder), folder)
    except BaseException as raised:
      error = raised
    return error, value, around.complaint(before, reads=_must_not_read(reader, case))
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _must_not_read(reader, case) -> bool:
  """Whether nothing outside may be read: no place that a file names, and of data sets no link."""
  if reader.damages()[case.damage] not in damages.PLACE:
    return True
  inner = reader.target.count('/') > 1  # else its folder is the one that the user names
  links = ('link_copy', 'link_folder') if inner else ('link_copy',)
  return reader.confined and case.damage in links


def _judged(reader, case, error, value, whole, said):
  if error is not None:
    chain = [error]
    while chain[-1].__cause__ or chain[-1].__context__:
      chain.append(chain[-1].__cause__ or chain[-1].__context__)
    if any(_MEMORY.search(f'{type(one).__name__} {one}') for one in chain):
      return 'memory', str(error)[:LONGEST]
    if not isinstance(error, errors.UserError):
      last = traceback.extract_tb(error.__traceback__)
      place = next((at for at in reversed(last) if 'robustmed' in at.filename), last[-1])
      where = f'{pathlib.Path(place.filename).name}:{place.lineno}'
      return 'traceback', f'{type(error).__name__}: {error} ({where})'[:LONGEST]
    if len(str(error)) > LONGEST:
      return 'long', f'{len(str(error))} characters: {str(error)[:200]}'
  if said:
    return 'noise', said
  if error is not None:
    return 'refused', str(error)
  if value == whole:
    return 'equal', ''
  if case.damage in reader.silent:
    return 'permitted', reader.silent[case.damage]
  return 'silent', f'{_difference(whole, value)}'[:LONGEST]


def _difference(whole, value):
  if isinstance(whole, tuple) and isinstance(value, tuple) and len(whole) == len(value):
    return next(_difference(a, b) for a, b in zip(whole, value) if a != b)
  return f'{whole!r:.200} became {value!r:.200}'


def plain(value: Any, folder: pathlib.Path) -> Any:
  """Returns values as tuples that `==` compares: arrays by bytes, paths below `folder`."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
  if isinstance(value, pd.DataFrame):
    value = {str(name): list(value[name]) for name in value.columns}
  if isinstance(value, np.ndarray) and value.dtype.kind != 'O':
    return ('array', value.dtype.str, value.shape, value.tobytes())
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, float) and math.isnan(value):
    return 'NaN'
  if isinstance(value, Mapping):
    return tuple((plain(key, folder), plain(item, folder)) for key, item in value.items())
  if isinstance(value, collections.abc.Set):
    return tuple(sorted(map(repr, value)))
  if isinstance(value, pathlib.PurePath):
    return str(value).replace(str(folder), '')
  if isinstance(value, tuple | list | np.ndarray):
    return tuple(plain(item, folder) for item in value)
  if value is None or isinstance(value, str | bytes | int | float | complex):
    return value
  return repr(value)
