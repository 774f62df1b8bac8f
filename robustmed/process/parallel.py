"""The only module that names devices, mapped axes and hosts (processes of `jax.distributed`).

`each_device` maps a function over the devices; inside it `psum`, `pmean` and `all_gather` are the
collectives. Outside, a host has ordinary arrays: replicated values have no device axis, and batches
keep the leading axis of the host's own examples.
"""

import contextlib
import contextvars
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from robustmed import errors, platforms

AXIS = 'devices'
PyTree = Any
_Abstract = jax.ShapeDtypeStruct
_devices = contextvars.ContextVar('devices', default=())  # of `on_devices`; (): all of this host
_join_sums = contextvars.ContextVar('join_sums', default=None)  # of `coupled`; None: psum
_lowered = contextvars.ContextVar('lowered', default=None)  # of `lowering`; None: programs run


def process_index() -> int:
  return jax.process_index()


def process_count() -> int:
  return jax.process_count()


def is_writer() -> bool:
  """Returns True on the one host that writes reports, tables and logs."""
  return jax.process_index() == 0


def device_count() -> int:
  """Returns the number of devices of all hosts together, or of `on_devices`."""
  return len(_devices.get()) or jax.device_count()


def hosts_of(devices: Sequence[Any]) -> int:
  """Returns how many hosts these devices belong to."""
  return len({device.process_index for device in devices})


def local_device_count() -> int:
  return len(_local_devices())


def devices() -> list[jax.Device]:
  """Returns the devices of all hosts."""
  return jax.devices()


def _local_devices() -> tuple[jax.Device, ...]:
  return _devices.get() or tuple(jax.local_devices())


def memory_stats() -> list[dict[str, int] | None]:
  """Returns what each device of this host says of its memory; CPUs say nothing."""
  return [device.memory_stats() for device in jax.local_devices()]


@contextlib.contextmanager
def on_devices(first: int, count: int):
  """Runs what is called within, by this thread, on `count` of this host's devices, from number
  `first` on, as if there were no others. With several hosts they would wait for each other."""
  token = _devices.set(tuple(jax.local_devices()[first : first + count]))
  try:
    with jax.default_device(_devices.get()[0]):
      yield
  finally:
    _devices.reset(token)


@contextlib.contextmanager
def lowering(devices: Sequence[Any]):
  """Has mapped functions lower for `devices`, which need not be here, where they would run.

  Arguments and results of their calls are then `jax.ShapeDtypeStruct`s. Yields a list that gets the
  `jax.stages.Lowered` of every call.
  """
  found: list[Any] = []
  tokens = _devices.set(tuple(devices)), _lowered.set(found)
  try:
    with platforms.tracing_for(devices[0].platform):
      yield found
  finally:
    _devices.reset(tokens[0])
    _lowered.reset(tokens[1])


def describe() -> dict[str, Any]:
  """Returns plain data about devices and hosts, for logs and env.json."""
  device = jax.local_devices()[0]
  return {
    'platform': device.platform,
    'device': device.device_kind,
    'devices': jax.device_count(),
    'hosts': jax.process_count(),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
  }


def to_host(tree: PyTree) -> PyTree:
  """Returns replicated values as numpy arrays, which do not depend on the number of devices."""
  return jax.tree.map(np.asarray, tree)


def replicate(tree: PyTree) -> PyTree:
  """Returns the tree on every device of this host, sharded as replicated outputs of `each_device`.

  A state that a mapped function takes and returns must start like this: JAX traces and compiles
  once more for arrays with another sharding.
  """
  mesh = jax.sharding.Mesh(np.asarray(_local_devices()), (AXIS,))
  return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def warm_up_collectives() -> None:
  """Runs one collective on all devices, to be called right after the hosts have joined: gloo waits
  half a minute for late hosts (some may be compiling) in the first one, later without limit."""
  each_device(psum, split=(0,), gathered=False)(np.ones(local_device_count(), np.float32))


def barrier(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


# Around a mapped function -------------------------------------------------------------------


def each_device(
  function: Callable[..., Any], *, split: tuple[int, ...], gathered: bool | tuple[bool, ...] = True
) -> Callable[..., Any]:
  """Returns `function` mapped over this host's devices with `jax.pmap`, compiled once per shape.

  Arguments with their position in `split` are batches, split over the devices along the leading
  axis (a multiple of the local device count, see `pad`); all others are replicated. Outputs that
  are `gathered` (True/False per output) are per-example and concatenated along their leading axis;
  the others must be equal on all devices and are returned once. `.compiled(...)`: that
  program; `.mapped(args)(*.cut(args))`: the mapped function itself, to be traced.
  """
  axes_out = jax.tree.map(lambda joined: 0 if joined else None, gathered)

  @functools.cache
  def mapped(axes_in, devices):
    own = {'devices': devices} if devices else {}
    return jax.pmap(function, axis_name=AXIS, in_axes=axes_in, out_axes=axes_out, **own)

  def cut(args):
    count = local_device_count()
    return [_cut(arg, count) if i in split else arg for i, arg in enumerate(args)]

  def axes(args):
    # An argument without arrays would shift the axes of those after it, were its own None.
    return tuple(
      0 if i in split or not jax.tree.leaves(arg) else None for i, arg in enumerate(args)
    )

  def call(*args):
    program, found = mapped(axes(args), _devices.get()), _lowered.get()
    if found is None:
      outputs = program(*cut(args))
    else:
      found.append(program.lower(*cut(args)))
      outputs = jax.tree.map(lambda out: _Abstract(out.shape, out.dtype), found[-1].out_info)
    if _shares_threads():
      jax.block_until_ready(outputs)
    if isinstance(gathered, bool):
      return _join(outputs) if gathered else outputs
    return tuple(_join(out) if joined else out for out, joined in zip(outputs, gathered))

  call.cut = cut
  call.mapped = lambda args: mapped(axes(args), ())
  call.compiled = lambda *args: call.mapped(args).lower(*cut(args)).compile()
  return call


def _shares_threads() -> bool:
  """Returns whether several CPU devices share one thread pool, where two programs with collectives
  that run at once can block each other for ever, so that each must end before the next starts."""
  return platforms.current() == 'cpu' and jax.device_count() > 1


def _cut(tree: PyTree, count: int) -> PyTree:
  def one(leaf):
    if leaf.shape[0] % count:
      raise ValueError(f'leading axis {leaf.shape[0]} is not a multiple of {count} devices')
    return _reshape(leaf, (count, leaf.shape[0] // count, *leaf.shape[1:]))

  return jax.tree.map(one, tree)


def _join(tree: PyTree) -> PyTree:
  one = lambda leaf: _reshape(leaf, (leaf.shape[0] * leaf.shape[1], *leaf.shape[2:]))
  return jax.tree.map(one, tree)


def _reshape(leaf, shape):
  return _Abstract(shape, leaf.dtype) if isinstance(leaf, _Abstract) else leaf.reshape(shape)


def pad(batch: PyTree, size: int) -> PyTree:
  """Pads every leaf's leading axis to `size` by repeating the last example.

  The copies have finite values (no 0/0 in padding); their 'mask' entries are False.
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
  """Returns the smallest multiple of this host's device count that is at least `size`."""
  count = local_device_count()
  return -(-size // count) * count


def gather_rows(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the per-example columns of all hosts concatenated, host 0 first, on every host."""
  if jax.process_count() == 1:
    return {name: np.asarray(column) for name, column in table.items()}
  joined = multihost_utils.process_allgather({k: np.asarray(v) for k, v in table.items()})
  # Trees are sorted by name; the result keeps the order of `table`.
  return {name: np.asarray(joined[name]).reshape(-1, *joined[name].shape[2:]) for name in table}


def any_host(flag: bool) -> bool:
  """Returns True on every host if `flag` is True on at least one."""
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def broadcast_from_writer(array: np.ndarray) -> np.ndarray:
  """Returns the writer host's `array` on every host, so that all take the same decisions."""
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
  """Returns the `text` of every host (at most 256 bytes each), by its index."""
  rows = gather_rows({'text': _padded(text, 256)[None]})['text']
  return [_unpadded(row) for row in rows]


def run_on_writer(function: Callable[[], None]) -> None:
  """Calls `function` on the writer host; a `UserError` there is raised on every host."""
  message = ''
  if is_writer():
    try:
      function()
    except errors.UserError as error:
      message = str(error)
  if message := _text_from_writer(message):
    raise errors.UserError(message)


# Inside a mapped function -------------------------------------------------------------------


def psum(tree: PyTree) -> PyTree:
  """Returns the sum over all devices of all hosts."""
  if not _shares_threads():
    return jax.lax.psum(tree, AXIS)
  # One collective instead of one per leaf: each occupies threads while it runs.
  flat, restore = jax.flatten_util.ravel_pytree(tree)
  return restore(jax.lax.psum(flat, AXIS))


def pmean(tree: PyTree) -> PyTree:
  """Returns the mean over all devices of all hosts."""
  return jax.lax.pmean(tree, AXIS)


def all_gather(tree: PyTree) -> PyTree:
  """Returns [b, ...] leaves of all devices as [devices * b, ...], the same on every device."""
  return jax.lax.all_gather(tree, AXIS, tiled=True)


def coupled(function: Callable[[PyTree], Any], statistics: PyTree, mask: jax.Array) -> jax.Array:
  """Returns values [b] of a training loss that couples the examples of all devices.

  function(sums) -> scalar takes the sums of `statistics` (leaves [b, ...]) over the valid examples
  of all devices. Every value is that scalar, and the gradient of their masked mean over all devices
  is its gradient, whatever the number of devices: each example contributes along the slope of
  `function` at the joint sums, so no collective is differentiated.
  """
  weight = mask.astype(np.float32)
  sums = jax.tree.map(lambda leaf: jnp.tensordot(weight, leaf, 1), statistics)
  count, sums = (_join_sums.get() or psum)((weight.sum(), jax.lax.stop_gradient(sums)))
  value, slope = jax.value_and_grad(function)(sums)
  along = lambda s, leaf: jnp.tensordot(leaf.reshape(len(leaf), -1), s.reshape(-1), 1)
  linear = sum(jax.tree.leaves(jax.tree.map(along, slope, statistics)))
  linear = jnp.maximum(count, 1.0) * linear
  return value + linear - jax.lax.stop_gradient(linear)


@contextlib.contextmanager
def sums_joined_by(join: Callable[[PyTree], PyTree]):
  """Has `coupled`, in what is traced within, use join(sums) where it would use psum(sums).

  sums: (number of valid examples, sums of the statistics) of the examples that it was called with.
  """
  token = _join_sums.set(join)
  try:
    yield
  finally:
    _join_sums.reset(token)


def mapped_devices() -> int:
  """Returns the number of devices of the mapped function that is being traced, 1 outside of one."""
  try:
    return jax.lax.axis_size(AXIS)
  except NameError:
    return 1


def device_key(key: jax.Array) -> jax.Array:
  """Returns a key that differs from device to device."""
  return jax.random.fold_in(key, jax.lax.axis_index(AXIS))
