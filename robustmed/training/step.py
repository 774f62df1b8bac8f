"""One jitted train step: augmentation, then the defense's phases, then its memory."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax

from robustmed import errors, types
from robustmed.process import parallel, shared_statistics
from robustmed.training import accumulation
from robustmed.training import state as train_state

PyTree = Any


class FlatOptimiser(NamedTuple):
  """An optimiser on a subset of the parameters, concatenated to one vector.

  The update is that of `rule` on the tree, element by element. One vector takes a few operations
  where the tree takes a few per parameter, which are most of a small network's compile time.
  """

  rule: optax.GradientTransformation
  subset: str | None = None  # regular expression on 'a/b/c' paths

  def init(self, params: PyTree) -> PyTree:
    """Returns the optimiser's state."""
    return self.rule.init(self.join(params))

  def join(self, tree: PyTree) -> jax.Array:
    """Returns the subset of a tree like the parameters as one vector."""
    return jax.flatten_util.ravel_pytree(self._chosen(tree))[0]

  def update(self, gradient: jax.Array, state: PyTree, params: PyTree, good: jax.Array):
    """Returns (params, state) after one step on the joined gradient; unchanged if not `good`."""
    old, restore = jax.flatten_util.ravel_pytree(self._chosen(params))
    rule = optax.with_extra_args_support(self.rule)
    change, new_state = rule.update(gradient, state, old, marks=lambda of: self._marks(params, of))
    chosen = iter(restore(jnp.where(good, old + change, old)))
    mask = self._mask(params)
    params = jax.tree.map(lambda leaf, own: next(chosen) if own else leaf, params, mask)
    return params, jax.tree.map(lambda new, was: jnp.where(good, new, was), new_state, state)

  def _chosen(self, tree: PyTree) -> list[jax.Array]:
    mask = jax.tree.leaves(self._mask(tree))
    return [leaf for leaf, own in zip(jax.tree.leaves(tree), mask, strict=True) if own]

  def _marks(self, tree: PyTree, of: str) -> jax.Array:
    """Returns 1 where the joined vector holds a parameter whose path matches `of`, else 0."""
    marked = jax.tree.map(lambda leaf, own: jnp.full(leaf.size, float(own)), tree, _named(tree, of))
    return jnp.concatenate(self._chosen(marked))

  def _mask(self, tree: PyTree) -> PyTree:
    return _named(tree, '' if self.subset is None else self.subset)


def _named(tree: PyTree, pattern: str) -> PyTree:
  """Returns a tree of bools: whether the pattern matches the leaf's 'a/b/c' path; some must."""
  name = lambda path: '/'.join(str(getattr(k, 'key', k)) for k in path)
  own = lambda path, _: re.search(pattern, name(path)) is not None
  mask = jax.tree_util.tree_map_with_path(own, tree)
  if not any(jax.tree.leaves(mask)):
    raise ValueError(f'no parameter path matches {pattern!r}')
  return mask


def for_phases(
  defense: types.Defense, rules: Mapping[str, optax.GradientTransformation]
) -> dict[str, FlatOptimiser]:
  """Returns the optimisers of the phases by name, each on its phase's subset of the parameters."""
  chosen = {}
  for phase in defense.phases:
    rule = errors.lookup(rules, phase.optimiser, kind='optimiser of a phase')
    if chosen.setdefault(phase.optimiser, FlatOptimiser(rule, phase.subset)).subset != phase.subset:
      raise ValueError(f'phases that share optimiser {phase.optimiser!r} must share their subset')
  return chosen


def updates_per_step(defense: types.Defense) -> dict[str, int]:
  """How often one training step updates with each optimiser that the phases name."""
  counted: dict[str, int] = {}
  for phase in defense.phases:
    counted[phase.optimiser] = counted.get(phase.optimiser, 0) + phase.repeat
  return counted


def make(
  defense: types.Defense,
  *,
  optimisers: Mapping[str, optax.GradientTransformation],
  num_steps: int,
  augment: Callable[[jax.Array, types.Batch], types.Batch] | None = None,
  ema: float = 0.0,
  ema_ramp: float = 0,
  parts: int = 1,
  padded: bool = False,
) -> Callable[..., tuple[train_state.TrainState, dict[str, jax.Array]]]:
  """Returns the train step (state, batch, key) -> (state, scalars), mapped over devices.

  `key` is the run's; an example's key is fold_in(key, draw), 'draw' being its number in the global
  stream, so it is the same for every batch size and device count and after a resume. The loss is
  the mean over the valid examples of all devices. From the first phase with a non-finite loss or
  gradient on, only `bad_step` and `step` change. The decay of the moving average is `ema`, or with
  `ema_ramp` > 0 at step n = 1, 2, ... ema (1 - exp(-n / ema_ramp)). `parts` are those in which each
  device takes its share of a batch, see `accumulation.gradient`. `padded`: examples whose mask is
  False must not count in batch statistics either. `.compiled(state, batch, key)` of the result is
  the compiled program of the update.
  """
  optimisers = for_phases(defense, optimisers)

  def one_device(state, batch, key):
    keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(_draw_keys(key, batch))
    weight = batch['mask'].astype(jnp.float32)
    count = jnp.maximum(parallel.psum(jnp.sum(weight)), 1.0)
    progress = state.step / num_steps
    batch = {**batch, 'progress': jnp.full(batch['mask'].shape, progress, jnp.float32)}
    new, scalars, aux_all = state, {}, {}
    for position, phase in enumerate(defense.phases):
      for repeat in range(phase.repeat):
        place = position * 1000 + repeat
        step_key = jax.random.fold_in(jax.random.fold_in(key, state.step), place)
        context = types.LossContext(
          state=new.state,
          memory=new.memory,
          batch=batch,
          keys=jax.vmap(lambda k, p=place: jax.random.fold_in(k, p))(keys) if place else keys,
          key=parallel.device_key(step_key),
          progress=progress,
        )

        optimiser = optimisers[phase.optimiser]
        with shared_statistics.counting(batch['mask'] if padded else None):
          gradient, means, aux = accumulation.gradient(
            phase, new.params, context, count=count, join=optimiser.join, parts=parts
          )
        gradient, means = parallel.psum((gradient, means))
        means['gradient_norm'] = jnp.linalg.norm(gradient)
        new = _update(new, phase, optimiser, gradient, aux, means)
        scalars.update({f'{phase.name}/{name}': value for name, value in means.items()})
        aux_all[phase.name] = {k: v for k, v in aux.items() if k not in accumulation.KEPT_APART}
    small = {name: batch[name] for name in ('mask', 'index', 'group', 'draw')}
    gathered_aux, gathered_batch = parallel.all_gather((aux_all, small))
    good = new.bad_step < 0
    memory = defense.update(new.memory, gathered_aux, gathered_batch)
    new = new._replace(memory=_where(good, memory, new.memory), step=state.step + 1)
    if ema:
      keep = ema * (1 - jnp.exp(-(state.step + 1) / ema_ramp)) if ema_ramp else ema
      blend = lambda old, value: jnp.where(good, keep * old + (1 - keep) * value, old)
      raw = {'params': new.params, **new.state}
      new = new._replace(average=jax.tree.map(blend, new.average, raw))
    return new, scalars

  update = parallel.each_device(one_device, split=(1,), gathered=(False, False))
  if augment is None:
    return update
  prepare = _augmenting(augment)

  def step(state, batch, key):
    return update(state, prepare(key, batch), key)

  step.compiled = lambda state, batch, key: update.compiled(state, prepare(key, batch), key)
  return step


@functools.lru_cache(maxsize=8)
def _augmenting(augment):
  """Returns augmentation as its own program, compiled once for all arms that augment alike."""
  one_device = lambda key, batch: augment(_draw_keys(key, batch), batch)
  return parallel.each_device(one_device, split=(1,))


def _draw_keys(key, batch):
  return jax.vmap(lambda draw: jax.random.fold_in(key, draw))(batch['draw'])


def _update(state, phase, optimiser, gradient, aux, means):
  finite = jnp.isfinite(means['loss']) & jnp.isfinite(means['gradient_norm'])
  good = finite & (state.bad_step < 0)
  memory = state.optimisers[phase.optimiser]
  params, memory = optimiser.update(gradient, memory, state.params, good)
  return state._replace(
    params=params,
    state=_where(good, aux.get('state', state.state), state.state),
    optimisers={**state.optimisers, phase.optimiser: memory},
    bad_step=jnp.where(good | (state.bad_step >= 0), state.bad_step, state.step),
  )


def _where(good, new, old):
  return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
