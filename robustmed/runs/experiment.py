"""What an experiment gives to the engine; the engine trains, evaluates and reports it."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import ml_collections
import pandas as pd

from robustmed import attacks, defenses, errors, types
from robustmed.evaluation import grid
from robustmed.ops import corruptions
from robustmed.runs import preparation
from robustmed.training import optimisers

PyTree = Any


class Network(NamedTuple):
  """An arm's network where it is not the experiment's own."""

  task: types.Task | None = None
  fields: Mapping[str, Any] = {}  # of config.model, those that differ


class Prepared(NamedTuple):
  """What is made of finished arms just before a training; functions of `preparation.Finished`."""

  needs: tuple[str, ...] = ()  # the arms that must have finished, beside `Arm.init_from`
  passes: float = 0.0  # its cost, in passes over the training examples
  defense: Callable[..., types.Defense] | None = None  # replaces `Arm.defense`, at equal cost
  source: Callable[..., Any] | None = None  # whose training examples and sampling it learns from
  variables: Callable[..., PyTree] | None = None  # it starts from, or a function of the drawn ones
  selection: Callable[..., Any] | None = None  # `training.selection.Judge` of the weights to keep


class Arm(NamedTuple):
  """One way of training."""

  name: str
  defense: types.Defense
  train: Mapping[str, Any]  # steps, batch_size, optimisers, ...
  init_from: str = ''  # warm start from this arm's final network
  network: Network = Network()
  augment: Callable[[Any], Callable[..., Any] | None] | None = None  # None: the experiment's
  # True: under every attack of the grid; names: under these; False: not a network that answers, it
  # is trained, saved and left to the studies.
  evaluated: bool | tuple[str, ...] = True
  prepared: Prepared = Prepared()

  @property
  def needs(self) -> tuple[str, ...]:
    """The arms that must have finished before this one begins."""
    own = (self.init_from,) if self.init_from else ()
    return tuple(dict.fromkeys((*own, *self.prepared.needs)))


class Data(NamedTuple):
  """The examples of an experiment."""

  sizes: Callable[[], Mapping[str, int]]  # split -> examples, known without the data
  load: Callable[[], Any]  # -> `data.Source`
  # source -> on-device augmentation
  augment: Callable[[Any], Callable[..., Any] | None] = lambda source: None


class Grid(NamedTuple):
  """Attacks and levels under which every arm is evaluated."""

  probes: Mapping[str, grid.Probe]
  main: str  # the probe whose objective the diagnostics and the worst examples are about
  checks: Mapping[str, Any]  # keywords of evaluation.checks.run
  # rows of the grid -> rows of the results, such as one per volume of slices
  subjects: Callable[[pd.DataFrame], pd.DataFrame] = lambda rows: rows


class Artifacts(NamedTuple):
  """How attacked examples are kept; None: they are not."""

  write_example: Callable[..., None] | None = None  # (folder, image, example): a data file
  # (stacked grid.Example) -> {name: [n, ...]} arrays for the report's pictures
  pictures: Callable[..., Mapping[str, Any]] | None = None


class Study(NamedTuple):
  """Something measured beside the grid, after it."""

  name: str
  run: Callable[..., None]  # (artifacts.Context, models, rows); what is finished is not done again
  # (arm, seed, the arms there will be) -> {file in results/: input gradients that it costs}
  cells: Callable[[str, int, Collection[str]], Mapping[str, int]] = lambda *_: {}


class Experiment(NamedTuple):
  """Everything one configuration stands for; building it touches no data."""

  task: types.Task
  arms: Mapping[str, Arm]
  data: Data
  grid: Grid
  report: Callable[[Any], Any]  # workdir -> report spec
  artifacts: Artifacts = Artifacts()
  studies: tuple[Study, ...] = ()

  def task_of(self, arm: str) -> types.Task:
    """The task of an arm; of an unknown one (a saved network from elsewhere) the experiment's."""
    return (self.arms[arm].network.task if arm in self.arms else None) or self.task

  def probes_of(self, arm: str) -> dict[str, grid.Probe]:
    """The probes that an arm is evaluated under: not those that take their images from it."""
    chosen = self.arms[arm].evaluated if arm in self.arms else True
    return {
      name: probe
      for name, probe in self.grid.probes.items()
      if (chosen is True or (chosen and name in chosen)) and probe.source != arm
    }

  def model_of(self, arm: str, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """config.model with the arm's own fields on top."""
    own = self.arms[arm].network.fields if arm in self.arms else {}
    return {**config.model.to_dict(), **own}

  def study_cells(self, arm: str, seed: int, arms: Collection[str]) -> dict[str, int]:
    """The files in results/ of all studies of a network, with the input gradients each costs."""
    return {k: v for study in self.studies for k, v in study.cells(arm, seed, arms).items()}


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
  defense, waits = options['defense'], Prepared()
  if options.get('thresholds_from'):
    defense = _to_come(name, defense, 'thresholds')
    waits = Prepared(
      needs=(options['thresholds_from'],),
      passes=1.0,
      defense=preparation.with_thresholds(
        own or task,
        defense,
        make=make_defense,
        arm=options['thresholds_from'],
        options=options.get('thresholds', {}),
        view=clean_view,
      ),
    )
  elif options.get('teacher_from'):
    defense, teacher = _to_come(name, defense, 'teacher'), options['teacher_from']
    _same_model(name, model, teacher, config)
    prepared = preparation.with_teacher(own or task, defense, make=make_defense, arm=teacher)
    waits = Prepared(needs=(teacher,), defense=prepared)
  return Arm(
    name=name,
    defense=make_defense(own or task, defense),
    train=train_options(config, options),
    init_from=options.get('init_from', ''),
    network=Network(own, model),
    augment=make_augment(augment) if augment else None,
    evaluated=True if attacked is None else tuple(attacked),
    prepared=waits,
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
