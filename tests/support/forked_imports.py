"""What the main program imports before it does anything; see forked.py."""

import gc

import matplotlib.pyplot  # noqa: F401

from robustmed import main, papers  # noqa: F401
from robustmed.runs import commandline, stages  # noqa: F401

for name in papers.EXPERIMENTS:
  papers.find(name)

gc.freeze()  # collections of a run need not look at modules, nor copy their pages
