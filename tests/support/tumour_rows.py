"""Rows and logs as a finished study of gliomas would have them, drawn without any network."""

import itertools

import numpy as np
import pandas as pd

# whole-tumour Dice: clean, fgsm, ifgsm, tifgsm, scaled_fgsm; at 0.1 a little less
DICE = {
  'std': (0.88, 0.60, 0.40, 0.50, 0.60),
  'distil_100': (0.88, 0.80, 0.70, 0.75, 0.41),
  'distil_5000': (0.88, 0.83, 0.75, 0.78, 0.40),
  'at_05': (0.86, 0.78, 0.70, 0.75, 0.76),
  'noise': (0.88, 0.65, 0.45, 0.55, 0.63),
}
ATTACKS = ('none', 'fgsm', 'ifgsm', 'tifgsm', 'scaled_fgsm')


def rows(dice=DICE, subjects=24):
  rng = np.random.default_rng(0)
  lines = []
  for arm, index in itertools.product(dice, range(subjects)):
    shift = 0.02 * rng.normal()
    for attack, mean in zip(ATTACKS, dice[arm], strict=True):
      for eps in (0.0,) if attack == 'none' else (0.05, 0.1):
        value = np.clip(mean + shift - (eps > 0.05) * 0.05 + 0.002 * rng.normal(), 0, 1)
        lines.append(
          {
            'arm': arm,
            'attack': attack,
            'eps': eps,
            'seed': 0,
            'group': index,
            'index': index,
            'dice_wt': value,
            'dice_tc': value - 0.1,
            'dice_et': value - 0.2,
            'psnr': 27.7,
            'ssim': 0.6,
            'rmse': 0.8 * eps,
            '_zero_grad': 0.9 if arm.startswith('distil') else 0.0,
            '_saturated': 0.5,
            '_logit_scale': 1.0,
          }
        )
  return pd.DataFrame(lines)


def log(at=1.0, teacher=0.4, student=0.5):
  per = {'std': 0.4, 'at_05': at}
  for name in ('100', '5000'):
    per |= {f'teacher_{name}': teacher, f'distil_{name}': student}
  steps = np.arange(20, 400, 20)
  frames = [
    pd.DataFrame({'arm': arm, 'seed': 0, 'step': steps, 'seconds': one * steps})
    for arm, one in per.items()
  ]
  return pd.concat(frames, ignore_index=True)
