"""The page of an audit: what a clinician reads first, then the details; and its two files."""

import itertools
import json
import pathlib

import numpy as np
import pandas as pd

from robustmed.audit import card, results, setup
from robustmed.evaluation import claims
from robustmed.own_data import segmentation
from robustmed.process import files
from robustmed.report import spec

_PLACE = 'asked of your data'
_METRIC = segmentation.METRIC
_POOR = 0.5  # a clean Dice below which the description of the input is in doubt


def claims_of(made: setup.Setup, config) -> tuple[claims.Claim, ...]:
  """Returns what is asked: does the attack harm, more than noise, and which network withstands it.

  Paired by patient.
  """
  found, where = [], {'metric': _METRIC}
  for name in made.audited:
    clean = claims.Cell(name)
    for eps in made.threat.levels:
      test = claims.inside(clean, claims.Cell(name, 'pgd', eps), low=0.0, **where)
      found.append(claims.Claim(f'{name}: an attack of {eps:g} lowers the Dice', _PLACE, test))
    eps = made.threat.levels[-1]
    noise, attacked = (claims.Cell(name, attack, eps) for attack in ('noise', 'pgd'))
    test = claims.inside(noise, attacked, low=0.0, **where)
    found.append(claims.Claim(f'{name}: it harms more than noise of {eps:g}', _PLACE, test))
  at = {**where, 'attack': 'pgd', 'eps': config.report.picture_eps}
  names = list(made.audited)
  for first, second in itertools.pairwise(names):
    test = claims.greater(first, second, **at)
    statement = f'{first} withstands an attack of {at["eps"]:g} better than {second}'
    found.append(claims.Claim(statement, _PLACE, test))
  return tuple(found)


def write(folder, made: setup.Setup, config, probes) -> spec.ReportSpec:
  """Writes report/audit.json and report/card.md of a workdir; returns what its page shows."""
  folder = pathlib.Path(folder)
  found = results.make(folder, made, config, probes)
  (folder / 'report').mkdir(parents=True, exist_ok=True)
  text = json.dumps(found, indent=1, allow_nan=False)
  files.write_text(folder / 'report' / 'audit.json', text)
  files.write_text(folder / 'report' / 'card.md', card.text(found))
  rows = files.read_with(folder / 'results' / 'rows.parquet', pd.read_parquet)
  headline = float(config.report.picture_eps)
  names = segmentation.names(made)
  panels = [spec.Panel(_METRIC, 'pgd', True, 'Dice (mean of classes, per case)', (0.0, 1.0))]
  if len(names) > 1:
    panels += [
      spec.Panel(f'DICE_{name}', 'pgd', True, f'Dice of {name.replace("_", " ")}', (0.0, 1.0))
      for name in names
    ]
  panels += [
    spec.Panel('NSD', 'pgd', True, 'share of the surface within the tolerance', (0.0, 1.0)),
    spec.Panel('HD95', 'pgd', False, f'95 % distance of surfaces ({made.distances.unit})'),
  ]
  panels += [
    spec.Panel(_METRIC, name, True, f'Dice, {name}', (0.0, 1.0)) for name in probes if name != 'pgd'
  ]
  return spec.ReportSpec(
    title=f'Audit of {", ".join(one.network.name for one in made.audited.values())}',
    description=(*clinician(found, headline), 'Details follow.'),
    panels=tuple(panels),
    level_units=made.threat.units,
    arms=tuple(spec.Arm(name, one.network.name) for name, one in made.audited.items()),
    claims=claims_of(made, config),
    notes=_notes(made),
    sections=(
      spec.Section('Levels in your units', tables=[('What each level is', _levels(found))]),
      spec.Section(
        'Smallest change that breaks a case',
        f'A case is broken where its Dice falls below {config.report.broken:g} of its clean value. '
        'The level is the smallest of the grid at which any of the attacks does it.',
        tables=[('Smallest breaking level', _breaking(found))],
      ),
      spec.Section('Size of the structure', tables=[_sizes(made, rows, headline)]),
      spec.Section(
        'What was checked, and what was not',
        tables=[('Coverage of two checklists', pd.DataFrame(found['coverage']))],
      ),
      spec.Section(
        'Files',
        '`audit.json` has all numbers, per case and in your units; `card.md` is a section for a '
        'model card; `../results/worst` has the worst cases as NIfTI in patient space.',
      ),
    ),
    headline_eps=headline,
  )


def clinician(found, headline: float) -> tuple[str, ...]:
  """Returns paragraphs in plain words, of the content of audit.json."""
  data, said = found['data'], []
  words = next(one['words'] for one in found['threat']['levels'] if one['eps'] == headline)
  patients = f'{data["cases"]} cases of {data["groups"]} patients'
  said.append(
    f'**What was asked.** If every pixel changes by no more than a small amount ({words}), chosen '
    'by an adversary who knows the network, how much of its outline is left? Measured on '
    f'{patients}.'
    + (' One patient says nothing of others: no intervals are given.' * (data['groups'] < 2))
  )
  for name, network in found['networks'].items():
    at = lambda attack, eps, name=name: results.cell(found, name, attack, eps)
    clean, attacked, noise = at('none', 0.0), at('pgd', headline), at('noise', headline)
    smallest = found['smallest_breaking_eps'][name]
    line = (
      f'**{network["file"]}.** Overlap with the reference (Dice, 1 is perfect): '
      f'{card.shown(clean)} on untouched images, {card.shown(noise)} with random noise of that '
      f'size, {card.shown(attacked)} under attack. '
    )
    if smallest['median'] == 'above':
      line += 'Half of the cases or more withstood every level.'
    elif smallest['median'] is not None:
      line += f'Half of the cases are broken at or below {smallest["median_words"]}.'
    if clean and clean['mean'] is not None and clean['mean'] < _POOR:
      line += (
        f' **The Dice on untouched images is below {_POOR}: check the input (normalise, '
        'orientation, spacing, classes) before reading on.**'
      )
    said.append(line)
  said.append(
    '**What this means.** Noise of that size is what a scanner may add; an attack is the worst '
    'within it. These numbers are upper bounds: a stronger attack can only lower them. They say '
    'nothing of other scanners, protocols or diseases.'
  )
  return tuple(said)


def _levels(found) -> pd.DataFrame:
  return pd.DataFrame(
    [
      {'eps': one['eps'], 'in words': one['words'], **one['stored']}
      for one in found['threat']['levels']
    ]
  )


def _breaking(found) -> pd.DataFrame:
  shown = lambda value: 'not known' if value is None else str(value)
  columns = ('quartile_1', 'median', 'quartile_3', 'not_broken', 'not_counted', 'cases')
  return pd.DataFrame(
    [
      {'network': name, **{key.replace('_', ' '): shown(one[key]) for key in columns}}
      for name, one in found['smallest_breaking_eps'].items()
    ]
  )


def _sizes(made, rows: pd.DataFrame, eps: float) -> tuple[str, pd.DataFrame]:
  """Dice of cases with small, middle and large structures, clean and under attack."""
  counted = [name for name in rows.columns if name.startswith(('_tp', '_fn'))]
  rows = rows.assign(size=rows[counted].sum(axis=1))
  lines = []
  for name in made.audited:
    mine = rows[rows['arm'] == name]
    clean = mine[mine['attack'] == 'none'].set_index('index')
    hit = mine[(mine['attack'] == 'pgd') & np.isclose(mine['eps'], eps)].set_index('index')
    order = clean['size'].sort_values(kind='stable').index.to_numpy()
    for label, part in zip(('smallest', 'middle', 'largest'), np.array_split(order, 3)):
      if len(part):
        sizes = clean.loc[part, 'size']
        line = {'network': name, 'structures': f'{label} third', 'cases': len(part)}
        line |= {'pixels': f'{sizes.min():.0f} to {sizes.max():.0f}'}
        line |= {
          'clean': clean.loc[part, _METRIC].mean(),
          'attacked': hit.loc[part, _METRIC].mean(),
        }
        lines.append(line)
  return f'Dice by the size of the reference, attacked at {eps:g}', pd.DataFrame(lines)


def _notes(made: setup.Setup) -> tuple[str, ...]:
  kept = [line for one in made.audited.values() for line in one.lines]
  found = made.study
  kept.append(segmentation.MEAN_OF_CLASSES)
  if made.fields['spacing']:
    kept.append('It is measured on the resampled grid, not on that of the files.')
  if {grid.shape for grid in found.grids} != {found.window}:
    kept.append('Images are padded to one size; the border is not attacked.')
  kept.append(f'NSD and HD95 are of {made.distances.words}.')
  if found.axes < found.spatial:
    kept.append(
      'Of a volume only the slices that are attacked are measured (data.slices_per_case).'
    )
  total = len(setup.places(found))
  if len(made.chosen) < total:
    kept.append(f'{len(made.chosen)} of {total} images are attacked (data.most_examples).')
  return tuple(kept)
