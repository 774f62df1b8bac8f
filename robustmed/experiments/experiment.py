"""What an experiment gives to the engine; the engine trains, evaluates and reports it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections

from robustmed import attacks, defenses, errors, types
from robustmed.evaluation import grid

PyTree = Any


class Arm(NamedTuple):
  """One way of training: its defense, its options, and the arms it needs finished first."""

  name: str
  defense: types.Defense
  train: Mapping[str, Any]  # steps, batch_size, optimisers, ...
  init_from: str = ''  # warm start from this arm's final network

  @property
  def needs(self) -> tuple[str, ...]:
    return (self.init_from,) if self.init_from else ()


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
  report: Callable[[Any], Any]  # source facts -> report spec
  checks: Mapping[str, Any]  # keywords of evaluation.checks.run
  write_example: Callable[..., None]  # (folder, image, example): a file of the task's format
  # (stacked grid.Example) -> {name: [n, ...]} arrays for the report's pictures
  pictures: Callable[..., Mapping[str, Any]] | None = None


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
  return options


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


def make_arms(task: types.Task, config: ml_collections.ConfigDict) -> dict[str, Arm]:
  """config.arms, each {'defense': {...}, 'init_from': arm or '', 'train': fields that differ}."""
  return {
    name: Arm(
      name=name,
      defense=make_defense(task, options.defense.to_dict()),
      train=train_options(config, options.to_dict()),
      init_from=options.get('init_from', ''),
    )
    for name, options in config.arms.items()
  }


def make_probes(task: types.Task, config: ml_collections.ConfigDict) -> dict[str, grid.Probe]:
  """config.evaluate.attacks, each an attack's plain data with 'objective' and maybe 'levels'."""
  probes = {}
  for name, options in config.evaluate.attacks.items():
    fields = options.to_dict()
    objective = fields.pop('objective')
    errors.lookup(task.objectives, objective, kind='objective')
    levels = tuple(float(eps) for eps in fields.pop('levels', config.evaluate.levels))
    probes[name] = grid.Probe(make_attack(fields), objective, levels)
  return probes
