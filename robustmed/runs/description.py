"""What `--stage describe` prints: counts and costs, from shapes alone, without loading data."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ml_collections

from robustmed import errors
from robustmed.evaluation import claims
from robustmed.process import console, memory, parallel
from robustmed.runs import costs, experiment, forecast, side_by_side
from robustmed.runs.compilation import programs

LARGE = 2**22  # elements of a batch from which the memory of a step is looked at before training
SURE = 20.0  # what is refused without compiling it: so many times what is free
TERA = 10.0  # operations per second, in 10^12, at which the hours of a run are counted


def describe(
  exp: experiment.Experiment,
  config: ml_collections.ConfigDict,
  wanted: tuple[str, ...] = (),
  *,
  light: bool = False,
) -> dict[str, Any]:
  """Networks, arms, attacks, data sizes, steps, memory and passes of the whole run.

  Passes are forward passes, input gradients and training passes, each counted once. With `light`
  only 'passes', which needs no tracing of networks; else also the operations, two per multiply-add.
  """
  order, extra = experiment.training_order(exp.arms, tuple(wanted))
  once = exp.trials()  # every fold
  arms, per_arm, train = {}, {}, costs.Work()
  for name in order:
    arm = exp.arms[name]
    own = costs.Work()
    for trial in once:
      examples = exp.data_of(*trial.fold).sizes().get('train', 0)
      own.join(costs.training(arm, exp.task_of(name), examples=examples))
    train.join(own, config.seeds)
    per_arm[name] = own.passes
    arms[name] = {
      'steps': arm.train['steps'],
      'batch_size': arm.train['batch_size'],
      'needs': list(arm.needs),
      'passes': own.passes * config.seeds,
    }
  evaluate, studies = costs.Work(), costs.Work()
  for name in order:
    if name not in extra and exp.arms[name].evaluated is not False:
      for trial in once:
        for file, cost in forecast.evaluation(exp, config, name, trial, order).items():
          into = evaluate if file.startswith(forecast.PARTS) else studies
          into.add(exp.task_of(name), cost, config.seeds)
  whole = costs.Work().join(train).join(evaluate).join(studies)
  passes = {
    'train': train.passes,
    'evaluate': evaluate.passes,
    'studies': studies.passes,
    'total': whole.passes,
    'per_arm': per_arm,
    'by_kind': whole.by_kind(),
  }
  if light:
    return {'passes': passes}
  return {
    'experiment': config.experiment,
    'preset': config.preset,
    'networks': {
      name: {
        'parameters': costs.parameter_count(task),
        'gmacs_per_example': round(costs.multiply_adds(task) / 1e9, 6),
        'input_shape': list(task.image_shape),
      }
      for name, task in _networks(exp, config).items()
    },
    'arms': arms,
    'seeds': config.seeds,
    **({'folds': len(once)} if exp.data.folds else {}),
    'attacks': {
      name: {
        'objective': probe.objective,
        'levels': list(probe.levels),
        'gradients_per_example': probe.attack.num_gradients,
        'forwards_per_example': probe.attack.num_forwards,
      }
      for name, probe in exp.grid.probes.items()
    },
    'eps_units': exp.task.units,
    'data': _data(exp),
    'claims': _claims(exp),
    'steps': sum(arm['steps'] for arm in arms.values()) * config.seeds * len(once),
    'programs': programs.count(exp, config, wanted),
    'device_bytes': device_bytes(exp, tuple(exp.arms)),
    'passes': passes,
    'operations': {
      part: 2 * work.multiply_adds()
      for part, work in (('train', train), ('evaluate', evaluate), ('studies', studies))
    },
    'hours': {f'at {TERA:g} TFLOP/s': round(hours(whole), 2)},
  }


def hours(work: costs.Work) -> float:
  """The time that so much work takes at `TERA`."""
  return 2 * work.multiply_adds() / (TERA * 1e12 * 3600)


def reach(exp: experiment.Experiment) -> claims.Reach | None:
  """What the test split can decide of the claims; None where its groups or they are not known."""
  groups, known = exp.data.groups(), tuple(exp.claims())
  return claims.reach(known, groups) if groups and known else None


def announcement(exp: experiment.Experiment) -> list[str]:
  """What a run says first: which claims it can decide, and for which networks."""
  found = reach(exp)
  lines = [too_few_groups(found, larger=_larger(exp, found)), over_folds(exp, found)]
  return [line for line in lines if line]


def too_few_groups(
  found: claims.Reach | None, *, larger: Sequence[tuple[str, claims.Reach]] = ()
) -> str:
  """One line if there are claims that no results of this size could decide, else ''.

  larger: other settings, and what each could decide.
  """
  if found is None or found.decidable == found.tested:
    return ''
  some = f'only {found.decidable} of' if found.decidable else 'none of'
  offers = [
    f'; --{setting} tests {other.groups} groups, which can decide {_all(other)}'
    for setting, other in larger
    if other.decidable > found.decidable
  ]
  return (
    f'{found.groups} groups (patients, volumes, ...) in the test split can decide {some} the '
    f"{found.tested} claims: no p can be below {found.least:.3g}, before Holm's correction"
    + ''.join(offers)
  )


def over_folds(exp: experiment.Experiment, found: claims.Reach | None) -> str:
  """One line on what a run over all folds tests, '' for a run without folds."""
  if not exp.data.folds:
    return ''
  decides = f', which can decide {_all(found)}' if found and found.decidable else ''
  return (
    f'{len(exp.data.folds)} folds are one run: every arm is trained in each, and tested on '
    f'{exp.data.groups()} groups in all, none of them twice{decides}; verdicts are conditional on '
    'these networks'
  )


def _all(found) -> str:
  number = 'all' if found.decidable == found.tested else f'{found.decidable} of the'
  return f'{number} {found.tested} claims'


def _larger(exp, found) -> list[tuple[str, claims.Reach]]:
  if found is None or found.decidable == found.tested:
    return []
  known, groups = tuple(exp.claims()), [(name, count()) for name, count in exp.data.larger.items()]
  return [(name, claims.reach(known, count)) for name, count in groups if count]


def _data(exp) -> dict[str, Any]:
  """Examples of each split; of a run over all folds those of each."""
  if not exp.data.folds:
    return dict(exp.data.sizes())
  return {f'fold{fold}': dict(data.sizes()) for fold, data in enumerate(exp.data.folds)}


def device_bytes(exp: experiment.Experiment, arms: tuple[str, ...]) -> int:
  """Estimated peak of the largest train step of these arms on one device.

  Phases of a step run one after the other, so activations of one phase are held at a time.
  """
  kinds = {}  # arms with equal networks and batches need the same memory
  for name in arms:
    task, arm = exp.task_of(name), exp.arms[name]
    batch = -(-side_by_side.held(arm.train) // parallel.device_count())
    copies = max(1.0, arm.defense.cost.passes / len(arm.defense.phases))
    # optimisers keep two, micro-batches another sum of gradients
    slots = 2 + (side_by_side.held(arm.train) < arm.train['batch_size'])
    kinds[id(task.predict), batch, slots, copies] = task
  return max(
    costs.device_bytes(task, batch_per_device=batch, slots=slots, copies=copies)
    for (_, batch, slots, copies), task in kinds.items()
  )


def require_memory(
  exp: experiment.Experiment, arms: Iterable[experiment.Arm], *, allowed: bool
) -> dict[str, Callable[[Any], None]]:
  """Says what a step of each arm needs; where that is more than is free, a `UserError`.

  Shapes give an upper bound. One that is far above what is free is refused at once. Of one that is
  somewhat above, the compiled step has to tell: the result has, for each such arm, what is to be
  called with it. With `allowed` nothing is refused.
  """
  checks = {arm.name: _memory_check(exp, arm, allowed) for arm in arms}
  return {name: check for name, check in checks.items() if check is not None}


def _memory_check(exp, arm, allowed):
  options, shape = arm.train, exp.task_of(arm.name).image_shape
  if not options['steps'] or options['batch_size'] * math.prod(shape) < LARGE:
    return None
  bound, free = device_bytes(exp, (arm.name,)), memory.free_device_bytes()
  known = not allowed and free is not None
  checked = parallel.any_host(known and bound > free)  # hosts can have different amounts
  if parallel.any_host(known and bound > SURE * free):
    raise _too_large(arm, f'about {_amount(bound)}', free)
  console.say(f'a step of {arm.name} needs at most about {_amount(bound)} on each device')

  def check(compiled):
    needed, free = memory.program_bytes(compiled), memory.free_device_bytes()
    if parallel.any_host(free is not None and needed > free):
      raise _too_large(arm, _amount(needed), free)

  return check if checked else None


def _too_large(arm, needed, free) -> errors.UserError:
  return errors.UserError(
    f'a step of {arm.name} with train.batch_size={arm.train["batch_size"]} needs {needed} of '
    f'memory on each device, {_amount(free)} is free here; lower train.batch_size or set '
    f'train.micro_batch, or run it all the same with {memory.ALLOW}'
  )


def _amount(size) -> str:
  return 'an unknown amount' if size is None else f'{size / memory.GIB:.1f} GiB'


def _claims(exp) -> dict[str, Any]:
  found = reach(exp)
  if found is None:
    return {}
  lines = {
    'warning': too_few_groups(found, larger=_larger(exp, found)),
    'folds': over_folds(exp, found),
  }
  return {**found._asdict(), **{name: line for name, line in lines.items() if line}}


def _networks(exp, config) -> dict[str, Any]:
  """{name: task} of the experiment's network and of those that single arms have."""
  found = {config.model.name: exp.task}
  for arm in exp.arms.values():
    if arm.network.task is not None:
      differs = ', '.join(f'{field}={value}' for field, value in arm.network.fields.items())
      found[f'{config.model.name}, {differs}'] = arm.network.task
  return found
