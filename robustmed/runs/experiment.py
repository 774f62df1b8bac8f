"""What an experiment gives to the engine; the engine trains, evaluates and reports it."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import ml_collections
import pandas as pd

from robustmed import attacks, defenses, errors, types
from robustmed.evaluation import grid
from robustmed.runs import preparation
from robustmed.ops import corruptions
from robustmed.training import optimisers

PyTree = Any


class Arm(NamedTuple):
  """One way of training: its defense, its options, and the arms it needs finished first."""

  name: str
  defense: types.Defense
  train: Mapping[str, Any]  # steps, batch_size, optimisers, ...
  init_from: str = ''  # warm start from this arm's final network
  # Where the arm's network, its training images or its attacks are not the experiment's own:
  task: types.Task | None = None
  model: Mapping[str, Any] = {}  # fields of config.model that differ
  augment: Callable[[Any], Callable[..., Any] | None] | None = None
  attacks: tuple[str, ...] | None = None  # probes of the grid; None all, () only clean images
  # Where the defense itself waits for finished arms: made by `prepare` just before training, at
  # the cost of `prepare_passes` passes over the training examples.
  extra_needs: tuple[str, ...] = ()
  prepare: Callable[[preparation.Finished], types.Defense] | None = None
  prepare_passes: float = 0.0
  # Not a network that answers: trained, saved, and left to `Experiment.extra_evaluation`.
  graded: bool = True
  sampling: Callable[[Any], Any] | None = None  # source -> its own `pipeline.Sampling`
  judge: Callable[[preparation.Finished], Any] | None = None  # -> a `training.selection.Judge`
  # -> the source whose training examples it learns from, where they are not the experiment's
  material: Callable[[preparation.Finished], Any] | None = None
  # -> the variables it starts from, or a function of the drawn ones, where they are not those of
  # `init_from` as they are
  start: Callable[[preparation.Finished], PyTree] | None = None

  @property
  def needs(self) -> tuple[str, ...]:
    own = (self.init_from,) if self.init_from else ()
    return tuple(dict.fromkeys((*own, *self.extra_needs)))


class Experiment(NamedTuple):
  """Everything one configuration stands for; building it touches no data."""

  name: str
  task: types.Task
  arms: Mapping[str, Arm]
  probes: Mapping[str, grid.Probe]
  main: str  # the probe whose objective the diagnostics and the worst examples are about
  sizes: Callable[[], Mapping[str, int]]  # split -> examples, known without the data
  source: Callable[[], Any]  # the data itself: .train, .test
  augment: Callable[[Any], Callable[..., Any] | None]  # source -> on-device augmentation
  report: Callable[[Any], Any]  # workdir -> report spec
  checks: Mapping[str, Any]  # keywords of evaluation.checks.run
  write_example: Callable[..., None]  # (folder, image, example): a file of the task's format
  # (stacked grid.Example) -> {name: [n, ...]} arrays for the report's pictures
  pictures: Callable[..., Mapping[str, Any]] | None = None
  # rows of the grid -> rows of the results, such as one per volume of slices
  subjects: Callable[[pd.DataFrame], pd.DataFrame] = lambda rows: rows
  # (keepsakes.Context, models, rows), called after the grid: whatever else is to be measured
  extra_evaluation: Callable[..., None] | None = None
  # (drawn variables) -> those that arms without a warm start begin with, e.g. pretrained ones
  pretrained: Callable[[PyTree], PyTree] | None = None
  # (arm, seed, the arms there will be) -> {file in results/: input gradients that it costs}: the
  # parts of extra_evaluation
  extra_cells: Callable[[str, int, Collection[str]], Mapping[str, int]] = lambda *_: {}

  def task_of(self, arm: str) -> types.Task:
    """The task of an arm; of an unknown one (a saved network from elsewhere) the experiment's."""
    return (self.arms[arm].task if arm in self.arms else None) or self.task

  def probes_of(self, arm: str) -> dict[str, grid.Probe]:
    """The probes that an arm meets: not those that it is itself the source of."""
    chosen = self.arms[arm].attacks if arm in self.arms else None
    return {
      name: probe
      for name, probe in self.probes.items()
      if (chosen is None or name in chosen) and probe.source != arm
    }

  def model_of(self, arm: str, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """config.model with the arm's own fields on top."""
    return {**config.model.to_dict(), **(self.arms[arm].model if arm in self.arms else {})}


def in_order(arms: Mapping[str, Arm], wanted: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
  """(arms in an order that meets every need, those among them that nobody asked for)."""
  for name in wanted:
    errors.lookup(arms, name, kind='arm')
  order: list[str] = []

  def visit(name, path):
    if name in path:
      raise errors.UserError(f'arms need each other in a circle: {" -> ".join([*path, name])}')
    if name in order:
      return
    for need in errors.lookup(
      arms, name, kind=f'arm (needed by {path[-1] if path else "all"})'
    ).needs:
      visit(need, [*path, name])
    order.append(name)

  for name in wanted or arms:
    visit(name, [])
  return order, [name for name in order if wanted and name not in wanted]


def train_options(config: ml_collections.ConfigDict, arm: Mapping[str, Any]) -> dict[str, Any]:
  """config.train with the arm's own `train` fields on top; a misspelt one is an error."""
  options = config.train.to_dict()
  for name, value in dict(arm.get('train', {})).items():
    errors.lookup(options, name, kind='training option of an arm')
    options[name] = value
  for name in ('steps', 'batch_size', 'log_every', 'checkpoint_every'):
    if options.get(name, 1) < 1:
      raise errors.UserError(f'train.{name} must be at least 1, not {options[name]}')
  for rule in options.get('optimisers', {}).values():
    optimisers.make(rule, num_steps=options['steps'])  # a misspelt one is found before training
  return options


def editable(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A copy that may be changed and whose arms stand in the configuration's own order, which is
  the order of the report; ml_collections sorts what it copies."""
  copied = config.copy_and_resolve_references().unlock()
  ordered = {name: copied.arms[name] for name in config.arms}
  copied.arms = ml_collections.ConfigDict(ordered, sort_keys=False)
  return copied


def make_defense(task: types.Task, options: Mapping[str, Any]) -> types.Defense:
  """A defense from plain data: {'name', its fields, 'attack': {'name', its fields}}."""
  fields = {name: value for name, value in options.items() if name != 'name'}
  if 'attack' in fields:
    fields['attack'] = make_attack(fields['attack'])
  make = errors.lookup(defenses.DEFENSES, options.get('name'), kind='defense')
  known = inspect.signature(make).parameters
  for name in fields:
    errors.lookup(known, name, kind=f'field of defense {options["name"]!r}')
  return make(task, **fields)


def make_attack(options: Mapping[str, Any]) -> types.Attack:
  """An attack from plain data: {'name', its settings}."""
  return attacks.make(options['name'], **{k: v for k, v in options.items() if k != 'name'})


def make_arms(
  task: types.Task,
  config: ml_collections.ConfigDict,
  *,
  make_task: Callable[[Mapping[str, Any]], types.Task] | None = None,
  make_augment: Callable[[Mapping[str, Any]], Any] | None = None,
  clean_view: Callable[[Any], Callable[[types.Batch], types.Batch]] | None = None,
) -> dict[str, Arm]:
  """config.arms, each {'defense': {...}, 'init_from': arm or '', 'train': fields that differ}.

  An arm may also have 'model' and 'augment', fields of config.model and config.augment that differ,
  from which `make_task` and `make_augment` make its own, and 'attacks', the probes it meets.
  'thresholds_from' names the arm whose clean training values give the defense's thresholds, by
  'thresholds', fields of `thresholds.estimate`; for `clean_view` see `preparation.clean_values`.
  'teacher_from' names the arm whose network gives the defense's soft targets; both have the same
  model fields.
  """
  return {
    name: _make_arm(name, task, config, options.to_dict(), make_task, make_augment, clean_view)
    for name, options in config.arms.items()
  }


def _make_arm(name, task, config, options, make_task, make_augment, clean_view) -> Arm:
  model, augment = options.get('model', {}), options.get('augment', {})
  for kind, fields in (('model', model), ('augment', augment)):
    for field in fields:
      errors.lookup(config[kind].to_dict(), field, kind=f'{kind} field of arm {name!r}')
  own = make_task(model) if model else None
  attacked = options.get('attacks')
  defense, waits = options['defense'], {}
  if options.get('thresholds_from'):
    defense = _to_come(name, defense, 'thresholds')
    waits = {
      'extra_needs': (options['thresholds_from'],),
      'prepare': preparation.with_thresholds(
        own or task,
        defense,
        make=make_defense,
        arm=options['thresholds_from'],
        options=options.get('thresholds', {}),
        view=clean_view,
      ),
      'prepare_passes': 1.0,
    }
  elif options.get('teacher_from'):
    defense, teacher = _to_come(name, defense, 'teacher'), options['teacher_from']
    _same_model(name, model, teacher, config)
    waits = {
      'extra_needs': (teacher,),
      'prepare': preparation.with_teacher(own or task, defense, make=make_defense, arm=teacher),
    }
  return Arm(
    name=name,
    defense=make_defense(own or task, defense),
    train=train_options(config, options),
    init_from=options.get('init_from', ''),
    task=own,
    model=model,
    augment=make_augment(augment) if augment else None,
    attacks=None if attacked is None else tuple(attacked),
    **waits,
  )


def _to_come(name, defense, field):
  """The defense with `field` empty, which is to be filled when another arm has finished."""
  if defense.get(field) is not None:
    raise errors.UserError(f'arm {name!r} has both {field} and {field}_from; leave one out')
  return {**defense, field: ()}


def _same_model(name, model, teacher, config):
  """A `UserError` unless arm `name`, of these model fields, has the network of arm `teacher`."""
  other = errors.lookup(config.arms, teacher, kind=f'arm (teacher of {name!r})')
  theirs, base = other.to_dict().get('model', {}), config.model.to_dict()
  for field in sorted({*model, *theirs}):
    ours, its = ({**base, **fields}.get(field) for fields in (model, theirs))
    if ours != its:
      raise errors.UserError(
        f'arm {name!r} has model.{field}={ours}, its teacher {teacher!r} has {its}; make them equal'
      )


def make_probes(task: types.Task, config: ml_collections.ConfigDict) -> dict[str, grid.Probe]:
  """config.evaluate.attacks, each an attack's plain data with 'objective' and maybe 'levels'
  and 'source', the arm whose network is attacked for all others to meet the images.

  config.evaluate.corruptions, where there is such a field, names artefacts of acquisition that come
  on top, each at the severities of its entry, within the bounds of the first attack.
  """
  probes = {}
  for name, options in config.evaluate.attacks.items():
    fields = options.to_dict()
    objective = fields.pop('objective')
    errors.lookup(task.objectives, objective, kind='objective')
    levels = fields.pop('levels', None)
    levels = _levels(config.evaluate.levels if levels is None else levels)
    source = fields.pop('source', '')
    if source:
      errors.lookup(config.arms, source, kind=f'arm that attack {name!r} takes its images from')
    probes[name] = grid.Probe(make_attack(fields), objective, levels, source)
  for kind in config.evaluate.get('corruptions', ()):
    levels = errors.lookup(corruptions.CORRUPTIONS, kind, kind='corruption').levels
    first = next(iter(config.evaluate.attacks.values()))
    attack = attacks.corruption(kind=kind, bounds=first.get('bounds'))
    probes[kind] = grid.Probe(attack, first.objective, levels)
  return probes


def _levels(given) -> tuple[float, ...]:
  """Attack levels as a sorted tuple without repetition; all must be finite and above 0."""
  try:
    levels = tuple(sorted({float(eps) for eps in given}))
  except (TypeError, ValueError):
    raise errors.UserError(f'attack levels must be numbers, not {given!r}') from None
  if not levels or not all(0 < eps < float('inf') for eps in levels):
    raise errors.UserError(f'attack levels must be finite and above 0, not {given!r}')
  return levels
