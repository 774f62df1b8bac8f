"""Statistics of training batches that the devices share, such as those of batch normalisation."""

import contextlib
import contextvars
from typing import Any

import jax
import jax.numpy as jnp

from robustmed.process import parallel

PyTree = Any
_local = contextvars.ContextVar('local', default=False)
_counted = contextvars.ContextVar('counted', default=None)  # of `counting`; None: all examples


def mean(tree: PyTree) -> PyTree:
  """Returns the mean over `devices()` devices; over one, `tree` itself."""
  return tree if devices() == 1 else parallel.pmean(tree)


def devices() -> int:
  """Returns how many devices share batch statistics: 1 within `local`, else all."""
  return 1 if _local.get() else parallel.mapped_devices()


@contextlib.contextmanager
def local():
  """Computes the batch statistics of what is traced within per device, without collectives."""
  token = _local.set(True)
  yield
  _local.reset(token)


@contextlib.contextmanager
def counting(mask: jax.Array | None):
  """Leaves examples where mask [b] is False out of the batch statistics of what is traced within.

  None: all examples count.
  """
  token = _counted.set(mask)
  try:
    yield
  finally:
    _counted.reset(token)


def weights(size: int) -> jax.Array | None:
  """Returns the weight of each of `size` examples in batch statistics, None where all are 1.

  `size` is a multiple of the batch where versions of it are joined to one.
  """
  mask = _counted.get()
  return None if mask is None else jnp.tile(mask.astype(jnp.float32), size // len(mask))
