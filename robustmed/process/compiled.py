"""Compiled programs that are held in memory."""

import gc
import pathlib

import jax

_MAPPINGS_SHARE = 0.25  # of the memory mappings that a process may have


def drop_programs(share: float = 0.0) -> None:
  """Drops all compiled programs; one that is called again is loaded from the cache on disk.

  On the CPU each holds thousands of memory mappings, and Linux aborts a process with more than some
  65,530. Below `share` of that (0: a quarter) none is dropped: small programs, not on disk, would
  be compiled again.
  """
  if _count_mappings() > (share or _MAPPINGS_SHARE) * _max_mappings():
    jax.clear_caches()
    gc.collect()


def _max_mappings() -> int:
  path = pathlib.Path('/proc/sys/vm/max_map_count')  # Linux has it
  return min(65_530, int(path.read_text(encoding='ascii'))) if path.is_file() else 65_530


def _count_mappings() -> int:
  path = pathlib.Path('/proc/self/maps')
  return path.read_bytes().count(b'\n') if path.is_file() else 0
