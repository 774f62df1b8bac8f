"""Networks of the nodule synthesiser of Liu et al. 2020; layers and sizes are ours.

The paper names a variational auto-encoder and a Wasserstein critic with spectral normalisation.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from robustmed import errors
from robustmed.generators import networks, vae
from robustmed.models import layers
from robustmed.ops import conv, resize

Array = jax.Array
LEAK = 0.2
EMPTY = -3.0  # logit of what a decoder draws to begin with, 0.05
_HE = layers.he_normal(LEAK)


class SpectralConv(nn.Module):
  """Convolution without bias, its kernel over its largest singular value (Miyato et al. 2018).

  The kernel is the matrix of all taps and inputs by outputs. A running right vector, collection
  'batch_stats', makes one power iteration a call with `train`; it is constant to differentiation.
  """

  features: int
  kernel: tuple[int, ...]
  strides: int = 1
  padding: tuple[int, ...] | None = None

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    shape = (*self.kernel, x.shape[-1], self.features)
    kernel = self.param('kernel', _HE(math.prod(shape[:-1])), shape)
    matrix = kernel.reshape(-1, self.features)
    start = lambda: _unit(jax.random.normal(self.make_rng('params'), (self.features,)))
    running = self.variable('batch_stats', 'direction', start)
    frozen = jax.lax.stop_gradient(matrix)
    left = _unit(frozen @ running.value)
    right = running.value
    if train and not self.is_initializing():
      right = running.value = _unit(left @ frozen)
      left = _unit(frozen @ right)
    size = left @ matrix @ right
    padding = self.padding or tuple(k // 2 for k in self.kernel)
    # The penalty differentiates twice.
    return conv.conv_twice(x, kernel / size, strides=self.strides, padding=padding)


def _unit(vector):
  return vector / jnp.maximum(jnp.linalg.norm(vector), 1e-12)


class Encoder(nn.Module):
  """image [b, *sides, 1] -> code: conv4 of stride 2 per width, then a dense layer.

  There is no norm: over an image that is 0 outside its nodule it would take away the scale of the
  image, and with it the density of the nodule.
  """

  widths: tuple[int, ...]
  latent: int

  @nn.compact
  def __call__(self, image: Array) -> networks.Latent:
    x, kernel = image, (4,) * (image.ndim - 2)
    for level, features in enumerate(self.widths):
      x = layers.Conv(
        features,
        kernel,
        strides=2,
        padding=(1,) * len(kernel),
        use_bias=True,
        init_of=_HE,
        bias_init=nn.initializers.zeros,
        name=f'conv{level}',
      )(x)
      x = jnp.where(x >= 0, x, LEAK * x)
    x = x.reshape(len(x), -1)
    return vae.latent(layers.Dense(2 * self.latent, use_bias=True, name='code')(x))


class Decoder(nn.Module):
  """code [b, latent] -> image [b, *sides, 1] in [0, 1]: the mirror image, linear up-sampling."""

  sides: tuple[int, ...]
  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, code: Array) -> Array:
    coarse = tuple(side // 2 ** len(self.widths) for side in self.sides)
    size = math.prod(coarse) * self.widths[-1]
    x = layers.Dense(size, use_bias=True, name='code')(code)
    x = x.reshape(len(x), *coarse, self.widths[-1])
    for level in reversed(range(len(self.widths))):
      x = resize.linear(x, tuple(2 * n for n in x.shape[1:-1]))
      features = self.widths[max(level - 1, 0)]
      kernel = (3,) * len(coarse)
      x = layers.Conv(features, kernel, init_of=_HE, name=f'conv{level}')(x)
      x = layers.Norm(1, leak=LEAK, name=f'norm{level}')(x)
    # It begins nearly empty: what no code has been trained for shows nothing.
    empty = nn.initializers.constant(EMPTY)
    x = layers.Conv(1, (3,) * len(coarse), use_bias=True, bias_init=empty, name='image')(x)
    return jax.nn.sigmoid(x)


class Critic(nn.Module):
  """image [b, *sides, 1] -> [b]: spectral conv4 of stride 2 per width, a dense layer, no norm."""

  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Array:
    x, kernel = image, (4,) * (image.ndim - 2)
    for level, features in enumerate(self.widths):
      x = SpectralConv(
        features, kernel, strides=2, padding=(1,) * len(kernel), name=f'conv{level}'
      )(x, train=train)
      x = jnp.where(x >= 0, x, LEAK * x)
    return layers.Dense(1, use_bias=True, name='score')(x.reshape(len(x), -1))[:, 0]


class Synthesiser(nn.Module):
  """'generator' (encoder and decoder) and 'critic' as one set of variables."""

  sides: tuple[int, ...]
  latent: int = 128
  widths: tuple[int, ...] = (16, 32, 64, 128)
  critic_widths: tuple[int, ...] = (16, 32, 64, 128)

  def setup(self):
    whole = 2 ** max(len(self.widths), len(self.critic_widths))
    if any(side % whole for side in self.sides):
      raise errors.UserError(
        f'a synthesiser that halves {round(math.log2(whole))} times makes patches whose sides are '
        f'multiples of {whole}, not {self.sides}; give it fewer widths or another side'
      )
    self.generator = _Generator(self.sides, self.latent, self.widths)
    self.critic = Critic(self.critic_widths)

  def __call__(self, image: Array, *, train: bool = False) -> Array:
    self.critic(image, train=train)
    return self.decode(self.encode(image).mean)

  def encode(self, image: Array) -> networks.Latent:
    return self.generator.encode(image)

  def decode(self, code: Array) -> Array:
    return self.generator.decode(code)

  def judge(self, image: Array, *, train: bool) -> Array:
    return self.critic(image, train=train)


class _Generator(nn.Module):
  sides: tuple[int, ...]
  latent: int
  widths: tuple[int, ...]

  def setup(self):
    self.encoder = Encoder(self.widths, self.latent)
    self.decoder = Decoder(self.sides, self.widths)

  def encode(self, image):
    return self.encoder(image)

  def decode(self, code):
    return self.decoder(code)
