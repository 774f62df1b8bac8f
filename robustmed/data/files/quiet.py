"""Shows what a C++ library prints only after it has read its file."""

import contextlib
import io
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator

_STDERR = 2


class _Readings:
  """The readings that run now, in any thread; they share one redirection."""

  def __init__(self):
    self._lock = threading.Lock()
    self._running, self._failed = 0, False
    self._redirection = contextlib.ExitStack()

  def begin(self) -> None:
    with self._lock:
      if not self._running:
        self._failed = False
        if _is_open(_STDERR):
          self._redirection.enter_context(self._redirected())
      self._running += 1

  def end(self, *, failed: bool) -> None:
    with self._lock:
      self._running -= 1
      self._failed |= failed
      if not self._running:
        self._redirection.close()

  @contextlib.contextmanager
  def _redirected(self) -> Iterator[None]:
    """Sends the descriptor of stderr to a file; what sys.stderr prints goes on to its place."""
    before, terminal = sys.stderr, os.dup(_STDERR)
    with tempfile.TemporaryFile() as file:
      if _descriptor(before) == _STDERR:
        before.flush()
        sys.stderr = _stream()
      shown = sys.stderr
      os.dup2(file.fileno(), _STDERR)
      try:
        yield
      finally:
        if sys.stderr is shown:
          sys.stderr = before
        os.dup2(terminal, _STDERR)
        os.close(terminal)
        file.seek(0)
        if not self._failed and (text := file.read()):
          os.write(_STDERR, text)


_READINGS = _Readings()


@contextlib.contextmanager
def unless_read() -> Iterator[None]:
  """Passes on what C++ prints to stderr at the end of the block, and drops it after an exception.

  Blocks that overlap, in several threads, end with the last one and count as one.
  """
  _READINGS.begin()
  failed = True
  try:
    yield
    failed = False
  finally:
    _READINGS.end(failed=failed)


def _stream() -> io.TextIOWrapper:
  """Returns a stream to where stderr leads; a thread may still write when it is replaced."""
  descriptor = os.dup(_STDERR)
  raw = io.FileIO(descriptor, 'w', closefd=False)
  weakref.finalize(raw, os.close, descriptor)
  return io.TextIOWrapper(raw, errors='backslashreplace', write_through=True)


def _descriptor(stream) -> int | None:
  try:
    return stream.fileno()
  except (AttributeError, OSError, ValueError):
    return None


def _is_open(descriptor) -> bool:
  try:
    os.fstat(descriptor)
  except OSError:
    return False
  return True
