"""Tiny tasks and data that compile in no time, for tests of the machinery around them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from robustmed import types
from robustmed.metrics import losses
from robustmed.tasks import networks

SIDE = 4


class Net(nn.Module):
  """A two-layer network; with `norm` it carries batch statistics, as detectors do."""

  norm: bool = False
  axis_name: str | None = None

  @nn.compact
  def __call__(self, image, *, train=False):
    x = nn.Dense(5, name='hidden')(image.reshape(image.shape[0], -1))
    if self.norm:
      x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name)(x)
    return {'logit': nn.Dense(1, name='out')(jnp.tanh(x))}


def task(module=None):
  network = networks.bind(module or Net(), image_shape=(SIDE, SIDE, 1))
  bce = lambda outputs, batch: losses.binary_cross_entropy(
    outputs['logit'], batch['target']['label']
  )
  return types.Task(
    init=network.init,
    predict=network.predict,
    forward=network.forward,
    losses=lambda outputs, batch: {'bce': bce(outputs, batch)},
    objectives={'bce': bce},
    metrics=lambda outputs, batch: {
      'accuracy': ((outputs['logit'] > 0) == (batch['target']['label'] > 0.5))[:, 0].astype(float),
      'brightness': jnp.mean(batch['image'], axis=(1, 2, 3)),
    },
    image_shape=(SIDE, SIDE, 1),
    soften=_soften,
  )


def _soften(outputs, temperature):
  logit = outputs['logit'] / temperature
  return {'logit': logit}, {'label': jax.nn.sigmoid(logit)}


def variables(seed=5):
  """Weights of `Net` that were not drawn by it, as of a network trained elsewhere."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  layer = lambda inputs, outputs: {'kernel': draw(inputs, outputs), 'bias': draw(outputs)}
  return {'params': {'hidden': layer(SIDE * SIDE, 5), 'out': layer(5, 1)}}


def batch(size=6, *, seed=0, start=0):
  # The content of an example follows its number alone, wherever a batch begins.
  draws = [np.random.default_rng([seed, start + i]) for i in range(size)]
  image = np.stack([rng.uniform(0, 1, (SIDE, SIDE, 1)) for rng in draws]).astype(np.float32)
  label = (image[:, :2].mean(axis=(1, 2)) > image[:, 2:].mean(axis=(1, 2))).astype(np.float32)
  number = np.arange(start, start + size, dtype=np.int32)
  return {
    'image': image,
    'target': {'label': label},
    'mask': np.ones(size, bool),
    'index': number,
    'group': number // 2,
    'draw': number,
  }


def stream(size=6):
  """start step -> endless batches, the same for every start."""

  def batches(start):
    step = start
    while True:
      yield batch(size, start=step * size)
      step += 1

  return batches


def assert_equal_trees(first, second):
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), first, second
  )


def flip_bit(path, place: float = 0.5) -> None:
  """Flips one bit of a file, `place` of its length behind its start."""
  content = bytearray(path.read_bytes())
  content[int(place * (len(content) - 1))] ^= 4
  path.write_bytes(bytes(content))
