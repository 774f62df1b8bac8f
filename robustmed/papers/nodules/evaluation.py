"""After the grid: whole scans, stress tests, and what the figures need."""

from collections.abc import Callable

from robustmed import types
from robustmed.papers.nodules import pools, scans, stress
from robustmed.runs import artifacts
from robustmed.training import checkpoints


def evaluate(
  config, task_of: Callable[[str], types.Task], context: artifacts.Context, models, rows
) -> None:
  """Writes results/froc (submissions, annotations), stress.parquet, made.parquet and pools.npz."""
  del rows
  for seed in sorted({model.seed for model in models}):
    trained = trained_of(config, task_of, context, seed)
    mine = [model for model in models if model.seed == seed]
    scans.run(config, context, trained, mine)
    stress.run(context, trained, mine)


def trained_of(config, task_of, context: artifacts.Context, seed: int) -> pools.Trained:
  """The finished networks of a seed in the workdir."""
  root = context.results.parent
  place = lambda arm: root / 'checkpoints' / arm / f'seed{seed}' / 'variables'
  load = lambda arm: checkpoints.load_variables(place(arm), task_of(arm))
  return pools.Trained(config, task_of, load, root, seed, context.stopper)
