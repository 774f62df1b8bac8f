"""The report of the study of gliomas: the paper's tables and figures, and what it did not try."""

import json
import pathlib
from typing import Any

import numpy as np
import pandas as pd

from robustmed import errors
from robustmed.ops import corruptions
from robustmed.papers.brats import claims as brats_claims
from robustmed.papers.brats import evaluation, notes, pairing, published
from robustmed.papers.brats import figures as drawings
from robustmed.papers.brats import rows as brats_rows
from robustmed.papers.brats import tables as brats_tables
from robustmed.process import files
from robustmed.report import figures, inputs, spec, tables

EPS, METRIC = brats_claims.EPS, 'dice_wt'


def other_run(config) -> pathlib.Path | None:
  """The folder of the finished run in the other dimension that config.report.other names."""
  if not config.report.other:
    return None
  folder = pathlib.Path(config.report.other).expanduser()
  path, stored = folder / 'results' / 'rows.parquet', folder / 'config.json'
  if not path.is_file() or not stored.is_file():
    raise errors.UserError(f'config.report.other: no results in {folder}; finish that run first')
  if files.read_json(stored).get('config', {}).get('dimension') != 5 - config.dimension:
    raise errors.UserError(
      f'config.report.other: {folder} is no brats run in {5 - config.dimension}D'
    )
  return folder


def make_claims(config, rows: pd.DataFrame | None = None, **found) -> tuple:
  """The claims of a run; before it has any rows, those that are known without.

  `found` are other arguments of `brats_claims.of_paper`.
  """
  if rows is None:
    rows = inputs.no_rows(brats_claims.METRICS)
  return brats_claims.of_paper(
    rows,
    dimension=config.dimension,
    arms=list(config.arms),
    alpha=config.evaluate.alpha,
    **found,
  )


class Page:
  """Everything of the page that is not in every experiment's report."""

  def __init__(self, config, folder: pathlib.Path, held: inputs.Inputs):
    self.config, self.folder, self.held = config, folder, held
    self.results = folder / 'results'
    shown = {name: notes.label(name, arm.defense) for name, arm in config.arms.items()}
    present = set(held.rows['arm'])
    self.every = {name: text for name, text in shown.items() if name in present}
    self.arms = {n: text for n, text in self.every.items() if not n.startswith('teacher_')}
    self.kinds = brats_claims.arms_of(list(self.arms))
    self.levels = tuple(e for e in tables.levels(held.summary, attack='fgsm') if e > 0)
    self.adaptive = brats_tables.adaptive(held.rows)
    self.curves = evaluation.curves(self.results)
    self.rivals = brats_rows.equal_steps(config.evaluate.attacks.to_dict())

  def claims(self):
    return make_claims(
      self.config,
      self.held.rows,
      adaptive=self.adaptive,
      training=self.held.training,
      curves=self.curves,
      **self.other(),
    )

  def other(self) -> dict[str, Any]:
    """The rows of the run in the other dimension, if the configuration names one, or why they are
    not paired with these."""
    folder = other_run(self.config)
    if folder is None:
      return {}
    reason = pairing.mismatch(self.folder, folder)
    return {'unpaired': reason} if reason else {'other': inputs.read(folder).rows}

  def sections(self) -> tuple[spec.Section, ...]:
    made = (
      self._attacks(),
      self._defenses(),
      self._stronger(),
      self._rivals(),
      self._pictures(),
      self._artefacts(),
      self._costs(),
    )
    return tuple(section for section in made if section is not None)

  def _draw(self, name: str, png: bytes | None) -> list[pathlib.Path]:
    return figures.save(self.folder, name, png)

  def _attacks(self):
    if 'std' not in self.arms:
      return None
    curves = self.curves
    if curves is not None:
      curves = curves[curves['arm'] == 'std']
    stored, pictures = inputs.arrays(self.results / evaluation.PICTURES), []
    if stored is not None:
      png = drawings.attacked_slices(stored, arm='std', eps=EPS, titles=brats_claims.ATTACKS)
      pictures = self._draw('fig2_attacks', png)
    png = drawings.against_iterations(
      curves,
      alpha=self.config.evaluate.alpha,
      attacks={name: brats_claims.ATTACKS[name] for name in evaluation.curve_attacks(self.config)},
    )
    return spec.Section(
      'Attacks on the undefended network (Table 1, Figs. 2-4)',
      f'Dice per subject, mean ± standard deviation; * differs from no attack, paired signed-rank '
      f'test with Holm over 9 tests. eps {EPS:g}; i-FGSM and ti-FGSM take 10 steps of '
      f'{self.config.evaluate.alpha:g}. The curves go on to {self.config.evaluate.iterations} '
      'steps of that size without a ball.',
      [*pictures, *self._draw('fig3_4_iterations', png)],
      [('Table 1', brats_tables.attacks(self.held.rows, eps=EPS))],
    )

  def _defenses(self):
    levels = [eps for eps in (EPS, brats_claims.HIGH) if eps in self.levels]
    if 'std' not in self.arms or len(self.arms) < 2 or not levels:
      return None
    dimension = self.config.dimension
    number, first = {3: 2, 2: 3}[dimension], {3: 5, 2: 6}[dimension]
    table, tests = brats_tables.defenses(
      self.held.rows, arms=self.arms, dimension=dimension, levels=levels
    )
    base = {'std': self.arms['std']}
    distilled = {**base, **{n: t for n, t in self.arms.items() if n.startswith('distil_')}}
    others = {n: t for n, t in self.arms.items() if n.startswith('at_') or n == 'noise'}
    more = {n: t for n, t in self.arms.items() if n not in {**distilled, **others}}
    style = {'attack': 'fgsm', 'paper': published.defenses(dimension)}
    drawn = [
      *self._draw(
        f'fig{first}_distillation',
        drawings.against_eps(self.held.summary, arms=distilled, **style),
      ),
      *self._draw(
        f'fig{first + 2}_adversarial_training',
        drawings.against_eps(
          self.held.summary, arms={**base, **others}, starred=('noise',), **style
        ),
      ),
    ]
    if more:
      png = drawings.against_eps(self.held.summary, arms={**base, **more}, attack='fgsm')
      drawn += self._draw('more_defenses', png)
    return spec.Section(
      f'Defenses under FGSM (Table {number}, Figs. {first} and {first + 2})',
      'What the paper reports: one step of FGSM at T = 1. * differs from no defense at the same '
      "eps, paired signed-rank test with Holm over the family: the paper's defenses, or those of "
      'ours beside them; the paper prints raw p values and stars those of 0.05 or less.',
      drawn,
      [
        (f'Table {number}', table),
        ('Tests behind it, with effect size and both corrections', brats_tables.printed(tests)),
      ],
    )

  def _stronger(self):
    if len(self.arms) < 2:
      return None
    rows = self.held.rows
    cells = {'arms': self.arms, 'eps': EPS}
    table = brats_tables.stronger(rows, metric=METRIC, **cells)
    found = pd.concat(
      [
        brats_rows.verdicts(
          rows,
          arms=list(self.arms),
          attacks=self.adaptive,
          eps=EPS,
          metric=m,
          rivals=self.rivals,
        ).assign(region=region)
        for m, region in brats_tables.HEADS.items()
      ],
      ignore_index=True,
    )
    found = _readable(found)
    drawn = ('fgsm', 'ifgsm', 'scaled_fgsm', 'scaled_ifgsm', 'transfer')
    kept = self.held.summary[
      (self.held.summary['metric'] == METRIC) & np.isclose(self.held.summary['eps'], EPS)
    ]
    in_order = [kept[kept['arm'] == name].assign(arm=text) for name, text in self.arms.items()]
    kept = pd.concat(in_order, ignore_index=True)
    png = figures.bars(
      kept, attacks={name: name for name in drawn}, metric='whole-tumour Dice', level=EPS
    )
    verdicts = found[found['region'] == brats_tables.HEADS[METRIC]]
    told = ', '.join(f'{self.arms[a]}: **{v}**' for a, v in verdicts[['arm', 'verdict']].to_numpy())
    return spec.Section(
      'What an attacker does who knows (the adaptive column)',
      'Networks distilled at T tend to have logits that are several times too large, at most T '
      'times. Where their softmax is 0 or 1 in float32, the gradient of the Dice loss is exactly '
      '0, and FGSM moves nothing there. '
      '`scaled` attacks divide the logits by their mean margin first, `pgd_margin` and `pgd_ce` '
      'climb the margin and the cross-entropy, `transfer` uses images that attack std, `square` '
      f'asks for no gradient.\n\n{brats_rows.RULE}\n\nWhole tumour at eps {EPS:g}: '
      f'{told or "no defense"}.',
      [
        *self._draw('adaptive', png),
        *self._draw('label_leak', drawings.label_leak(self.held.summary, **cells)),
      ],
      [
        (f'Whole-tumour Dice at eps {EPS:g}', table),
        ('Verdicts', found),
        ('Diagnostics', brats_tables.diagnostics(rows, **cells)),
      ],
    )

  def _rivals(self):
    if not self.kinds['distil'] or not self.kinds['at']:
      return None
    levels = (0.0, *[eps for eps in (EPS, brats_claims.HIGH) if eps in self.levels])
    table = brats_tables.rivals(
      self.held.rows, distilled=self.kinds['distil'], trained=self.kinds['at'], levels=levels
    )
    return spec.Section(
      'Distillation against adversarial training',
      'Differences in Dice, distillation minus adversarial training, paired by subject; effect is '
      f'the rank-biserial correlation. Corrected over {len(table)} tests.',
      (),
      [('Paired tests', brats_tables.printed(table))],
    )

  def _pictures(self):
    stored = inputs.arrays(self.results / evaluation.PICTURES)
    if stored is None:
      return None
    eps = self.config.report.picture_eps
    png = drawings.models(stored, arms=self.arms, attack='fgsm', eps=eps)
    if png is None:
      return None
    return spec.Section(
      'The same slice under FGSM, network by network (Fig. 9)',
      'Above, the truth and what each network says of the image as it is; below it the image that '
      f'attacks the network itself at eps {eps:g}, what the network says of that, and the change. '
      'FLAIR.',
      self._draw('fig9_models', png),
    )

  def _artefacts(self):
    table = brats_tables.artefacts(self.held.rows, arms=self.arms, metric=METRIC)
    if table.empty:
      return None
    return spec.Section(
      'Artefacts of acquisition',
      'Motion ghosts, Rician noise and bias fields of rising severity, no attack.',
      (),
      [('Whole-tumour Dice', table)],
    )

  def _costs(self):
    table = inputs.seconds_per_step(self.held.training)
    if table.empty:
      return None
    steps = self._epoch()
    lines = []
    for arm, part in table.groupby('arm', sort=False):
      each = float(part['per_step'].median())
      lines.append((self.every.get(arm, arm), each, each * steps if steps else np.nan))
    columns = ['arm', 'seconds per step', 'seconds per epoch']
    ratio = brats_claims.cost_ratios(self.held.training, self.kinds)['ratio']
    told = ''
    if len(ratio):
      told = (
        ' Adversarial training takes '
        f'{float(ratio.median()):.3g} times the seconds of teacher and student together.'
      )
    return spec.Section(
      'Cost of training',
      'Compilation is not counted. Distillation trains two networks, the student with the teacher '
      'looking on; adversarial training takes a gradient of the image and two updates per batch, '
      'where the paper counts two passes.' + told,
      (),
      [('Measured in this run', pd.DataFrame(lines, columns=columns))],
    )

  def _epoch(self) -> float:
    path = self.folder / 'data.json'
    if not path.is_file():
      return 0.0
    size = json.loads(path.read_text())['sizes'].get('train', 0)
    return size / self.config.train.batch_size


def _readable(found: pd.DataFrame) -> pd.DataFrame:
  """A table of verdicts with short numbers; region and arm first."""
  names = {'gain_shown': 'gain, shown', 'gain_left': 'gain, left', 'kept': 'share kept'}
  names |= {
    'p_shown': 'p (Holm), shown',
    'p_left': 'p (Holm), left',
    'p_gone': 'p (Holm), below a third',
    'p_holds': 'p (Holm), above two thirds',
    'by': 'attack of equal steps',
    'p_aware': 'p (Holm), it hurts more',
  }
  shown = found.copy()
  for column in ('p_shown', 'p_left', 'p_gone', 'p_holds', 'p_aware'):
    shown[column] = [tables.probability(p) for p in shown[column]]
  rest = [name for name in shown.columns if name not in ('region', 'arm')]
  return shown[['region', 'arm', *rest]].rename(columns=names)


def spec_of(config, task, folder: pathlib.Path) -> spec.ReportSpec:
  """The page of a finished run in `folder`; its figures are drawn into report/figures."""
  held = inputs.read(folder)
  page = Page(config, folder, held)
  limits = (0.0, 1.0)
  return spec.ReportSpec(
    title=f'Gliomas in MR under attack: {config.dimension}D U-Net',
    description=(
      'One network marks a brain tumour in four MR series: whole tumour, core and enhancing '
      'tumour. It was trained without a defense (std), by distillation at a temperature T, on '
      'images that attack it (AT) and with noise added; every network then meets the same attacks.',
      f'Data: {config.data.source}, {config.data.side} voxels a side'
      + (f', every {config.data.slice_step}th slice' if config.data.slice_step > 1 else '')
      + f'; network {config.model.name} of width {config.model.width:g}.',
    ),
    panels=tuple(
      spec.Panel(metric, 'fgsm', True, f'Dice, {name}', limits)
      for metric, name in drawings.REGIONS.items()
    ),
    level_units=task.units,
    arms=tuple(spec.Arm(name, notes.label(name, arm.defense)) for name, arm in config.arms.items()),
    claims=page.claims(),
    paper=published.defenses(config.dimension),
    notes=notes.notes(config),
    sections=page.sections(),
    headline_eps=EPS,
    attack_units={
      name: corruptions.CORRUPTIONS[name].unit for name in config.evaluate.get('corruptions', ())
    },
  )
