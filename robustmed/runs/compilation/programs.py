"""The programs of a run, lowered from shapes alone by the code that runs them."""

import collections
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from robustmed import data, errors
from robustmed.data import pipeline, store
from robustmed.evaluation import grid
from robustmed.process import parallel
from robustmed.runs import experiment, networks, preparation, side_by_side
from robustmed.training import loop

PyTree = Any
TRAIN, AUGMENT, ATTACK, SCORE = 'train', 'augment', 'attack', 'score'

# Of an arm, what has no part in its programs' text.
_OUTSIDE = ('init_from', 'key', 'attacks', 'copy_of', 'augment', 'added')


class Program(NamedTuple):
  """One program of a run, for all the arms that share it."""

  kind: str
  name: str  # arm or attack
  lower: Callable[[], Any]  # -> `jax.stages.Lowered`
  calls: float  # in the whole run
  batch: int  # examples of all devices together
  padded: int  # the same with padding
  devices: int
  idle: int  # devices that get padding alone
  example_bytes: int = 0
  also: tuple[str, ...] = ()  # other arms with this program
  at: Callable[[int], Any] | None = None  # examples on one device -> its `Lowered` with so many

  @property
  def each(self) -> int:
    """Examples on one device."""
    return self.padded // self.devices

  @property
  def names(self) -> set[str]:
    """What it can be chosen by: its kind, and its kind with each of its names."""
    attack = self.name.partition(' of ')[0]
    return {self.kind, *(f'{self.kind} {name}' for name in (self.name, attack, *self.also))}

  @property
  def label(self) -> str:
    return f'{self.kind} {self.name}' + (f' (+{len(self.also)})' if self.also else '')


def of_run(
  exp: experiment.Experiment,
  config: ml_collections.ConfigDict,
  wanted: Sequence[str] = (),
  *,
  devices: Sequence[Any],
  hosts: int,
  exact: experiment.Experiment | None = None,
) -> Iterator[Program]:
  """The programs that train and evaluate the wanted arms, those of the same text once.

  Programs of studies, of thresholds and of the choice of weights are not among them.
  """
  order, extra = experiment.training_order(exp.arms, tuple(wanted))
  given = Given(exp, config)
  yield from _trainings(given, order, devices=devices, hosts=hosts)
  judging = given if exact is None or exact is exp else Given(exact, config)
  evaluated = [
    name for name in order if name not in extra and exp.arms[name].evaluated is not False
  ]
  yield from _evaluations(judging, evaluated, devices=devices, hosts=hosts)


def count(
  exp: experiment.Experiment, config: ml_collections.ConfigDict, wanted: Sequence[str] = ()
) -> dict[str, int]:
  """{kind: how many programs of it a run compiles at most}, {} where shapes need data to be read.

  Those of the same text, which are compiled once, are counted apart where only tracing shows it.
  """
  if exp.data_of(*exp.trials(config.seeds)[0].fold).shapes is None:
    return {}
  hosts = parallel.process_count()
  listed = of_run(exp, config, wanted, devices=parallel.devices(), hosts=hosts)
  return dict(collections.Counter(one.kind for one in listed))


class Given:
  """The experiment, with the shapes of its examples."""

  def __init__(self, exp: experiment.Experiment, config: ml_collections.ConfigDict):
    self.exp, self.config = exp, config
    self.trials = exp.trials(config.seeds)
    first = exp.data_of(*self.trials[0].fold)
    self.shapes = first.shapes() if first.shapes else _loaded(first.load())
    self.sizes = {trial.fold: exp.data_of(*trial.fold).sizes() for trial in self.trials}

  def source(self, arm: experiment.Arm) -> data.Source:
    """A source whose examples have these shapes and no content."""
    sizes = self.sizes[self.trials[0].fold]
    shapes = arm.prepared.shapes() if arm.prepared.shapes else self.shapes
    train = Stated(shapes.train, max(2, sizes.get('train', 2)))
    return data.Source(train, Stated(shapes.test, max(2, sizes['test'])))

  def finished(self, arm: experiment.Arm) -> preparation.Finished:
    """What the preparation of an arm gets: networks with weights of zero."""

    def load(other):
      task = self.exp.task_of(other)
      zeros = lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
      return jax.tree.map(zeros, jax.eval_shape(task.init, jax.random.key(0)))

    return preparation.Finished(load, self.source(arm), self.config, 0, None)


class Stated(store.Split):
  """A split of which the shapes alone are known."""

  def __init__(self, shapes: Mapping[str, jax.ShapeDtypeStruct], size: int):
    self.groups, self._shapes = (0,) * size, shapes

  def __len__(self) -> int:
    return len(self.groups)

  def __getitem__(self, index) -> dict[str, Any]:
    zeros = {name: np.zeros(one.shape, one.dtype) for name, one in self._shapes.items()}
    return {**zeros, 'index': int(index), 'group': 0, 'name': ''}

  def stack(self, feature: str) -> np.ndarray:
    """Numbers that differ, as statistical models need them; of 'index' its values."""
    if feature == 'index':
      return np.arange(len(self))
    one = self._shapes[feature]
    drawn = np.random.default_rng(0).normal(size=(min(len(self), 512), *one.shape))
    return drawn.astype(one.dtype)


def _loaded(source: data.Source) -> data.Shapes:
  host = {'batch_size': 1, 'shard_index': 0, 'shard_count': 1}
  seen = pipeline.eval_batches(source.test, crop=source.crop, **host)

  def shapes(batch):
    kept = {**{name: batch[name] for name in ('image', 'index', 'group')}, **batch['target']}
    dtype = jax.dtypes.canonicalize_dtype
    return {
      name: jax.ShapeDtypeStruct(leaf.shape[1:], dtype(leaf.dtype)) for name, leaf in kept.items()
    }

  test = shapes(seen[0])
  if not len(source.train):
    return data.Shapes(test, test)
  drawn = pipeline.train_batches(source.train, seed=0, sampling=source.sampling, **host)
  return data.Shapes(shapes(next(drawn)), test)


def abstract_batch(shapes: Mapping[str, jax.ShapeDtypeStruct], size: int, **more: Any) -> dict:
  """A `types.Batch` of so many examples; `more`: names of further fields -> their dtypes."""
  several = lambda one: jax.ShapeDtypeStruct((size, *one.shape), one.dtype)
  own = ('image', 'index', 'group')
  return {
    **{name: several(shapes[name]) for name in own},
    'target': {name: several(one) for name, one in shapes.items() if name not in own},
    **{
      name: jax.ShapeDtypeStruct((size,), dtype) for name, dtype in {'mask': bool, **more}.items()
    },
  }


def _nbytes(shapes) -> int:
  return sum(math.prod(one.shape) * one.dtype.itemsize for one in shapes.values())


def _key():
  return jax.eval_shape(lambda: jax.random.key(0))


# Training -----------------------------------------------------------------------------------------


def _trainings(given, order, *, devices, hosts) -> Iterator[Program]:
  exp = given.exp
  alike: dict[str, list[experiment.Arm]] = {}
  for name in order:
    if exp.arms[name].train['steps']:
      alike.setdefault(_recipe(given, exp.arms[name]), []).append(exp.arms[name])
  augmented: set[int] = set()
  for arms in alike.values():
    first, steps = arms[0], sum(arm.train['steps'] for arm in arms) * len(given.trials)
    with parallel.lowering(devices):
      share = side_by_side.share_of(first.train, hosts=hosts)
    whole = Program(
      TRAIN,
      first.name,
      lower=lambda arm=first, share=share: _step(given, arm, share, devices)[-1],
      calls=steps,
      batch=first.train['batch_size'],
      padded=share.padded,
      devices=share.devices,
      idle=share.idle,
      example_bytes=_nbytes((first.prepared.shapes or (lambda: given.shapes))().train),
      also=tuple(arm.name for arm in arms[1:]),
      at=lambda each, arm=first, share=share: _resized(given, arm, share, devices, each)[-1],
    )
    source = given.source(first)
    augment = (first.augment or exp.data.augment)(source)
    if augment is not None and id(augment) not in augmented:
      augmented.add(id(augment))
      lower = lambda arm=first, share=share: _step(given, arm, share, devices)[0]
      sized = lambda each, arm=first, share=share: _resized(given, arm, share, devices, each)[0]
      yield whole._replace(kind=AUGMENT, lower=lower, at=sized)
    yield whole


def _recipe(given, arm: experiment.Arm) -> str:
  """What the text of an arm's training depends on."""
  task = id(given.exp.task_of(arm.name).predict)
  if arm.name not in given.config.get('arms', {}):
    return f'{task} {arm.name}'
  own = given.config.arms[arm.name].to_dict()
  kept = {name: value for name, value in own.items() if name not in (*_OUTSIDE, 'train')}
  return json.dumps([task, kept, dict(arm.train)], sort_keys=True, default=str)


def _step(given, arm, share, devices) -> list[Any]:
  """The lowered programs of a training step: augmentation, if there is one, and the update."""
  exp, finished = given.exp, given.finished(arm)
  used = devices[: share.devices]
  with errors.during(f'lowering the training of {arm.name!r}'), parallel.lowering(used) as found:
    defense = arm.prepared.defense(finished) if arm.prepared.defense else arm.defense
    shapes = arm.prepared.shapes() if arm.prepared.shapes else given.shapes
    batch = abstract_batch(shapes.train, share.padded, draw=np.int32)
    augment = (arm.augment or exp.data.augment)(finished.source)
    slots, made = preparation.memory_slots(defense, finished.source.train), []

    def create(key):
      state, step = loop.start(
        arm.name,
        task=exp.task_of(arm.name),
        defense=defense,
        config=arm.train,
        key=key,
        num_examples=slots,
        augment=augment,
        padded=share.padded > arm.train['batch_size'],
      )
      made.append(step)
      return state

    state = jax.eval_shape(create, _key())
    made[0](state, batch, _key())
  return found


def _resized(given, arm, share, devices, each) -> list[Any]:
  """`_step` with so many examples on one device, all of them at once."""
  size = each * share.devices
  arm = arm._replace(train={**arm.train, 'batch_size': size, 'micro_batch': 0})
  return _step(given, arm, share._replace(padded=size), devices)


# Evaluation ---------------------------------------------------------------------------------------


def _evaluations(given, names, *, devices, hosts) -> Iterator[Program]:
  exp, config = given.exp, given.config
  of_run = networks.Networks(exp, config, None)
  models = of_run.models(names)
  calls: dict[tuple[int, str], float] = {}
  arms: dict[int, str] = {}
  batch = 0
  for model in models:
    number = given.sizes[model.trial.fold]['test']
    size = max(1, min(config.evaluate.batch_size // hosts, -(-number // hosts))) * hosts
    batch, batches = max(batch, size), -(-number // size)
    own = model.evaluator
    arms.setdefault(id(own), model.arm)
    for _, cell in grid.cells([model], own.probes):
      calls[id(own), SCORE] = calls.get((id(own), SCORE), 0) + batches
      if cell.attack != grid.CLEAN:
        probe = own.probes[cell.attack]
        victim = of_run.evaluator(probe.source) if probe.source else own
        arms.setdefault(id(victim), probe.source or model.arm)
        key = id(victim), cell.attack
        calls[key] = calls.get(key, 0) + batches
  padded = -(-batch // len(devices)) * len(devices)
  used = -(-batch // (padded // len(devices))) if padded else 0
  for (which, name), number in calls.items():
    arm = arms[which]
    kind = SCORE if name == SCORE else ATTACK
    shown = name if kind == ATTACK else arm
    lower = lambda size, arm=arm, name=name: _evaluation(given, of_run, arm, name, size, devices)
    yield Program(
      kind,
      shown if len(arms) == 1 or kind == SCORE else f'{shown} of {arm}',
      lower=functools.partial(lower, padded),
      at=lambda each, lower=lower: lower(each * len(devices)),
      calls=number,
      batch=batch,
      padded=padded,
      devices=len(devices),
      idle=len(devices) - used,
      example_bytes=_nbytes(given.shapes.test),
    )


def _evaluation(given, of_run, arm, name, size, devices) -> Any:
  evaluator, task = of_run.evaluator(arm), given.exp.task_of(arm)
  batch = abstract_batch(given.shapes.test, size)
  with errors.during(f'lowering {name!r} of {arm!r}'), parallel.lowering(devices) as found:
    variables = jax.eval_shape(task.init, _key())
    if name == SCORE:
      evaluator.score(variables, batch, batch['image'])
    else:
      evaluator.attack(variables, batch, name, 0.0)
  return found[-1]
