"""The only file that knows devices and hosts.

A function that runs on every device is made by `each_device`; inside it `total` and `gather` talk
across devices. Outside, the host sees ordinary arrays: replicated values have no device axis, and
batches keep the leading axis of the host's own examples.
"""

import contextlib
import contextvars
import functools
import gc
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from robustmed import errors

AXIS = 'devices'
PyTree = Any
_FEW = 0.25  # share of the memory mappings that a process may have
_alone = contextvars.ContextVar('alone', default=False)
_TUNED_JAXLIB = ('0.10.',)  # where the flags below are known; an unknown one aborts the process
_CPU_FLAGS = ('--xla_cpu_experimental_ynn_fusion_type=', '--xla_cpu_prefer_vector_width=512')


def tune_cpu() -> str:
  """Sets XLA flags that make the CPU backend faster; returns what was added ('' if nothing).

  Must run before the first JAX computation. Flags of the user survive and win; GPU and TPU do not
  look at these flags; unknown jaxlib versions are left alone.
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
  """Gives virtual CPU devices threads enough.

  All of them run on one pool of as many threads as there are cores. A device that waits in a
  collective, or in several at once, holds their threads, so the last one may wait for ever.
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


def host_index() -> int:
  return jax.process_index()


def host_count() -> int:
  return jax.process_count()


def is_writer() -> bool:
  """True on the one host that writes reports, tables and logs."""
  return jax.process_index() == 0


def device_count() -> int:
  """Devices of all hosts together."""
  return jax.device_count()


def local_device_count() -> int:
  return jax.local_device_count()


def describe() -> dict[str, Any]:
  """Plain facts about devices and hosts, for logs and env.json."""
  device = jax.local_devices()[0]
  return {
    'platform': device.platform,
    'device': device.device_kind,
    'devices': jax.device_count(),
    'hosts': jax.process_count(),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
  }


def to_host(tree: PyTree) -> PyTree:
  """Replicated values as numpy arrays, which any number of hosts and devices can take up."""
  return jax.tree.map(np.asarray, tree)


def replicate(tree: PyTree) -> PyTree:
  """The same values on every device of this host, as replicated outputs of `each_device` come.

  What is handed back to a function again and again must begin like this: to JAX, values that lie
  elsewhere are another type, for which it traces and compiles once more.
  """
  mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), (AXIS,))
  return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def warm_up_collectives() -> None:
  """All devices talk once, while all hosts have just come: gloo waits half a minute for those that
  are late at the first talk, for instance by compiling, and as long as it takes at later ones."""
  each_device(psum, split=(0,), gathered=False)(np.ones(local_device_count(), np.float32))


def barrier(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


# Around a mapped function -------------------------------------------------------------------


def each_device(
  function: Callable[..., Any], *, split: tuple[int, ...], gathered: bool | tuple[bool, ...] = True
) -> Callable[..., Any]:
  """Maps `function` over this host's devices with `jax.pmap`, compiled once per shape.

  Arguments named in `split` are batches: their leading axis (a multiple of the local device count,
  see `pad`) is cut over the devices. All other arguments are the same on every device. Of the
  outputs, `gathered` ones (True/False per output) are per-example and come back joined on their
  leading axis; the others must be equal on every device and come once. `.compiled_text(...)`: HLO.
  """
  axes_out = jax.tree.map(lambda joined: 0 if joined else None, gathered)

  @functools.cache
  def mapped(axes_in):
    return jax.pmap(function, axis_name=AXIS, in_axes=axes_in, out_axes=axes_out)

  def cut(args):
    count = jax.local_device_count()
    return [_cut(arg, count) if i in split else arg for i, arg in enumerate(args)]

  def axes(args):
    # An argument without arrays would shift the axes of those after it, were its own None.
    return tuple(
      0 if i in split or not jax.tree.leaves(arg) else None for i, arg in enumerate(args)
    )

  def call(*args):
    outputs = mapped(axes(args))(*cut(args))
    if _shares_threads():
      jax.block_until_ready(outputs)
    if isinstance(gathered, bool):
      return _join(outputs) if gathered else outputs
    return tuple(_join(out) if joined else out for out, joined in zip(outputs, gathered))

  call.compiled_text = lambda *args: mapped(axes(args)).lower(*cut(args)).compile().as_text()
  return call


@functools.cache
def _shares_threads() -> bool:
  """Several CPU devices share one thread pool: programs with collectives that are in flight at
  once can hold each other's threads for ever, so there the next one waits."""
  return jax.default_backend() == 'cpu' and jax.device_count() > 1


def _cut(tree: PyTree, count: int) -> PyTree:
  def one(leaf):
    if leaf.shape[0] % count:
      raise ValueError(f'leading axis {leaf.shape[0]} is not a multiple of {count} devices')
    return leaf.reshape(count, leaf.shape[0] // count, *leaf.shape[1:])

  return jax.tree.map(one, tree)


def _join(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def pad(batch: PyTree, size: int) -> PyTree:
  """Pads every leaf's leading axis to `size` by repeating the last example.

  A repeated example keeps its finite values (no 0/0 in padding); its 'mask' entry becomes False.
  """
  num = len(jax.tree.leaves(batch)[0])
  extra = size - num
  if extra < 0:
    raise ValueError(f'batch of {num} does not fit into {size}')
  padded = jax.tree.map(lambda leaf: np.concatenate([leaf, np.repeat(leaf[-1:], extra, 0)]), batch)
  if isinstance(padded, dict) and 'mask' in padded:
    padded['mask'] = np.concatenate([np.asarray(batch['mask'], bool), np.zeros(extra, bool)])
  return padded


def round_up(size: int) -> int:
  """The smallest multiple of this host's device count that holds `size` examples."""
  count = jax.local_device_count()
  return -(-size // count) * count


def gather_rows(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Joins the per-example columns of all hosts, host 0 first; every host gets all rows."""
  if jax.process_count() == 1:
    return {name: np.asarray(column) for name, column in table.items()}
  joined = multihost_utils.process_allgather({k: np.asarray(v) for k, v in table.items()})
  # In the order of the columns here, which trees do not keep.
  return {name: np.asarray(joined[name]).reshape(-1, *joined[name].shape[2:]) for name in table}


def any_host(flag: bool) -> bool:
  """True on every host as soon as it is true on one."""
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def broadcast_from_writer(array: np.ndarray) -> np.ndarray:
  """The writer host's value of `array` on every host, so that all take the same decisions."""
  if jax.process_count() == 1:
    return np.asarray(array)
  return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(array)))


def _padded(text: str, size: int) -> np.ndarray:
  return np.frombuffer(text.encode()[:size].ljust(size, b'\0'), np.uint8)


def _unpadded(row: np.ndarray) -> str:
  return row.tobytes().rstrip(b'\0').decode(errors='replace')


def _text_from_writer(text: str) -> str:
  return _unpadded(broadcast_from_writer(_padded(text, 4096)))


def all_gather_text(text: str) -> list[str]:
  """The `text` of every host (at most 256 bytes), by its index."""
  rows = gather_rows({'text': _padded(text, 256)[None]})['text']
  return [_unpadded(row) for row in rows]


def run_on_writer(function: Callable[[], None]) -> None:
  """Calls `function` on the writer host; its `UserError` there is one on every host."""
  said = ''
  if is_writer():
    try:
      function()
    except errors.UserError as error:
      said = str(error)
  if said := _text_from_writer(said):
    raise errors.UserError(said)


# Inside a mapped function -------------------------------------------------------------------


def psum(tree: PyTree) -> PyTree:
  """Sum over all devices of all hosts."""
  if not _shares_threads():
    return jax.lax.psum(tree, AXIS)
  # One collective instead of one per leaf: each that is under way holds threads.
  flat, restore = jax.flatten_util.ravel_pytree(tree)
  return restore(jax.lax.psum(flat, AXIS))


def pmean(tree: PyTree) -> PyTree:
  """Mean over all devices of all hosts."""
  return jax.lax.pmean(tree, AXIS)


def batch_mean(tree: PyTree) -> PyTree:
  """Mean of batch statistics over the devices; nothing outside of `each_device`, within `alone`."""
  return tree if batch_devices() == 1 else pmean(tree)


def batch_devices() -> int:
  """Over how many devices `batch_mean` runs."""
  try:
    return 1 if _alone.get() else jax.lax.axis_size(AXIS)
  except NameError:  # no such axis
    return 1


@contextlib.contextmanager
def local_statistics():
  """What is traced within keeps batch statistics to its device: loops hold no collectives."""
  token = _alone.set(True)
  yield
  _alone.reset(token)


def all_gather(tree: PyTree) -> PyTree:
  """Joins [b, ...] leaves of all devices into [devices * b, ...], the same on every device."""
  return jax.lax.all_gather(tree, AXIS, tiled=True)


def coupled(function: Callable[[PyTree], Any], statistics: PyTree, mask: jax.Array) -> jax.Array:
  """Per-example values [b] of a loss that couples the examples of all devices; for training only.

  function(sums) -> scalar takes the sums of `statistics` (leaves [b, ...]) over the valid examples
  of all devices. Every value is that scalar, and the gradient of their masked mean over all devices
  is its gradient, whatever the number of devices: each example contributes along the slope of
  `function` at the joint sums, so no collective is differentiated.
  """
  weight = mask.astype(np.float32)
  count = jnp.maximum(psum(weight.sum()), 1.0)
  sums = jax.tree.map(lambda leaf: jnp.tensordot(weight, leaf, 1), statistics)
  value, slope = jax.value_and_grad(function)(psum(jax.lax.stop_gradient(sums)))
  along = lambda s, leaf: jnp.tensordot(leaf.reshape(len(leaf), -1), s.reshape(-1), 1)
  linear = count * sum(jax.tree.leaves(jax.tree.map(along, slope, statistics)))
  return value + linear - jax.lax.stop_gradient(linear)


def device_key(key: jax.Array) -> jax.Array:
  """A key of this device's own."""
  return jax.random.fold_in(key, jax.lax.axis_index(AXIS))


def drop_compiled_programs() -> None:
  """Lets go of every compiled program; one that is called again comes from the cache on disk.

  On the CPU each holds thousands of memory mappings, and Linux aborts a process with more than some
  65,530. Far from that nothing is let go of: small programs, not on disk, would be made again.
  """
  if _mappings() > _FEW * _most_mappings():
    jax.clear_caches()
    gc.collect()


def _most_mappings() -> int:
  path = pathlib.Path('/proc/sys/vm/max_map_count')  # Linux has it
  return min(65_530, int(path.read_text(encoding='ascii'))) if path.is_file() else 65_530


def _mappings() -> int:
  path = pathlib.Path('/proc/self/maps')
  return path.read_bytes().count(b'\n') if path.is_file() else 0
