"""How much memory this process can still have, and what needs more than that."""

import os
import pathlib

from robustmed import errors

GIB = 2**30
ALLOW = '--allow-memory'
# Address space that libraries, thread stacks and compiled programs of a small network map; most of
# it is never touched. With less, threads cannot start and the process waits for them for ever.
_MAPPED, _MAPPED_PER_CORE = 4.5 * GIB, 0.25 * GIB
_GROUPS = (  # of control groups: the limit, what is in use, statistics, what could be dropped
  ('memory.max', 'memory.current', 'memory.stat', 'inactive_file'),
  (
    'memory/memory.limit_in_bytes',
    'memory/memory.usage_in_bytes',
    'memory/memory.stat',
    'total_inactive_file',
  ),
)
_CGROUP = pathlib.Path('/sys/fs/cgroup')
_PROC = pathlib.Path('/proc')


def check_address_space() -> None:
  """Raises a `UserError` if `ulimit -v` leaves less address space than any run needs."""
  limit, needed = address_limit(), _MAPPED + _MAPPED_PER_CORE * (os.cpu_count() or 1)
  if limit is not None and limit < needed:
    raise errors.UserError(
      f'ulimit -v allows {limit / GIB:.1f} GiB of address space, a run needs {needed / GIB:.1f} '
      f'GiB on this machine; raise it (ulimit -v unlimited), or try with {ALLOW}'
    )


def address_limit() -> int | None:
  """Returns the limit of this process's address space in bytes (`ulimit -v`), None without one."""
  try:
    import resource
  except ImportError:  # Windows
    return None
  soft, _ = resource.getrlimit(resource.RLIMIT_AS)
  return None if soft == resource.RLIM_INFINITY else soft


def free_bytes() -> int | None:
  """Returns how much memory this process can take on the host; None where that is not known.

  The least of what the system has available, the control group (container) allows, and `ulimit -v`
  leaves.
  """
  found = [_available(), *map(_left_in_group, _GROUPS), _left_to_map()]
  return min((size for size in found if size is not None), default=None)


def free_device_bytes() -> int | None:
  """Returns the memory that each device of this host can still give, None where it is not known.

  Devices that say nothing of their memory, as CPUs do, share that of the host.
  """
  from robustmed.process import parallel  # here: the address space is checked before JAX is there

  told = parallel.memory_stats()
  if all(found and 'bytes_limit' in found for found in told):
    return min(found['bytes_limit'] - found['bytes_in_use'] for found in told)
  shared = free_bytes()
  return None if shared is None else shared // len(told)


def _available():
  return _field(_PROC / 'meminfo', 'MemAvailable', unit=1024)


def _left_to_map():
  limit, mapped = address_limit(), _field(_PROC / 'self' / 'status', 'VmSize', unit=1024)
  return None if limit is None or mapped is None else max(0, limit - mapped)


def _left_in_group(names):
  limit, used, statistics, droppable = names
  limit, used = _number(_CGROUP / limit), _number(_CGROUP / used)
  if limit is None or used is None:
    return None
  return max(0, limit - used + (_field(_CGROUP / statistics, droppable) or 0))


def _number(path) -> int | None:
  try:
    return int(path.read_text(encoding='ascii'))
  except (OSError, ValueError):  # 'max' is no limit
    return None


def _field(path, name, *, unit=1) -> int | None:
  """Returns the number after `name` in a file of lines like 'MemAvailable:  123 kB'."""
  try:
    lines = path.read_text(encoding='ascii').splitlines()
  except (OSError, ValueError):
    return None
  words = (line.replace(':', ' ').split() for line in lines)
  return next((unit * int(word[1]) for word in words if word[0] == name), None)


def program_bytes(compiled) -> int:
  """Returns what a call of a compiled JAX program needs on each device."""
  found = compiled.memory_analysis()
  sizes = (found.temp_size_in_bytes, found.argument_size_in_bytes, found.output_size_in_bytes)
  return sum(sizes) - found.alias_size_in_bytes
