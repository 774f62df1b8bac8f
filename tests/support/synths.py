"""A network with nothing to learn and tiny generators that attack it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from robustmed import tasks
from robustmed.generators import synthesis

SIDE = 16
OPTIONS = {
  'widths': (4, 4),
  'latent': 2,
  'd_max': 2.0,
  'v_max': 1.5,
  'critic_widths': (4, 4),
}


class Threshold(nn.Module):
  """Bright pixels are the organ: logits (0, 3 * image) with one scale to be trained."""

  @nn.compact
  def __call__(self, image, *, train=False):
    scale = self.param('scale', lambda key: jnp.full((), 3.0))
    return {'head0': jnp.concatenate([jnp.zeros_like(image), scale * image], axis=-1)}


def task():
  return tasks.TASKS['segmentation'](Threshold(), image_shape=(SIDE, SIDE, 1), classes=('organ',))


def model(**more):
  return synthesis.make({**OPTIONS, **more}, image_shape=(SIDE, SIDE, 1))


def variables(seed=0, *, scale=0.5, **more):
  """Generator variables whose heads are not zero, as after training."""
  made = model(**more).task.init(jax.random.key(seed))
  rng = np.random.default_rng(seed)
  generator = made['params']['generator']
  for name in ('head_D', 'head_V'):
    for leaf in ('kernel', 'bias'):
      shape = generator[name][leaf].shape
      generator[name][leaf] = jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
  return made


def batch(size=4, *, start=0):
  """Discs of brightness 1 on -1, the same for the same number."""
  rows, columns = np.mgrid[:SIDE, :SIDE]
  images, labels = [], []
  for number in range(start, start + size):
    rng = np.random.default_rng(number)
    centre = rng.uniform(6, 10, 2)
    inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < 16
    images.append(np.where(inside, 1.0, -1.0) + 0.1 * rng.normal(size=inside.shape))
    labels.append(inside)
  number = np.arange(start, start + size, dtype=np.int32)
  return {
    'image': np.stack(images).astype(np.float32)[..., None],
    'target': {'labels': np.stack(labels).astype(np.int32)},
    'mask': np.ones(size, bool),
    'index': number,
    'group': number,
    'draw': number,
  }


def stream(size=4):
  def batches(start):
    step = start
    while True:
      yield batch(size, start=step * size % 64)
      step += 1

  return batches
