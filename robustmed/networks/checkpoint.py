"""Networks that configs/train.py trained on label maps or classes: runs/X/checkpoints/ARM/seed0.

Such a folder has the weights in `variables`, or in one file `weights.safetensors` as `pack` writes
it, and the card `network.json`: 'module' (a name of `models.MODELS` and its arguments), 'input' and
'output' as `description` has them, 'size' where images have one size, and 'slice_axis' where that
of a network of slices is known.
"""

import functools
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from robustmed import errors, models
from robustmed.models import weights
from robustmed.networks import description, network
from robustmed.process import checksums, files

CARD, WEIGHTS, PACKED = 'network.json', 'variables', 'weights.safetensors'
SEGMENTING = ('nnunet', 'unet')
OUTPUTS = {**dict.fromkeys(SEGMENTING, 'head0'), 'resnet': 'logits'}  # of networks by name
_LARGEST, _DEEPEST = 2**20, 16  # numbers of a module, and its poolings
_DTYPES = {'float32': None, 'bfloat16': jnp.bfloat16}
# What Orbax raises for files that it cannot read.
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError)
_LOADING = """from robustmed import networks
network = networks.load('FILE')
outputs = network.predict(network.variables, image)"""


# Of several hosts the first one writes, without waiting for the others.
_ALONE = ocp.options.MultiprocessingOptions(
  primary_host=0, active_processes={0}, barrier_sync_key_prefix='network'
)


def module_of(fields: Mapping[str, Any]) -> nn.Module:
  """Returns the module that a card describes: its name, the name of its type, its arguments."""
  options = dict(fields)
  make = errors.lookup(
    {name: models.MODELS[name] for name in OUTPUTS},
    options.pop('name'),
    kind='network of a checkpoint',
  )
  dtype = errors.lookup(_DTYPES, options.pop('dtype'), kind='model dtype')
  if 'strides' in options:
    each = lambda stride: tuple(stride) if isinstance(stride, list) else stride
    options['strides'] = tuple(each(stride) for stride in options['strides'])
  return make(dtype=dtype, **options)


def matches(path: pathlib.Path) -> bool:
  """Returns whether a path is such a folder."""
  stored = (path / WEIGHTS).is_dir() or (path / PACKED).is_file()
  return stored and (path / CARD).is_file()


def load(path: pathlib.Path) -> network.Network:
  """Returns the network in a folder; what it was given is stated."""
  card = files.read_json(path / CARD)
  if not isinstance(card, dict) or 'module' not in card:
    raise errors.UserError(
      f'{path / CARD} does not say how its network is made; only networks of label maps '
      'and classes that configs/train.py trained are loaded'
    )
  try:
    return _made(card, path)
  except errors.UserError:
    raise
  except Exception as error:  # a card that was edited may hold anything
    raise errors.UserError(
      f'{path / CARD} does not describe the network beside it ({type(error).__name__}: '
      f'{str(error)[:200]}); copy the folder again'
    ) from error


def _made(card, path) -> network.Network:
  fields = card['module']
  large = [name for name, value in fields.items() if isinstance(value, int) and value > _LARGEST]
  if large or fields.get('poolings', 0) > _DEEPEST:
    raise ValueError(f'{(large or ["poolings"])[0]} of the module')
  module = module_of(fields)
  output, variables = OUTPUTS[fields['name']], _restored(path)
  axes = max(leaf.ndim for leaf in jax.tree.leaves(variables)) - 2  # of a kernel

  def predict(variables, image):
    return module.apply(variables, image, train=False)[output].astype(jnp.float32)

  plain = lambda value: tuple(value) if isinstance(value, list) else value
  known = {f'{part}.{name}': v for part in ('input', 'output') for name, v in card[part].items()}
  description.check_kinds(known, path / CARD)
  stated = {name: (plain(value), 'the network') for name, value in known.items()}
  made = network.Network(
    name='_'.join(str(word) for word in (card['arm'], path.name)),
    variables=variables,
    predict=predict,
    channels=card['module']['channels'],
    shape=tuple(int(n) for n in card['size']) if 'size' in card else (None,) * axes,
    digest=_digest(path),
    format='checkpoint',
    stated=stated,
    frozen=_statistics(variables),
    export=network.Export('', functools.partial(write, card), _LOADING),
    slice_axis=card.get('slice_axis', -1),
  )
  _check_fit(made)
  return made


def _check_fit(made: network.Network) -> None:
  """Raises the error of the module where no image has outputs, because other weights are there."""
  sides = [tuple(n or 2**power for n in made.shape) for power in range(2, 9)]
  for place, spatial in enumerate(sides):
    try:
      made.output_shape(spatial)
      return
    except Exception:  # an image may be too small, or of a side that does not divide
      if place == len(sides) - 1:
        raise


def _restored(path):
  if (path / PACKED).is_file():
    flat = {tuple(name.split('/')): leaf for name, leaf in weights.read(path / PACKED).items()}
    return flax.traverse_util.unflatten_dict(flat)
  checksums.check_list(path / WEIGHTS, help_text='take another copy of the network')
  try:
    with ocp.StandardCheckpointer() as loader:
      found = loader.restore(files.path_of(path / WEIGHTS))
  except _UNREADABLE as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    raise errors.UserError(f'{path}: cannot be read ({reason})') from error
  return jax.tree.map(np.asarray, found)


def _statistics(variables) -> dict[str, str]:
  rest = {name: tree for name, tree in variables.items() if name != 'params'}
  paths = (path for path, _ in jax.tree_util.tree_leaves_with_path(rest))
  return {network.name_of(path): 'running statistic' for path in paths}


def _digest(path) -> str:
  found = hashlib.sha256()
  packed = path / PACKED
  stored = [packed] if packed.is_file() else sorted(files.iter_files(path / WEIGHTS))
  for file in (path / CARD, *stored):
    found.update(file.read_bytes())
  return found.hexdigest()


def pack(card: Mapping[str, Any], variables: Any, path: pathlib.Path) -> None:
  """Writes such a folder with its weights as one file, for networks that are handed on."""
  path.mkdir(parents=True, exist_ok=True)
  named = jax.tree_util.tree_leaves_with_path(variables)
  weights.write(path / PACKED, {network.name_of(at): np.asarray(leaf) for at, leaf in named})
  files.write_json(path / CARD, dict(card))


def write(card, variables, path: pathlib.Path) -> None:
  """Writes a folder like the one that the network came in, whole or not at all."""
  building = path.with_name(f'.{path.name}.tmp')
  arm = path.name.partition('_seed')[0]
  try:
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    with ocp.StandardCheckpointer(multiprocessing_options=_ALONE) as saver:
      saver.save(files.path_of(building / WEIGHTS), jax.tree.map(np.asarray, variables))
    checksums.write_list(building / WEIGHTS)
    (building / CARD).write_text(json.dumps({**card, 'arm': arm}, indent=1))
    os.replace(building, path)
  except (OSError, RuntimeError, ValueError) as error:
    shutil.rmtree(building, ignore_errors=True)
    code = files.os_error(error)
    if code is None:
      raise
    raise errors.UserError(f'cannot save the network {path}: {os.strerror(code)}') from error
