"""The folder of a MONAI bundle as a network of stored images."""

import hashlib
import inspect
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from robustmed import errors
from robustmed.data.files import torch_archive
from robustmed.models import weights
from robustmed.networks import network as networks
from robustmed.networks.monai import config as configs
from robustmed.networks.monai import layers, preprocessing, residual, transformers, unets
from robustmed.process import files

NETWORKS: Mapping[str, Callable[..., Callable]] = {
  **dict.fromkeys(('UNet', 'Unet', 'unet'), unets.unet),
  **dict.fromkeys(('BasicUNet', 'BasicUnet', 'basicunet'), unets.basic_unet),
  **dict.fromkeys(('DynUNet', 'DynUnet', 'Dynunet'), unets.dynunet),
  'SegResNet': residual.segresnet,
  'UNETR': transformers.unetr,
  'SwinUNETR': transformers.swin_unetr,
  **dict.fromkeys(('DenseNet', 'DenseNet121', 'Densenet121', 'densenet121'), residual.densenet),
}
_WRAPPED = ('model', 'state_dict', 'network', 'net')  # keys of checkpoints with more in them
_PREFIX = 'module.'
# Of networks in training, or repeated names of other tensors.
_UNUSED = (
  *('num_batches_tracked', 'skip_layers.', 'deep_supervision_heads.', 'act_mod.'),
  *('norm_cross_attn.', 'cross_attn.', 'relative_position_index'),
)
_EXPORT = 'export it: torch.onnx.export(...)'
_LOADING = """import safetensors.torch
tensors = safetensors.torch.load_file('FILE')
network.load_state_dict(tensors, strict=False)  # what prediction does not read stays as it was"""


def matches(path: pathlib.Path) -> bool:
  """Returns whether a folder looks like a bundle."""
  return path.is_dir() and any(
    (path / 'configs' / f'{name}{suffix}').is_file()
    for name in ('inference', 'metadata')
    for suffix in ('.json', '.yaml', '.yml')
  )


def load(path: pathlib.Path) -> networks.Network:
  """Returns the network of a bundle; what cannot be read without running code is a `UserError`."""
  config = configs.read(path, 'inference')
  if config is None:
    raise errors.UserError(f'{path}: has no configs/inference.json; {_EXPORT}')
  name, arguments = _network(config)
  axes, channels = _sizes(name, arguments, config)
  file = _weights_file(path)
  state = read_state(file)
  function, used = _built(name, arguments, state, axes=axes, channels=channels, path=file)
  variables = {key: state[key] for key in used}
  said = preprocessing.read(config, axes=axes, channels=channels)
  where = f'configs/{config.path.name}'
  stated = {key: (value, where) for key, value in {**said.fields, **_inferer(config)}.items()}
  classes = _classes(path)
  if classes:
    stated['output.classes'] = (classes, 'configs/metadata.json')
  notes = list(said.notes)
  if name == 'SwinUNETR' and axes == 3 and arguments.get('downsample', 'merging') == 'merging':
    notes.append('patches are merged in the order of MONAI 1.6, older versions had another one')
  size = arguments['img_size'] if name == 'UNETR' else None
  fixed = size if isinstance(size, list | tuple) else (size,) * axes
  if 'input.window' in stated:
    notes.append('windows are spread evenly, those of MONAI begin at 0 in steps')
  return networks.Network(
    name=path.name,
    variables=variables,
    predict=lambda variables, image: function(layers.Scope(variables), image),
    channels=channels,
    shape=tuple(fixed),
    digest=_digest(config.path, file),
    format=f'MONAI bundle, {name}',
    stated=stated,
    frozen={key: 'running statistics' for key in variables if '.running_' in key},
    export=networks.Export('.safetensors', _write, _LOADING),
    notes=tuple(notes),
  )


def _write(variables, path) -> None:
  """Writes the tensors that prediction reads, under PyTorch's names."""
  weights.write(path, {name: np.asarray(variables[name]) for name in sorted(variables)})


def _network(config) -> tuple[str, dict[str, Any]]:
  """Returns the class and the literal arguments of the network."""
  found = None
  for key in ('network_def', 'network', 'net', 'model'):
    value = config.found(key)
    if isinstance(value, Mapping) and '_target_' in value:
      found = value
      break
  if found is None:
    raise errors.UserError(f'{config.path}: has no network_def with a _target_; {_EXPORT}')
  target = str(found['_target_'])
  name = target.rsplit('.', 1)[-1]
  if name not in NETWORKS or not (target == name or target.startswith('monai.')):
    known = ', '.join(sorted({n for n in NETWORKS if n[0].isupper() and n[-3:] != 'net'}))
    raise errors.UserError(f'{config.path}: the network {target!r} is none of {known}; {_EXPORT}')
  arguments = {}
  for key, value in found.items():
    if not (key.startswith('_') and key.endswith('_')):
      try:
        arguments[key] = config.literal(value, f'{name}.{key}')
      except configs.Unknown as error:
        raise errors.UserError(f'{error}; {_EXPORT}') from error
  parameters = inspect.signature(NETWORKS[name]).parameters
  unknown = [key for key in arguments if key not in parameters]
  missing = [key for key, p in parameters.items() if p.default is p.empty and key not in arguments]
  if unknown or missing:
    what = f'argument {unknown[0]!r}' if unknown else f'network without {missing[0]!r}'
    raise errors.UserError(f'{config.path}: {name}: {what} is not understood; {_EXPORT}')
  return name, arguments


def _sizes(name, arguments, config) -> tuple[int, int]:
  defaults = inspect.signature(NETWORKS[name]).parameters
  axes, channels = (
    arguments.get(key, defaults[key].default) for key in ('spatial_dims', 'in_channels')
  )
  if axes not in (2, 3) or isinstance(channels, bool) or not isinstance(channels, int):
    raise errors.UserError(
      f'{config.path}: {name} in {axes!r}D with {channels!r} channels is not understood'
    )
  return axes, channels


def _weights_file(path) -> pathlib.Path:
  """Returns models/model.pt, or the one other file of weights in models."""
  folder = path / 'models'
  for name in ('model.pt', 'model.pth', 'model.safetensors'):
    if files.present(folder / name) and not _is_script(folder / name):
      return folder / name
  scripts = [one for one in sorted(folder.glob('model.*')) if one.suffix in ('.ts', '.pt')]
  if scripts:
    raise errors.UserError(f'{scripts[0]}: TorchScript would run code; {_EXPORT}')
  raise errors.UserError(f'{path}: has no models/model.pt; download the whole bundle')


def _is_script(file) -> bool:
  try:
    with zipfile.ZipFile(file) as archive:
      return any('/code/' in name for name in archive.namelist())
  except Exception:  # of damaged files of any kind; what reads the tensors says what is wrong
    return False


def read_state(file: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the tensors of a state dict by name, of a torch archive or a safetensors file."""
  with files.regular(file).open('rb') as opened:
    start = opened.read(9)
  if file.suffix == '.safetensors':
    found = weights.read(file)
  elif start[8:9] == b'{':
    raise errors.UserError(f'{file}: is a safetensors file by its content; rename it so')
  else:
    content = torch_archive.outline(file, None)
    for key in _WRAPPED:
      if isinstance(content.get(key), dict):
        content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(v, torch_archive.Tensor)}
    if not tensors:
      raise errors.UserError(f'{file}: holds no tensors; {_EXPORT}')
    found = torch_archive.arrays(file, tensors)
  found = {str(key).removeprefix(_PREFIX): value for key, value in found.items()}
  for key, value in found.items():
    if value.dtype.kind == 'f' and not np.isfinite(value).all():
      raise errors.UserError(f'{file}: tensor {key!r} has NaN or infinite values')
  return found


class _Watched(dict):
  """A state dict that knows which of its tensors were read."""

  def __init__(self, *arguments):
    super().__init__(*arguments)
    self.used: set[str] = set()

  def __getitem__(self, key):
    self.used.add(key)
    return super().__getitem__(key)


def _built(name, arguments, state, *, axes, channels, path):
  """Returns the function of a network, and the names of the tensors that it reads."""
  shapes = {key: jax.ShapeDtypeStruct(v.shape, v.dtype) for key, v in state.items()}
  said = ''
  try:
    function = NETWORKS[name](**arguments)
    watched = _Watched()

    def trace(tensors, image):
      watched.clear()
      watched.update(tensors)
      return function(layers.Scope(watched), image)

    side = arguments.get('img_size') or 64
    sides = tuple(side) if isinstance(side, list | tuple) else (side,) * axes
    image = jax.ShapeDtypeStruct((1, *sides, channels), np.float32)
    jax.eval_shape(trace, shapes, image)
  except errors.UserError as error:
    said = str(error)
  except Exception as error:  # arguments may be anything
    said = f'{type(error).__name__}: {str(error).partition(chr(10))[0]}'
  if said:
    raise errors.UserError(f'{path}: does not fit {name} ({said}); {_EXPORT}')
  left = [key for key in state if key not in watched.used and not any(u in key for u in _UNUSED)]
  if left:
    raise errors.UserError(
      f'{path}: tensor {left[0]!r} ({len(left)} such) has no place in {name}; {_EXPORT}'
    )
  return function, sorted(watched.used)


def _inferer(config) -> dict[str, Any]:
  """Returns what the sliding window of a bundle says."""
  found = config.found('inferer')
  if not isinstance(found, Mapping) or 'SlidingWindow' not in str(found.get('_target_')):
    return {}
  fields: dict[str, Any] = {}
  for key, name, convert, unset in (
    ('roi_size', 'input.window', lambda v: tuple(int(n) for n in v), None),
    ('overlap', 'input.overlap', float, 0.25),
    ('mode', 'input.blend', str, 'constant'),
  ):
    try:
      value = config.literal(found.get(key, unset), f'inferer.{key}')
      if value is not None:
        fields[name] = convert(value)
      if name == 'input.window' and min(fields.get(name, (1,))) < 1:
        del fields[name]  # -1: as large as the image
    except (configs.Unknown, TypeError, ValueError):
      continue
  return fields


def _classes(path) -> tuple[str, ...]:
  """Returns the names of the output channels in configs/metadata.json."""
  config = configs.read(path, 'metadata')
  outputs = config.get('network_data_format::outputs') if config else None
  first = next(iter(outputs.values()), None) if isinstance(outputs, Mapping) else None
  found = first.get('channel_def') if isinstance(first, Mapping) else None
  if not isinstance(found, Mapping) or sorted(found) != sorted(map(str, range(len(found)))):
    return ()
  return tuple(str(found[str(k)]) for k in range(len(found)))


def _digest(*paths) -> str:
  found = hashlib.sha256()
  for path in paths:
    with path.open('rb') as file:
      found.update(hashlib.file_digest(file, 'sha256').digest())
  return found.hexdigest()
