"""The folder of compiled programs, so that a second run does not compile again."""

import pathlib
import threading
from typing import NamedTuple

LARGE = 0.5  # seconds of compilation from which a program is kept


class Counts(NamedTuple):
  """The programs of this process so far."""

  compiled: int = 0
  read: int = 0  # from the folder
  seconds: float = 0.0  # for both
  large: int = 0  # of those compiled, that took `LARGE`


_counts, _lock, _hit, _listening = Counts(), threading.Lock(), threading.local(), []


def count() -> Counts:
  """Returns how many programs were compiled and read since the first call."""
  if not _listening:
    import jax

    jax.monitoring.register_event_listener(_on_event)
    jax.monitoring.register_event_duration_secs_listener(_on_duration)
    _listening.append(True)  # listeners cannot be removed
  return _counts


def _on_event(event: str, **_) -> None:
  # Comes in the same thread before the duration of the program that was read.
  if event == '/jax/compilation_cache/cache_hits':
    _hit.seen = True


def _on_duration(event: str, duration: float, **_) -> None:
  global _counts
  if event != '/jax/core/compile/backend_compile_duration':
    return
  read, _hit.seen = getattr(_hit, 'seen', False), False
  with _lock:
    _counts = Counts(
      _counts.compiled + (not read),
      _counts.read + read,
      _counts.seconds + duration,
      _counts.large + (not read and duration >= LARGE),
    )


def said(counts: Counts) -> str:
  """One line for the log."""
  return (
    f'{counts.compiled} programs were compiled, {counts.large} of them in {LARGE:g} s or more, and '
    f'{counts.read} read from {folder()}, in {counts.seconds:.0f} s'
  )


def folder() -> pathlib.Path:
  """Returns where JAX keeps compiled programs: as configured, else in the user's home."""
  import jax

  return pathlib.Path(
    jax.config.jax_compilation_cache_dir or pathlib.Path.home() / '.cache' / 'robustmed' / 'xla'
  )


def share() -> None:
  """Turns on the persistent compilation cache in the user's home, unless one is set."""
  import jax

  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update('jax_compilation_cache_dir', str(folder()))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', LARGE)
