"""Single examples under attack, for pictures and data files."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import types
from robustmed.evaluation import grid
from robustmed.process import parallel

PyTree = Any
_VALUE = '_value.'  # begins the columns of objectives


class Example(NamedTuple):
  """One example under attack, with the network's outputs before and after."""

  example: dict[str, Any]  # of the batch, without its leading axis
  image: np.ndarray  # attacked
  clean: PyTree  # outputs on the clean image
  attacked: PyTree  # outputs on the attacked one


def attack(
  evaluator: grid.Evaluator,
  variables: PyTree,
  batches: grid.Batches,
  *,
  attack: str,
  eps: float,
  wanted,
) -> Iterator[Example]:
  """Attacks the examples whose index is in `wanted`, in data order.

  The attack on an example does not depend on its batch, so these are the images of the grid.
  """
  wanted = {int(index) for index in wanted}
  for batch in batches():
    valid = [int(i) if m else None for i, m in zip(batch['index'], batch['mask'])]
    places = [place for place, index in enumerate(valid) if index in wanted]
    if not places:
      continue
    padded = grid.device_batch(batch)
    images, _ = evaluator.attack(variables, padded, attack, eps)
    clean = evaluator.score(variables, padded, padded['image']).outputs
    attacked = evaluator.score(variables, padded, images).outputs
    whole = (dict(batch), images, clean, attacked)
    for place in places:
      yield Example(*jax.tree.map(lambda leaf, i=place: np.asarray(leaf)[i], whole))


def first(batches: Iterable[types.Batch], count: int) -> dict[str, Any] | None:
  """Returns the first `count` examples of the data, or all if there are fewer, as one batch.

  The same on every host, whatever the size of the batches; None if there are no examples.
  """
  parts, left = [], count
  for batch in batches:
    wanted = {name: batch[name] for name in ('image', 'target', 'mask', 'index', 'group')}
    leaves, tree = jax.tree.flatten(wanted)
    joined = parallel.gather_rows({str(n): np.asarray(leaf) for n, leaf in enumerate(leaves)})
    whole = jax.tree.unflatten(tree, joined.values())
    places = np.flatnonzero(whole['mask'])[:left]
    parts.append(jax.tree.map(lambda leaf, at=places: leaf[at], whole))
    left -= len(places)
    if not left:
      break
  found = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts) if parts else None
  return found if found is not None and len(found['mask']) else None


def judged(
  evaluator: grid.Evaluator, variables: PyTree, batch, metric: str, higher: bool, *, minimise: bool
):
  """Returns (metric, higher is better), or the main objective where no example has the metric.

  minimise: the main attack decreases it, so that it is higher where the network is better.
  """
  task, seen = evaluator.task, {**batch, 'clean': batch['image']}
  found = jax.eval_shape(lambda v: task.metrics(task.predict(v, batch['image']), seen), variables)
  return (metric, higher) if metric in found else (_VALUE + evaluator.main_objective, minimise)


@functools.lru_cache(maxsize=2)
def judge(
  evaluator: grid.Evaluator, metric: str, higher: bool, *, slopes: bool
) -> Callable[..., Any]:
  """Returns a compiled (variables, batch, image) -> (badness [b], gradient of the main objective).

  batch['image'] is the clean image. Badness is what `judged` returns, the metric or the objective
  ('_value.NAME'), negated where higher is better. Without `slopes` the gradient is None.
  """
  task = evaluator.task
  objective = task.objectives[evaluator.main_objective]

  def run(variables, batch, image):
    def value(image):
      seen = {**batch, 'clean': batch['image'], 'image': image}
      outputs = task.predict(variables, image)
      climbed = objective(outputs, seen)
      bad = climbed if metric.startswith(_VALUE) else task.metrics(outputs, seen)[metric]
      return jnp.sum(climbed), -bad if higher else bad

    if not slopes:
      return value(image)[1], None
    gradient, bad = jax.grad(value, has_aux=True)(image)
    return bad, gradient

  return jax.jit(run)
