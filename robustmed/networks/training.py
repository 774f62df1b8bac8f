"""The variables of a network as those that are trained and those that are not, and their files."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from robustmed import errors
from robustmed.models import weights
from robustmed.networks import network as networks

PyTree = Any
_SAFETENSORS = """import safetensors.numpy
tensors = safetensors.numpy.load_file('FILE')  # {name: array}"""


class Split(NamedTuple):
  """Variables as {'params': {number: array}, 'fixed': {number: array}}; without 'fixed' if none is.

  Numbers are places among the leaves: names of files may hold what no path of a checkpoint may.
  """

  structure: Any
  variables: Mapping[str, Mapping[str, np.ndarray]]
  frozen: Mapping[str, str]  # name -> why

  def join(self, variables: PyTree) -> PyTree:
    """Returns the network's own variables."""
    leaves = {**variables['params'], **variables.get('fixed', {})}
    return jax.tree.unflatten(self.structure, [leaves[key] for key in sorted(leaves)])


def split(network: networks.Network, *, freeze: str = '') -> Split:
  """Returns the variables of a network for a training; `freeze`: a regular expression on names.

  Raises:
    UserError: nothing is left to train.
  """
  try:
    pattern = re.compile(freeze) if freeze else None
  except re.error as error:
    raise errors.UserError(f'freeze: {freeze!r} is no regular expression ({error})') from error
  parts, frozen = {'params': {}, 'fixed': {}}, {}
  leaves, structure = jax.tree_util.tree_flatten_with_path(network.variables)
  for place, (path, leaf) in enumerate(leaves):
    name, array = networks.name_of(path), np.asarray(leaf)
    why = network.frozen.get(name, '')
    if not why and not np.issubdtype(array.dtype, np.floating):
      why = f'stored as {array.dtype}'
    if not why and pattern is not None and pattern.search(name):
      why = 'named by freeze'
    parts['fixed' if why else 'params'][f'{place:05d}'] = array
    frozen |= {name: why} if why else {}
  if not parts['params']:
    reasons = sorted(set(frozen.values()))
    raise errors.UserError(
      f'{network.name} has no weights to train: {"; ".join(reasons) or "it has none at all"}'
    )
  return Split(structure, {name: part for name, part in parts.items() if part}, frozen)


def lines(network: networks.Network, made: Split) -> list[str]:
  """Returns what is trained and what is not, and why."""
  count = lambda part: sum(array.size for array in made.variables.get(part, {}).values())
  text = f'{network.name}: {count("params"):,} weights are trained'
  if not made.frozen:
    return [text]
  reasons: dict[str, list[str]] = {}
  for name, why in made.frozen.items():
    reasons.setdefault(why, []).append(name)
  shown = [
    f'{why}: {", ".join(names[:2])}{f" and {len(names) - 2} more" * (len(names) > 2)}'
    for why, names in reasons.items()
  ]
  return [f'{text}, {count("fixed"):,} numbers stay as they are ({"; ".join(shown)})']


def export_of(network: networks.Network) -> networks.Export:
  """Returns how variables of the network are written; of a function as a .safetensors file."""

  def write(variables, path):
    named = jax.tree_util.tree_leaves_with_path(variables)
    weights.write(path, {networks.name_of(where): np.asarray(leaf) for where, leaf in named})

  return network.export or networks.Export('.safetensors', write, _SAFETENSORS)
