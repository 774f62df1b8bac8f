"""Nodules: Liu et al. 2020, 'No Surprises: training robust lung nodule detection for low-dose CT
scans by augmenting with adversarial attacks'."""

import functools
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
import SimpleITK as sitk

from robustmed import data, errors, models, tasks, types
from robustmed.attacks.stored import lattice
from robustmed.data import store
from robustmed.data.chest import nodule_augment, nodule_patches, nodule_scans
from robustmed.papers.nodules import arms as nodules_arms
from robustmed.papers.nodules import evaluation, pools, report
from robustmed.process import files
from robustmed.runs import experiment


def build(config: ml_collections.ConfigDict) -> experiment.Experiment:
  """The experiment of a configuration of configs/nodules.py; touches no data."""
  check(config)
  build_task = functools.cache(lambda fields: make_task(config, dict(fields)))
  own_task = lambda fields: build_task(tuple(sorted(fields.items())))
  task = own_task({})
  arms = nodules_arms.make(config, task, own_task)
  move = nodule_augment.patches(
    shift=config.augment.shift / config.data.spacing,
    scale=config.augment.scale,
    exact_from=pools.FIRST,
  )
  task_of = lambda arm: (arms[arm].network.task if arm in arms else None) or task
  return experiment.Experiment(
    task=task,
    arms=arms,
    data=experiment.Data(
      sizes=functools.cache(lambda: sizes(config)),
      load=lambda: make_source(config),
      augment=lambda source: move,
      groups=lambda: groups(config),
      shapes=lambda: data.shapes(nodules_arms.source_config(config)),
      check=functools.partial(preflight, config),
    ),
    grid=experiment.Grid(
      experiment.make_probes(task, config, main='pgd'),
      'pgd',
      checks={
        'metric': 'correct',
        'higher_is_better': True,
        'main': 'pgd',
        'one_step': 'one_step',
        'noise': 'noise',
        'undefended': config.pools.victim,
      },
    ),
    report=lambda folder: report.spec_of(config, task, arms, folder),
    claims=lambda: report.make_claims(config),
    artifacts=experiment.Artifacts(functools.partial(write_example, config), lattice=lattice_of),
    studies=(
      experiment.Study(
        'whole scans and stress tests',
        functools.partial(evaluation.evaluate, config, task_of),
        functools.partial(evaluation.study_cells, config),
      ),
    ),
  )


def groups(config: ml_collections.ConfigDict) -> int:
  """The number of test scans."""
  count = data.groups(nodules_arms.source_config(config))
  return min(count, config.evaluate.scans or count)


def check(config: ml_collections.ConfigDict) -> None:
  """A `UserError` for whatever else would be found out only after hours of training."""
  known = dict.fromkeys(('blob', 'luna_v2'))
  errors.lookup(known, config.data.candidates, kind='data field candidates')
  errors.lookup(config.arms, config.pools.victim, kind='arm that the searches attack')
  source = errors.lookup(data.SOURCES, config.data.source, kind='data source')
  if config.data.fold >= 0 and 'fold' not in source.DEFAULTS:
    raise errors.UserError(
      f'data.fold={config.data.fold} is for luna16, not for {config.data.source}; leave it out'
    )
  reference = config.reference
  kinds = dict.fromkeys(('', 'detector', 'submission'))
  errors.lookup(kinds, reference.kind, kind='reference')
  if reference.kind == 'submission':
    path = pathlib.Path(reference.submission).expanduser()
    if not path.is_file():
      raise errors.UserError(
        f'reference.submission: there is no file {reference.submission!r}; name a CSV file in the '
        'format of LUNA16'
      )


def preflight(
  config: ml_collections.ConfigDict,
  arms: Collection[str],
  untrained: Collection[str],
  folder: pathlib.Path,
) -> None:
  """A `UserError` if nodule masks, their kinds or the disk's space will not do for these arms."""
  fields = data.fields_of(nodules_arms.source_config(config))
  scans = data.SOURCES[config.data.source].scans(fields)
  nodules_arms.check_masks(config, scans, untrained)
  evaluation.check_space(config, scans, arms, folder / pools.FOLDER)


def make_task(config: ml_collections.ConfigDict, fields: Mapping[str, Any]) -> types.Task:
  """The classifier of patches, config.model with `fields` on top; 'loss' is that of the task."""
  options = {**config.model.to_dict(), **fields}
  loss, anneal = options.pop('loss'), options.pop('anneal')
  make = errors.lookup(models.MODELS, options.pop('name'), kind='model')
  dtype = errors.lookup(
    {'float32': None, 'bfloat16': jnp.bfloat16}, options.pop('dtype'), kind='model dtype'
  )
  shape = (config.data.side,) * 3 + (1,)
  module = make(dtype=dtype, **options)
  return tasks.TASKS['nodules'](module, image_shape=shape, loss=loss, anneal=anneal)


def make_source(config: ml_collections.ConfigDict) -> data.Source:
  """All patches; `test` has the negatives and the nodules of data.min_diameter or more, `volumes`
  all of the test scans, backgrounds and small nodules too."""
  whole = data.load(nodules_arms.source_config(config))
  return whole._replace(test=judged(whole, config.data.min_diameter), volumes=whole.test)


def judged(source: data.Source, min_diameter: float) -> store.Part:
  """The test patches that networks are judged on."""
  roles = np.asarray(source.info['roles']['test'])
  nodule, negative = (nodule_patches.ROLES.index(name) for name in ('nodule', 'negative'))
  large = [
    place
    for place in np.flatnonzero(roles == nodule).tolist()
    if source.test[place]['diameter'] >= min_diameter
  ]
  if not large:
    raise errors.UserError(
      f'no nodule of the test scans has {min_diameter:g} mm or more; lower data.min_diameter'
    )
  return store.Part(source.test, sorted([*large, *np.flatnonzero(roles == negative).tolist()]))


def sizes(config: ml_collections.ConfigDict) -> dict[str, int]:
  """Patches per split; of the test split, small nodules are counted as well."""
  fields = nodules_arms.source_config(config)
  graded = data.sizes({**fields, 'backgrounds': 0})
  return {**data.sizes(fields), 'test': graded.get('test', 0)}


def lattice_of(example) -> lattice.Lattice:
  """Returns the patches that a file of whole HU holds."""
  del example
  low, high = nodule_scans.WINDOW
  ends = np.iinfo(np.int16)
  return lattice.Lattice(-low / (high - low), 1 / (high - low), ends.min, ends.max)


def write_example(config, folder: pathlib.Path, image, example, *, whole=None) -> None:
  """Writes one attacked patch as an .mha file in HU, where it lies in the patient.

  whole: its HU, None for the nearest whole numbers.
  """
  spacing = config.data.spacing
  hu = np.round(nodule_scans.to_hu(np.asarray(image))) if whole is None else whole
  written = sitk.GetImageFromArray(hu[..., 0].astype(np.int16))
  written.SetSpacing((spacing,) * 3)
  corner = np.asarray(example['target']['centre'], float) - (config.data.side - 1) / 2 * spacing
  written.SetOrigin(corner.tolist())
  with files.replacing(folder / f'{int(example["index"]):06d}.mha') as temporary:
    sitk.WriteImage(written, str(temporary))
