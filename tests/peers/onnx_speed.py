"""Speed of PGD on networks from PyTorch: eager PyTorch against the same network from its ONNX file.

  PYTHONPATH=.:tests .venv-peers/bin/python tests/peers/onnx_speed.py [--steps 4] [--repeats 3]

One thread each, in turn; CPU seconds per gradient, the best of `repeats`. One JSON line a network.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

# Before JAX and PyTorch start their threads.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = '--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1'
if hasattr(os, 'sched_setaffinity'):
  os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np
import torch

import robustmed
from robustmed import attacks
from robustmed import onnx as ours
from robustmed.benchmark import onnx_networks
from support import torch_networks

CHANNELS = {'in_channels': 1, 'out_channels': 2, 'num_res_units': 2}
NETWORKS = {
  'UNet 2D': (
    'UNet',
    {'spatial_dims': 2, 'channels': (16, 32, 64, 128, 256), 'strides': (2,) * 4, **CHANNELS},
    (1, 1, 256, 256),
  ),
  'UNet 3D': (
    'UNet',
    {'spatial_dims': 3, 'channels': (16, 32, 64, 128), 'strides': (2,) * 3, **CHANNELS},
    (1, 1, 48, 48, 48),
  ),
  'SegResNet': (
    'SegResNet',
    {'init_filters': 8, 'in_channels': 1, 'out_channels': 2},
    (1, 1, 48, 48, 48),
  ),
}
EPS, STEP = 0.03, 0.01


def eager(module, image, labels, steps):
  """Returns the image after PGD in PyTorch."""
  x = image.clone()
  for _ in range(steps):
    x.requires_grad_()
    loss = torch.nn.functional.cross_entropy(module(x), labels, reduction='sum')
    (gradient,) = torch.autograd.grad(loss, x)
    x = x.detach() + STEP * gradient.sign()
    x = torch.maximum(torch.minimum(x, image + EPS), image - EPS)
  return x


def compiled(graph, labels, steps):
  """Returns the jitted (variables, image) -> image after PGD on a graph."""
  attack = attacks.pgd(num_steps=steps, step_size=STEP, random_start=False, score_last=False)

  def run(variables, image):
    objective = lambda x: onnx_networks.cross_entropy(graph, variables, x, labels)
    return attack(objective, image, eps=EPS, key=jax.random.key(0)).x

  return jax.jit(run)


def cpu_seconds(run):
  """CPU time of one call."""
  start = time.process_time()
  jax.block_until_ready(run())
  return time.process_time() - start


def measure(name, *, steps, repeats):
  """Returns the row of a network."""
  module, shape = torch_networks.make(name)
  for parameter in module.parameters():
    parameter.requires_grad_(False)
  image = torch.randn(shape)
  labels = torch.randint(0, 2, (shape[0], *shape[2:]))
  with tempfile.TemporaryDirectory() as folder:
    path = str(pathlib.Path(folder) / 'network.onnx')
    torch_networks.export(module, image, path)
    graph = ours.load(path)
  variables, start = jax.device_put(dict(graph.variables)), jnp.asarray(image.numpy())
  run = compiled(graph, jnp.asarray(labels.numpy()), steps)
  theirs = lambda: eager(module, image, labels, steps).numpy()
  first = np.abs(np.asarray(run(variables, start)) - theirs()) < 1e-6
  pairs = [
    (cpu_seconds(lambda: run(variables, start)), cpu_seconds(theirs)) for _ in range(repeats)
  ]
  best, other = (min(times) / steps for times in zip(*pairs))
  return {
    'network': name,
    'image': list(shape),
    'steps': steps,
    'ours': round(best, 4),
    'pytorch': round(other, 4),
    'ratio': round(other / best, 2),
    'equal_pixels': round(float(first.mean()), 4),  # gradients near 0 may differ in sign
  }


def main():
  """Measures every network."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--steps', type=int, default=4)
  parser.add_argument('--repeats', type=int, default=3)
  given = parser.parse_args()
  robustmed.tune_cpu()
  torch.set_num_threads(1)
  torch_networks.NETWORKS.update(NETWORKS)
  for name in NETWORKS:
    print(json.dumps(measure(name, steps=given.steps, repeats=given.repeats)), flush=True)


if __name__ == '__main__':
  main()
