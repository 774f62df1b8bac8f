"""The audit of a trained network on labelled images, and its hardening. Configurations:
configs/audit.py, configs/harden.py.

experiment.py  build(config)
setup.py       networks and data that fit each other; the examples that are attacked
label_maps.py, classes.py, landmarks.py   what is measured of each kind of labels
whole_images.py   networks that give classes or landmarks, and data that fit them
threat.py      the size of an attack in the user's units, in numbers and words
results.py     report/audit.json
breaking.py    the smallest level that breaks each case
page.py        the page; its first part is for a clinician
card.py        report/card.md, a section of a model card
coverage.py    what of two checklists was done
example.py     the network of the demonstration
harden.py      build(config): the network is trained on, audited before and after
handback.py    trained networks in the format in which the network came
"""
