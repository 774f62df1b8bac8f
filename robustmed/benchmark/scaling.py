"""How a run scales over devices: equal results, no collectives in attacks, bytes per train step.

The workload `scaling` of the benchmark. Every device count is a process of its own with as many
virtual CPU devices. What is counted is read from the compiled programs and does not depend on the
hardware; times on virtual devices would mean nothing and are not reported.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import attacks, errors
from robustmed.defenses import adversarial
from robustmed.evaluation import grid
from robustmed.models import disk_shape
from robustmed.process import cpu_flags, parallel
from robustmed.runs.compilation import hlo
from robustmed.tasks import shape
from robustmed.training import optimisers, step
from robustmed.training import state as train_state

COUNTS = (1, 2, 4, 8)
SIDE = 128


def efficiency(*, seconds: float, reduced_bytes: float, devices: int, link: float) -> float:
  """Predicted weak-scaling efficiency: the share of perfect scaling at a fixed batch per device.

  seconds: one step's computation on one device. link: bytes per second that a device sends. A ring
  all-reduce sends 2 (n - 1) / n of the bytes and does not overlap with the computation.
  """
  communication = 2 * (devices - 1) / devices * reduced_bytes / link
  return seconds / (seconds + communication)


def measure(*, name: str, batch: int, steps: int, repeats: int, width: float) -> dict[str, Any]:
  """PGD and adversarial training of the disk-shape network on 1, 2, 4 and 8 virtual devices.

  batch: examples per device. `devices` of the row has, for every count, the `hlo.Collectives` of
  the attack's and of the train step's program, whether the attacked images equal those of one
  device bit for bit, and the first two losses of a training on the same global batch.
  """
  del repeats
  begin, rows = time.perf_counter(), {}
  for count in COUNTS:
    spec = {'batch': batch, 'steps': steps, 'width': width, 'side': SIDE, 'total': max(COUNTS)}
    rows[str(count)] = _child({'count': count, **spec})
  first = rows['1']['attacked']
  for row in rows.values():
    row['equal'] = row.pop('attacked') == first
  return {
    'workload': name,
    'batch': batch,
    'steps': steps,
    'seconds': round(time.perf_counter() - begin, 1),
    'devices': rows,
  }


def _child(spec: dict[str, Any]) -> dict[str, Any]:
  flags = re.sub(r'--xla_force_host_platform_device_count=\d+', '', os.environ.get('XLA_FLAGS', ''))
  flags = f'{flags} --xla_force_host_platform_device_count={spec["count"]}'.strip()
  environment = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
  environment.pop('NPROC', None)
  words = [sys.executable, '-m', 'robustmed.benchmark.scaling', json.dumps(spec)]
  done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=False)
  if done.returncode:
    raise errors.UserError(
      f'the measurement on {spec["count"]} virtual devices ended with {done.returncode}, see above'
    )
  return json.loads(done.stdout.splitlines()[-1])


def on_these_devices(
  *, batch: int, steps: int, width: float, side: int, total: int
) -> dict[str, Any]:
  """The row of this process's devices; `batch` examples on each, total * batch in all."""
  task = shape.make(disk_shape.DiskShapeNet(side=side, width=width), side=side)
  whole = _examples(batch * total, side)
  attack = attacks.pgd(
    norm='linf', num_steps=steps, step_size=0.01, bounds=(0.0, 1.0), score_last=False
  )
  program = grid.attack_program(task, grid.Probe(attack, 'train_seg', (0.07,)))
  variables, here = jax.jit(task.init)(jax.random.key(2)), batch * parallel.local_device_count()
  part = lambda start: jax.tree.map(lambda leaf: leaf[start : start + here], whole)
  rest = (jnp.full(here, 0.07, jnp.float32), jax.random.key(3))
  attacked = hashlib.sha256()
  for start in range(0, len(whole['mask']), here):
    attacked.update(np.asarray(program(variables, part(start), *rest)[0]).tobytes())
  attack_collectives = hlo.collectives(program.compiled(variables, part(0), *rest).as_text())

  defense = adversarial.make(task, attack=attack, objectives={'train_seg': 0.5}, eps=0.07)
  rules = {'main': optimisers.make({'name': 'adamax', 'lr': 1e-3}, num_steps=2)}
  state = train_state.create(
    task,
    defense,
    step.for_phases(defense, rules),
    key=jax.random.key(2),
    num_examples=len(whole['mask']),
    average=False,
  )
  run, losses = step.make(defense, optimisers=rules, num_steps=2), []
  train_collectives = hlo.collectives(run.compiled(state, whole, jax.random.key(4)).as_text())
  for _ in range(2):
    state, scalars = run(state, whole, jax.random.key(4))
    losses.append(float(np.asarray(scalars['main/loss'])))
  return {
    'attack': attack_collectives._asdict(),
    'train': train_collectives._asdict(),
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    'attacked': attacked.hexdigest(),
    'losses': losses,
  }


def _examples(count: int, side: int) -> dict[str, Any]:
  random = np.random.default_rng(0)
  image = random.uniform(size=(count, side, side, 1)).astype(np.float32)
  angle = np.linspace(0, 2 * np.pi, 176, endpoint=False)
  circle = side / 2 + side / 5 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
  numbers = np.arange(count, dtype=np.int32)
  return {
    'image': image,
    'target': {
      'mask': (image > 0.5).astype(np.float32),
      'contour': np.repeat(circle[None], count, 0).astype(np.float32),
    },
    'mask': np.ones(count, bool),
    **dict.fromkeys(('index', 'group', 'draw'), numbers),
  }


if __name__ == '__main__':
  given = json.loads(sys.argv[1])
  cpu_flags.tune()
  assert parallel.local_device_count() == given.pop('count')
  print(json.dumps(on_these_devices(**given)))
