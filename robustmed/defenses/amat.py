"""Adaptive-margin adversarial training (AMAT): every training example has its own eps, its margin.

Ma & Liang 2022, 'Adaptive Adversarial Training to Improve Adversarial Robustness of DNNs for
Medical Image Segmentation and Detection', Algorithm 1, and the choices of the authors' code.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors, types
from robustmed.defenses import batch_statistics, weighted

Array = jax.Array
TOTAL = 'total'
_FOLDS = {'final': 'last', 'any': 'any'}
_MAX_BINS = 64


def make(
  task: types.Task,
  *,
  attack: types.Attack,
  step: float,
  thresholds: Sequence[float] | Sequence[Sequence[float]] | None = None,
  strata: bool = False,
  criterion: str = 'loss',
  terms: Sequence[str] | None = None,
  tested: str = 'final',
  when: str = 'epoch_end',
  epoch_steps: int = 0,
  refine: bool = True,
  max_margin: float | None = None,
  floor: float = 0.0,
  clean_weight: float = 0.5,
  objective: str = '',
  attack_bn: str = batch_statistics.RUNNING,
) -> types.Defense:
  """Returns training on clean_weight * L(x) + (1 - clean_weight) * L(x~), x~ attacked at eps E.

  The attack ascends `objective` ('' is the sum of the task's losses) from a start of radius
  min(max(E - step, step), E). An example passes where all K values of `term_values` are below their
  `thresholds` xi (criterion 'loss', strictly) or not below them (criterion 'dice'): at the last
  iterate with tested='final', at every scored iterate with 'any'. If it passes, its margin expands
  to E + step; if not, it is refined to (||x~ - x|| + E) / 2, or kept with `refine` False. E begins
  at `step` and stays within [floor, max_margin] (None: no upper end, the paper's text). With
  `strata` there is a row of thresholds for each of `task.strata`, and an example is tested against
  that of its own; where it is nan none passes.

  when: 'epoch_end' changes the margins once per `epoch_steps` steps, as the authors do: one passing
  draw of an example is enough for one expansion, else the refinements of all its draws apply one
  after the other in the order of batch['draw']; an example that was not drawn keeps E. 'immediate'
  is the same with one step per epoch; an example that a batch holds twice then has two draws. The
  margins are a function of the global batch alone, not of the number of devices.

  `attack_bn`: the batch statistics during the attack, see `batch_statistics.AttackedNetwork`.

  Memory: 'margin' [n], 'xi' [K], or [strata, K], and the counts of the current epoch.
  `thresholds=()` stands for thresholds that are not estimated yet: the cost is known, `init`
  raises.
  """
  _check(step, max_margin, floor, clean_weight)
  batch_statistics.check(attack_bn)
  limits = _limits(task, thresholds, strata)
  if when == 'immediate':
    epoch_steps = 1
  elif when != 'epoch_end':
    raise errors.UserError(f"amat: when must be 'epoch_end' or 'immediate', not {when!r}")
  elif epoch_steps < 1:
    raise errors.UserError("amat: when='epoch_end' needs epoch_steps, the steps of one epoch")
  if objective:
    errors.lookup(task.objectives, objective, kind='objective')
  attack = _monitored(attack, errors.lookup(_FOLDS, tested, kind='amat: tested'), tested)
  values = term_values(task, terms, criterion=criterion)
  passes = (lambda x, xi: x < xi) if criterion == 'loss' else (lambda x, xi: x >= xi)

  def ascend(outputs, batch):
    if objective:
      return task.objectives[objective](outputs, batch)
    return sum(task.losses(outputs, batch).values())

  def attacked(variables, context):
    batch, xi = context.batch, context.memory['xi']
    margin = context.memory['margin'][batch['index']]
    network = batch_statistics.AttackedNetwork(task, variables, context, attack_bn)

    def failed(image):
      found = values(network.predict(image), {**batch, 'clean': batch['image'], 'image': image})
      if found.shape[-1] != xi.shape[-1]:
        raise errors.UserError(
          f'amat: {xi.shape[-1]} thresholds do not fit the {found.shape[-1]} values of the '
          'criterion'
        )
      limit = xi[task.strata.of(batch)] if strata else xi[None]
      return ~jnp.all(passes(found, limit), axis=-1)

    result, changed = network.run_attack(
      attack,
      lambda image: ascend(network.predict(image), {**batch, 'image': image}),
      batch['image'],
      eps=margin,
      key=jax.vmap(lambda key: jax.random.fold_in(key, 0))(context.keys),
      monitor=failed,
      start_radius=jnp.minimum(jnp.maximum(margin - step, step), margin),
    )
    passed = 1.0 - result.monitored.astype(jnp.float32)
    aux = {'margin': margin, 'passed': passed, 'distance': result.distance}
    return result.x, {**aux, **changed}

  low, high = floor, math.inf if max_margin is None else max_margin

  def init(num_examples):
    if not limits.size:
      raise ValueError('amat without thresholds')
    margin = jnp.full(num_examples, min(max(step, low), high), jnp.float32)
    return {
      'margin': margin,
      'refined': margin,
      'passed': jnp.zeros(num_examples, bool),
      'draws': jnp.zeros(num_examples, jnp.int32),
      'steps': jnp.zeros((), jnp.int32),
      'xi': jnp.asarray(limits, jnp.float32),
    }

  def update(memory, aux, batch):
    return update_margins(
      accumulate(memory, aux['main'], batch, refine=refine),
      step=step,
      epoch_steps=epoch_steps,
      bounds=(low, high),
    )

  views = [
    weighted.CLEAN._replace(weight=clean_weight),
    weighted.View('attacked', 1 - clean_weight, attacked),
  ]
  return types.Defense(
    phases=(weighted.phase(task, views),),
    init=init,
    update=update,
    cost=types.Cost(gradients=attack.num_gradients, forwards=attack.num_forwards, passes=2),
    summaries={'margins': lambda memory: summary(memory, step=step, max_margin=max_margin)},
  )


def term_values(
  task: types.Task, terms: Sequence[str] | None, *, criterion: str
) -> Callable[..., Array]:
  """Returns (outputs, batch) -> [b, K], the values that thresholds apply to.

  batch: as for `Task.metrics`.
  criterion 'loss': the named `terms` of task.losses, 'total' for their sum, or per-example
  objectives; None is every term of the losses. criterion 'dice': the named metrics of the task.
  """
  errors.lookup(dict.fromkeys(('loss', 'dice')), criterion, kind='amat: criterion')
  if criterion == 'dice' and not terms:
    raise errors.UserError("amat: criterion='dice' needs terms, the names of metrics of the task")

  def values(outputs, batch):
    known = (task.metrics if criterion == 'dice' else task.losses)(outputs, batch)
    names = tuple(terms or known)
    if criterion == 'loss':
      others = [name for name in names if name not in known and name in task.objectives]
      known = {
        TOTAL: sum(known.values()),
        **known,
        **{name: task.objectives[name](outputs, batch) for name in others},
      }
    return jnp.stack([errors.lookup(known, name, kind='amat: term') for name in names], axis=-1)

  return values


def accumulate(memory, found, batch, *, refine: bool):
  """Returns the memory after one global batch: which examples passed, and their refined margins.

  found: 'passed' and 'distance' of every draw. m failing draws at distances d_1 ... d_m change a
  margin r to r / 2^m + sum_i d_i / 2^(m - i + 1), which is (d + r) / 2 applied draw by draw.
  """
  number = memory['margin'].shape[0]
  valid, draw = batch['mask'], batch['draw']
  index = jnp.where(valid, batch['index'], number)  # out of range, hence dropped
  place = jnp.arange(draw.shape[0])
  passed = found['passed'] > 0.5
  # [i, j]: draw j is of the same example as draw i. All draws of an example write the same value.
  same = (index[:, None] == index[None, :]) & valid[None, :]
  later = (draw[None, :] > draw[:, None]) | (
    (draw[None, :] == draw[:, None]) & (place[None, :] > place[:, None])
  )
  hit = jnp.any(same & passed[None, :], axis=1)
  memory = {
    **memory,
    'passed': memory['passed'].at[index].set(memory['passed'][index] | hit, mode='drop'),
    'draws': memory['draws'].at[index].add(1, mode='drop'),
    'steps': memory['steps'] + 1,
  }
  if not refine:
    return memory
  failed = same & ~passed[None, :]
  after = jnp.sum(failed & later, axis=1)
  share = jnp.ldexp(found['distance'], -(after + 1))
  total = jnp.sum(jnp.where(failed, share[None, :], 0.0), axis=1)
  refined = jnp.ldexp(memory['refined'][index], -jnp.sum(failed, axis=1)) + total
  return {**memory, 'refined': memory['refined'].at[index].set(refined, mode='drop')}


def update_margins(memory, *, step: float, epoch_steps: int, bounds: tuple[float, float]):
  """Returns the memory with new margins at the end of an epoch, unchanged within an epoch."""
  due = memory['steps'] % epoch_steps == 0
  moved = jnp.where(memory['passed'], memory['margin'] + step, memory['refined'])
  moved = jnp.clip(moved, *bounds)
  return {
    **memory,
    'margin': jnp.where(due, moved, memory['margin']),
    'refined': jnp.where(due, moved, memory['refined']),
    'passed': memory['passed'] & ~due,
  }


def summary(memory, *, step: float, max_margin: float | None) -> dict[str, Array]:
  """Returns statistics of the margins of all examples drawn so far.

  'drawn', 'min', 'mean', 'max', and 'from_<e>': how many lie in [e, e + step / 2), the last one
  all from e on.
  """
  margin, drawn = memory['margin'], memory['draws'] > 0
  count = jnp.sum(drawn)
  width = step / 2
  bins = _MAX_BINS if max_margin is None else min(_MAX_BINS, math.floor(max_margin / width) + 1)
  # A margin that rounding put just below the edge of a bin counts in that bin.
  which = jnp.clip(jnp.floor(margin / width + 1e-3).astype(jnp.int32), 0, bins - 1)
  filled = jnp.zeros(bins, jnp.int32).at[which].add(drawn.astype(jnp.int32))
  return {
    'drawn': count,
    'min': jnp.min(jnp.where(drawn, margin, jnp.inf)),
    'mean': jnp.sum(jnp.where(drawn, margin, 0.0)) / jnp.maximum(count, 1),
    'max': jnp.max(jnp.where(drawn, margin, -jnp.inf)),
    **{f'from_{i * width:g}': filled[i] for i in range(bins)},
  }


def _monitored(attack, fold, tested):
  """Returns the attack with the `fold` that `tested` needs."""
  if not dataclasses.is_dataclass(attack) or not getattr(attack, 'score_last', False):
    raise errors.UserError('amat needs an attack of the engine with score_last=True')
  if tested == 'final' and attack.select != 'last':
    raise errors.UserError("amat: tested='final' needs an attack with select='last'")
  return dataclasses.replace(attack, fold=fold)


def _limits(task, thresholds, strata):
  """Returns the thresholds as an array [K] or [strata, K], empty if they are to come."""
  if thresholds is None:
    raise errors.UserError(
      'amat needs thresholds: numbers, or thresholds_from of its arm, an arm to estimate them from'
    )
  if strata and task.strata is None:
    raise errors.UserError('this task has no strata; set strata to False')
  limits = np.array(thresholds, np.float64)
  number = len(task.strata.names) if strata else 0
  fits = limits.ndim == 1 if not strata else limits.ndim == 2 and len(limits) == number
  if limits.size and not fits:
    wanted = f'one row for each of {number} strata' if strata else 'one row'
    raise errors.UserError(f'amat: thresholds must be {wanted}, not of shape {limits.shape}')
  if not np.isfinite(limits[~np.isnan(limits)] if strata else limits).all():
    raise errors.UserError(f'amat: thresholds must be finite numbers, not {limits.tolist()}')
  return limits


def _check(step, max_margin, floor, clean_weight):
  if not step > 0 or not math.isfinite(step):
    raise errors.UserError(f'amat: step must be above 0, not {step}')
  if not 0 <= floor <= (math.inf if max_margin is None else max_margin):
    raise errors.UserError(
      f'amat: must have 0 <= floor <= max_margin, not floor {floor}, max_margin {max_margin}'
    )
  if not 0 <= clean_weight <= 1:
    raise errors.UserError(f'amat: clean_weight must be in [0, 1], not {clean_weight}')
