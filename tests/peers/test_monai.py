"""Bundles of MONAI with random weights: outputs in float32, gradients in float64."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import networks

reason = 'launch/test.sh --peers runs it with PyTorch and MONAI'
torch = pytest.importorskip('torch', reason=reason)
pytest.importorskip('monai', reason=reason)

FORWARD, GRADIENT = 1e-4, 1e-6  # of the largest element
_SMALL = {'in_channels': 2, 'out_channels': 3}
_LEVELS = {'channels': [4, 8, 12], 'strides': [2, 2]}
_DYN = {
  'kernel_size': [[3, 3, 1], 3, 3],
  'strides': [1, 2, [2, 2, 1]],
  'upsample_kernel_size': [2, [2, 2, 1]],
  'filters': [4, 6, 8],
}
_VIT = {'hidden_size': 12, 'mlp_dim': 20, 'num_heads': 3}
_SWIN = {'feature_size': 12, 'depths': [2, 1, 1, 1], 'num_heads': [1, 2, 3, 4]}
_FEATURES = [4, 4, 6, 8, 10, 6]
NETWORKS = {  # name: (class, arguments, sides of the image)
  'UNet 2D': ('UNet', {'spatial_dims': 2, **_LEVELS}, (16, 24)),
  'UNet 3D': ('UNet', {'spatial_dims': 3, **_LEVELS}, (8, 12, 16)),
  'UNet 3D, residual, batch norm': (
    'UNet',
    {'spatial_dims': 3, **_LEVELS, 'num_res_units': 2, 'norm': 'batch'},
    (8, 12, 16),
  ),
  'UNet 2D, other layers': (
    'UNet',
    {
      'spatial_dims': 2,
      **_LEVELS,
      'num_res_units': 1,
      'norm': ['group', {'num_groups': 1}],
      'act': ['elu', {'alpha': 0.5}],
      'kernel_size': [5, 3],
      'up_kernel_size': 5,
      'dropout': 0.2,
      'bias': False,
      'adn_ordering': 'AND',
    },
    (16, 24),
  ),
  'BasicUNet 2D': ('BasicUNet', {'spatial_dims': 2, 'features': _FEATURES}, (32, 48)),
  'BasicUNet 3D, odd sides': (
    'BasicUNet',
    {'features': _FEATURES, 'norm': ['batch', {'eps': 1e-3}]},
    (17, 16, 19),
  ),
  'BasicUNet 2D, upsampled': (
    'BasicUNet',
    {'spatial_dims': 2, 'features': _FEATURES, 'upsample': 'nontrainable', 'act': 'relu'},
    (32, 32),
  ),
  'DynUNet 3D': ('DynUNet', {'spatial_dims': 3, **_DYN}, (8, 8, 8)),
  'DynUNet 3D, residual': (
    'DynUNet',
    {
      'spatial_dims': 3,
      **_DYN,
      'res_block': True,
      'trans_bias': True,
      'deep_supervision': True,
      'norm_name': 'instance',
    },
    (8, 8, 8),
  ),
  'SegResNet 3D': (
    'SegResNet',
    {'init_filters': 8, 'blocks_down': [1, 2, 2], 'blocks_up': [1, 1], 'dropout_prob': 0.2},
    (8, 12, 16),
  ),
  'SegResNet 2D, transposed': (
    'SegResNet',
    {
      'spatial_dims': 2,
      'init_filters': 8,
      'blocks_down': [1, 1, 2, 1],
      'upsample_mode': 'deconv',
      'norm': ['instance', {'affine': True}],
      'act': 'prelu',
    },
    (16, 24),
  ),
  'UNETR 3D': (
    'UNETR',
    {'img_size': [32, 16, 48], 'feature_size': 4, **_VIT, 'norm_name': 'instance'},
    (32, 16, 48),
  ),
  'UNETR 2D, plain blocks': (
    'UNETR',
    {
      'spatial_dims': 2,
      'img_size': 32,
      'feature_size': 4,
      **_VIT,
      'conv_block': False,
      'res_block': False,
      'qkv_bias': True,
      'norm_name': 'batch',
    },
    (32, 32),
  ),
  'SwinUNETR 3D': ('SwinUNETR', {**_SWIN, 'window_size': 3}, (32, 64, 32)),
  'SwinUNETR 2D, v2': (
    'SwinUNETR',
    {**_SWIN, 'spatial_dims': 2, 'use_v2': True, 'window_size': [7, 5]},
    (64, 96),
  ),
  'SwinUNETR 3D, merging v2': (
    'SwinUNETR',
    {**_SWIN, 'downsample': 'mergingv2', 'normalize': False, 'qkv_bias': False},
    (32, 32, 64),
  ),
  'DenseNet121': (
    'DenseNet121',
    {
      'spatial_dims': 2,
      'init_features': 8,
      'growth_rate': 4,
      'block_config': [2, 3, 2],
    },
    (64, 50),
  ),
}


def write(folder, name, arguments):
  """A bundle with random weights; returns the module in evaluation mode."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from monai.networks import nets

    torch.manual_seed(0)
    module = getattr(nets, name)(**arguments).eval()
  with torch.no_grad():
    for key, value in module.state_dict().items():
      if key.endswith('running_var'):
        value.uniform_(0.5, 2)
      elif value.is_floating_point() and value.ndim == 1:
        value.add_(0.3 * torch.randn_like(value))
  for inner in ('configs', 'models'):
    (folder / inner).mkdir(parents=True)
  described = {
    'device': '$torch.device("cpu")',
    'network_def': {'_target_': name, **arguments},
    'network': '$@network_def.to(@device)',
  }
  (folder / 'configs' / 'inference.json').write_text(json.dumps(described))
  torch.save(module.state_dict(), folder / 'models' / 'model.pt')
  return module


def _last(value):
  return np.moveaxis(value.detach().numpy(), 1, -1)


def _close(found, wanted, share, what):
  found, wanted = np.asarray(found), np.asarray(wanted)
  assert found.shape == wanted.shape, what
  error = np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-3)
  assert error <= share, f'{what}: {error:.2e} of the largest element'


def _marked(name):
  marks = pytest.mark.long if 'UNETR' in name else pytest.mark.slow
  return pytest.param(name, marks=marks)


@pytest.mark.parametrize('name', [_marked(name) for name in NETWORKS])
def test_network(name, tmp_path):
  kind, arguments, sides = NETWORKS[name]
  module = write(tmp_path / 'bundle', kind, {**_SMALL, **arguments})
  network = networks.load(tmp_path / 'bundle')
  assert network.format == f'MONAI bundle, {kind}' and network.axes == len(sides)
  image = torch.randn(2, network.channels, *sides)
  wanted = module(image)
  last = _last if wanted.ndim > 2 else lambda value: value.detach().numpy()
  found = jax.jit(network.predict)(network.variables, _last(image))
  _close(found, last(wanted), FORWARD, 'output')

  module, image = module.double(), image.double().requires_grad_()
  output = module(image)
  weights = torch.randn_like(output)
  (weights * output).sum().backward()
  named = dict(module.named_parameters())
  with jax.enable_x64(True):
    variables = {k: jnp.asarray(v, jnp.float64) for k, v in network.variables.items()}
    loss = lambda v, x: jnp.sum(last(weights) * network.predict(v, x))
    by_weights, by_image = jax.jit(jax.grad(loss, (0, 1)))(variables, jnp.asarray(_last(image)))
  _close(by_image, _last(image.grad), GRADIENT, 'gradient by the image')
  compared = {key for key in named if key in by_weights}
  for key in compared:
    # What a norm takes out again, such as a bias before it, has the gradient 0.
    _close(by_weights[key], named[key].grad.numpy(), GRADIENT, key)
  used = {key for key, value in named.items() if value.grad is not None}
  assert compared == {key for key in used if not key.startswith(('skip_layers.', 'act_mod.'))}
