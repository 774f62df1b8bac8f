"""The stage `compile`: a table of all programs of a run on devices that need not be here."""

import collections
import concurrent.futures
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

import robustmed
from robustmed import errors
from robustmed.data import store
from robustmed.process import commit, console, files, parallel
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
_WIDTHS = (9, 5, 4, 8, 7, 5, 9, 8, 4, 8, 8, 8, 8)  # of all columns but the first


def run(
  exp: experiment.Experiment, command: Any, *, exact: experiment.Experiment | None = None
) -> dict[str, Any]:
  """Compiles the programs of a `commandline.Command` and prints their table; returns its JSON.

  exact: the experiment that evaluates, see `experiment.in_float32`; None: `exp`.
  A row is printed and stored as soon as its program is compiled, so that what is stopped leaves all
  that it had. It is stored in the workdir's compile/, or in the cache, with the compilation of each
  program: those of equal programs are not compiled again. Below the rows of this call stand those
  of earlier ones, of other programs of the same run compiled by the same versions.
  """
  config, only, chosen = command.config, command.programs, targets.parse(command.target)
  folder = (command.workdir or store.cache_root('')) / 'compile'
  devices = targets.devices_of(chosen)
  cached = _Cache(folder / 'programs', chosen, full=command.full)
  hosts = parallel.hosts_of(devices)
  listed = list(
    programs.of_run(exp, config, command.arms, devices=devices, hosts=hosts, exact=exact)
  )
  wanted = _chosen(listed, only)
  if not wanted:
    raise errors.UserError(f'there are no programs {", ".join(only)}; leave out --programs for all')
  console.say(f'{len(wanted)} programs for {chosen.devices} devices of {chosen.name}')
  light = description.describe(exp, config, command.arms, light=True)['passes']
  path = folder / f'{config.experiment}.{config.preset}.{chosen.name}.json'.replace(',', '_')
  origin = _origin(command, chosen)
  before = _before(path, origin)
  width = max(len(one.label) for one in listed if one in wanted or one.label in before)
  print(_line(_COLUMNS, width), flush=True)
  told: dict[str, Any] = {}
  rows: list[dict[str, Any]] = []
  for program, (name, found) in zip(wanted, _compile(wanted, cached, jobs=command.jobs)):
    most = _confirmed(program, found, cached, chosen.chip) if command.largest else None
    rows.append(_row(program, name, found, chosen.chip, most=most, full=command.full))
    left = [one.label for one in listed if one not in wanted[: len(rows)]]
    kept = [before[label] for label in left if label in before]
    left = [label for label in left if label not in before]
    told = {**_told(chosen, config, [*rows, *kept], passes=light, left=left), **origin}
    files.write_json(path, told)
    print(_line(_cells(rows[-1], known=bool(chosen.chip.memory)), width), flush=True)
  for row in told['programs'][len(rows) :]:
    print(_line(_cells(row, known=bool(chosen.chip.memory)), width), flush=True)
  print('\n'.join(['', *summary(told)]))
  print(f'stored: {path}')
  return told


def _chosen(listed, only) -> list[programs.Program]:
  """The programs of these names in the order of the names, all for none."""
  first = lambda one: min(only.index(name) for name in one.names & {*only})
  return sorted((one for one in listed if one.names & {*only}), key=first) if only else listed


def _origin(command, target) -> dict[str, Any]:
  """What the rows of a table are made by and of."""
  versions = {name: _version(name) for name in ('jax', 'jaxlib')}
  versions['compiler'] = targets.compiler(target)
  versions |= {'robustmed': robustmed.__version__, 'commit': commit.of_checkout()}
  text = json.dumps([command.config.to_dict(), command.arms], sort_keys=True)
  return {'versions': versions, 'config': hashlib.sha256(text.encode()).hexdigest()[:24]}


def _before(path, origin) -> dict[str, dict[str, Any]]:
  """Label -> row of an earlier call, where the table stored at `path` has this origin."""
  told = files.read_json(path) if path.is_file() else {}
  same = all(told.get(name) == value for name, value in origin.items())
  return {row['program']: row for row in told['programs']} if same else {}


class _Cache:
  """Compilations by what was compiled, for what, and with which versions."""

  def __init__(self, folder: pathlib.Path, target: targets.Target, *, full: bool):
    self._folder = folder
    self.options = targets.options(target, full=full)
    self._key = [target.name, jax.__version__, robustmed.__version__, targets.compiler(target)]
    self._key += [self.options] if self.options else []

  def path(self, lowered: Any) -> pathlib.Path:
    text = json.dumps([*self._key, lowered.as_text()])
    return self._folder / f'{hashlib.sha256(text.encode()).hexdigest()[:24]}.json'


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return ''


def _compile(wanted, cached: _Cache, *, jobs: int) -> Iterator[tuple[str, estimate.Found]]:
  """(file of the cache, compilation) of every program, as soon as it and those before are ready.

  Equal ones are compiled once. Where the caller ends early, what has not begun is left.
  """
  started: dict[pathlib.Path, concurrent.futures.Future] = {}
  waiting: collections.deque[pathlib.Path] = collections.deque()
  pool = concurrent.futures.ThreadPoolExecutor(jobs)
  try:
    for program in wanted:
      lowered = program.lower()
      path = cached.path(lowered)
      waiting.append(path)
      if path not in started:
        started[path] = pool.submit(_one, cached, path, lowered, program.label)
      while waiting and started[waiting[0]].done():
        yield waiting[0].name, started[waiting.popleft()].result()
    for path in waiting:
      yield path.name, started[path].result()
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def _one(cached, path, lowered, label) -> estimate.Found:
  if path.is_file():
    return estimate.Found(**files.read_json(path))
  found = estimate.compile_program(lowered, cached.options)
  files.write_json(path, found._asdict())
  console.say(f'compiled {label} in {found.compiled_in:.0f} s')
  return found


def _confirmed(program, found, cached, chip) -> int:
  """Examples that fit on one device, compiled with so many."""

  def compiled(each):
    lowered = program.at(each)
    return _one(cached, cached.path(lowered), lowered, f'{program.label} with {each} a device')

  return estimate.confirmed(program, found, chip, compiled=compiled)


def _row(program, name, found, chip, *, most, full) -> dict[str, Any]:
  seconds = lambda reached: estimate.seconds(found, chip, devices=program.devices, reached=reached)
  each = {'roofline': seconds(1.0), 'predicted': seconds(estimate.REACHED)}
  return {
    'program': program.label,
    'kind': program.kind,
    'arms': [program.name, *program.also],
    'calls': program.calls,
    'batch': program.batch,
    'each': program.each,
    'devices': program.devices,
    'idle': program.idle,
    **found._asdict(),
    'seconds': each,
    'hours': {name: value * program.calls / 3600 for name, value in each.items()},
    'largest': estimate.largest(program, found, chip) if most is None else most,
    'confirmed': most is not None,
    'advice': estimate.advice(program, found, chip, full=full),
    'quick': not full,
    'text': name.partition('.')[0],
  }


def _told(target, config, rows, *, passes, left) -> dict[str, Any]:
  total = lambda kind: sum(row['hours'][kind] for row in rows)
  return {
    'experiment': config.experiment,
    'preset': config.preset,
    'target': target.name,
    'devices': target.devices,
    'memory': target.chip.memory,
    'programs': rows,
    'left out': left,
    'distinct': len({row['text'] for row in rows}),
    'hours': {'roofline': total('roofline'), 'predicted': total('predicted')},
    'studies': passes['studies'] / max(1, passes['total']),
  }


def lines(told: dict[str, Any]) -> list[str]:
  """The table, what does not fit, and the hours of the run."""
  rows, known = told['programs'], bool(told['memory'])
  width = max(len(row['program']) for row in rows)
  table = [_COLUMNS, *(_cells(row, known=known) for row in rows)]
  return [*(_line(cells, width) for cells in table), '', *summary(told)]


def _line(cells, width: int) -> str:
  """A row of the table, which stands below others whose numbers were not known before."""
  first, *others = cells
  numbers = [cell.rjust(wide) for cell, wide in zip(others, _WIDTHS, strict=True)]
  return '  '.join([first.ljust(width), *numbers]).rstrip()


def _cells(row, *, known: bool) -> tuple[str, ...]:
  mib = 2**20
  fit = f'{row["largest"]:,}{"c" * row["confirmed"]}' if not row['advice'] else 'NO'
  return (
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
    fit if known else '-',
  )


def summary(told: dict[str, Any]) -> list[str]:
  """What stands below the table: what does not fit, and the hours of the run."""
  return [*(row['advice'] for row in told['programs'] if row['advice']), *_summary(told)]


def _summary(told) -> list[str]:
  idle = max((row['idle'] for row in told['programs']), default=0)
  found = [f'{told["distinct"]} distinct programs on {told["devices"]} devices ({told["target"]})']
  if idle:
    found.append(f'up to {idle} of {told["devices"]} devices are idle: the batches are smaller')
  if told['memory']:
    hours, left = told['hours'], told['left out']
    what = f'these programs, {len(left)} others left out, take' if left else 'the run takes'
    found.append(
      f'{told["memory"] / 2**30:.4g} GiB a device; {what} about {hours["predicted"]:.3g} '
      f'hours at {estimate.REACHED:.0%} of the peak of matrix products, no less than '
      f'{hours["roofline"]:.3g} at all of it; compiling, loading and studies not counted'
    )
  full = [row['program'] for row in told['programs'] if not row['quick']]
  if len(full) < len(told['programs']):
    found.append(
      f'compiled quickly{", all but " if full else ""}{", ".join(full)}: temporaries and bytes '
      'moved are up to several times those of the program that runs, its code is larger; --full '
      'compiles as a run does'
    )
  if told['studies']:
    found.append(f'studies beside the grid, {told["studies"]:.0%} of all passes, are not compiled')
  return found
