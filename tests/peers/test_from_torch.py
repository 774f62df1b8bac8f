"""Modules of PyTorch as networks: by ONNX where they export, by callback elsewhere."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import attacks, errors, networks
from robustmed.networks.pytorch import callback

torch = pytest.importorskip('torch', reason='launch/test.sh --peers runs it with PyTorch')

FORWARD, GRADIENT = 1e-4, 1e-6  # of the largest element


def _net(axes, *, channels=2):
  """Convolution, norms of both kinds, down and up again, with a skip."""
  conv = getattr(torch.nn, f'Conv{axes}d')
  up = getattr(torch.nn, f'ConvTranspose{axes}d')
  torch.manual_seed(0)

  class Net(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.first = conv(channels, 4, 3, padding=1)
      self.batch = getattr(torch.nn, f'BatchNorm{axes}d')(4)
      self.instance = getattr(torch.nn, f'InstanceNorm{axes}d')(4, affine=True)
      self.down = conv(4, 6, 3, stride=2, padding=1)
      self.up = up(6, 4, 2, stride=2)
      self.head = conv(8, 3, 1)
      self.drop = torch.nn.Dropout(0.5)

    def forward(self, x):
      x = self.instance(torch.nn.functional.gelu(self.batch(self.first(x))))
      low = self.drop(torch.relu(self.down(x)))
      return self.head(torch.cat([x, self.up(low)], 1))

  module = Net()
  with torch.no_grad():
    for parameter in module.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))  # exporters share equal ones
    module.batch.running_var.uniform_(0.5, 2)
    module.batch.running_mean.normal_()
  return module


class _Counting(torch.nn.Module):
  """Has a loop whose length the values of the image decide: no exporter can take it."""

  def __init__(self, inner):
    super().__init__()
    self.inner = inner

  def forward(self, x):
    found = self.inner(x)
    for _ in range(int(x.detach().mean().sign().item()) + 2):
      found = found * 1.5
    return found


def _shape(axes):
  return (2, 2, 8, 12, 10)[: axes + 2]


def _last(value):
  return np.moveaxis(value.detach().numpy(), 1, -1)


def _close(found, wanted, share, what):
  found, wanted = np.asarray(found), np.asarray(wanted)
  assert found.shape == wanted.shape, what
  error = np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-3)
  assert error <= share, f'{what}: {error:.2e} of the largest element'


def _compare(network, module, image):
  """Outputs and gradients in float64."""
  image = image.clone().requires_grad_()
  module = module.eval()
  module.zero_grad()
  output = module(image)
  weights = torch.randn_like(output)
  (weights * output).sum().backward()
  with jax.enable_x64(True):
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), network.variables)
    loss = lambda v, x: jnp.sum(_last(weights) * network.predict(v, x))
    found, slopes = jax.jit(jax.value_and_grad(loss, (0, 1)))(variables, jnp.asarray(_last(image)))
    _close(found, (weights * output).sum().item(), FORWARD, 'loss')
    _close(slopes[1], _last(image.grad), GRADIENT, 'gradient by the image')
  named = dict(module.named_parameters())
  assert set(named) <= set(slopes[0])
  for key, value in named.items():
    _close(slopes[0][key], value.grad.numpy(), GRADIENT, key)


@pytest.mark.parametrize('axes', [2, 3])
@pytest.mark.parametrize('kind', ['module', 'traced', 'scripted', 'callback'])
def test_outputs_and_gradients(kind, axes):
  module, image = _net(axes).double().eval(), torch.randn(*_shape(axes), dtype=torch.float64)
  given = module
  if kind in ('traced', 'scripted'):
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      make = torch.jit.script if kind == 'scripted' else lambda m: torch.jit.trace(m, image)
      given = make(module)
  with jax.enable_x64(True):
    network = networks.from_torch(given, image, name='net', by_callback=kind == 'callback')
  assert network.name == 'net' and network.channels == 2
  assert network.shape == (None,) * axes
  assert network.format == ('PyTorch, by ONNX' if kind != 'callback' else callback.FORMAT)
  _compare(network, module, image)


@pytest.mark.parametrize('axes', [2, 3])
def test_a_module_in_float32_that_is_still_training(axes):
  module, image = _net(axes), torch.randn(*_shape(axes))
  network = networks.from_torch(module, image)
  assert module.training and module.drop.training
  wider = torch.randn(3, 2, *(16,) * axes)  # another batch and size
  found = jax.jit(network.predict)(network.variables, _last(wider))
  _close(found, _last(module.eval()(wider)), FORWARD, 'output')
  assert network.digest == networks.from_torch(module, image, by_callback=True).digest


def test_modules_that_do_not_export_are_called_back():
  module, image = _Counting(_net(2)).double().eval(), torch.randn(*_shape(2), dtype=torch.float64)
  with jax.enable_x64(True):
    network = networks.from_torch(module, image + 1)
  assert network.format == callback.FORMAT and 'slow' in network.notes[0]
  for shift in (1, -1):
    _compare(network, module, image + shift)


def test_an_attack_through_callbacks_inside_a_compiled_loop():
  module, image = _net(2).eval(), torch.randn(4, 2, 64, 64)
  slow = networks.from_torch(module, image, by_callback=True)
  fast = networks.from_torch(module, image)
  attack = attacks.pgd(num_steps=4, step_size=0.01, random_start=False)
  found = []
  for network in (slow, fast):
    run = lambda v, x: (
      attack(
        lambda y: jnp.sum(network.predict(v, y)[..., 0], (1, 2)),  # noqa: B023
        x,
        eps=0.03,
        key=jax.random.key(0),
      ).x
    )
    found.append(np.asarray(jax.jit(run)(network.variables, _last(image))))
  assert (np.abs(found[0] - found[1]) < 1e-5).mean() > 0.99
  assert np.abs(found[0] - _last(image)).max() > 0.025


def test_what_is_no_network():
  with pytest.raises(errors.UserError, match=r'must be a torch\.nn\.Module, not a function'):
    networks.from_torch(lambda x: x, torch.zeros(1, 2, 8, 8))
  with pytest.raises(errors.UserError, match='must be a floating image'):
    networks.from_torch(_net(2), torch.zeros(2, 8, 8))
  with pytest.raises(errors.UserError, match='net does not take images'):
    networks.from_torch(_net(2), torch.zeros(1, 5, 8, 8), name='net')
