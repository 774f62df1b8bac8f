"""Saves attacked examples: arrays for the report's pictures, worst cases as data files."""

import datetime
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import pandas as pd

import robustmed
from robustmed import errors
from robustmed.attacks.stored import lattice
from robustmed.data import pipeline
from robustmed.evaluation import checks, examples, grid, statistics, stored_tables, trials
from robustmed.process import checksums, commit, console, files, parallel
from robustmed.runs import experiment


def evaluation_batches(split, source, config: ml_collections.ConfigDict):
  """This host's share of `split`, in batches of at most config.evaluate.batch_size."""
  hosts = parallel.process_count()
  # Batches are padded to their size, so one larger than the set would waste work.
  size = min(config.evaluate.batch_size // hosts, -(-len(split) // hosts))
  return pipeline.eval_batches(
    split,
    batch_size=max(1, size),
    shard_index=parallel.process_index(),
    shard_count=hosts,
    crop=source.crop,
  )


class Context(NamedTuple):
  """What a study can use of a run."""

  exp: experiment.Experiment
  config: ml_collections.ConfigDict
  results: pathlib.Path
  evaluator: grid.Evaluator
  batches: grid.Batches
  source: Callable[..., Any]  # (*fold of the trial) -> `data.Source`
  stopper: console.Stopper
  everyone: Sequence[grid.Model] = ()  # all finished networks, also those of earlier calls

  def attacked(self, model: grid.Model, *, eps: float, wanted):
    """The wanted examples under the main attack, as `examples.Example`."""
    return examples.attack(
      model.evaluator or self.evaluator,
      model.load(),
      functools.partial(self.batches, *model.trial.fold),
      attack=self.exp.grid.main,
      eps=eps,
      wanted=wanted,
    )

  def meets_main(self, model: grid.Model) -> bool:
    """True if the network is evaluated under the main attack."""
    return model.attacks is None or self.exp.grid.main in model.attacks


def save_pictures(context: Context, models: Sequence[grid.Model], rows: pd.DataFrame) -> None:
  """results/examples.npz: evenly spaced examples of the first trial under the main attack."""
  options, path = context.config.report, context.results / 'examples.npz'
  first = first_trial(models)
  if context.exp.artifacts.pictures is None or not options.pictures or not first:
    return
  indices = np.sort(trials.select(rows, first[0].trial)['index'].unique())
  indices = indices[:: max(1, len(indices) // options.pictures)][: options.pictures]
  add_pictures(
    path,
    filter(context.meets_main, first),
    lambda model: _pictures(context, model, indices),
  )


def _pictures(context: Context, model: grid.Model, indices) -> dict[str, np.ndarray]:
  eps = context.config.report.picture_eps
  found = list(context.attacked(model, eps=eps, wanted=indices))
  if not found:
    return {}
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *found)
  same = {'arm': model.arm, 'attack': context.exp.grid.main, 'eps': eps}
  return {
    **{name: np.array([value] * len(found)) for name, value in same.items()},
    'index': stacked.example['index'],
    'image': stacked.example['image'],
    'adversarial': stacked.image,
    **context.exp.artifacts.pictures(stacked),
  }


def first_trial(models: Sequence[grid.Model]) -> list[grid.Model]:
  """The models of the first trial, which are those that pictures show."""
  return [model for model in models if model.trial == models[0].trial]


def add_pictures(
  path: pathlib.Path,
  models: Iterable[grid.Model],
  make: Callable[[grid.Model], Mapping[str, Any]],
) -> None:
  """Adds the arrays {name: [n, ...]} of `make`, one of them 'arm', of all arms that an .npz lacks.

  Arms are sorted by name, so the file does not depend on the order of the calls.
  """
  known = stored_arms(path)
  columns: dict[str, list[np.ndarray]] = {}
  for model in models:
    # The attack runs on all hosts, so they must agree.
    if bool(parallel.broadcast_from_writer(np.array(model.arm in known))):
      continue
    for name, value in make(model).items():
      columns.setdefault(name, []).append(np.asarray(value))
  if not columns or not parallel.is_writer():
    return
  if known:
    stored = _arrays_of(path, list(columns))
    for name in columns:
      columns[name].insert(0, stored[name])
  joined = {name: np.concatenate(values) for name, values in columns.items()}
  order = np.argsort(joined['arm'], kind='stable')
  with files.replacing(path) as temporary:
    np.savez_compressed(temporary, **{name: value[order] for name, value in joined.items()})


def stored_arms(path: pathlib.Path) -> set[str]:
  """The arms whose pictures are stored."""
  return set(_arrays_of(path, ['arm'])['arm'].tolist()) if files.present(path) else set()


def _arrays_of(path: pathlib.Path, names: Sequence[str]) -> dict[str, np.ndarray]:
  """The arrays of a file, which must have those of the names."""
  stored = files.read_arrays(path)
  missing = [name for name in names if name not in stored or not stored[name].ndim]
  if missing:
    raise errors.UserError(f'{path} lacks the array {missing[0]}; delete it and run again')
  return stored


def save_rows(
  found: experiment.Grid,
  rows: pd.DataFrame,
  *,
  folder: files.Path,
  seed: int,
  more: Sequence[checks.Check] = (),
) -> None:
  """Writes the rows of the results, their summary, the checks, and the worst of all attacks.

  rows: those of the grid. worst.parquet holds the worst image of each example, by the metric of the
  checks, over all attacks in the ball of the main one; worst.csv their summary, and
  worst_members.csv which attack found them. more: other checks.
  """
  subjects = found.subjects(rows)
  _save(folder / 'rows.parquet', subjects)
  keys = {*grid.KEYS, *trials.AXES}
  metrics = [name for name in subjects.columns if name not in keys and name[0] != '_']
  _save(folder / 'summary.csv', statistics.summary(subjects, metrics=metrics, seed=seed))
  worst = _save_worst(found, rows, subjects, folder, seed)
  own = [*checks.run(subjects, **found.checks), *found.more_checks(subjects)]
  listed = [*own, *worst, *more]
  files.write_json(folder / 'checks.json', [check._asdict() for check in listed])
  _save_date(folder)


def _save_date(folder: files.Path) -> None:
  """Writes when, and at which commit, the rows got what they hold."""
  # Not beside the results, which are the same bytes whenever they are computed.
  path, rows = folder.parent / 'evaluated.json', checksums.digest(folder / 'rows.parquet')
  old = files.read_json(path) if files.present(path) else {}
  if isinstance(old, dict) and old.get('rows_sha256') == rows:
    return
  now = datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat()
  known = {'date': now, 'commit': commit.of_checkout(), 'version': robustmed.__version__}
  files.write_json(path, {**known, 'rows_sha256': rows})


def _save_worst(found: experiment.Grid, rows, subjects, folder, seed) -> list[checks.Check]:
  """Writes the worst of all attacks and returns its checks; nothing where no attack has a ball."""
  judge = {name: found.checks[name] for name in ('metric', 'higher_is_better')}
  names = _same_ball(found.probes, found.main)
  how = {'subjects': found.subjects, 'attacks': names}
  worst = statistics.worst_of_subjects(rows, subjects, **how, **judge)
  if worst.empty:
    return []
  shares = worst.groupby(['arm', 'eps'])['_member'].value_counts(normalize=True)
  _save(folder / 'worst_members.csv', shares.rename('share').reset_index())
  worst = worst.drop(columns=['_member', '_member_eps'])
  _save(folder / 'worst.parquet', worst)
  _save(folder / 'worst.csv', statistics.summary(worst, metrics=[judge['metric']], seed=seed))
  pairs = _pairs(found.probes, names, judge['metric'])
  return checks.of_worst(subjects, worst, attacks=names, pairs=pairs, **judge)


def _same_ball(probes: Mapping[str, grid.Probe], main: str) -> tuple[str, ...]:
  """Returns the attacks whose images at a level are images that `main` might return there."""

  def ball(probe):
    return getattr(getattr(probe.attack, 'threat', None), 'ball', None), probe.space

  wanted = ball(probes[main])
  return tuple(name for name, probe in probes.items() if wanted[0] and ball(probe) == wanted)


def _pairs(probes: Mapping[str, grid.Probe], names, metric: str) -> list[tuple[str, str, str]]:
  """Returns (member, plain attack, what both climb): a member hands over the best of its iterates,
  by the objective or the metric, a plain attack the last one, after no more gradients."""
  found = []
  own = [name for name in names if not probes[name].source and not probes[name].attack.minimise]
  for member, plain in itertools.permutations(own, 2):
    first, second = probes[member], probes[plain]
    chosen = getattr(first.attack, 'select', 'last'), getattr(second.attack, 'select', 'last')
    steps = first.attack.num_gradients, second.attack.num_gradients
    best = chosen[0] != 'last' and chosen[1] == 'last'
    if best and first.objective == second.objective and steps[0] >= steps[1] > 1:
      found += [(member, plain, metric)] if first.attack.judged else []
      found.append((member, plain, '_value'))
  return found


def _save(path, frame: pd.DataFrame) -> None:
  with files.replacing(path) as temporary:
    stored_tables.write(frame, temporary)


def save_worst(context: Context, models: Sequence[grid.Model], rows: pd.DataFrame) -> None:
  """Saves the worst evaluate.save_examples examples of every network at the largest level.

  They are data files that the task's own source reads, in results/worst/ARM.TRIAL.ATTACK.EPS/.
  Where a file holds whole numbers, the image is the worst of them that `lattice.search` finds, and
  results/stored/ has what that is worth beside what was attacked.
  """
  count, name = max(0, context.config.evaluate.save_examples), context.exp.grid.main
  if not count or context.exp.artifacts.write_example is None:
    return
  eps = max(context.exp.grid.probes[name].levels)
  metric, higher = context.exp.grid.checks['metric'], context.exp.grid.checks['higher_is_better']
  of_file = context.exp.artifacts.lattice
  cell = rows[(rows.attack == name) & (rows.eps == eps)]
  for model in filter(context.meets_main, models):
    here = trials.select(cell[cell.arm == model.arm], model.trial)
    worst = here.sort_values([metric, 'index'], ascending=[higher, True]).head(count)
    folder = context.results / 'worst' / f'{model.arm}.{model.trial}.{name}.{eps:g}'
    with files.building_folder(folder) as place:
      for found in context.attacked(model, eps=eps, wanted=worst['index']):
        image, numbers = found.image, {}
        made = of_file and of_file(found.example)
        if made is not None:
          stored = _stored(context, model, found, made, eps=eps)
          image, numbers = stored.image, {'whole': stored.whole}
        context.exp.artifacts.write_example(place, image, found.example, **numbers)
    console.say(f'the {len(worst)} worst examples of {model.arm} are in {folder}')


def _unit(probe: grid.Probe, threat, batch) -> np.ndarray | float | None:
  """Returns how many units of the image one of eps is; None where that is no number."""
  if probe.space is None:
    return 1.0
  plain = probe.space.unit is not None and getattr(threat, 'bounds', None) is None
  return np.asarray(probe.space.unit(batch), np.float64)[0] if plain else None


def _stored(context: Context, model: grid.Model, found, made: lattice.Lattice, *, eps: float):
  """The worst image of the lattice; writes what it is worth to results/stored/."""
  plan, index = context.exp.grid, int(found.example['index'])
  probe, evaluator = plan.probes[plan.main], model.evaluator or context.evaluator
  keep = ('image', 'target', 'mask', 'index', 'group')
  batch = {k: jax.tree.map(lambda leaf: np.asarray(leaf)[None], found.example[k]) for k in keep}
  variables, sign = model.load(), -1 if probe.attack.minimise else 1
  wanted = plan.checks['metric'], plan.checks['higher_is_better']
  judged = examples.judged(evaluator, variables, batch, *wanted, minimise=probe.attack.minimise)
  threat = getattr(probe.attack, 'threat', None)
  region, unit = getattr(threat, 'region', None), _unit(probe, threat, batch)
  # where the ball is not known here, towards the clean image is always inside
  known = unit is not None and (region is None or len(region) == 1)
  program = examples.judge(evaluator, *judged, slopes=known)
  run = functools.lru_cache(maxsize=1)(
    lambda raw: program(variables, batch, np.frombuffer(raw, np.float32).reshape(shape))
  )
  shape = batch['image'].shape
  at = lambda image: run(np.ascontiguousarray(image, np.float32).tobytes())
  score = lambda image: float(at(image)[0][0])
  stored = lattice.search(
    score,
    found.image,
    found.example['image'],
    lattice=made,
    eps=eps if known else None,
    norm=getattr(threat, 'norm', 'linf'),
    bounds=getattr(threat, 'bounds', None) if known else None,
    region=region[0] if known and region is not None else None,
    max_change=getattr(threat, 'max_change', None) if known else None,
    unit=unit if known else 1.0,
    slope=lambda image: sign * np.asarray(at(image)[1][0]),
    seed=index,
  )
  back = -1.0 if judged[1] else 1.0  # badness to the metric
  files.write_json(
    context.results / 'stored' / f'{model.arm}.{model.trial}.{plan.main}.{eps:g}.{index}.json',
    {
      'arm': model.arm,
      'attack': plan.main,
      'eps': eps,
      'index': index,
      'metric': judged[0],
      'attacked': back * score(found.image),
      'stored': back * stored.value,
      'distance': stored.distance if known else None,
      'inside': stored.inside if known else None,
      'chosen': stored.chosen,
    },
  )
  return stored
