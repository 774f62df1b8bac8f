"""An attack in pieces: its state is a file, so that it goes on where a process ended."""

import hashlib
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors
from robustmed.attacks import inputs
from robustmed.attacks.engine import LoopAttack
from robustmed.attacks.stored import marks
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
  last bit as without. The objective and the monitor must be the same in all calls; what else a
  state belongs to, the attack with all its settings, the image, the level and the key, is checked.
  One run of one stage: no restarts, and not `sea`.
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
  except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
    raise _damaged(path, error) from error
  if str(found.get(_DIGEST)) != digest:
    raise errors.UserError(
      f'{path} is the state of another attack, image, level or key; give another path or delete it'
    )
  wanted, structure = jax.tree.flatten(shapes)
  names = [_STEP, *(f'leaf{n}' for n in range(len(wanted)))]
  if missing := [name for name in names if name not in found]:
    raise _damaged(path, f'it lacks {", ".join(missing)}')
  leaves = [found[name] for name in names[1:]]
  if [(leaf.shape, leaf.dtype) for leaf in leaves] != [(one.shape, one.dtype) for one in wanted]:
    raise _damaged(path, 'its arrays have other shapes')
  return int(found[_STEP]), jax.tree.unflatten(structure, map(jnp.asarray, leaves))


def _damaged(path, why) -> errors.UserError:
  return errors.UserError(f'{path} is damaged ({why or "it is empty"}); delete it to begin anew')


def _digest(attack: LoopAttack, x, eps, key, start_radius) -> str:
  """Returns the sha256 of all that determines a run but its objective and monitor."""
  keys = jax.random.key_data(inputs.example_keys(key, len(x)))
  return hashlib.sha256(marks.of((attack, x, eps, start_radius, keys))).hexdigest()
