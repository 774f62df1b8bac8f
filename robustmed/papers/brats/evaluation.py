"""What the study of gliomas keeps beside the grid: curves over iterations, pictures, volumes."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from robustmed import attacks, types
from robustmed.data.brain import brains
from robustmed.data.files import nifti
from robustmed.evaluation import examples, grid, stored_tables, trials
from robustmed.papers.brats import claims
from robustmed.process import console, files, parallel
from robustmed.runs import artifacts, experiment

CURVES = {'ifgsm': 'dice', 'tifgsm': 'ti'}  # attack -> its objective
PARTS, ITERATIONS, PICTURES = 'iteration_parts', 'iterations.parquet', 'slices.npz'
SHOWN = tuple(claims.ATTACKS)  # on the undefended network, Fig. 2
FILE_LABELS = np.array([0, 1, 2, 4], np.float32)  # of the challenge


def evaluate(config, context: artifacts.Context, models, rows: pd.DataFrame) -> None:
  """After the grid: iterations.parquet, slices.npz and, on request, the folder nifti."""
  del rows
  save_curves(config, context, models)
  save_pictures(config, context, models)
  if config.evaluate.save_nifti:
    save_volumes(config, context, models)


# Dice and image quality against the number of iterations (Figs. 3 and 4) -------------------------


def curve_file(arm: str, trial: trials.Trial, attack: str) -> str:
  return f'{PARTS}/{arm}.{trial}.{attack}.parquet'


def curve_attacks(config) -> list[str]:
  """Those of `CURVES` that the grid has."""
  return [name for name in CURVES if name in config.evaluate.attacks]


def save_curves(config, context: artifacts.Context, models) -> None:
  """One row per subject and number of iterations; eps is that number times config.alpha."""
  count, alpha = config.evaluate.iterations, config.evaluate.alpha
  if not count:
    return
  programs: dict[Any, Any] = {}

  def make(model, attack):
    task = context.exp.task_of(model.arm)
    kind = id(task.predict), attack
    if kind not in programs:
      programs[kind] = curve_program(
        task, attack, CURVES[attack], bounds=(0.0, 1.0), num_steps=count, alpha=alpha
      )
    found = _curve_rows(context, model, programs[kind], attack, alpha)
    return context.exp.grid.subjects(found)

  pieces = [
    stored_tables.Table(
      curve_file(model.arm, model.trial, attack),
      functools.partial(make, model, attack),
      f'arm {model.arm!r} ({model.trial.said}) after each step of {attack!r}',
      f'{model.arm} {attack}',
    )
    for model in models
    if model.arm in config.evaluate.iteration_arms
    for attack in curve_attacks(config)
  ]
  stored_tables.fill_missing('curves', pieces, folder=context.results, stopper=context.stopper)
  parts = sorted((context.results / PARTS).glob('*.parquet'))
  if parts and parallel.is_writer():
    with files.replacing(context.results / ITERATIONS) as temporary:
      pd.concat(
        [files.read_with(path, pd.read_parquet) for path in parts], ignore_index=True
      ).to_parquet(temporary, index=False)


def curve_program(task: types.Task, attack: str, objective: str, *, bounds, num_steps, alpha):
  """(variables, batch) -> {metric: [b, num_steps + 1]} at every iterate of one run."""
  run = attacks.make(attack, num_steps=num_steps, step_size=alpha, bounds=bounds, fold='trace')

  def one_device(variables, batch):
    seen = {**batch, 'clean': batch['image']}

    def value(image):
      return task.objectives[objective](task.predict(variables, image), {**seen, 'image': image})

    def monitor(image):
      return task.metrics(task.predict(variables, image), {**seen, 'image': image})

    # As large a ball as the steps together can reach: the iterates are not projected.
    keys = jax.random.key(0)  # there is nothing random to them
    eps = 2.0 * num_steps * alpha
    found = run(value, batch['image'], eps=eps, key=keys, monitor=monitor).monitored
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), found)

  return parallel.each_device(one_device, split=(1,))


def _curve_rows(context, model, program, attack, alpha) -> pd.DataFrame:
  variables, tables = model.load(), []
  for batch in map(grid.device_batch, context.batches()):
    keep = {name: np.asarray(batch[name]) for name in ('mask', 'index', 'group')}
    found = {name: np.asarray(value) for name, value in program(variables, batch).items()}
    tables.append(parallel.gather_rows({**keep, **found}))
  whole = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
  mask = whole.pop('mask').astype(bool)
  whole = {name: value[mask] for name, value in whole.items()}
  keys = {name: whole.pop(name) for name in ('index', 'group')}
  points = next(iter(whole.values())).shape[1]
  made = [
    pd.DataFrame({**keys, **{name: value[:, point] for name, value in whole.items()}}).assign(
      arm=model.arm, attack=attack, eps=round(point * alpha, 6), seed=model.seed
    )
    for point in range(points)
  ]
  return pd.concat(made, ignore_index=True)


# Pictures (Figs. 2 and 9) -------------------------------------------------------------------------


def save_pictures(config, context: artifacts.Context, models) -> None:
  """slices.npz: the axial slice with most tumour of the first case that has all three regions."""
  if not config.report.pictures:
    return
  index = pictured(context.source().test, volumes=config.dimension == 3)
  shown = filter(context.meets_main, artifacts.first_trial(models))
  artifacts.add_pictures(
    context.results / PICTURES, shown, lambda model: _pictures(config, context, model, index)
  )


def pictured(split, *, volumes: bool) -> int:
  """The index of the example that is drawn."""
  best, most = int(split[0]['index']), -1
  for position in range(len(split)):
    labels = split[position]['labels']
    size = int((labels > 0).sum()) if set(np.unique(labels)) >= {1, 2, 3} else 0
    if size > most:
      best, most = int(split[position]['index']), size
    if size and volumes:
      break
  return best


def shown_eps(probe: grid.Probe) -> float:
  """The level of the paper's tables where the attack has it, else its largest."""
  return claims.EPS if claims.EPS in probe.levels else max(probe.levels)


def shown_attacks(exp: experiment.Experiment, arm: str, *, eps: float) -> list[tuple[str, float]]:
  """(attack, level) of an arm's pictures: the main attack at `eps`; on the undefended network
  those of `SHOWN` that the grid has as well."""
  found = [(exp.grid.main, eps)]
  if arm == exp.grid.checks['undefended']:
    found += [(name, shown_eps(exp.grid.probes[name])) for name in SHOWN if name in exp.grid.probes]
  return list(dict.fromkeys(found))


def _pictures(config, context, model, index) -> dict[str, np.ndarray]:
  wanted = shown_attacks(context.exp, model.arm, eps=config.report.picture_eps)
  evaluator, variables, rows = model.evaluator or context.evaluator, model.load(), []
  for name, eps in wanted:
    for one in examples.attack(
      evaluator, variables, context.batches, attack=name, eps=eps, wanted=[index]
    ):
      labels = one.example['target']['labels']
      cut = (lambda array: array) if labels.ndim == 2 else _cut(labels)
      rows.append(
        {
          'arm': model.arm,
          'attack': name,
          'eps': eps,
          'index': index,
          'image': cut(one.example['image']),
          'adversarial': cut(one.image),
          'truth': cut(labels),
          'clean': cut(np.argmax(one.clean['head0'], axis=-1)),
          'attacked': cut(np.argmax(one.attacked['head0'], axis=-1)),
        }
      )
  names = rows[0] if rows else ()
  return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in names}


def _cut(labels):
  place = int(np.argmax((labels > 0).sum(axis=(1, 2))))
  return lambda array: array[place]


# NIfTI --------------------------------------------------------------------------------------------


def save_volumes(config, context: artifacts.Context, models) -> None:
  """results/nifti/ARM/CASE_{clean,adversarial,prediction}.nii.gz on the grid of the case's files.

  All float32, with the affine of the input; images in [0, 1] with the series as fourth axis, labels
  0 1 2 4. The prediction is that of the adversarial image, `prediction_clean` that of the clean.
  """
  eps = shown_eps(context.exp.grid.probes[context.exp.grid.main])
  split = context.source().test
  names = {int(split[i]['index']): str(split[i]['name']) for i in range(len(split))}
  groups = sorted(set(np.asarray(split.groups).tolist()))
  groups = groups[: config.evaluate.nifti_cases or None]
  wanted = [int(i) for i in split.stack('index')[np.isin(split.groups, groups)]]
  for model in artifacts.first_trial(models):
    if not context.meets_main(model):
      continue
    folder = context.results / 'nifti' / model.arm
    parts: dict[int, list[examples.Example]] = {}
    for one in context.attacked(model, eps=eps, wanted=wanted):
      parts.setdefault(int(one.example['group']), []).append(one)
    if parallel.is_writer():
      for found in parts.values():
        case = names[int(found[0].example['index'])]
        write_case(folder, case.rsplit('_', 1)[0] if config.dimension == 2 else case, found)
    console.say(f'{len(parts)} cases of {model.arm} under {context.exp.grid.main} are in {folder}')


def write_case(folder: pathlib.Path, name: str, found: list[examples.Example]) -> None:
  """The four files of one case from its volume, or from its slices in any order."""
  label = lambda outputs: FILE_LABELS[np.argmax(outputs['head0'], axis=-1)]
  read = {
    'clean': (lambda one: one.example['image'], 1),
    'adversarial': (lambda one: one.image, 1),
    'prediction': (lambda one: label(one.attacked), 0),
    'prediction_clean': (lambda one: label(one.clean), 0),
  }
  target = found[0].example['target']
  geometry = nifti.geometry_of(target)
  for kind, (get, order) in read.items():
    parts = np.stack([np.asarray(get(one)) for one in found])
    if 'position' in target:
      cube = brains.restack(
        parts,
        groups=np.array([one.example['group'] for one in found]),
        positions=np.array([one.example['target']['position'] for one in found]),
      )[int(found[0].example['group'])]
    else:
      cube = parts[0]
    full = nifti.restore(cube.astype(np.float32), geometry, order=order)
    nifti.write(folder / f'{name}_{kind}.nii.gz', full, geometry.affine)


def write_example(folder: pathlib.Path, image: np.ndarray, example: Mapping[str, Any]) -> None:
  """case_GGG_IIIIII.nii.gz, the attacked image as the network saw it, and _seg, its true labels."""
  name = f'case_{int(example["group"]):03d}_{int(example["index"]):06d}'
  labels = FILE_LABELS[np.asarray(example['target']['labels'])]
  if labels.ndim == 2:
    image, labels = image[None], labels[None]
  turn = lambda array: np.swapaxes(array, 0, 2)  # [d, h, w] -> the order of files
  affine = np.diag([-1.0, -1.0, 1.0, 1.0])
  nifti.write(folder / f'{name}.nii.gz', turn(image), affine)
  nifti.write(folder / f'{name}_seg.nii.gz', turn(labels), affine)


def curves(results: pathlib.Path) -> pd.DataFrame | None:
  """The rows of `save_curves`, one per subject, attack and level; None without any."""
  path = results / ITERATIONS
  return files.read_with(path, pd.read_parquet) if path.is_file() else None
