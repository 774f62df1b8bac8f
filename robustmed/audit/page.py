"""The page of an audit: what a clinician reads first, then the details; and its two files."""

import itertools
import json
import pathlib

import numpy as np
import pandas as pd

from robustmed.audit import card, coverage, label_maps, results, setup
from robustmed.evaluation import checks, claims
from robustmed.own_data import structures
from robustmed.process import files
from robustmed.report import spec

_PLACE = 'asked of your data'


def claims_of(made: setup.Setup, config) -> tuple[claims.Claim, ...]:
  """Returns what is asked: does the attack harm, more than noise, and which network withstands it.

  Paired by patient.
  """
  part, found = made.part, []

  def harms(first, second):  # of the second cell more than of the first
    pair = (first, second) if part.HIGHER_IS_BETTER else (second, first)
    return claims.inside(*pair, low=0.0, metric=part.METRIC)

  for name in made.audited:
    clean = claims.Cell(name)
    for eps in made.threat.levels:
      statement = f'{name}: an attack of {eps:g} harms ({part.SHOWN})'
      found.append(claims.Claim(statement, _PLACE, harms(clean, claims.Cell(name, 'pgd', eps))))
    eps = made.threat.levels[-1]
    noise, attacked = (claims.Cell(name, attack, eps) for attack in ('noise', 'pgd'))
    statement = f'{name}: it harms more than noise of {eps:g}'
    found.append(claims.Claim(statement, _PLACE, harms(noise, attacked)))
  eps = config.report.picture_eps
  for first, second in itertools.pairwise(made.audited):
    test = harms(*(claims.Cell(name, 'pgd', eps) for name in (first, second)))
    statement = f'{first} withstands an attack of {eps:g} better than {second}'
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
  return spec.ReportSpec(
    title=f'Audit of {", ".join(one.network.name for one in made.audited.values())}',
    description=(*_demo(config), *clinician(found, headline, made.part), 'Details follow.'),
    panels=tuple(made.part.panels(made, probes)),
    level_units=made.threat.units,
    arms=tuple(spec.Arm(name, one.network.name) for name, one in made.audited.items()),
    claims=claims_of(made, config),
    notes=_notes(made),
    sections=(
      spec.Section(
        'Levels in your units',
        tables=[('What each level is: a change of stored values, over cases', _levels(found))],
      ),
      spec.Section(
        'Smallest change that breaks a case',
        _broken_words(found),
        tables=[('Smallest breaking eps', _breaking(found))],
      ),
      *_certified(found),
      *_sections_of_kind(found, made, rows, headline),
      spec.Section(
        'What was checked, and what was not',
        coverage.SOURCES,
        tables=[('Coverage of two checklists', pd.DataFrame(found['coverage']))],
      ),
      spec.Section(
        'Files',
        '`audit.json` has all numbers, per case and in your units; `card.md` is a section for a '
        'model card; `../results/worst` has the worst cases as NIfTI in patient space.',
      ),
    ),
    headline_eps=headline,
    arms_are='a network',
    attack_units=results.units_of(probes),
    group_names=patients(made, rows),
    classes=made.study.classes if made.part is label_maps else (),
  )


def _demo(config) -> tuple[str, ...]:
  said = demonstration(config)
  return (f'**{said[0].upper()}{said[1:]}.**',) if said else ()


def demonstration(config) -> str:
  """Returns what is the demonstration's because no flag names the user's own; '' if nothing is."""
  network, folder = config.network or config.networks, config.data.dir
  shown, flags = [], []
  if not network:
    shown.append('the network (brightness, never trained)')
    flags.append('--config.network')
  if not folder:
    shown.append('the images (synthetic)')
    flags.append('--config.data.dir')
  if not shown:
    return ''
  verb = 'are' if not folder else 'is'
  given = f'no {" and no ".join(flags)} {"were" if len(flags) > 1 else "was"} given'
  return f'this is a demonstration: {" and ".join(shown)} {verb} not yours, because {given}'


def patients(made: setup.Setup, rows: pd.DataFrame) -> dict[int, str]:
  """Returns the name of the patient of every group."""
  cases = rows.drop_duplicates('group')
  return {
    int(group): made.study.partition.patients[int(case)]
    for group, case in zip(cases['group'], cases['index'])
  }


def clinician(found, headline: float, part) -> tuple[str, ...]:
  """Returns paragraphs in plain words, of the content of audit.json."""
  data, said = found['data'], []
  words = next(one['plain'] for one in found['threat']['levels'] if one['eps'] == headline)
  patients = f'{data["cases"]} cases of {data["groups"]} patients'
  if left := data['cases_in_folder'] - data['cases']:
    patients += f'; {left} of {data["cases_in_folder"]} cases were left out (data.most_examples)'
  said.append(
    f'**What was asked.** If every pixel changes by no more than a small amount ({words}), chosen '
    f'by an adversary who knows the network, {part.ASKED} Measured on {patients}.'
    + (' One patient says nothing of others: no intervals are given.' * (data['groups'] < 2))
  )
  said += [_of_network(found, name, headline, part) for name in found['networks']]
  said.append(
    '**What this means.** Noise of that size is what a scanner may add; an attack is the worst '
    'within it. These numbers are upper bounds: a stronger attack can only lower them. They say '
    'nothing of other scanners, protocols or diseases.'
  )
  return tuple(said)


def _of_network(found, name: str, headline: float, part) -> str:
  at = lambda attack, eps, metric='': results.cell(found, name, attack, eps, metric)
  clean, attacked, noise = at('none', 0.0), at('pgd', headline), at('noise', headline)
  smallest = found['smallest_breaking_eps'][name]
  line = (
    f'**{found["networks"][name]["file"]}.** {part.MEANS}: {card.shown(clean)} on untouched '
    f'images, {card.shown(noise)} with random noise of that size, {card.shown(attacked)} under '
    'attack. '
  )
  if found['distances']:
    mine = [one for one in found['structures'] if one['network'] == name]
    means = [one and one['mean'] for one in (at('none', 0, 'HD95'), at('pgd', headline, 'HD95'))]
    line += structures.words(mine, unit=found['distances']['unit'], means=means)
  if artefacts := _artefacts(found, name):
    line += f'Under artefacts of acquisition of middle severity: {artefacts}. '
  where = f'A case counts as broken where {smallest["broken_where"]}: '
  if smallest['median'] == 'above':
    line += f'{where}half of the cases or more withstood every level.'
  elif smallest['median'] is not None:
    line += f'{where}half of them are broken by {smallest["median_words"]} or less.'
  warned = [
    check['detail']
    for check in found['checks']
    if check['arm'] == name and check['status'] == 'warn' and check['name'] in checks.UNTOUCHED
  ]
  return line + ''.join(f' **Before reading on: {detail}.**' for detail in warned)


def _artefacts(found, name: str) -> str:
  """The main metric under each artefact, at the second of its severities."""
  said = []
  for kind, one in found['attacks'].items():
    if one['settings']['name'] == 'corruption':
      eps = one['levels'][min(1, len(one['levels']) - 1)]
      shown = card.shown(results.cell(found, name, kind, eps))
      said.append(f'{kind.replace("_", " ")} {shown}')
  return ', '.join(said)


def _levels(found) -> pd.DataFrame:
  return pd.DataFrame(
    [
      {'eps': one['eps'], 'in words': one['plain'], **one['stored']}
      for one in found['threat']['levels']
    ]
  )


def _broken_words(found) -> str:
  one = next(iter(found['smallest_breaking_eps'].values()))
  text = f'A case is broken where {one["broken_where"]}, under any of the attacks of the grid. '
  if one['halvings']:
    text += (
      f'Between the last level that did not break it and the first that did, the interval was '
      f'halved {one["halvings"]} times under pgd, each case at an eps of its own. '
    )
  return text + 'A stronger attack can only lower these numbers.'


def _certified(found) -> tuple[spec.Section, ...]:
  if not found['certified']:
    return ()
  text = (
    'The network smoothed by Gaussian noise, which says what it says most often under noise. '
    '`smoothed` is its score on untouched images, `certified` a bound below which no change within '
    'the radius (L2 over all pixels, in the units of the levels) brings it, `attacked` what an '
    'attack of the same smoothed network found. Pixels without a certified label count as wrong, '
    '`abstained` is their share. It is not the network of the other tables.'
  )
  table = pd.DataFrame(found['certified'])
  return (spec.Section('Certified beside attacked', text, tables=[('By radius', table)]),)


def _sections_of_kind(found, made, rows, headline) -> tuple[spec.Section, ...]:
  if made.part is label_maps:
    return (spec.Section('Size of the structure', tables=[_sizes(made, rows, headline)]),)
  lines = [line for line in found['results'] if line['metric'].startswith('AUROC')]
  columns = ['network', 'attack', 'eps', 'metric', 'mean', 'low', 'high']
  table = pd.DataFrame([{name: line[name] for name in columns} for line in lines], columns=columns)
  return (spec.Section('Ranking', tables=[('AUROC', table)]),) if lines else ()


def _breaking(found) -> pd.DataFrame:
  most = max(one['eps'] for one in found['threat']['levels'])
  words = {None: 'not known', 'above': f'above {most:g}'}
  shown = lambda value: words.get(value) or f'{value:.4g}'
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
          'clean': clean.loc[part, label_maps.METRIC].mean(),
          'attacked': hit.loc[part, label_maps.METRIC].mean(),
        }
        lines.append(line)
  return f'Dice by the size of the reference, attacked at {eps:g}', pd.DataFrame(lines)


def _notes(made: setup.Setup) -> tuple[str, ...]:
  kept = [line for one in made.audited.values() for line in one.lines]
  kept += made.part.notes(made)
  total = len(setup.places(made.study))
  if len(made.chosen) < total:
    kept.append(f'{len(made.chosen)} of {total} images are attacked (data.most_examples).')
  return tuple(kept)
