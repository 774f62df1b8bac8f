"""The arms of the study of nodules: candidate networks, synthesiser, classifiers and what each of
them learns from."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import ml_collections

from robustmed import data, errors, models, tasks, types
from robustmed.data import mixing, pipeline, store
from robustmed.data.chest import nodule_augment, nodule_patches, nodule_scans
from robustmed.defenses import standard
from robustmed.models import weights
from robustmed.papers.nodules import pools as nodules_pools
from robustmed.papers.nodules import stored_pools, synthesiser
from robustmed.runs import experiment, preparation

BLOB, GLASS, BOXES, REFERENCE = 'blob', 'blob_glass', 'rpn', 'deeplung'
CONTROL = 'longer'  # the baseline, trained on as the variants are, without their pools
SYNTHESISER = nodules_pools.SYNTHESISER
GROUND_GLASS = ('ground_glass', 'part_solid')
NO_MASK = 'no training nodule has a mask to learn from'
NO_KIND = 'no training nodule is known to be ground glass or part-solid'
MAKE_MASKS = (
  'make nodule_masks of the contours of LIDC-IDRI by python -m robustmed.data.chest.lidc_xml'
)
# Where a share of the training draws is lacking it goes to the first kind.
KINDS = ('real', 'synthetic', 'attacked')


def make(
  config: ml_collections.ConfigDict,
  task: types.Task,
  make_task: Callable[[Mapping[str, Any]], types.Task],
) -> dict[str, experiment.Arm]:
  """All arms in the order of the study; classifiers are those of config.arms."""
  editable = experiment.editable(config)
  classifiers = experiment.make_arms(task, editable, make_task=make_task)
  finders = candidate_arms(config)
  task_of = lambda arm: (classifiers[arm].network.task or task) if arm in classifiers else None
  made, paid = {**finders}, set()
  added = {name: tuple(config.arms[name].get('added', ())) for name in classifiers}
  for name in {**finders, SYNTHESISER: None}:
    if name in classifiers:
      raise errors.UserError(f'an arm cannot be called {name!r}; choose another name')
  if any(nodules_pools.needs_synthesiser(names) for names in added.values()) or config.stress.codes:
    made[SYNTHESISER] = synthesiser_arm(config)
  for name, arm in classifiers.items():
    needs = tuple(finders)
    if added[name]:
      check_pools(name, added[name])
      needs += (config.pools.victim, *_makers(added[name]))
      learns = arm.prepared._replace(
        source=_with_pools(config, added[name], task_of),
        cost=functools.partial(_cost, config, [one for one in added[name] if one not in paid]),
      )
      arm = arm._replace(prepared=learns)
      paid |= set(added[name])
    if config.arms[name].get('model', {}).get('loss', '') == 'segmentation':
      arm = arm._replace(evaluated=False)
    waits = arm.prepared._replace(needs=(*arm.prepared.needs, *needs))
    made[name] = arm._replace(prepared=waits)
  return made


def _makers(added):
  return (SYNTHESISER,) if nodules_pools.needs_synthesiser(added) else ()


def check_pools(arm: str, added: Sequence[str]) -> None:
  """A `UserError` for pools that are not known, or two of the same kind."""
  filled = {}
  for name in added:
    kind = errors.lookup(nodules_pools.POOLS, name, kind=f'pool of arm {arm!r}').kind
    if not kind:
      raise errors.UserError(f'arm {arm!r}: the pool {name!r} is for stress tests alone')
    if kind in filled:
      raise errors.UserError(
        f'arm {arm!r} has the pools {filled[kind]!r} and {name!r}, both for {kind}; leave one out'
      )
    filled[kind] = name


def _cost(config, names, examples) -> types.Cost:
  """The cost of these pools, each made by the first arm that learns from it."""
  del examples
  begin, own, others = patches(config, 'train'), types.Cost(passes=0), ()
  for name in names:
    role = nodules_pools.POOLS[name].role
    count = config.pools.counts[name] or begin.get(role, 0)
    found = nodules_pools.cost(config, name, count)
    own = types.Cost(*(a + b for a, b in zip(own[:3], found[:3])))
    others += found.others
  return own._replace(others=others)


# What is learnt from ------------------------------------------------------------------------------


def source_config(config: ml_collections.ConfigDict, **more: Any) -> dict[str, Any]:
  """The fields of config.data that the chosen source knows, with `more` on top."""
  return {**data.source_config(config.data.to_dict()), **more}


def patches(config: ml_collections.ConfigDict, split: str) -> dict[str, int]:
  """Role -> about how many patches a split has of it, '' -> how many scans; no scan is read."""
  fields = source_config(config)
  size = lambda **more: data.sizes({**fields, **more}).get(split, 0)
  nodules = size(negatives=0, backgrounds=0)
  scans = size(negatives=1, backgrounds=0) - nodules
  each = {'negative': config.data.negatives, 'background': config.data.backgrounds}
  return {'': scans, 'nodule': nodules, **{role: scans * count for role, count in each.items()}}


def tiles(config: ml_collections.ConfigDict) -> data.Source:
  """The tiles of the training scans, for candidate networks."""
  options = config.tiles.to_dict()
  return data.load(source_config(config, cut='tiles', **options))


def tile_shapes(config: ml_collections.ConfigDict) -> data.Shapes:
  """The shapes of `tiles`."""
  return data.shapes(source_config(config, cut='tiles', **config.tiles.to_dict()))


def shares(config: ml_collections.ConfigDict) -> dict[str, dict[str, float]]:
  """config.sampling with the real examples first: ml_collections sorts what it holds."""
  result = {}
  for label, kinds in config.sampling.to_dict().items():
    for kind in kinds:
      errors.lookup(dict.fromkeys(KINDS), kind, kind=f'kind of {label} training examples')
    result[label] = {kind: kinds[kind] for kind in KINDS if kind in kinds}
  mixing.check(result)
  return result


def mixture(
  source: data.Source,
  made: Mapping[str, store.Split],
  wanted: Mapping[str, Mapping[str, float]],
) -> data.Source:
  """Real patches and pools `made` ('class/kind' -> pool) at the wanted shares.

  Negatives are false candidates and places of the lungs, as for networks without pools.
  """
  real = {
    'positive/real': nodule_patches.of_role(source, 'train', 'nodule'),
    'negative/real': nodule_patches.of_role(source, 'train', 'negative', 'background'),
  }
  like = next((part[0] for part in real.values() if len(part)), None)
  if like is None:
    raise errors.UserError('there are no training patches; check the training scans')
  parts = {**real, **{kind: stored_pools.Filled(pool, like) for kind, pool in made.items()}}
  joined, sampling = mixing.mix(parts, mixing.resolve(wanted, parts))
  return source._replace(train=joined, sampling=sampling)


def _with_pools(config, added, task_of):
  wanted = shares(config)  # before hours of pools

  def source(finished: preparation.Finished) -> data.Source:
    trained = nodules_pools.Trained(
      config,
      task_of,
      finished.load,
      finished.folder.parents[2],
      finished.seed,
      finished.stopper,
    )
    made = {
      nodules_pools.POOLS[name].kind: nodules_pools.training(trained, name, finished.source)
      for name in added
    }
    return mixture(finished.source, made, wanted)

  return source


def check_masks(
  config: ml_collections.ConfigDict, scans: nodule_scans.Scans, untrained: Collection[str]
) -> None:
  """A `UserError` if training nodules have no mask, or none of them is known to be glassy, and one
  of the arms `untrained` needs that. No scan is read."""
  if scans.masked is None:
    return
  kinds = {kind for uid in scans.splits.get('train', ()) for kind in scans.masked(uid)}
  segments = lambda arm: config.arms.get(arm, {}).get('model', {}).get('loss') == 'segmentation'
  for arm in untrained:
    if not kinds and (arm == SYNTHESISER or segments(arm)):
      raise errors.UserError(f'arm {arm!r}: {NO_MASK}; {MAKE_MASKS}')
    if arm == GLASS and not kinds & set(GROUND_GLASS):
      option = 'or set candidates.ground_glass to False'
      raise errors.UserError(f'arm {arm!r}: {NO_KIND}; {MAKE_MASKS}, {option}')


def masked(finished: preparation.Finished) -> data.Source:
  """Training nodules with a mask, for the synthesiser."""
  source = finished.source
  nodules = nodule_patches.of_role(source, 'train', 'nodule')
  places = [place for place in range(len(nodules)) if nodules[place]['has_mask']]
  if not places:
    raise errors.UserError(f'{NO_MASK}; {MAKE_MASKS}')
  return source._replace(train=store.Part(nodules, places), sampling=pipeline.Sampling())


def glassy(finished: preparation.Finished, source: data.Source) -> data.Source:
  """Tiles of ground-glass and part-solid nodules, half of the draws, and of the lungs."""
  del finished
  nodules = nodule_patches.of_kind(source, 'train', *GROUND_GLASS)
  if not len(nodules):
    raise errors.UserError(f'{NO_KIND}; {MAKE_MASKS}')
  parts = {'nodule': nodules, 'other': nodule_patches.of_role(source, 'train', 'background')}
  parts = {name: part for name, part in parts.items() if len(part)}
  joined, sampling = mixing.mix(parts, dict.fromkeys(parts, 1 / len(parts)))
  return source._replace(train=joined, sampling=sampling)


# Networks that are not judged by the grid ---------------------------------------------------------


def blob_task(config: ml_collections.ConfigDict) -> types.Task:
  options = config.candidates.model.to_dict()
  module = models.MODELS['blob_unet'](**_tuples(options))
  return tasks.TASKS['blobs'](module, image_shape=_tile_shape(config), spacing=config.tiles.spacing)


def boxes_task(config: ml_collections.ConfigDict) -> types.Task:
  """The blob network with the head of a region proposal network."""
  options = {**config.candidates.model.to_dict(), **config.candidates.boxes_model.to_dict()}
  module = models.MODELS['blob_unet'](anchors=len(config.candidates.sides), **_tuples(options))
  return _proposals(config, module)


def reference_task(config: ml_collections.ConfigDict) -> types.Task:
  """DeepLung's Res18."""
  options = _tuples(config.reference.model.to_dict())
  module = models.MODELS['nodule_resnet'](
    head='detector', anchors=len(config.candidates.sides), **options
  )
  return _proposals(config, module)


def _proposals(config, module):
  return tasks.TASKS['proposals'](
    module,
    image_shape=_tile_shape(config),
    spacing=config.tiles.spacing,
    sides=tuple(config.candidates.sides),
  )


def _tile_shape(config):
  return (config.tiles.side,) * 3 + (1,)


def _tuples(options):
  listed = lambda value: tuple(map(listed, value)) if isinstance(value, tuple | list) else value
  return {name: listed(value) for name, value in options.items()}


def candidate_arms(config: ml_collections.ConfigDict) -> dict[str, experiment.Arm]:
  """Of config.candidates the networks that find candidates, and the reference detector."""
  made, options = {}, config.candidates
  train = options.train.to_dict()
  shared = {'shapes': functools.partial(tile_shapes, config)}

  def arm(name, task, fields, rules=train, init_from='', **prepared):
    made[name] = experiment.Arm(
      name=name,
      defense=standard.make(task),
      train=experiment.train_options(config, {'train': rules}),
      init_from=init_from,
      network=experiment.Network(task, {'candidates': fields}),
      augment=lambda source: nodule_augment.tiles,
      evaluated=False,
      prepared=experiment.Prepared(
        **shared, **{'source': lambda finished: tiles(config), **prepared}
      ),
    )

  if config.data.candidates == 'blob':
    blob = blob_task(config)
    arm(BLOB, blob, options.model.to_dict())
    if options.ground_glass:
      rules = {**train, **options.fine_tuning.to_dict()}
      source = lambda finished: glassy(finished, tiles(config))
      arm(GLASS, blob, options.model.to_dict(), rules, init_from=BLOB, source=source)
    if options.boxes:
      task = boxes_task(config)
      fields = {**options.model.to_dict(), **options.boxes_model.to_dict()}

      def variables(finished):
        return lambda drawn: weights.graft(finished.load(BLOB), drawn)

      arm(BOXES, task, fields, needs=(BLOB,), variables=variables)
  if config.reference.kind == 'detector':
    rules = {**train, **config.reference.train.to_dict()}
    arm(REFERENCE, reference_task(config), config.reference.model.to_dict(), rules)
  return made


def synthesiser_arm(config: ml_collections.ConfigDict) -> experiment.Arm:
  """Auto-encoder and critic of cut-out nodules."""
  options = config.synthesiser
  known = dict.fromkeys(synthesiser.Weights._fields)
  for name in options.weights:
    errors.lookup(known, name, kind='field of synthesiser.weights')
  model = nodules_pools.make_synthesiser(config)
  chosen = synthesiser.Weights(**options.weights.to_dict())
  return experiment.Arm(
    name=SYNTHESISER,
    defense=synthesiser.fitting(model, weights=chosen),
    train=experiment.train_options(config, {'train': options.train.to_dict()}),
    network=experiment.Network(model.task, {'synthesiser': options.network.to_dict()}),
    evaluated=False,
    prepared=experiment.Prepared(source=masked),
  )


def shown_networks(config: ml_collections.ConfigDict, task: types.Task) -> dict[str, types.Task]:
  """Rows of the paper's Table 2 -> our networks, those of the reference and boxes included."""
  return {
    'DeepLung': reference_task(config),
    'Blob Solid / GGO ResUNet': blob_task(config),
    'RPN': boxes_task(config),
    'FPR': task,
  }
