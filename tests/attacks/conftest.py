"""Tiny objectives with known optima, as the fixture `problems`."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def axes(x):
  return tuple(range(1, x.ndim))


def linear(weights):
  """sum(w * x) per example; w is [...] or [b, ...]."""
  return lambda x: jnp.sum(x * jnp.broadcast_to(weights, x.shape), axis=axes(x))


def bowl(goal):
  """-(x - goal)^2 summed: the optimum in a ball is the goal's projection."""
  return lambda x: -jnp.sum((x - goal) ** 2, axis=axes(x))


def network(shape, seed=0):
  """A small smooth non-linear objective on examples of `shape`."""
  rng = np.random.default_rng(seed)
  size = int(np.prod(shape))
  first = jnp.asarray(rng.normal(size=(size, 8)) / np.sqrt(size), jnp.float32)
  second = jnp.asarray(rng.normal(size=(8,)), jnp.float32)
  return lambda x: jnp.tanh(x.reshape(x.shape[0], -1) @ first * 3) @ second


def images(shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).uniform(size=shape), jnp.float32)


def call(attack, objective, x, eps, *, key=0, **more):
  """The attack under jit, `eps` traced."""
  key = jax.random.key(key) if isinstance(key, int) else key
  return jax.jit(lambda x, eps, key: attack(objective, x, eps=eps, key=key, **more))(x, eps, key)


@pytest.fixture(scope='session')
def problems():
  return types.SimpleNamespace(
    linear=linear, bowl=bowl, network=network, images=images, call=call, axes=axes
  )
