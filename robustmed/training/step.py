"""One jitted train step: augmentation, then the defense's phases, then its memory."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from robustmed import errors, parallel, types
from robustmed.training import state as train_state

PyTree = Any


def for_phases(
  defense: types.Defense, rules: Mapping[str, optax.GradientTransformation]
) -> dict[str, optax.GradientTransformation]:
  """The optimisers the phases use, each restricted to its phase's subset of the parameters."""
  chosen, subsets = {}, {}
  for phase in defense.phases:
    rule = errors.lookup(rules, phase.optimiser, kind='optimiser of a phase')
    if subsets.setdefault(phase.optimiser, phase.subset) != phase.subset:
      raise ValueError(f'phases that share optimiser {phase.optimiser!r} must share their subset')
    chosen[phase.optimiser] = (
      rule if phase.subset is None else optax.masked(rule, lambda p, s=phase.subset: _mask(p, s))
    )
  return chosen


def _mask(params: PyTree, pattern: str) -> PyTree:
  name = lambda path: '/'.join(str(getattr(k, 'key', k)) for k in path)
  mask = jax.tree_util.tree_map_with_path(
    lambda path, _: re.search(pattern, name(path)) is not None, params
  )
  if not any(jax.tree.leaves(mask)):
    raise ValueError(f'no parameter path matches {pattern!r}')
  return mask


def make(
  defense: types.Defense,
  *,
  optimisers: Mapping[str, optax.GradientTransformation],
  num_steps: int,
  augment: Callable[[jax.Array, types.Batch], types.Batch] | None = None,
  ema: float = 0.0,
) -> Callable[..., tuple[train_state.TrainState, dict[str, jax.Array]]]:
  """Returns (state, batch, key) -> (state, scalars), mapped over devices.

  `key` is the run's; an example's key is fold_in(key, draw), 'draw' being its number in the global
  stream, so it depends on neither batch size nor device count nor a resume. The loss is the mean
  over the valid examples of all devices. A step whose loss is not finite changes nothing but
  `bad_step`, nor does any step after it.
  """
  optimisers = for_phases(defense, optimisers)

  def one_device(state, batch, key):
    keys = jax.vmap(lambda draw: jax.random.fold_in(key, draw))(batch['draw'])
    if augment is not None:
      batch = augment(keys, batch)
      keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys)
    weight = batch['mask'].astype(jnp.float32)
    count = jnp.maximum(parallel.total(jnp.sum(weight)), 1.0)
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
          progress=state.step / num_steps,
        )

        def mean_loss(params, phase=phase, context=context):
          values, aux = phase.loss(params, context)
          return jnp.sum(jnp.where(batch['mask'], values, 0.0)) / count, aux

        (loss, aux), gradient = jax.value_and_grad(mean_loss, has_aux=True)(new.params)
        loss, gradient = parallel.total((loss, gradient))
        new = _update(new, phase, optimisers[phase.optimiser], gradient, aux)
        scalars[f'{phase.name}/loss'] = loss
        scalars[f'{phase.name}/gradient_norm'] = optax.tree.norm(gradient)
        for name, value in aux.get('scalars', {}).items():
          mean = parallel.total(jnp.sum(jnp.where(batch['mask'], value, 0.0))) / count
          scalars[f'{phase.name}/{name}'] = mean
        aux_all[phase.name] = {k: v for k, v in aux.items() if k not in ('scalars', 'state')}
    small = {name: batch[name] for name in ('mask', 'index', 'group', 'draw')}
    gathered_aux, gathered_batch = parallel.gather((aux_all, small))
    new = new._replace(memory=defense.update(new.memory, gathered_aux, gathered_batch))
    if ema:
      blend = lambda old, value: ema * old + (1 - ema) * value
      new = new._replace(average=jax.tree.map(blend, new.average, new.params))
    return _guard(state, new, scalars), scalars

  return parallel.each_device(one_device, split=(1,), gathered=(False, False))


def _update(state, phase, optimiser, gradient, aux):
  if phase.subset is not None:
    mask = _mask(state.params, phase.subset)
    gradient = jax.tree.map(lambda g, m: g if m else jnp.zeros_like(g), gradient, mask)
  updates, memory = optimiser.update(gradient, state.optimisers[phase.optimiser], state.params)
  return state._replace(
    params=optax.apply_updates(state.params, updates),
    state=aux.get('state', state.state),
    optimisers={**state.optimisers, phase.optimiser: memory},
  )


def _guard(old, new, scalars):
  finite = jnp.all(jnp.stack([jnp.isfinite(v) for k, v in scalars.items() if k.endswith('/loss')]))
  norms = [jnp.isfinite(v) for k, v in scalars.items() if k.endswith('/gradient_norm')]
  good = finite & jnp.all(jnp.stack(norms)) & (old.bad_step < 0)
  kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
  bad = jnp.where(good | (old.bad_step >= 0), old.bad_step, old.step)
  return kept._replace(step=old.step + 1, bad_step=bad)
