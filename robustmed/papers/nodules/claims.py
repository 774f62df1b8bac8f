"""What Liu et al. 2020 say of hardened nodule networks, as tests on scans and stressed patches."""

import dataclasses

import pandas as pd

from robustmed.evaluation import claims, statistics
from robustmed.papers.nodules import scan_kinds, scans

TABLE_3, TABLE_4, TABLE_5, TABLE_6 = (f'Table {number}' for number in (3, 4, 5, 6))
STAGE, TEXT, OURS = 'Section 3.1', 'Discussion', 'not in the paper'
ABOUT_EQUAL = 0.02  # CPM
FOOLED, RESISTS = 0.5, 0.3  # confidence on what is no nodule
LOW_RATES = (0.125, 0.25)  # false positives per scan
DETECTS = 0.9  # AUROC from which a score would be enough of a detector
FAITHFUL = 0.05  # confidence that '+syn' may lack on searched nodules against random ones
POISSON = 5.0  # photons at which noise is compared
UNIFORM = 0.9  # magnitude at which noise is compared
# Why a threshold is where it is, as the claims table prints it.
REASONS = {
  ABOUT_EQUAL: 'tolerance 0.02: ours, two points of the CPM',
  FOOLED: 'where a patch is called a nodule',
  RESISTS: 'ours; the paper has 0.08',
  FAITHFUL: 'tolerance 0.05: ours; the paper lacks 0.04',
}
NAMES = {
  'syn': 'synthetic nodules',
  'perturb': 'attacked patches',
  'perturb_syn': 'attacked patches and synthetic nodules',
  'poisson': 'Poisson noise',
  'poisson_syn': 'Poisson noise and synthetic nodules',
}


def of_paper(
  scored: scan_kinds.Submissions,
  stress: pd.DataFrame,
  made: pd.DataFrame,
  *,
  baseline: str,
  control: str,
  eps: float,
  code_eps: float,
  resamples: int = 1000,
) -> tuple[claims.Claim, ...]:
  """The claims of the paper; `eps` and `code_eps` are those of the searches of stress tests.

  control: the arm against which it is decided whether what variants learn from is of help on whole
  scans; the paper's is the baseline.
  """
  return (
    *_candidates(scored),
    *_scans(scored, baseline, control, resamples),
    *_codes(stress, made, baseline, code_eps),
    *_positives(stress, baseline, eps),
    *_negatives(stress, baseline, eps),
  )


def _candidates(scored):
  """72.00, 98.00 and 100 % of the nodules in house, 73.07, 93.07 and 97.69 % of NLST."""
  for first, second, statement in (
    (scans.HEAT, scans.BOXES, 'Blob networks find more nodules than the region proposal network'),
    (scans.FOUND, scans.HEAT, 'Both together find more nodules than blob networks alone'),
  ):
    yield claims.Claim(statement, STAGE, scan_kinds.Found(first, second, scored))


def _scans(scored, baseline, control, resamples):
  def cpm(statement, first, second, place=TABLE_3, tolerance=0.0, **bounds):
    if tolerance:
      bounds['reason'] = REASONS[tolerance]
    test = scan_kinds.Cpm(first, second, scored, resamples=resamples, **bounds)
    return claims.Claim(statement, place, test)

  yield cpm('Searched codes help more than random ones (CPM)', 'syn', 'syn_random', low=0.0)
  yield cpm(
    'Searched codes help more than random ones at few false positives',
    'syn',
    'syn_random',
    low=0.0,
    rates=LOW_RATES,
  )
  yield cpm('Synthetic nodules of random codes help (CPM)', 'syn_random', control, low=0.0)
  yield cpm('Synthetic nodules of searched codes help (CPM)', 'syn', control, low=0.0)
  for arm in ('perturb', 'perturb_syn'):
    said = NAMES[arm].capitalize()
    yield cpm(f'{said} help (CPM)', arm, control, low=0.0)
    yield cpm(f'{said} help no more than synthetic nodules alone', arm, 'syn', high=0.0)
    yield cpm(
      f'{said} cost nothing on clean scans',
      arm,
      baseline,
      TEXT,
      low=-ABOUT_EQUAL,
      tolerance=ABOUT_EQUAL,
    )
  yield cpm(
    'The beta loss is about as good as cross-entropy',
    'beta',
    'ce',
    low=-ABOUT_EQUAL,
    high=ABOUT_EQUAL,
    tolerance=ABOUT_EQUAL,
  )
  yield cpm(
    'Fine-tuning with the beta loss is better than training with it', baseline, 'beta', low=0.0
  )
  for more in ('', '_syn'):
    beside = ', beside synthetic nodules' if more else ''
    yield cpm(
      f'Poisson noise helps more than attacked patches on clean scans{beside}',
      f'poisson{more}',
      f'perturb{more}',
      low=0.0,
    )


class _Cells:
  """Claims on cells of one frame of stressed patches."""

  def __init__(self, frame: pd.DataFrame, place: str):
    self._place = place
    self._frame = frame if len(frame) else pd.DataFrame(columns=[*statistics.KEYS, 'group'])

  def of(self, statement, test, *, threshold=0.0) -> claims.Claim:
    if threshold:
      test = dataclasses.replace(test, reason=REASONS[threshold])
    return claims.Claim(statement, self._place, claims.Elsewhere(test, self._frame))

  def inside(self, statement, first, second=None, *, metric='confidence', threshold=0.0, **bounds):
    test = claims.inside(first, second, metric=metric, **bounds)
    return self.of(statement, test, threshold=threshold)


def _codes(stress, made, baseline, code_eps):
  table, at = _Cells(stress, TABLE_4), claims.Cell
  codes = lambda arm: at(arm, 'codes', code_eps)
  yield table.inside(
    'Searched codes lower the confidence of the baseline more than random ones',
    codes(baseline),
    at(baseline, 'random', 1.0),
    high=0.0,
  )
  yield table.inside(
    'Training with searched codes restores the confidence on them',
    codes('syn'),
    codes(baseline),
    low=0.0,
  )
  yield table.inside(
    f'... to within {FAITHFUL:g} of that on random ones',
    codes('syn'),
    at('syn', 'random', 1.0),
    low=-FAITHFUL,
    threshold=FAITHFUL,
  )
  figures = _Cells(made, 'Figures 5 and 8')
  for metric, statement in (
    ('diameter', 'Searched nodules are smaller than random ones'),
    ('hu', 'Searched nodules are darker, more like ground glass, than random ones'),
  ):
    cells = at('synthesiser', 'codes', 1.0), at('synthesiser', 'random', 1.0)
    yield figures.inside(statement, *cells, metric=metric, high=0.0)


def _positives(stress, baseline, eps):
  table, at = _Cells(stress, TABLE_5), claims.Cell
  noisy = lambda arm: at(arm, 'uniform', UNIFORM)
  grainy = lambda arm: at(arm, 'poisson', POISSON)
  yield table.inside(
    f'Uniform noise (magnitude {UNIFORM:g}) lowers the confidence of the baseline',
    noisy(baseline),
    at(baseline),
    high=0.0,
  )
  for arm in ('syn', 'perturb', 'perturb_syn'):
    yield table.inside(
      f'Training with {NAMES[arm]} makes surer of nodules under uniform noise ({UNIFORM:g})',
      noisy(arm),
      noisy(baseline),
      low=0.0,
    )
  yield table.inside(
    f'Poisson noise (L = {POISSON:g}) lowers the confidence of the baseline',
    grainy(baseline),
    at(baseline),
    high=0.0,
  )
  lost = (1.0, grainy('perturb')), (-1.0, at('perturb')), (-1.0, grainy(baseline))
  yield table.of(
    '... and that of the network trained with attacked patches less',
    claims.contrast(*lost, (1.0, at(baseline)), metric='confidence', low=0.0),
  )
  yield table.inside(
    f'Training with Poisson noise is no better under it (L = {POISSON:g}) than with attacks',
    grainy('poisson'),
    grainy('perturb'),
    high=0.0,
  )
  yield table.inside(
    'Attacked nodules are hidden from the baseline',
    at(baseline, 'positives', eps),
    high=FOOLED,
    threshold=FOOLED,
  )
  yield table.inside(
    'Training with attacked patches shows them again',
    at('perturb', 'positives', eps),
    at(baseline, 'positives', eps),
    low=0.0,
  )


def _negatives(stress, baseline, eps):
  table, at = _Cells(stress, TABLE_6), claims.Cell
  noise = lambda arm: at(arm, 'noise_pgd', eps)
  yield table.inside(
    'Uniform noise alone does not activate the baseline',
    at(baseline, 'plain_noise', 1.0),
    high=FOOLED,
    threshold=FOOLED,
  )
  yield table.inside(
    'Attacked noise fools the baseline', noise(baseline), low=FOOLED, threshold=FOOLED
  )
  yield table.inside(
    '... and not the network trained with it', noise('perturb'), high=RESISTS, threshold=RESISTS
  )
  yield table.inside(
    'Training with Poisson noise resists attacked noise',
    noise('poisson'),
    noise(baseline),
    high=0.0,
  )
  yield table.inside('... to below one half', noise('poisson'), high=FOOLED, threshold=FOOLED)
  for arm in ('perturb', 'perturb_syn', 'poisson', 'poisson_syn'):
    yield table.inside(
      f'Training with {NAMES[arm]} resists attacked negatives',
      at(arm, 'negatives', eps),
      at(baseline, 'negatives', eps),
      high=0.0,
    )
  # Noise begins with no scan, so that its groups are none of the patches'.
  unsure = claims.auroc_below(
    noise(baseline),
    ('none', 'clean_negatives'),
    metric='uncertainty',
    threshold=DETECTS,
    shared=False,
    reason='ours',
  )
  statement = (
    f'Uncertainty alone does not tell attacked noise from patches (AUROC below {DETECTS:g})'
  )
  yield dataclasses.replace(table.of(statement, unsure), place=TEXT)


def of_synthesiser(made: pd.DataFrame, *, outside: float) -> tuple[claims.Claim, ...]:
  """The paper shows pictures; here it is asked whether random codes make nodules at all."""
  if 'border' not in made.columns:
    return ()
  inside = dataclasses.replace(
    claims.inside(claims.Cell('synthesiser', 'random', 1.0), metric='border', high=outside),
    reason='ours',
  )
  statement = f'Random codes make nodules within their patch (at most {outside:.0%} in its border)'
  return (claims.Claim(statement, OURS, claims.Elsewhere(inside, made)),)


def beyond(stress: pd.DataFrame, *, eps: float) -> tuple[claims.Claim, ...]:
  """The circularity: patches of training and test come from one attacked network. Attacked by
  itself, is the hardened network fooled all the same?"""
  if not len(stress):
    return ()
  cell, table = lambda kind: claims.Cell('perturb', kind, eps), _Cells(stress, OURS)
  return (
    table.inside(
      'Attacked by itself, +perturb is fooled by noise',
      cell('own_noise_pgd'),
      low=FOOLED,
      threshold=FOOLED,
    ),
    table.inside(
      'Attacked by itself, +perturb loses the nodules',
      cell('own_positives'),
      high=FOOLED,
      threshold=FOOLED,
    ),
    table.inside(
      '+perturb is less sure of nodules attacked by itself than of those attacked by the baseline',
      cell('own_positives'),
      cell('positives'),
      high=0.0,
    ),
  )
