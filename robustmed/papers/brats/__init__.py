"""Liu et al. 2021, attacks on and defenses of 2D and 3D brain tumour segmentation. Configurations:
configs/brats2d.py and configs/brats3d.py.

  experiment.py  build(config)
  rows.py        rows of slices to rows of volumes, lowest Dice over attacks, verdicts of defenses
  evaluation.py  curves over iterations, pictures and volumes beside the grid
  pairing.py     whether two runs test the same cases
  claims.py      the paper's statements as tests
  tables.py      Tables 1 to 3 with the paper's numbers beside
  notes.py, figures.py, report.py   the page
  published/     the printed Tables 1 to 3

Readings of unclear passages: `config.reading`, listed in experiment.READINGS and told in notes.py.
"""
