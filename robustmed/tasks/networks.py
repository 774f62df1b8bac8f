"""Turns a linen module into the pure functions a task is made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustmed import types

PyTree = Any


class Network(NamedTuple):
  init: Callable[[jax.Array], PyTree]  # key -> variables
  predict: Callable[[PyTree, jax.Array], PyTree]  # (variables, image) -> outputs
  forward: Callable[..., tuple[PyTree, PyTree]]  # (variables, image, key) -> (outputs, state)


def bind(module: nn.Module, *, image_shape: tuple[int, ...]) -> Network:
  """`module(image, train=...)` as pure functions.

  `predict` runs in inference mode and writes nothing. `forward` runs in training mode and returns
  the updated non-parameter collections (batch statistics); `key` feeds dropout. Outputs are float32
  whatever the module computes in.
  """

  def init(key):
    # Threefry, once per parameter, would take longer to compile than the network itself.
    data = jax.random.key_data(key).reshape(-1)[:2]
    key = jax.random.wrap_key_data(jnp.concatenate([data, data]), impl='unsafe_rbg')
    return module.init(key, jnp.zeros((1, *image_shape), jnp.float32), train=False)

  # Drawing weights runs once, so its program is compiled fast rather than made fast.
  options = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None
  compiled = jax.jit(init, compiler_options=options)

  @jax.jit  # traced once per shape, whatever the number of programs it becomes a part of
  def predict(variables, image):
    return _float32(module.apply(variables, image, train=False))

  def forward(variables, image, key):
    outputs, state = module.apply(
      variables,
      image,
      train=True,
      rngs={'dropout': key},
      mutable=[name for name in variables if name != 'params'],
    )
    return _float32(outputs), dict(state)

  # Inside somebody's jit the options have no place, and that program is theirs.
  start = lambda key: (init if isinstance(key, jax.core.Tracer) else compiled)(key)
  return Network(start, predict, forward)


def bind_without_losses(module: nn.Module, *, image_shape: tuple[int, ...]) -> types.Task:
  """The task of a network that answers nothing by itself: no losses, objectives or metrics."""
  network = bind(module, image_shape=tuple(image_shape))
  return types.Task(
    init=network.init,
    predict=network.predict,
    forward=network.forward,
    losses=lambda outputs, batch: {},
    objectives={},
    metrics=lambda outputs, batch: {},
    image_shape=tuple(image_shape),
  )


def _float32(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
