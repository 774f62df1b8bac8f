"""Gradient-sign attacks without a random start: FGSM of one step, i-FGSM and ti-FGSM of several."""

from robustmed.attacks import engine, rules
from robustmed.attacks.threat import Threat


def fgsm(
  *, norm='linf', bounds=None, region=None, fold='last', select='last', keep=None, score_last=True
):
  """Returns FGSM: x + eps * sign(grad), with norm='l2' x + eps * g / ||g|| (Goodfellow 2015)."""
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
  """Returns an attack of `num_steps` FGSM steps without a random start (Kurakin et al. 2017).

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
  """Returns targeted i-FGSM, which minimises its objective: the loss towards the chosen target.

  Takes the settings of `ifgsm`; `value` is that loss and 'best' its smallest value.
  """
  return ifgsm(minimise=True, **settings)
