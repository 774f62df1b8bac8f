"""Your own labelled images: any of the networks, trained on them and attacked. Configuration:
configs/train.py. The claims are questions to the data. Every choice that they decide is
printed.

  experiment.py    build(config)
  choices.py       what the folder decides: spacing, patch, batch, bounds, units of levels
  segmentation.py, landmarks.py, objects.py, classes.py   networks, data and files of each kind
  photos.py        what the last three share
  surfaces.py      NSD and HD95 of label maps
  structures.py    which of their structures are found at all, and how far off these are
  report.py        the page
"""
