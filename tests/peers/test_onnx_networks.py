"""Whole networks from PyTorch: outputs against ONNX Runtime, gradients against PyTorch in float64.

`launch/test.sh --peers` makes the environment that they need.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import onnx as ours
from support import torch_networks

reason = 'launch/test.sh --peers runs it with PyTorch, MONAI and ONNX Runtime'
torch = pytest.importorskip('torch', reason=reason)
pytest.importorskip('monai', reason=reason)
runtime = pytest.importorskip('onnxruntime', reason=reason)

FORWARD, GRADIENT = 1e-4, 1e-6  # of the largest element


def _close(found, wanted, share, what):
  found, wanted = np.asarray(found), np.asarray(wanted)
  assert found.shape == wanted.shape, what
  error = np.abs(found - wanted).max() / np.abs(wanted).max()
  assert error <= share, f'{what}: {error:.2e} of the largest element'
  return error


def _first(value):
  return value[0] if isinstance(value, tuple | list) else value


def _compare(module, shape, path, *, dynamo):
  image = torch.randn((2 if not dynamo else 1, *shape[1:]), dtype=torch.float64)
  torch_networks.export(module.float(), image.float(), path, dynamo=dynamo)
  session = runtime.InferenceSession(path, providers=['CPUExecutionProvider'])
  wanted = session.run(None, {'x': image.float().numpy()})[0]
  graph = ours.load(path)
  found = _first(jax.jit(graph)(graph.variables, image.float().numpy()))
  _close(found, wanted, FORWARD, 'output')

  torch_networks.export(module.double(), image, path, dynamo=dynamo)
  image.requires_grad_()
  output = _first(module(image))
  weights = torch.randn_like(output)
  (weights * output).sum().backward()
  with jax.enable_x64(True):
    graph = ours.load(path)
    loss = lambda variables, x: jnp.sum(weights.numpy() * _first(graph(variables, x)))
    by_weights, by_image = jax.jit(jax.grad(loss, (0, 1)))(
      dict(graph.variables), jnp.asarray(image.detach().numpy())
    )
    _close(by_image, image.grad.numpy(), GRADIENT, 'gradient by the image')
    named = {name: value for name, value in module.named_parameters() if name in by_weights}
    for name, value in named.items():
      if value.grad is not None and by_weights[name].shape == tuple(value.shape):
        scale = max(float(value.grad.abs().max()), 1e-3)
        difference = np.abs(np.asarray(by_weights[name]) - value.grad.numpy()).max()
        # What a norm takes out again, such as a bias before it, has the gradient 0.
        assert difference <= GRADIENT * scale, (name, difference)
  return len(named)


@pytest.mark.slow
@pytest.mark.parametrize('name', torch_networks.NETWORKS)
def test_network(name, tmp_path):
  module, shape = torch_networks.make(name)
  compared = _compare(module, shape, str(tmp_path / 'network.onnx'), dynamo=False)
  # Batch norms are merged into convolutions, whose weights then have names of their own.
  assert compared >= 2


@pytest.mark.long
@pytest.mark.parametrize('name', ['UNet 3D', 'SegResNet', 'DenseNet121', 'SwinUNETR'])
def test_network_by_the_newer_exporter(name, tmp_path):
  module, shape = torch_networks.make(name)
  _compare(module, shape, str(tmp_path / 'network.onnx'), dynamo=True)
