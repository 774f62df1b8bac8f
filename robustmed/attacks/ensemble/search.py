"""Several attacks in a fixed order, and for each example the worst of what they find, by a metric.

An objective is what an attack climbs, badness is what it is judged by, such as -Dice: every member
hands over the iterate with the largest badness that it saw, and what it hands over is scored again
by a pass of its own.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors
from robustmed.attacks import inputs, objectives
from robustmed.attacks.monitor_reductions import where_per_example
from robustmed.types import Array, Attack, Batch, PyTree

CLEAN = -1  # the member of an example on which nothing is worse than its own image


class Member(NamedTuple):
  """An attack and its objective (outputs, batch[, progress]) -> [b].

  With select='monitor' the iterate that the badness likes best is handed over.
  """

  name: str
  attack: Attack
  objective: Callable[..., Array]
  variables: PyTree = None  # of the network that is attacked, for a transfer; None: the judged one


class Found(NamedTuple):
  """The worst image of each example."""

  x: Array  # [b, ...]
  badness: Array  # [b]
  member: Array  # [b] which member found it, `CLEAN`: none did better than the image itself
  each: Array  # [members, b] what every member found, nan where it did not run


class Robust(NamedTuple):
  """Which examples withstood all members at a threshold."""

  share: float
  found: Found
  passes: int  # gradients and forward passes that were spent on examples, padding included
  full: int  # what all members one by one would spend


class Sweep(NamedTuple):
  """What a sweep found."""

  levels: list[tuple[Found, Found]]  # ascending; (a level's own search, the worst so far)
  passes: int  # gradients and forward passes of all levels and examples, padding included


@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:
  """The worst of `members` for each example.

  predict: (variables, x) -> outputs. badness: (outputs, batch) -> [b], larger is worse for the
  network. `worst` lets every member run on every example; `robust` stops with those that are
  broken; `sweep` hands what lower levels found to higher ones.
  """

  predict: Callable[[PyTree, Array], PyTree]
  members: tuple[Member, ...]
  badness: Callable[..., Array]

  def __post_init__(self):
    names = [member.name for member in self.members]
    if not names or len(set(names)) < len(names):
      raise errors.UserError(f'an ensemble needs members of different names, not {names}')

  def worst(
    self, variables: PyTree, batch: Batch, *, eps, key, candidates: Sequence[Array] = ()
  ) -> Found:
    """Returns the worst image of each example within eps, scalar or [b]; pure, to be jitted.

    candidates: images found before, at a lower level or by other means; they are projected onto
    eps and scored. Ties go to the clean image, then to earlier members.
    """
    kept = self._start(variables, batch)
    for image in candidates:
      threat = self.members[0].attack.threat
      inside = threat.project(image, batch['image'], jnp.asarray(eps))
      kept = self._better(kept, inside, self._score(variables, batch, inside), len(self.members))
    rows = []
    for number in range(len(self.members)):
      x, value = self._run(number, variables, batch, eps, key)
      rows.append(value)
      kept = self._better(kept, x, value, number)
    return kept._replace(each=jnp.stack(rows))

  def sweep(self, variables: PyTree, batch: Batch, *, levels: Sequence[float], key) -> Sweep:
    """Returns for each level its own search and the worst so far, and what all of it cost.

    Every level has its full search; the second also takes what lower levels found, so that it never
    falls with eps. A member number of len(members) is such an image.
    """
    # Clean and found images are scored by a pass of their own.
    search = 1 + sum(_passes(member.attack) + 1 for member in self.members)
    out, before, each = [], None, 0
    for eps in sorted(levels):
      alone = self._jitted_worst(variables, batch, jnp.float32(eps), key)
      nested, each = alone, each + search + (before is not None)
      if before is not None:
        value = self._jitted_score(variables, batch, before.x)
        nested = self._better(alone, before.x, value, len(self.members))
      out.append((alone, nested))
      before = nested
    return Sweep(out, each * len(batch['image']))

  def robust(
    self, variables: PyTree, batch: Batch, *, eps, key, broken_at: float, smallest: int = 4
  ) -> Robust:
    """Returns which examples no member brings to a badness of `broken_at` or more.

    Broken examples leave. The others are moved together on the device and padded to half, a
    quarter ... of the batch, at least `smallest`, so that each member has few programs, whatever
    the data. Examples with batch['mask'] False do not count.
    """
    count = len(batch['image'])
    keys = inputs.example_keys(key, count)
    eps = jnp.broadcast_to(jnp.asarray(eps, jnp.float32), (count,))
    kept = self._jitted_start(variables, batch)
    each = np.full((len(self.members), count), np.nan, np.float32)
    real = np.asarray(batch.get('mask', np.ones(count, bool)))
    passes = 0
    for number, member in enumerate(self.members):
      alive = np.flatnonzero(real & ~(np.asarray(kept.badness) >= broken_at))
      if not len(alive):
        break
      size = bucket(len(alive), count, smallest)
      places = jnp.asarray(np.resize(alive, size))  # repeated examples give equal results
      take = lambda leaf, places=places: jnp.asarray(leaf)[places]
      part = jax.tree.map(take, dict(batch))
      x, value = self._jitted_run(number, variables, part, take(eps), take(keys))
      each[number, np.asarray(places)] = np.asarray(value)
      kept = _put(kept, places, x, value, number)
      passes += size * _passes(member.attack)
    broken = np.asarray(kept.badness) >= broken_at
    share = float(np.mean(~broken[real])) if real.any() else float('nan')
    full = int(real.sum()) * sum(_passes(member.attack) for member in self.members)
    return Robust(share, kept._replace(each=jnp.asarray(each)), passes, full)

  def _score(self, variables, batch, x):
    return self.badness(self.predict(variables, x), {**batch, 'image': x})

  def _start(self, variables, batch):
    value = self._score(variables, batch, batch['image'])
    who = jnp.full(value.shape, CLEAN, jnp.int32)
    return Found(batch['image'], value, who, jnp.zeros((0, len(value))))

  def _run(self, number, variables, batch, eps, key):
    member = self.members[number]
    own = variables if member.variables is None else member.variables
    outputs = objectives.Shared(lambda x: self.predict(own, x))
    judged = outputs if member.variables is None else lambda x: self.predict(variables, x)
    result = member.attack(
      objectives.bind(outputs, member.objective, batch),
      batch['image'],
      eps=eps,
      key=key,
      monitor=objectives.bind(judged, self.badness, batch),
    )
    return result.x, self._score(variables, batch, result.x)

  def _better(self, kept, x, value, number):
    better = _worse(value, kept.badness)
    return kept._replace(
      x=where_per_example(better, x, kept.x),
      badness=jnp.where(better, value, kept.badness),
      member=jnp.where(better, number, kept.member),
    )

  @functools.cached_property
  def _jitted_start(self):
    return jax.jit(self._start)

  @functools.cached_property
  def _jitted_score(self):
    return jax.jit(self._score)

  @functools.cached_property
  def _jitted_worst(self):
    return jax.jit(lambda v, batch, eps, key: self.worst(v, batch, eps=eps, key=key))

  @functools.cached_property
  def _jitted_run(self):
    return jax.jit(self._run, static_argnums=0)


def bucket(alive: int, most: int, smallest: int) -> int:
  """Returns the smallest of `most`, most / 2, most / 4 ... that holds `alive`, rounded up."""
  size = most
  while size > smallest and -(-size // 2) >= alive:
    size = -(-size // 2)
  return size


def _worse(value, than):
  """Whether a badness counts as worse, [b]: NaN is unknown, and any that is known is worse."""
  return (value > than) | (jnp.isnan(than) & ~jnp.isnan(value))


@jax.jit
def _put(kept, places, x, value, number):
  better = _worse(value, kept.badness[places])
  put = lambda old, new: old.at[places].set(where_per_example(better, new, old[places]))
  who = jnp.full(value.shape, number, jnp.int32)
  return kept._replace(
    x=put(kept.x, x), badness=put(kept.badness, value), member=put(kept.member, who)
  )


def _passes(attack) -> int:
  """Gradients and forward passes of an attack on one example."""
  return int(attack.num_gradients + attack.num_forwards)
