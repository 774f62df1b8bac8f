"""The nodule synthesiser of Liu et al. 2020, section 3.3: codes become nodules in real patches."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustmed import errors, types
from robustmed.generators import losses, networks, training, vae
from robustmed.metrics import losses as distances
from robustmed.papers.nodules import networks as nodule_networks
from robustmed.tasks import networks as binding

Array = jax.Array
PyTree = Any
GENERATOR, CRITIC = training.GENERATOR, training.CRITIC
FIELDS = ('latent', 'widths', 'critic_widths')


class Weights(NamedTuple):
  """Section 3.3: |x~ - x| + divergence * KL - adversarial * D(x~), the critic by Gulrajani et al.

  The critic's share is `adversarial` over the root of the number of voxels: the error is a mean
  over them, whose gradient is that root shorter than the critic's, which the penalty holds at 1.
  Penalty and steps of the critic are those of Gulrajani et al. 2017, of which the paper says none.

  prior: of what the critic is shown and scores, the share that is decoded from random codes and no
  reconstruction, as in Larsen et al. 2016. Random codes are what the nodules are made of, and with
  the small divergence they are not those of reconstructions. The paper has 0.
  """

  divergence: float = 1e-5
  adversarial: float = 0.1
  penalty: float = 10.0
  critic_steps: int = 5
  prior: float = 0.5


class Model(NamedTuple):
  """encode: (variables, image) -> Latent; decode: (variables, code [b, latent]) -> image.

  judge: (variables, image, train) -> (scores [b], state). `task` holds init, image_shape and
  predict, the reconstruction at the mean of the code. Images are nodules cut out with a soft edge,
  [b, *sides, 1] in [0, 1] and 0 outside. `generator`, `decoder` and `critic` are tasks with predict
  of that network alone, for counts of what each does.
  """

  encode: Callable[..., networks.Latent]
  decode: Callable[..., Array]
  judge: Callable[..., tuple[Array, PyTree]]
  task: types.Task
  latent: int
  generator: types.Task | None = None
  decoder: types.Task | None = None
  critic: types.Task | None = None


def make(options: Mapping[str, Any], *, image_shape: tuple[int, ...]) -> Model:
  """The networks of plain `options`, fields of `nodule_networks.Synthesiser`."""
  for name in options:
    errors.lookup(dict.fromkeys(FIELDS), name, kind='field of the synthesiser')
  listed = lambda value: tuple(value) if isinstance(value, list | tuple) else value
  own = {name: listed(value) for name, value in options.items()}
  module = nodule_networks.Synthesiser(tuple(image_shape[:-1]), **own)

  def judge(variables, image, *, train=False):
    if not train:
      return module.apply(variables, image, train=False, method='judge'), {}
    score, state = module.apply(
      variables, image, train=True, method='judge', mutable=['batch_stats']
    )
    return score, dict(state)

  task = binding.bind_without_losses(module, image_shape=image_shape)
  encode = lambda variables, image: module.apply(variables, image, method='encode')
  decode = lambda variables, code: module.apply(variables, code, method='decode')
  alone = lambda predict: task._replace(predict=predict)
  return Model(
    encode,
    decode,
    judge,
    task,
    module.latent,
    generator=alone(lambda variables, image: decode(variables, encode(variables, image).mean)),
    decoder=alone(
      lambda variables, image: decode(variables, image.reshape(len(image), -1)[:, : module.latent])
    ),
    critic=alone(lambda variables, image: judge(variables, image)[0]),
  )


def cut_out(batch: types.Batch) -> Array:
  """The nodules of a batch of patches: the image times its mask with a soft edge."""
  return batch['image'] * batch['target']['soft']


def fitting(
  model: Model,
  *,
  weights: Weights = Weights(),  # noqa: B008 a tuple
  nodules: Callable[[types.Batch], Array] = cut_out,
) -> types.Defense:
  """Auto-encoder and critic in turn, phases of one step; optimisers 'generator' and 'critic'.

  `nodules` takes a batch to what is to be learnt. The reconstruction error is a mean over voxels,
  the divergence a sum over the code; the other way round the latter would vanish. With the critic's
  share as in `Weights` one formula serves patches of all sides. Logged: error, sigma and
  mean_square of the codes, critic/gap = D(x) - D(x~).
  """
  random_codes = lambda keys: vae.normal(_other(keys, 1), (model.latent,))

  def critic_loss(params, context):
    image, variables = nodules(context.batch), {'params': params, **context.state}
    frozen = jax.lax.stop_gradient(variables)
    code = vae.draw(model.encode(frozen, image), context.keys)
    if weights.prior:
      coin = jax.vmap(lambda key: jax.random.bernoulli(key, weights.prior))
      free = coin(_other(context.keys, 2))[:, None]
      code = jnp.where(free, random_codes(context.keys), code)
    fake = model.decode(frozen, code)
    real_score, state = model.judge(variables, image, train=True)
    variables = {**variables, **state}
    fake_score, _ = model.judge(variables, fake)
    score = lambda image: model.judge(variables, image)[0]
    values = fake_score - real_score
    if weights.penalty:
      values += weights.penalty * losses.gradient_penalty(score, image, fake, context.keys)
    return values, {'scalars': {'gap': real_score - fake_score}, 'state': state}

  def generator_loss(params, context):
    image, frozen = nodules(context.batch), jax.lax.stop_gradient(params)
    variables = {'params': {**frozen, GENERATOR: params[GENERATOR]}, **context.state}
    found = model.encode(variables, image)
    fake = model.decode(variables, vae.draw(found, context.keys))
    error = distances.absolute_error(fake, image)
    total = error + weights.divergence * vae.divergence(found)
    score = model.judge(variables, fake)[0]
    if weights.prior:
      free = model.judge(variables, model.decode(variables, random_codes(context.keys)))[0]
      score = (1 - weights.prior) * score + weights.prior * free
    total -= weights.adversarial / math.sqrt(image[0].size) * score
    return total, {'scalars': {'error': error, **vae.spread(found)}}

  return types.Defense(
    phases=(
      types.Phase(CRITIC, critic_loss, f'^{CRITIC}/', CRITIC, repeat=weights.critic_steps),
      types.Phase(GENERATOR, generator_loss, f'^{GENERATOR}/', GENERATOR),
    ),
    cost=_cost(model, weights),
  )


def _cost(model: Model, weights: Weights) -> types.Cost:
  """Of one step; a penalty on the critic's gradient is about as much as two more images."""
  free, steps = int(weights.prior > 0), weights.critic_steps
  looks = steps * (2 + 2 * bool(weights.penalty))
  each = (
    (model.generator, types.Cost(forwards=steps, passes=1)),
    (model.decoder, types.Cost(passes=free)),
    (model.critic, types.Cost(gradients=1 + free, passes=looks)),
  )
  return types.Cost(passes=0, others=each)


def _other(keys, number):
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def fuse(nodule: Array, background: Array, *, threshold: float = 0.2) -> tuple[Array, Array]:
  """(x~ m + background (1 - m), m), m = 1 where x~ > threshold, constant to differentiation.

  With the window of [-1200, 600] HU lung is about 0.2 and ground glass 0.25 to 0.4.
  """
  mask = jax.lax.stop_gradient((nodule > threshold).astype(nodule.dtype))
  return nodule * mask + background * (1 - mask), mask


def diameter(mask: Array, *, spacing: float) -> Array:
  """Millimetres [b]: the diameter of the ball of the volume of `mask` [b, z, y, x, 1].

  spacing: millimetres between voxels along all axes.
  """
  volume = mask.reshape(len(mask), -1).sum(-1) * spacing**3
  return jnp.cbrt(6 * volume / jnp.pi)


def border(mask: Array) -> Array:
  """The share [b] of `mask` [b, z, y, x, 1] in the outermost voxels of the patch, 0 if it is empty.

  Nodules lie within their patch; a synthesiser that has learnt none draws along its border.
  """
  inner = mask[:, 1:-1, 1:-1, 1:-1].reshape(len(mask), -1).sum(-1)
  whole = mask.reshape(len(mask), -1).sum(-1)
  return 1 - inner / jnp.maximum(whole, 1) - (whole == 0)
