"""Trained networks that are handed back: the file gives elsewhere what it gives here.

`launch/test.sh --peers` makes the environment that these tests need.
"""

import pydoc

import jax
import numpy as np
import pytest

from robustmed import networks
from robustmed.networks import training
from support import monai_bundles, nnunet_folders, torch_networks

reason = 'launch/test.sh --peers runs it with PyTorch, MONAI, ONNX Runtime and nnunetv2'
torch = pytest.importorskip('torch', reason=reason)
pytest.importorskip('monai', reason=reason)
runtime = pytest.importorskip('onnxruntime', reason=reason)

CLOSE = 1e-4  # of the largest element, float32


def _trained(network):
  """The variables with every weight that is trained changed a little, and how they were split."""
  split = training.split(network)
  rng = np.random.default_rng(0)
  moved = lambda array: array * 1.05 + 0.01 * rng.normal(size=array.shape).astype(array.dtype)
  return split.join({**split.variables, 'params': jax.tree.map(moved, split.variables['params'])})


def _close(found, wanted, what):
  found, wanted = np.asarray(found), np.asarray(wanted)
  assert found.shape == wanted.shape, what
  error = np.abs(found - wanted).max() / np.abs(wanted).max()
  assert error <= CLOSE, f'{what}: {error:.2e} of the largest element'


@pytest.mark.parametrize('name', ['UNet 2D', 'DynUNet 2D residual', 'DynUNet 3D', 'SegResNet'])
def test_an_onnx_file_in_onnxruntime_and_pytorch(name, tmp_path):
  module, shape = torch_networks.make(name)
  image = torch.randn(shape)
  torch_networks.export(module, image, tmp_path / 'net.onnx')
  network = networks.load(tmp_path / 'net.onnx')
  variables = _trained(network)
  training.export_of(network).write(variables, tmp_path / 'new.onnx')
  ours = jax.jit(network.predict)(variables, np.moveaxis(image.numpy(), 1, -1))
  last = lambda array: np.moveaxis(array, 1, -1)
  run = lambda path: runtime.InferenceSession(path, providers=['CPUExecutionProvider']).run(
    None, {'x': image.numpy()}
  )[0]
  theirs = run(tmp_path / 'new.onnx')
  _close(ours, last(theirs), 'ONNX Runtime')
  assert np.abs(theirs - run(tmp_path / 'net.onnx')).max() > 1e-3
  if not name.startswith('DynUNet'):
    return
  # The exporter keeps the names of parameters, but for slopes of PReLU and group norms.
  state = module.state_dict()
  assert set(variables) <= set(state)
  module.load_state_dict(
    {**state, **{k: torch.from_numpy(np.array(variables[k])) for k in variables}}
  )
  with torch.no_grad():
    _close(ours, last(module(image).numpy()), 'PyTorch')


@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('rank', [2, 3])
def test_nnunet_weights_in_nnunets_network(rank, residual, tmp_path):
  unet = pytest.importorskip('dynamic_network_architectures.architectures.unet', reason=reason)
  safetensors = pytest.importorskip('safetensors.torch', reason=reason)
  folder = nnunet_folders.write(tmp_path, rank=rank, residual=residual)
  network = networks.load(folder)
  variables = _trained(network)
  export = training.export_of(network)
  path = tmp_path / f'adv_seed0{export.suffix}'
  export.write(variables, path)
  imported = ('conv_op', 'norm_op', 'nonlin')
  arguments = nnunet_folders.arguments(rank, residual=residual)
  arguments = {k: pydoc.locate(v) if k in imported else v for k, v in arguments.items()}
  kind = 'ResidualEncoderUNet' if residual else 'PlainConvUNet'
  module = getattr(unet, kind)(1, num_classes=3, deep_supervision=False, **arguments).eval()
  names = {'network': module, 'safetensors': safetensors}
  exec(export.loading.replace('FILE', str(path)), names)
  repeated = {k for k in module.state_dict() if k not in names['tensors']}
  assert all('all_modules' in k or k.startswith('decoder.encoder.') for k in repeated)
  image = torch.randn(2, 1, *network.stated['input.window'][0])
  with torch.no_grad():
    wanted = module(image).numpy()
  ours = jax.jit(network.predict)(variables, np.moveaxis(image.numpy(), 1, -1))
  _close(ours, np.moveaxis(wanted, 1, -1), 'PyTorch')


@pytest.mark.parametrize(
  ('name', 'arguments'),
  [
    ('UNet', {**monai_bundles.UNET, 'num_res_units': 1, 'norm': ['batch', {'eps': 1e-4}]}),
    (
      'SegResNet',
      {'spatial_dims': 3, 'in_channels': 1, 'out_channels': 2, 'init_filters': 8}
      | {'blocks_down': [1, 1], 'blocks_up': [1]},
    ),
  ],
)
def test_a_state_dict_in_monais_network(name, arguments, tmp_path):
  safetensors = pytest.importorskip('safetensors.torch', reason=reason)
  from monai.networks import nets

  positive = lambda tensors: tensors.update(
    {key: np.abs(value) + 0.5 for key, value in tensors.items() if key.endswith('running_var')}
  )
  folder = monai_bundles.write(tmp_path / 'net', name=name, arguments=arguments, change=positive)
  network = networks.load(folder)
  variables = _trained(network)
  export = training.export_of(network)
  path = tmp_path / f'adv_seed0{export.suffix}'
  export.write(variables, path)
  module = getattr(nets, name)(**arguments).eval()
  names = {'network': module, 'safetensors': safetensors}
  exec(export.loading.replace('FILE', str(path)), names)
  left = set(module.state_dict()) - set(names['tensors'])
  assert all(key.endswith('num_batches_tracked') or 'act_mod' in key for key in left), left
  image = torch.randn(2, 1, 8, 12, 16)
  with torch.no_grad():
    wanted = module(image).numpy()
  ours = jax.jit(network.predict)(variables, np.moveaxis(image.numpy(), 1, -1))
  _close(ours, np.moveaxis(wanted, 1, -1), 'PyTorch')
