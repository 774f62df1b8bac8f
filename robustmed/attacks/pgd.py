"""Projected gradient ascent, and its variants for latent codes, OOD images and plain noise."""

from robustmed import errors
from robustmed.attacks import engine, rules
from robustmed.attacks.threat import Threat


def pgd(
  *,
  norm='linf',
  num_steps=20,
  step_size=None,
  relative_step=None,
  bounds=None,
  region=None,
  max_change=None,
  rule='plain',
  random_start=True,
  restarts=1,
  select='last',
  keep=None,
  fold='last',
  score_last=True,
  minimise=False,
):
  """Returns PGD: x <- P(x + step * rule(direction(grad))), P projecting onto ball and box.

  Madry et al. 2018. The step is `step_size` (units of x) or `relative_step` * eps; with neither it
  is 2.5 * eps / num_steps.
  rule: 'plain', 'momentum', 'adamax' or an optax transformation, see `rules.ascent`. The other
  arguments are those of `engine.LoopAttack` and `threat.Threat`.
  """
  if step_size is None and relative_step is None:
    relative_step = 2.5 / max(num_steps, 1)
  if restarts > 1 and not random_start:
    raise errors.UserError('restarts without random_start=True would repeat one and the same run')
  return engine.LoopAttack(
    threat=Threat(norm, bounds, region, max_change),
    solver=rules.ascent(rule),
    num_steps=num_steps,
    step_size=step_size,
    relative_step=relative_step,
    random_start=random_start,
    restarts=restarts,
    select=select,
    keep=keep,
    fold=fold,
    score_last=score_last,
    minimise=minimise,
  )


def latent(**settings):
  """Returns PGD over a latent code [b, d] or of any shape, which the objective decodes; no box."""
  if settings.get('bounds') is not None:
    raise errors.UserError('a latent code has no bounds; put the clamp into the decoder')
  return pgd(**settings)


def ood(*, norm='l2', rule='adamax', random_start=True, max_change=1.0, **settings):
  """Returns PGD in a ball around an out-of-distribution image x that minimises the objective.

  It starts at clip(x + xi), xi random with |xi| <= eps (in L2 on the sphere, so at a large eps the
  first image is visibly noisy): Chen et al. 2021, Algorithm 1. `random_start=False` starts at x.
  The objective is a mismatch of outputs, see `mismatch`. The change is clipped element-wise to
  `max_change` (None: not at all). Takes the settings of `pgd`.
  """
  return pgd(
    norm=norm,
    rule=rule,
    random_start=random_start,
    max_change=max_change,
    minimise=True,
    **settings,
  )


def noise(*, norm='linf', bounds=None, region=None, restarts=1, fold='last'):
  """Returns an attack of a random start and no step, the baseline of all attacks.

  U(-eps, eps) for linf, for l2 see `Threat.start`. Restarts keep the worst draw per example.
  """
  return pgd(norm=norm, num_steps=0, bounds=bounds, region=region, restarts=restarts, fold=fold)


def mismatch(predict, wanted, loss):
  """Returns the objective `image -> loss(predict(image), wanted)` [b] for `ood`.

  wanted: the outputs to reproduce, such as predict(image of the training distribution).
  """
  return lambda image: loss(predict(image), wanted)
