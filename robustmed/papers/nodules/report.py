"""The report on nodules: the paper's tables and figures beside ours."""

import pathlib

import pandas as pd

from robustmed.metrics import froc
from robustmed.papers.nodules import arms as nodules_arms
from robustmed.papers.nodules import claims as nodules_claims
from robustmed.papers.nodules import evaluation, pools, published, tables
from robustmed.papers.nodules import figures as drawings
from robustmed.papers.nodules import scans as nodules_froc
from robustmed.process import files
from robustmed.report import figures, inputs, spec
from robustmed.runs import costs

KEPT = 'Confidence, mean ± standard deviation over patches'


def make_claims(config, scored=None, stress=None, made=None) -> tuple:
  """The claims of a run with these submissions, stressed patches and synthetic nodules; before it
  has any, those that are known without."""
  empty = pd.DataFrame()
  stress, made = (empty if frame is None else frame for frame in (stress, made))
  eps = float(config.pools.patch_search.eps)
  own = nodules_claims.of_paper(
    scored or {},
    stress,
    made,
    baseline=config.pools.victim,
    control=nodules_arms.CONTROL,
    eps=eps,
    code_eps=float(config.pools.code_search.eps),
    resamples=config.evaluate.resamples,
  )
  synthetic = nodules_claims.of_synthesiser(made, outside=pools.OUTSIDE)
  return (*own, *synthetic, *nodules_claims.beyond(stress, eps=eps))


class Page:
  """Everything of the page that is not in every experiment's report."""

  def __init__(self, config, task, arms, folder: pathlib.Path):
    self.config, self.task, self.folder = config, task, folder
    results = folder / 'results'
    self.froc = results / nodules_froc.FOLDER
    self.stress = _frame(results / evaluation.ROWS)
    self.made = _frame(results / evaluation.MADE)
    self.pictures = inputs.arrays(results / evaluation.PICTURES) or {}
    reference = config.reference
    self.scored = nodules_froc.read_scored(
      self.froc,
      min_diameter=config.data.min_diameter,
      other=reference.submission if reference.kind == 'submission' else '',
    )
    self.resamples = config.evaluate.resamples
    self.baseline = config.pools.victim
    graded = [name for name in config.arms if arms[name].evaluated is not False]
    self.labels = labels(graded)

  def sections(self) -> tuple[spec.Section, ...]:
    made = (
      *self._detection(),
      *self._stress(),
      self._uncertainty(),
      self._synthetic(),
      self._attacked(),
      self._networks(),
    )
    return tuple(section for section in made if section is not None)

  def _draw(self, name: str, png: bytes | None) -> list[pathlib.Path]:
    return figures.save(self.folder, name, png)

  # Whole scans --------------------------------------------------------------------------------

  def _detection(self):
    if not self.scored:
      return
    config = self.config
    nodules = files.read_with(self.froc / nodules_froc.KINDS, pd.read_csv)
    scans = len(next(iter(self.scored.values())).nodules)
    yield spec.Section(
      'Test scans (Table 1)',
      f'Nodules of {config.data.min_diameter:g} mm or more.',
      (),
      [
        (
          'Scans and nodules',
          tables.counts(nodules, scans=scans, min_diameter=config.data.min_diameter),
        )
      ],
    )
    methods = {nodules_arms.REFERENCE: 'baseline-DeepLung', **self.labels}
    table = tables.detection_table(self.scored, methods, resamples=self.resamples)
    against = {
      arm: tables.differences(self.scored, methods, baseline=arm, resamples=self.resamples)
      for arm in (nodules_arms.CONTROL, self.baseline)
    }
    candidates = tables.candidates(self.scored)
    drawn = self._draw('froc', drawings.froc(self._curves(methods)))
    captions = (
      ('CPM with its 95 % interval, sensitivity at false positives per scan, in per cent', table),
      *(
        (f'Against {self.labels.get(arm, arm)}, paired over scans', frame)
        for arm, frame in against.items()
      ),
      ('Candidates', candidates),
    )
    yield spec.Section(
      'Detection (Table 3)',
      'Curves are those of the first seed.',
      drawn,
      [(caption, frame) for caption, frame in captions if len(frame)],
    )

  def _curves(self, methods):
    lines = []
    for arm, shown in methods.items():
      if (arm, 0) in self.scored:
        found = froc.curve(self.scored[arm, 0])
        lines.append((shown, found.rate, found.sensitivity))
    return lines

  # Stress tests -------------------------------------------------------------------------------

  def _stress(self):
    if not len(self.stress):
      return
    texts = {
      4: (
        'Synthetic nodules (Table 4)',
        'Random codes and codes searched on the baseline, in lungs of the test scans.',
      ),
      5: (
        'Nodules under noise and attacks (Table 5)',
        'Higher is better. The level is the magnitude of uniform noise or the L of Poisson noise.',
      ),
      6: (
        'What is no nodule (Table 6)',
        'Lower is better. Negatives are about random places of the lungs.',
      ),
    }
    for number, (heading, text) in texts.items():
      columns = tables.COLUMNS[number]
      here = [(KEPT, self._table(columns, number=number))]
      if number == 5:
        here.append(('Readings that the paper does not have', self._table(tables.MORE)))
      drawn = []
      if number == 5:
        levels = {
          'uniform': self.config.stress.uniform,
          'uniform_wide': self.config.stress.uniform,
          'poisson': self.config.stress.poisson,
        }
        drawn = self._draw('fig9_noise', drawings.noise(self.pictures, levels))
        text += ' The figure is Fig. 9 of the paper.'
      yield spec.Section(heading, text, drawn, [pair for pair in here if len(pair[1])])
    own = tables.white_box(self.stress, self.labels)
    if len(own):
      yield spec.Section(
        'Attacked by themselves',
        'The patches of the tables above attack the baseline. Here every kind is shown beside '
        'patches that were searched on the network that meets them.',
        (),
        [(KEPT, own)],
      )

  def _table(self, columns, **options):
    return tables.stressed(self.stress, self.labels, columns, **options)

  def _uncertainty(self):
    table = tables.uncertainties(self.stress, self.labels)
    if not len(table):
      return None
    columns = (*tables.COLUMNS[5], *tables.COLUMNS[6])
    named = {arm: shown for arm, shown in self.labels.items() if shown in set(table['method'])}
    values = tables.stressed(self.stress, named, columns, metric='uncertainty')
    return spec.Section(
      'Is uncertainty enough?',
      'Uncertainty 2 / S, and the share of pairs of a stressed patch and one as it is that it puts '
      'in the right order (AUROC, 95 % interval over scans).',
      (),
      [('AUROC of the uncertainty', table), ('Uncertainty, mean ± standard deviation', values)],
    )

  # Pictures -----------------------------------------------------------------------------------

  def _synthetic(self):
    drawn = [
      *self._draw('fig5_before_after', drawings.before_and_after(self.pictures)),
      *self._draw('fig8_synthetic', drawings.synthetic(self.pictures)),
    ]
    table = tables.synthetic(self.made) if len(self.made) else self.made
    if not drawn and not len(table):
      return None
    return spec.Section(
      'Random and searched nodules (Figs. 5 and 8)',
      'Codes begin at the same random ones; numbers are of those that are large enough both ways. '
      'Training nodules are those with a mask and of the same size or more. In the border: the '
      'share of the nodule in the outermost voxels of the patch, where no nodule should be.',
      drawn,
      [('Size and density, mean ± standard deviation', table)] if len(table) else [],
    )

  def _attacked(self):
    drawn = self._draw('fig6_attacked', drawings.attacked(self.pictures))
    if not drawn:
      return None
    return spec.Section('Attacked patches (Fig. 6)', 'Differences are shown on [0, 0.3].', drawn)

  def _networks(self):
    shown = nodules_arms.shown_networks(self.config, self.task)
    ours = {
      name: (costs.parameter_count(task), costs.multiply_adds(task), task.image_shape[0])
      for name, task in shown.items()
    }
    return spec.Section(
      'Networks (Table 2)',
      'At the size of this preset; one multiply-add counts once.',
      (),
      [('Parameters and work', tables.networks(ours))],
    )


def labels(arms) -> dict[str, str]:
  """How arms are called on the page: as in the paper, where it has them."""
  known = {nodules_arms.CONTROL: 'baseline, trained on as long', **published.arms()}
  return {name: known.get(name, name.replace('_', ' ')) for name in arms}


def _frame(path: pathlib.Path) -> pd.DataFrame:
  return files.read_with(path, pd.read_parquet) if path.is_file() else pd.DataFrame()


def spec_of(config, task, arms, folder: pathlib.Path) -> spec.ReportSpec:
  """The page of a finished run in `folder`; its figures are drawn into report/figures."""
  page = Page(config, task, arms, folder)
  return spec.ReportSpec(
    title='Lung nodules: hardening with synthetic and attacked patches',
    description=(
      'Candidates in chest CT scans are told from nodules by a network (false-positive reduction). '
      'It is attacked: by a search in the code of a nodule synthesiser, by noise on nodules, and '
      'by noise on what is none. Variants are trained further on what is found, and all of them '
      'meet the same scans and the same stressed patches.',
      f'Data: {config.data.source}, patches of {config.data.side}^3 points '
      f'{config.data.spacing:g} mm apart.',
    ),
    panels=(
      spec.Panel('correct', 'pgd', True, 'patches told right under their own PGD', (0.0, 1.0)),
    ),
    level_units=task.units,
    arms=tuple(spec.Arm(name, shown) for name, shown in page.labels.items()),
    claims=make_claims(config, page.scored, page.stress, page.made),
    notes=notes(config),
    sections=page.sections(),
    headline_eps=config.report.picture_eps,
  )


def notes(config) -> tuple[str, ...]:
  """One paragraph for each reading of the paper."""
  listed = config.data.candidates == 'luna_v2'
  patch, codes = config.pools.patch_search, config.pools.code_search
  found = (
    "Candidates are those of the data set's own list, LUNA16's track for false-positive reduction."
    if listed
    else 'Candidates are those of '
    + ', '.join(
      [
        'a blob network',
        *(['its copy for ground glass'] if config.candidates.ground_glass else []),
        *(['a region proposal network'] if config.candidates.boxes else []),
      ]
    )
    + ', at most 100 a scan.'
  )
  return (
    f'{found} Negatives of training come from the list of candidates of the data set '
    f'({config.data.negatives_from}) and from random places of the lungs.',
    f'A mark hits within the radius of a nodule, nodules below {config.data.min_diameter:g} mm and '
    'irrelevant findings count neither way, and false positives are per scan of all scans. The CPM '
    'and the sensitivities are both of the raw curve; intervals and differences are from '
    f'{config.evaluate.resamples} draws of whole scans, the same ones for all networks.',
    'Variants begin where the baseline ends and are trained on. The paper compares them with the '
    'baseline as it was; here "baseline, trained on as long" has their steps and their schedule '
    'and learns from real patches alone, and whether synthetic nodules help is decided against it.',
    "The paper's Table 3: the CPM of DeepLung on NLST, 75.71, is its sensitivity at 8 false "
    'positives per scan; its seven sensitivities average 57.72. In other rows CPM and the average '
    'differ by up to 0.5 points (in-house baseline-beta-finetune 88.90 and 89.30), more than some '
    'of the differences claimed. All intervals of the paper overlap: no ranking below about 3 '
    'points is supported by them.',
    'Circularity: patches of training and those of Tables 4 to 6 are searched on one and the same '
    f'network, {config.pools.victim}, so these tables show transfer. Columns "its own", and the '
    'grid, were searched on the network that meets them; pools of training and of the stress tests '
    'have other scans and other random numbers.',
    f'Searches: L-infinity with the sign of the gradient, codes eps {codes.eps:g} and step '
    f'{codes.step_size:g}, patches eps {patch.eps:g} and step {patch.step_size:g}, '
    f'{patch.num_steps} steps from a random start; patches are kept within [0, 1]. The paper gives '
    'eps, step and number for the codes alone, and neither norm nor sign.',
    'Table 4 of the paper has no method in its first line; the text says baseline-beta-finetune. '
    'Its text has 0.87 for beta+syn under searched nodules, its table 0.88.',
    'Poisson noise is Poisson(L x) / L. The paper says "[0, 50] and [0, 1]" and then x50 and x5; '
    'L = 1 would hurt far more than its 0.86 to 0.78. Training draws L from '
    f'{tuple(config.pools.poisson)}, a strength that the paper does not give.',
    'Uniform noise of magnitude m is x + U(-m/2, m/2), the mildest reading, unclipped; '
    '"uniform_wide" is U(-m, m).',
    'The threshold of the fusion is '
    f'{config.synthesiser.threshold:g} of the window [-1200, 600] HU; synthetic nodules of '
    f'{config.synthesiser.smallest:g} mm or more are kept. The size of the code and all layers are '
    'ours; the paper gives none. The divergence is summed over the code, the error a mean, and the '
    'weight of the critic is divided by the root of the number of voxels, else it would outweigh '
    f'the error. Of what the critic is shown {config.synthesiser.weights.prior:g} is decoded from '
    'random codes; the paper shows it reconstructions alone.',
    'The beta loss is the expected sum of squares with a divergence of the evidence for the wrong '
    f'class, which rises over the first {config.model.anneal:g} of the training. Uncertainty is '
    '2 / S.',
    'Shares of training draws: positives and negatives alike; '
    'a variant that has not one of the kinds gives its share to the real ones.',
  )
