"""The stage `compile`: a table of all programs of a run on devices that need not be here."""

import concurrent.futures
import hashlib
import importlib.metadata
import json
import pathlib
from typing import Any

import jax

import robustmed
from robustmed import errors
from robustmed.data import store
from robustmed.process import console, files, parallel
from robustmed.runs import description, experiment
from robustmed.runs.compilation import estimate, programs, targets

_COLUMNS = (
  'program',
  'calls',
  'each',
  'idle',
  'MiB args',
  'temps',
  'code',
  'GFLOP',
  'GB moved',
  'sums',
  'in loops',
  'ms',
  'hours',
  'fit',
)


def run(
  exp: experiment.Experiment, command: Any, *, exact: experiment.Experiment | None = None
) -> dict[str, Any]:
  """Compiles the programs of a `commandline.Command` and prints their table; returns its JSON.

  exact: the experiment that evaluates, see `experiment.in_float32`; None: `exp`.
  It is stored in the workdir's compile/, or in the cache, with the compilation of each program:
  those of equal programs are not compiled again.
  """
  config, only, chosen = command.config, command.programs, targets.parse(command.target)
  folder = (command.workdir or store.cache_root('')) / 'compile'
  devices = targets.devices_of(chosen)
  cached = _Cache(folder / 'programs', chosen)
  hosts = parallel.hosts_of(devices)
  listed = list(
    programs.of_run(exp, config, command.arms, devices=devices, hosts=hosts, exact=exact)
  )
  wanted = [one for one in listed if not only or one.names & {*only}]
  if not wanted:
    raise errors.UserError(f'there are no programs {", ".join(only)}; leave out --programs for all')
  console.say(f'{len(wanted)} programs for {chosen.devices} devices of {chosen.name}')
  found = _compile(wanted, cached, jobs=command.jobs)
  most = _confirmed(wanted, found, cached, chosen.chip) if command.largest else {}
  light = description.describe(exp, config, command.arms, light=True)['passes']
  left = [one.label for one in listed if one not in wanted]
  told = _told(chosen, config, wanted, found, passes=light, most=most, left=left)
  path = folder / f'{config.experiment}.{config.preset}.{chosen.name}.json'.replace(',', '_')
  files.write_json(path, told)
  print('\n'.join(lines(told)))
  print(f'stored: {path}')
  return told


class _Cache:
  """Compilations by what was compiled, for what, and with which versions."""

  def __init__(self, folder: pathlib.Path, target: targets.Target):
    self._folder = folder
    self._key = [target.name, jax.__version__, robustmed.__version__, targets.compiler(target)]

  def path(self, lowered: Any) -> pathlib.Path:
    text = json.dumps([*self._key, lowered.as_text()])
    return self._folder / f'{hashlib.sha256(text.encode()).hexdigest()[:24]}.json'


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return ''


def _compile(wanted, cached: _Cache, *, jobs: int) -> list[tuple[str, estimate.Found]]:
  """(file of the cache, compilation) of every program; equal ones are compiled once."""
  started: dict[pathlib.Path, Any] = {}
  paths = []
  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    for program in wanted:
      lowered = program.lower()
      path = cached.path(lowered)
      paths.append(path)
      if path in started:
        continue
      if path.is_file():
        started[path] = estimate.Found(**files.read_json(path))
      else:
        started[path] = pool.submit(_one, path, lowered, program.label)
  result = lambda one: one if isinstance(one, estimate.Found) else one.result()
  return [(path.name, result(started[path])) for path in paths]


def _one(path, lowered, label) -> estimate.Found:
  if path.is_file():
    return estimate.Found(**files.read_json(path))
  found = estimate.compile_program(lowered)
  files.write_json(path, found._asdict())
  console.say(f'compiled {label} in {found.compiled_in:.0f} s')
  return found


def _confirmed(wanted, found, cached, chip) -> dict[str, int]:
  """{file of the cache: examples that fit on one device, compiled with so many}."""
  most = {}
  for program, (name, one) in zip(wanted, found):

    def compiled(each, program=program):
      lowered = program.at(each)
      return _one(cached.path(lowered), lowered, f'{program.label} with {each} a device')

    if name not in most:
      most[name] = estimate.confirmed(program, one, chip, compiled=compiled)
  return most


def _told(target, config, wanted, found, *, passes, most, left) -> dict[str, Any]:
  rows, chip, compiler = [], target.chip, targets.compiler(target)
  for program, (name, one) in zip(wanted, found):
    each = {
      'roofline': estimate.seconds(one, chip, devices=program.devices),
      'predicted': estimate.seconds(one, chip, devices=program.devices, reached=estimate.REACHED),
    }
    rows.append(
      {
        'program': program.label,
        'kind': program.kind,
        'arms': [program.name, *program.also],
        'calls': program.calls,
        'batch': program.batch,
        'each': program.each,
        'devices': program.devices,
        'idle': program.idle,
        **one._asdict(),
        'seconds': each,
        'hours': {name: value * program.calls / 3600 for name, value in each.items()},
        'largest': most.get(name, estimate.largest(program, one, chip)),
        'confirmed': name in most,
        'advice': estimate.advice(program, one, chip),
        'text': name.partition('.')[0],
      }
    )
  total = lambda kind: sum(row['hours'][kind] for row in rows)
  return {
    'experiment': config.experiment,
    'preset': config.preset,
    'target': target.name,
    'devices': target.devices,
    'memory': chip.memory,
    'versions': {**{name: _version(name) for name in ('jax', 'jaxlib')}, 'compiler': compiler},
    'programs': rows,
    'left out': left,
    'distinct': len({row['text'] for row in rows}),
    'hours': {'roofline': total('roofline'), 'predicted': total('predicted')},
    'studies': passes['studies'] / max(1, passes['total']),
  }


def lines(told: dict[str, Any]) -> list[str]:
  """The table, what does not fit, and the hours of the run."""
  mib, table = 2**20, [_COLUMNS]
  for row in told['programs']:
    known = bool(told['memory'])
    table.append(
      (
        row['program'],
        f'{row["calls"]:,.0f}',
        f'{row["each"]}',
        f'{row["idle"]}',
        f'{row["arguments"] / mib:,.0f}',
        f'{row["temporaries"] / mib:,.0f}',
        f'{row["code"] / mib:,.0f}',
        f'{row["flops"] / 1e9:,.4g}',
        f'{row["bytes"] / 1e9:,.3g}',
        f'{row["collectives"]}',
        f'{row["in_loops"]}',
        f'{1000 * row["seconds"]["predicted"]:,.3g}' if known else '-',
        f'{row["hours"]["predicted"]:,.3g}' if known else '-',
        f'{row["largest"]:,}{"c" * row["confirmed"]}'
        if known and not row['advice']
        else '-'
        if not known
        else 'NO',
      )
    )
  widths = [max(len(row[place]) for row in table) for place in range(len(_COLUMNS))]
  shown = [
    '  '.join(
      cell.ljust(width) if not place else cell.rjust(width)
      for place, (cell, width) in enumerate(zip(row, widths))
    ).rstrip()
    for row in table
  ]
  return [
    *shown,
    '',
    *[row['advice'] for row in told['programs'] if row['advice']],
    *_summary(told),
  ]


def _summary(told) -> list[str]:
  idle = max((row['idle'] for row in told['programs']), default=0)
  found = [f'{told["distinct"]} distinct programs on {told["devices"]} devices ({told["target"]})']
  if idle:
    found.append(f'up to {idle} of {told["devices"]} devices are idle: the batches are smaller')
  if told['memory']:
    hours, left = told['hours'], told['left out']
    what = f'these programs, {len(left)} others left out, take' if left else 'the run takes'
    found.append(
      f'{told["memory"] / 2**30:.0f} GiB a device; {what} about {hours["predicted"]:.3g} '
      f'hours at {estimate.REACHED:.0%} of the peak of matrix products, no less than '
      f'{hours["roofline"]:.3g} at all of it; compiling, loading and studies not counted'
    )
  if told['studies']:
    found.append(f'studies beside the grid, {told["studies"]:.0%} of all passes, are not compiled')
  return found
