"""The command `robustmed doctor`: is this machine fit to run attacks, and what does it have?"""

import importlib.metadata
import os
import pathlib
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import numpy as np

from robustmed.process import tool

PACKAGES = ('robustmed', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'onnx')
OPTIONAL = {
  'torch': 'networks.from_torch',
  'PyYAML': 'MONAI bundles in YAML',
  'gcsfs': 'workdirs gs://',
  's3fs': 'workdirs s3://',
}
_EPS, _SIDE = 0.1, 8
_GIB = 2**30


def main(words: Sequence[str]) -> int:
  """Prints what this machine has and tests an attack; 1 if its answer is wrong, 2 if it fails."""
  return tool.run(_run, words)


def _run(words) -> int:
  parser = tool.Parser(
    prog='robustmed doctor',
    description='Versions, devices, flags, free memory and disk, compile cache, and an attack on a '
    'tiny network whose answer is known. Exit code 1 if the answer is wrong.',
    allow_abbrev=False,
  )
  parser.parse_args(list(words))
  from robustmed.process import cpu_flags

  added = cpu_flags.tune()  # before JAX starts
  for name, value in _machine(added):
    print(f'{name:<14} {value}', flush=True)
  good, line = self_test()
  print(f'{"self-test":<14} {"ok" if good else "WRONG"}: {line}')
  return 0 if good else 1


def _machine(added: str) -> Iterator[tuple[str, str]]:
  """Yields (name, value) of everything that is printed before the self-test."""
  import jax

  from robustmed.data import store
  from robustmed.process import compile_cache

  yield 'python', f'{platform.python_version()} ({sys.executable})'
  yield 'system', f'{platform.platform()}, {os.cpu_count()} cores'
  for name in PACKAGES:
    yield name, _version(name) or 'absent'
  for name, use in OPTIONAL.items():
    yield name, _version(name) or f'absent (only needed for {use})'
  for device in jax.local_devices():
    stats = device.memory_stats() or {}
    size = f', {stats["bytes_limit"] / _GIB:.1f} GiB' if 'bytes_limit' in stats else ''
    yield 'device', f'{device.platform} {device.id}: {device.device_kind}{size}'
  yield 'XLA_FLAGS', f'{os.environ.get("XLA_FLAGS", "")} (added here: {added or "none"})'.strip()
  free = free_memory()
  yield 'free memory', 'not known on this system' if free is None else f'{free / _GIB:.1f} GiB'
  caches = {
    'this folder': pathlib.Path(),
    'temporary': pathlib.Path(tempfile.gettempdir()),
    'data cache': store.cache_root(None),
    'compile cache': compile_cache.folder(),
  }
  for name, folder in caches.items():
    yield name, _describe_folder(folder)


def _version(name):
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    if name != 'robustmed':
      return ''
    import robustmed

    return f'{robustmed.__version__} (not installed)'


def _describe_folder(folder: pathlib.Path) -> str:
  """Returns a folder, what lies in it if it is a cache, and what is free on its disk."""
  folder = folder.expanduser().absolute()
  there = next(path for path in (folder, *folder.parents) if path.is_dir())
  state = f'{shutil.disk_usage(there).free / _GIB:.1f} GiB free'
  if there != folder:
    state += ', not made yet'
  if not os.access(there, os.W_OK):
    state += ', NOT WRITABLE'
  return f'{folder} ({state})'


def free_memory() -> int | None:
  """Returns the bytes of main memory that programs can still take; None where this is unknown."""
  try:
    text = pathlib.Path('/proc/meminfo').read_text('ascii')
  except OSError:
    return None
  found = [line.split() for line in text.splitlines() if line.startswith('MemAvailable:')]
  return int(found[0][1]) * 1024 if found else None


def self_test() -> tuple[bool, str]:
  """Attacks a tiny linear network on every device; returns whether the answer is the exact one.

  The objective is sum(v * conv(image, k)). Its gradient is the convolution of v with k whatever the
  image, so the largest value within eps in Linf is that of the image plus eps times the sum of the
  gradient's magnitudes. Both are computed by SciPy; the attack uses `ops.conv`.
  """
  import jax
  import jax.numpy as jnp
  from scipy import signal

  from robustmed import attacks
  from robustmed.ops import conv
  from robustmed.process import parallel

  started = time.monotonic()
  rng = np.random.default_rng(0)
  count = 2 * parallel.local_device_count()
  image = rng.normal(size=(count, _SIDE, _SIDE, 1)).astype(np.float32)
  kernel = rng.normal(size=(3, 3)).astype(np.float32)
  weights = rng.normal(size=(_SIDE, _SIDE)).astype(np.float32)
  gradient = signal.convolve2d(weights, kernel, mode='same')
  exact = (image[..., 0] * gradient).sum(axis=(1, 2)) + _EPS * np.abs(gradient).sum()

  attack = attacks.pgd(norm='linf', num_steps=10)

  def attacked(image, key):
    def objective(x):
      outputs = conv.conv(x, kernel[..., None, None], padding='SAME', precision='highest')
      return jnp.sum(outputs[..., 0] * weights[None], axis=(1, 2))

    return attack(objective, image, eps=_EPS, key=key).value

  mapped = parallel.each_device(attacked, split=(0,))
  found = np.asarray(mapped(image, jax.random.key(0)))
  error = float(np.max(np.abs(found - exact)) / np.abs(exact).max())
  seconds = time.monotonic() - started
  line = f'PGD on {count // 2} device(s) is {error:.1e} from the exact worst case'
  return error < 1e-4, f'{line}, {seconds:.1f} s'


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
