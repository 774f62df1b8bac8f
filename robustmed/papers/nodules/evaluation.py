"""What is measured beside the grid: whole scans (`scans`) and stress tests.

Stress tests (Tables 4 to 6 of Liu et al. 2020): every network gets the same disturbed patches.

As in the paper, what is searched attacks the network of config.pools.victim, so it shows transfer;
rows whose attack begins with 'own_' were searched on the network that meets them (white box). Rows
look like those of the grid. Nodules as they are are its clean cell, 'eps' is 1 where nothing has a
strength.
"""

import functools
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from robustmed import errors, types
from robustmed.data import pipeline, store
from robustmed.data.chest import nodule_scans
from robustmed.evaluation import grid, stored_tables, trials
from robustmed.papers.nodules import arms as nodules_arms
from robustmed.papers.nodules import pools as nodules_pools
from robustmed.papers.nodules import recipes, scans, stored_pools
from robustmed.process import files, parallel
from robustmed.runs import artifacts
from robustmed.training import checkpoints

PARTS, ROWS, MADE, PICTURES = 'stress', 'stress.parquet', 'made.parquet', 'pools.npz'
OWN = 'own_'
REAL = 'real'  # nodules of the training scans, in made.parquet
KEPT = ('confidence', 'uncertainty', 'entropy', 'correct')
_SALT = 1  # stress tests draw other random numbers than the pools of training
_FIRST = 15 * nodules_pools.FIRST


def evaluate(
  config, task_of: Callable[[str], types.Task], context: artifacts.Context, models, rows
) -> None:
  """Writes results/froc (submissions, annotations), stress.parquet, made.parquet and pools.npz."""
  del rows
  for seed in sorted({model.seed for model in models}):
    trained = trained_of(config, task_of, context, seed)
    mine = [model for model in models if model.seed == seed]
    scans.run(config, context, trained, mine)
    run(context, trained, mine)


def trained_of(config, task_of, context: artifacts.Context, seed: int) -> nodules_pools.Trained:
  """The finished networks of a seed in the workdir."""
  root = context.results.parent
  place = lambda arm: root / 'checkpoints' / arm / f'seed{seed}' / 'variables'
  load = lambda arm: checkpoints.load_variables(place(arm), task_of(arm))
  return nodules_pools.Trained(config, task_of, load, root, seed, context.stopper)


class Kind(NamedTuple):
  """One column of a table: what the rows are called and how the patches are made.

  pool: of `nodules_pools.POOLS`, '' for patches as they are, 'recipe' for a recipe of its own.
  """

  attack: str
  eps: float
  role: str
  pool: str
  recipe: recipes.Recipe | None = None

  @property
  def searched(self) -> bool:
    return bool(self.pool in nodules_pools.POOLS and nodules_pools.POOLS[self.pool].search)


def kinds(config) -> list[Kind]:
  """The columns of Tables 4, 5 and 6, those of ours that go beyond them included."""
  options, found = config.stress, []
  found.append(Kind(grid.CLEAN, 0.0, 'nodule', ''))
  for attack, centred in (('uniform', True), ('uniform_wide', False)):
    for level in options.uniform:
      how = recipes.uniform(target=recipes.POSITIVE, magnitude=level, centred=centred)
      found.append(Kind(attack, level, 'nodule', 'recipe', how))
  for level in options.poisson:
    how = recipes.poisson(target=recipes.POSITIVE, levels=(float(level),))
    found.append(Kind('poisson', level, 'nodule', 'recipe', how))
  eps = config.pools.patch_search.eps
  found += [
    Kind('positives', eps, 'nodule', 'positives'),
    Kind('plain_noise', 1.0, '', 'plain_noise'),
    Kind('noise_pgd', eps, '', 'noise'),
    Kind('clean_negatives', 1.0, 'background', ''),
    Kind('negatives', eps, 'background', 'negatives'),
  ]
  if options.codes:
    found += [Kind('random', 1.0, 'background', 'random')]
    found += [Kind('codes', config.pools.code_search.eps, 'background', 'codes')]
  return found


def own(config) -> list[Kind]:
  """Those that are searched anew on every network."""
  by_pool = {kind.pool: kind for kind in kinds(config) if kind.searched}
  chosen = []
  for name in config.stress.white_box:
    kind = errors.lookup(by_pool, name, kind='pool to search in the white box')
    chosen.append(kind._replace(attack=OWN + kind.attack))
  return chosen


def file_of(arm: str, trial: trials.Trial, kind: Kind) -> str:
  return f'{PARTS}/{_cell(arm, trial, kind).file}'


def _cell(arm: str, trial: trials.Trial, kind: Kind) -> grid.Cell:
  return grid.Cell(arm, trial, kind.attack, kind.eps)


def study_cells(
  config, arm: str, trial: trials.Trial, finished: Collection[str]
) -> dict[str, types.Cost]:
  """The cost of a network's stress tests and scans, by file in results/; what is made for all
  networks is counted with the one that is attacked."""
  del finished
  begin = nodules_arms.patches(config, 'test')

  found, attacked = {}, arm == config.pools.victim
  size = config.evaluate.batch_size
  for kind in [*kinds(config), *own(config)]:
    made, count = types.Cost(passes=0), _count(config, kind) or begin[kind.role]
    if kind.pool in nodules_pools.POOLS and (attacked or kind.attack.startswith(OWN)):
      made = nodules_pools.cost(config, kind.pool, count)
    scored = -(-count // size) * size
    found[file_of(arm, trial, kind)] = made._replace(gradients=made.gradients + scored)
  return {**found, **scans.study_cells(config, arm, trial.seed, begin[''])}


def _count(config, kind) -> int:
  """Patches of a stress pool; 0: one for each that it begins with."""
  if kind.pool in nodules_pools.SYNTHETIC:
    return config.stress.codes
  return config.stress.noise if not kind.role else 0


def check_space(
  config, scans: nodule_scans.Scans, arms: Collection[str], folder: pathlib.Path
) -> None:
  """A `UserError` if the pools of these arms, of training and of the stress tests, do not fit on
  the disk of their `folder`. What is in it already counts as made; a bucket has no end."""
  if files.is_remote(folder):
    return
  mine = {name: config.arms[name] for name in arms if name in config.arms}
  added = {name for arm in mine.values() for name in arm.get('added', ())}
  judged = sum(arm.get('model', {}).get('loss') != 'segmentation' for arm in mine.values())
  begins = functools.partial(nodules_pools.begins, config, scans)
  training = sum(
    config.pools.counts[name] or begins('train', nodules_pools.POOLS[name].role) for name in added
  )
  columns = [kind for kind in kinds(config) if kind.pool] + own(config) * judged
  tested = sum(_count(config, kind) or begins('test', kind.role) for kind in columns)
  count = config.seeds * (training + tested)
  need = stored_pools.size_of(count, (config.data.side,) * 3 + (1,))
  there = sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())
  stored_pools.check_space(folder, need - there, what=f'pools of {count} patches')


def run(context: artifacts.Context, trained: nodules_pools.Trained, models) -> None:
  """Every missing cell of these networks; then one table of all that is there."""
  config, source = trained.config, context.source()
  begin = functools.cache(functools.partial(begin_of, config, source))
  load = functools.cache(lambda model: model.load())
  columns = [(kind, '', models) for kind in kinds(config)]
  columns += [(kind, model.arm, [model]) for model in models for kind in own(config)]
  pieces: list[stored_tables.Table] = []

  @functools.lru_cache(maxsize=1)  # the pieces of a column follow each other
  def make(place):
    kind, victim, _ = columns[place]
    return patches(trained, source, kind, begin(kind.role), victim=victim)

  for place, (kind, victim, tested) in enumerate(columns):
    if not _possible(trained, kind, begin(kind.role), victim=victim):
      continue
    rows = functools.partial(_rows, context, source, kind, load, functools.partial(make, place))
    pieces += [
      grid.cell_table(_cell(model.arm, model.trial, kind), functools.partial(rows, model))
      for model in tested
    ]
  stored_tables.fill_missing(
    'stress', pieces, folder=context.results / PARTS, stopper=context.stopper
  )
  _save_made(context, trained, source, begin)
  save_pictures(context, trained, source, begin)
  parts = sorted((context.results / PARTS).glob('*.seed*.parquet'))
  if parts and parallel.is_writer():
    rows = pd.concat([files.read_with(path, pd.read_parquet) for path in parts], ignore_index=True)
    with files.replacing(context.results / ROWS) as temporary:
      rows.to_parquet(temporary, index=False)


# Patches ------------------------------------------------------------------------------------------


def begin_of(config, source, role: str) -> store.Split | None:
  """The test patches of a role; of nodules those of data.min_diameter or more."""
  part = nodules_pools.part_of(source, 'test', role)
  if role != 'nodule':
    return part
  large = [p for p in range(len(part)) if part[p]['diameter'] >= config.data.min_diameter]
  return store.Part(part, large)


def _possible(trained, kind: Kind, begin: store.Split | None, *, victim: str) -> bool:
  """False where a column begins with no patches, or a network that makes it is not trained."""
  if begin is not None and not len(begin):
    return False
  if not kind.pool or kind.recipe is not None:
    return True
  needs = [victim or trained.config.pools.victim]
  needs += [nodules_pools.SYNTHESISER] if nodules_pools.needs_synthesiser([kind.pool]) else []
  return all(bool(parallel.broadcast_from_writer(np.array(trained.has(arm)))) for arm in needs)


def patches(
  trained: nodules_pools.Trained,
  source,
  kind: Kind,
  begin: store.Split | None,
  *,
  victim: str = '',
) -> store.Split | None:
  """The patches of a column, which begin as those of `begin`; None where they cannot be made.

  `victim`: whom the search attacks, by default config.pools.victim.
  """
  config, how = trained.config, kind.recipe
  if not _possible(trained, kind, begin, victim=victim):
    return None
  if not kind.pool:
    return begin
  if how is None:
    how = nodules_pools.recipe(trained, kind.pool, victim=victim)
  return nodules_pools.generate(
    trained,
    f'{victim or "test"}_{kind.attack}_{kind.eps:g}',
    how,
    begin=begin,
    source_id=[source.info['fingerprint'], 'test', kind.role, config.data.min_diameter],
    count=_count(config, kind),
    salt=_SALT,
    first=_FIRST,
  )


def _rows(context, source, kind, load, made, model) -> pd.DataFrame:
  variables, examples = load(model), made()
  if kind.pool:
    examples = stored_pools.Filled(examples, source.volumes[0])
  evaluator = model.evaluator or context.evaluator
  tables = []
  for batch in _batches(context.config, examples):
    columns = evaluator.score(variables, batch, batch['image']).columns
    kept = {name: columns[name] for name in KEPT if name in columns}
    keys = {name: batch[name] for name in ('mask', 'index', 'group')}
    tables.append(parallel.gather_rows({n: np.asarray(v) for n, v in {**keys, **kept}.items()}))
  table = pd.DataFrame({name: np.concatenate([t[name] for t in tables]) for name in tables[0]})
  table = table[table.pop('mask').astype(bool)]
  # The place among the patches that a column begins with: what is paired over the columns.
  if kind.pool:
    table['index'] -= _FIRST
  else:
    table['index'] = table['index'].rank().astype(int) - 1
  return table.assign(arm=model.arm, seed=model.seed, attack=kind.attack, eps=float(kind.eps))


def _batches(config, examples) -> Iterator[dict[str, Any]]:
  hosts = parallel.process_count()
  batches = pipeline.eval_batches(
    examples,
    batch_size=max(1, config.evaluate.batch_size // hosts),  # one shape for all columns
    shard_index=parallel.process_index(),
    shard_count=hosts,
  )
  return map(grid.device_batch, batches)


# Synthetic nodules and pictures -------------------------------------------------------------------


def _save_made(context, trained, source, begin) -> None:
  """made.parquet: what synthetic and real nodules are like, a row per nodule and seed."""
  path = context.results / PARTS / f'made.{trained.seed}.parquet'
  by_name = {kind.attack: kind for kind in kinds(trained.config)}
  tables = []
  for name in nodules_pools.SYNTHETIC:
    background = begin('background')
    pool = patches(trained, source, by_name[name], background) if name in by_name else None
    if pool is not None:
      table = nodules_pools.synthetic_nodules(pool, background, first=_FIRST)
      tables.append(table.assign(attack=name, seed=trained.seed))
  if tables:
    real = nodules_pools.part_of(source, 'train', 'nodule')
    table = nodules_pools.real_nodules(
      real, spacing=trained.config.data.spacing, smallest=trained.config.synthesiser.smallest
    )
    tables.append(table.assign(attack=REAL, seed=trained.seed))
  if tables and parallel.is_writer():
    with files.replacing(path) as temporary:
      pd.concat(tables, ignore_index=True).to_parquet(temporary, index=False)
    parts = sorted(path.parent.glob('made.*.parquet'))
    with files.replacing(context.results / MADE) as temporary:
      whole = pd.concat(
        [files.read_with(part, pd.read_parquet) for part in parts], ignore_index=True
      )
      whole.to_parquet(temporary, index=False)


def save_pictures(context, trained, source, begin) -> None:
  """pools.npz of the first seed: middle slices before and after, for the figures."""
  config, path = trained.config, context.results / PICTURES
  there = bool(parallel.broadcast_from_writer(np.array(path.is_file())))
  if not config.report.pictures or trained.seed or there:
    return
  stored: dict[str, np.ndarray] = {}
  for kind in kinds(config):
    made = patches(trained, source, kind, begin(kind.role))
    if made is None or (not kind.pool and kind.attack != grid.CLEAN):
      continue
    name = f'{kind.attack} {kind.eps:g}'
    stored |= slices(name, made, begin(kind.role), count=config.report.pictures)
  if stored and parallel.is_writer():
    with files.replacing(path) as temporary:
      np.savez_compressed(temporary, **stored)


def slices(
  name: str, made: store.Split, begin: store.Split | None, *, count: int
) -> Mapping[str, np.ndarray]:
  """`name` and, where there is one, `name/before`: middle slices [n, s, s]; `name/number` [n]."""
  chosen = [made[place] for place in range(min(count, len(made)))]
  cut: Callable[[Any], np.ndarray] = lambda image: image[image.shape[0] // 2, ..., 0]
  found = {name: np.stack([cut(example['image']) for example in chosen])}
  numbers = np.array([int(example['index']) for example in chosen])
  pooled = numbers >= _FIRST
  found[f'{name}/number'] = np.where(pooled, numbers - _FIRST, numbers)
  if begin is not None and pooled.all():
    before = [begin[int(number - _FIRST) % len(begin)] for number in numbers]
    found[f'{name}/before'] = np.stack([cut(example['image']) for example in before])
  return found
