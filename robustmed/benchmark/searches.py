"""Timed workloads of whole searches: an ensemble, a sweep over levels, a volume in windows.

Each row has the CPU seconds of all threads beside the wall time, which other processes change, and
the largest memory that the process ever had: run one workload per process to read it.
"""

import functools
import resource
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from robustmed import attacks
from robustmed.models import nnunet
from robustmed.process import parallel
from robustmed.tasks import dense_objectives, segmentation, sliding

LEVELS = (2.0, 5.0, 10.0, 20.0)
BROKEN = -0.5  # minus the Dice
_OBJECTIVES = {
  'ce': segmentation.cross_entropy,
  'dice': segmentation.dice,
  'masked_ce': dense_objectives.masked_cross_entropy,
}


class Clock:
  """The wall and CPU seconds inside its `with` block."""

  def __enter__(self):
    self._start = time.perf_counter(), time.process_time()
    return self

  def __exit__(self, *_):
    self.wall = round(time.perf_counter() - self._start[0], 3)
    self.cpu = round(time.process_time() - self._start[1], 3)


def peak_gib() -> float:
  """Returns the largest resident memory that this process ever had."""
  unit = 1 if sys.platform == 'darwin' else 2**10
  return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)


def _row(name, batch, steps, *, clock, first, **more) -> dict[str, Any]:
  return {
    'workload': name,
    'batch': batch,
    'steps': steps,
    'seconds': clock.wall,
    'cpu_seconds': clock.cpu,
    'compile_seconds': round(max(first.wall - clock.wall, 0.0), 3),
    'peak_gib': peak_gib(),
    'device': parallel.describe()['device'],
    **more,
  }


def _hippocampus(batch, steps, width):
  """Three members of `steps` steps on the nnU-Net for the hippocampus, right on every pixel."""
  module = nnunet.NnUNet(num_classes=3, strides=(2, 2, 2), width=width)
  task = segmentation.make(module, image_shape=(56, 40, 1), classes=('anterior', 'posterior'))
  keys = jax.random.split(jax.random.key(0), 2)
  variables = task.init(keys[1])
  image = jax.random.normal(keys[0], (batch, *task.image_shape))
  labels = jnp.argmax(task.predict(variables, image)['head0'], -1).astype(jnp.int32)
  members = [
    attacks.Member(name, attacks.apgd(norm='l2', num_steps=steps, select='monitor'), objective)
    for name, objective in _OBJECTIVES.items()
  ]
  badness = lambda outputs, batch: -task.metrics(outputs, batch)['DICE']
  made = attacks.Ensemble(task.predict, tuple(members), badness)
  return made, variables, {'image': image, 'target': {'labels': labels}}


def _twice(run):
  """The clocks of a first call, which compiles, and of a second one; and its result."""
  with Clock() as first:
    jax.block_until_ready(run())
  with Clock() as second:
    found = run()
    jax.block_until_ready(found)
  return first, second, found


def measure_ensemble(*, name, batch, steps, repeats, width):
  """Times the worst of three members at the largest level, and the robust share at a Dice of 1/2.

  robust_passes: what `robust` computes, by what all members one by one would.
  """
  del repeats
  made, variables, data = _hippocampus(batch, steps, width)
  told = {'eps': LEVELS[-1], 'key': jax.random.key(0)}
  worst = jax.jit(functools.partial(made.worst, **told))
  first, second, _ = _twice(lambda: worst(variables, data))
  robust = lambda: made.robust(variables, data, **told, broken_at=BROKEN)
  _, alone, found = _twice(robust)
  return _row(
    name,
    batch,
    steps,
    clock=second,
    first=first,
    members=len(made.members),
    robust_seconds=alone.wall,
    robust_cpu_seconds=alone.cpu,
    robust_passes=round(found.passes / found.full, 3),
    robust_share=found.share,
  )


def measure_sweep(*, name, batch, steps, repeats, width):
  """Times the search at four levels where each level also takes what lower ones found.

  over_levels: its CPU seconds by those of as many searches of one level.
  """
  del repeats
  made, variables, data = _hippocampus(batch, steps, width)
  key = jax.random.key(0)
  run = lambda levels: made.sweep(variables, data, levels=levels, key=key)
  first, whole, _ = _twice(lambda: run(LEVELS))
  _, one, _ = _twice(lambda: run(LEVELS[-1:]))
  share = round(whole.cpu / (len(LEVELS) * one.cpu), 3)
  more = {'members': len(made.members), 'levels': len(LEVELS), 'over_levels': share}
  return _row(name, batch, steps, clock=whole, first=first, **more)


def measure_volume(*, name, batch, steps, repeats, width, size):
  """Times PGD on a volume of 3 x 3 x 2 windows' sides, by the gradient of the deployed predictor.

  nnU-Net in 3D with 32 * width features, windows of `size`^3 half a window apart, Gaussian weights,
  no mirror images, which would take time and no memory. temporary_gib: what the compiled program
  says it needs beside its arguments and results.
  """
  del repeats
  shape, patch = (3 * size, 3 * size, 2 * size, 1), (size,) * 3
  module = nnunet.NnUNet(num_classes=3, strides=((2, 2, 2),) * 4, width=width)
  task = segmentation.make(module, image_shape=(*patch, 1), classes=('one', 'two'))
  whole = sliding.with_sliding_window(task, image_shape=shape, patch=patch, mirror=False)
  keys = jax.random.split(jax.random.key(0), 3)
  variables = task.init(keys[0])
  image = jax.random.normal(keys[1], (batch, *shape))
  labels = jax.random.randint(keys[2], image.shape[:-1], 0, 3)
  attack = attacks.pgd(num_steps=steps, random_start=False, score_last=False)

  def attacked(variables, image, labels):
    target = {'target': {'labels': labels}}
    objective = lambda x: whole.objectives['dice'](whole.predict(variables, x), target)
    return attack(objective, image, eps=0.1, key=keys[0]).x

  with Clock() as compiling:
    program = jax.jit(attacked).lower(variables, image, labels).compile()
  temporary = program.memory_analysis().temp_size_in_bytes / 2**30
  with Clock() as clock:
    jax.block_until_ready(program(variables, image, labels))
  compiling.wall += clock.wall  # as where the first call compiles
  return _row(
    name,
    batch,
    steps,
    clock=clock,
    first=compiling,
    volume='x'.join(map(str, shape[:-1])),
    windows=len(sliding.starts(shape[:-1], patch)),
    temporary_gib=round(temporary, 3),
  )
