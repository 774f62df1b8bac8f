"""The platform that programs are traced for, which decides the form of operations."""

import contextlib

import jax

# A part of the key of jit's caches: what was traced for one platform is traced again for another.
_target = jax.make_user_context()


def current() -> str:
  """Returns the platform ('cpu', 'gpu', 'tpu'): that of `tracing_for`, else that of JAX here."""
  return _target.value or jax.default_backend()


def tracing_for(platform: str) -> contextlib.AbstractContextManager:
  """Returns a context: what is traced and lowered within, by this thread, is for `platform`."""
  return _target(platform)
