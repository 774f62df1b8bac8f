"""The report on adaptive-margin training: the paper's tables and figures beside ours."""

import functools
import pathlib

import numpy as np
import pandas as pd

from robustmed.evaluation import statistics, trials
from robustmed.metrics import slice_sets
from robustmed.papers.amat import claims as amat_claims
from robustmed.papers.amat import figures as drawings
from robustmed.papers.amat import parts, published
from robustmed.process import files
from robustmed.report import figures, inputs, spec, tables

_WORDS = {
  'dice': 'Dice',
  'final': 'the last iterate',
  'any': 'every iterate',
  'epoch_end': 'at the end of every epoch',
  'immediate': 'after every step',
}
_READINGS = {
  'criterion': 'a margin grows where the {} of the attacked image is good enough',
  'test': 'tested on {} of the training attack',
  'when': 'margins change {}',
}


def make_claims(config, part, *, levels, rows=None, clean=None, training=None) -> tuple:
  """The claims of a run with these attacked levels; before it has any results, those that are known
  without. `clean` is V of the std arm, `training` is the log."""
  return amat_claims.of_paper(
    inputs.no_rows([part.METRIC]) if rows is None else rows,
    metric=part.METRIC,
    sat=_sat(config),
    levels=tuple(levels),
    clean=_clean(config, part, None, strata=()) if clean is None else clean,
    seconds=amat_claims.ratios(training, sat=_sat(config)),
    saying=part.saying(config),
  )


def _sat(config) -> tuple[str, ...]:
  return tuple(name for name in config.arms if name.startswith('sat_'))


def _clean(config, part, stored, *, strata: tuple[str, ...]) -> amat_claims.Clean:
  """V of a thresholds.npz, which earlier versions wrote without groups; empty without the file.

  `strata`: the names of the task's.
  """
  kind = parts.criterion(config, part.CRITERIA)
  if stored is None:
    return amat_claims.Clean(np.zeros((0, len(kind.valued))), what=kind.what)
  found = amat_claims.Clean(stored['values'], stored.get('group'), what=kind.what)
  return found._replace(strata=stored['stratum'], names=strata) if kind.strata else found


class Page:
  """The parts of the page that only this paper's report has."""

  def __init__(self, config, part, folder: pathlib.Path, held: inputs.Inputs, *, strata):
    self.config, self.part, self.folder, self.held = config, part, folder, held
    self.results = folder / 'results'
    self.sat = _sat(config)
    self.levels = tuple(e for e in tables.levels(held.summary, attack='pgd') if e > 0)
    # That of which details are shown.
    self.first = trials.listed(1, config.data.get('folds', 0))[0]
    of_amat = folder / 'checkpoints' / 'amat' / self.first.folder
    self.thresholds = inputs.arrays(of_amat / 'thresholds.npz')
    self.clean = _clean(config, part, self.thresholds, strata=strata)

  def claims(self):
    if not self.levels:
      return ()
    return make_claims(
      self.config,
      self.part,
      levels=self.levels,
      rows=self.held.rows,
      clean=self.clean,
      training=self.held.training,
    )

  def sections(self) -> tuple[spec.Section, ...]:
    made = (
      self._margins(),
      self._clean_values(),
      self._costs(),
      self._indices(),
      self._whole_volumes(),
      *self.part.sections(self),
      self._stronger(),
    )
    return tuple(self._renamed(section) for section in made if section is not None)

  @staticmethod
  def with_paper_names(held):
    """The frame or arrays with the paper's names in 'arm', if there is such a column."""
    if 'arm' not in held:
      return held
    names = [label(str(name)) for name in held['arm']]
    return held.assign(arm=names) if isinstance(held, pd.DataFrame) else {**held, 'arm': names}

  def _renamed(self, section):
    renamed = [(caption, self.with_paper_names(frame)) for caption, frame in section.tables]
    return section._replace(tables=renamed)

  def draw(self, name: str, png: bytes | None) -> list[pathlib.Path]:
    """Writes a picture into report/figures; returns [its path] for a section, or []."""
    return figures.save(self.folder, name, png)

  def _margins(self):
    path = self.folder / 'logs' / f'amat.{self.first}.margins.csv'
    if not path.is_file():
      return None
    table = files.read_with(path, pd.read_csv)
    last = table.iloc[[-1]][['step', 'drawn', 'min', 'mean', 'max']]
    defense = self.config.arms.amat.defense
    cap = f'{defense.max_margin:g}' if self.config.reading.cap else 'none'
    return spec.Section(
      'Margins over training',
      f'Every training example has a margin of its own, {defense.step:g} at the start. It grows by '
      f'{defense.step:g} while the attacked image stays good enough; cap: {cap}.',
      self.draw('margins', drawings.margins(table)),
      [(f'Margins at the end of training ({self._which()})', last)],
    )

  def _which(self) -> str:
    return 'first fold of the first seed' if self.first.fold else 'first seed'

  def _clean_values(self):
    if not len(self.clean.values):
      return None
    reading, clean, lines, drawn = self.config.reading, self.clean, [], []
    kind = parts.criterion(self.config, self.part.CRITERIA)
    for name, kept in clean.kinds().items():
      row = clean.names.index(name) if kind.strata else ()
      for term, limit, values in zip(
        kind.valued, self.thresholds['xi'][row], clean.values[kept].T, strict=True
      ):
        title = ', '.join(filter(None, (term.strip('_'), name)))
        drawn.append(drawings.Sample(title, values, float(limit)))
        lines.append((title, len(values), np.mean(values), np.std(values), limit))
    more = '' if reading.estimator == 'max' else f' + {reading.deviations:g} deviations'
    fold = f' of the {self._which()}' if self.first.fold else ''
    columns = ['V', 'examples', 'mean', 'deviation', 'threshold']
    return spec.Section(
      f'Clean {clean.what} V of STD and the threshold',
      f'Of {len(clean.values)} training examples{fold}, without augmentation. The threshold is '
      f'{reading.estimator}{more}.',
      self.draw('clean_values', drawings.clean_values(drawn, what=clean.what)),
      [('V and its threshold', pd.DataFrame(lines, columns=columns))],
    )

  def _costs(self):
    table = inputs.seconds_per_step(self.held.training)
    if table.empty:
      return None
    per_epoch = self.config.train.optimisers.main.steps_per_epoch
    lines = []
    for arm, part in table.groupby('arm', sort=False):
      lines.append((arm, float(part['per_step'].median()) * per_epoch, self._published_cost(arm)))
    frame = pd.DataFrame(lines, columns=['arm', 'seconds per epoch', 'paper (V100)'])
    ratio = amat_claims.ratios(self.held.training, sat=self.sat)
    text = f'An epoch has {per_epoch} steps. Compilation is not counted.'
    if len(ratio):
      text += f' AMAT / SAT, median over the log: {float(ratio["ratio"].median()):.3f}.'
    return spec.Section('Cost of training (Table 2)', text, (), [('Measured in this run', frame)])

  def _published_cost(self, arm):
    kind = 'SAT' if arm in self.sat else arm.upper()
    return published.costs(self.config.data.get('task', '')).get(kind, np.nan)

  def _indices(self):
    rows = self.held.rows
    if '_tp1' not in rows.columns:
      return None
    kept = rows[rows['attack'].isin(['pgd', statistics.CLEAN])]
    lines = []
    for (arm, eps), part in kept.groupby(['arm', 'eps'], sort=False):
      lines.append((arm, eps, slice_sets.adi(part), slice_sets.tvdi(part)))
    frame = pd.DataFrame(lines, columns=['arm', 'level', 'ADI', 'TVDI'])
    paper = published.clean(self.config.data.get('task', ''))
    return spec.Section(
      'ADI and TVDI (Table 1, eq. 2)',
      'ADI is the mean over slices of the mean Dice of the classes; TVDI sums hits and misses over '
      f'all evaluated slices first. Clean TVDI of STD in the paper: {tables.number(paper)}.',
      (),
      [('Both indices', frame)],
    )

  def _whole_volumes(self):
    path = self.results / 'volumes.csv'
    if not path.is_file():
      return None
    table = files.read_with(path, functools.partial(pd.read_csv, keep_default_na=False))
    keys = ['arm', 'attack', 'eps', 'class']
    found = table.groupby(keys, sort=False)[['Dice', 'HD95_mm', 'NSD']].mean()
    found['volumes'] = table.groupby(keys, sort=False)['group'].nunique()
    return spec.Section(
      'Whole volumes',
      'All slices of the test volumes, empty ones included. HD95 is in mm; NSD is the share of '
      f'both surfaces within {self.config.evaluate.tolerance:g} mm of the other. A class that '
      'neither truth nor prediction has scores Dice 1, HD95 0, NSD 1; one that only one of them '
      'has scores Dice 0, the diagonal of the volume, NSD 0.',
      (),
      [('Means over volumes', found.reset_index())],
    )

  def _stronger(self):
    level, shown = self.config.report.picture_eps, _attacks_of(self.config)
    kept = self.held.summary[
      (self.held.summary['metric'] == self.part.METRIC)
      & self.held.summary['attack'].isin(shown)
      & np.isclose(self.held.summary['eps'], level)
    ]
    if kept.empty or set(kept['attack']) == {'pgd'}:
      return None
    frame = kept.pivot_table(index='arm', columns='attack', values='mean', sort=False)
    names = [name for name in shown if name in frame.columns]
    frame = frame[names].rename(columns=shown).reset_index()
    png = figures.bars(
      self.with_paper_names(kept), attacks=shown, metric=self.part.METRIC, level=level
    )
    return spec.Section(
      'Stronger attacks',
      'The paper reports the last iterate of PGD-100. An arm that falls much further under the '
      'other attacks looked better than it is; one that falls further under images made for STD '
      'masks its gradients.',
      self.draw('stronger', png),
      [(f'{self.part.METRIC} at level {level:g}', frame)],
    )


def spec_of(config, part, task, folder: pathlib.Path) -> spec.ReportSpec:
  """The page of a finished run in `folder`; its figures are drawn into report/figures."""
  held = inputs.read(folder)
  page = Page(config, part, folder, held, strata=task.strata.names if task.strata else ())
  return spec.ReportSpec(
    title=f'Adaptive-margin adversarial training: {config.data.task}',
    description=(
      'STD is trained on clean images, SAT on images attacked within one L2 level for all, AMAT on '
      'images attacked within a margin of their own that grows while the network still succeeds. '
      'All are then evaluated under the same attacks.',
      f'Data: {config.data.source}; network {config.model.name} on {_shape(task)}.',
    ),
    panels=part.PANELS,
    paper=part.published(config),
    level_units=task.units,
    arms=tuple(spec.Arm(name, label(name)) for name in config.arms),
    claims=page.claims(),
    notes=notes(config, part),
    sections=page.sections(),
    headline_eps=config.report.picture_eps,
  )


def _attacks_of(config) -> dict[str, str]:
  """{attack: its label} of the attacks that are compared."""
  attacks = config.evaluate.attacks
  labels = {
    'pgd': 'PGD-{num_steps}, last iterate',
    'pgd_best': 'PGD-{num_steps}, best iterate',
    'apgd': 'APGD-{num_steps} (no step size)',
    'transfer': 'transfer from STD',
  }
  return {
    name: text.format(**attacks[name].to_dict()) for name, text in labels.items() if name in attacks
  }


def _shape(task):
  return 'x'.join(str(n) for n in task.image_shape)


def label(name: str) -> str:
  """What the paper calls an arm."""
  if name == 'std_bce':
    return 'STD(BCE)'
  return name.replace('sat_', 'SAT') if name.startswith('sat_') else name.upper()


def notes(config, part) -> tuple[str, ...]:
  """Notes of the page on how this run was made."""
  reading, noise = config.reading, config.noise
  found = [
    'Margins: '
    + '; '.join(
      text.format(_WORDS.get(reading[name], reading[name])) for name, text in _READINGS.items()
    )
    + f'; refined where it fails: {"yes" if reading.refine else "no"}.',
    *part.notes(config),
    'The final weights of every arm are evaluated, none selected on validation data.',
  ]
  warm = [name for name, arm in config.arms.items() if arm.get('init_from', '')]
  if warm:
    found.append(
      f'{", ".join(map(label, warm))} start from the finished weights of '
      f'{label(config.arms[warm[0]].init_from)}; in the paper every arm is trained from scratch.'
    )
  if reading.get('attack_bn', 'running') != 'running':
    found.append(
      f'Batch statistics of training attacks: {reading.attack_bn}. An example of a training batch '
      'is then attacked differently beside other neighbours, and with another number of devices.'
    )
  if noise.scale != 1:
    found.append(
      f'L2 levels, training levels, margin step and cap are {noise.scale:g} times those of the '
      f'paper ({" ".join(f"{e / noise.scale:.3g} -> {e:g}" for e in config.evaluate.levels)}), as '
      'the images have fewer elements: the root mean square per element is the same.'
    )
  return tuple(found)
