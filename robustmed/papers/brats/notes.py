"""What the report on gliomas says of how things were read, and how it calls its arms."""

from robustmed.papers.brats import claims


def label(name: str, defense) -> str:
  """How an arm is called on the page."""
  kind, _, number = name.partition('_')
  if kind in ('teacher', 'distil'):
    return f'{"teacher, " if kind == "teacher" else ""}T={number}'
  if kind == 'at':
    return f'AT {defense.eps:g}'
  return {'std': 'no defense', 'pgd_05': f'PGD-trained {claims.EPS:g}'}.get(
    name, name.replace('_', ' ')
  )


def notes(config) -> tuple[str, ...]:
  reading = config.reading
  gain = {
    'logit_gain': 'logits are multiplied by T in the network that is trained at T, so T cancels '
    'from the loss. That is the limit of the training as printed, for a network that has followed '
    'T, and not that training: one teacher and one student are trained for all T, and networks of '
    'different T differ in the factor on their logits alone',
    'literal': 'as printed, the softmax of logits divided by T in both trainings and T = 1 '
    'afterwards' + _rise(config) + ". The gradient is multiplied by T, for Adam's epsilon to have "
    'no more say than at T = 1 (at T = 5000 two thirds of the gradients lie below 1e-8 else)',
  }
  return (
    f'Distillation: {gain[reading.distillation]}. All teachers begin at the same weights and see '
    'the same images in the same order, and so do all students, so that temperatures are compared '
    'and not draws. Attacks take the gradient at T = 1.',
    f'Updates of AT and noise: {reading.updates.replace("_", " ")}; learning rate and number of '
    f'steps: {reading.epochs} (in the paper the undefended 3D network has 100 epochs and 1e-4, all '
    'others 400 and 5e-4, which favours the defenses).',
    *_beside(tuple(config.loss)),
    'Soft Dice is the mean over the three foreground classes; eq. 5 divides the sum of three by '
    'four. ti-FGSM goes down towards label 1 everywhere; the printed sign goes up.',
    'Images lie in [0, 1] (z-score over the brain, clipped at 5, then stretched, background 0), '
    'levels are in that unit and attacked images stay in it. The printed grid of levels, 0 to '
    '0.010, is read as 0 to 0.10: Tables 2 and 3 have 0.05 and 0.1.',
    "The p values of the paper's Table 2 are those of a paired signed-rank test over 57 subjects "
    '(50 for enhancing tumour, zeros dropped); those of its Table 3 are all those of an unpaired '
    'rank-sum test of 42 against 42, though the text names the signed-rank test. No Bonferroni '
    'correction was applied in either: the asterisks are raw p values of 0.05 or less, with one '
    'slip (2D, enhancing, T = 500, eps 0.1: p = 0.0750). Here both tables are paired.',
    "The paper's Table 1 does not fit its Table 2: clean whole-tumour Dice of the same undefended "
    'network is 0.748 ± 0.043 in the one and 0.890 ± 0.052 in the other, core under FGSM 0.561 and '
    '0.467; only enhancing tumour agrees. Here the regions are those of the challenge throughout.',
    'Dice of two empty regions is 1, of an empty and a filled one 0. '
    + (
      'Slices are scored together, per volume; training takes one Dice over the batch, attacks '
      'that of each slice alone.'
      if config.dimension == 2
      else 'One volume is one example.'
    ),
  )


def _rise(config) -> str:
  shares = {arm.defense.get('rise', 0.0) for arm in config.arms.values()} - {0.0}
  if not shares:
    return ''
  return (
    f'; T climbs from 1 by equal factors over the first {max(shares):.0%} of the training, and is '
    'small, because a short training cannot make logits T times as large'
  )


def _beside(loss: tuple[str, ...]) -> tuple[str, ...]:
  if loss == ('dice',):
    return ()
  return (
    f'Networks train on the sum of {" and ".join(loss)}, the paper on the Dice alone (eq. 5), '
    'which counts no background and in short runs marks a small class everywhere or nowhere.',
  )
