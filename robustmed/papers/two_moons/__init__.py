"""Liu et al. 2020, Fig. 7: two moons in six panels. Configuration: configs/two_moons.py.

  experiment.py  build(config)
  moons.py       the points
  points.py      the auto-encoder of points and the search for hard ones
  arms.py        one arm per panel, and the points it adds
  figures.py, report.py   the page

Readings of unclear passages: the comments of configs/two_moons.py.
"""
