"""Experiments by name: plain composition of everything else. One file and one line each.

A module has `build(config) -> Experiment`, which the stages run, or, like the benchmark,
`run(config, workdir=...)`, which does all by itself.
"""

from robustmed.experiments import (
  amat,
  benchmark,
  brats,
  nodules,
  quickstart,
  spine,
  synthesis,
  two_moons,
)

EXPERIMENTS = {
  'amat': amat,
  'benchmark': benchmark,
  'brats': brats,
  'nodules': nodules,
  'quickstart': quickstart,
  'spine': spine,
  'synthesis': synthesis,
  'two_moons': two_moons,
}
