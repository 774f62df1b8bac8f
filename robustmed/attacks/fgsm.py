"""One gradient, or a few without a random start: FGSM, i-FGSM, ti-FGSM."""

from robustmed.attacks import engine, rules
from robustmed.attacks.threat import Threat


def fgsm(
  *, norm='linf', bounds=None, region=None, fold='last', select='last', keep=None, score_last=True
):
  """x + eps * sign(grad) (Goodfellow et al. 2015); with norm='l2' x + eps * g / ||g||."""
  return engine.LoopAttack(
    threat=Threat(norm, bounds, region),
    solver=rules.ascent(),
    num_steps=1,
    relative_step=1.0,
    fold=fold,
    select=select,
    keep=keep,
    score_last=score_last,
  )


def ifgsm(
  *,
  num_steps=10,
  step_size=None,
  relative_step=None,
  norm='linf',
  bounds=None,
  region=None,
  select='last',
  keep=None,
  fold='last',
  score_last=True,
  minimise=False,
):
  """`num_steps` FGSM steps without a random start (Kurakin et al. 2017).

  The step is eps / num_steps unless given, so the last iterate can just reach the ball's border.
  """
  if step_size is None and relative_step is None:
    relative_step = 1.0 / max(num_steps, 1)
  return engine.LoopAttack(
    threat=Threat(norm, bounds, region),
    solver=rules.ascent(),
    num_steps=num_steps,
    step_size=step_size,
    relative_step=relative_step,
    select=select,
    keep=keep,
    fold=fold,
    score_last=score_last,
    minimise=minimise,
  )


def tifgsm(**settings):
  """Targeted i-FGSM: goes down. The objective is the loss towards the wanted target.

  Takes what `ifgsm` takes; `value` is that loss and 'best' its smallest value.
  """
  return ifgsm(minimise=True, **settings)
