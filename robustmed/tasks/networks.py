"""Pure functions of a linen module, of which tasks are made."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustmed import platforms, types

PyTree = Any


class Network(NamedTuple):
  """A linen module as pure functions."""

  init: Callable[[jax.Array], PyTree]  # key -> variables
  predict: Callable[[PyTree, jax.Array], PyTree]  # (variables, image) -> outputs
  forward: Callable[..., tuple[PyTree, PyTree]]  # (variables, image, key) -> (outputs, state)


def bind(module: nn.Module, *, image_shape: tuple[int, ...]) -> Network:
  """Returns `module(image, train=...)` as pure functions.

  `predict` runs in inference mode and writes nothing. `forward` runs in training mode and returns
  the updated non-parameter collections (batch statistics); `key` is that of dropout. Outputs are
  float32 for any dtype of the module.
  """

  def init(key):
    # Threefry, once per parameter, would take longer to compile than the network itself.
    data = jax.random.key_data(key).reshape(-1)[:2]
    key = jax.random.wrap_key_data(jnp.concatenate([data, data]), impl='unsafe_rbg')
    return module.init(key, jnp.zeros((1, *image_shape), jnp.float32), train=False)

  # Initialisation runs once, so compile time matters more than run time.
  options = {'xla_backend_optimization_level': 0} if platforms.current() == 'cpu' else None
  compiled = jax.jit(init, compiler_options=options)

  @jax.jit  # traced once per shape, however many programs contain it
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

  # Compiler options cannot be given inside an enclosing jit.
  init_fast = lambda key: (init if isinstance(key, jax.core.Tracer) else compiled)(key)
  return Network(init_fast, predict, forward)


def bind_without_losses(module: nn.Module, *, image_shape: tuple[int, ...]) -> types.Task:
  """Returns the task of a network without losses, objectives and metrics."""
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
