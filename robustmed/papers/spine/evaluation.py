"""Files that the disk-shape report is made of beside the grid's: rows, facts, pictures."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from robustmed.data import augment
from robustmed.data.spine import shapes
from robustmed.evaluation import examples, grid
from robustmed.papers.spine import disks, ood
from robustmed.process import console, files, parallel
from robustmed.runs import artifacts

ROWS, DETECTORS = 'ood_rows.parquet', 'ood_detectors.csv'
FACTS, VIRTUAL, STRIPS, PICTURES = 'facts.json', 'virtual.npz', 'strips.npz', 'ood_pictures.npz'


def save_rows(results: pathlib.Path, rows: pd.DataFrame) -> None:
  """The rows of the attacks from outside and the AUROC of every detector."""
  if not parallel.is_writer():
    return
  with files.replacing(results / ROWS) as temporary:
    rows.to_parquet(temporary, index=False)
  with files.replacing(results / DETECTORS) as temporary:
    ood.detectors(rows).to_csv(temporary, index=False, float_format='%.6g')


def save_facts(config, context) -> None:
  """What the shape models explain, what the data are; and one virtual disk for the figure."""
  path = context.results / FACTS
  if bool(parallel.broadcast_from_writer(np.array(path.exists()))) or not parallel.is_writer():
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
  shown = [m for m in artifacts.first_trial(models) if m.arm in config.report.strip_arms]
  artifacts.add_pictures(
    context.results / STRIPS, shown, lambda model: _strips(context, model, batches, index)
  )


def _strips(context, model, batches, index) -> dict[str, np.ndarray]:
  evaluator, variables = model.evaluator or context.evaluator, model.load()
  rows = []
  for attack in ('pgd_reg', 'pgd_seg'):
    if model.attacks is not None and attack not in model.attacks:
      continue
    for eps in (0.0, *sorted(evaluator.probes[attack].levels)):
      name = attack if eps else grid.CLEAN
      for one in examples.attack(
        evaluator, variables, batches, attack=name, eps=eps, wanted=[index]
      ):
        rows.append(
          {
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
        )
  return _stacked(rows)


def save_ood_pictures(context, chosen, batches, starts) -> None:
  """One example of every attack from outside: arrays [n, ...]."""
  shown = {one.model.arm: one for one in chosen if one.model.seed == chosen[0].model.seed}
  artifacts.add_pictures(
    context.results / PICTURES,
    [one.model for one in shown.values()],
    lambda model: _ood_pictures(shown[model.arm], batches, starts),
  )


def _ood_pictures(one: ood.Model, batches, starts) -> dict[str, np.ndarray]:
  rows = []
  for name in one.settings:
    start = starts[one.evaluator.settings[name].start]
    for held in ood.attacked(one, batches=batches, start=start, name=name):
      rows.append(
        {
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
      )
  return _stacked(rows)


def _stacked(rows) -> dict[str, np.ndarray]:
  names = rows[0] if rows else ()
  return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in names}


def _save(path: pathlib.Path, arrays) -> None:
  with files.replacing(path) as temporary:
    np.savez_compressed(temporary, **arrays)
