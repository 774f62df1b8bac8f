"""Trained generators as an attack: the call of `types.Attack`, without steps or gradients."""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp

from robustmed import errors, types
from robustmed.attacks import inputs
from robustmed.generators import synthesis
from robustmed.ops import contracts
from robustmed.process import files
from robustmed.training import checkpoints

Array = jax.Array
PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Synthesised:
  """A `types.Attack` made of trained generators, one per strength xi.

  `eps` (scalar or [b]) is xi: each example gets the generator trained for the nearest level, so
  with one generator eps has no effect. The result depends on the image alone, not on the objective:
  `value` is the objective at x (nan if it is None), `distance` the mean absolute change p of eq. 7
  in Chen et al. 2019, in the image's units. The latents are drawn with `key`; if it is None they
  are their means. There is no ball and no box.
  """

  model: synthesis.Model
  variables: tuple[PyTree, ...]
  levels: tuple[float, ...]
  parts: str = 'DV'  # or 'D', 'V'

  num_gradients = 0
  minimise = judged = False
  num_forwards = 1

  def __call__(self, objective, x, *, eps, key, monitor=None, start_radius=None):
    """See `types.Attack`; start_radius has no effect."""
    del start_radius
    x = jnp.asarray(x)
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
      raise errors.UserError(
        f'a synthesised attack needs images [b, h, w, 1] of a floating dtype, got {x.dtype} '
        f'{x.shape}'
      )
    keys = None if key is None else inputs.example_keys(key, x.shape[0])
    wanted = contracts.broadcast_per_example(eps, x.astype(jnp.float32), what='eps')
    gaps = jnp.abs(wanted[:, None] - jnp.asarray(self.levels, jnp.float32)[None])
    nearest = jnp.argmin(gaps, axis=1)
    given, attacked = x.astype(jnp.float32), None
    for place, variables in enumerate(self.variables):
      fields, _ = self.model.draw(variables, given, keys, train=False)
      found = synthesis.compose(given, fields, parts=self.parts)
      own = (nearest == place).reshape(-1, 1, 1, 1)
      attacked = found if attacked is None else jnp.where(own, found, attacked)
    value = jnp.full(x.shape[:1], jnp.nan)
    if objective is not None:
      value = contracts.per_example(objective(attacked), x.shape[0], what='the objective')
    result = types.AttackResult(
      x=attacked.astype(x.dtype),
      value=value,
      distance=synthesis.perceptibility(attacked, given),
      monitored=None if monitor is None else monitor(attacked),
    )
    return jax.lax.stop_gradient(result)


def load(*folders: str | os.PathLike, parts: str = 'DV') -> Synthesised:
  """Returns the attack of the generators saved in `folders` (runs/X/checkpoints/gen_2/seed0, ...).

  All of them must have the same layers. Images to attack need the units and the pixel size of
  training; their sides may be any multiples of 2^len(widths).
  """
  if not folders:
    raise errors.UserError('name at least one folder of a saved generator')
  found, first, shape = [], None, None
  for folder in map(files.path_of, folders):
    card = checkpoints.read_card(folder)
    options = card['model'].get('generator') if isinstance(card['model'], dict) else None
    if not isinstance(options, dict) or 'xi' not in options:
      raise errors.UserError(f'{folder} holds {card["arm"]!r}, which is not a generator')
    layers = {name: value for name, value in options.items() if name != 'xi'}
    if first is None:
      first, shape = layers, tuple(card['image_shape'])
      model = synthesis.make(layers, image_shape=shape)
    elif layers != first:
      raise errors.UserError(f'{folder} has other layers than {folders[0]}; load them separately')
    found.append(
      (float(options['xi']), checkpoints.load_variables(folder / 'variables', model.task))
    )
  levels, variables = zip(*sorted(found, key=lambda pair: pair[0]), strict=True)
  return Synthesised(model, tuple(variables), tuple(levels), parts)
