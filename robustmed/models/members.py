"""An ensemble of small networks with equal layers; every example names the member it is for.

An example is [features ..., member]; the last number selects the network. So every member learns
from its own examples alone, and one program trains and attacks all of them.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from robustmed import errors
from robustmed.models import layers

Array = jax.Array


class Perceptron(nn.Module):
  """MLPs: x [b, c], member [b] -> [b, widths[-1]]; ReLU between the layers."""

  members: int
  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, x: Array, member: Array) -> Array:
    x = jnp.broadcast_to(x[None], (self.members, *x.shape))
    for place, features in enumerate(self.widths):
      init = layers.uniform_fan_in(x.shape[-1])
      kernel = self.param(f'kernel{place}', init, (self.members, x.shape[-1], features))
      bias = self.param(f'bias{place}', init, (self.members, 1, features))
      x = jnp.einsum('mbc,mcf->mbf', x if place == 0 else nn.relu(x), kernel) + bias
    own = jax.nn.one_hot(member.astype(jnp.int32), self.members, dtype=x.dtype)
    return jnp.einsum('bm,mbf->bf', own, x)


class Classifier(nn.Module):
  """Maps image [b, 3] = (x, y, member) to {'logit': [b, 1]}."""

  members: int = 1
  widths: tuple[int, ...] = (64, 64)

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> dict[str, Array]:
    del train  # neither dropout nor batch statistics
    coordinates, member = split(image)
    logit = Perceptron(self.members, (*self.widths, 1), name='mlp')(coordinates, member)
    return {'logit': logit}


def split(image: Array) -> tuple[Array, Array]:
  """Returns (coordinates [b, 2], member [b]) of examples [b, 3]."""
  if image.ndim != 2 or image.shape[-1] != 3:
    raise errors.UserError(f'a network of members reads images [b, 3], got {image.shape}')
  return image[:, :2], jax.lax.stop_gradient(image[:, 2])


def join(coordinates: Array, member: Array) -> Array:
  """Returns examples [b, 3], the inverse of `split`."""
  return jnp.concatenate([coordinates, member[:, None].astype(coordinates.dtype)], axis=-1)
