"""What programs can be compiled for: slices of TPUs, and CPU devices. Imports no JAX."""

import importlib.metadata
import importlib.util
import os
import pathlib
import re
import sys
from typing import Any, NamedTuple

from robustmed import errors

GIB = 2**30


class Chip(NamedTuple):
  """One device, by its maker's figures; of a CPU, whose figures differ, none."""

  memory: float = 0.0  # bytes
  flops: float = (
    0.0  # a second, of matrix products in bfloat16, which is what float32 becomes there
  )
  bandwidth: float = 0.0  # bytes a second, of its memory
  link: float = 0.0  # bytes a second that it sends to others


# The memory is what the compiler of libtpu 0.0.42 calls available when a program is too large.
CHIPS = {
  'v4': Chip(30.75 * GIB, 275e12, 1.2e12, 150e9),
  'v5e': Chip(15.75 * GIB, 197e12, 0.82e12, 100e9),
  'v5p': Chip(95.74 * GIB, 459e12, 2.76e12, 300e9),
  'v6e': Chip(31.25 * GIB, 918e12, 1.64e12, 224e9),
  'cpu': Chip(),
}
# Chips of a slice -> its shape; the number in the names of v4 and v5p is that of cores, two a chip.
_FLAT = {
  1: '1x1',
  4: '2x2',
  8: '2x4',
  16: '4x4',
  32: '4x8',
  64: '8x8',
  128: '8x16',
  256: '16x16',
}
_CUBES = {4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4', 64: '4x4x4', 128: '4x4x8'}
_SHAPES = {'v4': _CUBES, 'v5e': _FLAT, 'v5p': _CUBES, 'v6e': _FLAT}
_CORES = {'v4': 2, 'v5p': 2}
_TYPES = {'v5e': 'v5litepod'}
# Options of the topology, where the compiler's defaults are not how JAX uses these chips.
_CORES_AS_ONE = {'chip_config_name': 'megacore'}
_SINGLE = {'chips_per_host_bounds': (1, 1, 1)}
EXAMPLES = 'v5e-16, v5e-256, v6e-8, v4-8, v5p-8 or cpu-8'


class Target(NamedTuple):
  """A number of devices of one kind."""

  name: str
  kind: str
  devices: int
  topology: str = ''  # of `jax.experimental.topologies`, '' for devices of this process

  @property
  def chip(self) -> Chip:
    return CHIPS[self.kind]


def parse(name: str) -> Target:
  """The target of a name such as v5e-16; cloud types (v5litepod-16) are understood."""
  found = re.fullmatch(r'(v4|v5e|v5litepod|v5p|v6e|cpu)-(\d+)', name)
  if not found:
    raise errors.UserError(f'unknown target {name!r}; take one like {EXAMPLES}')
  kind, number = found[1].replace('litepod', 'e'), int(found[2])
  if kind == 'cpu':
    if not 1 <= number <= 64:
      raise errors.UserError(f'the target {name} must have 1 to 64 devices')
    return Target(name, kind, number)
  chips, rest = divmod(number, _CORES.get(kind, 1))
  if rest or chips not in _SHAPES[kind]:
    sizes = ', '.join(f'{kind}-{size * _CORES.get(kind, 1)}' for size in _SHAPES[kind])
    raise errors.UserError(f'there is no slice {name}; there are {sizes}')
  return Target(f'{kind}-{number}', kind, chips, f'{kind}:{_SHAPES[kind][chips]}')


def chosen(flags: Any) -> str:
  """The checked target of the flags of a command, for which the environment is set; '' if none."""
  if (flags.target is not None) != (flags.stage == 'compile'):
    raise errors.UserError(
      f'--stage compile needs --target, such as {EXAMPLES}, and no other stage has one'
    )
  for name in ('programs', 'largest', 'full'):
    if getattr(flags, name) and not flags.target:
      raise errors.UserError(f'--{name} can be used with --stage compile only')
  if not flags.target:
    return ''
  found = parse(flags.target)
  if flags.largest and not found.chip.memory:
    raise errors.UserError(f'--largest needs devices whose memory is known, unlike {found.name}')
  prepare(found)
  return found.name


def prepare(target: Target) -> None:
  """Sets the environment for a target; takes effect before JAX is imported."""
  if target.kind == 'cpu':
    flags = os.environ.get('XLA_FLAGS', '')
    if 'jax' not in sys.modules and 'xla_force_host_platform_device_count' not in flags:
      count = f'--xla_force_host_platform_device_count={target.devices}'
      os.environ['XLA_FLAGS'] = f'{flags} {count}'.strip()
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    return
  if not os.environ.get('TPU_LIBRARY_PATH') and importlib.util.find_spec('libtpu') is None:
    raise errors.UserError(
      f'the target {target.name} needs the compiler of TPUs, which is not installed: '
      'pip install -r launch/tpu_compile.txt (a TPU is not needed)'
    )
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['TPU_SKIP_MDS_QUERY'] = '1'
  os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'  # no device is used
  os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'  # what it keeps is read with a device alone
  number = target.name.partition('-')[2]
  os.environ['TPU_ACCELERATOR_TYPE'] = f'{_TYPES.get(target.kind, target.kind)}-{number}'
  os.environ['TPU_WORKER_HOSTNAMES'], os.environ['TPU_WORKER_ID'] = 'localhost', '0'


def devices_of(target: Target) -> list[Any]:
  """The devices to compile for; those of a slice are known by their topology alone."""
  import jax
  from jax.experimental import topologies

  if target.topology:
    options = _CORES_AS_ONE if target.kind == 'v4' else _SINGLE if target.devices == 1 else {}
    found = topologies.get_topology_desc(platform='tpu', topology_name=target.topology, **options)
    return list(found.devices)
  found = jax.local_devices(backend='cpu')
  if len(found) < target.devices:
    raise errors.UserError(
      f'JAX has started with {len(found)} CPU devices, the target is {target.name}; set '
      f'XLA_FLAGS=--xla_force_host_platform_device_count={target.devices}'
    )
  return found[: target.devices]


def compiler(target: Target) -> str:
  """The version of the compiler of TPUs, '' for other targets."""
  if not target.topology:
    return ''
  try:
    return importlib.metadata.version('libtpu')
  except importlib.metadata.PackageNotFoundError:  # a file that TPU_LIBRARY_PATH names
    found = pathlib.Path(os.environ.get('TPU_LIBRARY_PATH', ''))
    return f'{found.stat().st_size} bytes' if found.is_file() else ''


def options(target: Target, *, full: bool) -> dict[str, Any]:
  """What the compiler is told beside its defaults; unless `full`, to spend little on fast programs.

  For v5e that takes about a fifth of the time. The operations are the same within a hundredth, and
  the program is a half to a tenth of the size. Temporaries are up to several times as large, since
  fewer of them are kept in the fast memory of a chip; 3 % smaller at most was seen.
  """
  if full:
    return {}
  if target.topology:
    return {'exec_time_optimization_effort': -1.0}
  return {'xla_llvm_disable_expensive_passes': True}
