"""What training and evaluation leave of the study of nodules, made up: the paper's confidences."""

import numpy as np
import pandas as pd

from robustmed.data.chest import nodule_scans
from robustmed.papers.nodules import scans as nodules_froc
from robustmed.process import files

EPS, SCANS = 0.15, 12
# Confidence of (baseline, +syn, +perturb, +poisson).
ARMS = ('beta_finetune', 'syn', 'perturb', 'poisson')
CELLS = {
  ('none', 0.0): (0.86, 0.91, 0.91, 0.86),
  ('uniform', 0.3): (0.86, 0.91, 0.91, 0.86),
  ('poisson', 50.0): (0.86, 0.91, 0.91, 0.86),
  ('poisson', 5.0): (0.78, 0.84, 0.91, 0.80),
  ('positives', EPS): (0.25, 0.37, 0.91, 0.78),
  ('plain_noise', 1.0): (0.11, 0.22, 0.04, 0.13),
  ('noise_pgd', EPS): (0.87, 0.90, 0.08, 0.23),
  ('clean_negatives', 1.0): (0.14, 0.10, 0.19, 0.13),
  ('negatives', EPS): (0.82, 0.63, 0.26, 0.18),
  ('random', 1.0): (0.82, 0.92, 0.90, 0.88),
  ('codes', EPS): (0.53, 0.91, 0.85, 0.70),
  ('own_positives', EPS): (0.25, 0.20, 0.15, 0.20),
  ('own_noise_pgd', EPS): (0.87, 0.90, 0.85, 0.80),
  ('uniform', 0.9): (0.81, 0.87, 0.89, 0.83),
}
# Of every arm the share of nodules whose mark is above all false ones.
FOUND = {
  'beta_finetune': 0.5, 'syn_random': 0.6, 'syn': 0.9, 'perturb': 0.7, 'poisson': 0.8,
  'ce': 0.5, 'beta': 0.5, 'longer': 0.5,
}  # fmt: skip


def stress(cells=CELLS, *, count=SCANS, seed=0):
  rng, tables = np.random.default_rng(0), []
  number = np.arange(count)
  for (attack, eps), means in cells.items():
    for arm, mean in zip(ARMS, means, strict=True):
      confidence = np.clip(mean + rng.normal(0, 0.02, count), 0, 1)
      tables.append(
        pd.DataFrame(
          {
            'arm': arm,
            'attack': attack,
            'eps': eps,
            'index': number,
            'group': number,
            'seed': seed,
            'confidence': confidence,
            'uncertainty': rng.uniform(0.2, 0.5, count),
          }
        )
      )
  return pd.concat(tables, ignore_index=True)


def made(*, count=SCANS):
  """Searched nodules are 2 mm smaller and 100 HU darker."""
  rng, number = np.random.default_rng(1), np.arange(count)
  diameter, hu = rng.uniform(8, 14, count), rng.uniform(-200, 0, count)
  same = {'arm': 'synthesiser', 'eps': 1.0, 'index': number, 'group': number, 'seed': 0}
  noise = lambda scale: rng.normal(0, scale, count)
  random = {'attack': 'random', 'diameter': diameter, 'hu': hu}
  codes = {
    'attack': 'codes',
    'diameter': diameter - 2 + noise(0.1),
    'hu': hu - 100 + noise(5),
  }
  return pd.concat([pd.DataFrame({**same, **more}) for more in (random, codes)], ignore_index=True)


def rows(*, count=SCANS, arms=('ce', *FOUND)):
  """Of the grid."""
  rng, tables = np.random.default_rng(2), []
  for arm in dict.fromkeys(arms):
    for attack, eps, right in (('none', 0.0, 0.9), ('pgd', EPS, 0.3), ('noise', EPS, 0.8)):
      number = np.arange(2 * count)
      correct = (rng.uniform(size=len(number)) < right).astype(float)
      keys = {'arm': arm, 'attack': attack, 'eps': eps, 'index': number, 'seed': 0}
      tables.append(pd.DataFrame({**keys, 'group': number // 2, 'correct': correct}))
  return pd.concat(tables, ignore_index=True)


def scans(*, nodules=4):
  """`nodules_scans.Tables` of scans with nodules at x = 0, 100, ..., kinds in turn."""
  found = []
  for number in range(SCANS):
    uid = f'scan.{number}'
    centres = [(100.0 * place, 0.0, 0.0) for place in range(nodules)]
    kinds = ('solid', 'ground_glass', 'part_solid', 'calcified')
    size = dict(zip(('diameter_mm', 'kind'), ([10.0] * nodules, (kinds * nodules)[:nodules])))
    empty = nodule_scans.table(uid, [], diameter_mm=[], kind=[])
    found.append(nodule_scans.Tables(uid, nodule_scans.table(uid, centres, **size), empty))
  return found


def submissions(folder, *, shares=FOUND, nodules=4):
  """results/froc with a submission of every arm and of the candidate networks."""
  rng, known = np.random.default_rng(3), scans(nodules=nodules)
  nodules_froc.save_annotations(folder, known)
  for arm, share in {**shares, nodules_froc.FOUND: 1.0}.items():
    tables = []
    for one in known:
      points = nodule_scans.centres(one.nodules)
      false = points + np.array([0.0, 50.0, 0.0])
      found = rng.uniform(size=len(points)) < share
      confidence = np.concatenate([np.where(found, 0.9, 0.1), np.full(len(false), 0.5)])
      confidence += rng.uniform(0, 0.05, len(confidence))
      both = np.concatenate([points, false])
      tables.append(nodules_froc.submission(one.uid, both, {'confidence': confidence}))
    with files.replacing(folder / f'{arm}.seed0.csv') as temporary:
      pd.concat(tables, ignore_index=True).to_csv(temporary, index=False)
  return folder


def pictures(path, *, side=6, count=3):
  rng = np.random.default_rng(4)
  draw = lambda: rng.uniform(0, 1, (count, side, side)).astype(np.float32)
  stored = {}
  for name in (
    'none 0', 'uniform 0.3', 'poisson 5', 'random 1', 'codes 0.15', 'positives 0.15',
    'noise_pgd 0.15', 'negatives 0.15',
  ):  # fmt: skip
    stored[name], stored[f'{name}/number'] = draw(), np.arange(count)
    if name not in ('none 0', 'noise_pgd 0.15'):
      stored[f'{name}/before'] = draw()
  np.savez(path, **stored)
  return stored
