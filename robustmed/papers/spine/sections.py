"""Sections of the disk-shape report, each made of files of the run; absent ones are left out."""

import pathlib

import numpy as np
import pandas as pd

from robustmed.evaluation import statistics
from robustmed.metrics import detection
from robustmed.papers.spine import claims, evaluation, ood
from robustmed.papers.spine import figures as drawings
from robustmed.papers.spine import published as papers
from robustmed.process import files
from robustmed.report import figures, inputs, spec, tables


class Page:
  """Everything of the page that is not in every experiment's report."""

  def __init__(self, config, folder: pathlib.Path, held: inputs.Inputs):
    self.config, self.folder, self.held = config, folder, held
    self.results = folder / 'results'
    path = self.results / evaluation.ROWS
    self.ood = pd.DataFrame()
    if path.is_file():
      self.ood = statistics.prepare(files.read_with(path, pd.read_parquet))
    facts = self.results / evaluation.FACTS
    self.facts = files.read_json(facts) if facts.is_file() else {}

  def sections(self) -> tuple[spec.Section, ...]:
    made = (
      self._shape_models(),
      self._figures(),
      self._strips(),
      self._stronger(),
      self._two_readings(),
      self._worst(),
      self._outside(),
      self._detectors(),
    )
    return tuple(section for section in made if section is not None)

  def data_line(self) -> str:
    side = self.config.data.side
    line = f'Data: {self.config.data.source} at {side}x{side}.'
    if self.facts:
      sizes, groups = self.facts['sizes'], self.facts['groups']
      parts = [f'{sizes[k]} disks of {groups[k]} exams to {k}' for k in ('train', 'test')]
      line += f' {" and ".join(parts)}; no exam is on both sides.'
    return line

  def _draw(self, name: str, png: bytes | None) -> list[pathlib.Path]:
    return figures.save(self.folder, name, png)

  def _shape_models(self):
    if not self.facts:
      return None
    published = {'P03': 0.705, 'P05': 0.822, 'P10': 0.914}
    rows = [
      (name, len(shares), sum(shares), published.get(name, np.nan))
      for name, shares in self.facts['explained'].items()
    ]
    frame = pd.DataFrame(rows, columns=['model', 'components', 'variance explained', 'paper'])
    stored = inputs.arrays(self.results / evaluation.VIRTUAL)
    drawn = self._draw('Fig_02_real_and_virtual_disk', drawings.virtual(stored)) if stored else []
    return spec.Section(
      'Shape models (Fig. 2)',
      'Training shapes are drawn anew for every step: the mean plus each component times a '
      'uniform number within two standard deviations. A training image lends its texture, warped '
      'by a thin-plate spline.',
      drawn,
      [('Share of the variance of the training contours', frame)],
    )

  def _figures(self):
    drawn = []
    for number, variant in drawings.VARIANTS.items():
      for true_scale in (False, True):
        png = drawings.robustness(
          self.held.summary,
          variant=variant,
          side=self.config.data.side,
          true_scale=true_scale,
        )
        kind = 'true_scale' if true_scale else 'as_printed'
        drawn += self._draw(f'Fig_{number:02d}_{variant}_{kind}', png)
    if not drawn:
      return None
    return spec.Section(
      'Robustness curves (Figs. 4 to 7)',
      'Each figure comes twice: with the axes of the paper, where noise levels stand at equal '
      'distances and Dice begins at 0.5, and true to scale.',
      drawn,
    )

  def _strips(self):
    stored = inputs.arrays(self.results / evaluation.STRIPS)
    if stored is None:
      return None
    drawn = self._draw('Fig_01a_inside', self._inside_pair(stored))
    for number, attack in ((8, 'pgd_reg'), (9, 'pgd_seg')):
      drawn += self._draw(f'Fig_{number:02d}_{attack}', drawings.strip(stored, attack=attack))
    return spec.Section(
      'One disk at every level (Figs. 1a, 8 and 9)',
      'Truth in red, output in green; columns are noise levels.',
      drawn,
    )

  def _inside_pair(self, stored):
    here = (stored['arm'] == 'P10_std') & (stored['attack'] == 'pgd_seg')
    levels = [eps for eps in stored['eps'][here] if eps > 0]
    if not levels:
      return None
    eps = min(levels, key=lambda level: abs(level - 0.03))
    found = []
    for level in (0.0, eps):
      at = np.flatnonzero(here & (stored['eps'] == level))[0]
      row = statistics.select(self.held.rows, arm='P10_std', attack='pgd_seg', eps=float(level))
      row = row[row['index'] == stored['index'][at]].iloc[0]
      title = f'noise {level:g}: Dice {row["DICE_seg"]:.3f} (mask), {row["DICE_reg"]:.3f} (contour)'
      found.append(({name: stored[name][at] for name in stored}, title))
    (clean, first), (changed, second) = found
    return drawings.pair(clean, changed, titles=(first, second))

  def _stronger(self):
    lines = []
    for attack, metric in (('pgd_reg', 'DICE_reg'), ('pgd_seg', 'DICE_seg')):
      table = self.held.summary[self.held.summary['metric'] == metric]
      best = table[table['attack'] == f'{attack}_best']
      for _, row in best.iterrows():
        last = statistics.select(table, arm=row['arm'], attack=attack, eps=row['eps'])
        if len(last):
          lines.append((row['arm'], attack, row['eps'], last['mean'].iloc[0], row['mean']))
    if not lines:
      return None
    columns = ['arm', 'attack', 'level', 'last iterate (as the authors)', 'best iterate']
    runs = self.config.evaluate.attacks.pgd_seg_best.restarts
    return spec.Section(
      'A stronger look',
      'The authors report the last iterate of one run. The best iterate is what a patient attacker '
      f'would keep (runs: {runs}); an arm that falls much further here was flattered.',
      (),
      [('Dice under both', pd.DataFrame(lines, columns=columns))],
    )

  def _two_readings(self):
    paper, lines = papers.tables(), []
    for shape in drawings.COLOURS:
      for eps in tables.levels(self.held.summary, attack='pgd_seg'):
        ours = [self._mean(f'{shape}_{kind}', eps) for kind in ('std', 'rand', 'rand_only')]
        if np.isnan(ours[:2]).any():
          continue
        theirs = [
          tables.published(paper, arm=f'{shape}_{kind}', attack='pgd_seg', metric='DICE_seg')
          for kind in ('std', 'rand')
        ]
        gap = theirs[1].get(eps, np.nan) - theirs[0].get(eps, np.nan)
        lines.append((shape, eps, ours[1] - ours[0], ours[2] - ours[0], gap))
    if not lines:
      return None
    columns = ['model', 'level', 'image + noise', 'noise alone', 'paper']
    return spec.Section(
      'The two readings of rand',
      'The text trains on the image plus noise; the released code feeds noise without the image. '
      'The table says by how much each changes the Dice of the segmentation against std.',
      (),
      [('Dice of the segmentation minus that of std', pd.DataFrame(lines, columns=columns))],
    )

  def _mean(self, arm, eps):
    table = self.held.summary[self.held.summary['metric'] == 'DICE_seg']
    cell = statistics.select(table, arm=arm, attack='pgd_seg', eps=eps)
    return float(cell['mean'].iloc[0]) if len(cell) else np.nan

  def _worst(self):
    rows, lines = self.held.rows, []
    for arm in dict.fromkeys(rows['arm']):
      cell = statistics.select(rows, arm=arm, attack='pgd_seg', eps=claims.EPS)
      if cell.empty:
        continue
      row = cell.sort_values(['DICE_seg', 'index']).iloc[0]
      clean = statistics.select(rows, arm=arm, attack='none', eps=0.0)
      clean = clean[(clean['index'] == row['index']) & (clean['seed'] == row['seed'])]
      before = float(clean['DICE_seg'].iloc[0])
      lines.append((arm, int(row['group']), int(row['index']), before, row['DICE_seg']))
    if not lines:
      return None
    columns = ['arm', 'exam', 'image', 'clean Dice', 'attacked Dice']
    return spec.Section(
      'Worst cases',
      f'The test image that suffers most under `pgd_seg` at {claims.EPS:g}. The images '
      'themselves are in `results/worst/`, in the format of the lumbar_disks source.',
      (),
      [('Worst image by arm', pd.DataFrame(lines, columns=columns))],
    )

  def _outside(self):
    if self.ood.empty:
      return None
    metrics = ['agree_seg', 'agree_reg', 'agree_error', 'object_dice', 'score', '_distance']
    kept = self.ood[self.ood['attack'] != ood.IND]
    frame = kept.groupby(['arm', 'attack', 'eps'], sort=False)[metrics].mean().reset_index()
    drawn = []
    stored = inputs.arrays(self.results / evaluation.PICTURES)
    if stored is not None:
      drawn += self._draw('Fig_01b_outside', self._outside_pair(stored))
      drawn += self._draw('Fig_12_attacked_images', drawings.foreign(stored, attacks=('rec',)))
      drawn += self._draw(
        'Fig_12_without_reconstruction', drawings.foreign(stored, attacks=('ood',))
      )
    here = self.ood[(self.ood['arm'] == 'P10_std') & (self.ood['attack'] == 'ood')]
    if len(here):
      drawn += self._draw('Fig_10_agreement', drawings.agreement(here, arm='P10_std'))
    return spec.Section(
      'Attacks from outside the distribution (Figs. 1b, 10 and 12)',
      'An image that is no disk (a lung slice, `start.ct`, or uniform noise) is changed within an '
      'L2 budget until the network says of it what it says of a disk image. `agree` compares the '
      'two outputs; `object_dice` asks whether the change shows the disk; `score` is the '
      'reconstruction error.',
      drawn,
      [('Means over the images', frame.rename(columns={'_distance': 'L2 distance'}))],
    )

  def _outside_pair(self, stored):
    at = np.flatnonzero((stored['arm'] == 'P10_std') & (stored['attack'] == 'ood'))
    if not len(at):
      return None
    changed = {name: stored[name][at[0]] for name in stored}
    clean = {
      'image': changed['image'],
      'contour': changed['contour_wanted'],
      'segmentation': changed['mask_wanted'] - 0.5,
    }
    changed['image'] = changed['attacked']
    agree = f'Dice {changed["agree_seg"]:.3f} (mask), {changed["agree_reg"]:.3f} (contour)'
    return drawings.pair(clean, changed, titles=('disk image', f'attacked lung slice\n{agree}'))

  def _detectors(self):
    path = self.results / evaluation.DETECTORS
    if self.ood.empty or not path.is_file():
      return None
    frame = files.read_with(path, pd.read_csv)
    arms = list(dict.fromkeys(frame['arm']))
    if not arms:
      return None
    drawn = self._draw(
      'Fig_11_reconstruction_errors',
      drawings.reconstruction(self.ood, arms=arms, attack='rec'),
    )
    curves = {}
    for arm in arms:
      part = self.ood[self.ood['arm'] == arm]
      negative = part[part['attack'] == ood.IND]['score']
      for attack in dict.fromkeys(part['attack']):
        if attack != ood.IND:
          curve = detection.roc(negative, part[part['attack'] == attack]['score'])
          curves[f'{arm}, {attack}'] = (curve.false_positive, curve.true_positive)
    drawn += self._draw('ROC_of_the_detectors', drawings.rocs(curves))
    return spec.Section(
      'Detection by reconstruction (Fig. 11)',
      'A large reconstruction error is to give a foreign image away. `start.ct` and `start.noise` '
      'are unattacked images; `rec_blind` fools the outputs alone, `rec` outputs and detector as '
      'the authors did, `rec_adaptive` with ten times the weight on the detector. AUROC 1 is a '
      'perfect detector, 0.5 a useless one, less a fooled one. Limits are over patients, each '
      'with the foreign image that is to get its outputs.',
      drawn,
      [('AUROC of the reconstruction error', frame)],
    )
