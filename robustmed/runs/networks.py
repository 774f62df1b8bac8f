"""The networks of one run: where they are kept, how they are loaded, what evaluates them."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import ml_collections

from robustmed import errors
from robustmed.evaluation import grid
from robustmed.runs import experiment, workdir
from robustmed.training import checkpoints

PyTree = Any


class Networks:
  """Those of `exp` in the workdir `root`; `config` is the run's."""

  def __init__(
    self, exp: experiment.Experiment, config: ml_collections.ConfigDict, root: pathlib.Path
  ):
    self._exp, self._config, self._root = exp, config, root
    self._evaluators = {}

  def folder(self, arm: str, seed: int) -> pathlib.Path:
    return self._root / 'checkpoints' / arm / f'seed{seed}'

  def final(self, arm: str, seed: int) -> pathlib.Path:
    """Where the trained network is; it is there once the training is finished."""
    return self.folder(arm, seed) / 'variables'

  def untrained(self, arms: Iterable[str]) -> list[tuple[str, int]]:
    """(arm, seed) of the networks that are not finished, in the order of training."""
    return [
      (name, seed)
      for seed in range(self._config.seeds)
      for name in arms
      if not self.final(name, seed).exists()
    ]

  def card(self, arm: str) -> dict[str, Any]:
    """Which network an arm's is, for those who attack it elsewhere."""
    return {
      'model': self._exp.model_of(arm, self._config),
      'image_shape': list(self._exp.task.image_shape),
    }

  def load(self, arm: str, seed: int) -> PyTree:
    path = self.final(arm, seed)
    if not path.exists():
      raise errors.UserError(
        f'arm {arm!r} (seed {seed}) is not trained in {self._root}; run --stage train --arms {arm}'
      )
    return checkpoints.load_variables(path, self._exp.task_of(arm))

  def evaluator(self, arm: str = '') -> grid.Evaluator:
    """That of the experiment's task or, with `arm`, of the arm's; one for all tasks that differ in
    nothing but how their networks begin."""
    task = self._exp.task_of(arm)
    same = tuple(id(field) for field in task._replace(init=None))
    if same not in self._evaluators:
      key = jax.random.fold_in(jax.random.key(self._config.seed), 0xA77AC)
      made = grid.Evaluator(task, self._exp.grid.probes, key=key, main=self._exp.grid.main)
      self._evaluators[same] = made
    return self._evaluators[same]

  def model(self, arm: str, seed: int, load=None) -> grid.Model:
    """For the grid; `load` () -> variables replaces that of the trained network."""
    evaluated = self._exp.arms[arm].evaluated if arm in self._exp.arms else True
    attacks = None if evaluated is True else evaluated or ()
    load = load or (lambda: self.load(arm, seed))
    return grid.Model(arm, seed, load, self.evaluator(arm), attacks)

  def models(self, arms: Iterable[str]) -> list[grid.Model]:
    graded = [name for name in arms if self._exp.arms[name].evaluated is not False]
    return [self.model(name, seed) for seed in range(self._config.seeds) for name in graded]

  def imported(self, folder: pathlib.Path) -> list[grid.Model]:
    """The saved network in `folder`, of another run, if this configuration describes it."""
    card = checkpoints.read_card(folder)
    arm = str(card.get('arm'))
    if arm in self._exp.arms and self._exp.arms[arm].evaluated is False:
      raise errors.UserError(
        f'{folder} holds {arm!r}, which is not a network to evaluate by itself'
      )
    here = self.card(arm)
    there = {name: card.get(name) for name in here}
    changed = workdir.differences(there, json.loads(json.dumps(here)))
    if changed:
      raise errors.UserError(
        f'the network in {folder} is not the one this configuration describes: {"; ".join(changed)}'
      )
    load = lambda: checkpoints.load_variables(folder / 'variables', self._exp.task_of(arm))
    return [self.model(arm, card['seed'], load)]
