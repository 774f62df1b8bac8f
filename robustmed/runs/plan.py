"""What `--stage plan` prints: one run as a list of commands for several machines."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from robustmed import errors
from robustmed.runs import costs, experiment, forecast, networks


class Item(NamedTuple):
  """Arms that one job runs one after the other, and their cost in multiply-adds."""

  arms: tuple[str, ...]
  cost: float


class Wave(NamedTuple):
  """Jobs that run in parallel; the next wave waits for all of them."""

  stage: str
  jobs: tuple[Item, ...]

  @property
  def longest(self) -> float:
    return max(job.cost for job in self.jobs)


def waves(
  needs: Mapping[str, Sequence[str]],
  *,
  train: Mapping[str, float],
  evaluate: Mapping[str, float],
  jobs: int,
) -> list[Wave]:
  """Schedules trainings, then evaluations, as waves of at most `jobs` parallel jobs.

  needs: arm -> arms whose training must finish first. train, evaluate: arm -> remaining cost. An
  arm with a single need, which no other arm has, follows that arm in the same job. Within a wave
  the most expensive item is placed first, into the job with the least cost.
  """
  if jobs < 1:
    raise errors.UserError(f'--stage plan needs --jobs of at least 1, not {jobs}')
  out, done = [], set(needs) - set(train)
  left = _chains(needs, train)
  while left:
    ready = [item for item in left if set(needs[item.arms[0]]) <= done]
    if not ready:
      raise errors.UserError(f'arms need each other in a circle: {left}')
    out.append(Wave('train', _balanced(ready, jobs)))
    done.update(arm for item in ready for arm in item.arms)
    left = [item for item in left if item not in ready]
  if evaluate:
    items = [Item((arm,), cost) for arm, cost in evaluate.items()]
    out.append(Wave('evaluate', _balanced(items, jobs)))
  return out


def _chains(needs, train) -> list[Item]:
  waiting = {arm: [need for need in needs[arm] if need in train] for arm in train}
  followers: dict[str, list[str]] = {arm: [] for arm in train}
  for arm, its in waiting.items():
    for need in its:
      followers[need].append(arm)

  def follows(arm):
    return len(waiting[arm]) == 1 and len(followers[waiting[arm][0]]) == 1

  out = []
  for arm in train:
    if follows(arm):
      continue
    chain = [arm]
    while len(followers[chain[-1]]) == 1 and follows(followers[chain[-1]][0]):
      chain.append(followers[chain[-1]][0])
    out.append(Item(tuple(chain), sum(train[name] for name in chain)))
  return out


def _balanced(items: Iterable[Item], jobs: int) -> tuple[Item, ...]:
  """Longest processing time first."""
  bins: list[list[Item]] = []
  for item in sorted(items, key=lambda item: -item.cost):
    if len(bins) < jobs:
      bins.append([item])
    else:
      min(bins, key=lambda job: sum(one.cost for one in job)).append(item)
  return tuple(
    Item(tuple(arm for item in job for arm in item.arms), sum(item.cost for item in job))
    for job in bins
  )


def make(
  exp: experiment.Experiment,
  config: ml_collections.ConfigDict,
  *,
  order: Sequence[str],
  unfinished: Iterable[str],
  jobs: int,
) -> list[Wave]:
  """The waves of the arms `order`; all but those `unfinished` are trained already.

  Every trial of an arm costs as much as the first.
  """
  first, count = exp.trials()[0], len(exp.trials(config.seeds))
  unfinished, examples = set(unfinished), exp.data_of(*first.fold).sizes().get('train', 0)

  def training(arm):
    return costs.training(exp.arms[arm], exp.task_of(arm), examples=examples)

  def evaluation(arm):
    work = costs.Work()
    for cost in forecast.evaluation(exp, config, arm, first, order).values():
      work.add(exp.task_of(arm), cost)
    return work

  return waves(
    {arm: exp.arms[arm].needs for arm in order},
    train={arm: count * training(arm).multiply_adds() for arm in order if arm in unfinished},
    evaluate={
      arm: count * evaluation(arm).multiply_adds()
      for arm in order
      if exp.arms[arm].evaluated is not False
    },
    jobs=jobs,
  )


def shell_lines(found: Sequence[Wave], *, flags: Sequence[str], jobs: int) -> list[str]:
  """The waves as shell commands with comments; `flags` are those of the run."""
  base = ['python', '-m', 'robustmed.main', *flags]
  total = sum(job.cost for wave in found for job in wave.jobs) or 1
  wall = sum(wave.longest for wave in found)
  out = [
    f'# {sum(len(wave.jobs) for wave in found)} jobs, at most {jobs} at a time, in '
    f'{len(found)} waves: {total / wall if wall else 1:.1f} times as fast as one, if there '
    'is a machine for every job',
    '# start a wave when every job of the one before has ended; shares are of the total cost',
  ]
  for number, wave in enumerate(found, 1):
    out.append(f'# wave {number}: {wave.stage}, the longest job is {wave.longest / total:.1%}')
    for job in wave.jobs:
      words = [*base, '--stage', wave.stage, '--arms', ','.join(job.arms)]
      out.append(f'{shlex.join(words)}  # {job.cost / total:.1%}')
  out += [
    '# at the end: join the results of all jobs, nothing is evaluated again; then the report',
    shlex.join([*base, '--stage', 'evaluate']),
    shlex.join([*base, '--stage', 'report']),
  ]
  return out


def commands(exp: experiment.Experiment, command: Any) -> list[str]:
  """The lines that `--stage plan` prints for a `commandline.Command`."""
  order, _ = experiment.training_order(exp.arms, command.arms)
  unfinished = networks.Networks(exp, command.config, command.workdir).untrained(order)
  found = make(
    exp,
    command.config,
    order=order,
    unfinished=[name for name, _ in unfinished],
    jobs=command.jobs,
  )
  return shell_lines(found, flags=command.rerun_flags, jobs=command.jobs)
