"""Measures the speed of attacks: timed workloads, each printed as one JSON line."""

import contextlib
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from robustmed import attacks, errors
from robustmed.benchmark import onnx_networks, problems, scaling, searches
from robustmed.ops import conv
from robustmed.process import files, parallel


class Workload(NamedTuple):
  """A measurement and its default size."""

  batch: int
  steps: int
  measure: Callable[..., dict[str, Any]]  # (name, batch, steps, repeats, width) -> row
  sized: bool = False  # `measure` takes config.size too
  typed: bool = False  # `measure` takes config.dtype too


class Compilations:
  """Counts the XLA compilations of functions of a given name inside its `with` block."""

  _active: list['Compilations'] = []  # noqa: RUF012
  _listening = False

  def __init__(self, name):
    self.count, self._name = 0, f'jit({name})'

  def __enter__(self):
    if not Compilations._listening:
      # Listeners cannot be removed, so a single one serves all counters.
      jax.monitoring.register_event_duration_secs_listener(Compilations._on_event)
      Compilations._listening = True
    Compilations._active.append(self)
    return self

  def __exit__(self, *_):
    Compilations._active.remove(self)

  @staticmethod
  def _on_event(event, duration, **facts):
    for counter in Compilations._active:
      if event.endswith('/backend_compile_duration') and facts.get('fun_name') == counter._name:
        counter.count += 1


def seconds(run, *args):
  """Wall time of one call, until its results are there."""
  start = time.perf_counter()
  jax.block_until_ready(run(*args))
  return time.perf_counter() - start


def measure_attack(make, *, name, batch, steps, repeats, width, **more):
  """Times the attack of `make(batch, width, **more)` and compares it with bare input gradients.

  loop_overhead: median over repeats of (attack's time) / (time of `steps` gradients, each its own
  jitted call), measured alternately. grads_per_s: gradients times examples, in the fastest attack.
  compilations: of a sweep over six levels of eps.
  """
  problem = make(batch, width, **more)
  attack = problem.attack(steps)
  key = jax.random.key(0)

  def attacked(variables, image, target, eps, key):
    objective = lambda image: problem.objective(variables, image, target)
    return attack(objective, image, eps=eps, key=key).x

  def gradient(variables, image, target):
    total = lambda image: jnp.sum(problem.objective(variables, image, target))
    return jax.value_and_grad(total)(image)

  attacked, gradient = jax.jit(attacked), jax.jit(gradient)
  data = (problem.variables, problem.image, problem.target)
  levels = itertools.cycle(problem.levels)
  run = lambda: seconds(attacked, *data, next(levels), key)
  bare = lambda: sum(seconds(gradient, *data) for _ in range(steps))
  with Compilations('attacked') as compilations:
    first = run()
    seconds(gradient, *data)
    pairs = [(run(), bare()) for _ in range(repeats)]
    rest = [run() for _ in range(len(problem.levels) - 1 - repeats)]
  best = min([*(time for time, _ in pairs), *rest])
  return {
    'workload': name,
    'batch': batch,
    'steps': steps,
    'seconds': round(best, 4),
    'grads_per_s': round(batch * steps / best, 3),
    'loop_overhead': round(statistics.median(ours / base for ours, base in pairs), 4),
    'compilations': compilations.count,
    'compile_seconds': round(max(first - best, 0.0), 3),
    'device': parallel.describe()['device'],
  }


def measure_small_grids(*, name, batch, steps, repeats, width):
  """Forward and input gradient of a 3x3 convolution on grids of 1, 2 and 4 pixels a side.

  `steps` rounds inside one `fori_loop`, as in an attack. The row also has gflop_per_s = {grid:
  {'ours': ..., 'lax': ...}}, the best of `repeats`, counting the taps outside of the grid too;
  `seconds`, `grads_per_s` and `loop_overhead` are those of `ours` over all three grids.
  """
  channels = max(8, round(1024 * width))
  kernel = jax.random.normal(jax.random.key(0), (3, 3, channels, channels)) / channels
  forms = {
    'ours': functools.partial(conv.conv, padding=1),
    'lax': lambda x, kernel: lax.conv_general_dilated(
      x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    ),
  }

  def round_trip(form, x, kernel):
    # The output, unlike a constant, must be computed for its gradient.
    return x + 1e-3 * jax.grad(lambda x: jnp.sum(jnp.sin(form(x, kernel))))(x)

  speeds, looped, bare, compile_seconds, compilations = {}, 0.0, 0.0, 0.0, 0
  for side in (1, 2, 4):
    x = jax.random.normal(jax.random.key(side), (batch, side, side, channels))
    flops = 2 * 2 * batch * side * side * 9 * channels * channels
    grid = speeds[f'{side}x{side}'] = {}
    for label, form in forms.items():
      once = functools.partial(round_trip, form)

      def rounds(x, kernel, once=once):
        return lax.fori_loop(0, steps, lambda _, x: once(x, kernel), x)

      rounds, single = jax.jit(rounds), jax.jit(lambda x, kernel, once=once: once(x, kernel))
      with Compilations('rounds') as counter:
        first = seconds(rounds, x, kernel)
        seconds(single, x, kernel)
        pairs = [
          (seconds(rounds, x, kernel), sum(seconds(single, x, kernel) for _ in range(steps)))
          for _ in range(repeats)
        ]
      best = min(ours for ours, _ in pairs)
      grid[label] = round(steps * flops / best / 1e9, 2)
      if label == 'ours':
        looped, bare = looped + best, bare + min(base for _, base in pairs)
        compile_seconds += max(first - best, 0.0)
        compilations += counter.count
  return {
    'workload': name,
    'batch': batch,
    'steps': steps,
    'seconds': round(looped, 4),
    'grads_per_s': round(len(speeds) * batch * steps / looped, 3),
    'loop_overhead': round(looped / bare, 4),
    'compilations': compilations,
    'compile_seconds': round(compile_seconds, 3),
    'device': parallel.describe()['device'],
    'gflop_per_s': speeds,
  }


def _imported(label, size, batch, width):
  """PGD Linf on a network of `onnx_networks`, cross-entropy summed over the pixels."""
  graph, image, labels = onnx_networks.make(label, size=size, batch=batch, width=width)
  objective = functools.partial(onnx_networks.cross_entropy, graph)
  attack = lambda steps: attacks.pgd(num_steps=steps, step_size=0.01, score_last=False)
  return problems.Problem(jax.device_put(dict(graph.variables)), image, labels, objective, attack)


def measure_onnx(*, name, batch, steps, repeats, width, size):
  """Attacks graphs imported from ONNX: 2D and 3D U-Net, SegResNet.

  The row also has `grads_per_s` of each in `networks`; `seconds`, `compile_seconds` and
  `compilations` are sums, `grads_per_s` and `loop_overhead` the worst.
  """
  settings = {'batch': batch, 'steps': steps, 'repeats': repeats, 'width': width}
  rows = {
    label: measure_attack(functools.partial(_imported, label, size), name=label, **settings)
    for label in onnx_networks.NETWORKS
  }
  total = lambda field: round(sum(row[field] for row in rows.values()), 4)
  return {
    'workload': name,
    'batch': batch,
    'steps': steps,
    'seconds': total('seconds'),
    'grads_per_s': min(row['grads_per_s'] for row in rows.values()),
    'loop_overhead': max(row['loop_overhead'] for row in rows.values()),
    'compilations': total('compilations'),
    'compile_seconds': total('compile_seconds'),
    'device': parallel.describe()['device'],
    'networks': {label: row['grads_per_s'] for label, row in rows.items()},
  }


WORKLOADS = {
  'spine': Workload(8, 20, functools.partial(measure_attack, problems.spine), typed=True),
  'hippo': Workload(32, 20, functools.partial(measure_attack, problems.hippo), typed=True),
  'brats3d': Workload(1, 1, functools.partial(measure_attack, problems.brats3d), True, typed=True),
  'ceph': Workload(1, 20, functools.partial(measure_attack, problems.ceph), typed=True),
  'bccd': Workload(2, 20, functools.partial(measure_attack, problems.bccd), typed=True),
  'small_grids': Workload(batch=8, steps=5, measure=measure_small_grids),
  'onnx': Workload(1, 10, measure_onnx, sized=True),
  'scaling': Workload(batch=1, steps=2, measure=scaling.measure),
  'ensemble': Workload(batch=16, steps=10, measure=searches.measure_ensemble),
  'sweep': Workload(batch=16, steps=10, measure=searches.measure_sweep),
  'volume': Workload(1, 1, searches.measure_volume, sized=True),
}


def _chosen(config):
  chosen = [config.workloads] if isinstance(config.workloads, str) else config.workloads
  return [name.strip() for words in chosen for name in words.split(',')]


def describe(config):
  """What `--stage describe` prints: the workloads and their sizes; measures nothing."""
  return {
    'experiment': 'benchmark',
    'workloads': {
      name: {
        'batch': config.batch or WORKLOADS[name].batch,
        'steps': config.steps or WORKLOADS[name].steps,
      }
      for name in _chosen(config)
    },
  }


def run(config, workdir=None):
  """Measures `config.workloads` one after the other; prints and returns their rows.

  With a workdir the rows are also written to its benchmark.json.
  """
  names = _chosen(config)
  workloads = [errors.lookup(WORKLOADS, name, kind='workload') for name in names]
  if config.batch < 0 or config.steps < 0 or config.repeats < 1 or not 0 < config.width <= 1:
    raise errors.UserError(
      "a benchmark needs batch >= 0, steps >= 0 (0: the workload's own), repeats >= 1 and "
      '0 < width <= 1'
    )
  if config.size < 16 or config.size % 16:
    raise errors.UserError(f'a benchmark needs a size that is a multiple of 16, not {config.size}')
  types = {'float32': None, 'bfloat16': jnp.bfloat16}
  dtype = errors.lookup(types, config.dtype, kind='type of numbers')
  untyped = [name for name in names if not WORKLOADS[name].typed]
  if dtype and untyped:
    raise errors.UserError(f'the workload {untyped[0]} has no other dtype than float32')
  rows = []
  with _no_cache():
    for name, workload in zip(names, workloads, strict=True):
      row = workload.measure(
        name=name,
        batch=config.batch or workload.batch,
        steps=config.steps or workload.steps,
        repeats=config.repeats,
        width=config.width,
        **({'size': config.size} if workload.sized else {}),
        **({'dtype': dtype} if dtype else {}),
      )
      if dtype:
        row['dtype'] = config.dtype
      print(json.dumps(row), flush=True)
      rows.append(row)
  if workdir is not None:
    files.write_json(workdir / 'benchmark.json', rows)
  return rows


@contextlib.contextmanager
def _no_cache():
  """Turns off the persistent cache: `compile_seconds` must measure compilation, not a read."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
