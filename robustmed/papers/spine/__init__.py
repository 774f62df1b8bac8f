"""Chen et al. 2021, "Adversarial robustness study of convolutional neural network for lumbar disk
shape reconstruction from MR images". Configuration: configs/spine.py.

  experiment.py  build(config); attacks from outside the distribution as a study
  disks.py       task, data, augmentation and pictures of one disk, shared with the quickstart
  mismatch.py    what an attack from outside minimises and is scored by
  ood.py         attacks from outside and detectors of them
  evaluation.py  what is kept beside the grid for tables and figures
  claims.py      the paper's statements as tests
  sections.py, figures.py, report.py   the page
  published/     the printed Tables 1 to 3

Readings of unclear passages: `config.reading`, explained in configs/spine.py; the report names
those that were run.
"""
