"""Modules of PyTorch as networks, where PyTorch is installed.

A module is exported to ONNX in memory, read by `robustmed.onnx` and compared with itself; one that
cannot be exported, or gives something else then, is called back (`callback`), which is exact
and slow.
"""

import contextlib
import io
import pathlib
import tempfile
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from robustmed import errors
from robustmed.networks import network as networks
from robustmed.networks import onnx_file
from robustmed.networks.pytorch import callback

AGREE = 1e-3  # of the largest output, in float32
_SIDES = ('h', 'w', 'd')
_OPSET = 17


class _Differs(Exception):
  """Says how an exported graph differs from its module."""


def from_torch(
  module: Any,
  example: Any,
  *,
  name: str = 'network',
  activation: str = '',
  by_callback: bool = False,
  stated: Mapping[str, tuple[Any, str]] | None = None,
) -> networks.Network:
  """Returns a module, or a TorchScript one, as a network of images with channels last.

  example: an image as the module takes it, [b, channels, *sides], a tensor or array. The module is
  used in evaluation mode and left as it is; of several outputs the first counts. activation: what
  the outputs have been through, '' as far as the graph shows. by_callback: does not try to export.

  Raises:
    UserError: PyTorch is not installed, or the module does not take the example.
  """
  torch = _torch()
  if not isinstance(module, torch.nn.Module):
    raise errors.UserError(f'{name}: must be a torch.nn.Module, not a {type(module).__name__}')
  example = torch.as_tensor(example)
  if example.ndim not in (4, 5) or not example.is_floating_point():
    raise errors.UserError(
      f'{name}: the example must be a floating image [b, channels, *sides] in 2D or 3D, not '
      f'{example.dtype} {list(example.shape)}'
    )
  own = callback.Module(module, name=name)
  own.check(example.numpy(force=True))
  found, why = None, 'as asked'
  if not by_callback:
    found, why = _exported(torch, own, example)
  if found is None:
    found = callback.network(own, channels=example.shape[1], axes=example.ndim - 2, why=why)
  return found._replace(
    activation=activation or found.activation, stated={**found.stated, **(stated or {})}
  )


def _torch():
  try:
    import torch
  except ImportError as error:
    raise errors.UserError(
      'networks.from_torch needs PyTorch, which is not installed here; export the network where '
      "it is: torch.onnx.export(network, example, 'network.onnx')"
    ) from error
  return torch


def _exported(torch, own, example):
  """Returns the network by ONNX and '', or None and why it is not."""
  said = []
  scripted = isinstance(own.module, torch.jit.ScriptModule)
  for way in ('free', 'fixed') if scripted else ('free', 'dynamo'):
    try:
      return _by_onnx(torch, own, example, way=way), ''
    except (errors.UserError, _Differs) as error:
      said.append(f'{way}: {error}')
    except Exception as error:  # exporters raise exceptions of any kind
      said.append(f'{way}: {type(error).__name__}: {error}')
  return None, '; '.join(text.partition('\n')[0][:200] for text in said)


def _by_onnx(torch, own, example, *, way):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'network.onnx'
    for one in _export(torch, own.module, example, path, way=way):
      outside = pathlib.Path(torch.__file__).parent not in pathlib.Path(one.filename).parents
      if issubclass(one.category, torch.jit.TracerWarning) and outside:
        raise _Differs(f'{one.message} ({pathlib.Path(one.filename).name}, line {one.lineno})')
    found = onnx_file.load(path)
  found = found._replace(
    name=own.name,
    digest=networks.digest_of(own.variables),
    format='PyTorch, by ONNX',
    export=None,
  )
  _compare(own, found, example.numpy(force=True), other=way == 'free')
  return found


def _export(torch, module, example, path, *, way):
  """Writes the ONNX file, returns the warnings.

  way: 'free', traced for any batch and sides; 'fixed', for the sides of the example, by which loops
  over them are unrolled; 'dynamo', by the newer exporter, which sees or refuses control flow.
  """
  if way == 'dynamo':
    more = {'dynamo': True, 'external_data': False, 'verbose': False}
  else:
    axes = {0: 'n', **{place + 2: _SIDES[place] for place in range(example.ndim - 2)}}
    axes = axes if way == 'free' else {0: 'n'}
    more = {
      'dynamo': False,
      'opset_version': _OPSET,
      'dynamic_axes': {'x': axes, 'y': axes},
      'training': torch.onnx.TrainingMode.PRESERVE,  # weights keep their names
      'do_constant_folding': way == 'fixed',
    }
  silent = contextlib.redirect_stdout(io.StringIO())  # exporters print what they cannot do
  with silent, warnings.catch_warnings(record=True) as warned, torch.no_grad():
    warnings.simplefilter('always')
    torch.onnx.export(module, (example,), str(path), input_names=['x'], output_names=['y'], **more)
  return warned


def _compare(own, found, example, *, other):
  """Compares the two on random images of the example's size and, with `other`, of another size.

  Another size that the module itself refuses is left out.
  """
  rng = np.random.default_rng(0)
  draw = lambda shape: rng.normal(example.mean(), example.std() + 1e-3, shape).astype(example.dtype)
  images = [draw(example.shape)]
  if other:
    images.append(draw((*example.shape[:-1], 2 * example.shape[-1])))
  for place, image in enumerate(images):
    try:
      wanted = own.outputs(image)
    except errors.UserError:
      if place:
        continue
      raise
    last = np.moveaxis(image, 1, -1).astype(np.float32)
    given = np.moveaxis(np.asarray(found.predict(found.variables, last)), -1, 1)
    if given.shape != wanted.shape:
      raise _Differs(f'the graph gives {list(given.shape)}, the module {list(wanted.shape)}')
    error = np.abs(given - wanted).max() / max(np.abs(wanted).max(), 1e-6)
    if not error <= AGREE:
      raise _Differs(f'the graph differs by {error:.1e} of the largest output')
