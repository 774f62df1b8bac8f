"""Shared by the kinds of tasks of AMAT: networks from plain data, worst cases."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pandas as pd

from robustmed import data, errors, models, types
from robustmed.evaluation import trials
from robustmed.runs import artifacts, costs, experiment

FILE = 'worst.npz'


def source_config(config: ml_collections.ConfigDict, *fold: int) -> dict[str, Any]:
  """The `config` of `data.load`; of a run over all folds that of one of them."""
  chosen = {'fold': fold[0]} if fold else {}
  return data.source_config({**config.data.to_dict(), **chosen})


class Criterion(NamedTuple):
  """What decides whether a margin grows."""

  terms: tuple[str, ...]  # of `defenses.amat.term_values`
  what: str = 'losses'  # of the clean images, in the report
  strata: bool = False  # thresholds and tests within the strata of the task
  stratum: int | None = None  # all thresholds are estimated from this stratum of the task
  clean_terms: tuple[str, ...] = ()  # that V are of, in place of `terms`

  @property
  def valued(self) -> tuple[str, ...]:
    """The terms whose clean values V thresholds are estimated from."""
    return self.clean_terms or self.terms


def criterion(config: ml_collections.ConfigDict, known: Mapping[str, Criterion]) -> Criterion:
  """The criterion of config.reading, of those `known`; without strata if reading.strata is off."""
  reading = config.reading
  found = errors.lookup(known, reading.criterion, kind='criterion of the margins')
  # In earlier configurations, without this field, only the Dice was that of one stratum.
  if reading.get('strata', not found.strata):
    return found
  return found._replace(strata=False, stratum=None)


def module(config: ml_collections.ConfigDict, **fields) -> nn.Module:
  """The network of config.model; `fields` are those that the task decides."""
  options = config.model.to_dict()
  options.pop('init', None)
  make = errors.lookup(models.MODELS, options.pop('name'), kind='model')
  dtype = errors.lookup(
    {'float32': None, 'bfloat16': jnp.bfloat16}, options.pop('dtype'), kind='model dtype'
  )
  return make(dtype=dtype, **fields, **options)


def worst_study(
  config: ml_collections.ConfigDict, attack: types.Attack, *, metric: str, higher: bool
) -> experiment.Study:
  """The study that saves results/worst.npz: every arm's worst test image under the main attack."""

  def run(context, networks, rows):
    save(config, context, networks, rows, metric=metric, higher=higher)

  def cells(arm: str, trial: trials.Trial, finished: Collection[str]) -> dict[str, types.Cost]:
    del arm, finished
    if any(trial):
      return {}
    size = data.sizes(source_config(config, *trial.fold)).get('test', 0)
    whole = max(1, min(size, config.evaluate.batch_size))  # a batch is attacked for one image
    return {FILE: costs.attacked(attack, whole, scores=2)}

  return experiment.Study('the worst test images', run, cells)


def save(config, context, networks, rows: pd.DataFrame, *, metric: str, higher: bool) -> None:
  """Saves results/worst.npz: every arm's worst example under the main attack, with its pictures.

  Of the first trial, by `metric`, at report.picture_eps.
  """
  eps = config.report.picture_eps
  name = context.exp.grid.main
  cell = rows[(rows['attack'] == name) & np.isclose(rows['eps'], eps)]

  def make(model) -> dict[str, np.ndarray]:
    here = trials.select(cell[cell['arm'] == model.arm], model.trial)
    worst = here.sort_values([metric, 'index'], ascending=[higher, True]).head(1)
    found = list(context.attacked(model, eps=eps, wanted=worst['index']))
    if not found:  # report.picture_eps is not a level of the grid
      return {}
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *found)
    return {
      'arm': np.array([model.arm] * len(found)),
      'eps': np.full(len(found), eps),
      'index': stacked.example['index'],
      'image': stacked.example['image'],
      'adversarial': stacked.image,
      'value': worst[metric].to_numpy(),
      **context.exp.artifacts.pictures(stacked),
    }

  attacked = filter(context.meets_main, artifacts.first_trial(networks))
  artifacts.add_pictures(context.results / FILE, attacked, make)
