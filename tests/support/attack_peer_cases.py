"""A small network with the same weights in PyTorch and in JAX, on which attacks are compared."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

COUNT, SIDE, CLASSES = 64, 10, 5  # Square in L2 wants a multiple of 5
EPS = {  # by kind of network and norm: levels that break some of the images
  'classes': {'linf': 0.02, 'l2': 0.3},
  'pixels': {'linf': 0.03, 'l2': 0.4},
}


def _weights(kind):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
  return {
    'first': 3 * draw(8, 3, 3, 3),
    'second': 3 * draw(12, 8, 3, 3),
    'dense': (6 if kind == 'classes' else 8) * draw(CLASSES, 12),
  }


class Network(torch.nn.Module):
  """Two convolutions, and a dense layer on the mean over pixels or, kind 'pixels', on each pixel.

  Attacks of classes take the labelling of an image as one decision of two: logits (0, z), whose
  cross-entropy with class 0 is the mean cross-entropy of the pixels with `labels` [h, w].
  """

  def __init__(self, weights, kind):
    super().__init__()
    for name, value in weights.items():
      self.register_parameter(name, torch.nn.Parameter(torch.tensor(value)))
    self.kind, self.shift, self.labels = kind, 0.0, None

  def raw(self, x):
    for name in ('first', 'second'):
      x = functional.pad(x, (1, 1, 1, 1), mode='circular')
      x = functional.softplus(functional.conv2d(x, getattr(self, name)), 5.0)
    x = (x * x).mean((2, 3)) if self.kind == 'classes' else x - x.mean((2, 3), keepdim=True)
    return torch.einsum('nc...,kc->nk...', x, self.dense) - self.shift

  def forward(self, x):
    logits = self.raw(x)
    if self.kind == 'classes':
      return logits
    wanted = self.labels.expand(len(x), *self.labels.shape)
    entropy = functional.cross_entropy(logits, wanted, reduction='none').mean((1, 2))
    z = torch.log(torch.expm1(entropy))
    return torch.stack([torch.zeros_like(z), z], 1)


def _predict(weights, x, kind):
  """The logits of x [b, h, w, 3], [b, k] or [b, h, w, k]; convolutions as matrix products."""
  places = [(i, j) for i in range(3) for j in range(3)]
  for name in ('first', 'second'):
    taps = jnp.concatenate([weights[name][:, :, i, j] for i, j in places], 1)
    moved = jnp.concatenate([jnp.roll(x, (1 - i, 1 - j), (1, 2)) for i, j in places], -1)
    x = (moved.reshape(-1, moved.shape[-1]) @ taps.T).reshape(*x.shape[:3], -1)
    x = jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-5 * jnp.abs(x))) / 5
  x = jnp.mean(x * x, (1, 2)) if kind == 'classes' else x - jnp.mean(x, (1, 2), keepdims=True)
  return jnp.einsum('b...c,kc->b...k', x, weights['dense'])


class Case:
  """The network in both libraries, and images whose labels it finds.

  image [b, h, w, 3] and x [b, 3, h, w] are the same images; y [b] the classes that `module` must
  be led away from: of an image, or 0 where the decision is about its pixels.
  """

  def __init__(self, kind, dtype=np.float32):
    weights = {name: value.astype(dtype) for name, value in _weights(kind).items()}
    rng = np.random.default_rng(1)
    image = rng.uniform(size=(COUNT, SIDE, SIDE, 3))
    if kind == 'pixels':  # images of one anatomy, which have one label map
      image = rng.uniform(size=(SIDE, SIDE, 3)) + 0.1 * (image - 0.5)
    image = np.clip(image, 0, 1).astype(dtype)
    self.kind, self.eps = kind, EPS[kind]
    self.module = Network(weights, kind).eval()
    self.weights = {name: jnp.asarray(value) for name, value in weights.items()}
    self.image, self.x = jnp.asarray(image), torch.tensor(np.moveaxis(image, -1, 1).copy())
    with torch.no_grad():
      raw = self.module.raw(self.x)
      if kind == 'classes':  # centred, so that all classes occur
        self.module.shift = raw.mean(0)
        self.y = self.module(self.x).argmax(1)
        self.labels = jnp.asarray(self.y.numpy())
      else:
        self.module.labels = raw.mean(0).argmax(0)
        self.y = torch.zeros(COUNT, dtype=torch.long)
        self.labels = jnp.asarray(self.module.labels.numpy())[None].repeat(COUNT, 0)
      self.clean = self.module(self.x).numpy()
    self.shift = jnp.asarray(self.module.shift.numpy()) if kind == 'classes' else 0.0

  def objective(self, x):
    """The cross-entropy, of an image with pixels their mean, [b]."""
    log_p = jax.nn.log_softmax(self._logits(x))
    own = -jnp.take_along_axis(log_p, self.labels[..., None], axis=-1)[..., 0]
    return jnp.mean(own, axis=tuple(range(1, own.ndim)))

  def margin(self, x):
    """Best wrong logit of the module less the right one, [b]: above 0 the decision is wrong."""
    if self.kind == 'pixels':
      return jnp.log(jnp.expm1(self.objective(x)))
    logits = self._logits(x)
    true = self.labels[:, None] == jnp.arange(CLASSES)[None]
    own = jnp.sum(jnp.where(true, logits, 0), -1)
    return jnp.max(jnp.where(true, -jnp.inf, logits), -1) - own

  def margin_to(self, x, target):
    """The logit of a class less that of the right one, [b]; -1 where both are the same."""
    logits = self._logits(x)
    own = jnp.take_along_axis(logits, self.labels[:, None], axis=-1)[:, 0]
    other = jnp.take(logits, target, axis=-1)
    return jnp.where(self.labels == target, -1.0, other - own)

  def broken(self, x):
    return self.margin(x) > 0

  def _logits(self, x):
    logits = _predict(self.weights, x, self.kind)
    return logits - jnp.reshape(self.shift, (1,) * (logits.ndim - 1) + (-1,))


def theirs(x):
  """Images [b, 3, h, w] of PyTorch or NumPy as [b, h, w, 3]."""
  x = x.detach().numpy() if isinstance(x, torch.Tensor) else x
  return np.moveaxis(x, 1, -1)


def timed(function, *given):
  """The result of a call and its CPU seconds."""
  begin = time.process_time()
  found = jax.block_until_ready(function(*given))
  return found, time.process_time() - begin


def length(change, norm):
  """The norm of changes [b, ...], [b]."""
  change = np.asarray(change, np.float64).reshape(len(change), -1)
  return np.abs(change).max(1) if norm == 'linf' else np.sqrt((change**2).sum(1))
