"""Times our attacks against PyTorch's, in turn on the same machine; writes a CSV file.

  python tests/peers/speed.py spine hippo brats3d ceph bccd --rounds 5 --out speed.csv

Every workload has two processes, ours and PyTorch's, that wait for each other: per round each runs
its attack once. The figure is the median over the rounds of gradients per second; PyTorch runs in
the faster of its two memory layouts (or compiled, with --compile). --isa AVX2 keeps both to the
instructions of AVX2. Needs the environment of `launch/test.sh --peers`; nothing else should run on
the machine.
"""

import argparse
import csv
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = ('spine', 'hippo', 'brats3d', 'ceph', 'bccd')


def attack_of(name, args):
  """Returns (number of gradients, our attack under jit, its arguments)."""
  from robustmed.process import cpu_flags

  cpu_flags.tune()  # as robustmed.main does, before JAX starts
  import jax
  import jax.numpy as jnp

  from robustmed.benchmark import problems, workloads

  workload = workloads.WORKLOADS[name]
  sized = {'size': args.size} if workload.sized else {}
  problem = getattr(problems, name)(args.batch or workload.batch, args.width, **sized)
  steps = args.steps or workload.steps
  attack = problem.attack(steps)

  @jax.jit
  def attacked(variables, image, target, eps, key):
    return attack(lambda x: problem.objective(variables, x, target), image, eps=eps, key=key).x

  data = problem.variables, problem.image, problem.target, jnp.float32(problem.levels[3])
  return steps * len(problem.image), attacked, (*data, jax.random.key(0))


def _ours(name, args):
  """Returns (number of gradients, run once)."""
  count, attacked, data = attack_of(name, args)
  return count, lambda: attacked(*data).block_until_ready()


def _soft_dice(probability, target, axes):
  both = (probability * target).sum(axes)
  return 1 - (2 * both + 1e-5) / (probability.sum(axes) + target.sum(axes) + 1e-5)


def _problem(name, args):
  """Returns (network, image, loss of outputs, settings of the attack)."""
  import torch
  import torch_networks as networks
  from torch.nn import functional as F

  size = args.size
  shape = {
    'spine': (8, 1, 128, 128),
    'hippo': (32, 1, 56, 40),
    'brats3d': (1, 4, size, size, size),
    'ceph': (1, 3, 160, 128),
    'bccd': (2, 3, 256, 320),
  }[name]
  image = torch.rand(args.batch or shape[0], *shape[1:])
  labels = torch.randint(0, {'hippo': 3, 'brats3d': 4}.get(name, 2), (len(image), *shape[2:]))
  binary = F.binary_cross_entropy_with_logits
  l2 = {'norm': 'l2', 'eps': 10.0, 'step': 2.0, 'bounds': None, 'steps': 20}
  if name == 'spine':
    mask = labels[:, None].float()

    def loss(outputs):
      seg = outputs[1]
      dice = _soft_dice(seg.sigmoid(), mask, (1, 2, 3))
      return (binary(seg, mask, reduction='none').mean((1, 2, 3)) + dice).sum() / 2

    settings = {'norm': 'linf', 'eps': 0.07, 'step': 0.01, 'bounds': (0, 1), 'steps': 20}
    return networks.ShapeNet(), image, loss, settings
  onehot = F.one_hot(labels).movedim(-1, 1).float()
  if name == 'hippo':
    net = networks.NnUNet2D([32, 64, 128, 256], 3)

    def loss(outputs):
      dice = _soft_dice(outputs.softmax(1)[:, 1:], onehot[:, 1:], (2, 3)).mean(1)
      return (F.cross_entropy(outputs, labels, reduction='none').mean((1, 2)) + dice).sum()

    return net, image, loss, l2
  if name == 'brats3d':
    loss = lambda o: _soft_dice(o.softmax(1)[:, 1:], onehot[:, 1:], (2, 3, 4)).mean(1).sum()
    settings = {'norm': 'linf', 'eps': 0.05, 'step': 0.05, 'bounds': (0, 1), 'steps': 1}
    return networks.ResUNet3D(), image, loss, settings
  if name == 'ceph':
    mask = (torch.rand(len(image), 19, *shape[2:]) > 0.99).float()

    def loss(outputs):
      return _soft_dice(outputs[:, :19].sigmoid(), mask, (2, 3)).mean(1).sum() / 2

    return networks.LandmarkUNet(), image, loss, l2

  def loss(outputs):
    total = 0.0
    for map, weight in zip(outputs, (4.0, 1.0, 0.4), strict=True):
      objectness = map.unflatten(1, (3, -1))[:, :, 4]
      total = total + weight * binary(objectness, torch.zeros_like(objectness))
    return total * len(image)

  return networks.Yolo(), image, loss, l2


def _attacked(net, loss, clean, *, norm, eps, step, bounds, steps):
  import torch

  x = clean.clone()
  if norm == 'linf' and steps > 1:
    x = x + torch.empty_like(x).uniform_(-eps, eps)
  for _ in range(steps):
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(net(x)), x)
    with torch.no_grad():
      if norm == 'linf':
        x = x + step * gradient.sign()
        x = torch.min(torch.max(x, clean - eps), clean + eps)
      else:
        size = lambda t: t.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (t.dim() - 1))
        moved = x + step * gradient / size(gradient) - clean
        x = clean + moved * (eps / size(moved)).clamp_max(1.0)
      if bounds:
        x = x.clamp(*bounds)
  return x.detach()


def _theirs(name, args):
  """Returns (number of gradients, run once), in the faster memory layout."""
  import torch

  net, image, loss, settings = _problem(name, args)
  settings['steps'] = args.steps or settings['steps']
  net = net.eval().requires_grad_(False)
  last = torch.channels_last_3d if image.dim() == 5 else torch.channels_last
  runs = []
  for layout in (torch.contiguous_format, last):
    moved = net.to(memory_format=layout)
    called = torch.compile(moved) if args.compile else moved
    run = functools.partial(_attacked, called, loss, image.to(memory_format=layout), **settings)
    run()
    start = time.perf_counter()
    run()
    runs.append((time.perf_counter() - start, layout, run))
  _, layout, run = min(runs, key=lambda one: one[0])
  net.to(memory_format=layout)
  return settings['steps'] * len(image), run


def _serve(side, name, args):
  """Says the number of gradients, then for every line on stdin the seconds of one run."""
  count, run = {'ours': _ours, 'theirs': _theirs}[side](name, args)
  run()
  print(json.dumps(count), flush=True)
  for _ in sys.stdin:
    start = time.perf_counter()
    run()
    print(json.dumps(time.perf_counter() - start), flush=True)


def _started(side, name, words, isa):
  env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests' / 'peers')])}
  if isa:
    flags = f'{env.get("XLA_FLAGS", "")} --xla_cpu_max_isa={isa} --xla_cpu_prefer_vector_width=256'
    env |= {'XLA_FLAGS': flags, 'ATEN_CPU_CAPABILITY': isa.lower(), 'ONEDNN_MAX_CPU_ISA': isa}
  return subprocess.Popen(
    [sys.executable, __file__, name, '--side', side, *words],
    env=env,
    text=True,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )


def _asked(process, question=None):
  if question is not None:
    process.stdin.write(question)
    process.stdin.flush()
  answer = process.stdout.readline()
  if not answer:
    raise SystemExit(f'{" ".join(process.args[2:5])} ended with exit code {process.wait()}')
  return json.loads(answer)


def compare(name, args, words):
  """Returns the row of one workload: medians and ranges of both sides, and their quotient."""
  sides = {side: _started(side, name, words, args.isa) for side in ('ours', 'theirs')}
  try:
    counts = {side: _asked(process) for side, process in sides.items()}
    rates = {side: [] for side in sides}
    for _ in range(args.rounds):
      for side, process in sides.items():
        rates[side].append(counts[side] / _asked(process, 'run\n'))
  finally:
    for process in sides.values():
      process.kill()
      process.wait()
  row = {'workload': name, 'isa': args.isa or 'all', 'rounds': args.rounds}
  for side, found in rates.items():
    row[side] = f'{statistics.median(found):.4g}'
    row[f'{side} low'], row[f'{side} high'] = f'{min(found):.4g}', f'{max(found):.4g}'
  pairs = [a / b for a, b in zip(rates['ours'], rates['theirs'], strict=True)]
  return {**row, 'quotient': f'{statistics.median(pairs):.2f}'}


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('workloads', nargs='+', choices=NAMES)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--size', type=int, default=48, help='side of the cubes of brats3d')
  parser.add_argument('--batch', type=int, default=0)
  parser.add_argument('--steps', type=int, default=0)
  parser.add_argument('--width', type=float, default=1.0, help='of ours; a comparison needs 1')
  parser.add_argument('--compile', action='store_true', help="torch.compile PyTorch's network")
  parser.add_argument('--isa', default='', choices=('', 'AVX2'))
  parser.add_argument('--out', type=pathlib.Path)
  parser.add_argument('--side', choices=('ours', 'theirs'), help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.side:
    _serve(args.side, args.workloads[0], args)
    return
  words = [f'--{key}={getattr(args, key)}' for key in ('size', 'batch', 'steps', 'width')]
  words += ['--compile'] * args.compile
  rows = []
  for name in args.workloads:
    rows.append(compare(name, args, words))
    print(json.dumps(rows[-1]), flush=True)
    if args.out:
      with args.out.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == '__main__':
  main()
