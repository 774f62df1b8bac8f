"""Experiments by name. One folder, or for the quickstart one file, and one line each.

A paper's `experiment` module has `build(config)`, which returns a `runs.experiment.Experiment`.
The benchmark is no paper: its module has `run(config, workdir=...)` and does all by itself.

No paper imports another, and nothing outside this folder imports a paper: `main` looks a name up
here and hands the module to `runs`. The quickstart uses the disk pieces of `spine`.
"""

import importlib
from types import ModuleType

from robustmed import errors

EXPERIMENTS = {
  'amat': 'robustmed.papers.amat.experiment',
  'audit': 'robustmed.audit.experiment',
  'benchmark': 'robustmed.benchmark.workloads',
  'brats': 'robustmed.papers.brats.experiment',
  'harden': 'robustmed.audit.harden',
  'nodules': 'robustmed.papers.nodules.experiment',
  'own_data': 'robustmed.own_data.experiment',
  'quickstart': 'robustmed.papers.quickstart',
  'spine': 'robustmed.papers.spine.experiment',
  'synthesis': 'robustmed.papers.synthesis.experiment',
  'two_moons': 'robustmed.papers.two_moons.experiment',
}


def find(name: str) -> ModuleType:
  """Returns the module of the experiment `name`; an unknown name is a `UserError`."""
  return importlib.import_module(errors.lookup(EXPERIMENTS, name, kind='experiment'))
