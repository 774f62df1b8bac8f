"""The report on synthesised attacks: the paper's table and figures beside ours."""

import pathlib

import pandas as pd

from robustmed.data.abdomen import ct_slices
from robustmed.evaluation import statistics
from robustmed.papers.synthesis import arms, published
from robustmed.papers.synthesis import claims as synthesis_claims
from robustmed.papers.synthesis import evaluation as synthesis_evaluation
from robustmed.papers.synthesis import figures as drawings
from robustmed.papers.synthesis import slices as evaluation
from robustmed.process import files
from robustmed.report import figures, inputs, spec, tables

ORGANS = ct_slices.ORGANS
_NAMES = {'dv': 'I_DV', 'd': 'I_D', 'v': 'I_V', 'smooth': 'random smooth', 'pgd': 'PGD'}


def make_claims(config, subjects: pd.DataFrame | None = None, *, stops=None) -> tuple:
  """The claims of a run; before it has any subjects, those that are known without. `stops` are
  those of `synthesis_claims.of_paper`."""
  subjects = pd.DataFrame() if subjects is None else subjects
  options = config.synthesis
  single = fresh = float(options.pictured)
  if options.hardened_at:
    fresh = float(max(options.fresh_levels, default=single))
  of = {'target': options.target, 'single': single}
  hardened = {'target': options.target, 'hardened': arms.HARDENED}
  return (
    *synthesis_claims.of_paper(subjects, levels=_levels(config), stops=stops, **of),
    *synthesis_claims.beyond(subjects, single=single, fresh=fresh, **hardened),
    synthesis_claims.hardened_under_pgd(eps=config.report.picture_eps, **hardened),
  )


def _levels(config) -> tuple[float, ...]:
  return tuple(sorted(float(xi) for xi in config.synthesis.levels if xi > 0))


class Page:
  """The parts of the page that only this paper's report has."""

  def __init__(self, config, folder: pathlib.Path):
    self.config, self.folder, self.held = config, folder, inputs.read(folder)
    results = folder / 'results'
    self.subjects = _frame(results / synthesis_evaluation.SUBJECTS, pd.read_parquet)
    if len(self.subjects):
      self.subjects = self.subjects.assign(moved_gain=lambda t: t['MOVED'] - t['DICE'])
    self.looks = _frame(results / synthesis_evaluation.LOOKS, pd.read_csv)
    self.pictures = inputs.arrays(results / synthesis_evaluation.PICTURES)
    options = config.synthesis
    self.target, self.single = options.target, float(options.pictured)
    self.tolerance = options.tolerance
    self.levels = _levels(config)
    self.cases = arms.generator_cases(config)

  def stops(self) -> dict[tuple[float, int], str]:
    """(xi, seed) -> why the training of a generator against the target ended early."""
    if not len(self.looks):
      return {}
    named = {name: xi for name, (xi, arm) in self.cases.items() if arm == self.target}
    ended = self.looks[self.looks['arm'].isin(named) & self.looks['stop'].fillna('').ne('')]
    return {
      (named[arm], int(seed)): str(stop)
      for arm, seed, stop in ended[['arm', 'seed', 'stop']].itertuples(index=False)
    }

  def sections(self) -> tuple[spec.Section, ...]:
    if not len(self.subjects):
      return ()
    made = (
      self._table(),
      self._sweep(),
      self._examples(),
      self._fields(),
      self._displaced(),
      self._transfer(),
      self._hardening(),
      self._training(),
    )
    return tuple(section for section in made if section is not None)

  def _draw(self, name: str, png: bytes | None) -> list[pathlib.Path]:
    return figures.save(self.folder, name, png)

  def _cells(self, arm, kinds, xis):
    return {f'{_NAMES[kind]} {xi:g}': (arm, kind, xi) for kind in kinds for xi in xis}

  def _table(self):
    clean = {'I_0': (self.target, statistics.CLEAN, 0.0)}
    cells = {**clean, **self._cells(self.target, ('dv',), (0.0, *self.levels))}
    cells |= self._cells(
      self.target, ('d', 'v', 'smooth', 'pgd'), self.config.synthesis.controls_at
    )
    ours = evaluation.table(self.subjects, ORGANS, cells)
    line = {organ: synthesis_claims.SUCCESS * ours.loc[0, organ] for organ in ORGANS}
    ours = pd.concat([ours.iloc[:1], pd.DataFrame([{'image': '30 % decrease', **line}]), ours[1:]])
    seen = self.subjects[self.subjects['arm'] == self.target]['group'].nunique()
    return spec.Section(
      'Dice of every organ (Table 1)',
      f'Means over {seen} test subjects of the Dice of their whole volumes, in per cent, against '
      'the truth as it is; p and X are means over slices with organs. X is measured with the '
      'generator and the segmenter in inference mode, log-softmax in float32. I_D and I_V have the '
      'other field left out. Controls at the same p as I_DV: a random field with the spectrum of D '
      'and V, and PGD (L-infinity) that ascends X.',
      (),
      [('Here', ours.reset_index(drop=True)), ('Chen et al. 2019, Table 1', published.table())],
    )

  def _sweep(self):
    table = evaluation.table(self.subjects, ORGANS, self._cells(self.target, ('dv',), self.levels))
    clean = evaluation.table(self.subjects, ORGANS, {'I_0': (self.target, statistics.CLEAN, 0.0)})
    if table.empty or clean.empty:
      return None
    base = {organ: clean.loc[0, organ] / 100 for organ in ORGANS}
    drawn = self._draw('dice_and_p', drawings.sweep(table, base, published.table()))
    return spec.Section('Strength of the attack', 'Dashed: 70 % of the clean Dice.', drawn)

  def _examples(self):
    if self.pictures is None:
      return None
    drawn = [
      *self._draw('Fig_02_two_draws', drawings.draws(self.pictures)),
      *self._draw('Fig_03_cases', drawings.cases(self.pictures)),
      *self._draw('deformation', drawings.deformation(self.pictures)),
    ]
    text = f'Generator {self.pictures["arm"]}, xi = {float(self.pictures["xi"]):g}.'
    return spec.Section('Synthesised images (Figs. 2 and 3)', text, drawn)

  def _fields(self):
    here = self.subjects[(self.subjects['attack'] == 'dv') & (self.subjects['arm'] == self.target)]
    columns = [n for n in ('X', 'p', 'D', 'V', 'folds', 'spread') if n in here.columns]
    table = here.groupby('eps', as_index=False)[columns].mean()
    return spec.Section(
      'The fields themselves',
      'Mean |D| in pixels and |V| in z-scores; folds: share of the pixels at which the map x + D '
      'folds over (Jacobian at most 0); spread: standard deviation of a pixel of I_DV over '
      f'{self.config.synthesis.draws} draws of z.',
      (),
      [('By xi', table.rename(columns={'eps': 'xi'}))],
    )

  def _displaced(self):
    kept = self.subjects[self.subjects['attack'].isin(['dv', 'd'])]
    keys = ['arm', 'attack', 'eps']
    table = kept.groupby(keys, as_index=False)[['DICE', 'MOVED']].mean()
    return spec.Section(
      'Error of the network or honest displacement?',
      'The paper compares with the truth as it is, although D moves the organs. MOVED is the mean '
      'Dice against the truth moved with D.',
      (),
      [('Mean Dice over organs', table.rename(columns={'eps': 'xi'}))],
    )

  def _transfer(self):
    kept = self.subjects[self.subjects['attack'].str.startswith('dv')]
    if kept['arm'].nunique() < 2:
      return None
    table = kept.pivot_table(index=['attack', 'eps'], columns='arm', values='DICE').reset_index()
    return spec.Section(
      'Other segmenters and transfer',
      'dv: made against the network of the column; dv_from_X: made against X, evaluated on the '
      'network of the column.',
      (),
      [('Mean Dice over organs', table.rename(columns={'eps': 'xi'}))],
    )

  def _hardening(self):
    if arms.HARDENED not in set(self.subjects['arm']):
      return None
    kept = self.subjects[self.subjects['arm'].isin([self.target, arms.HARDENED])]
    kept = kept[kept['attack'].isin([statistics.CLEAN, 'dv', f'dv_from_{self.target}'])]
    columns = ['DICE', *(f'DICE_{organ}' for organ in ORGANS)]
    table = kept.groupby(['arm', 'attack', 'eps'], as_index=False)[columns].mean()
    return spec.Section(
      'Hardening with generated examples',
      'The paper leaves this to future work. dv of the hardened network is under a generator that '
      'was newly trained against it.',
      (),
      [('Dice', table.rename(columns={'eps': 'xi'}))],
    )

  def _training(self):
    levels = {name: xi for name, (xi, _) in self.cases.items()}
    png = None
    if self.held.training is not None:
      png = drawings.training(self.held.training, self.looks, levels=levels)
    lines = []
    if len(self.looks):
      for (arm, seed), part in self.looks.groupby(['arm', 'seed'], sort=False):
        best = part.loc[part['score'].idxmin()]
        stop = part['stop'].dropna()
        reason = str(stop.iloc[-1]) if len(stop) and str(stop.iloc[-1]) else ''
        lines.append((arm, seed, best['xi'], best['X'], int(best['step']), reason))
    names = ['arm', 'seed', 'xi', 'X (validation)', 'step kept', 'ended early because']
    return spec.Section(
      'Training of the generators',
      'Dashed: the wanted xi; dotted: X on validation slices in inference mode, by which the '
      f'weights are chosen: nearest to xi, of those within {self.tolerance:.0%} the least '
      'perceptible. In training, batch normalisation uses the statistics of the batch.',
      self._draw('training_of_generators', png),
      [('Weights kept', pd.DataFrame(lines, columns=names))],
    )


def _frame(path: pathlib.Path, reader) -> pd.DataFrame:
  return files.read_with(path, reader) if path.is_file() else pd.DataFrame()


def spec_of(config, task, folder: pathlib.Path) -> spec.ReportSpec:
  """The page of a finished run in `folder`; its figures are drawn into report/figures."""
  page = Page(config, folder)
  sizes = ', '.join(f'{n} to {k}' for k, n in zip(ct_slices.SPLITS, config.data.subjects))
  return spec.ReportSpec(
    title='Synthesised attacks on abdominal organ segmentation',
    description=(
      'A generator changes a CT slice by a deformation D and a smooth change of brightness V, '
      'until the output of a fixed segmenter of pancreas, kidneys, liver and spleen has changed by '
      'a wanted amount xi. A critic keeps the image realistic. Every segmenter (arm) is also '
      'evaluated under PGD.',
      f'Data: {config.data.source}, {config.data.side}x{config.data.side}; subjects: {sizes}.',
    ),
    panels=(spec.Panel('DICE', 'pgd', True, 'Mean Dice of slices under PGD', (0.0, 1.0)),),
    level_units=task.units,
    claims=make_claims(config, page.subjects, stops=page.stops()),
    notes=_notes(config),
    sections=page.sections(),
    headline_eps=config.report.picture_eps,
  )


def _notes(config) -> tuple[str, ...]:
  weights = config.synthesis.weights
  limit = config.synthesis.train.optimisers.critic.get('clip_weights', 0.0)
  rules = [f'its weights are clipped to +-{limit:g}'] if limit else []
  rules += [f'it has a gradient penalty, weight {weights.penalty:g}'] if weights.penalty else []
  loss = {'ce': 'cross-entropy, as in the paper', 'ce_dice': 'cross-entropy and Dice of the batch'}
  return (
    f'U-Nets were trained on {loss[config.reading.loss]}, a hardened network on the loss of its '
    'target.',
    'X is the mean over organ pixels; the paper does not say whether it is a sum or a mean over a '
    'slice, and a mean over the whole slice could never reach 2.',
    'X is a cross-entropy towards the clean output, so it includes the entropy of that output: for '
    'an unchanged image it is not 0 but X of I_0 in the table, and xi = 0 cannot be reached.',
    '|D|^2 and |V|^2 are means over pixels. The paper has no weight for KL; here it is '
    f'{weights.divergence:g}.',
    'The paper does not say how the critic is kept Lipschitz; here '
    f'{" and ".join(rules) or "nothing does"}. Its batch norm has no scale of its own.',
    'Layers, latent size and the bounds of D and V are ours; the paper gives none.',
    f'Slices with fewer than {tables.number(weights.min_pixels)} organ pixels in the clean output '
    'do not count for X.',
  )
