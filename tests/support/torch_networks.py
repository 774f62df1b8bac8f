"""Networks of MONAI with random weights, and their ONNX files; for tests that have PyTorch."""

import warnings

# name: (class in monai.networks.nets, arguments, shape of the image)
_SMALL = {'in_channels': 1, 'out_channels': 2}
_THREE_LEVELS = {'channels': (8, 16, 32), 'strides': (2, 2)}
_DYN = {'kernel_size': [3] * 3, 'strides': [1, 2, 2], 'upsample_kernel_size': [2, 2]}
NETWORKS = {
  'UNet 2D': ('UNet', {'spatial_dims': 2, **_SMALL, **_THREE_LEVELS}, (1, 1, 32, 32)),
  'UNet 3D': ('UNet', {'spatial_dims': 3, **_SMALL, **_THREE_LEVELS}, (1, 1, 16, 16, 16)),
  'UNet 3D residual': (
    'UNet',
    {'spatial_dims': 3, **_SMALL, **_THREE_LEVELS, 'num_res_units': 2},
    (1, 1, 16, 16, 16),
  ),
  'AttentionUnet': (
    'AttentionUnet',
    {'spatial_dims': 2, **_SMALL, **_THREE_LEVELS},
    (1, 1, 32, 32),
  ),
  'DynUNet 3D': (
    'DynUNet',
    {'spatial_dims': 3, **_SMALL, **_DYN, 'filters': [8, 16, 32]},
    (1, 1, 16, 16, 16),
  ),
  'DynUNet 2D residual': (
    'DynUNet',
    {'spatial_dims': 2, **_SMALL, **_DYN, 'filters': [8, 16, 32], 'res_block': True},
    (1, 1, 32, 32),
  ),
  'SegResNet': (
    'SegResNet',
    {'init_filters': 8, **_SMALL, 'blocks_down': (1, 2, 2), 'blocks_up': (1, 1)},
    (1, 1, 16, 16, 16),
  ),
  'UNETR': (
    'UNETR',
    {**_SMALL, 'img_size': 32, 'feature_size': 4, 'hidden_size': 24, 'mlp_dim': 48, 'num_heads': 2},
    (1, 1, 32, 32, 32),
  ),
  'SwinUNETR': (
    'SwinUNETR',
    {
      **_SMALL,
      'feature_size': 12,
      'depths': (1, 1, 1, 1),
      'num_heads': (1, 2, 3, 4),
      'spatial_dims': 2,
    },
    (1, 1, 64, 64),
  ),
  'DenseNet121': (
    'DenseNet121',
    {'spatial_dims': 2, **_SMALL, 'init_features': 16, 'growth_rate': 8},
    (1, 1, 64, 64),
  ),
  'ResNet': (
    'resnet18',
    {'spatial_dims': 2, 'n_input_channels': 1, 'num_classes': 3},
    (1, 1, 64, 64),
  ),
}


def make(name, *, seed=0):
  """Returns (the network in evaluation mode, the shape of its image)."""
  import torch

  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from monai.networks import nets

    kind, options, shape = NETWORKS[name]
    torch.manual_seed(seed)
    module = getattr(nets, kind)(**options).eval()
  with torch.no_grad():
    # Affine parameters and slopes all different, so that no two can be exchanged unseen.
    for parameter in module.parameters():
      if parameter.ndim == 1:
        parameter.add_(0.1 * torch.randn_like(parameter))
  return module, shape


def export(module, image, path, *, dynamo=False):
  """Writes the ONNX file of a network; the batch is free unless `dynamo` is used."""
  import torch

  more = {'dynamo': True, 'external_data': False, 'verbose': False}
  if not dynamo:
    free = {'x': {0: 'n'}, 'y': {0: 'n'}}
    more = {'dynamo': False, 'opset_version': 17, 'dynamic_axes': free}
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    torch.onnx.export(module, (image,), path, input_names=['x'], output_names=['y'], **more)
