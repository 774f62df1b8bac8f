"""How one patch of a pool is made: searched, random or noisy (Liu et al. 2020, section 3.4).

A recipe works on a batch on one device, in inference mode of every network, through the attack
engine. Randomness is that of the example's key.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustmed import attacks, errors, types
from robustmed.generators import vae
from robustmed.papers.nodules import synthesiser

Array = jax.Array
PyTree = Any
POSITIVE, NEGATIVE = 1, 0


class Recipe(NamedTuple):
  """run: (variables, image [b, ...], keys [b]) -> columns.

  Columns are 'image' and numbers [b] of `COLUMNS`. image: the patch to begin with; without a source
  of patches only its shape means something. target: the label of what is made. provenance: plain
  data that tells this recipe from all others.
  """

  run: Callable[..., dict[str, Array]]
  variables: PyTree
  target: int
  provenance: Mapping[str, Any]


# Numbers of every patch, each with the value it has where the recipe does not say.
COLUMNS = {
  'keep': True,
  'diameter': 0.0,  # of a synthetic nodule, millimetres
  'value': 0.0,  # the objective of the search at the result
  'distance': 0.0,  # from the start, in the norm of the search
  'level': 0.0,  # of noise
}


class Victim(NamedTuple):
  """The network that a search attacks; digest: that of its checkpoint."""

  task: types.Task
  variables: PyTree
  digest: str
  objective: str = 'loss'

  def value(self, target: int) -> Callable[[PyTree, Array], Array]:
    """(variables, image) -> what the search maximises [b]: the loss of patches labelled target."""
    objective = errors.lookup(self.task.objectives, self.objective, kind='objective of a search')

    def of(variables, image):
      batch = {'image': image, 'target': {'target': jnp.full(len(image), target, jnp.int32)}}
      return objective(self.task.predict(variables, image), batch)

    return of

  @property
  def provenance(self) -> dict[str, Any]:
    return {'network': self.digest, 'objective': self.objective}


class Synthesis(NamedTuple):
  """The trained synthesiser and how its nodules get into patches."""

  model: synthesiser.Model
  variables: PyTree
  digest: str
  spacing: float = 0.625  # millimetres
  threshold: float = 0.2
  smallest: float = 6.0  # millimetres, of what is kept

  @property
  def provenance(self) -> dict[str, Any]:
    rest = {name: getattr(self, name) for name in ('spacing', 'threshold', 'smallest')}
    return {'synthesiser': self.digest, **rest}


def make_search(options: Mapping[str, Any]) -> tuple[types.Attack, float]:
  """(attack, eps) of {'name', 'eps', its settings}."""
  fields = {name: value for name, value in options.items() if name not in ('name', 'eps')}
  return attacks.make(options['name'], **fields), options['eps']


def codes(
  synthesis: Synthesis, victim: Victim, *, search: Mapping[str, Any] | None = None
) -> Recipe:
  """Synthetic nodules in patches of lung: x~ m + x (1 - m) of a code.

  The code is random or, with a `search` such as {'name': 'latent', 'eps': 0.15, 'norm': 'linf',
  'step_size': 0.05, 'num_steps': 20}, moved to where the victim doubts that there is a nodule.
  Equal keys give equal codes to begin with. Nodules smaller than `synthesis.smallest` are not kept.
  """
  value = victim.value(POSITIVE)
  attack, eps = make_search(search) if search else (None, 0.0)

  def run(variables, image, keys):
    def fused(code):
      nodule = synthesis.model.decode(variables['synthesiser'], code)
      return synthesiser.fuse(nodule, image, threshold=synthesis.threshold)

    objective = lambda code: value(variables['victim'], fused(code)[0])
    code, found = vae.normal(keys, (synthesis.model.latent,)), {}
    if attack is None:
      found['value'] = objective(code)
    else:
      result = attack(objective, code, eps=eps, key=_second(keys))
      code, found = result.x, {'value': result.value, 'distance': result.distance}
    made, mask = fused(code)
    size = synthesiser.diameter(mask, spacing=synthesis.spacing)
    return {'image': made, 'diameter': size, 'keep': size >= synthesis.smallest, **found}

  return Recipe(
    run,
    {'synthesiser': synthesis.variables, 'victim': victim.variables},
    POSITIVE,
    {'recipe': 'codes', 'search': _plain(search), **synthesis.provenance, **victim.provenance},
  )


def attacked(victim: Victim, *, target: int, search: Mapping[str, Any]) -> Recipe:
  """Patches of that label, each moved to where the victim errs most."""
  return _searched('attacked', victim, target=target, search=search, start=lambda image, _: image)


def noise(victim: Victim, *, search: Mapping[str, Any] | None) -> Recipe:
  """Patches of U(0, 1), moved to where the victim sees a nodule; as they are without a search."""
  draw = lambda image, keys: jax.vmap(lambda key: jax.random.uniform(key, image.shape[1:]))(keys)
  return _searched('noise', victim, target=NEGATIVE, search=search, start=draw)


def _searched(name, victim, *, target, search, start):
  value = victim.value(target)
  attack, eps = make_search(search) if search else (None, 0.0)

  def run(variables, image, keys):
    image = start(image, keys)
    objective = lambda image: value(variables, image)
    if attack is None:
      return {'image': image, 'value': objective(image)}
    result = attack(objective, image, eps=eps, key=_second(keys))
    return {'image': result.x, 'value': result.value, 'distance': result.distance}

  provenance = {'recipe': name, 'target': target, 'search': _plain(search)}
  return Recipe(run, victim.variables, target, {**provenance, **victim.provenance})


def poisson(*, target: int, levels: tuple[float, ...]) -> Recipe:
  """y = Poisson(L x) / L of patches in [0, 1], L one of `levels` for each patch; not clipped."""
  if not levels or min(levels) <= 0:
    raise errors.UserError(f'levels of Poisson noise must be above 0, not {levels}')
  listed = jnp.asarray(levels, jnp.float32)

  def run(variables, image, keys):
    del variables
    level = jax.vmap(lambda key: jax.random.choice(key, listed))(keys)
    one = lambda key, image, level: jax.random.poisson(key, level * image) / level
    made = jax.vmap(one)(_second(keys), jnp.maximum(image, 0.0), level)
    return {'image': made.astype(image.dtype), 'level': level}

  return Recipe(run, {}, target, {'recipe': 'poisson', 'target': target, 'levels': [*levels]})


def uniform(*, target: int, magnitude: float, centred: bool = True) -> Recipe:
  """x + U(-m/2, m/2), or without `centred` x + U(-m, m), two readings of a magnitude m."""
  width = magnitude / 2 if centred else magnitude

  def run(variables, image, keys):
    del variables
    one = lambda key, image: (
      image + jax.random.uniform(key, image.shape, image.dtype, -width, width)
    )
    return {'image': jax.vmap(one)(keys, image), 'level': jnp.full(len(image), magnitude)}

  provenance = {'recipe': 'uniform', 'target': target, 'half_width': width}
  return Recipe(run, {}, target, provenance)


def _second(keys):
  return jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)


def _plain(search):
  return dict(search) if search else None
