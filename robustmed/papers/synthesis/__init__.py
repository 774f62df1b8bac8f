"""Chen et al. 2019, "Intelligent image synthesis to attack a segmentation CNN using adversarial
learning". Configuration: configs/synthesis.py.

  experiment.py  build(config)
  arms.py        generators and the hardened segmenter as arms
  evaluation.py  the study of trained generators against the segmenters
  slices.py      what is measured slice by slice, and how slices make up subjects
  claims.py      the paper's statements as tests
  figures.py, report.py   the page
  published/     the printed Table 1

Readings of unclear passages: `config.reading`, explained in configs/synthesis.py.
"""
