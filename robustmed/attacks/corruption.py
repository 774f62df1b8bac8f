"""Acquisition artefacts with the interface of an attack, so that the same grid evaluates them."""

import dataclasses

import jax.numpy as jnp

from robustmed import errors
from robustmed.attacks import engine, rules
from robustmed.attacks.threat import Threat
from robustmed.ops import corruptions


@dataclasses.dataclass(frozen=True, eq=False)
class _Artefact(Threat):
  """Starts at the corrupted image, eps being its severity; box and region apply, not the ball."""

  kind: str = ''

  ball = None

  def project(self, x, centre, eps):
    return super().project(x, centre, jnp.full_like(eps, jnp.inf))

  def start(self, keys, centre, radius):
    changed = corruptions.corrupt(self.kind, centre, severity=radius, keys=keys)
    return centre + self.masked(changed - centre)

  def distance(self, x, centre):
    return jnp.full(centre.shape[:1], jnp.nan, centre.dtype)


def corruption(*, kind='motion', bounds=None, region=None, restarts=1, fold='last'):
  """Returns an attack that applies an artefact of `ops.corruptions.CORRUPTIONS`.

  eps is the severity, in the unit of that entry. No gradient is taken; of several restarts the one
  with the highest objective is kept per example. There is no ball, so `distance` is nan.
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
