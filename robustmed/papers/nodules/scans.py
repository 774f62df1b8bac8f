"""Whole test scans: candidates, their confidence by every network, submissions as LUNA16 has them.

results/froc holds annotations/ (the three tables of the challenge), nodules.csv (their kinds) and
ARM.seedN.csv, which `python -m robustmed.metrics.froc` scores as well.
"""

import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd

from robustmed import data, errors, types
from robustmed.data.chest import nodule_scans, phantom_chest
from robustmed.evaluation import stored_tables
from robustmed.metrics import froc
from robustmed.metrics.froc import luna16
from robustmed.papers.nodules import arms as nodules_arms
from robustmed.papers.nodules import candidates as finding
from robustmed.papers.nodules import pools
from robustmed.process import console, files, parallel
from robustmed.runs import artifacts
from robustmed.tasks import sliding

FOLDER, ANNOTATIONS, KINDS, PARTS = 'froc', 'annotations', 'nodules.csv', 'parts'
FOUND = 'candidates'  # the submission whose probabilities are those of the candidate networks
HEAT, BOXES = f'{FOUND}_heat', f'{FOUND}_boxes'  # the same of each kind alone, where there are two
CHEST = {'': (320.0, 350.0, 350.0), 'phantom_nodules': phantom_chest.SIDES}  # millimetres
LISTED = 620  # candidates of a scan of LUNA16 in its own list
READ = ('confidence', 'uncertainty', 'entropy')


def run(config, context: artifacts.Context, trained: pools.Trained, models) -> None:
  """Scores what is missing, scan by scan; every scan finished by a network is one file."""
  networks = search_networks(config, trained)
  if networks is None:
    console.say('no FROC: the candidate networks are not trained in this workdir')
    return
  scans = data.SOURCES[config.data.source].scans(data.fields_of(nodules_arms.source_config(config)))
  uids = scans.splits['test'][: config.evaluate.scans or None]
  folder = context.results / FOLDER
  if parallel.is_writer() and not (folder / KINDS).is_file():
    save_annotations(folder, [scans.tables(uid) for uid in uids])
  names = [FOUND, *([HEAT, BOXES] if networks.heat and networks.boxes is not None else [])]
  names += [nodules_arms.REFERENCE] if networks.reference is not None else []
  wanted = {f'{name}.seed{trained.seed}': None for name in names}
  wanted |= {f'{model.arm}.seed{model.seed}': model for model in models}
  scorer = functools.cache(functools.partial(_scorer, context, wanted, {}))
  read = functools.lru_cache(maxsize=1)(scans.read)
  candidates = functools.lru_cache(maxsize=1)(lambda uid: found_in(config, read(uid), networks))
  marks = lambda uid, name: _marked(
    config, networks, name, scorer(name), read(uid), functools.partial(candidates, uid)
  )
  pieces = [
    stored_tables.Table(
      f'{name}/{uid}.parquet',
      functools.partial(marks, uid, name),
      f'scan {uid} by {name!r}',
      f'{uid[-12:]} {name}',
    )
    for uid in uids
    for name in wanted
  ]
  stored_tables.fill_missing('scans', pieces, folder=folder / PARTS, stopper=context.stopper)
  if parallel.is_writer():
    for name in wanted:
      found = [folder / PARTS / name / f'{uid}.parquet' for uid in uids]
      parts = [files.read_with(path, pd.read_parquet) for path in found]
      whole = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
      with files.replacing(folder / f'{name}.csv') as temporary:
        whole.to_csv(temporary, index=False)


def study_cells(config, arm: str, seed: int, count: int) -> dict[str, types.Cost]:
  """The cost of `count` scans by file in results/; their candidates, which are found once, with the
  arm that the searches attack. About: scans have the sizes of a chest."""
  listed = config.data.candidates == 'luna_v2'
  candidates = LISTED if listed else config.candidates.settings.limit
  size = config.evaluate.batch_size
  own = types.Cost(forwards=count * -(-candidates // size) * size, passes=0)
  found = {f'{FOLDER}/{arm}.seed{seed}.csv': own}
  if arm == config.pools.victim:
    extent = np.divide(CHEST.get(config.data.source, CHEST['']), config.tiles.spacing)
    patch = (config.tiles.side,) * 3
    whole = tuple(max(math.ceil(side), config.tiles.side) for side in extent)
    tiles = len(sliding.starts(whole, patch, step=config.candidates.settings.step))
    each = types.Cost(forwards=count * tiles, passes=0)
    arms = nodules_arms.candidate_arms(config)
    others = tuple((one.network.task, each) for one in arms.values())
    found[f'{FOLDER}/{FOUND}.seed{seed}.csv'] = types.Cost(passes=0, others=others)
  return found


def _scorer(context, wanted, programs, name):
  """Image -> columns by a network, which is loaded once; None for what is no classifier."""
  model = wanted[name]
  if model is None:
    return None
  task, variables = context.exp.task_of(model.arm), model.load()
  if id(task) not in programs:
    programs[id(task)] = program_of(task)
  return functools.partial(programs[id(task)], variables)


# Candidates ---------------------------------------------------------------------------------------


class Networks(NamedTuple):
  """What finds candidates; `finder` is None where a list of the data set is used."""

  finder: finding.Finder | None
  heat: tuple[Any, ...]
  boxes: Any
  reference: finding.Finder | None
  reference_variables: Any


def search_networks(config, trained: pools.Trained) -> Networks | None:
  """The candidate networks of config; None if one of them is not trained."""
  arms = nodules_arms.candidate_arms(config)
  if not all(bool(parallel.broadcast_from_writer(np.array(trained.has(arm)))) for arm in arms):
    return None
  settings = finding.Settings(patch=(config.tiles.side,) * 3, **_settings(config))
  load = {arm: trained.load(arm) for arm in arms}
  heat = tuple(load[arm] for arm in (nodules_arms.BLOB, nodules_arms.GLASS) if arm in load)
  boxes, finder, reference = load.get(nodules_arms.BOXES), None, None
  if heat:
    finder = finding.Finder(
      nodules_arms.blob_task(config),
      None if boxes is None else nodules_arms.boxes_task(config),
      settings=settings,
    )
  if nodules_arms.REFERENCE in load:
    reference = finding.Finder(None, nodules_arms.reference_task(config), settings=settings)
  return Networks(finder, heat, boxes, reference, load.get(nodules_arms.REFERENCE))


def _settings(config):
  options, spacing = config.candidates.settings.to_dict(), config.tiles.spacing
  cells = {
    'distance': options.pop('distance') / spacing,
    'sides': tuple(side / spacing for side in config.candidates.sides),
  }
  return {**options, **cells}


def found_in(
  config, scan: nodule_scans.NoduleScan, networks: Networks
) -> dict[str, finding.Candidates]:
  """The candidates of a scan by submission, centres (x, y, z) in mm: `FOUND`, and with networks of
  two kinds `HEAT` and `BOXES`."""
  if networks.finder is None:
    if scan.candidates is None:
      raise errors.UserError(
        f'scan {scan.uid}: has no list of candidates; set data.candidates=blob, or '
        'data.negatives_from=candidates with a list'
      )
    points = nodule_scans.centres(scan.candidates)
    return {FOUND: finding.Candidates(points, np.full(len(points), 0.5))}
  regular = nodule_scans.resample(scan, config.tiles.spacing)
  parts = networks.finder.parts(regular.image, heat=networks.heat, boxes=networks.boxes)
  found = {FOUND: networks.finder.joined(parts)}
  if len(parts) > 1:
    found |= {HEAT: parts['heat'], BOXES: parts['boxes']}
  return {name: finding.in_world(one, regular) for name, one in found.items()}


def _marked(config, networks, name, score, scan, candidates) -> pd.DataFrame:
  """What submission `name` says of a scan; `candidates` () -> what `found_in` gives."""
  if score is not None:
    return scored(config, scan, candidates()[FOUND], score)
  if name.startswith(FOUND):
    marks = candidates()[name.rsplit('.seed', 1)[0]]
  else:
    regular = nodule_scans.resample(scan, config.tiles.spacing)
    marks = networks.reference(regular.image, boxes=networks.reference_variables)
    marks = finding.in_world(marks, regular)
  return submission(scan.uid, marks.centre, {'confidence': marks.score})


def scored(
  config,
  scan: nodule_scans.NoduleScan,
  found: finding.Candidates,
  score: Callable[[np.ndarray], Mapping[str, Any]],
) -> pd.DataFrame:
  """Every candidate with what `score` ([b, ...] -> columns [b]) says of the patch about it."""
  size = parallel.round_up(config.evaluate.batch_size)
  tables: list[Mapping[str, np.ndarray]] = []
  for first in range(0, len(found.centre), size):
    points = found.centre[first : first + size]
    image = nodule_scans.patches(scan, points, side=config.data.side, spacing=config.data.spacing)
    out = score(parallel.pad({'image': image}, size)['image'])
    tables.append({name: np.asarray(value)[: len(points)] for name, value in out.items()})
  names = tables[0] if tables else ('confidence',)
  columns = {
    name: np.concatenate([table[name] for table in tables]) if tables else np.zeros(0)
    for name in names
  }
  return submission(scan.uid, found.centre, columns)


def program_of(task: types.Task):
  """(variables, image [b, ...]) -> columns [b]."""

  def one_device(variables, image):
    outputs = task.predict(variables, image)
    batch = {'image': image, 'target': {'target': jnp.zeros(len(image), jnp.int32)}}
    found = task.metrics(outputs, batch)
    return {name: found[name] for name in READ if name in found}

  return parallel.each_device(one_device, split=(1,))


def submission(uid: str, points: np.ndarray, columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
  """Marks at world points [n, 3] in the columns of LUNA16; 'confidence' is the probability."""
  points = np.asarray(points, np.float64).reshape(-1, 3)
  rest = {name: value for name, value in columns.items() if name != 'confidence'}
  place = dict(zip(nodule_scans.PLACE, points.T))
  probability = np.asarray(columns['confidence'], np.float64)
  return pd.DataFrame(
    {'seriesuid': [uid] * len(points), **place, 'probability': probability, **rest}
  )


# Files --------------------------------------------------------------------------------------------


def save_annotations(folder: pathlib.Path, tables) -> None:
  """The three files of `metrics.luna16.read_annotations`, and the kinds of all nodules."""
  place = {'uid': 'seriesuid'}
  columns = ['seriesuid', *nodule_scans.PLACE, 'diameter_mm']
  joined = {
    'annotations.csv': pd.concat([one.nodules for one in tables]).rename(columns=place),
    'annotations_excluded.csv': pd.concat([one.excluded for one in tables]).rename(columns=place),
  }
  for name, table in joined.items():
    with files.replacing(folder / ANNOTATIONS / name) as temporary:
      table.reindex(columns=columns).to_csv(temporary, index=False)
  with files.replacing(folder / ANNOTATIONS / 'seriesuids.csv') as temporary:
    temporary.write_text(''.join(f'{one.uid}\n' for one in tables))
  kinds = joined['annotations.csv'][['seriesuid', 'diameter_mm', 'kind']]
  with files.replacing(folder / KINDS) as temporary:
    kinds.to_csv(temporary, index=False)


def read_scored(
  folder: pathlib.Path, *, min_diameter: float, other: str = ''
) -> dict[tuple[str, int], froc.Scored]:
  """(arm, seed) -> the scored submission of everything in results/froc; {} without any.

  `other`: a submission of somebody else's on the same scans, as ('deeplung', 0).
  """
  if not (folder / KINDS).is_file():
    return {}
  known = luna16.read_annotations(folder / ANNOTATIONS, min_diameter=min_diameter)
  paths = {}
  for path in sorted(folder.glob('*.seed*.csv')):
    arm, seed = path.stem.rsplit('.seed', 1)
    paths[arm, int(seed)] = path
  if other:
    paths[nodules_arms.REFERENCE, 0] = pathlib.Path(other).expanduser()
  found = {}
  for (arm, seed), path in paths.items():
    lists = arm in (FOUND, HEAT, BOXES)  # a list of ties
    limit = np.iinfo(np.int32).max if lists else froc.MAX_MARKS
    marks = _marks(path, known.scans)
    number = len(known.scans)
    found[arm, seed] = froc.match(marks, known.findings, num_scans=number, max_marks=limit)
  return found


def _marks(path, scans) -> froc.Marks:
  """The marks of a submission on these scans; those on others are left out."""
  try:
    named = pd.read_csv(path, usecols=['seriesuid'], dtype=str)['seriesuid'].str.strip()
  except (OSError, ValueError):  # which the next line tells better
    named = ()
  rows = luna16.read_rows(path, 'probability', (*dict.fromkeys([*scans, *named]),), empty=True)
  kept = rows.scan < len(scans)
  return froc.Marks(scan=rows.scan[kept], centre=rows.centre[kept], probability=rows.value[kept])
