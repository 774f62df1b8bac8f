"""Alternating training of generator and critic as two phases of one train step.

Chen et al. 2019, eq. 6, with the Wasserstein critic of Arjovsky et al. 2017.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors, types
from robustmed.generators import losses, synthesis
from robustmed.process import parallel

PyTree = Any
GENERATOR, CRITIC = 'generator', 'critic'
SATURATED = 0.9  # mean |field| over its bound from which training has collapsed
PATIENCE = 3  # consecutive validations


class Weights(NamedTuple):
  """The terms of the generator's loss and the rules of its critic; defaults are the paper's."""

  adversarial: float = 1.0
  strength: float = 1.0
  displacement: float = 0.1  # lambda_D
  intensity: float = 0.01  # lambda_V
  divergence: float = 0.0  # KL: eq. 6 has none
  variation: float = 0.0  # total variation of D and V: not in the paper
  penalty: float = 0.0  # gradient penalty of the critic; 0: clip its weights in the optimiser
  critic_steps: int = 1
  min_pixels: float = 50.0  # slices with a smaller organ mask do not count


def make(
  model: synthesis.Model,
  task: types.Task,
  *,
  xi: float,
  segmenter: PyTree,
  weights: Weights = Weights(),  # noqa: B008 a tuple
) -> types.Defense:
  """A defense that trains `model` to move the output of `task`'s frozen network by `xi` nats.

  The optimisers are called 'generator' and 'critic'. Memory: {'segmenter': variables, 'xi'}.
  `segmenter=()` stands for a network that is not trained yet: the cost is known, `init` raises.
  Logged means: generator/X (of slices that count; divide by generator/counted), D, V, p, sigma,
  critic/gap = f(I_0) - f(I_DV).
  """
  if xi < 0:
    raise errors.UserError(f'xi must be at least 0, not {xi:g}')

  def critic_loss(params, context):
    image, variables = context.batch['image'], {'params': params, **context.state}
    fields, _ = model.draw(jax.lax.stop_gradient(variables), image, context.keys, train=True)
    fake = jax.lax.stop_gradient(synthesis.compose(image, fields))
    real_score, state = model.critic(variables, image, train=True)
    fake_score, state = model.critic({**variables, **state}, fake, train=True)
    values = fake_score - real_score
    if weights.penalty:
      score = lambda images: model.critic(variables, images, train=True)[0]
      values += weights.penalty * losses.gradient_penalty(score, image, fake, context.keys)
    return values, {'scalars': {'gap': real_score - fake_score}, 'state': state}

  def generator_loss(params, context):
    image, frozen = context.batch['image'], jax.lax.stop_gradient(params)
    variables = {'params': {**frozen, GENERATOR: params[GENERATOR]}, **context.state}
    fields, state = model.draw(variables, image, context.keys, train=True)
    fake = synthesis.compose(image, fields)
    score, _ = model.critic(variables, fake, train=True)
    logits = lambda image: task.predict(context.memory['segmenter'], image)['head0']
    found = losses.strength(logits(image), logits(fake))
    total = (
      -weights.adversarial * score
      + weights.strength * jnp.square(context.memory['xi'] - found.value)
      + weights.displacement * losses.mean_square(fields.displacement)
      + weights.intensity * losses.mean_square(fields.intensity)
    )
    if weights.divergence:
      total += weights.divergence * sum(map(losses.kl_divergence, fields.latents.values()))
    if weights.variation:
      variation = losses.total_variation(fields.displacement)
      variation += losses.total_variation(fields.intensity)
      total += weights.variation * variation
    counts = found.pixels >= weights.min_pixels
    scalars = {
      'X': jnp.where(counts, found.value, 0.0),
      'counted': counts.astype(jnp.float32),
      **sizes(image, fake, fields),
      'sigma': sum(jnp.exp(one.log_sigma).mean((1, 2, 3)) for one in fields.latents.values()) / 2,
    }
    return jnp.where(counts, total, 0.0), {'scalars': scalars, 'state': state}

  def init(num_examples):
    del num_examples
    if not jax.tree.leaves(segmenter):
      raise ValueError('a generator without the network that it attacks')
    return {'segmenter': jax.tree.map(jnp.asarray, segmenter), 'xi': jnp.float32(xi)}

  return types.Defense(
    phases=(
      types.Phase(CRITIC, critic_loss, f'^{CRITIC}/', CRITIC, repeat=weights.critic_steps),
      types.Phase(GENERATOR, generator_loss, f'^{GENERATOR}/', GENERATOR),
    ),
    init=init,
    cost=_cost(model, task, weights),
  )


def _cost(model, task, weights) -> types.Cost:
  """Of one step: the critic's looks at real and drawn images, the generator's pass through all."""
  critic = weights.critic_steps * (2 + 2 * bool(weights.penalty))
  each = (
    (model.generator, types.Cost(forwards=weights.critic_steps, passes=1)),
    (model.judge, types.Cost(gradients=1, passes=critic)),
    (task, types.Cost(gradients=1, forwards=1, passes=0)),
  )
  return types.Cost(passes=0, others=each)


def sizes(image, attacked, fields: synthesis.Fields) -> dict[str, jax.Array]:
  """Per example [b]: mean |D| in pixels, mean |V|, p."""
  length = jnp.sqrt(jnp.square(fields.displacement).sum(-1) + 1e-12)
  return {
    'D': length.mean((1, 2)),
    'V': jnp.abs(fields.intensity).mean((1, 2, 3)),
    'p': synthesis.perceptibility(attacked, image),
  }


class Validation(NamedTuple):
  """A `training.selection.Verdict` on the weights of a checkpoint."""

  score: float
  stop: str
  row: Mapping[str, float]


def make_validation(
  model: synthesis.Model,
  task: types.Task,
  *,
  xi: float,
  segmenter: PyTree,
  batches: Callable[[], Iterable[Mapping[str, Any]]],
  key: jax.Array,
  min_pixels: float,
  tolerance: float = 0.0,
) -> Callable[[PyTree, list[Mapping[str, float]]], Validation]:
  """Returns (variables, rows of earlier validations) -> `Validation`, all in inference mode.

  The score, smaller is better, is |mean X - xi|, at least `tolerance` * xi, plus mean p / 1000: of
  all checkpoints within the tolerance the least perceptible one is best. `stop` says what has
  collapsed: a value is not finite, a field has run to its bound, or X has been further from xi than
  both 1 and three times the best in `PATIENCE` consecutive validations.
  """

  @functools.cache
  def program():
    def one_device(variables, victim, batch):
      keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch['index'])
      image = batch['image']
      fields, _ = model.draw(variables, image, keys, train=False)
      fake = synthesis.compose(image, fields)
      logits = lambda image: task.predict(victim, image)['head0']
      found = losses.strength(logits(image), logits(fake))
      return {'X': found.value, 'pixels': found.pixels, **sizes(image, fake, fields)}

    return parallel.each_device(one_device, split=(2,), gathered=True)

  def validate(variables, rows):
    columns = []
    for batch in batches():
      count = parallel.round_up(len(batch['mask']))
      wanted = {name: batch[name] for name in ('image', 'mask', 'index')}
      padded = parallel.pad(wanted, count)
      found = {**program()(variables, segmenter, padded), 'mask': padded['mask']}
      found = {name: np.asarray(column) for name, column in found.items()}
      columns.append(parallel.gather_rows(found))
    table = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
    kept = table['mask'] & (table['pixels'] >= min_pixels)
    if not kept.any():
      raise errors.UserError(
        f'no validation slice has {min_pixels:g} organ pixels in the clean prediction; train the '
        'segmenter longer, or lower min_pixels'
      )
    row = {name: float(table[name][kept].mean()) for name in ('X', 'D', 'V', 'p')}
    return _verdict(row, rows, xi=xi, model=model, tolerance=tolerance)

  return validate


def _verdict(row, rows, *, xi, model, tolerance=0.0) -> Validation:
  miss = abs(row['X'] - xi)
  score = max(miss, tolerance * xi) + row['p'] / 1000
  if not all(np.isfinite(list(row.values()))):
    return Validation(float('inf'), 'a value is not finite', row)
  for name, bound in (('D', model.d_max), ('V', model.v_max)):
    if bound and row[name] > SATURATED * bound:
      return Validation(
        score, f'|{name}| has run to its bound: mean {row[name]:.3g} of {bound:g}', row
      )
  misses = [abs(one['X'] - xi) for one in rows] + [miss]
  limit = max(1.0, 3 * min(misses))
  if len(misses) > PATIENCE and all(miss > limit for miss in misses[-PATIENCE:]):
    return Validation(score, f'X is {row["X"]:.3g}, was at best {min(misses):.3g} from {xi:g}', row)
  return Validation(score, '', row)
