"""Files that the disk-shape report is made of beside the grid's: rows, facts, pictures."""

import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from robustmed import console, files, parallel
from robustmed.data import augment, shapes
from robustmed.evaluation import grid, ood
from robustmed.experiments import disks

ROWS, DETECTORS = 'ood_rows.parquet', 'ood_detectors.csv'
FACTS, VIRTUAL, STRIPS, PICTURES = 'facts.json', 'virtual.npz', 'strips.npz', 'ood_pictures.npz'


def save_rows(results: pathlib.Path, rows: pd.DataFrame, *, seed: int) -> None:
  """The rows of the attacks from outside and the AUROC of every detector."""
  if not parallel.is_writer():
    return
  with files.replacing(results / ROWS) as temporary:
    rows.to_parquet(temporary, index=False)
  with files.replacing(results / DETECTORS) as temporary:
    ood.detectors(rows, seed=seed).to_csv(temporary, index=False, float_format='%.6g')


def save_facts(config, context) -> None:
  """What the shape models explain, what the data are; and one virtual disk for the figure."""
  path = context.results / FACTS
  if bool(parallel.from_writer(np.array(path.exists()))) or not parallel.is_writer():
    return
  source = context.source()
  used = sorted(
    {int(arm.get('augment', config.augment).components) for arm in config.arms.values()} - {0}
  )
  explained = {}
  for number in used:
    model = disks.shape_model(source, number)
    explained[f'P{number:02d}'] = [float(share) for share in np.asarray(model.explained)]
    console.say(
      f'shape model P{number:02d} explains {sum(explained[f"P{number:02d}"]):.1%} of the variance'
    )
  facts = {
    'explained': explained,
    'sizes': dict(source.info['sizes']),
    'groups': dict(source.info['groups']),
    'counts': dict(source.info['counts']),
  }
  if used:
    _save(context.results / VIRTUAL, virtual_disk(source, components=used[-1], seed=config.seed))
  files.write_json(path, facts)


def virtual_disk(source, *, components: int, seed: int) -> dict[str, np.ndarray]:
  """A training image, a shape drawn from the shape model, and the image warped onto it."""
  model = disks.shape_model(source, components)
  example = source.train[0]
  shape = shapes.sample(jax.random.key(seed), model)
  image, contour = jnp.asarray(example['image']), jnp.asarray(example['contour'])
  warped = augment.warp_to(image[None], contour[None], shape[None])[0]
  return {
    'image': np.asarray(image),
    'contour': np.asarray(contour),
    'virtual_contour': np.asarray(shape),
    'virtual_image': np.asarray(warped),
  }


def save_strips(config, context, models, batches, *, index: int) -> None:
  """One test example under both attacks at every level, for some arms: arrays [n, ...]."""
  path = context.results / STRIPS
  shown = [
    model
    for model in models
    if model.seed == models[0].seed and model.arm in config.report.strip_arms
  ]
  if _holds(path, [model.arm for model in shown]):
    return
  columns: dict[str, list] = {}
  for model in shown:
    evaluator, variables = model.evaluator or context.evaluator, model.load()
    for attack in ('pgd_reg', 'pgd_seg'):
      if model.attacks is not None and attack not in model.attacks:
        continue
      for eps in (0.0, *sorted(evaluator.probes[attack].levels)):
        found = grid.attacked_examples(
          evaluator,
          variables,
          batches,
          attack=attack if eps else grid.CLEAN,
          eps=eps,
          wanted=[index],
        )
        for one in found:
          row = {
            'arm': model.arm,
            'attack': attack,
            'eps': eps,
            'index': index,
            'image': one.image,
            'contour_true': one.example['target']['contour'],
            'mask_true': one.example['target']['mask'],
            'contour': one.attacked['contour'],
            'segmentation': one.attacked['segmentation'],
          }
          for name, value in row.items():
            columns.setdefault(name, []).append(np.asarray(value))
  if columns and parallel.is_writer():
    _save(path, {name: np.stack(values) for name, values in columns.items()})


def save_ood_pictures(context, chosen, batches, starts) -> None:
  """One example of every attack from outside: arrays [n, ...]."""
  path = context.results / PICTURES
  shown = [one for one in chosen if one.model.seed == chosen[0].model.seed]
  if _holds(path, [one.model.arm for one in shown]):
    return
  columns: dict[str, list] = {}
  for one in shown:
    for name in one.settings:
      start = starts[one.evaluator.settings[name].start]
      for held in ood.attacked(one, batches=batches, start=start, name=name):
        row = {
          'arm': one.model.arm,
          'attack': name,
          'index': held['index'][0],
          'image': held['image'][0],
          'start': held['start'][0],
          'attacked': held['attacked'][0],
          'mask_true': held['target']['mask'][0],
          'contour_wanted': held['wanted']['contour'][0],
          'mask_wanted': held['wanted']['mask'][0],
          'contour': held['outputs']['contour'][0],
          'segmentation': held['outputs']['segmentation'][0],
          **{column: held[column][0] for column in ('agree_seg', 'agree_reg', 'score')},
        }
        for column, value in row.items():
          columns.setdefault(column, []).append(np.asarray(value))
  if columns and parallel.is_writer():
    _save(path, {name: np.stack(values) for name, values in columns.items()})


def _holds(path: pathlib.Path, arms: Sequence[str]) -> bool:
  """Whether the file of an earlier call has the pictures of exactly these arms."""
  there = False
  if path.exists():
    with np.load(path, allow_pickle=False) as stored:
      there = set(stored['arm'].tolist()) == set(arms)
  return bool(parallel.from_writer(np.array(there)))


def _save(path: pathlib.Path, arrays) -> None:
  with files.replacing(path) as temporary:
    np.savez_compressed(temporary, **arrays)
