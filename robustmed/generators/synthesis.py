"""From trained variables to synthesised images: the pure functions around the two networks."""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustmed import errors, types
from robustmed.generators import networks
from robustmed.ops import warp
from robustmed.tasks import networks as binding

Array = jax.Array
PyTree = Any
GENERATOR = ('widths', 'latent', 'spatial', 'd_max', 'v_max')
CRITIC = {'critic_widths': 'widths', 'critic_norm': 'norm'}


class Fields(NamedTuple):
  """What a generator returns for images [b, h, w, 1]."""

  displacement: Array  # D [b, h, w, 2], pixels along rows and columns
  intensity: Array  # V [b, h, w, 1], units of the image
  latents: Mapping[str, networks.Latent]


class Model(NamedTuple):
  """A generator and its critic as pure functions.

  draw: (variables, image, keys [b], train) -> (Fields, state); keys None: the latents' means.
  critic: (variables, image, train) -> (scores [b], state). `task` holds init, image_shape and
  predict (fields at the latents' means); it has no losses or metrics. `generator` and `judge` are
  tasks with predict of one network alone, for counts of what each does.
  """

  draw: Callable[..., tuple[Fields, PyTree]]
  critic: Callable[..., tuple[Array, PyTree]]
  task: types.Task
  d_max: float
  v_max: float
  generator: types.Task
  judge: types.Task


def make(options: Mapping[str, Any], *, image_shape: tuple[int, ...]) -> Model:
  """The model of plain `options`: fields of `networks.Generator`, critic_widths and critic_norm.

  Other options are ignored.
  """
  listed = lambda value: tuple(value) if isinstance(value, list | tuple) else value
  generator_fields = {name: listed(options[name]) for name in GENERATOR if name in options}
  critic_fields = {
    field: listed(options[name]) for name, field in CRITIC.items() if name in options
  }
  for name in ('d_max', 'v_max'):
    if not generator_fields.get(name, 1.0) >= 0:
      raise errors.UserError(
        f'generator field {name} must be at least 0, not {generator_fields[name]}'
      )
  generator = networks.Generator(**generator_fields)
  pair = networks.Pair(generator, networks.Critic(**critic_fields))

  def apply(variables, *args, train, method):
    if not train:
      return pair.apply(variables, *args, train=False, method=method), {}
    out, state = pair.apply(variables, *args, train=True, method=method, mutable=['batch_stats'])
    return out, dict(state)

  def drawn(variables, image, keys, train):
    noise = None if keys is None else _noise(keys)
    (fields, latents), state = apply(variables, image, noise, train=train, method='draw')
    return Fields(fields['D'], fields['V'], latents), state

  # Compiled once where the caller has no jit, as in a notebook; inside a jit it has no effect.
  inference = jax.jit(lambda variables, image, keys: drawn(variables, image, keys, False))

  def draw(variables, image, keys, *, train=False):
    return drawn(variables, image, keys, True) if train else inference(variables, image, keys)

  def critic(variables, image, *, train=False):
    return apply(variables, image, train=train, method='score')

  task = binding.bind_without_losses(pair, image_shape=image_shape)
  drawing = task._replace(predict=lambda variables, image: draw(variables, image, None)[0])
  judging = task._replace(predict=lambda variables, image: critic(variables, image)[0])
  return Model(draw, critic, task, generator.d_max, generator.v_max, drawing, judging)


@functools.partial(jax.jit, static_argnames='parts')
def compose(image: Array, fields: Fields, *, parts: str = 'DV') -> Array:
  """I_DV(x) = I_0(x + D(x)) + V(x), bilinear, borders repeated (Chen et al. 2019, eq. 1).

  parts: 'DV', or 'D' or 'V' with the other field left out.
  """
  errors.lookup(dict.fromkeys(('DV', 'D', 'V')), parts, kind='choice of fields')
  if 'D' in parts:
    image = warp.displace(image, fields.displacement, padding='edge')
  return image + fields.intensity if 'V' in parts else image


def perceptibility(attacked: Array, image: Array) -> Array:
  """p = mean |I_DV - I_0| per example [b] (eq. 7), in units of the image."""
  return jnp.mean(jnp.abs(attacked - image), axis=tuple(range(1, image.ndim)))


def _noise(keys):
  """Standard normal noise by latent name; an example's noise depends on its key alone."""

  def noise(name, shape):
    own = lambda key: jax.random.normal(
      jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF), shape[1:]
    )
    return jax.vmap(own)(keys)

  return noise
