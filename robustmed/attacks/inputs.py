"""What an attack is called with, checked, images of its type, and what is said of its result."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors

_SAID = {
  'no_gradient': 'there was no gradient',
  'not_finite': 'the objective was no number',
  'not_moved': 'the image stayed as it was',
  'wrong_eps': 'eps was negative or NaN',
}


def image(x):
  """Returns x as an array [b, ...] of a floating type with pixels, else raises `UserError`."""
  given = jnp.asarray(x)
  if not jnp.issubdtype(given.dtype, jnp.floating) or given.ndim < 1:
    raise errors.UserError(
      f'an attack needs x of a floating dtype and shape [b, ...], got {given.dtype} '
      f'{given.shape}; convert the image first, for example x.astype(float32) / 255'
    )
  if not given.size:
    raise errors.UserError(f'an attack needs images with pixels, got shape {given.shape}')
  return given


def example_keys(key, batch):
  """Returns [b] keys: `fold_in(key, i)` of one key, or the [b] keys that were given."""
  if key is None:
    raise errors.UserError('an attack needs a key: jax.random.key(seed)')
  key = jnp.asarray(key)
  if key.dtype == jnp.uint32 and key.ndim in (1, 2):
    key = jax.random.wrap_key_data(key)
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    raise errors.UserError(f'key must come from jax.random.key(seed), not be {key.dtype}')
  if key.ndim == 0:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
  if key.shape != (batch,):
    raise errors.UserError(f'key must be one key or {batch} keys, one per example; got {key.shape}')
  return key


def check_at_least_0(values, *, what):
  """Raises `UserError` where a value is negative or NaN; traced ones are not checked."""
  if isinstance(values, jax.core.Tracer):
    return
  wrong = [value for value in np.asarray(values).tolist() if not value >= 0]
  if wrong:
    raise errors.UserError(f'{what} must be 0 or more, got {wrong[0]:.6g}')


def rounded(x, dtype):
  """Returns x rounded to the precision of `dtype`, so that its distance also holds after the cast.

  The compiler may drop a cast there and back.
  """
  target = jnp.finfo(dtype)
  if target.bits >= jnp.finfo(x.dtype).bits:
    return x
  return jax.lax.reduce_precision(x, exponent_bits=target.nexp, mantissa_bits=target.nmant)


def told(result):
  """Returns the result; outside of jit it waits for it and warns of what its flags mark."""
  flags = result.flags._asdict()
  if any(isinstance(marked, jax.core.Tracer) for marked in flags.values()):
    return result
  if not all(marked.is_fully_addressable for marked in flags.values()):
    return result  # of several hosts none sees all
  counts = {name: int(np.sum(np.asarray(marked))) for name, marked in flags.items()}
  words = [f'{said} in {counts[name]}' for name, said in _SAID.items() if counts[name]]
  if words:
    text = f'of {len(flags["not_moved"])} attacked examples {", ".join(words)}; see result.flags'
    warnings.warn(text, RuntimeWarning, stacklevel=4)  # of who called the attack
  return result
