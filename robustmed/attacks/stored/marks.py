"""Bytes that tell apart what functions and their settings compute."""

import dataclasses
import functools
import hashlib
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_PLAIN = (str, bytes, bool, int, float, complex, type(None), type(Ellipsis), slice, range)


def of(value: Any) -> bytes:
  """Returns bytes that are equal for equal values and, as far as can be told, for these alone.

  A function is told by its code and by what it holds: defaults, the variables around it and those
  of its module that are numbers or text. Dataclasses, tuples and mappings are told by their parts,
  arrays by their bits, other objects by their type.
  """
  return _of(value, ())


def _of(value, above) -> bytes:
  if isinstance(value, _PLAIN):
    return f'{type(value).__name__} {value!r};'.encode()
  if any(value is one for one in above):
    return b'itself;'
  within = (*above, value)
  name, parts = _named(value)
  made = hashlib.sha256(name.encode())
  for part in parts:
    made.update(part if isinstance(part, bytes) else _of(part, within))
  return made.digest()


def _named(value):
  """The name of what a value is, and its parts."""
  if isinstance(value, np.ndarray | np.generic | jax.Array):
    keys = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(value) if keys else value)
    return f'array {array.dtype} {array.shape}', [array.tobytes()]
  if isinstance(value, types.CodeType):
    return 'code', [value.co_code, value.co_names, value.co_consts]
  if isinstance(value, types.FunctionType):
    return f'function {value.__module__}.{value.__qualname__}', _held(value)
  if isinstance(value, functools.partial):
    return 'partial', [value.func, value.args, value.keywords]
  if isinstance(value, types.MethodType):
    return 'method', [value.__func__, value.__self__]
  name = f'{type(value).__module__}.{type(value).__qualname__}'
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return name, [getattr(value, field.name) for field in dataclasses.fields(value)]
  if isinstance(value, tuple | list):
    return f'{name} {len(value)}', list(value)
  if isinstance(value, Mapping):
    return f'{name} {len(value)}', [part for pair in value.items() for part in pair]
  if isinstance(value, set | frozenset):
    return f'{name} {len(value)}', sorted(of(part) for part in value)
  if wrapped := getattr(value, '__wrapped__', None):
    return name, [wrapped]
  return name, [str(getattr(value, '__qualname__', ''))]


def _held(function):
  """The code of a function and the values that it finds elsewhere."""
  cells = [_content(cell) for cell in function.__closure__ or ()]
  outer = {name: function.__globals__.get(name) for name in function.__code__.co_names}
  around = {name: value for name, value in outer.items() if isinstance(value, _PLAIN)}
  return [function.__code__, function.__defaults__, function.__kwdefaults__, cells, around]


def _content(cell):
  try:
    return cell.cell_contents
  except ValueError:  # a variable that was never set
    return None
