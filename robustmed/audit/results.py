"""report/audit.json: everything of an audit that a machine may read. Schema: docs/audit.md."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from robustmed.audit import breaking, coverage, label_maps, setup, threat
from robustmed.evaluation import grid, statistics, trials
from robustmed.evaluation import probes as plain_probes
from robustmed.evaluation.smoothing import beside
from robustmed.networks import network
from robustmed.own_data import segmentation as own_data
from robustmed.own_data import structures
from robustmed.process import files
from robustmed.report import inputs

SCHEMA = 'robustmed.audit/1'
_RANGE = "share of the image's range from 0.5 to 99.5 %"


def make(folder: pathlib.Path, made: setup.Setup, config, probes) -> dict[str, Any]:
  """Returns the content of audit.json for a workdir with results; numbers that are unknown are
  null, levels above the grid are the text 'above'."""
  rows = statistics.prepare(files.read_with(folder / 'results' / 'rows.parquet', pd.read_parquet))
  rows = rows[rows['arm'].isin(made.audited)]
  checks = files.read_json(folder / 'results' / 'checks.json')
  limited = bounded(probes, config)
  attacks = plain_probes.settings(next(iter(setup.tasks(made).values())), config)
  groups, units = int(rows['group'].nunique()), units_of(probes)
  listed = coverage.items(
    attacks=attacks,
    corruptions=tuple(config.evaluate.corruptions),
    checks={check['name']: check['status'] for check in checks},
    groups=groups,
    networks=len(made.audited),
  )
  return _plain(
    {
      'schema': SCHEMA,
      'networks': {name: _network(one) for name, one in made.audited.items()},
      'data': _data(made, rows),
      'threat': {
        'units': made.threat.name,
        'norm': 'linf',
        'rounded_to_file_type': made.threat.step is not None,
        'levels': [_level(made, eps) for eps in made.threat.levels],
      },
      'metric': {
        'name': made.part.METRIC,
        'words': made.part.SHOWN,
        'higher_is_better': made.part.HIGHER_IS_BETTER,
      },
      'attacks': {
        name: _attack(name, attacks, probes, units.get(name, made.threat.units)) for name in probes
      },
      'results': _results(made, rows, attacks, config),
      'distances': made.distances and made.distances._asdict() | {'words': made.distances.words},
      'structures': _structures(made, rows, config),
      'smallest_breaking_eps': {
        name: _breaking(folder, made, rows, name, limited, config) for name in made.audited
      },
      'certified': _certified(folder, made),
      'cases': _cases(made, rows),
      'checks': checks,
      'coverage': [item._asdict() for item in listed],
      'provenance': _provenance(folder, made, config),
    }
  )


def _network(one: setup.Audited) -> dict[str, Any]:
  found = one.network
  return {
    'file': found.name,
    'format': found.format,
    'sha256': found.digest,
    'weights_sha256': network.digest_of(found.variables),
    'parameters': sum(int(np.size(leaf)) for leaf in _leaves(found.variables)),
    'input': one.described.input._asdict(),
    'output': one.described.output._asdict(),
    'origin': dict(one.described.origin),
  }


def _leaves(tree) -> list[Any]:
  if isinstance(tree, Mapping):
    return [leaf for value in tree.values() for leaf in _leaves(value)]
  if isinstance(tree, list | tuple):
    return [leaf for value in tree for leaf in _leaves(value)]
  return [tree]


def _data(made: setup.Setup, rows) -> dict[str, Any]:
  found = made.study
  return {
    'folder': made.fields.get('dir') or 'synthetic volumes',
    'layout': found.folder.layout,
    'cases': int(rows['index'].nunique()),
    'cases_in_folder': len(found.partition.parts['test']),
    'groups': int(rows['group'].nunique()),
    'images_attacked': len(made.chosen),
    'axes': found.axes,
    'classes': list(found.classes),
    'spacing': list(made.fields['spacing']),
    'sha256': setup.data_digest(made),
  }


def _level(made: setup.Setup, eps: float) -> dict[str, Any]:
  middle, low, high = made.threat.stored(eps)
  stored = {'median': middle, 'low': low, 'high': high}
  return {
    'eps': eps,
    'words': made.threat.text(eps),
    'plain': made.threat.plain(eps),
    'stored': stored,
  }


def _attack(name, attacks, probes, unit) -> dict[str, Any]:
  probe = probes[name]
  return {
    'settings': attacks.get(name, {'name': 'corruption', 'kind': name}),
    'objective': probe.objective,
    'levels': list(probe.levels),
    'unit': unit,
    'gradients': probe.attack.num_gradients,
  }


def units_of(probes) -> dict[str, str]:
  """Returns the unit of the severities of each artefact, whose image is in shares of its range."""
  own = plain_probes.severities(probes)
  return {name: unit.replace('units of the image', _RANGE) for name, unit in own.items()}


def bounded(probes, config) -> list[str]:
  """Returns the probes whose changes eps bounds: attacks, no artefacts."""
  return [name for name in probes if name not in config.evaluate.corruptions]


def _results(made, rows, attacks, config) -> list[dict[str, Any]]:
  part, columns = made.part, ['arm', 'attack', 'eps', 'metric', 'mean', 'low', 'high', 'n']
  table = statistics.summary(rows, metrics=part.metrics_of(rows.columns), seed=config.seed)
  whole = part.curves(rows, names=made.study.classes, seed=config.seed)
  table = pd.concat([table, pd.DataFrame(whole, columns=columns)] if whole else [table])
  known = rows.groupby(['arm', 'attack', 'eps'])
  found = []
  for line in table.itertuples(index=False):
    cell = known.get_group((line.arm, line.attack, line.eps))
    words = made.threat.text(line.eps) if line.attack in attacks else ''
    words = 'untouched' if line.attack == grid.CLEAN else words
    found.append(
      {
        'network': line.arm,
        'attack': line.attack,
        'eps': line.eps,
        'words': words,
        'metric': line.metric,
        'mean': line.mean,
        'low': line.low,
        'high': line.high,
        'cases': int(line.n),
        'groups': _groups(cell, line.metric),
      }
    )
  return found


def _groups(cell, metric) -> int:
  """The patients with a known value; of a metric of the whole cell all of them."""
  if metric in cell:
    cell = cell[np.isfinite(cell[metric])]
  return int(cell['group'].nunique())


def _structures(made, rows, config) -> list[dict[str, Any]]:
  if made.part is not label_maps:
    return []
  how = {'attack': 'pgd', 'eps': config.report.picture_eps, 'whole': made.distances.whole}
  return structures.lines(rows, names=own_data.names(made), **how)


def _breaking(folder, made, rows, name, attacks, config) -> dict[str, Any]:
  share = config.report.broken
  part, ids = made.part, _names(made)
  table = breaking.cases(rows, arm=name, attacks=attacks, metric=part.BREAKING, share=share)
  refined = folder / 'results' / breaking.file_of(name, trials.Trial(0))
  if refined.exists():
    table = pd.read_csv(files.opened(refined))
  first, middle, third = breaking.quartiles(table['level'])
  return {
    'broken_below_share_of_clean': share,
    'broken_where': part.BROKEN.format(share=share),
    'metric': part.BREAKING,
    'halvings': config.evaluate.halvings if refined.exists() else 0,
    'median': middle,
    'median_words': level_words(made.threat, middle),
    'quartile_1': first,
    'quartile_3': third,
    'not_broken': np.isinf(table['level']).sum(),
    'not_counted': table['level'].isna().sum(),
    'cases': len(table),
    'per_case': [
      {
        'case': ids[row.index_],
        'clean': row.clean,
        'eps': row.level,
        'not_broken_at': row.below,
      }
      for row in table.rename(columns={'index': 'index_'}).itertuples(index=False)
    ],
  }


def level_words(made: threat.Threat, level: float) -> str:
  """Returns a breaking level in words; '' where it is not known."""
  if np.isfinite(level):
    return made.plain(statistics.level(round(level, 6)))
  return f'above the largest level, {made.plain(made.levels[-1])}' if level > 0 else ''


def _cases(made, rows) -> list[dict[str, Any]]:
  names, ids = made.part.metrics_of(rows.columns), _names(made)
  return [
    {
      'network': row['arm'],
      'case': ids[int(row['index'])],
      'patient': made.study.partition.patients[int(row['index'])],
      'attack': row['attack'],
      'eps': row['eps'],
      **{name: row[name] for name in names},
    }
    for row in rows.to_dict('records')
  ]


def _names(made) -> dict[int, str]:
  """The name of the case of every index."""
  return {n: case.name for n, case in enumerate(made.study.folder.cases)}


def _certified(folder, made) -> list[dict[str, Any]]:
  """Of every network and radius the means of what was certified and attacked, if anything was."""
  paths = [folder / 'results' / beside.file_of(name, trials.Trial(0)) for name in made.audited]
  tables = [files.read_with(path, pd.read_csv) for path in paths if path.is_file()]
  if not tables:
    return []
  found = beside.summary(pd.concat(tables, ignore_index=True))
  return found.rename(columns={'arm': 'network'}).to_dict('records')


def _provenance(folder, made, config) -> dict[str, Any]:
  evaluated = inputs.evaluated(folder)
  env = files.read_json(folder / 'env.json')
  return {
    'date': evaluated.get('date'),
    'preset': config.preset,
    'seed': config.seed,
    'commit': evaluated.get('commit', ''),
    'environment': env,
    'networks': {name: one.network.digest for name, one in made.audited.items()},
    'data': setup.data_digest(made),
  }


def _plain(value):
  """JSON without infinities: nan is null, inf is 'above'."""
  if isinstance(value, Mapping):
    return {str(key): _plain(inner) for key, inner in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(inner) for inner in value]
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None if math.isnan(value) else 'above'
  return value


def cell(
  found: Mapping[str, Any],
  network: str,
  attack: str,
  eps: float,
  metric: str = '',
) -> dict[str, Any] | None:
  """Returns one cell of `make`'s 'results', by default of the main metric; None: it was not run."""
  attack = grid.CLEAN if eps == 0 else attack
  for line in found['results']:
    wanted = (network, attack, eps, metric or found['metric']['name'])
    if (line['network'], line['attack'], line['eps'], line['metric']) == wanted:
      return line
  return None
