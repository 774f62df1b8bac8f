"""Points in the plane: a small variational auto-encoder, and the search for hard points.

The toy of Liu et al. 2020, Fig. 7, with one network per member, see `models.members`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from robustmed import types
from robustmed.generators import networks, vae
from robustmed.metrics import losses
from robustmed.models import members
from robustmed.process import parallel
from robustmed.tasks import networks as binding

Array = jax.Array
PyTree = Any


class Vae(nn.Module):
  """image [b, 3] = (x, y, member) -> its reconstruction at the mean of its code, [b, 3]."""

  members: int = 1
  widths: tuple[int, ...] = (32, 32)
  latent: int = 2

  def setup(self):
    self.encoder = members.Perceptron(self.members, (*self.widths, 2 * self.latent))
    self.decoder = members.Perceptron(self.members, (*self.widths[::-1], 2))

  def encode(self, image: Array) -> networks.Latent:
    return vae.latent(self.encoder(*members.split(image)))

  def decode(self, code: Array, member: Array) -> Array:
    """Codes [b, latent] of members [b] -> [b, 3]."""
    return members.join(self.decoder(code, member), member)

  def __call__(self, image: Array, *, train: bool = False) -> Array:
    del train
    return self.decode(self.encode(image).mean, members.split(image)[1])


def make_task(module: Vae) -> types.Task:
  """init and predict alone: it answers nothing by itself."""
  return binding.bind_without_losses(module, image_shape=(3,))


def fitting(module: Vae, *, divergence: float) -> types.Defense:
  """Squared distance + `divergence` * KL, with a code drawn by the example's key."""

  def loss(params, context):
    image, variables = context.batch['image'], {'params': params}
    found = module.apply(variables, image, method='encode')
    code = vae.draw(found, context.keys)
    again = module.apply(variables, code, members.split(image)[1], method='decode')
    error = jnp.square(again - image).sum(-1)
    scalars = {'error': error, **vae.spread(found)}
    return error + divergence * vae.divergence(found), {'scalars': scalars}

  return types.Defense(phases=(types.Phase('main', loss),))


def samples(
  module: Vae,
  task: types.Task,
  variables: Mapping[str, PyTree],
  member,
  *,
  key: Array,
  attack: types.Attack | None = None,
  eps: float = 0.0,
) -> Array:
  """[n, 3] points of random codes, one for each entry of `member` [n].

  With an `attack` every code is moved, by at most eps, to where 'classifier' doubts that its point
  is positive; without one 'classifier' is not looked at. The codes are the same in both cases.
  """

  def one_device(variables, member, keys, eps):
    code = vae.normal(keys, (module.latent,))
    decode = lambda code: module.apply(variables['vae'], code, member, method='decode')
    if attack is not None:
      value = lambda code: _doubt(task, variables, decode(code), 1.0)
      code = attack(value, code, eps=eps, key=_second(keys)).x
    return decode(code)

  return _run(one_device, variables, member, key, eps)


def noise(
  task: types.Task, variables: Mapping[str, PyTree], image, *, key, attack: types.Attack, eps
) -> Array:
  """Points [n, 3] moved, by at most eps, to where 'classifier' takes them for positives."""

  def one_device(variables, image, keys, eps):
    coordinates, member = members.split(image)
    value = lambda xy: _doubt(task, variables, members.join(xy, member), 0.0)
    found = attack(value, coordinates, eps=eps, key=_second(keys)).x
    return members.join(found, member)

  return _run(one_device, variables, image, key, eps)


def _doubt(task, variables, image, label):
  logit = task.predict(variables['classifier'], image)['logit']
  return losses.binary_cross_entropy(logit, jnp.full_like(logit, label))


def _second(keys):
  return jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)


def _run(one_device, variables, rows, key, eps):
  count = len(rows)
  table = {'rows': np.asarray(rows), 'index': np.arange(count)}
  padded = parallel.pad(table, parallel.round_up(count))

  def keyed(variables, table, key, eps):
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(table['index'])
    return one_device(variables, table['rows'], keys, eps)

  return parallel.each_device(keyed, split=(1,))(variables, padded, key, jnp.float32(eps))[:count]
