"""An attack in pieces: its state is a file, so that it goes on where a process ended."""

import dataclasses
import hashlib
import os
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors
from robustmed.attacks import inputs
from robustmed.attacks.engine import LoopAttack
from robustmed.types import Array, AttackResult, Monitor, Objective

_STEP, _DIGEST = 'step', 'digest'


def run(
  attack: LoopAttack,
  objective: Objective,
  x: Array,
  *,
  eps: Array | float,
  key: Array,
  path: pathlib.Path | str,
  monitor: Monitor | None = None,
  start_radius: Array | float | None = None,
  every: int = 1,
  stop: Callable[[], bool] = lambda: False,
) -> AttackResult | None:
  """Returns the result of an attack whose state is stored at `path` after `every` steps.

  Where the file is there, the attack goes on from it. `stop` is asked after each step; once it is
  true, the state is stored and the result is None. With interruptions the result is the same to the
  last bit as without. The objective must be the same in all calls; what else a state belongs to is
  checked. One run of one stage: no restarts, and not `sea`.
  """
  if attack.restarts != 1 or len(attack.stages) != 1:
    raise errors.UserError('an attack with restarts or stages cannot be stored between its steps')
  x, path = jnp.asarray(x), pathlib.Path(path)
  told = {'start_radius': start_radius, 'monitor': monitor}
  inputs.check_at_least_0(np.atleast_1d(eps), what='eps')
  digest = _digest(attack, x, eps, key, start_radius)
  ready = lambda x: attack.prepare(objective, x, eps=eps, key=key, **told)
  begin = jax.jit(lambda x: attack.begin(ready(x)))
  # x is an argument: as a constant of the program a volume would be folded and copied by XLA
  step = jax.jit(lambda x, index, state: attack.step(ready(x), 0, index, state), donate_argnums=2)
  end = jax.jit(lambda x, state: attack.result(ready(x), attack.end(ready(x), 0, state)))
  done, state = 0, None
  if path.exists():
    done, state = _load(path, jax.eval_shape(begin, x), digest)
  else:
    state = begin(x)
  while done < attack.num_steps:
    state, done = step(x, done, state), done + 1
    stopped = stop()
    if stopped or done % every == 0 or done == attack.num_steps:
      _store(path, state, done, digest)
    if stopped:
      return None
  return end(x, state)


def _store(path, state, done, digest):
  leaves = {f'leaf{n}': np.asarray(leaf) for n, leaf in enumerate(jax.tree.leaves(state))}
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    with temporary.open('wb') as file:
      np.savez(file, **leaves, **{_STEP: np.int64(done), _DIGEST: np.array(digest)})
    os.replace(temporary, path)  # whole or not at all
  finally:
    temporary.unlink(missing_ok=True)


def _load(path, shapes, digest):
  try:
    with path.open('rb') as file, np.load(file, allow_pickle=False) as stored:
      found = dict(stored)
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    raise errors.UserError(f'{path} is damaged ({error}); delete it to begin anew') from error
  if str(found.get(_DIGEST)) != digest:
    raise errors.UserError(
      f'{path} is the state of another attack, image, level or key; give another path or delete it'
    )
  wanted, structure = jax.tree.flatten(shapes)
  leaves = [found[f'leaf{n}'] for n in range(len(wanted))]
  return int(found[_STEP]), jax.tree.unflatten(structure, map(jnp.asarray, leaves))


def _digest(attack: LoopAttack, x, eps, key, start_radius) -> str:
  """Returns the sha256 of all that determines a run but its objective."""
  made = hashlib.sha256()

  def add(name: str, value: Any):
    array = np.asarray(value)
    made.update(f'{name} {array.dtype} {array.shape}'.encode())
    made.update(repr(value).encode() if array.dtype == object else array.tobytes())

  for holder in (attack, attack.threat):
    made.update(type(holder).__name__.encode())
    for field in dataclasses.fields(holder):
      value = getattr(holder, field.name)
      if field.name not in ('threat', 'solver') and value is not None:
        add(field.name, np.array(value))
  made.update(attack.solver.step.__qualname__.encode())
  for name, value in (('x', x), ('eps', eps), ('start_radius', start_radius)):
    add(name, value)
  keys = inputs.example_keys(key, len(x))
  add('key', jax.random.key_data(keys))
  return made.hexdigest()
