"""Certified beside attacked: both bounds of the same smoothed network at the same L2 radii."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from robustmed import attacks, errors, types
from robustmed.attacks import objectives
from robustmed.attacks import space as spaces
from robustmed.evaluation import examples
from robustmed.evaluation.smoothing import bounds, sampling

COLUMNS = ('index', 'group', 'radius', 'smoothed', 'certified', 'attacked', 'abstained')
SHARES = (0.25, 0.5, 1.0)  # of sigma: the radii
_ATTACK = {'num_steps': 10, 'relative_step': 0.25, 'random_start': False}
_AT_ONCE = 8


class Plan(NamedTuple):
  """How a network is smoothed. sigma and radii are in the units of the attacks' space."""

  sigma: float
  draws: int = 800  # of the certificate; a tenth of them chooses the label
  images: int = 8
  alpha: float = 0.001  # that anything certified of an image is wrong, at any radius


def plan(settings: Mapping[str, Any]) -> Plan | None:
  """Returns the plan of {'sigma', 'draws', 'images'}, where 0 is the default; None: sigma is 0."""
  for name in settings:
    errors.lookup(dict.fromkeys(Plan._fields), name, kind='field of evaluate.smoothing')
  given = {name: value for name, value in settings.items() if value}
  if 'sigma' not in given:
    return None
  made = Plan(**given)
  if not 0 < made.sigma < float('inf') or made.images < 1:
    raise errors.UserError(f'smoothing.sigma and images must be above 0, not {tuple(made[::2])}')
  if made.draws < 10 * _AT_ONCE or made.draws % (10 * _AT_ONCE):
    raise errors.UserError(f'smoothing.draws must be a multiple of {10 * _AT_ONCE}')
  return made


def cost(made: Plan, images: int) -> types.Cost:
  """Returns the passes of `table` on so many images."""
  gradients = len(SHARES) * _ATTACK['num_steps'] * _AT_ONCE
  forwards = made.draws // 10 + made.draws + (1 + len(SHARES)) * made.draws + len(SHARES) * _AT_ONCE
  return types.Cost(gradients=images * gradients, forwards=images * forwards, passes=0)


def file_of(arm: str, trial) -> str:
  return f'certified.{arm}.{trial}.csv'


def radii(made: Plan) -> tuple[float, ...]:
  return tuple(float(f'{share * made.sigma:.4g}') for share in SHARES)


def table(
  task: types.Task,
  variables,
  batches: Iterable[types.Batch],
  *,
  objective: str,
  space: spaces.Space | None,
  made: Plan,
  classes: int,
  key: jax.Array,
) -> pd.DataFrame:
  """Returns one row per image and radius, for networks that label pixels or images.

  The score is the mean Dice over the classes that the truth has, or whether the class of an image
  is right: 'smoothed' of the smoothed network, 'attacked' of the same under an attack in L2 that
  climbs the objective's mean over noise, 'certified' the least that any change within the radius
  leaves, at all radii together with probability 1 - alpha. 'abstained': share of pixels without a
  certified label. The noise of an image depends on its index alone. The same on every host.
  """
  programs = _programs(task, objective, space, made, classes)
  chosen, lines = examples.first(batches, made.images), []
  for place in range(0 if chosen is None else len(chosen['mask'])):
    batch = jax.tree.map(lambda leaf, at=place: jnp.asarray(leaf[at : at + 1]), chosen)
    own = jax.random.fold_in(key, chosen['index'][place])
    lines += _lines(programs, variables, batch, made, own)
  found = pd.DataFrame(lines, columns=[*COLUMNS])
  return found.sort_values('radius', kind='stable', ignore_index=True)


class _Programs(NamedTuple):
  encode: Any  # batch -> x
  counted: Any  # (variables, batch, key) -> (top, hits)
  attacked: Any  # (variables, batch, radius, key) -> x under attack
  said: Any  # (variables, batch, x, key) -> labels of the smoothed network


def _programs(task, objective, space, made, classes) -> _Programs:
  encode = space.encode if space else lambda batch: batch['image']
  decode = space.decode if space else lambda x, batch: x
  climb = attacks.make('pgd', norm='l2', **_ATTACK)

  def labels_of(variables, batch):
    def labels(x):
      draws = len(x) // len(batch['image'])
      repeat = lambda leaf: jnp.tile(leaf, (draws, *(1,) * (leaf.ndim - 1)))
      outputs = task.predict(variables, decode(x, jax.tree.map(repeat, batch)))
      return jnp.argmax(_logits(outputs), axis=-1)

    return labels

  def top_at(variables, batch, x, key, draws):
    count = functools.partial(sampling.label_counts, sigma=made.sigma, classes=classes)
    found = count(labels_of(variables, batch), x, draws=draws, key=key, at_once=_AT_ONCE)
    return jnp.argmax(found, axis=-1)

  @jax.jit
  def counted(variables, batch, key):
    x = encode(batch)
    top = top_at(variables, batch, x, key, made.draws // 10)
    found = sampling.hits(
      labels_of(variables, batch),
      x,
      top,
      sigma=made.sigma,
      draws=made.draws,
      key=key,
      at_once=_AT_ONCE,
    )
    return top, found

  @jax.jit
  def attacked(variables, batch, radius, key):
    one, two = jax.random.split(key)
    bound = objectives.bind(
      lambda x: task.predict(variables, decode(x, batch)), task.objectives[objective], batch
    )
    smoothed = attacks.expected(bound, sigma=made.sigma, draws=_AT_ONCE, key=one)
    return climb(smoothed, encode(batch), eps=radius, key=two).x

  said = jax.jit(functools.partial(top_at, draws=made.draws))
  return _Programs(encode, counted, attacked, said)


def _lines(programs, variables, batch, made, key):
  one, two, three = jax.random.split(key, 3)
  top, hits = (np.asarray(part) for part in programs.counted(variables, batch, one))
  truth = np.asarray(_truth(batch['target']))
  # By the same noise for all, so that they differ by the images alone.
  says = lambda x: np.asarray(programs.said(variables, batch, x, three))
  smoothed = _score(says(programs.encode(batch)), truth)
  ids = [np.asarray(batch[name]) for name in ('index', 'group')]
  lines, alpha = [], made.alpha / len(SHARES)  # all radii are tested on the same draws
  for radius in radii(made):
    sure = bounds.at_radius(
      top, hits, draws=made.draws, sigma=made.sigma, radius=radius, alpha=alpha
    )
    under = says(programs.attacked(variables, batch, jnp.float32(radius), two))
    scores = smoothed, _score(sure.labels, truth), _score(under, truth)
    counts = truth >= 0
    axes = tuple(range(1, truth.ndim))
    open_ = ((sure.labels == bounds.ABSTAIN) & counts).sum(axes) / np.maximum(counts.sum(axes), 1)
    lines += list(zip(*ids, [radius], *scores, open_))
  return lines


def _logits(outputs):
  return outputs['head0'] if 'head0' in outputs else outputs['logits']


def _truth(target):
  """Labels, -1 where they do not count."""
  if 'label' in target:
    return target['label']
  return (
    jnp.where(target['counted'], target['labels'], -1) if 'counted' in target else target['labels']
  )


def _score(found, truth):
  if truth.ndim == 1:
    return (found == truth).astype(np.float64)
  found, true = np.where(truth < 0, 0, found), np.maximum(truth, 0)
  kinds = [label for label in np.unique(true) if label]
  dice = np.array([bounds.certified_dice(found, true, label) for label in kinds])
  there = np.array([(true == label).any(axis=tuple(range(1, true.ndim))) for label in kinds])
  total = np.where(there, dice, 0).sum(0) if kinds else np.zeros(len(true))
  count = there.sum(0) if kinds else np.zeros(len(true))
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def summary(found: pd.DataFrame) -> pd.DataFrame:
  """Returns the means of every network and radius: columns arm, radius, images, the scores and
  'below', the number of images that an attack brings below their bound, which alpha limits."""
  keys = ['arm', 'radius']
  means = found.groupby(keys, sort=False)[[*COLUMNS[3:]]].mean()
  crossed = (found['attacked'] < found['certified'] - 1e-9).groupby(
    [found[name] for name in keys], sort=False
  )
  count = found.groupby(keys, sort=False).size().rename('images')
  return pd.concat([count, means, crossed.sum().rename('below')], axis=1).reset_index()
