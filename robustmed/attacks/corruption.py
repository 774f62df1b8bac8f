"""Artefacts of acquisition in the clothes of an attack, so that the same grid evaluates them."""

import dataclasses

import jax.numpy as jnp

from robustmed import errors
from robustmed.attacks import engine, rules
from robustmed.attacks.threat import Threat
from robustmed.ops import corruptions


@dataclasses.dataclass(frozen=True, eq=False)
class _Artefact(Threat):
  """No ball: the start is the corrupted image, eps its severity; box and region hold."""

  kind: str = ''

  def project(self, x, centre, eps):
    return super().project(x, centre, jnp.full_like(eps, jnp.inf))

  def start(self, keys, centre, radius):
    changed = corruptions.corrupt(self.kind, centre, severity=radius, keys=keys)
    return centre + self.masked(changed - centre)

  def distance(self, x, centre):
    return jnp.full(centre.shape[:1], jnp.nan, centre.dtype)


def corruption(*, kind='motion', bounds=None, region=None, restarts=1, fold='last'):
  """An artefact of `ops.corruptions.CORRUPTIONS`; eps is its severity, in that entry's unit.

  It asks for no gradient and does not look at the objective; restarts keep the worst draw per
  example. It is not confined to a ball, so `distance` is nan.
  """
  errors.lookup(corruptions.CORRUPTIONS, kind, kind='corruption')
  return engine.LoopAttack(
    threat=_Artefact('linf', bounds, region, kind=kind),
    solver=rules.ascent(),
    num_steps=0,
    relative_step=1.0,
    random_start=True,
    restarts=restarts,
    fold=fold,
  )
