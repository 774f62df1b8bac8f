"""The gradient of a phase's mean loss over a batch, at once or in parts that need less memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from robustmed import types
from robustmed.ops import contracts
from robustmed.process import parallel

PyTree = Any
KEPT_APART = ('scalars', 'state')  # of a loss's aux: what the defense's `update` does not take


def gradient(
  phase: types.Phase,
  params: PyTree,
  context: types.LossContext,
  *,
  count: jax.Array,
  join: Callable[[PyTree], jax.Array],
  parts: int = 1,
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
  """(joined gradient, {'loss': ..., scalars}, aux) of one device's share of the mean over `count`.

  With `parts` > 1 equal parts of the batch follow one another. But for rounding and for dropout,
  which draws for each part, nothing else changes: what the phase prepares (attacks) is made once,
  and losses that couple the batch (`parallel.coupled`) first take a forward pass over all parts for
  their sums. Batch statistics would be those of a part: `aux` has no 'state' then.
  """
  if parts == 1:
    return _of(phase, params, context, count, join)
  split = lambda leaf: leaf.reshape(parts, len(leaf) // parts, *leaf.shape[1:])
  pieces = [jnp.arange(parts), *jax.tree.map(split, (context.batch, context.keys)), ()]

  def at(piece):
    number, batch, keys, made = piece
    key = jax.random.fold_in(context.key, number)
    return context._replace(batch=batch, keys=keys, key=key, made=made)

  if phase.prepare is not None:
    pieces[3] = jax.lax.map(lambda piece: phase.prepare(params, at(piece)), pieces)
  totals, _ = _summed(lambda piece: _sums(phase, params, at(piece)), pieces)
  totals = totals and parallel.psum(totals)

  def one(piece):
    given = iter(totals)
    with parallel.sums_joined_by(lambda own: next(given)):
      found, means, aux = _of(phase, params, at(piece), count, join)
    return (found, means), {name: value for name, value in aux.items() if name not in KEPT_APART}

  (found, means), aux = _summed(one, pieces)
  return found, means, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), aux)


def _of(phase, params, context, count, join):
  mask = context.batch['mask']

  def mean(values):
    return jnp.sum(jnp.where(mask, values, 0.0)) / count

  def mean_loss(params):
    values, aux = phase.loss(params, context)
    what = f'the loss of phase {phase.name!r}'
    return mean(contracts.per_example(values, len(mask), what=what)), aux

  (loss, aux), found = jax.value_and_grad(mean_loss, has_aux=True)(params)
  means = {name: mean(value) for name, value in aux.get('scalars', {}).items()}
  return join(found), {**means, 'loss': loss}, aux


def _sums(phase, params, context):
  """((the sums of each coupled term, in the order of their calls), nothing) of one part."""
  found = []

  def keep(own):
    found.append(own)
    return own

  with parallel.sums_joined_by(keep):
    phase.loss(params, context)
  return found, ()


def _summed(function, pieces):
  """(the sum over all pieces of the first result of `function`, the second of all, stacked)."""
  first = jax.tree.map(lambda leaf: leaf[0], pieces)
  start = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, first)[0]
  )

  def body(total, piece):
    found, kept = function(piece)
    return jax.tree.map(jnp.add, total, found), kept

  if not start:
    return start, ()
  return jax.lax.scan(body, start, pieces)
