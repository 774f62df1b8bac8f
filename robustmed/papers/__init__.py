"""Experiments by name: plain composition of everything else. One file and one line each.

A module has `build(config) -> Experiment`, which the stages run, or, like the benchmark,
`run(config, workdir=...)`, which does all by itself.
"""

from robustmed.benchmark import workloads
from robustmed.papers import quickstart
from robustmed.papers.amat import experiment
from robustmed.papers.brats import experiment as brats
from robustmed.papers.nodules import experiment as nodules
from robustmed.papers.spine import experiment as spine
from robustmed.papers.synthesis import experiment as synthesis
from robustmed.papers.two_moons import experiment as two_moons

EXPERIMENTS = {
  'amat': experiment,
  'benchmark': workloads,
  'brats': brats,
  'nodules': nodules,
  'quickstart': quickstart,
  'spine': spine,
  'synthesis': synthesis,
  'two_moons': two_moons,
}
