"""The contract of an experiment; `stages` trains, evaluates and reports whatever fulfils it."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import pandas as pd

from robustmed import defenses, errors, types
from robustmed.evaluation import grid, probes, trials
from robustmed.runs import preparation
from robustmed.training import optimisers

PyTree = Any
make_attack, make_probes = probes.make_attack, probes.make


class Network(NamedTuple):
  """The network of an arm that does not use the experiment's."""

  task: types.Task | None = None
  fields: Mapping[str, Any] = {}  # of config.model, those that differ
  variables: Callable[[], PyTree] | None = None  # of a network from elsewhere, never trained


class Prepared(NamedTuple):
  """What an arm takes from finished arms, each a function of `preparation.Finished`."""

  needs: tuple[str, ...] = ()  # arms that must have finished, besides `Arm.init_from`
  # number of training examples -> what all this costs
  cost: Callable[[int], types.Cost] = lambda examples: types.Cost(passes=0)
  defense: Callable[..., types.Defense] | None = None  # replaces `Arm.defense`, at equal cost
  source: Callable[..., Any] | None = None  # replaces the `data.Source` of training
  variables: Callable[..., PyTree] | None = None  # initial variables, or a map of random ones
  selection: Callable[..., Any] | None = None  # `training.selection.Scorer`, None: the last weights
  shapes: Callable[[], Any] | None = None  # `data.Shapes` of `source`, None: those of `Data.shapes`


class Arm(NamedTuple):
  """One way of training."""

  name: str
  defense: types.Defense
  train: Mapping[str, Any]  # steps, batch_size, optimisers, ...
  init_from: str = ''  # the arm whose final weights are the initial ones
  key: int = 0  # arms with equal keys draw equal initial weights and randomness of training
  network: Network = Network()
  augment: Callable[[Any], Callable[..., Any] | None] | None = None  # None: the experiment's
  evaluated: bool | tuple[str, ...] = True  # True: by all probes; names: those; False: studies
  prepared: Prepared = Prepared()

  @property
  def needs(self) -> tuple[str, ...]:
    """The arms that must have finished before this one begins."""
    own = (self.init_from,) if self.init_from else ()
    return tuple(dict.fromkeys((*own, *self.prepared.needs)))


class Data(NamedTuple):
  """The examples of an experiment."""

  sizes: Callable[[], Mapping[str, int]]  # split -> examples, without loading them; over all folds
  load: Callable[[], Any]  # -> `data.Source`
  augment: Callable[[Any], Callable[..., Any] | None] = lambda source: None  # source -> on-device
  groups: Callable[[], int | None] = lambda: None  # of the test split, without loading it
  # (all arms, those to be trained, workdir): a `UserError`, before data, for what training lacks
  check: Callable[[Collection[str], Collection[str], Any], None] = lambda *_: None
  shapes: Callable[[], Any] | None = None  # `data.Shapes`, without loading; None: one is loaded
  folds: tuple['Data', ...] = ()  # of a run over all folds, see `over_folds`
  # settings under which more groups would be tested -> their number
  larger: Mapping[str, Callable[[], int | None]] = {}


def over_folds(parts: Sequence[Data]) -> Data:
  """The data of a run over all folds.

  Every arm is trained once per fold, on data of its own, and tested on the groups of that fold. No
  group is tested twice; 'index' and 'group' of an example are the same in every fold.
  """

  def load():
    raise ValueError('a run over folds has one source for each')

  total = lambda name: sum(part.sizes().get(name, 0) for part in parts)
  sizes = lambda: {name: total(name) for name in parts[0].sizes()}
  groups = lambda: sum(part.groups() or 0 for part in parts) or None
  return parts[0]._replace(sizes=sizes, load=load, groups=groups, folds=tuple(parts))


class Grid(NamedTuple):
  """Attacks and levels under which every arm is evaluated."""

  probes: Mapping[str, grid.Probe]
  main: str  # the probe of diagnostics, pictures and worst examples
  checks: Mapping[str, Any]  # keyword arguments of `evaluation.checks.run`
  # rows of the grid -> rows of the results, such as one per volume of slices
  subjects: Callable[[pd.DataFrame], pd.DataFrame] = lambda rows: rows
  host: grid.HostMetrics | None = None
  inspected: tuple[str, ...] = ()  # arms whose networks are checked for what fools attacks
  # rows of the results -> checks besides those of `checks.run`
  more_checks: Callable[[pd.DataFrame], Sequence[Any]] = lambda rows: ()


class Artifacts(NamedTuple):
  """How attacked examples are saved; None: they are not."""

  # (folder, image, example): a data file; where it has a lattice, also whole=the numbers in it
  write_example: Callable[..., None] | None = None
  pictures: Callable[..., Mapping[str, Any]] | None = None  # stacked Example -> {name: [n, ...]}
  lattice: Callable[..., Any] | None = None  # (example) -> Lattice of its file; None: any float32


class Study(NamedTuple):
  """A measurement besides the grid, run after it."""

  name: str
  run: Callable[..., None]  # (artifacts.Context, models, rows); repeats nothing that is finished
  # (arm, trial, all arms of the run) -> {file in results/: its cost on the arm's network}
  cells: Callable[[str, trials.Trial, Collection[str]], Mapping[str, types.Cost]] = lambda *_: {}


class Experiment(NamedTuple):
  """What a configuration describes; building it reads no data."""

  task: types.Task
  arms: Mapping[str, Arm]
  data: Data
  grid: Grid
  report: Callable[[Any], Any]  # workdir -> `report.ReportSpec`
  artifacts: Artifacts = Artifacts()
  studies: tuple[Study, ...] = ()
  # the `claims.Claim`s of the report, as far as they are known without results
  claims: Callable[[], Sequence[Any]] = lambda: ()
  # what the cards of its networks say for their use elsewhere, see `networks.checkpoint`
  described: Callable[[], Mapping[str, Any]] = dict

  def task_of(self, arm: str) -> types.Task:
    """The task of an arm; for an unknown arm (of another run's network) the experiment's."""
    return (self.arms[arm].network.task if arm in self.arms else None) or self.task

  def probes_of(self, arm: str) -> dict[str, grid.Probe]:
    """The probes that an arm is evaluated under, without those that transfer from it."""
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

  def study_cells(
    self, arm: str, trial: trials.Trial, arms: Collection[str]
  ) -> dict[str, types.Cost]:
    """{file in results/: its cost} of a network, over all studies."""
    return {k: v for study in self.studies for k, v in study.cells(arm, trial, arms).items()}

  def trials(self, seeds: int = 1) -> list[trials.Trial]:
    """All trainings of an arm: every seed, in every fold."""
    return trials.listed(seeds, len(self.data.folds))

  def data_of(self, *fold: int) -> Data:
    """The data of the networks of a fold; of a run without folds those of all."""
    return self.data.folds[fold[0]] if fold else self.data


def training_order(
  arms: Mapping[str, Arm], wanted: tuple[str, ...] = ()
) -> tuple[list[str], list[str]]:
  """(the wanted arms and those they need, each after its needs; those that are only needed)."""
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
  """config.train with the arm's own `train` fields on top; an unknown one is a `UserError`."""
  options = config.train.to_dict()
  for name, value in dict(arm.get('train', {})).items():
    errors.lookup(options, name, kind='training option of an arm')
    options[name] = value
  for name in ('steps', 'batch_size', 'log_every', 'checkpoint_every'):
    if options.get(name, 1) < 1:
      raise errors.UserError(f'train.{name} must be at least 1, not {options[name]}')
  size, micro = options.get('batch_size', 1), options.get('micro_batch', 0)
  if micro < 0 or (micro and size > micro and size % micro):
    raise errors.UserError(
      f'train.batch_size={size} is not a multiple of train.micro_batch={micro}'
    )
  for rule in options.get('optimisers', {}).values():
    optimisers.make(rule, num_steps=options['steps'])  # finds a misspelt rule before training
  return options


def editable(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """An unlocked copy with the arms in the report's order; ml_collections sorts what it copies."""
  copied = config.copy_and_resolve_references().unlock()
  ordered = {name: copied.arms[name] for name in config.arms}
  copied.arms = ml_collections.ConfigDict(ordered, sort_keys=False)
  return copied


def in_float32(
  exp: Experiment,
  config: ml_collections.ConfigDict,
  build: Callable[[ml_collections.ConfigDict], Experiment],
) -> Experiment:
  """The experiment with networks that compute in float32, as all are evaluated.

  `exp` itself where its networks do so already. Weights are float32 for any precision.
  """
  fields = [config.get('model'), *(arm.get('model') for arm in config.get('arms', {}).values())]
  if all((one or {}).get('dtype', 'float32') == 'float32' for one in fields):
    return exp
  exact = editable(config)
  for one in (exact.model, *(arm.get('model') for arm in exact.arms.values())):
    if one and 'dtype' in one:
      one.dtype = 'float32'
  return build(exact.lock())


def make_defense(task: types.Task, options: Mapping[str, Any]) -> types.Defense:
  """A defense from plain data: {'name', its fields, 'attack': {'name', its fields}}."""
  fields = {name: value for name, value in options.items() if name != 'name'}
  if 'attack' in fields:
    fields['attack'] = probes.make_attack(fields['attack'])
  make = errors.lookup(defenses.DEFENSES, options.get('name'), kind='defense')
  known = inspect.signature(make).parameters
  for name in fields:
    errors.lookup(known, name, kind=f'field of defense {options["name"]!r}')
  return make(task, **fields)


def make_arms(
  task: types.Task,
  config: ml_collections.ConfigDict,
  *,
  make_task: Callable[[Mapping[str, Any]], types.Task] | None = None,
  make_augment: Callable[[Mapping[str, Any]], Any] | None = None,
) -> dict[str, Arm]:
  """The arms of config.arms, each {'defense': {...}, 'init_from': arm or '', 'train': fields}.

  An arm may also have 'model' and 'augment', fields that differ from config.model and
  config.augment, from which `make_task` and `make_augment` build its own, and 'attacks', the probes
  that it is evaluated under. 'thresholds_from' names the arm from whose losses on clean training
  examples the defense's thresholds are estimated, with the options 'thresholds' (those of
  `preparation.with_thresholds`). 'teacher_from' names the arm whose outputs are the defense's soft
  targets; both have the same model fields. 'key' is `Arm.key`. 'copy_of' names an arm whose trained
  weights are this arm's, without any training, under this arm's own 'model' fields.
  """
  return {
    name: _make_arm(name, task, config, options.to_dict(), make_task, make_augment)
    for name, options in config.arms.items()
  }


def _make_arm(name, task, config, options, make_task, make_augment) -> Arm:
  model, augment = options.get('model', {}), options.get('augment', {})
  for kind, fields in (('model', model), ('augment', augment)):
    for field in fields:
      errors.lookup(config[kind].to_dict(), field, kind=f'{kind} field of arm {name!r}')
  own = make_task(model) if model else None
  attacked = options.get('attacks')
  defense, prepared = options['defense'], Prepared()
  trained = train_options(config, options)
  if options.get('copy_of'):
    other = options['copy_of']
    errors.lookup(config.arms, other, kind=f'arm (network of {name!r})')
    defense, trained = {'name': 'standard'}, {**trained, 'steps': 0}
    prepared = Prepared(needs=(other,), variables=preparation.as_copy(other))
  elif options.get('thresholds_from'):
    defense = _with_placeholder(name, defense, 'thresholds')
    prepared = Prepared(
      needs=(options['thresholds_from'],),
      cost=lambda examples: types.Cost(forwards=examples, passes=0),
      defense=preparation.with_thresholds(
        own or task,
        defense,
        make=make_defense,
        arm=options['thresholds_from'],
        options=options.get('thresholds', {}),
      ),
    )
  elif options.get('teacher_from'):
    defense, teacher = _with_placeholder(name, defense, 'teacher'), options['teacher_from']
    preparation.check_same_model(name, model, teacher, config)
    distilled = preparation.with_teacher(own or task, defense, make=make_defense, arm=teacher)
    prepared = Prepared(needs=(teacher,), defense=distilled)
  return Arm(
    name=name,
    defense=make_defense(own or task, defense),
    train=trained,
    init_from=options.get('init_from', ''),
    key=options.get('key', 0),
    network=Network(own, model),
    augment=make_augment(augment) if augment else None,
    evaluated=True if attacked is None else tuple(attacked),
    prepared=prepared,
  )


def _with_placeholder(name, defense, field):
  """The defense with `field` empty until the arm that it comes from has finished."""
  if defense.get(field) is not None:
    raise errors.UserError(f'arm {name!r} has both {field} and {field}_from; leave one out')
  return {**defense, field: ()}
