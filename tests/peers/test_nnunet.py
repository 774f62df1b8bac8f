"""nnU-Net v2: networks and whole predictions against PyTorch and nnunetv2 themselves.

`launch/test.sh --peers` makes the environment that they need.
"""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from robustmed.networks import nnunet_architecture, nnunet_network, nnunet_predict

reason = 'launch/test.sh --peers runs it with PyTorch and nnunetv2'
torch = pytest.importorskip('torch', reason=reason)
unet = pytest.importorskip('dynamic_network_architectures.architectures.unet', reason=reason)
pytest.importorskip('nnunetv2', reason=reason)

OUTPUT = GRADIENT = 1e-6  # of the largest element, in float64
EQUAL = 0.999  # share of voxels
CLASSES, CHANNELS = 3, 2

_PLAIN = {'n_conv_per_stage': [2, 1, 2], 'n_conv_per_stage_decoder': [1, 2]}
_RESIDUAL = {'n_blocks_per_stage': [1, 2, 1], 'n_conv_per_stage_decoder': 1}
_BN = {'norm_op': 'torch.nn.modules.batchnorm.BatchNorm2d'}
_BLOCK = 'dynamic_network_architectures.building_blocks.residual.BottleneckD'
NETWORKS = {  # name: (class, rank, arguments beside the common ones)
  'plain 2D': ('PlainConvUNet', 2, _PLAIN),
  'plain 3D': ('PlainConvUNet', 3, _PLAIN),
  'plain 2D, batch norm, activation first': (
    'PlainConvUNet',
    2,
    {**_PLAIN, **_BN, 'nonlin_first': True, 'nonlin': 'torch.nn.ReLU'},
  ),
  'residual 2D': ('ResidualEncoderUNet', 2, _RESIDUAL),
  'residual 3D': ('ResidualEncoderUNet', 3, _RESIDUAL),
  'residual 2D, bottlenecks': (
    'ResidualEncoderUNet',
    2,
    {**_RESIDUAL, 'block': _BLOCK, 'bottleneck_channels': [3, 4, 5], 'stem_channels': 7},
  ),
}


def _arguments(rank, more):
  return {
    'n_stages': 3,
    'features_per_stage': [6, 8, 10],
    'conv_op': f'torch.nn.modules.conv.Conv{rank}d',
    'kernel_sizes': [[1] + [3] * (rank - 1), [3] * rank, [3] * rank],
    'strides': [[1] * rank, [1] + [2] * (rank - 1), [2] * rank],
    'conv_bias': True,
    'norm_op': f'torch.nn.modules.instancenorm.InstanceNorm{rank}d',
    'norm_op_kwargs': {'eps': 1e-5, 'affine': True},
    'dropout_op': None,
    'dropout_op_kwargs': None,
    'nonlin': 'torch.nn.LeakyReLU',
    'nonlin_kwargs': {'inplace': True},
    **more,
  }


def _module(kind, arguments):
  """The network of nnunetv2 in float64, all parameters different."""
  import pydoc

  imported = ('conv_op', 'norm_op', 'nonlin', 'block')
  arguments = {k: pydoc.locate(v) if k in imported and v else v for k, v in arguments.items()}
  torch.manual_seed(0)
  module = getattr(unet, kind)(CHANNELS, num_classes=CLASSES, **arguments).double().eval()
  with torch.no_grad():
    for name, value in module.state_dict().items():
      if name.endswith('running_var'):
        value.uniform_(0.5, 2)
      elif value.is_floating_point() and value.ndim == 1:
        value.add_(0.3 * torch.randn_like(value))
  return module


def _close(found, wanted, limit, what):
  found, wanted = np.asarray(found), np.asarray(wanted)
  assert found.shape == wanted.shape, what
  error = np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-3)
  assert error <= limit, f'{what}: {error:.2e} of the largest element'


@pytest.mark.parametrize('name', NETWORKS)
def test_network(name, tmp_path):
  kind, rank, more = NETWORKS[name]
  arguments = _arguments(rank, more)
  module = _module(kind, arguments)
  path = tmp_path / 'checkpoint.pth'
  prefixed = {f'_orig_mod.{k}': v for k, v in module.state_dict().items()}
  torch.save({'network_weights': prefixed}, path)
  found = {'architecture': {'network_class_name': f'x.{kind}', 'arch_kwargs': arguments}}
  network = nnunet_network.UNet(nnunet_architecture.of(found, path), CLASSES)
  image = torch.randn(2, CHANNELS, *[8] * rank, dtype=torch.float64, requires_grad=True)
  output = module(image)
  weights = torch.randn_like(output)
  (weights * output).sum().backward()

  with jax.enable_x64(True):
    wanted = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float64),
      nnunet_network.shapes(network, channels=CHANNELS),
    )
    tensors = nnunet_plans_weights(path)
    variables = nnunet_network.load(wanted, tensors, path=path)
    last = lambda x: np.moveaxis(x.detach().numpy(), 1, -1)
    apply = lambda variables, x: network.apply(variables, x)['head0']
    _close(jax.jit(apply)(variables, last(image)), last(output), OUTPUT, 'output')
    loss = lambda variables, x: jnp.sum(last(weights) * apply(variables, x))
    by_weights, by_image = jax.jit(jax.grad(loss, (0, 1)))(variables, jnp.asarray(last(image)))
  _close(by_image, last(image.grad), GRADIENT, 'gradient by the image')
  named = dict(module.named_parameters())
  compared = 0
  for key, value in nnunet_network.state({'params': by_weights['params']}).items():
    if named[key].grad is not None:  # the lower heads have none
      _close(value, named[key].grad.numpy(), GRADIENT, key)
      compared += 1
  assert compared > 20
  state = nnunet_network.state(variables)
  for key, value in module.state_dict().items():
    if key in state:
      np.testing.assert_array_equal(value.numpy(), state[key])
  named = {k for k in named if 'all_modules' not in k and not k.startswith('decoder.encoder')}
  assert named <= set(state)


def nnunet_plans_weights(path):
  """The tensors of a checkpoint by their one name."""
  from robustmed.data.files import torch_archive
  from robustmed.networks import nnunet_plans

  return nnunet_plans.canonical(torch_archive.outline(path, ['network_weights'])['network_weights'])


@pytest.fixture(scope='module')
def peer(shared_data, tmp_path_factory):
  """A folder with networks that nnunetv2 trained and with its predictions, see nnunet_peer.py."""
  given = os.environ.get('ROBUSTMED_NNUNET_PEER')
  if given:
    return pathlib.Path(given)
  cases = shared_data / 'Task04_Hippocampus'
  if not cases.is_dir():
    pytest.skip(f'no {cases}')
  work = tmp_path_factory.mktemp('nnunet')
  script = pathlib.Path(__file__).with_name('nnunet_peer.py')
  done = subprocess.run(
    [sys.executable, str(script), str(cases), str(work)], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return work


@pytest.mark.long
@pytest.mark.parametrize('name', ['2d', '3d_fullres', '3d_residual'])
def test_label_maps(name, peer, tmp_path):
  network = nnunet_predict.load(peer / 'results' / name)
  maps = sorted((peer / 'maps' / name).glob('*.nii.gz'))
  assert len(maps) >= 2
  for wanted in maps:
    case = wanted.name.removesuffix('.nii.gz')
    found = tmp_path / wanted.name
    network.predict_files([peer / 'images' / f'{case}_0000.nii.gz'], found)
    ours, theirs = nib.load(found), nib.load(wanted)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
    a, b = np.asarray(ours.dataobj), np.asarray(theirs.dataobj)
    assert len(np.unique(b)) > 1, 'the network predicts one class everywhere; train it longer'
    share = (a == b).mean()
    print(f'{name} {case}: {share:.6f} equal, {(b > 0).mean():.4f} foreground')
    assert share >= EQUAL and a.dtype.kind in 'iu'
