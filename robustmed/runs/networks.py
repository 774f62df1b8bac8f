"""The networks of one run: their folders, how they are loaded, their evaluators."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import ml_collections

from robustmed import errors
from robustmed.evaluation import grid, trials
from robustmed.process import files
from robustmed.runs import experiment, workdir
from robustmed.training import checkpoints

PyTree = Any


class Networks:
  """The networks of experiment `exp`, trained under `config` in the workdir `root`.

  exact: the experiment whose tasks evaluate them, see `experiment.in_float32`; None: `exp`.
  """

  def __init__(
    self,
    exp: experiment.Experiment,
    config: ml_collections.ConfigDict,
    root: pathlib.Path,
    exact: experiment.Experiment | None = None,
  ):
    self._exp, self._config, self._root = exp, config, root
    self._exact = exact or exp
    self._evaluators = {}

  def folder(self, arm: str, trial: trials.Trial) -> pathlib.Path:
    return self._root / 'checkpoints' / files.name_of(arm, what='an arm') / trial.folder

  def final(self, arm: str, trial: trials.Trial) -> pathlib.Path:
    """The folder of the trained variables; it exists once the training has finished."""
    return self.folder(arm, trial) / 'variables'

  def untrained(self, arms: Iterable[str]) -> list[tuple[str, trials.Trial]]:
    """(arm, trial) of the networks that are not finished, in the order of training."""
    return [
      (name, trial)
      for trial in self._exp.trials(self._config.seeds)
      for name in arms
      if not self._elsewhere(name) and not self.final(name, trial).exists()
    ]

  def _elsewhere(self, arm: str):
    """() -> the variables of an arm whose network comes from elsewhere, None for all others."""
    return self._exp.arms[arm].network.variables if arm in self._exp.arms else None

  def card(self, arm: str) -> dict[str, Any]:
    """What a saved network's card says of its arm: model fields and image shape."""
    return {
      'model': self._exp.model_of(arm, self._config),
      'image_shape': list(self._exp.task.image_shape),
    }

  def load(self, arm: str, trial: trials.Trial) -> PyTree:
    if elsewhere := self._elsewhere(arm):
      return elsewhere()
    path = self.final(arm, trial)
    if not path.exists():
      raise errors.UserError(
        f'arm {arm!r} ({trial.said}) is not trained in {self._root}; run --stage train --arms {arm}'
      )
    return checkpoints.load_variables(path, self._exp.task_of(arm))

  def evaluator(self, arm: str = '') -> grid.Evaluator:
    """The evaluator of an arm's task (default: the experiment's); tasks that differ in `init` alone
    share one."""
    task = self._exact.task_of(arm)
    same = tuple(id(field) for field in task._replace(init=None))
    if same not in self._evaluators:
      key = jax.random.fold_in(jax.random.key(self._config.seed), 0xA77AC)
      plan = self._exact.grid
      judge = plan.checks.get('metric'), plan.checks.get('higher_is_better')
      made = grid.Evaluator(
        task,
        plan.probes,
        key=key,
        main=plan.main,
        judge=judge if judge[0] else None,
        host=plan.host,
      )
      self._evaluators[same] = made
    return self._evaluators[same]

  def model(self, arm: str, trial: trials.Trial, load=None) -> grid.Model:
    """An arm's `grid.Model`; `load` () -> variables replaces loading the trained network."""
    evaluated = self._exp.arms[arm].evaluated if arm in self._exp.arms else True
    attacks = None if evaluated is True else evaluated or ()
    load = load or (lambda: self.load(arm, trial))
    return grid.Model(arm, trial, load, self.evaluator(arm), attacks)

  def models(self, arms: Iterable[str]) -> list[grid.Model]:
    evaluated = [name for name in arms if self._exp.arms[name].evaluated is not False]
    every = self._exp.trials(self._config.seeds)
    return [self.model(name, trial) for trial in every for name in evaluated]

  def imported(self, folder: pathlib.Path) -> list[grid.Model]:
    """[the saved network in `folder`], which must be of a model that this configuration has."""
    card = checkpoints.read_card(folder)
    arm = str(card.get('arm'))
    if arm in self._exp.arms and self._exp.arms[arm].evaluated is False:
      raise errors.UserError(f'{folder} holds {arm!r}, an arm that is not evaluated under attacks')
    here = self.card(arm)
    there = {name: card.get(name) for name in here}
    changed = workdir.differences(there, json.loads(json.dumps(here)))
    if changed:
      raise errors.UserError(
        f'the network in {folder} is not the one this configuration describes: {"; ".join(changed)}'
      )
    trial, folds = trials.of(card), len(self._exp.data.folds)
    if folds and trial.fold not in [(fold,) for fold in range(folds)]:
      raise errors.UserError(
        f'the network in {folder} is of none of the {folds} folds, so it is not known which cases '
        'it may be tested on; leave config.data.folds at 0'
      )
    trial = trials.Trial(trial.seed, *(trial.fold if folds else ()))
    load = lambda: checkpoints.load_variables(folder / 'variables', self._exp.task_of(arm))
    return [self.model(arm, trial, load)]
