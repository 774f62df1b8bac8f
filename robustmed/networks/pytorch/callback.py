"""Modules of PyTorch that JAX calls back: exact, outside of the compiled program, slow.

Nothing of JAX is called inside of a callback, which would wait for itself. On the CPU, JAX may wait
for ever for a callback's arguments when it dispatches asynchronously, so that is switched off; it
has an effect only before the first computation of the process.
"""

import copy
import functools
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors
from robustmed.networks import network as networks

FORMAT = 'PyTorch, by callback (slow)'


class Module:
  """A private copy of a module in evaluation mode, from numpy to numpy, one call at a time."""

  def __init__(self, module: Any, *, name: str):
    self.module, self.name = copy.deepcopy(module).eval(), name
    self._lock = threading.Lock()
    tensors = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
    self._tensors = {key: value for key, value in tensors.items() if value.is_floating_point()}
    self.trained = frozenset(key for key, _ in self.module.named_parameters())
    self.variables = {key: value.numpy(force=True) for key, value in self._tensors.items()}
    self.shape = functools.lru_cache(maxsize=64)(self._shape)

  def check(self, example: np.ndarray) -> None:
    """Raises a `UserError` unless the module gives an output for the example."""
    if self.outputs(example).ndim < 2:
      raise errors.UserError(f'{self.name}: the module gives one number, not an output per image')

  def outputs(self, image: np.ndarray) -> np.ndarray:
    """Returns the first output for an image [b, channels, *sides] with the module's own weights."""
    import torch

    try:
      with self._lock, torch.no_grad():
        return self._first(self.module(self._tensor(torch, image))).numpy(force=True)
    except Exception as error:  # modules raise exceptions of any kind
      text = str(error).partition('\n')[0]
      raise errors.UserError(
        f'{self.name} does not take images {list(image.shape)}: {type(error).__name__}: {text}'
      ) from error

  def forward(self, variables, image):
    """Returns the first output with these weights."""
    import torch

    with self._lock, torch.no_grad():
      self._set(torch, variables)
      return self._first(self.module(self._tensor(torch, image))).numpy(force=True)

  def backward(self, variables, image, cotangent, *, by: str):
    """Returns the gradient of sum(cotangent * output) by 'image' or by the 'variables'."""
    import torch

    with self._lock:
      self._set(torch, variables)
      pixels = self._tensor(torch, image).requires_grad_()
      chosen = [pixels] if by == 'image' else [self._tensors[key] for key in sorted(self.trained)]
      for one in chosen:
        one.requires_grad_()
      output = self._first(self.module(pixels))
      weights = torch.tensor(np.array(cotangent), dtype=output.dtype, device=output.device)
      found = torch.autograd.grad(output, chosen, weights, allow_unused=True)
      arrays = [
        np.zeros(tuple(one.shape), np.float32) if slope is None else slope.numpy(force=True)
        for one, slope in zip(chosen, found)
      ]
    return arrays[0] if by == 'image' else dict(zip(sorted(self.trained), arrays))

  def _shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the first output for images of a shape, channels first."""
    return self.outputs(np.zeros(shape, np.float32)).shape

  def _first(self, output):
    while not hasattr(output, 'detach'):
      output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output

  def _tensor(self, torch, image):
    like = next(iter(self._tensors.values()), None)
    dtype, device = (torch.float32, 'cpu') if like is None else (like.dtype, like.device)
    return torch.tensor(np.array(image), dtype=dtype, device=device)

  def _set(self, torch, variables):
    with torch.no_grad():
      for key, value in variables.items():
        own = self._tensors[key]
        own.copy_(torch.tensor(np.array(value), dtype=own.dtype, device=own.device))


def network(own: Module, *, channels: int, axes: int, why: str) -> networks.Network:
  """Returns a module that is called back as a network; why: it is not exported."""
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  return networks.Network(
    name=own.name,
    variables=own.variables,
    predict=function(own),
    channels=channels,
    shape=(None,) * axes,
    digest=networks.digest_of(own.variables),
    format=FORMAT,
    frozen={key: 'a buffer' for key in own.variables if key not in own.trained},
    notes=(f'PyTorch is called back for every pass, which is slow ({why})',),
  )


def function(own: Module):
  """Returns (variables, image [b, *sides, c]) -> the module's first output, channels last."""
  back = lambda value: np.ascontiguousarray(np.moveaxis(np.asarray(value), -1, 1))
  ahead = lambda value, dtype: np.ascontiguousarray(np.moveaxis(value, 1, -1), dtype)

  def call(run, result, *arguments):
    return jax.pure_callback(run, result, *arguments, vmap_method='sequential')

  def forward(variables, image):
    shape = own.shape((len(image), image.shape[-1], *image.shape[1:-1]))
    result = jax.ShapeDtypeStruct((shape[0], *shape[2:], shape[1]), image.dtype)
    host = lambda variables, image: ahead(own.forward(variables, back(image)), result.dtype)
    return call(host, result, variables, image)

  apply = jax.custom_vjp(forward)

  def ahead_of(variables, image):
    return forward(variables, image), (variables, image)

  def behind(saved, cotangent):
    variables, image = saved
    like = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    def by_image(variables, image, cotangent):
      slope = own.backward(variables, back(image), back(cotangent), by='image')
      return ahead(slope, image.dtype)

    def by_weights(variables, image, cotangent):
      slopes = own.backward(variables, back(image), back(cotangent), by='variables')
      return {key: slopes[key].astype(variables[key].dtype) for key in slopes}

    trained = {key: like(leaf) for key, leaf in variables.items() if key in own.trained}
    # Two calls: the compiler drops the one whose result nobody needs.
    slopes = call(by_weights, trained, variables, image, cotangent) if trained else {}
    slopes = {key: slopes.get(key, jnp.zeros_like(leaf)) for key, leaf in variables.items()}
    return slopes, call(by_image, like(image), variables, image, cotangent)

  apply.defvjp(ahead_of, behind)
  return lambda variables, image: apply(variables, jnp.asarray(image))
