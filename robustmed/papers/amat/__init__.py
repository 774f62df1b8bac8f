"""Ma & Liang 2022, "Adaptive Adversarial Training to Improve Adversarial Robustness of DNNs for
Medical Image Segmentation and Detection". Configurations: configs/amat_*.py.

  experiment.py  build(config); the readings are applied to the arms in `read`
  parts.py       shared by the three kinds of tasks
  segmentation.py, landmarks.py, objects.py   network, data, pictures, studies of each kind
  claims.py      the paper's statements as tests
  figures.py, pictures.py, report.py   the page
  published/     the printed Tables 1 to 3

Readings of unclear passages: `config.reading`, explained in configs/_amat.py.
"""
