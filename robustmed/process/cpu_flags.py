"""Flags of XLA that make its CPU backend faster, set in the environment before JAX starts."""

import os
import re

_TUNED_JAXLIB = ('0.10.',)  # versions with the flags below; an unknown flag aborts the process
_CPU_FLAGS = ('--xla_cpu_experimental_ynn_fusion_type=', '--xla_cpu_prefer_vector_width=512')


def tune() -> str:
  """Sets XLA flags that make the CPU backend faster; returns what was added ('' if nothing).

  Must run before the first JAX computation. Flags that the user set take precedence; GPU and TPU
  ignore these flags; jaxlib versions that were not tuned get none.
  """
  import jaxlib

  _widen_thread_pool()
  if not jaxlib.__version__.startswith(_TUNED_JAXLIB):
    return ''
  present = os.environ.get('XLA_FLAGS', '')
  added = [flag for flag in _CPU_FLAGS if flag.split('=')[0] not in present]
  if '--xla_cpu_prefer_vector_width=512' in added and not _has_avx512():
    added.remove('--xla_cpu_prefer_vector_width=512')
  os.environ['XLA_FLAGS'] = ' '.join([present, *added]).strip()
  return ' '.join(added)


def _widen_thread_pool() -> None:
  """Enlarges the thread pool of XLA (NPROC) where there are several virtual CPU devices.

  They share one pool of a thread per core. A device occupies a thread for each collective that it
  waits in, so with fewer threads the last device may wait for ever.
  """
  found = re.search(r'xla_force_host_platform_device_count=(\d+)', os.environ.get('XLA_FLAGS', ''))
  if found and int(found[1]) > 1:
    os.environ.setdefault('NPROC', str((os.cpu_count() or 1) + 6 * int(found[1])))


def _has_avx512() -> bool:
  try:
    with open('/proc/cpuinfo') as file:
      return 'avx512f' in file.read()
  except OSError:
    return False
