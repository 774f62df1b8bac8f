"""Generator and critic of Chen et al. 2019 (section 3.1); the paper does not give their layers.

Batch normalisation is `layers.BatchNorm`: batch statistics in training, running averages in
inference.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from robustmed import errors
from robustmed.models import layers
from robustmed.ops import resize

LEAK = 0.2
BRANCHES = ('D', 'V')
_LOG_SIGMA = (-8.0, 4.0)
_HE = layers.he_normal(LEAK)


class Latent(NamedTuple):
  """N(mean, exp(log_sigma)^2), each [b, *coarse, latent]."""

  mean: jnp.ndarray
  log_sigma: jnp.ndarray


class Generator(nn.Module):
  """image [b, h, w, 1] -> fields {'D': [b, h, w, 2] pixels (rows, columns), 'V': [b, h, w, 1]}.

  One encoder, a Gaussian latent for each field and two decoders of equal layers. The latents keep
  the coarse grid (`spatial`) or are one vector. Fields are bounded by d_max and v_max (tanh), and
  zero at initialisation. `noise(name, shape)` returns the standard normal noise of a latent; None
  uses the latent's mean.
  """

  widths: tuple[int, ...] = (32, 64, 128, 256)
  latent: int = 32
  spatial: bool = True
  d_max: float = 10.0
  v_max: float = 1.0

  @nn.compact
  def __call__(self, image, noise: Callable | None = None, *, train: bool = False):
    factor = 2 ** len(self.widths)
    if image.shape[-1] != 1 or image.ndim != 4 or any(n % factor for n in image.shape[1:3]):
      raise errors.UserError(
        f'the generator reads images [b, h, w, 1] with sides that are multiples of {factor}, got '
        f'{image.shape}; pad them'
      )
    x = image
    for level, features in enumerate(self.widths):
      for place in range(2):
        x = _Step(features, name=f'encoder{level}_{place}')(x, train=train)
      x = _Step(features, stride=2, name=f'encoder{level}_down')(x, train=train)
    if not self.spatial:
      x = x.mean((1, 2), keepdims=True)
    coarse = tuple(n // factor for n in image.shape[1:3])
    fields, latents = {}, {}
    for name, features, largest in (('D', 2, self.d_max), ('V', 1, self.v_max)):
      numbers = layers.Conv(2 * self.latent, (1, 1), use_bias=True, name=f'latent_{name}')(x)
      mean, log_sigma = jnp.split(numbers, 2, axis=-1)
      latents[name] = Latent(mean, jnp.clip(log_sigma, *_LOG_SIGMA))
      z = mean
      if noise is not None:
        z = mean + jnp.exp(latents[name].log_sigma) * noise(name, mean.shape)
      z = jnp.broadcast_to(z, (z.shape[0], *coarse, z.shape[-1]))
      y = _Decoder(self.widths, name=f'decoder_{name}')(z, train=train)
      zero = lambda fan_in: nn.initializers.zeros
      y = layers.Conv(features, (3, 3), use_bias=True, init_of=zero, name=f'head_{name}')(y)
      fields[name] = largest * jnp.tanh(y)
    return fields, latents


class _Step(nn.Module):
  """conv3, batch norm, LeakyReLU."""

  features: int
  stride: int = 1

  @nn.compact
  def __call__(self, x, *, train: bool):
    x = layers.Conv(self.features, (3, 3), strides=self.stride, init_of=_HE, name='conv')(x)
    return layers.BatchNorm(leak=LEAK, name='norm')(x, train=train)


class _Decoder(nn.Module):
  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, z, *, train: bool):
    x = layers.Conv(self.widths[-1], (1, 1), use_bias=True, name='lift')(z)
    for level in reversed(range(len(self.widths))):
      x = resize.linear(x, tuple(2 * n for n in x.shape[1:3]))
      for place in range(2):
        x = _Step(self.widths[level], name=f'rise{level}_{place}')(x, train=train)
    return x


class Critic(nn.Module):
  """image [b, h, w, 1] -> [b], without sigmoid (Arjovsky et al. 2017).

  norm: 'batch' for weight clipping; 'layer' for the gradient penalty, which must not depend on
  batch statistics. Batch norm has no learned scale: clipped to 0.01 it would suppress the signal.
  """

  widths: tuple[int, ...] = (64, 128, 256, 512)
  norm: str = 'batch'

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    errors.lookup(dict.fromkeys(('batch', 'layer')), self.norm, kind='norm of the critic')
    x = image
    for level, features in enumerate(self.widths):
      x = layers.Conv(
        features,
        (4, 4),
        strides=2,
        padding=(1, 1),
        use_bias=level == 0,
        init_of=_HE,
        name=f'conv{level}',
      )(x)
      if level and self.norm == 'batch':
        x = layers.BatchNorm(leak=LEAK, affine=False, name=f'norm{level}')(x, train=train)
      elif level:
        x = layers.Norm(groups=1, leak=LEAK, name=f'norm{level}')(x)
      else:
        x = jnp.where(x >= 0, x, LEAK * x)
    x = layers.Conv(1, (4, 4), padding=((1, 2), (1, 2)), init_of=_HE, name='score')(x)
    return x.mean((1, 2, 3))


class Pair(nn.Module):
  """Both networks as one module, with variables 'generator/...' and 'critic/...'."""

  generator: Generator
  critic: Critic

  def __call__(self, image, *, train: bool = False):
    self.critic(image, train=train)
    return self.generator(image, train=train)

  def draw(self, image, noise, *, train: bool):
    return self.generator(image, noise, train=train)

  def score(self, image, *, train: bool):
    return self.critic(image, train=train)
