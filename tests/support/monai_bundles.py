"""Bundles of MONAI with random weights, written without PyTorch."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from robustmed.networks.monai import bundle, layers
from support import nnunet_folders, torch_files

UNET = {
  'spatial_dims': 3,
  'in_channels': 1,
  'out_channels': 2,
  'channels': [4, 6],
  'strides': [2],
}


class _Drawn(layers.Scope):
  """Draws every tensor that a network asks for."""

  def take(self, name, shape):
    full = self._prefix + name
    rng = np.random.default_rng(len(self._tensors))
    self._tensors[full] = rng.normal(0.3, 0.4, shape).astype(np.float32)
    return jnp.asarray(self._tensors[full])


def state(name, arguments):
  """A random state dict of a network."""
  found = {}
  image = jnp.zeros((1, *(32,) * arguments['spatial_dims'], arguments['in_channels']))
  jax.eval_shape(lambda x: bundle.NETWORKS[name](**arguments)(_Drawn(found), x), image)
  return found


def transforms(*steps):
  return {'_target_': 'Compose', 'transforms': list(steps)}


def write(folder, *, name='UNet', arguments=None, config=None, metadata=None, change=None):
  """A bundle; config: more of inference.json; change(tensors) edits the state dict."""
  arguments = UNET if arguments is None else arguments
  literal = {key: value for key, value in arguments.items() if not isinstance(value, str)}
  tensors = state(name, {**UNET, **literal} if name == 'UNet' else literal)
  if change is not None:
    change(tensors)
  for inner in ('configs', 'models'):
    (folder / inner).mkdir(parents=True)
  described = {'network_def': {'_target_': name, **arguments}, **(config or {})}
  (folder / 'configs' / 'inference.json').write_text(json.dumps(described))
  if metadata is not None:
    (folder / 'configs' / 'metadata.json').write_text(json.dumps(metadata))
  items = {key: torch_files.tensor(str(n), a) for n, (key, a) in enumerate(tensors.items())}
  storages = {str(n): array for n, array in enumerate(tensors.values())}
  program = torch_files.program({'state_dict': nnunet_folders.mapping(items)})
  torch_files.write(folder / 'models' / 'model.pt', program, storages)
  return folder
