"""Tiny patches with a ball in them, and networks that say how bright a patch is."""

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import types
from robustmed.data import store
from robustmed.papers.nodules import synthesiser

SIDE = 8
SHAPE = (SIDE, SIDE, SIDE, 1)
OPTIONS = {'latent': 3, 'widths': (4, 8), 'critic_widths': (4, 8)}


def model(**more):
  return synthesiser.make({**OPTIONS, **more}, image_shape=SHAPE)


def ball(radius):
  """[8, 8, 8, 1] in {0, 1}."""
  places = np.mgrid[:SIDE, :SIDE, :SIDE] - (SIDE - 1) / 2
  return (np.sqrt(np.square(places).sum(0)) <= radius)[..., None].astype(np.float32)


def example(number, *, positive=True):
  rng = np.random.default_rng(number)
  soft = ball(rng.uniform(1.5, 3.0)) * positive
  image = 0.2 + 0.05 * rng.uniform(size=SHAPE) + rng.uniform(0.4, 0.6) * soft
  return {
    'image': image.astype(np.float32),
    'soft': soft,
    'has_mask': np.bool_(positive),
    'target': np.int32(positive),
    'centre': np.arange(3, dtype=np.float32),
    'index': np.int32(number),
    'group': np.int32(number // 2),
    'name': f'patch{number}',
  }


def patches(size, *, first=0, positive=True):
  rows = [example(first + i, positive=positive) for i in range(size)]
  return store.Split(rows, [int(row['group']) for row in rows])


def batch(size=4, *, start=0):
  rows = [example(start + i) for i in range(size)]
  stack = lambda name: np.stack([row[name] for row in rows])
  number = np.arange(start, start + size, dtype=np.int32)
  return {
    'image': stack('image'),
    'target': {name: stack(name) for name in ('soft', 'has_mask', 'target')},
    'mask': np.ones(size, bool),
    'index': number,
    'group': number,
    'draw': number,
  }


def brightness():
  """A task that finds a nodule where a patch is bright: logit = scale * (mean - 0.3)."""

  def predict(variables, image):
    return {'logit': variables['scale'] * (image.mean((1, 2, 3, 4)) - 0.3)}

  def loss(outputs, batch):
    sign = 1.0 - 2.0 * batch['target']['target'].astype(jnp.float32)
    return jax.nn.softplus(sign * outputs['logit'])

  return types.Task(
    init=lambda key: {'scale': jnp.float32(5.0)},
    predict=predict,
    forward=None,
    losses=lambda outputs, batch: {'loss': loss(outputs, batch)},
    objectives={'loss': loss},
    metrics=lambda outputs, batch: {},
    image_shape=SHAPE,
  )
