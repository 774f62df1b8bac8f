"""What does not fit in levels, images and targets, and what attacks do, in words."""

import warnings
from collections.abc import Sequence

import jax
import numpy as np

from robustmed import errors
from robustmed.attacks import engine
from robustmed.types import Attack, PyTree


def in_words(attack: Attack) -> str:
  """Returns what an attack does: its ball, steps and starts."""
  threat, said = getattr(attack, 'threat', None), []
  if threat is not None and threat.ball is None:
    return 'an artefact, whose level has a unit of its own'
  if norm := getattr(threat, 'norm', None):
    said.append(f'levels in the {norm} norm of images')
  if (bounds := getattr(threat, 'bounds', None)) is not None:
    low, high = (', '.join(f'{value:g}' for value in np.ravel(bound)) for bound in bounds)
    each = '' if np.ndim(bounds[0]) == np.ndim(bounds[1]) == 0 else ' of each channel'
    said.append(f'values from {low} to {high}{each}')
  if getattr(threat, 'region', None) is not None:
    said.append('within a region')
  if isinstance(attack, engine.LoopAttack) and not attack.num_steps:
    said.append('a random image' if attack.restarts == 1 else f'{attack.restarts} random images')
  elif isinstance(attack, engine.LoopAttack):
    one, many = ('step', 'steps') if attack.solver.needs_gradient else ('query', 'queries')
    said.append(f'{attack.num_steps} {one if attack.num_steps == 1 else many}')
    if isinstance(attack.relative_step, int | float):
      said[-1] += f' of {attack.relative_step:g} times the level'
    elif isinstance(attack.step_size, int | float):
      said[-1] += f' of {attack.step_size:g}'
    said.append('1 start' if attack.restarts == 1 else f'{attack.restarts} starts')
    iterates = {'monitor': 'the iterate that is worst by the metric'}
    said.append(iterates.get(attack.select, f'the {attack.select} iterate'))
  return ', '.join(said) or 'a function, whose settings are not known'


def checked(target: PyTree, count: int) -> PyTree:
  """Returns the target of `count` images; a `UserError` if it is that of another number."""
  for leaf in jax.tree.leaves(target):
    if np.ndim(leaf) and len(leaf) != count:
      raise errors.UserError(
        f'a target of shape {np.shape(leaf)} for {count} images; its first axis must be that of '
        'the images'
      )
  return target


def warn_of_units(attacks: Sequence[Attack], images: Sequence, levels: Sequence[float]) -> None:
  """Warns of a level that is wider than the values of images, and of images outside of bounds."""
  threats = [getattr(attack, 'threat', None) for attack in attacks]
  balls = [threat for threat in threats if threat is not None and threat.ball is not None]
  threat = next((one for one in balls if getattr(one, 'bounds', None) is not None), None)
  if threat is None:
    return
  low, high = (np.asarray(bound) for bound in threat.bounds)
  width, told = float(np.max(high - low)), {'category': RuntimeWarning, 'stacklevel': 4}
  if getattr(threat, 'norm', '') == 'linf' and max(levels) > width:
    warnings.warn(
      f'level {max(levels):g} is more than the whole range of values, {width:g}; levels are in the '
      'units of the images',
      **told,
    )
  outside = [np.sum((np.asarray(x) < low) | (np.asarray(x) > high)) for x in images]
  if (share := sum(outside) / sum(np.size(x) for x in images)) > 0.001:
    warnings.warn(
      f'{100 * share:.2g} % of the values of the images are outside of the bounds of an attack, '
      'where it may leave them',
      **told,
    )
